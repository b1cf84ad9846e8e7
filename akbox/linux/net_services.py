"""What a run has of its own on loopback: the DNS server, the relay, and what the enforcer must know of both."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from akbox import _native
from akbox.linux.listening import listen, ports
from akbox.policy.compiled import CompiledPolicy

if TYPE_CHECKING:
    from akbox.linux.relay import Relay

RELAY_NAMED, RELAY_ALL = 1, 2  # native/names.h


class NetServices:
    """Made before the agent is launched, started before it runs, closed after its end."""

    def __init__(
        self,
        policy: CompiledPolicy,
        ring: _native.Ring,
        *,
        charge: Callable[[int], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._undo = contextlib.ExitStack()
        limit = _limit(policy)
        relayed = (RELAY_NAMED if policy.names and policy.sni_enforced else 0) | (RELAY_ALL if limit is not None else 0)
        try:
            udp = listen(socket.SOCK_DGRAM, self._undo) if policy.names else None
            tcp = listen(socket.SOCK_STREAM, self._undo) if policy.names else None
            through = listen(socket.SOCK_STREAM, self._undo) if relayed else None
        except OSError:
            self._undo.close()
            raise
        self.names = _native.Names(*ports(udp), *ports(tcp), *ports(through), relayed)
        self._starts: list[Callable[[], None]] = []
        self._relay: Relay | None = None
        if udp is not None and tcp is not None:
            from akbox.linux.dns_server import DnsServer

            server = DnsServer(policy, ring, self.names, udp, tcp, on_failure)
            self._undo.callback(server.close)
            self._starts.append(server.start)
        if through is not None:
            from akbox.linux.relay import Relay

            relay = Relay(policy, ring, self.names, through, limit=limit, charge=charge, on_failure=on_failure)
            self._undo.callback(relay.close)
            self._starts.append(relay.start)
            self._relay = relay

    def start(self) -> None:
        for start in self._starts:
            start()

    def count(self) -> None:
        """Brings the budget of bytes up to date."""
        if self._relay is not None:
            self._relay.count()

    def close(self) -> None:
        self._undo.close()


def _limit(policy: CompiledPolicy) -> int | None:
    limit = policy.budgets.get("bytes")
    return None if limit is None else int(limit)
