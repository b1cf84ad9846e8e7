"""Which upstream a model is asked of: the wire format it was asked in, and its name."""

from __future__ import annotations

import re
from collections.abc import Mapping

from akbox.inference.wire import WireError
from akbox.policy.model import Infer, Upstream
from akbox.policy.patterns import match_name

OFFICIAL = ("api.openai.com",)
_VERSION = re.compile(r"/v[0-9]+[a-z0-9]*$")


class NoUpstream(WireError):
    """No upstream of this format serves the model."""


class Router:
    """The policy's upstreams in its order: the first that serves a model gets it."""

    def __init__(self, infer: Infer) -> None:
        self._aliases = infer.aliases
        self.upstreams: Mapping[str, Upstream] = infer.upstreams

    def resolve(self, model: str) -> str:
        """The model that an alias stands for; any other name is itself."""
        return self._aliases.get(model, model)

    def aliases(self) -> Mapping[str, str]:
        return self._aliases

    def find(self, wire: str, model: str) -> str:
        """The upstream's name. Raises NoUpstream."""
        for name, upstream in self.upstreams.items():
            if upstream.type == wire and serves(upstream, model):
                return name
        raise NoUpstream(f"no {wire} upstream of this run serves the model {model}")

    def find_any(self, model: str) -> str:
        """For a call that has no format of its own: an upstream that names the model before one that takes any. Raises
        NoUpstream."""
        for name, upstream in self.upstreams.items():
            if upstream.models and serves(upstream, model):
                return name
        usual = "anthropic" if model.startswith("claude") else "openai"
        whole = [name for name, upstream in self.upstreams.items() if not upstream.models]
        for name in sorted(whole, key=lambda n: self.upstreams[n].type != usual):
            return name
        raise NoUpstream(f"no upstream of this run serves the model {model}")


def serves(upstream: Upstream, model: str) -> bool:
    return not upstream.models or any(match_name(pattern, model) for pattern in upstream.models)


def url_of(base: str, path: str) -> str:
    """Where a call of the API is: base URLs are written with the version and without."""
    base = "http://localhost" if base.startswith("unix:") else base.rstrip("/")
    return base + (path.removeprefix("/v1") if _VERSION.search(base) else path)


def is_official(base: str) -> bool:
    """Is this the provider itself, and not somebody who speaks its format?"""
    return base.partition("://")[2].partition("/")[0] in OFFICIAL
