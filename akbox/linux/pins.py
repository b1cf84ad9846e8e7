"""Which addresses are handed out for which names: the answers that may be given, and what connects they allow."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from akbox import _native
from akbox.policy.compiled import CompiledPolicy
from akbox.policy.matcher import E_ALLOW, E_ASK, E_DENY
from akbox.policy.netmatcher import CONNECT, TCP, UDP
from akbox.policy.netpatterns import Address, canonical_address, canonical_host, match_host
from akbox.policy.patterns import PatternError
from akbox.policy.ranges import kind_of, may_be_private

_RULE = struct.Struct("<IHHBB2x")  # struct ak_pin_rule of native/names.h
_EFFECTS = {E_ALLOW: 0, E_ASK: 1, E_DENY: 2}
_PROTOCOLS = {"tcp": TCP, "udp": UDP}
FOREVER = 0xFFFF_FFFF
HOSTS = Path("/etc/hosts")
_HOSTS_BYTES_MAX = 1 << 20


class Pins:
    """The names' side of one run's policy. Thread-safe: nothing changes after it was made, but for what C guards."""

    def __init__(
        self, policy: CompiledPolicy, names: _native.Names, *, hosts: Path = HOSTS, above: Pins | None = None
    ) -> None:
        self._policy = policy
        self._names = names
        self._above = above  # of the agent that started this one, whose rules on the name must hold too
        self._excused = [n for n, pieces in policy.net.by_network.items() if any(_connects(p.best) for p in pieces)]
        self.hosts: dict[str, list[Address]] = {}  # of the host's own file, as far as its names are allowed
        self._pin_hosts(hosts)

    def pin(self, host: str, address: Address, seconds: int) -> None:
        """From now on rules on `host` cover `address`. Raises OSError(ENOSPC) when too many are pinned."""
        if self._above is not None:
            self._above.pin(host, address, seconds)
        mapped = address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed
        self._names.pin(mapped, host.encode(), seconds, self._rules(host))

    def refusal(self, host: str, address: Address) -> str:
        """Why an answer with this address is not given for the name: the kind of address; "" when it may be."""
        address = canonical_address(address)
        kind = kind_of(address) or ("this machine's network" if _is_own(address) else "")
        if not kind or any(address in network for network in self._excused):
            return ""
        return "" if may_be_private(kind) and self._says_private(host) else kind

    def _says_private(self, host: str) -> bool:
        return any(h.section == "net.private" and match_host(h.host, host) for h in self._policy.hosts)

    def _rules(self, host: str) -> bytes:
        """What the rules of net.connect and net.deny say of connections to the name, for native/names.c."""
        return b"".join(
            _RULE.pack(h.rule, h.low, h.high, _EFFECTS[h.effect], _PROTOCOLS[protocol])
            for h in self._policy.hosts
            if h.section in ("net.connect", "net.deny") and match_host(h.host, host)
            for protocol in h.protocols
        )

    def _pin_hosts(self, file: Path) -> None:
        """Programs read that file themselves, so its entries count as answers. They are the host owner's word: a rule
        that names one of its names in full means the address that stands there, loopback and private ones too."""
        for address, host in _entries(file):
            verdict = self._policy.judge_name(host)
            if verdict.decision != 1:
                continue
            in_full = any(not h.host.wild and match_host(h.host, host) for h in self._policy.hosts)
            if self.refusal(host, address) and not (in_full and may_be_private(kind_of(address))):
                continue
            self.hosts.setdefault(host, []).append(address)
            self.pin(host, address, FOREVER)


def _connects(best: dict[tuple[int, int, int], int]) -> bool:
    return any(op == CONNECT and effect == E_ALLOW for op, _, effect in best)


def _entries(file: Path) -> Iterator[tuple[Address, str]]:
    """(address, canonical name) of each entry; lines that are none are passed over, as the C library does."""
    try:
        with open(file, encoding="utf-8", errors="replace") as opened:
            text = opened.read(_HOSTS_BYTES_MAX)
    except OSError:
        return
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(words[0]) if words else None
            for word in words[1:]:
                with contextlib.suppress(PatternError):
                    if address is not None:
                        yield address, canonical_host(word)


def _is_own(address: Address) -> bool:
    """Is it this machine's, or of a network it is directly on? Asked anew each time: interfaces come and go."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(address), 9))  # sends nothing; only one's own address is reached from itself
        if ipaddress.ip_address(probe.getsockname()[0]) == address:
            return True
    return any(address in network for network in _own_networks(address.version))


def _own_networks(version: int) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """The networks of the interfaces: routes without a gateway, and prefixes of addresses (proc(5))."""
    with contextlib.suppress(OSError):
        if version == 4:
            for line in Path("/proc/net/route").read_text().splitlines()[1:]:
                fields = line.split()
                target, gateway, mask = (int(fields[i], 16) for i in (1, 2, 7))
                bits = socket.ntohl(mask).bit_count()
                if not gateway and bits:
                    yield ipaddress.IPv4Network((socket.ntohl(target), bits))
            return
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            fields = line.split()
            yield ipaddress.IPv6Network((bytes.fromhex(fields[0]), int(fields[2], 16)), strict=False)
