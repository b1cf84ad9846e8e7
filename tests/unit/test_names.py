"""What a query is answered, and which connects its answer allows: Answerer and Pins on the C table, an upstream of the
test's own."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from akbox import _native
from akbox.linux.answers import Answerer, Lookup
from akbox.linux.pins import FOREVER, Pins
from akbox.linux.resolvers import parse_server, servers
from akbox.policy.compile import CompiledPolicy, Context, compile_policy
from akbox.policy.load import parse
from akbox.policy.ranges import kind_of

HOSTS = "127.0.0.1 localhost box # mine\n10.1.1.1 db.corp.test\n169.254.169.254 metadata.test\nnonsense line\n"


def compiled(net: str) -> CompiledPolicy:
    context = Context(workdir="/w", home="/h", tmp="/t", prefix="/usr")
    return compile_policy(parse(f'version = "1.0"\n[net]\n{net}\n', syntax="toml", name="test"), context)


class Upstream:
    """Answers on UDP what `zone` holds; counts what it is asked."""

    def __init__(self, zone: dict[tuple[str, str], list[str]]) -> None:
        self.zone, self.asked = zone, 0
        self.socket = socket.socket(type=socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.server = ("127.0.0.1", self.socket.getsockname()[1])
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while True:
            wire, source = self.socket.recvfrom(4096)
            if wire == b"end":
                return
            self.asked += 1
            query = dns.message.from_wire(wire)
            name, kind = query.question[0].name.to_text(), dns.rdatatype.to_text(query.question[0].rdtype)
            reply = dns.message.make_response(query)
            texts = self.zone.get((name, kind))
            if texts is None:
                reply.set_rcode(dns.rcode.NXDOMAIN)
            else:
                reply.answer.append(dns.rrset.from_text(name, 0, "IN", kind, *texts))
            self.socket.sendto(reply.to_wire(), source)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    made = Upstream(
        {
            ("pub.test.", "A"): ["93.184.215.14"],
            ("both.test.", "A"): ["93.184.215.15", "10.0.0.1"],
            ("in.test.", "A"): ["10.0.0.1"],
            ("two.test.", "A"): ["93.184.215.14"],
        }
    )
    made.thread.start()
    yield made
    made.socket.sendto(b"end", made.server)
    made.thread.join()
    made.socket.close()


class Names:
    """A Pins table that also remembers what it was told."""

    def __init__(self) -> None:
        self.table = _native.Names(0, 0, 0, 0)
        self.pins: list[tuple[str, str, int, list[tuple[int, int, int]]]] = []

    def pin(self, address: bytes, name: bytes, seconds: int, rules: bytes) -> None:
        self.table.pin(address, name, seconds, rules)
        unpacked = [struct.unpack("<IHHBB2x", rules[i : i + 12]) for i in range(0, len(rules), 12)]
        ip = ipaddress.IPv6Address(address)
        ends = [(low, high, effect) for _, low, high, effect, _ in unpacked]
        self.pins.append((str(ip.ipv4_mapped or ip), name.decode(), seconds, ends))


def ask(
    policy: CompiledPolicy, upstream: Upstream, name: str, kind: str = "A", *, hosts: str = "", tmp: Path | None = None
) -> tuple[dns.message.Message, list[Lookup], Names]:
    names = Names()
    file = Path("/nonexistent") if tmp is None else tmp / "hosts"
    if tmp is not None:
        file.write_text(hosts)
    stop = os.eventfd(0)
    try:
        pins = Pins(policy, names, hosts=file)  # type: ignore[arg-type]
        answerer = Answerer(decider(policy), pins, [upstream.server], stop)
        notes: list[Lookup] = []
        query = dns.message.make_query(name, kind, use_edns=0)
        wire = answerer.answer(query.to_wire(), notes.append, udp=True)
        assert wire is not None
        return dns.message.from_wire(wire), notes, names
    finally:
        os.close(stop)


def decider(policy: CompiledPolicy) -> Callable[[str], tuple[int, int]]:
    def decide(host: str) -> tuple[int, int]:
        match = policy.judge_name(host)
        return match.decision, match.rule

    return decide


def blocked(reply: dns.message.Message) -> bool:
    return any(isinstance(o, dns.edns.EDEOption) and o.code == dns.edns.EDECode.BLOCKED for o in reply.options)


def test_a_listed_name_is_answered_and_pinned(upstream: Upstream) -> None:
    policy = compiled('connect = ["dns:pub.test:443"]')
    reply, notes, names = ask(policy, upstream, "PUB.test")
    assert [r.to_text() for r in reply.answer] == ["PUB.test. 30 IN A 93.184.215.14"]
    assert [(n.host, n.allowed) for n in notes] == [("pub.test", True)]
    assert names.pins == [("93.184.215.14", "pub.test", 35, [(443, 443, 0)])]


def test_no_other_leaves_the_host(upstream: Upstream) -> None:
    reply, notes, names = ask(compiled('connect = ["dns:pub.test:443"]'), upstream, "evil.test")
    assert reply.rcode() == dns.rcode.NXDOMAIN
    assert blocked(reply)
    assert [(n.host, n.allowed, n.error) for n in notes] == [("evil.test", False, errno.EACCES)]
    assert (names.pins, upstream.asked) == ([], 0)


def test_denied_by_name(upstream: Upstream) -> None:
    policy = compiled('dns = ["*.test2.test", "pub.test"]\ndeny = ["dns:pub.test:*"]')
    reply, notes, _ = ask(policy, upstream, "pub.test")
    assert reply.rcode() == dns.rcode.NXDOMAIN
    assert notes[0].rule >= 0
    assert upstream.asked == 0


def test_a_private_address_is_withheld(upstream: Upstream) -> None:
    reply, notes, names = ask(compiled('dns = ["in.test"]'), upstream, "in.test")
    assert reply.rcode() == dns.rcode.NXDOMAIN
    assert blocked(reply)
    assert [(n.allowed, [str(a) for a in n.addresses]) for n in notes] == [(False, ["10.0.0.1"])]
    assert names.pins == []


def test_and_only_that_one(upstream: Upstream) -> None:
    reply, notes, names = ask(compiled('dns = ["both.test"]'), upstream, "both.test")
    assert "10.0.0.1" not in reply.to_text()
    assert "93.184.215.15" in reply.to_text()
    assert [n.allowed for n in notes] == [False, True]
    assert [p[0] for p in names.pins] == ["93.184.215.15"]


@pytest.mark.parametrize("rule", ['private = ["in.test"]', 'connect = ["ip:10.0.0.0/24:1"]'])
def test_unless_a_rule_says_so(upstream: Upstream, rule: str) -> None:
    reply, _, names = ask(compiled(f'dns = ["in.test"]\n{rule}'), upstream, "in.test")
    assert reply.rcode() == dns.rcode.NOERROR
    assert [p[0] for p in names.pins] == ["10.0.0.1"]


def test_hosts_entries_count_as_answers(upstream: Upstream, tmp_path: Path) -> None:
    """By a name in full: private addresses, too; metadata never; nothing by a wildcard, which their owner did not
    name."""
    policy = compiled('connect = ["dns:localhost:5432", "dns:*.corp.test:5432", "dns:metadata.test:80"]')
    reply, _, names = ask(policy, upstream, "localhost", hosts=HOSTS, tmp=tmp_path)
    assert [r.to_text() for r in reply.answer] == ["localhost. 60 IN A 127.0.0.1"]
    assert names.pins == [("127.0.0.1", "localhost", FOREVER, [(5432, 5432, 0)])]
    assert upstream.asked == 0


def test_an_upstream_that_does_not_answer_is_servfail() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as s:  # bound, then closed: refused at once
        s.bind(("127.0.0.1", 0))
        server = s.getsockname()

    class Dead:
        pass

    dead = Dead()
    dead.server, dead.asked = server, 0  # type: ignore[attr-defined]
    reply, notes, _ = ask(compiled('dns = ["pub.test"]'), dead, "pub.test")  # type: ignore[arg-type]
    assert reply.rcode() == dns.rcode.SERVFAIL
    assert notes[0].error == errno.ETIMEDOUT


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_no_query_raises_anything(data: bytes) -> None:
    policy = compiled('dns = ["pub.test"]')
    pins = Pins(policy, Names(), hosts=Path("/nonexistent"))  # type: ignore[arg-type]
    answerer = Answerer(decider(policy), pins, [("127.0.0.1", 1)], -1)
    for wire in (data, b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + data):
        reply = answerer.answer(wire, lambda _lookup: None, udp=True)
        assert reply is None or reply[2] & 0x80


def test_the_pin_table_is_bounded() -> None:
    names = _native.Names(0, 0, 0, 0)
    for n in range(16384):
        names.pin(n.to_bytes(16, "big"), b"a.test", 100, b"")
    with pytest.raises(OSError) as refused:
        names.pin(b"x" * 16, b"a.test", 100, b"")
    assert refused.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("8.8.8.8", ""),
        ("2606:4700::1111", ""),
        ("127.9.9.9", "loopback"),
        ("::1", "loopback"),
        ("10.0.0.1", "private network"),
        ("100.64.0.1", "private network"),
        ("169.254.169.254", "cloud metadata"),
        ("fd00:ec2::254", "cloud metadata"),
        ("169.254.0.1", "link-local"),
        ("fe80::1", "link-local"),
        ("0.0.0.0", "unspecified"),
        ("224.0.0.1", "multicast"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:169.254.169.254", "cloud metadata"),
        ("64:ff9b::7f00:1", "loopback"),
        ("2002:7f00:1::", "loopback"),
        ("168.63.129.16", "cloud metadata"),
        ("100.100.100.200", "cloud metadata"),
    ],
)
def test_kinds_of_addresses(text: str, kind: str) -> None:
    assert kind_of(ipaddress.ip_address(text)) == kind


def test_resolvers(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("# x\nsearch a.test\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\n")
    assert servers({}, file) == [("192.0.2.1", 53), ("fe80::1%eth0", 53)]
    assert servers({}, tmp_path / "none") == [("127.0.0.1", 53)]
    assert servers({"AKBOX_RESOLVER": "[::1]:5353"}, file) == [("::1", 5353)]
    for bad in ("127.0.0.1", "host:53", "127.0.0.1:0", "127.0.0.1:99999", ":53"):
        with pytest.raises(ValueError, match="IP:PORT"):
            parse_server(bad)
