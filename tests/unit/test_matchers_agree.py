"""The C matcher, the Python one and a slow, obvious third one give the same answers on random policies and paths."""

from __future__ import annotations

import ipaddress
import re
import socket

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from akbox._native import Policy as NativePolicy
from akbox.policy import matcher
from akbox.policy.compile import CompiledPolicy, Context, Grant, compile_policy
from akbox.policy.model import Approve, Fs, Net, Policy
from akbox.policy.netmatcher import CONNECT, LISTEN

CONTEXT = Context(
    "/a/w", "/a", "/b/t", "/c", ("/a/state",), (Grant("/a/lib/**", 5, "libraries"), Grant("/b/ld", 4, "loader"))
)

NAMES = ["a", "b", "ab", "w", "x.key", "é", "aab", ".git", "akbox.toml", "t", "*"]
SEGMENTS = [
    "a",
    "b",
    "ab",
    "w",
    "x.key",
    "é",
    ".git",
    "*",
    "**",
    "a*",
    "*b",
    "?",
    "a?",
    "*.key",
    "?*?",
    "*a*b",
    "a*b*",
    "**",
]


def patterns() -> st.SearchStrategy[str]:
    head = st.sampled_from(["/", "", "~/", "${workdir}/", "${tmp}/"])
    return st.builds(
        lambda h, parts: h + "/".join(parts), head, st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=5)
    )


def paths() -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(NAMES), max_size=6).map(lambda names: "/" + "/".join(names))


def pattern_lists() -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(patterns(), max_size=4, unique=True).map(tuple)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    effects = draw(st.lists(st.tuples(st.sampled_from(["fs.read", "fs.write", "fs.exec"]), patterns()), max_size=2))
    return Policy(
        version="1.0",
        fs=Fs(
            read=draw(pattern_lists()),
            write=draw(pattern_lists()),
            exec=draw(st.none() | pattern_lists()),
            deny=draw(pattern_lists()),
            protect=draw(pattern_lists()),
        ),
        net=Net(unix=draw(pattern_lists())),
        approve=Approve(effects=tuple(dict.fromkeys(f"{section} {pattern}" for section, pattern in effects))),
        runtime=draw(st.sampled_from([None, "none"])),
    )


def both(policy: Policy) -> tuple[CompiledPolicy, NativePolicy]:
    compiled = compile_policy(policy, CONTEXT)
    return compiled, NativePolicy(compiled.blob)


# ---- the slow reference: one regular expression per rule, no shared state


def reference_regex(pattern: str) -> re.Pattern[bytes]:
    values = {"~": CONTEXT.home, "${workdir}": CONTEXT.workdir, "${tmp}": CONTEXT.tmp, "${prefix}": CONTEXT.prefix}
    prefix = ""
    for name, value in values.items():
        if pattern == name or pattern.startswith(name + "/"):
            prefix, pattern = re.escape(value), pattern.removeprefix(name)
    if not prefix and not pattern.startswith("/"):
        pattern = "/**/" + pattern
    text = prefix
    for name in pattern.split("/")[1:]:
        if name == "**":
            text += "(?:/[^/]+)*"
        else:
            text += "/" + re.escape(name).replace(r"\*", "[^/]*").replace(r"\?", "(?:[^/][\x80-\xbf]*+)")
    raw = text.encode("utf-8") if "\x80" not in text else text.replace("\x80-\xbf", "\\x80-\\xbf").encode("utf-8")
    return re.compile(raw + rb"\Z", re.DOTALL)


def reference_decision(policy: Policy, need: int, path: str) -> int:
    """deny 0, allow 1, ask 2 for one need bit; only for paths that no built-in rule is about."""
    raw = b"" if path == "/" else path.encode()  # the root is the path of no segments

    def hit(patterns: tuple[str, ...]) -> bool:
        return any(reference_regex(p).match(raw) for p in patterns)

    fs = policy.fs
    grants = () if policy.runtime == "none" else CONTEXT.runtime_grants
    runtime = hit(tuple(g.pattern for g in grants if g.need & need))
    asked = hit(
        tuple(
            e.split(" ", 1)[1]
            for e in policy.approve.effects
            if e.startswith(f"fs.{ {1: 'read', 2: 'write', 4: 'exec'}[need] } ")
        )
    )
    denied = hit(fs.deny) or (need == 2 and hit(fs.protect)) or hit(("/a/state/**",))
    if need == 2:
        denied = denied or hit(("**/akbox.toml/**",))
    if need == 4 and fs.exec is None:
        denied = denied or hit(fs.write)
        allowed = hit(fs.read)
    else:
        allowed = hit({1: fs.read, 2: fs.write, 4: fs.exec or ()}[need])
    return 0 if denied else 2 if asked else 1 if allowed or runtime else 0


# ---- files


@settings(max_examples=200, deadline=None)
@given(policies(), st.lists(paths(), min_size=1, max_size=12))
@example(Policy(version="1.0", fs=Fs(read=("**",), write=("/*",))), ["/", "/a"])
@example(Policy(version="1.0", fs=Fs(read=("/a/**",), write=("/a/w/**",))), ["/a", "/a/w", "/a/b"])
def test_c_python_and_reference_agree_on_files(policy: Policy, names: list[str]) -> None:
    compiled, native = both(policy)
    root = compiled.trie.root
    for path in names:
        raw = path.encode()
        for need in range(1, 8):
            match = matcher.judge(root, need, raw)
            assert native.fs(need, raw) == (match.decision, match.rule, match.missing), (path, need)
        for need in (1, 2, 4):
            assert matcher.judge(root, need, raw).decision == reference_decision(policy, need, path), (path, need)
        assert native.rights(raw) == matcher.rights(root, raw)
        assert native.rights(raw) == sum(n for n in (1, 2, 4) if reference_decision(policy, n, path) == 1)
        assert native.visible(raw) == matcher.visible(root, raw)
        assert native.exec_exact(raw) == matcher.exec_exact(root, raw)
        match = matcher.judge(root, 2, raw, matcher.UNIX)
        assert native.unix(raw) == (match.decision, match.rule)


@settings(max_examples=150, deadline=None)
@given(policies(), paths(), paths(), st.booleans())
def test_c_and_python_agree_on_moves(policy: Policy, source: str, target: str, is_dir: bool) -> None:
    compiled, native = both(policy)
    expected = matcher.move_keeps_rights(compiled.trie.root, source.encode(), target.encode(), is_dir)
    assert native.move_keeps_rights(source.encode(), target.encode(), is_dir) == expected


@settings(max_examples=250, deadline=None)
@given(policies(), paths(), paths(), st.lists(paths(), min_size=1, max_size=15))
def test_a_directory_that_may_move_gains_nothing_below(
    policy: Policy, source: str, target: str, below: list[str]
) -> None:
    """What the comparison of states promises, checked name by name."""
    _, native = both(policy)
    if not native.move_keeps_rights(source.encode(), target.encode(), True):
        return
    for rest in ["", *below]:
        old, new = ((base.rstrip("/") + rest).rstrip("/") or "/" for base in (source, target))
        gained = native.rights(new.encode()) & ~native.rights(old.encode())
        assert not gained, (old, new)


@settings(max_examples=200, deadline=None)
@given(policies(), paths())
def test_a_name_is_visible_when_it_or_something_below_has_rights(policy: Policy, path: str) -> None:
    _, native = both(policy)
    parts = path.strip("/").split("/")
    for depth in range(len(parts)):
        ancestor = "/" + "/".join(parts[:depth])
        denied = all(native.fs(need, ancestor.encode())[1] >= 0 for need in (1, 2, 4))  # an explicit rule hides it
        if native.rights(path.encode()) and not denied:
            assert native.visible(ancestor.encode()), ancestor


@pytest.mark.parametrize("path", [b"", b"a", b"a/b", b"\xff"])
def test_a_path_that_is_not_absolute_is_refused_by_both(path: bytes) -> None:
    compiled, native = both(Policy(version="1.0", fs=Fs(read=("**",), write=("**",))))
    assert native.fs(1, path) == (0, -1, 1)
    assert matcher.judge(compiled.trie.root, 1, path) == matcher.Match(0, -1, 1)
    assert native.rights(path) == matcher.rights(compiled.trie.root, path) == 0
    assert not native.visible(path)
    assert not native.move_keeps_rights(path, b"/a", False)


def test_bytes_that_are_not_utf8_and_question_marks() -> None:
    compiled, native = both(Policy(version="1.0", fs=Fs(read=("/d/?", "/e/*x", "/f/?x"))))
    for raw in (
        b"/d/\xff",
        b"/d/\xc3\xa9",
        b"/d/\xc3\xa9\xa9",
        b"/d/ab",
        b"/e/\xffx",
        b"/f/\xa9x",
        b"/f/\xe2\x82\xacx",
        b"/f/aax",
    ):
        assert native.rights(raw) == matcher.rights(compiled.trie.root, raw), raw
    assert native.rights(b"/d/\xc3\xa9") & 1
    assert native.rights(b"/d/ab") == 0


def test_too_many_live_patterns_are_refused_by_both() -> None:
    wide = tuple(f"/{'a' * i}*/**/x" for i in range(1, 200)) + tuple(f"/{'a' * i}?*/**/y" for i in range(200))
    many = (*wide, *(f"/*{'a' * i}/**/z" for i in range(1, 200)))
    compiled, native = both(Policy(version="1.0", fs=Fs(read=("/**", *many))))
    for path in (b"/b/x", b"/" + b"a" * 250 + b"/x"):
        match = matcher.judge(compiled.trie.root, 1, path)
        assert native.fs(1, path) == (match.decision, match.rule, match.missing)
    assert native.fs(1, b"/" + b"a" * 250 + b"/x")[0] == 0
    assert native.fs(1, b"/b/x")[0] == 1


# ---- network

ADDRESSES = [
    "10.0.0.1",
    "10.0.1.9",
    "127.0.0.1",
    "0.0.0.0",
    "169.254.169.254",
    "::",
    "::1",
    "2001:db8::1",
    "::ffff:10.0.0.1",
]
NETWORKS = [
    "10.0.0.0/8",
    "10.0.0.0/23",
    "10.0.0.1",
    "0.0.0.0/0",
    "127.0.0.0/8",
    "[::]/0",
    "[2001:db8::]/32",
    "[::1]",
    "[::ffff:10.0.0.0]/104",
]
PORTS = ["443", "1-1024", "*", "0", "65535", "80-443", "1000-2000"]


def endpoints() -> st.SearchStrategy[str]:
    parts = st.tuples(st.sampled_from(["", "udp+"]), st.sampled_from(NETWORKS), st.sampled_from(PORTS))
    return parts.map(lambda p: f"{p[0]}ip:{p[1]}:{p[2]}")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(endpoints(), max_size=5, unique=True),
    st.lists(endpoints(), max_size=3, unique=True),
    st.lists(endpoints(), max_size=2, unique=True),
    st.lists(endpoints(), max_size=2, unique=True),
    st.sampled_from(ADDRESSES),
    st.sampled_from([0, 1, 79, 80, 443, 444, 1024, 1025, 65535]),
)
def test_c_python_and_reference_agree_on_addresses(
    connect: list[str], bind: list[str], deny: list[str], ask: list[str], address: str, port: int
) -> None:
    net = Net(connect=tuple(connect), bind=tuple(bind), deny=tuple(deny))
    approve = Approve(effects=tuple(f"net.connect {e}" for e in ask))
    compiled, native = both(Policy(version="1.0", net=net, approve=approve))
    parsed = ipaddress.ip_address(address)
    packed = socket.inet_pton(socket.AF_INET if parsed.version == 4 else socket.AF_INET6, address)
    for op in range(3):
        for proto in range(2):
            match = compiled.net.judge(op, proto, parsed, port)
            assert native.net(op, proto, packed, port) == (match.decision, match.rule)
            expected = reference_net(net, ask, op, proto, parsed, port)
            assert match.decision == expected, (op, proto)


def reference_net(
    net: Net, ask: list[str], op: int, proto: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> int:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if op == CONNECT and int(address) == 0:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")

    def hit(rules: tuple[str, ...], any_proto: bool = False) -> bool:
        for rule in rules:
            udp, rest = rule.startswith("udp+"), rule.removeprefix("udp+").removeprefix("ip:")
            where, _, ports = rest.rpartition(":")
            network = ipaddress.ip_network(where.replace("[", "").replace("]", ""))
            if where.startswith("[::ffff:"):
                network = ipaddress.ip_network("10.0.0.0/8")
            low, _, high = ports.partition("-")
            in_ports = ports == "*" or int(low) <= port <= int(high or low)
            if in_ports and address in network and (udp == (proto == 1) or (any_proto and not udp)):
                return True
        return False

    if hit(net.deny, any_proto=True):
        return 0
    if op == CONNECT and hit(tuple(ask)):
        return 2
    return int(hit({0: net.connect, 1: net.bind, 2: net.listen}[op]))


def test_listen_rules_are_their_own() -> None:
    _, native = both(Policy(version="1.0", net=Net(bind=("ip:127.0.0.1:80",), listen=("ip:127.0.0.1:81",))))
    assert [
        native.net(op, 0, bytes([127, 0, 0, 1]), port)[0] for op, port in ((1, 80), (LISTEN, 80), (LISTEN, 81), (0, 80))
    ] == [1, 0, 1, 0]


# ---- the blob


def parsed_or_none(blob: bytes) -> NativePolicy | None:
    try:
        return NativePolicy(blob)
    except ValueError:
        return None


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_blob_is_refused_or_harmless(data: st.DataObject) -> None:
    """Any bytes may be handed to the parser: it says why not, or gives a matcher that answers."""
    policy = Policy(
        version="1.0",
        fs=Fs(read=("/a/**", "/b/*.x", "*y"), deny=("**/.git/**",)),
        net=Net(connect=("ip:10.0.0.0/8:1-9",)),
    )
    blob = bytearray(compile_policy(policy, CONTEXT).blob)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(blob) - 1))
        blob[at] = data.draw(st.sampled_from([0, 1, 2, 0x7F, 0xFF]) | st.integers(0, 255))
    if data.draw(st.booleans()):
        del blob[data.draw(st.integers(0, len(blob) - 1)) :]
    native = parsed_or_none(bytes(blob))
    if native is None:
        return
    assert native.fs(1, b"/a/b/x.y")[0] in (0, 1, 2)
    assert native.net(0, 0, bytes([10, 0, 0, 1]), 5)[0] in (0, 1, 2)
    assert native.move_keeps_rights(b"/a/.git/c", b"/b/q.x", True) in (True, False)


@pytest.mark.parametrize("blob", [b"", b"AKPO", bytes(112), bytes(4096)])
def test_what_is_no_blob_is_refused(blob: bytes) -> None:
    with pytest.raises(ValueError, match="bad compiled policy"):
        NativePolicy(blob)
