"""The model gateway of a run, as the Linux target sees it: a loopback port and a unix socket, the agent's variables,
the keys.

Made before the plan (which grants both), started when the agent's program runs, closed with the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from akbox.kernel.kernel import Kernel
from akbox.kernel.secrets import SecretError, Secrets
from akbox.linux.errors import CannotRun
from akbox.linux.plan import stated_secrets
from akbox.policy.compiled import joined_infer
from akbox.policy.model import Infer, Policy, Secret
from akbox.policy.rules import compose

if TYPE_CHECKING:
    import socket

    from akbox.inference.service import Service
    from akbox.kernel.agents import Agent

SOCKET = ".akbox-models.sock"  # in the run's TMPDIR, for who speaks HTTP over a path
# By the type of an upstream: the variables that clients of this provider read, without and with the API's version.
BASE_URLS = {
    "anthropic": (("ANTHROPIC_BASE_URL", ""),),
    "openai": (("OPENAI_BASE_URL", "/v1"), ("OPENAI_API_BASE", "/v1")),
}
_CODEX = """# written by akbox: models are asked of this run's gateway
model_provider = "akbox"
[model_providers.akbox]
name = "akbox"
base_url = "{url}"
env_key = "OPENAI_API_KEY"
wire_api = "responses"
"""
KEYS = {"anthropic": ("ANTHROPIC_API_KEY",), "openai": ("OPENAI_API_KEY", "CODEX_API_KEY")}


class ModelGateway:
    """One run's. `close` may be called at any time, and twice."""

    def __init__(self, infer: Infer, secrets: Mapping[str, Secret], tmpdir: Path) -> None:
        """Raises OSError."""
        import socket  # only policies with upstreams pay for it

        self._infer, self._secrets = infer, secrets
        port = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listeners = [port]
        self.endpoint = f"127.0.0.1:{port.getsockname()[1]}"
        self.socket_path = str(tmpdir / SOCKET)
        try:
            self._listeners.append(_listen_at(tmpdir))
        except OSError:
            port.close()
            raise
        self._keys: dict[str, str] = {}
        self._kernel: Kernel | None = None
        self._service: Service | None = None

    def prepare(self, kernel: Kernel, environ: Mapping[str, str]) -> None:
        """Reads the keys. Raises CannotRun for one that is not to be had."""
        secrets = Secrets(kernel, self._secrets)
        try:
            secrets.read(environ)
            for name, upstream in self._infer.upstreams.items():
                if upstream.key is not None:
                    self._keys[name] = secrets.get(upstream.key.removeprefix("secret:"), f"infer:{name}")
        except SecretError as error:
            raise CannotRun(str(error), "set it, or leave its upstream out of the policy") from error
        self._kernel = kernel

    def environment(self, agent: Agent) -> dict[str, str]:
        """What makes the providers' clients call the gateway: base URLs, and keys that are a capability of this agent
        alone."""
        token = self._mint(agent)
        env = {"AKBOX_MODELS_SOCKET": self.socket_path}
        for kind in dict.fromkeys(upstream.type for upstream in self._infer.upstreams.values()):
            env |= {name: f"http://{self.endpoint}{version}" for name, version in BASE_URLS[kind]}
            env |= dict.fromkeys(KEYS[kind], token)
        return env

    def settings(self, tmpdir: Path) -> dict[str, str]:
        """For codex, which takes an address from its own settings only: a home with those, in the run's TMPDIR."""
        if all(upstream.type != "openai" for upstream in self._infer.upstreams.values()):
            return {}
        home = tmpdir / "codex"
        home.mkdir(mode=0o700)
        (home / "config.toml").write_text(_CODEX.format(url=f"http://{self.endpoint}/v1"))
        return {"CODEX_HOME": str(home)}

    def start(self, on_failure: Callable[[str], None]) -> None:
        """Precondition: prepared. From here on requests are answered; `on_failure` is called when they can't be."""
        from akbox.inference.service import Service

        assert self._kernel is not None
        assert self._listeners
        listeners, self._listeners = self._listeners, []
        self._service = Service(listeners, self._kernel, self._infer, self._keys, on_failure)
        self._service.start()
        self._kernel.infer = self._service.infer

    def close(self) -> None:
        """Calls under way are aborted and settled."""
        while self._listeners:
            self._listeners.pop().close()
        if self._service is not None:
            if self._kernel is not None:
                self._kernel.infer = None
            self._service.close()

    def _mint(self, agent: Agent) -> str:
        from akbox.kernel.capability import Caveat, Type, derive, new_tid

        assert self._kernel is not None
        token = self._kernel.caps.mint(Type.INFERENCE, "*")
        return derive(token, Caveat(tid=new_tid(), agent=agent.id.hex()))


def _listen_at(directory: Path) -> socket.socket:
    """A listening socket named SOCKET; its name goes with the directory. sun_path has 108 bytes, paths have more."""
    import socket

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{fd}/{SOCKET}")
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    finally:
        os.close(fd)
    return listener


def model_gateway(policy: Policy, tmpdir: Path) -> ModelGateway | None:
    """The gateway that a policy asks for by having upstreams; None: it has none. Raises CannotRun."""
    infer = joined_infer(compose(policy))
    if not infer.upstreams:
        return None
    try:
        return ModelGateway(infer, stated_secrets(policy), tmpdir)
    except OSError as error:
        raise CannotRun(f"no port or socket for the model gateway: {error.strerror}") from error
