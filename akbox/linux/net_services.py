"""What a run has of its own on loopback: the DNS server, the relay, and what the enforcer must know of both."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from akbox import _native
from akbox.kernel.agents import Agent
from akbox.kernel.ops import Op
from akbox.linux.listening import Pair, listen, ports
from akbox.policy.compiled import CompiledPolicy
from akbox.policy.matcher import ALLOW, DENY, NO_RULE
from akbox.policy.netpatterns import canonical_host
from akbox.policy.patterns import PatternError

if TYPE_CHECKING:
    from akbox.linux.pins import Pins
    from akbox.linux.relay import Relay

RELAY_NAMED, RELAY_ALL = 1, 2  # native/names.h


def byte_limit(agent: Agent) -> int | None:
    """Its own budget of bytes, or that of an agent above."""
    at: Agent | None = agent
    while at is not None:
        limit = at.ledger.limit("bytes")
        if limit is not None:
            return limit
        at = at.parent
    return None


class NetServices:
    """Made before the agent is launched, started before it runs, closed after its end. `above`: of the agent that
    started this one. Child agents have no part in a budget of bytes: under one they reach nothing."""

    def __init__(
        self,
        policy: CompiledPolicy,
        agent: Agent,
        ring: _native.Ring,
        *,
        above: NetServices | None,
        on_failure: Callable[[str], None],
    ) -> None:
        self._policy = policy
        self._agent = agent
        self._undo = contextlib.ExitStack()
        self._starts: list[Callable[[], None]] = []
        self._relay: Relay | None = None
        self.pins: Pins | None = None
        self.names: _native.Names
        limit = byte_limit(agent)
        sni = any(layer.policy.sni_enforced for layer in agent.layers)
        relayed = (RELAY_NAMED if sni else 0) | (RELAY_ALL if limit is not None else 0)
        counted = limit is not None and agent.parent is None
        try:
            udp = listen(socket.SOCK_DGRAM, self._undo) if policy.names else None
            tcp = listen(socket.SOCK_STREAM, self._undo) if policy.names else None
            through = listen(socket.SOCK_STREAM, self._undo) if counted or (sni and limit is None) else None
            numbers = (*ports(udp), *ports(tcp), *ports(through))
            self.names = _native.Names(*numbers, relayed, None if above is None else above.names)
            if policy.names or above is not None:
                from akbox.linux.pins import Pins

                self.pins = Pins(policy, self.names, above=None if above is None else above.pins)
            if udp is not None and tcp is not None:
                self._add_dns(ring, udp, tcp, on_failure)
            if through is not None:
                self._add_relay(ring, through, sni, limit, on_failure)
        except BaseException:
            self._undo.close()
            raise

    def start(self) -> None:
        for start in self._starts:
            start()

    def count(self) -> None:
        """Brings the budget of bytes up to date."""
        if self._relay is not None:
            self._relay.count()

    def close(self) -> None:
        self._undo.close()

    def _add_dns(
        self,
        ring: _native.Ring,
        udp: Pair,
        tcp: Pair,
        on_failure: Callable[[str], None],
    ) -> None:
        from akbox.linux.dns_server import DnsServer

        assert self.pins is not None
        server = DnsServer(self.judge_name, ring, self.names, self.pins, udp, tcp, on_failure)
        self._undo.callback(server.close)
        self._starts.append(server.start)

    def _add_relay(
        self,
        ring: _native.Ring,
        listeners: Pair,
        sni: bool,
        limit: int | None,
        on_failure: Callable[[str], None],
    ) -> None:
        from akbox.linux.relay import Relay

        def charge(count: int) -> None:
            self._agent.ledger.charge("bytes", count)

        left = None if limit is None else max(limit - self._agent.ledger.used("bytes"), 0)
        self._relay = Relay(
            self._allows,
            ring,
            self.names,
            listeners,
            enforce_sni=sni,
            limit=left,
            charge=charge,
            on_failure=on_failure,
        )
        self._undo.callback(self._relay.close)
        self._starts.append(self._relay.start)

    def judge_name(self, host: str) -> tuple[int, int]:
        """By the agent's own rules and by those of everybody above it; the number is one of its own rules."""
        verdict = self._agent.decide(Op.NET_DNS, host, need=0, target2=None)
        own = self._policy.judge_name(host)
        return verdict.decision, own.rule if own.decision in (ALLOW, DENY) else NO_RULE

    def _allows(self, name: str, port: int) -> bool:
        try:
            host = canonical_host(name)
        except PatternError:
            return False
        verdict = self._agent.decide(Op.NET_CONNECT, f"dns:{host}:{port}", need=0, target2=None)
        return verdict.decision == ALLOW
