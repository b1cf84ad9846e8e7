"""What a capability's resource covers: one pattern against one target, by the grammar of the type (design 01, 02).

The patterns are those of policies, without variables: a token means the same wherever it is read.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from akbox.policy.netpatterns import Endpoint, canonical_address, match_host, parse_endpoint, parse_host
from akbox.policy.patterns import PathPattern, PatternError, match_name, parse_name, parse_path, path_bytes

if TYPE_CHECKING:
    from akbox.kernel.capability import Type

ALL = "*"
_NET, _FS, _SPAWN = 1, 2, 5
_PREFIXES = {3: "tool:", 4: "secret:", 6: "heap:", 7: "model:", 8: "agent:"}

Resource = PathPattern | Endpoint | str


class ScopeError(ValueError):
    """Not a pattern of this type."""


@lru_cache(maxsize=1024)
def parse_resource(kind: Type, resource: str) -> Resource:
    """A pattern, parsed. Raises ScopeError."""
    try:
        if resource == ALL:
            return ALL
        if kind in (_FS, _SPAWN):
            return _path(resource)
        if kind == _NET:
            if resource.startswith("unix:"):
                return _path(resource[5:])
            if resource.startswith("host:"):  # a name that may be looked up
                parse_host(resource[5:])
                return resource
            return parse_endpoint(resource)
        return parse_name(_bare(kind, resource))
    except PatternError as error:
        raise ScopeError(f"{error.message}{f' ({error.hint})' if error.hint else ''}") from error


def matches(kind: Type, resource: str, target: str) -> bool:
    """Does the pattern cover the target? What either of them is not understood as is not covered."""
    try:
        pattern = parse_resource(kind, resource)
    except ScopeError:
        return False
    if resource == ALL:
        return True
    if isinstance(pattern, PathPattern):
        if kind == _NET:
            return target.startswith("unix:") and _match_path(pattern, target[5:])
        return _match_path(pattern, target)
    if isinstance(pattern, Endpoint):
        return _match_endpoint(pattern, target)
    if kind == _NET:
        return _match_lookup(resource, target)
    return match_name(pattern, _bare(kind, target))


def _bare(kind: int, text: str) -> str:
    return text.removeprefix(_PREFIXES.get(kind, ""))


def _path(text: str) -> PathPattern:
    pattern = parse_path(text)
    if pattern.base:
        raise PatternError("a capability's path has no variables and no ~", "write the whole path")
    return pattern


def _match_path(pattern: PathPattern, target: str) -> bool:
    from akbox.policy.effects import canonical_path
    from akbox.policy.matcher import ALLOW, E_ALLOW, READ, Accept, Trie, judge

    try:
        canonical_path(target)
    except PatternError:
        return False
    trie = Trie()
    trie.add(pattern.segments, Accept(0, E_ALLOW, READ, False))
    return judge(trie.root, READ, path_bytes(target)).decision == ALLOW


def _match_endpoint(pattern: Endpoint, target: str) -> bool:
    import ipaddress

    from akbox.policy.effects import parse_net_target

    try:
        what = parse_net_target(target, "net.connect")
    except PatternError:
        return False
    if what.kind == "unix" or what.protocol != pattern.protocol or not pattern.low <= what.port <= pattern.high:
        return False
    if what.kind == "dns":
        return pattern.host is not None and match_host(pattern.host, what.name)
    return pattern.network is not None and canonical_address(ipaddress.ip_address(what.name)) in pattern.network


def _match_lookup(resource: str, target: str) -> bool:
    from akbox.policy.netpatterns import canonical_host

    try:
        name = canonical_host(target.removeprefix("dns:").partition(":")[0])
        return target.startswith("dns:") and match_host(parse_host(resource[5:]), name)
    except PatternError:
        return False
