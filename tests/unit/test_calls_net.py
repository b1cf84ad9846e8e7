"""connect, bind and listen under the enforcer: IP and unix sockets, and loopback listeners that must hear nothing."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import calls
import enforcer_run as e
import pytest
from calls import Tree, dirty, inside, sys

NET = ("connect", "bind", "listen", "sendto", "sendmsg", "sendmmsg")
EACCES, EPERM, EBADF, ENOTSOCK, EINVAL, EFAULT, EAFNOSUPPORT, ENOENT = -13, -1, -9, -88, -22, -14, -97, -2
ECONNREFUSED, EISCONN, EADDRINUSE, EINPROGRESS = -111, -106, -98, -115
LOOPBACK = "127.0.0.1"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "t")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listener of the host's on every address of both families."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as s:
        s.setblocking(False)
        yield s


def with_net(tree: Tree, **lists: object) -> str:
    """The tree's policy and a [net] section."""
    rows = "\n".join(f"{key} = {list(value)!r}" for key, value in lists.items())  # type: ignore[call-overload]
    return tree.policy() + f"[net]\n{rows}\n"


def port_of(s: socket.socket) -> int:
    return int(s.getsockname()[1])


def v4(port: int, host: str = LOOPBACK, family: int = socket.AF_INET) -> bytes:
    return struct.pack("=HH", family, socket.htons(port)) + socket.inet_aton(host) + bytes(8)


def v6(port: int, host: str, scope: int = 0) -> bytes:
    return (
        struct.pack("=HHI", socket.AF_INET6, socket.htons(port), 0)
        + socket.inet_pton(socket.AF_INET6, host)
        + struct.pack("=I", scope)
    )


def unix(path: bytes) -> bytes:
    return struct.pack("=H", socket.AF_UNIX) + path


def connect(s: socket.socket, addr: bytes) -> int:
    return sys("connect", dirty(s.fileno()), addr, dirty(len(addr)))


def heard(s: socket.socket) -> bool:
    try:
        s.accept()[0].close()
    except BlockingIOError:
        return False
    return True


# ---- IP --------------------------------------------------------------------------------------------------------------


WAYS: dict[str, tuple[int, Callable[[int], bytes]]] = {
    "v4": (socket.AF_INET, v4),
    "v4 any": (socket.AF_INET, lambda p: v4(p, "0.0.0.0")),
    "v6": (socket.AF_INET6, lambda p: v6(p, "::1")),
    "v6 any": (socket.AF_INET6, lambda p: v6(p, "::")),
    "v4-mapped": (socket.AF_INET6, lambda p: v6(p, "::ffff:127.0.0.1")),
    "v4-mapped any": (socket.AF_INET6, lambda p: v6(p, "::ffff:0.0.0.0")),
    "v6 without a scope": (socket.AF_INET6, lambda p: v6(p, "::1")[:24]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_connect(tree: Tree, listener: socket.socket, way: str, blocking: bool) -> None:
    family, make = WAYS[way]
    port = port_of(listener)

    def body() -> tuple[int, int]:
        s = socket.socket(family)
        s.setblocking(blocking)
        r = connect(s, make(port))
        if r == EINPROGRESS:
            select.select([], [s], [])
            return 0, s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        assert r == EACCES or blocking
        return r, os.get_blocking(s.fileno()) - blocking

    assert calls.bare(body) == (0, 0)
    assert heard(listener)
    got, events = inside(tree, body, *NET)
    assert got == (EACCES, 0)
    assert not heard(listener)
    expected = "ip:[::1]" if "v6" in way else "ip:127.0.0.1"
    assert [(v.op, v.decision, v.error, v.target) for v in events] == [(0x200, 0, 13, f"{expected}:{port}")]
    rules = [f"{expected}:{port}"]
    got, events = inside(tree, body, *NET, policy=with_net(tree, connect=rules))
    assert got == (0, 0)
    assert heard(listener)
    assert [(v.op, v.decision, v.arg) for v in events] == [(0x200, 1, port)]


def test_connect_errors_are_as_bare(tree: Tree) -> None:
    with socket.socket() as s:
        s.bind((LOOPBACK, 0))
        closed = port_of(s)

    def body() -> list[int]:
        tcp, tcp6, udp = socket.socket(), socket.socket(socket.AF_INET6), socket.socket(type=socket.SOCK_DGRAM)
        server = socket.create_server((LOOPBACK, 0))
        here = v4(port_of(server))
        file = os.open("/dev/null", os.O_PATH)
        pipe, _ = os.pipe()
        return [
            connect(tcp, v4(closed)),
            connect(tcp, here[:15]),
            connect(tcp, here[:1]),
            connect(tcp, v6(1, "::1")),
            connect(tcp6, here),
            connect(tcp6, v6(1, "::1")[:23]),
            connect(tcp, unix(b"/x")),
            sys("connect", tcp.fileno(), 1, 16),
            sys("connect", tcp.fileno(), here, 129),
            sys("connect", tcp.fileno(), here, dirty(-1)),
            sys("connect", 999, here, 16),
            sys("connect", dirty(-1), here, 16),
            sys("connect", pipe, here, 16),
            sys("connect", file, here, 16),
            connect(tcp, here),
            connect(tcp, here),
            connect(tcp, v4(0, family=socket.AF_UNSPEC)),
            connect(tcp, here),
            connect(udp, here),
            connect(udp, v4(0, family=socket.AF_UNSPEC)[:2]),
            connect(udp, v4(0, family=socket.AF_UNSPEC)),
            connect(server, here),
        ]

    expected = calls.bare(body)
    rules = ["ip:127.0.0.0/8:*", "ip:[::]/0:*", "udp+ip:127.0.0.0/8:*"]
    got, _ = inside(tree, body, *NET, policy=with_net(tree, connect=rules, bind=rules, listen=rules))
    assert got == expected


def test_udp_rules_and_tcp_rules_are_two_things(tree: Tree, listener: socket.socket) -> None:
    port = port_of(listener)

    def body() -> list[int]:
        return [connect(socket.socket(type=kind), v4(port)) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]

    assert inside(tree, body, *NET, policy=with_net(tree, connect=[f"udp+ip:127.0.0.1:{port}"]))[0] == [EACCES, 0]
    assert inside(tree, body, *NET, policy=with_net(tree, connect=[f"ip:127.0.0.1:{port}"]))[0] == [0, EACCES]


def test_a_v4_address_on_a_v6_datagram_socket(tree: Tree, listener: socket.socket) -> None:
    port = port_of(listener)
    body = lambda: connect(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM), v4(port))  # noqa: E731
    assert calls.bare(body) == 0
    assert inside(tree, body, *NET)[0] == EACCES
    assert inside(tree, body, *NET, policy=with_net(tree, connect=[f"udp+ip:127.0.0.1:{port}"]))[0] == 0


def test_bind_and_listen(tree: Tree) -> None:
    def body() -> list[int]:
        r = []
        for addr in (v4(0), v4(0, "0.0.0.0"), v4(0, "0.0.0.0", socket.AF_UNSPEC), v4(0)[:8]):
            s = socket.socket()
            r += [sys("bind", dirty(s.fileno()), addr, dirty(len(addr))), sys("listen", dirty(s.fileno()), dirty(5))]
        r.append(sys("bind", 999, v4(0), 16))
        r.append(sys("listen", 999, 5))
        r.append(sys("listen", socket.socket(type=socket.SOCK_DGRAM).detach(), 5))
        return r

    expected = calls.bare(body)
    assert expected[:8] == [0, 0, 0, 0, 0, 0, EINVAL, 0]
    everything = ["ip:0.0.0.0/0:*"]
    assert inside(tree, body, *NET, policy=with_net(tree, bind=everything, listen=everything))[0] == expected
    got, events = inside(tree, body, *NET)
    assert got[:8] == [EACCES] * 6 + [EINVAL, EACCES]
    assert {v.op for v in events} == {0x202, 0x203}
    only = with_net(tree, bind=["ip:127.0.0.1:0-65535"], listen=["ip:127.0.0.1:*"])
    assert inside(tree, body, *NET, policy=only)[0][:8] == [0, 0, EACCES, EACCES, EACCES, EACCES, EINVAL, EACCES]


def test_the_address_cannot_be_raced(tree: Tree, listener: socket.socket) -> None:
    """A sibling flips the port in memory between an allowed and a denied one: the denied listener never hears it."""
    with socket.create_server((LOOPBACK, 0)) as allowed:
        bad, good = port_of(listener), port_of(allowed)

        def body() -> tuple[int, int]:
            import threading

            buf = ctypes.create_string_buffer(v4(good), 16)
            stop = threading.Event()

            def flip() -> None:
                while not stop.is_set():
                    ctypes.memmove(buf, v4(bad), 16)
                    ctypes.memmove(buf, v4(good), 16)

            thread = threading.Thread(target=flip)
            thread.start()
            ok = denied = 0
            for tries in range(20_000):
                if tries >= 300 and ok and denied:
                    break
                s = socket.socket()
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                s.setblocking(False)
                r = sys("connect", s.fileno(), buf, 16)
                ok += r == EINPROGRESS
                denied += r == EACCES
                s.close()
            stop.set()
            thread.join()
            return ok, denied

        (ok, denied), _ = inside(tree, body, *NET, policy=with_net(tree, connect=[f"ip:127.0.0.1:{good}"]))
        assert ok > 0
        assert denied > 0
        assert not heard(listener)


def test_a_blocking_connect_ends_with_a_signal(tree: Tree) -> None:
    """To a unix listener whose backlog is full, which would wait for ever."""

    def body() -> tuple[str, float]:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(tree.root / "w/full"))
        server.listen(0)
        first = socket.socket(socket.AF_UNIX)
        first.connect(str(tree.root / "w/full"))
        signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("alarm")))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        second = socket.socket(socket.AF_UNIX)
        try:
            second.connect(str(tree.root / "w/full"))
        except TimeoutError as error:
            return str(error), second.gettimeout() is None
        return "connected", False

    assert inside(tree, body, *NET)[0] == ("alarm", True)


def test_a_send_timeout_limits_a_blocking_connect(tree: Tree) -> None:
    def body() -> int:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(tree.root / "w/full"))
        server.listen(0)
        addr = unix(tree.b("w/full"))
        assert connect(socket.socket(socket.AF_UNIX), addr) == 0
        second = socket.socket(socket.AF_UNIX)
        second.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("qq", 0, 30_000))
        return connect(second, addr)

    assert calls.bare(body) == -errno.EAGAIN
    os.unlink(tree.root / "w/full")
    assert inside(tree, body, *NET)[0] == -errno.EAGAIN


def test_routing_netlink_works(tree: Tree) -> None:
    """What getifaddrs and getaddrinfo do; a datagram to another process's socket is refused."""

    def body() -> tuple[list[Any], int, bool]:
        s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        s.bind((0, 0))
        other = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        other.bind((0, 0))
        refused = e.errno_of(lambda: s.sendto(b"x" * 16, other.getsockname()))
        found = socket.getaddrinfo("127.0.0.1", 80, flags=socket.AI_ADDRCONFIG)
        return socket.if_nameindex(), len(found) > 0, refused == "EPERM"

    names, *rest = inside(tree, body, *NET)[0]
    assert names == socket.if_nameindex()
    assert rest == [True, True]


# ---- unix ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def host_socket(tree: Tree) -> Iterator[socket.socket]:
    """A host program's socket in the readable directory."""
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tree.root / "r/u"))
        s.listen()
        s.setblocking(False)
        yield s


def test_a_visible_socket_is_not_a_reachable_one(tree: Tree, host_socket: socket.socket) -> None:
    (tree.root / "w/to-u").symlink_to(tree.root / "r/u")

    def body() -> list[int]:
        s = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        return [
            connect(s[0], unix(tree.b("r/u"))),
            connect(s[1], unix(tree.b("w/to-u") + b"\0")),
            connect(s[2], unix(tree.b("r/u").ljust(108, b"\0"))),
        ]

    assert calls.bare(body) == [0, 0, 0]
    assert [heard(host_socket) for _ in range(4)] == [True, True, True, False]
    got, events = inside(tree, body, *NET)
    assert got == [EACCES] * 3
    assert not heard(host_socket)
    assert {(v.op, v.decision, v.target) for v in events} == {(0x200, 0, f"unix:{tree.root}/r/u")}
    assert inside(tree, body, *NET, policy=with_net(tree, unix=[f"{tree.root}/r/u"]))[0] == [0, 0, 0]


def test_unix_errors_are_as_bare(tree: Tree) -> None:
    def body() -> list[int]:
        s = socket.socket(socket.AF_UNIX)
        for name in ("w/taken", "w/none"):
            (tree.root / name).unlink(missing_ok=True)
        taken = socket.socket(socket.AF_UNIX)
        return [
            sys("bind", taken.fileno(), unix(tree.b("w/taken")), len(unix(tree.b("w/taken")))),
            sys("bind", s.fileno(), unix(tree.b("w/taken")), len(unix(tree.b("w/taken")))),
            sys("bind", s.fileno(), unix(tree.b("w/no/x")), len(unix(tree.b("w/no/x")))),
            sys("bind", s.fileno(), unix(tree.b("w/ok/x")), len(unix(tree.b("w/ok/x")))),
            sys("bind", s.fileno(), unix(b"x" * 110), 112),
            sys("bind", s.fileno(), v4(1), 16),
            sys("bind", taken.fileno(), unix(tree.b("w/again")), len(unix(tree.b("w/again")))),
            connect(s, unix(tree.b("w/none"))),
            connect(s, unix(tree.b("w/ok"))),
            connect(s, unix(tree.b("w/taken"))),
            connect(s, unix(b"")),
            connect(s, v4(1)),
            connect(s, unix(b"x" * 110)),
        ]

    expected = calls.bare(body)
    assert inside(tree, body, *NET)[0] == expected


def test_bind_keeps_the_agents_address(tree: Tree) -> None:
    """getsockname, and what peers see, is the string that the agent bound: absolute, relative, or a bare name."""
    root = str(tree.root)

    def body() -> list[object]:
        os.umask(0o027)
        os.chdir(tree.root / "w")
        out: list[object] = []
        for name in (f"{root}/w/a.sock", "b.sock", "sub/c.sock", "./sub/../d.sock", f"{root}/w/sub/./e.sock"):
            server, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
            server.bind(name)
            server.listen()
            client.connect(name)
            peer, _ = server.accept()
            out.append(
                (server.getsockname(), client.getpeername(), peer.getsockname(), stat.S_IMODE(os.stat(name).st_mode))
            )
        return out

    expected = calls.bare(body)
    for name in ("a.sock", "b.sock", "sub/c.sock", "d.sock", "sub/e.sock"):
        (tree.root / "w" / name).unlink()
    got, _ = inside(tree, body, *NET)
    assert got == expected
    assert os.getcwd() != root


def test_a_path_of_108_bytes(tree: Tree) -> None:
    """sun_path without a NUL at the end."""
    room = 108 - len(tree.b("w/"))
    deep = tree.b("w/") + b"n" * room
    assert len(deep) == 108

    def body() -> list[object]:
        s = socket.socket(socket.AF_UNIX)
        return [
            sys("bind", s.fileno(), unix(deep), 110),
            sys("listen", s.fileno(), 1),
            connect(socket.socket(socket.AF_UNIX), unix(deep)),
        ]

    assert inside(tree, body, *NET)[0] == [0, 0, 0]
    assert stat.S_ISSOCK(os.stat(deep).st_mode)


def test_bind_outside_is_refused(tmp_path: Path, tree: Tree) -> None:
    def body(t: Tree) -> Callable[[], list[int]]:
        names = ("r/s", "out/s", "w/new-secret", "w/to-out/s2")

        def run() -> list[int]:
            sockets = [socket.socket(socket.AF_UNIX) for _ in names]
            return [
                sys("bind", s.fileno(), unix(t.b(n)), len(unix(t.b(n)))) for s, n in zip(sockets, names, strict=True)
            ]

        return run

    twin = Tree(tmp_path / "bare")
    for t in (twin, tree):
        (t.root / "w/to-out").symlink_to(t.root / "out")
    assert calls.bare(body(twin)) == [0] * 4
    with calls.unchanged(tree):
        got, events = inside(tree, body(tree), *NET)
    assert got == [EACCES] * 4
    assert [(v.op, v.decision, v.need) for v in events] == [(0x202, 0, 2)] * 4


def test_a_swapped_symlink_never_binds_elsewhere(tree: Tree) -> None:
    def body() -> list[int]:
        import threading

        (tree.root / "w/real").mkdir()
        os.symlink("../out", tree.root / "w/link")
        stop = threading.Event()

        def swap() -> None:
            here = dirty(calls.AT_FDCWD)
            while not stop.is_set():
                sys("renameat2", here, tree.b("w/real"), here, tree.b("w/link"), 2)

        thread = threading.Thread(target=swap)
        thread.start()
        results: list[int] = []
        for i in range(20_000):
            if i >= 300 and {0, EACCES} <= set(results):
                break
            addr = unix(tree.b(f"w/real/s{i}"))
            s = socket.socket(socket.AF_UNIX)
            results.append(sys("bind", s.fileno(), addr, len(addr)))
            s.close()
        stop.set()
        thread.join()
        return results

    got, _ = inside(tree, body, *NET, "renameat2")
    assert {0, EACCES} <= set(got)
    assert sorted(p.name for p in (tree.root / "out").iterdir()) == ["empty", "h"]


def test_abstract_names(tree: Tree) -> None:
    """The run's own may be reached, a host program's not."""
    name = f"\0akbox-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as host:
        host.bind(name + "-host")
        host.listen()
        host.setblocking(False)

        def body() -> list[object]:
            host.close()  # inherited by the fork; with it, the socket would be the run's own too
            server = socket.socket(socket.AF_UNIX)
            server.bind(name)
            server.listen()
            auto = socket.socket(socket.AF_UNIX)
            bound = sys("bind", auto.fileno(), unix(b""), 2)
            return [
                connect(socket.socket(socket.AF_UNIX), unix(name.encode())),
                server.getsockname() == name.encode(),
                connect(socket.socket(socket.AF_UNIX), unix(name.encode() + b"-host")),
                bound,
                len(auto.getsockname()),
            ]

        assert calls.bare(body) == [0, True, 0, 0, 6]
        assert heard(host)
        got, events = inside(tree, body, *NET)
        assert got == [0, True, EPERM, 0, 6]
        assert not heard(host)
        assert [v.target for v in events if v.decision == 0] == [f"unix:@akbox-test-{os.getpid()}-host"]


def test_multiprocessing_manager(tree: Tree) -> None:
    """A real user of unix sockets: names, listeners, descriptors and credentials of its own."""

    def body() -> int:
        import multiprocessing
        import tempfile

        tempfile.tempdir = str(tree.root / "w")
        context = multiprocessing.get_context("fork")
        with context.Manager() as manager:
            numbers = manager.list([1, 2])
            worker = context.Process(target=numbers.append, args=(3,))
            worker.start()
            worker.join()
            return sum(numbers)

    assert inside(tree, body, *NET)[0] == 6
