"""The run's own DNS server on loopback, to which the enforcer leads the agent's queries (native/peer.c).

Its sockets are there before the agent starts; what answers (answers.py, dnspython) is loaded with the first query. Only
sockets that the enforcer led here are served: another process of this host that finds the port gets nothing.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from akbox import _native
from akbox.kernel.ops import Op
from akbox.linux.listening import Pair
from akbox.linux.pins import Pins
from akbox.linux.resolvers import servers
from akbox.linux.serving import Serving
from akbox.linux.waiting import Stopped, read_message, write_message

if TYPE_CHECKING:
    from akbox.linux.answers import Answerer, Lookup

_WORKERS = 16
_WAITING_MAX = 1024  # queries; more are dropped, as by any busy server: clients ask again
_QUERY_BYTES = 4096
_TCP_IDLE_S = 10.0
_NO_RULE = 0xFFFF_FFFF

Who = tuple[int, int, int]  # tgid, tid, number of the system call that led the socket here


class DnsServer:
    """Made and started before the agent, closed after its end. `on_failure` is called when it can serve no more."""

    def __init__(
        self,
        decide: Callable[[str], tuple[int, int]],
        ring: _native.Ring,
        names: _native.Names,
        pins: Pins,
        udp: Pair,
        tcp: Pair,
        on_failure: Callable[[str], None],
    ) -> None:
        self._upstream = servers(os.environ)
        self._decide = decide
        self._ring = ring
        self._names = names
        self._on_failure = on_failure
        self._pins = pins
        self._serving = Serving("the DNS server", "akbox-dns", on_failure)
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue(_WAITING_MAX)
        self._workers: list[threading.Thread] = []
        self._idle = threading.Semaphore(0)
        self._answerer: Answerer | None = None
        self._loading = threading.Lock()
        for s in filter(None, udp):
            self._serving.watch(s, partial(self._take_datagram, s))
        for s in filter(None, tcp):
            self._serving.watch(s, partial(self._take_connection, s))

    def start(self) -> None:
        self._serving.start()

    def close(self) -> None:
        """Ends the threads. A query that is still waiting for its answer gets none."""
        self._serving.end()
        for _ in self._workers:
            self._work.put(None)
        for worker in self._workers:
            worker.join()
        self._serving.close()

    # ---- the server's thread ---------------------------------------------------------------------------------------

    def _take_datagram(self, s: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            wire, source = s.recvfrom(_QUERY_BYTES)
            who = self._owner(source)
            if who is not None:
                self._do(lambda: self._serve_datagram(s, wire, source, who))

    def _owner(self, source: tuple[str, int]) -> Who | None:
        """Who led the socket at this address here; None for one that nobody led."""
        led = next(filter(None, map(self._names.led_udp, udp_inodes(source[0], source[1]))), None)
        return None if led is None else led[:3]

    def _take_connection(self, s: socket.socket) -> None:
        try:
            connection, source = s.accept()
        except (BlockingIOError, ConnectionError):
            return
        claimed = self._names.claim_tcp(source[1])
        if claimed is None:
            connection.close()
            return
        who = claimed[:3]
        if not self._do(lambda: self._serve_connection(connection, who)):
            connection.close()

    def _do(self, job: Callable[[], None]) -> bool:
        """Hands the job to a worker; a new one while all are busy and there are fewer than _WORKERS."""
        if not self._idle.acquire(blocking=False) and len(self._workers) < _WORKERS:
            worker = threading.Thread(target=self._work_on, name="akbox-dns-query", daemon=True)
            worker.start()
            self._workers.append(worker)
        try:
            self._work.put_nowait(job)
        except queue.Full:
            return False
        return True

    # ---- workers ---------------------------------------------------------------------------------------------------

    def _work_on(self) -> None:
        while (job := self._work.get()) is not None:
            try:
                job()
            except Stopped:
                pass
            except Exception as error:  # the query's edge: it gets no answer, and the run ends
                self._on_failure(f"internal error in the DNS server: {error!r}")
            self._idle.release()

    def _serve_datagram(self, s: socket.socket, wire: bytes, source: tuple[str, int], who: Who) -> None:
        reply = self._answer(wire, who, udp=True)
        if reply is not None:
            with contextlib.suppress(OSError):  # the agent may have closed its socket
                s.sendto(reply, source)

    def _serve_connection(self, connection: socket.socket, who: Who) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            connection.setblocking(False)
            while True:
                end = time.monotonic() + _TCP_IDLE_S
                reply = self._answer(read_message(connection, end, self._serving.wake), who, udp=False)
                if reply is None:
                    return
                write_message(connection, reply, time.monotonic() + _TCP_IDLE_S, self._serving.wake)

    def _answer(self, wire: bytes, who: Who, *, udp: bool) -> bytes | None:
        with self._loading:
            if self._answerer is None:
                from akbox.linux.answers import Answerer

                self._answerer = Answerer(self._decide, self._pins, self._upstream, self._serving.wake)
        return self._answerer.answer(wire, lambda lookup: self._record(lookup, who), udp=udp)

    def _record(self, lookup: Lookup, who: Who) -> None:
        tgid, tid, nr = who
        rule = _NO_RULE if lookup.rule < 0 else lookup.rule
        addresses = ",".join(f"ip:{a}" for a in lookup.addresses)[:1024].encode()
        decision = 1 if lookup.allowed else 0
        self._ring.put(
            Op.NET_DNS, decision, 0, tgid, tid, nr, lookup.error, rule, lookup.rdtype, lookup.host.encode(), addresses
        )


def udp_inodes(address: str, port: int) -> list[int]:
    """The inodes of this network namespace's UDP sockets that can send from this address: bound to it, or to all
    (proc(5), /proc/net/udp). An IPv6 socket may send from a v4 address."""
    source = ipaddress.ip_address(address)
    v4 = source.version == 4
    mapped = source.packed if not v4 else b"\0" * 10 + b"\xff\xff" + source.packed
    wanted6 = {_hex(mapped), _hex(b"\0" * 16), _hex(b"\0" * 10 + b"\xff\xff" + b"\0" * 4)}
    found = _rows("/proc/net/udp", {_hex(source.packed), "00000000"}, port) if v4 else []
    return found + _rows("/proc/net/udp6", wanted6, port)


def _hex(packed: bytes) -> str:
    """As the kernel prints an address: 32-bit words in its own byte order."""
    words = (packed[i : i + 4] for i in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


def _rows(file: str, addresses: set[str], port: int) -> list[int]:
    wanted = {f"{address}:{port:04X}" for address in addresses}
    with contextlib.suppress(OSError):
        rows = (line.split() for line in Path(file).read_text().splitlines()[1:])
        return [int(fields[9]) for fields in rows if fields[1] in wanted]
    return []
