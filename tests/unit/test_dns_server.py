"""The DNS server of a run: strangers get nothing, and when it fails the run ends."""

from __future__ import annotations

import contextlib
import os
import queue
import socket

import pytest
from test_names import compiled, decider

from akbox.linux.dns_server import DnsServer, udp_inodes
from akbox.linux.listening import listen
from akbox.linux.pins import Pins


class Broken:
    """A table of led sockets that fails."""

    def pin(self, *_: object) -> None:
        pass

    def claim_tcp(self, _port: int) -> None:
        raise RuntimeError("no table")


class Empty(Broken):
    def claim_tcp(self, _port: int) -> None:
        return None

    def led_udp(self, _inode: int) -> None:
        return None


@pytest.mark.parametrize("table", [Broken, Empty])
def test_strangers_and_failures(table: type[Broken]) -> None:
    failures: queue.Queue[str] = queue.Queue()
    with contextlib.ExitStack() as undo:
        udp, tcp = listen(socket.SOCK_DGRAM, undo), listen(socket.SOCK_STREAM, undo)
        policy = compiled('dns = ["pub.test"]')
        names = table()
        pins = Pins(policy, names)  # type: ignore[arg-type]
        server = DnsServer(decider(policy), None, names, pins, udp, tcp, failures.put)  # type: ignore[arg-type]
        server.start()
        with socket.create_connection(tcp[0].getsockname(), 10) as client:
            if table is Broken:
                assert "no table" in failures.get(timeout=10)  # Run.fail: the tree is killed
            else:
                assert client.recv(1) == b""  # nobody led it here
        server.close()
        assert failures.empty()


def test_the_inode_of_a_source_address() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as bound, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as both:
        bound.bind(("127.0.0.1", 0))
        both.bind(("::", 0))
        assert os.fstat(bound.fileno()).st_ino in udp_inodes("127.0.0.1", bound.getsockname()[1])
        assert os.fstat(both.fileno()).st_ino in udp_inodes("127.0.0.1", both.getsockname()[1])
        assert os.fstat(both.fileno()).st_ino in udp_inodes("::1", both.getsockname()[1])
        assert os.fstat(bound.fileno()).st_ino not in udp_inodes("::1", bound.getsockname()[1])
