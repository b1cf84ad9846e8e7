"""What the network cases reach or must not reach: listeners and a DNS server on loopback that remember who came.

`P1` is a TCP and UDP port that no case lists, `P2` one that some do; both answer on 127.0.0.1 and ::1. `P3` is free.
`DNS` answers for the names of ZONE and remembers every question. `AH` is the name of an abstract socket that listens.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from pathlib import Path
from types import TracebackType

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from akbox.conformance.model import require
from akbox.conformance.world import World

# name: {type: records}. LAN is this machine's own address beside loopback, FLIP alternates.
ZONE: dict[str, dict[str, list[str]]] = {
    "listed.test": {"A": ["127.0.0.1"], "TXT": ['"text"'], "HTTPS": ["1 . alpn=h2 ipv4hint=127.0.0.1"]},
    "other.test": {"A": ["127.0.0.1"]},
    "six.test": {"AAAA": ["::1"]},
    "cname.test": {"CNAME": ["deep.elsewhere.test."], "A": ["127.0.0.1"]},
    "secret.exfil.test": {"A": ["127.0.0.1"]},
    "xlisted.test": {"A": ["127.0.0.1"]},
    "listed.test.evil.test": {"A": ["127.0.0.1"]},
    "wild.test": {"A": ["127.0.0.1"]},
    "sub.wild.test": {"A": ["127.0.0.1"]},
    "a.b.wild.test": {"A": ["127.0.0.1"]},
    "xn--bcher-kva.test": {"A": ["127.0.0.1"]},
    "loop.test": {"A": ["127.0.0.1"]},
    "loop6.test": {"AAAA": ["::1"]},
    "mapped.test": {"AAAA": ["::ffff:127.0.0.1"]},
    "metadata.test": {"A": ["169.254.169.254"]},
    "metadata6.test": {"AAAA": ["fd00:ec2::254"]},
    "ten.test": {"A": ["10.1.2.3"]},
    "lan.test": {"A": ["LAN"]},
    "hint.test": {"HTTPS": ["1 . alpn=h2 ipv4hint=127.0.0.1"]},
    "flip.test": {"A": ["FLIP"]},
    "big.test": {"TXT": [f'"{"x" * 250}"', f'"{"y" * 250}"', f'"{"z" * 250}"', f'"{"w" * 250}"', f'"{"v" * 250}"']},
}
FLIP = ("127.0.0.1", "169.254.169.254")
MARKER = b"?marker?"
RESPONSE = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n"


class Services:
    """Context manager. `heard(name)` is what "P1", "P2" or "DNS" saw since the last clear()."""

    def __init__(self) -> None:
        self._log: dict[str, list[str]] = {"P1": [], "P2": [], "DNS": []}
        self._lock = threading.Lock()
        self._flips = 0
        self._open = contextlib.ExitStack()
        self._selector = self._open.enter_context(selectors.DefaultSelector())
        self.places: dict[str, str] = {}
        for name in self._log:
            self._serve(name, bind_everywhere())
        self.places["P3"] = str(free_port())
        self.abstract = socket.socket(socket.AF_UNIX)
        self._open.callback(self.abstract.close)
        unique = f"akbox-kit-{os.getpid()}-{self.places['P1']}"
        self.abstract.bind(f"\0{unique}")
        self.places["AH"] = f"@{unique}"
        self._listen(self.abstract)
        self.paths: dict[str, socket.socket] = {}
        self.environment = {"AKBOX_RESOLVER": f"127.0.0.1:{self.places['DNS']}"}
        self.lan = own_address()
        self._stop, wake = socket.socketpair()
        self._open.callback(self._stop.close)
        self._open.callback(wake.close)
        self._selector.register(wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="kit-services", daemon=True)

    def __enter__(self) -> Services:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stop.send(b"x")
        self._thread.join()
        self._open.close()

    def clear(self) -> None:
        """Forgets what was heard, and where flip.test pointed last."""
        self.heard("DNS")
        while self.called(self.abstract):
            pass
        while self.paths:
            self.paths.popitem()[1].close()
        with self._lock:
            self._flips = 0
            for seen in self._log.values():
                seen.clear()

    def heard(self, name: str) -> list[str]:
        """Complete: a datagram and a connection of our own come after everything that was sent before."""
        end = ("127.0.0.1", int(self.places[name]))
        with socket.socket(type=socket.SOCK_DGRAM) as s:
            s.settimeout(10)
            s.sendto(MARKER, end)
            s.recv(16)
        with socket.create_connection(end, 10) as s:
            s.sendall(MARKER)
            s.recv(16)
        with self._lock:
            return list(self._log[name])

    def listen_at(self, path: Path, uid: int) -> None:
        """A unix socket of a host program, which a user may connect to; until the next clear()."""
        s = self.paths[str(path)] = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)
        s.bind(str(path))
        os.chown(path, uid, uid)
        self._listen(s)

    @staticmethod
    def _listen(s: socket.socket) -> None:
        s.listen(64)
        s.setblocking(False)

    @staticmethod
    def called(s: socket.socket) -> bool:
        """Did anybody connect since it was asked last?"""
        try:
            s.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def note(self, name: str, what: str) -> None:
        with self._lock:
            self._log[name].append(what)

    # ---- the thread that serves ----

    def _serve(self, name: str, sockets: list[socket.socket]) -> None:
        for s in sockets:
            self._open.callback(s.close)
            stream = s.type == socket.SOCK_STREAM
            self._selector.register(s, selectors.EVENT_READ, (name, self._accept if stream else self._datagram))
        self.places[name] = str(sockets[0].getsockname()[1])

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                name, serve = key.data
                serve(name, key.fileobj)

    def _datagram(self, name: str, s: socket.socket) -> None:
        data, source = s.recvfrom(65535)
        if data == MARKER:
            s.sendto(data, source)
            return
        reply = self._reply(data, 512) if name == "DNS" else data
        if name != "DNS":
            self.note(name, "udp")
        s.sendto(reply, source)

    def _accept(self, name: str, s: socket.socket) -> None:
        connection, _ = s.accept()
        threading.Thread(target=self._connection, args=(name, connection), daemon=True).start()

    def _connection(self, name: str, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(20)
            data = connection.recv(65535)
            if data == MARKER:
                connection.sendall(data)
            elif name == "DNS":
                reply = self._reply(data[2:], 65535)
                connection.sendall(len(reply).to_bytes(2, "big") + reply)
            else:
                self.note(name, "tcp")
                connection.sendall(RESPONSE)

    # ---- DNS ----

    def _reply(self, wire: bytes, limit: int) -> bytes:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(question.rdtype)
        self.note("DNS", f"{name} {kind}")
        reply = dns.message.make_response(query, recursion_available=True)
        records = ZONE.get(name)
        if records is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif "CNAME" in records:
            reply.answer.append(dns.rrset.from_text(question.name, 0, "IN", "CNAME", *records["CNAME"]))
            if kind == "A":
                reply.answer.append(dns.rrset.from_text(records["CNAME"][0], 0, "IN", "A", *records["A"]))
        elif kind in records:
            texts = [self._text(text) for text in records[kind]]
            reply.answer.append(dns.rrset.from_text(question.name, 0, "IN", kind, *texts))
        wire = reply.to_wire(max_size=65535)
        if len(wire) > limit:
            reply = dns.message.make_response(query, recursion_available=True)
            reply.flags |= dns.flags.TC
            wire = reply.to_wire()
        return wire

    def _text(self, text: str) -> str:
        if text == "LAN":
            return self.lan
        if text == "FLIP":
            with self._lock:
                self._flips += 1
                return FLIP[(self._flips - 1) % 2]
        return text


def bind_everywhere() -> list[socket.socket]:
    """TCP and UDP on 127.0.0.1 and ::1, one port for all, which the kernel proposes; listening."""
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    for _ in range(100):
        with contextlib.ExitStack() as undo:
            sockets: list[socket.socket] = []
            for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                for kind in kinds:
                    s = undo.enter_context(socket.socket(family, kind))
                    sockets.append(s)
                    port = sockets[0].getsockname()[1] if len(sockets) > 1 else 0
                    with contextlib.suppress(OSError):
                        s.bind((address, port))
                    if s.getsockname()[1] == 0:
                        break
                    if kind == socket.SOCK_STREAM:
                        s.listen(600)
            if len(sockets) == 4 and all(s.getsockname()[1] for s in sockets):
                undo.pop_all()
                return sockets
    raise AssertionError("no port is free on both families")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def own_address() -> str:
    """This machine's address towards the world; a private one where it has none."""
    with socket.socket(type=socket.SOCK_DGRAM) as s:
        with contextlib.suppress(OSError):
            s.connect(("198.51.100.1", 9))
        found = str(s.getsockname()[0])
    return "10.0.0.1" if found == "0.0.0.0" else found


def services_of(world: World) -> Services:
    """Of a world that was lent with them."""
    require(world.services is not None, "the case does not say that it needs servers")
    assert world.services is not None
    return world.services
