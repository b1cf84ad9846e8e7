"""sendto, sendmsg and sendmmsg under the enforcer: datagrams only where a rule says, everything else as bare."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import calls
import pytest
from calls import Tree, dirty, inside, sys
from test_calls_net import LOOPBACK, NET, port_of, unix, v4, v6, with_net

EACCES, EPERM, EINVAL, EMSGSIZE, EAGAIN, EPIPE, EDESTADDRREQ = -13, -1, -22, -90, -11, -32, -89
MSG_DONTWAIT, MSG_NOSIGNAL, MSG_FASTOPEN = 0x40, 0x4000, 0x20000000
SOL_IP, IP_RETOPTS, IP_TTL, SCM_RIGHTS, SCM_CREDENTIALS = 0, 7, 2, 1, 2


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "t")


@pytest.fixture
def receiver() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind((LOOPBACK, 0))
        s.setblocking(False)
        yield s


def received(s: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(s.recv(1 << 16))
        except BlockingIOError:
            return found


class Message:
    """A struct msghdr (or mmsghdr) and everything it points at."""

    def __init__(self, data: list[bytes], name: bytes = b"", control: bytes = b"") -> None:
        self._keep = [ctypes.create_string_buffer(d, len(d)) for d in data]
        vec = b"".join(struct.pack("<QQ", ctypes.addressof(k), len(d)) for k, d in zip(self._keep, data, strict=True))
        self.name = ctypes.create_string_buffer(name, max(len(name), 1))
        self._vec, self._control = (
            ctypes.create_string_buffer(vec, max(len(vec), 1)),
            ctypes.create_string_buffer(control, max(len(control), 1)),
        )
        name_at = ctypes.addressof(self.name) if name else 0
        control_at = ctypes.addressof(self._control) if control else 0
        vec_at = ctypes.addressof(self._vec)
        self.header = struct.pack("<QI4xQQQQi4x", name_at, len(name), vec_at, len(data), control_at, len(control), 0)


def sendmsg(fd: int, message: Message | int, flags: int) -> int:
    """The raw call; `message` outlives it, as the buffers it points at must."""
    return sys("sendmsg", fd, message.header if isinstance(message, Message) else message, flags)


def cmsg(level: int, kind: int, data: bytes) -> bytes:
    return struct.pack("<Qii", 16 + len(data), level, kind) + data + bytes(-len(data) % 8)


def every_way(port: int) -> list[int]:
    """One datagram by each call, on v4 and v6 sockets, and as AF_UNSPEC, which v4 takes for its own."""
    s, s6 = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    one = Message([b"msg", b"-two"], v4(port))
    return [
        sys("sendto", dirty(s.fileno()), b"sendto", 6, dirty(0), v4(port), dirty(16)),
        sys("sendto", s.fileno(), b"unspec", 6, 0, v4(port, family=socket.AF_UNSPEC), 16),
        sys("sendto", s6.fileno(), b"mapped", 6, 0, v6(port, "::ffff:127.0.0.1"), 28),
        sys("sendto", s6.fileno(), b"v4onv6", 6, 0, v4(port), 16),
        sendmsg(dirty(s.fileno()), one, dirty(0)),
        sendmsg(s.fileno(), Message([b"ttl"], v4(port), cmsg(SOL_IP, IP_TTL, struct.pack("<i", 9))), 0),
    ]


def test_datagrams(tree: Tree, receiver: socket.socket) -> None:
    port = port_of(receiver)
    assert calls.bare(lambda: every_way(port)) == [6, 6, 6, 6, 7, 3]
    expected = [b"sendto", b"unspec", b"mapped", b"v4onv6", b"msg-two", b"ttl"]
    assert received(receiver) == expected
    got, events = inside(tree, lambda: every_way(port), *NET)
    assert got == [EACCES] * 6
    assert received(receiver) == []
    assert {(v.op, v.decision, v.error, v.target) for v in events} == {(0x205, 0, 13, f"udp+ip:127.0.0.1:{port}")}
    got, events = inside(
        tree, lambda: every_way(port), *NET, policy=with_net(tree, connect=[f"udp+ip:127.0.0.1:{port}"])
    )
    assert got == [6, 6, 6, 6, 7, 3]
    assert received(receiver) == expected
    assert [v.decision for v in events] == [1] * 6


def test_sendmmsg_stops_at_the_first_refusal(tree: Tree, receiver: socket.socket) -> None:
    port = port_of(receiver)

    def body() -> tuple[list[int], list[int]]:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        parts = [
            Message([b"a"], v4(port)),
            Message([b"bb"], v4(port)),
            Message([b"ccc"], v4(9)),
            Message([b"d"], v4(port)),
        ]
        vector = ctypes.create_string_buffer(b"".join(p.header + bytes(8) for p in parts))
        first = sys("sendmmsg", dirty(s.fileno()), vector, dirty(4), dirty(0))
        lengths = [struct.unpack_from("<I", vector, 64 * i + 56)[0] for i in range(4)]
        again = sys("sendmmsg", s.fileno(), ctypes.addressof(vector) + 128, 2, 0)
        return [first, again], lengths

    got, _ = inside(tree, body, *NET, policy=with_net(tree, connect=[f"udp+ip:127.0.0.1:{port}"]))
    assert got == ([2, EACCES], [1, 2, 0, 0])
    assert received(receiver) == [b"a", b"bb"]


def test_errors_are_as_bare(tree: Tree) -> None:
    def body() -> list[int]:
        s, tcp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket()
        big = bytes(70000)
        a, b = socket.socketpair()
        b.close()
        return [
            sys("sendto", 999, b"x", 1, 0, v4(9), 16),
            sys("sendto", 1, b"x", 1, 0, v4(9), 16) if not os.isatty(1) else -88,
            sys("sendto", s.fileno(), b"x", 1, 0, v4(9), 15),
            sys("sendto", s.fileno(), b"x", 1, 0, v4(9), 0),
            sys("sendto", s.fileno(), b"x", 1, 0, v4(9), dirty(-1)),
            sys("sendto", s.fileno(), b"x", 1, 0, v4(9), 200),
            sys("sendto", s.fileno(), b"x", 1, 0, 1, 16),
            sys("sendto", s.fileno(), 1, 1, 0, v4(9), 16),
            sys("sendto", s.fileno(), big, 70000, 0, v4(9), 16),
            sys("sendto", s.fileno(), b"x", 1, 0, 0, 0),
            sys("sendto", s.fileno(), b"x", 1, 0, unix(b"/x").ljust(16), 16),
            sendmsg(s.fileno(), 1, 0),
            sendmsg(s.fileno(), Message([b"x"]), 0),
            sendmsg(s.fileno(), Message([b""] * 1025, v4(9)), 0),
            sendmsg(s.fileno(), Message([b"x"], v4(9), b"\1" * 24), 0),
            sendmsg(s.fileno(), Message([b"x"], v4(9), cmsg(SOL_IP, IP_TTL, b"\1")), 0),
            sendmsg(s.fileno(), Message([b"x"], v4(9)), 0x80000000),
            sendmsg(tcp.fileno(), Message([b"x"]), MSG_NOSIGNAL),
            sendmsg(a.fileno(), Message([b"x"]), MSG_NOSIGNAL),
            sendmsg(a.fileno(), Message([b"x"], unix(b"/x")), MSG_NOSIGNAL),
            sys("sendmmsg", s.fileno(), 1, 0, 0),
            sys("sendmmsg", s.fileno(), 1, 1, 0),
        ]

    expected = calls.bare(body)
    assert inside(tree, body, *NET, policy=with_net(tree, connect=["udp+ip:127.0.0.1:9"]))[0] == expected


def test_source_routes_and_fast_open_are_refused(tree: Tree, receiver: socket.socket) -> None:
    """IP options in control data could send the packet to another host first; MSG_FASTOPEN connects by itself."""
    port = port_of(receiver)

    def body() -> list[int]:
        s, tcp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket()
        route = Message([b"x"], v4(port), cmsg(SOL_IP, IP_RETOPTS, bytes([131, 7, 4, 127, 0, 0, 1, 0])))
        return [
            sendmsg(s.fileno(), route, 0),
            sys("sendto", tcp.fileno(), b"x", 1, MSG_FASTOPEN, v4(port), 16),
            sendmsg(tcp.fileno(), Message([b"x"], v4(port)), dirty(MSG_FASTOPEN)),
        ]

    got, events = inside(tree, body, *NET, policy=with_net(tree, connect=["ip:0.0.0.0/0:*", "udp+ip:0.0.0.0/0:*"]))
    assert got == [EPERM] * 3
    assert [v.decision for v in events] == [0] * 3
    assert received(receiver) == []


def test_the_name_cannot_be_raced(tree: Tree, receiver: socket.socket) -> None:
    """A sibling flips the address in memory, and dup2s a datagram socket over a stream one: nothing arrives."""
    bad = port_of(receiver)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((LOOPBACK, 0))
        good = port_of(other)

        def body() -> set[int]:
            udp, (pair, peer) = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socketpair()
            spot, stop = os.dup(pair.fileno()), threading.Event()
            message = Message([b"x"], v4(good))

            def flip() -> None:
                while not stop.is_set():
                    for source, port in ((udp, bad), (udp, good), (pair, good), (pair, bad)):
                        ctypes.memmove(message.name, v4(port), 16)
                        os.dup2(source.fileno(), spot)

            thread = threading.Thread(target=flip)
            thread.start()
            seen: list[int] = []
            while len(seen) < 2000 or (not {1, EACCES} <= set(seen) and len(seen) < 100_000):
                seen += [sendmsg(spot, message, MSG_DONTWAIT | MSG_NOSIGNAL) for _ in range(100)]
            stop.set()
            thread.join()
            peer.close()
            return set(seen)

        got, events = inside(tree, body, *NET, policy=with_net(tree, connect=[f"udp+ip:127.0.0.1:{good}"]))
        assert {1, EACCES} <= got
        assert {v.decision for v in events} == {0, 1}
        assert received(receiver) == []


def test_descriptors_travel(tree: Tree) -> None:
    def body() -> tuple[list[bytes], int]:
        a, b = socket.socketpair()
        fds = [os.open(tree.root / "r/a", os.O_RDONLY), os.open(tree.root / "w/ok", os.O_RDONLY)]
        socket.send_fds(a, [b"two"], fds)
        _, got, _, _ = socket.recv_fds(b, 10, 5)
        refused = sendmsg(a.fileno(), Message([b"x"], control=cmsg(1, SCM_RIGHTS, struct.pack("<i", 999))), 0)
        return [os.read(fd, 100) for fd in got], refused

    got, events = inside(tree, body, *NET)
    assert got == ([b"contents of r/a\n", b"contents of w/ok\n"], -errno.EBADF)
    assert events == []


def test_credentials_that_are_not_ours_to_give(tree: Tree) -> None:
    """The kernel would hold them against the supervisor, so neither the agent's nor the supervisor's are sent."""

    def body() -> list[int]:
        a, _ = socket.socketpair()
        return [
            sendmsg(a.fileno(), Message([b"x"], control=cmsg(1, SCM_CREDENTIALS, struct.pack("<iII", pid, 0, 0))), 0)
            for pid in (os.getpid(), os.getppid())
        ]

    assert inside(tree, body, *NET)[0] == [EPERM, EPERM]


def test_a_blocking_stream_sends_everything(tree: Tree) -> None:
    data = os.urandom(3 << 20)

    def body() -> tuple[int, bool]:
        a, b = socket.socketpair()
        got = bytearray()

        def read() -> None:
            while chunk := b.recv(1 << 16):
                got.extend(chunk)

        reader = threading.Thread(target=read)
        reader.start()
        sent = a.sendmsg([data[:100], data[100:]])
        a.close()
        reader.join()
        return sent, bytes(got) == data

    assert inside(tree, body, *NET)[0] == (len(data), True)


def test_non_blocking_and_limited_sends(tree: Tree) -> None:
    def body() -> list[object]:
        a, b = socket.socketpair()
        first = sendmsg(a.fileno(), Message([bytes(8 << 20)]), MSG_DONTWAIT)
        full = sendmsg(a.fileno(), Message([b"x"]), dirty(MSG_DONTWAIT))
        a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("qq", 0, 30_000))
        limited = sendmsg(a.fileno(), Message([b"x"]), 0)
        c, d = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        while sendmsg(c.fileno(), Message([b"x"]), MSG_DONTWAIT) == 1:
            pass
        c.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("qq", 0, 30_000))
        blocked = sendmsg(c.fileno(), Message([b"x"]), 0)
        del b, d
        return [0 < first < 8 << 20, full, limited, blocked]

    assert calls.bare(body) == [True, EAGAIN, EAGAIN, EAGAIN]
    assert inside(tree, body, *NET)[0] == [True, EAGAIN, EAGAIN, EAGAIN]


def test_a_blocking_datagram_waits_for_its_receiver(tree: Tree) -> None:
    def body() -> int:
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        sent = 0
        while sendmsg(a.fileno(), Message([b"x"]), MSG_DONTWAIT) == 1:
            sent += 1
        reader = threading.Thread(target=lambda: [b.recv(1) for _ in range(sent + 1)])
        reader.start()
        last = a.sendmsg([b"y"])
        reader.join()
        return last

    assert inside(tree, body, *NET)[0] == 1


def test_a_broken_pipe_raises_its_signal(tree: Tree) -> None:
    def body() -> list[int]:
        seen: list[int] = []
        signal.signal(signal.SIGPIPE, lambda number, _: seen.append(number))
        a, b = socket.socketpair()
        b.close()
        quiet = sendmsg(a.fileno(), Message([b"x"]), MSG_NOSIGNAL)
        before = len(seen)
        loud = sendmsg(a.fileno(), Message([b"x"]), 0)
        return [quiet, before, loud, *seen]

    assert inside(tree, body, *NET)[0] == [EPIPE, 0, EPIPE, signal.SIGPIPE] == calls.bare(body)


def test_unix_datagrams_by_path(tree: Tree) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as host:
        host.bind(str(tree.root / "r/log"))
        host.setblocking(False)

        def body() -> list[object]:
            own = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            own.bind(str(tree.root / "w/own"))
            s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            addr = unix(tree.b("r/log"))
            return [
                sys("sendto", s.fileno(), b"x", 1, 0, addr, len(addr)),
                s.sendto(b"hello", str(tree.root / "w/own")),
                own.recvfrom(10)[0],
                sys("sendto", s.fileno(), b"x", 1, 0, unix(tree.b("w/none")), len(unix(tree.b("w/none")))),
            ]

        assert inside(tree, body, *NET)[0] == [EACCES, 5, b"hello", -errno.ENOENT]
        assert received(host) == []
        os.unlink(tree.root / "w/own")
        assert inside(tree, body, *NET, policy=with_net(tree, unix=[f"{tree.root}/r/log"]))[0] == [
            1,
            5,
            b"hello",
            -errno.ENOENT,
        ]
        assert received(host) == [b"x"]


def test_a_datagram_of_more_than_a_megabyte(tree: Tree) -> None:
    """Documented: EMSGSIZE, where bare a very large SO_SNDBUF could make one possible on a unix socket."""

    def body() -> int:
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        r = sendmsg(a.fileno(), Message([bytes(1 << 20), b"x"]), MSG_DONTWAIT)
        b.close()
        return r

    assert inside(tree, body, *NET)[0] == EMSGSIZE


def test_sendto_without_an_address_is_a_plain_send(tree: Tree) -> None:
    def body() -> bytes:
        a, b = socket.socketpair()
        a.send(b"plain")
        return b.recv(10)

    assert inside(tree, body, *NET)[0] == b"plain"
