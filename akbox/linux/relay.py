"""The relay: connections that the enforcer led here go on to where they were meant to, read as far as a policy asks.

Under net.sni = "enforce" the name in a TLS ClientHello must be one that a rule lets be connected to on this port; what
is not TLS passes, but not on a port where nothing else is spoken. Then the pump (native/pump.c) moves the bytes, and
counts them for the budget. One thread, started with the run; only connections that were led here are served.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import resource
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from functools import partial

from msgspec import Struct

from akbox import _native
from akbox.kernel.ops import Op
from akbox.linux.client_hello import HELLO_MAX, parse_hello
from akbox.linux.listening import Pair, reset
from akbox.linux.serving import Serving

TLS_PORTS = frozenset((443, 465, 563, 636, 853, 989, 990, 992, 993, 994, 995, 5061, 8443))
_HELLO_S = 30.0
_TICK_S = 0.2
_NO_RULE = 0xFFFF_FFFF
_UNLIMITED = 2**64 - 1

Address = tuple[str, int] | tuple[str, int, int, int]


class _Coming(Struct, eq=False):
    """A connection on its way: the agent's end, ours, and who wants what."""

    agent: socket.socket
    server: socket.socket
    who: tuple[int, int, int]
    meant: Address
    named: bool
    deadline: float
    seen: int = 0  # bytes of the hello at the last look


class Relay:
    """Made and started before the agent, closed after its end. allows: may this name be connected to on this port?
    limit: bytes in both directions, None for no limit;
    `charge` is told how many more were moved, `on_failure` when it can serve no more."""

    def __init__(
        self,
        allows: Callable[[str, int], bool],
        ring: _native.Ring,
        names: _native.Names,
        listeners: Pair,
        *,
        enforce_sni: bool,
        limit: int | None,
        charge: Callable[[int], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._allows = allows
        self._enforce_sni = enforce_sni
        self._ring = ring
        self._names = names
        self._charge = charge
        self._charged = 0
        self._counting = threading.Lock()  # guards _charged and _closed
        self._closed = False
        self._limit = limit
        self._over = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._pump = _native.Pump(_UNLIMITED if limit is None else limit, self._over)
        self._coming: set[_Coming] = set()
        self._serving = Serving("the relay", "akbox-relay", on_failure, self._after_round)
        self._selector = self._serving.selector
        self._serving.watch(self._over, self._spent)
        for listener in filter(None, listeners):
            self._serving.watch(listener, partial(self._accept, listener))

    def start(self) -> None:
        self._serving.start()

    def close(self) -> None:
        """Cuts every connection and ends both threads."""
        self._serving.end()
        self.count()
        with self._counting:
            self._closed = True
        self._pump.close()
        for coming in self._coming:
            reset(coming.agent)
            reset(coming.server)
        self._serving.close()
        os.close(self._over)

    def count(self) -> None:
        """Charges what was moved since the last time."""
        with self._counting:
            if self._closed:
                return
            moved = self._pump.moved()
            if moved > self._charged:
                self._charge(moved - self._charged)
                self._charged = moved

    # ---- the relay's thread ----------------------------------------------------------------------------------------

    def _after_round(self) -> float | None:
        self._expire()
        if self._limit is not None:
            self.count()
        return _TICK_S if self._coming or self._limit is not None else None

    def _spent(self) -> None:
        """The pump has cut everything: the rest of the run gets nothing more, and the log says so."""
        os.eventfd_read(self._over)
        self._names.spend()
        self._ring.put(Op.NET_SEND, 0, 0, 0, 0, -1, errno.EDQUOT, _NO_RULE, 0, b"budget:bytes", b"")

    def _accept(self, listener: socket.socket) -> None:
        try:
            agent, source = listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            if error.errno != errno.EMFILE or not _more_descriptors():
                raise
            return
        claimed = self._names.claim_tcp(source[1])
        if claimed is None:
            reset(agent)
            return
        agent.setblocking(False)
        tgid, tid, nr, packed, named = claimed
        family, meant = _address(packed)
        self._dial(agent, family, meant, (tgid, tid, nr), named)

    def _dial(self, agent: socket.socket, family: int, meant: Address, who: tuple[int, int, int], named: bool) -> None:
        try:
            server = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            reset(agent)
            if error.errno != errno.EMFILE or not _more_descriptors():
                raise
            return
        server.setblocking(False)
        coming = _Coming(agent, server, who, meant, named, time.monotonic() + _HELLO_S)
        self._coming.add(coming)
        begun = server.connect_ex(meant)
        if begun in (0, errno.EINPROGRESS):
            self._selector.register(server, selectors.EVENT_WRITE, lambda: self._dialled(coming))
        else:
            self._drop(coming)

    def _dialled(self, coming: _Coming) -> None:
        self._selector.unregister(coming.server)
        if coming.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._drop(coming)
        elif coming.named and self._enforce_sni:
            coming.deadline = time.monotonic() + _HELLO_S
            self._selector.register(coming.server, selectors.EVENT_READ, lambda: self._server_first(coming))
            self._selector.register(coming.agent, selectors.EVENT_READ, lambda: self._hello(coming))
        else:
            self._go(coming)

    def _hello(self, coming: _Coming) -> None:
        if coming not in self._coming:  # ended by an event of the same round
            return
        try:
            data = coming.agent.recv(HELLO_MAX, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if len(data) <= coming.seen:  # it ended in the middle
            self._unlisten(coming)
            self._drop(coming)
            return
        coming.seen = len(data)
        hello = parse_hello(data)
        if not hello.complete:  # woken again when there is more
            coming.agent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(data) + 1)
            return
        self._unlisten(coming)
        if not hello.tls:
            self._not_tls(coming)
        elif not hello.name:
            self._refuse(coming, "", "tls:no-name")
        elif not self._allows(hello.name, coming.meant[1]):
            self._refuse(coming, hello.name, "tls:other-name")
        else:
            self._go(coming)

    def _server_first(self, coming: _Coming) -> None:
        """TLS servers wait for the client."""
        if coming in self._coming:
            self._unlisten(coming)
            self._not_tls(coming)

    def _not_tls(self, coming: _Coming) -> None:
        if coming.meant[1] in TLS_PORTS:
            self._refuse(coming, "", "tls:none")
        else:
            self._go(coming)

    def _refuse(self, coming: _Coming, name: str, why: str) -> None:
        address, port = str(coming.meant[0]), coming.meant[1]
        end = f"ip:[{address}]:{port}" if ":" in address else f"ip:{address}:{port}"
        target = f"dns:{name[:253]}:{port}" if name else end
        tgid, tid, nr = coming.who
        encoded = target.encode("ascii", "backslashreplace").replace(b"\0", b"?")
        self._ring.put(Op.NET_CONNECT, 0, 0, tgid, tid, nr, errno.EACCES, _NO_RULE, port, encoded, why.encode())
        self._drop(coming)

    def _go(self, coming: _Coming) -> None:
        self._coming.discard(coming)
        coming.agent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        for s in (coming.agent, coming.server):
            with contextlib.suppress(OSError):
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # spent meanwhile: both were reset
            self._pump.add(coming.agent.detach(), coming.server.detach())

    def _unlisten(self, coming: _Coming) -> None:
        self._selector.unregister(coming.server)
        self._selector.unregister(coming.agent)

    def _drop(self, coming: _Coming) -> None:
        self._coming.discard(coming)
        reset(coming.agent)
        reset(coming.server)

    def _expire(self) -> None:
        now = time.monotonic()
        for coming in [c for c in self._coming if c.deadline < now and c.agent.fileno() in self._selector.get_map()]:
            self._unlisten(coming)
            self._drop(coming)


def _address(packed: bytes) -> tuple[int, Address]:
    """A sockaddr_in or sockaddr_in6 as the socket module has it, and its family."""
    (family,) = struct.unpack_from("=H", packed)
    (port,) = struct.unpack_from("!H", packed, 2)
    if family == socket.AF_INET:
        return family, (str(ipaddress.IPv4Address(packed[4:8])), port)
    flow, scope = struct.unpack_from("=I", packed, 4)[0], struct.unpack_from("=I", packed.ljust(28, b"\0"), 24)[0]
    return family, (socket.inet_ntop(socket.AF_INET6, packed[8:24]), port, flow, scope)


def _more_descriptors() -> bool:
    """Two for each connection can be more than the usual soft limit of 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return True
