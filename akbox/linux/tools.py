"""The tools of a run, as the Linux target gives them: made with the run, closed with it, names asked as its agents ask.

The kernel decides what they may do; this only says where addresses come from.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from akbox.kernel.effect import AgentId
from akbox.kernel.kernel import Kernel
from akbox.tools.box import ToolBox

if TYPE_CHECKING:
    from akbox.linux.mounts import Mounts
    from akbox.linux.run import Run
    from akbox.policy.model import McpServer
    from akbox.tools.hostcalls import Names

_KINDS = ("A", "AAAA")


class RunTools:
    """One run's. `close` may be called at any time, and twice."""

    def __init__(
        self, kernel: Kernel, state: Path, cwd: str, extra: Path | None, servers: dict[str, McpServer]
    ) -> None:
        """Raises ToolFailure for an `extra` that is no tool, CannotRun for a server that does not start."""
        self._box = ToolBox(kernel, state, cwd, self._resolve, extra)
        self._run: Run | None = None
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._closed = False  # guarded by _lock
        self._kernel = kernel
        self._mounts: Mounts | None = None
        if servers:
            from akbox.linux.mounts import Mounts

            self._mounts = Mounts(kernel, state, cwd)
            try:
                self._box.mounts = self._mounts.start(servers)
            except BaseException:
                self.release()
                raise
        kernel.tools = self._box

    def attach(self, run: Run) -> None:
        """The run whose agents call."""
        self._run = run

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        os.write(self._stop_write, b"\0")  # ends questions to the resolver
        if self._mounts is not None:
            self._mounts.close()
        self._box.close()
        self._kernel.tools = None

    def release(self) -> None:
        """Precondition: closed, and nobody calls any more."""
        os.close(self._stop_read)
        os.close(self._stop_write)

    def _resolve(self, subject: AgentId, host: str) -> Names:
        """What the DNS server of the agent would have answered, by the same rules."""
        from akbox.tools.hostcalls import Names

        run = self._run
        if run is None:
            return Names()
        net = run.net_of(subject)
        if net is None or net.pins is None:
            return Names()
        import dns.message
        import dns.rdatatype

        from akbox.linux.answers import Answerer, Lookup
        from akbox.linux.resolvers import servers
        from akbox.linux.waiting import Stopped

        notes: list[Lookup] = []
        answerer = Answerer(net.judge_name, net.pins, servers(os.environ), self._stop_read)
        found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
        for kind in _KINDS:
            with contextlib.suppress(Stopped):
                wire = answerer.answer(dns.message.make_query(host + ".", kind).to_wire(), notes.append, udp=False)
                reply = None if wire is None else dns.message.from_wire(wire)
                for rrset in () if reply is None else reply.answer:
                    if rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
                        found += [ipaddress.ip_address(rdata.address) for rdata in rrset]
        held = [(a, net.pins.refusal(host, a)) for note in notes if not note.allowed for a in note.addresses]
        return Names(tuple(found), ", ".join(f"{a} ({why})" for a, why in held[:4]))
