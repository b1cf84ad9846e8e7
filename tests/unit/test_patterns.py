"""Path, name, host and endpoint patterns: what each form matches, and what is refused with which advice."""

from __future__ import annotations

import pytest

from akbox.policy.matcher import ALLOW, E_ALLOW, READ, Accept, Trie, judge
from akbox.policy.netpatterns import canonical_host, match_host, parse_endpoint, parse_host, parse_network
from akbox.policy.patterns import PatternError, match_glob, match_name, parse_name, parse_path

VARIABLES = {"workdir": "/home/u/p[1]*", "home": "/home/u", "tmp": "/tmp/r", "prefix": "/usr"}


def matches(pattern: str, path: str) -> bool:
    trie = Trie()
    trie.add(parse_path(pattern).expand(VARIABLES), Accept(0, E_ALLOW, READ, False))
    return judge(trie.root, READ, path.encode()).decision == ALLOW


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("/a/b", ["/a/b"], ["/a", "/a/b/c", "/a/bb", "/A/b"]),
        ("/a/*", ["/a/b", "/a/.x"], ["/a", "/a/b/c"]),
        ("/a/**", ["/a", "/a/b", "/a/b/c"], ["/ab", "/"]),
        ("/a/**/x/*.key", ["/a/x/1.key", "/a/b/c/x/.key"], ["/a/x/b/1.key", "/a/x/1.keys"]),
        ("*.txt", ["/1.txt", "/a/b/.txt"], ["/a.txt/b", "/a.txtx"]),
        ("**/.env", ["/.env", "/a/b/.env"], ["/a/.env/b", "/a/x.env"]),
        (".git/hooks/**", ["/r/.git/hooks", "/r/s/.git/hooks/a/b"], ["/r/.git/hook", "/.git"]),
        ("/a?c", ["/abc", "/a.c", "/aéc"], ["/ac", "/a/c", "/abbc"]),
        ("~/.ssh/**", ["/home/u/.ssh", "/home/u/.ssh/id"], ["/home/v/.ssh/id", "/root/.ssh"]),
        ("~", ["/home/u"], ["/home/u/a", "/home"]),
        ("${tmp}/**", ["/tmp/r", "/tmp/r/a"], ["/tmp", "/tmp/rr"]),
        ("${workdir}/*", ["/home/u/p[1]*/a"], ["/home/u/p1/a", "/home/u/p[1]x/a"]),
        ("/", ["/"], ["/a"]),
        ("/**", ["/", "/a", "/a/b"], []),
        ("**", ["/", "/a/b"], []),
        ("/a/**/**/b", ["/a/b", "/a/x/y/b"], ["/b"]),
        ("/a[bc]", ["/a[bc]"], ["/ab"]),
    ],
)
def test_path_patterns(pattern: str, yes: list[str], no: list[str]) -> None:
    assert [p for p in yes if not matches(pattern, p)] == []
    assert [p for p in no if matches(pattern, p)] == []


@pytest.mark.parametrize(
    ("pattern", "message", "hint"),
    [
        ("", "empty", "remove"),
        ("/a/../b", "not resolved", "/a/b"),
        ("../b", "not resolved", "${workdir}/b"),
        ("./b", "not resolved", "${workdir}/b"),
        ("/a//b", "//", "/a//b"),
        ("/a/", "end in /", "/a/**"),
        ("/a**/b", "whole segment", "/a*/b"),
        ("~bob/x", "home directory", "path"),
        ("${wrokdir}/x", "unknown variable", '"workdir"'),
        ("/x/${home}", "start", "absolute"),
        ("${home}x", "followed by /", "${home}/x"),
        ("${home", "unknown variable", ""),
        ("/a\nb", "control", "?"),
        ("/a\0b", "control", "?"),
        ("/" + "a" * 4096, "4096", ""),
        ("/" + "a" * 256, "255", ""),
    ],
)
def test_bad_path_patterns(pattern: str, message: str, hint: str) -> None:
    with pytest.raises(PatternError) as caught:
        parse_path(pattern)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_globs_take_polynomial_time() -> None:
    assert not match_glob(b"*a" * 120, b"a" * 119 + b"b" * 130)
    assert match_glob(b"*a" * 50 + b"*", b"ba" * 60)


def test_name_patterns() -> None:
    assert match_name(parse_name("file_*"), "file_read")
    assert match_name(parse_name("*"), "anything")
    assert not match_name(parse_name("file_*"), "File_read")
    assert not match_name(parse_name("http_get"), "http_get2")
    for bad in ("", "a*b", "*_x", "a b"):
        with pytest.raises(PatternError):
            parse_name(bad)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("example.com", ["example.com"], ["a.example.com", "example.org"]),
        ("Example.COM.", ["example.com"], []),
        ("*.example.com", ["a.example.com"], ["example.com", "a.b.example.com", "evilexample.com", ".example.com"]),
        ("**.example.com", ["a.example.com", "a.b.example.com"], ["example.com", "evilexample.com"]),
        ("*", ["a", "a.b.c"], []),
        ("bücher.example", ["xn--bcher-kva.example"], []),
        ("localhost", ["localhost"], ["x.localhost"]),
    ],
)
def test_host_patterns(pattern: str, yes: list[str], no: list[str]) -> None:
    parsed = parse_host(pattern)
    assert [h for h in yes if not match_host(parsed, canonical_host(h))] == []
    assert [h for h in no if match_host(parsed, h)] == []


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("https://api.example.com/v1", '"api.example.com"'),
        ("*.com", "*.example.com"),
        ("**.co.uk", "**.example.co.uk"),
        ("a*.example.com", "*.example.com"),
        ("*.*.example.com", "*.example.com"),
        ("10.0.0.1", "ip:10.0.0.1"),
        ("example.com:443", '"example.com"'),
        ("exa mple.com", "letters"),
        ("a..b", "letters"),
        ("-a.example", "letters"),
        ("a" * 64 + ".example", "letters"),
        ("user@example.com", '"example.com"'),
    ],
)
def test_bad_host_patterns(pattern: str, hint: str) -> None:
    with pytest.raises(PatternError) as caught:
        parse_host(pattern)
    assert hint in caught.value.hint


def test_endpoints() -> None:
    end = parse_endpoint("udp+dns:*.example.com:53")
    assert (end.protocol, end.low, end.high, end.host) == ("udp", 53, 53, parse_host("*.example.com"))
    end = parse_endpoint("ip:[2001:db8::]/32:8000-8100")
    assert (str(end.network), end.low, end.high, end.protocol) == ("2001:db8::/32", 8000, 8100, "tcp")
    assert str(parse_endpoint("ip:[::ffff:10.0.0.0]/104:*").network) == "10.0.0.0/8"
    assert str(parse_network("[::ffff:10.1.2.3]")) == "10.1.2.3/32"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("https://api.example.com", '"dns:api.example.com:443"'),
        ("http://api.example.com:8080/x", '"dns:api.example.com:8080"'),
        ("dns:https://api.example.com:443", '"dns:api.example.com:443"'),
        ("api.example.com:443", '"dns:api.example.com:443"'),
        ("10.0.0.1:80", '"ip:10.0.0.1:80"'),
        ("dns:example.com", ":443"),
        ("ip:10.0.0.1/8:443", "10.0.0.0/8"),
        ("ip:[2001:db8::1]/32:1", "[2001:db8::]/32"),
        ("ip:10.0.0.0/33:443", "0 to 32"),
        ("ip:10.0.0.0/:443", "0 to 32"),
        ("ip:10.0.0.0/-1:443", "0 to 32"),
        ("ip:2001:db8::1:443", "[2001:db8::1]"),
        ("ip:[10.0.0.1]:443", "10.0.0.1"),
        ("ip:[fe80::1%eth0]:443", "fe80::1"),
        ("ip:example.com:443", "dns:NAME"),
        ("ip:10.0.0.1:70000", "65535"),
        ("ip:10.0.0.1:9-1", "1-9"),
        ("ip:10.0.0.1:http", "number"),
        ("ip:[::1]", ":443"),
    ],
)
def test_bad_endpoints(text: str, hint: str) -> None:
    with pytest.raises(PatternError) as caught:
        parse_endpoint(text)
    assert hint in caught.value.hint
