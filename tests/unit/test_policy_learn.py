"""Learned policies: what becomes wider than what was seen, and what never does."""

from __future__ import annotations

import tomllib

import pytest

from akbox.policy.compile import compile_policy
from akbox.policy.compiled import CompiledPolicy
from akbox.policy.learn import Learned, kept, learn, widened
from akbox.policy.load import parse
from akbox.policy.model import Policy
from akbox.policy.places import FS_MKDIR, FS_RENAME, FS_UNLINK, Seen
from akbox.policy.rules import Context
from akbox.policy.write import as_toml

OPEN, EXEC, CONNECT, DNS, BIND = 0x100, 0x300, 0x200, 0x201, 0x202
R, W, X = 1, 2, 4
TMP = ["${tmp}/**"]


def policy(text: str = 'profiles = ["base", "workdir"]') -> Policy:
    return parse(f'version = "1.0"\n{text}', syntax="toml", name="test")


def learned(*seen: Seen, workdir: str = "/src/app", text: str = 'profiles = ["base", "workdir"]') -> Learned:
    def judge(one: Policy) -> CompiledPolicy:
        return compile_policy(one, Context(workdir=workdir, home="/home/me", tmp="/tmp/run", prefix="/usr"))

    begin = kept(policy(text))
    return learn(seen, begin, judge(begin), judge)


def read(*paths: str) -> list[Seen]:
    return [Seen(OPEN, path, need=R) for path in paths]


READS = {
    "exact": (["/data/a", "/data/b"], ["/data/a", "/data/b"]),
    "variables": (["/src/app/a", "/home/me/notes", "/tmp/run/x"], ["${workdir}/a", "~/notes"]),
    "granted by base": (["/usr/lib/x", "/etc/hosts"], []),
    "side by side": ([f"/data/d/{n}" for n in "abcde"], ["/data/d/*"]),
    "directories side by side": ([f"/data/d/{d}/{n}" for d in "xyz" for n in "abcde"], ["/data/d/**"]),
    "never the home": ([f"/home/me/{n}" for n in "abcde"], [f"~/{n}" for n in "abcde"]),
    "never other homes": ([f"/home/{n}" for n in "abcde"], [f"/home/{n}" for n in "abcde"]),
    "never the root": ([f"/{n}0" for n in "abcde"], [f"/{n}0" for n in "abcde"]),
    "nor over homes": (
        [f"/home/me/{d}/{n}" for d in "xyz" for n in "abcde"],
        ["~/x/*", "~/y/*", "~/z/*"],
    ),
    "credentials": ([f"/mnt/u/.ssh/{n}" for n in "abcde"], [f"/mnt/u/.ssh/{n}" for n in "abcde"]),
    "names like patterns": (["/data/*", "/data/x/**", "/data/y/?"], ["/data/?", "/data/x/??", "/data/y/?"]),
}


@pytest.mark.parametrize("case", READS)
def test_reads(case: str) -> None:
    paths, patterns = READS[case]
    assert list(learned(*read(*paths)).policy.fs.read) == sorted([*patterns, *TMP])


def test_the_working_directory_may_be_the_home() -> None:
    found = learned(*read(*(f"/home/me/{n}" for n in "abcde")), workdir="/home/me").policy.fs.read
    assert list(found) == sorted([*(f"${{workdir}}/{n}" for n in "abcde"), *TMP])


def test_what_a_made_directory_holds() -> None:
    made = [Seen(FS_MKDIR, "/src/app/out", need=W, made=True), Seen(OPEN, "/src/app/out/x", need=W, made=True)]
    found = learned(*made, *read("/src/app/out/x")).policy.fs
    assert (list(found.read), list(found.write)) == ([*TMP, "${workdir}/out/**"], [*TMP, "${workdir}/out/**"])


def test_names_by_chance_mean_the_directory() -> None:
    objects = [Seen(FS_MKDIR, "/src/app/objects/4b", need=W, made=True)]
    renamed = [
        Seen(OPEN, "/src/app/state/s.lock", need=W, made=True),
        Seen(FS_RENAME, "/src/app/state/s.lock", "/src/app/state/s", need=W, made=True),
    ]
    gone = [Seen(OPEN, "/src/app/logs/l", need=W, made=True), Seen(FS_UNLINK, "/src/app/logs/l", need=W)]
    found = learned(*objects, *renamed, *gone)
    places = ["${workdir}/logs/*", "${workdir}/objects/**", "${workdir}/state/*"]
    assert list(found.policy.fs.write) == [*TMP, *places]
    assert found.left_out == ()


def test_programs_stay_exact_but_where_the_run_made_them() -> None:
    made = [Seen(OPEN, "/src/app/build/tool", need=W, made=True), Seen(EXEC, "/src/app/build/tool", need=X)]
    other = [Seen(EXEC, f"/usr/bin/{n}", need=X) for n in "abcdefgh"]
    found = learned(*made, *other).policy.fs.exec
    assert found is not None
    assert list(found) == ["${workdir}/build/**", *(f"/usr/bin/{n}" for n in "abcdefgh")]


def test_network() -> None:
    found = learned(
        Seen(CONNECT, "dns:example.org:443", "ip:93.184.216.34:443"),
        Seen(DNS, "example.org"),
        Seen(DNS, "other.example"),
        Seen(CONNECT, "dns:intern:80", "ip:10.0.0.1:80"),
        Seen(CONNECT, "dns:localhost:40001", "ip:127.0.0.1:40001"),
        Seen(CONNECT, "udp+ip:192.0.2.1:123"),
        Seen(BIND, "ip:127.0.0.1:0"),
        Seen(CONNECT, "unix:/run/app.sock"),
    ).policy.net
    assert list(found.dns) == ["other.example"]
    assert list(found.connect) == [
        *("dns:example.org:443", "dns:intern:80", "ip:127.0.0.1:32768-60999", "udp+ip:192.0.2.1:123")
    ]
    assert (list(found.private), list(found.bind), list(found.unix)) == (
        ["intern"],
        ["ip:127.0.0.1:0"],
        ["/run/app.sock"],
    )


def test_what_the_policy_refuses_is_kept_and_left_out() -> None:
    text = 'profiles = ["base"]\nfs.deny = ["/data/secret"]\nlimits.pids = 9\nbudgets.tokens = 5'
    found = learned(*read("/data/secret", "/data/x"), text=text)
    assert found.policy.fs.deny == ("/data/secret",)
    assert (found.policy.limits.pids, found.policy.budgets.tokens) == (9, 5)
    assert [line.split(":")[0] for line in found.left_out] == ["/data/secret"]


def test_a_recording_refuses_what_the_policy_denies_and_protects() -> None:
    wide = compile_policy(
        widened(policy()), Context(workdir="/src/app", home="/home/me", tmp="/tmp/run", prefix="/usr")
    )
    refused = {
        (OPEN, "/home/me/.ssh/id", R),
        (OPEN, "/etc/shadow", R),
        (OPEN, "/src/.bashrc", W),
        (OPEN, "/dev/mem", R),
    }
    allowed = {(OPEN, "/srv/x", R), (OPEN, "/srv/x", W), (EXEC, "/srv/x", X), (OPEN, "/src/.bashrc", R)}
    assert {one for one in refused | allowed if wide.decide(one[0], one[1], need=one[2]).decision} == allowed
    for target in ("dns:example.org:1", "ip:192.0.2.1:1", "udp+ip:[2001:db8::1]:1", "unix:/run/x"):
        assert wide.decide(CONNECT, target).decision


def test_written_policies_are_read_back() -> None:
    text = """
version = "1.0"
profiles = ["base"]
runtime = "none"
[fs]
read = ["/a \\"b\\"/**", "/é"]
exec = []
[env]
set = { A = "x = 1" }
[secrets.KEY]
from = "env:KEY"
for = ["infer:one"]
[infer]
models = ["m"]
[infer.upstreams.one]
type = "openai"
base_url = "http://127.0.0.1:1"
key = "secret:KEY"
[heap.types.counter]
type = "object"
required = ["n"]
[budgets]
usd = 0.5
"""
    first = parse(text, syntax="toml", name="a")
    notes = {("fs", "read", "/é"): "3 times, by cat"}
    written = as_toml(first, head=["made", "by a test"], notes=notes, tail=["end"])
    again = parse(written, syntax="toml", name="b")
    assert tomllib.loads(written) == tomllib.loads(text)
    assert again.fs == first.fs
    assert '"/é",' in written
    assert "# 3 times, by cat" in written


def test_tools_keep_their_servers_and_signers() -> None:
    server = '[tools.mcp.files]\ncommand = ["x"]\npolicy = {version = "1.0"}\n'
    text = f'{server}[tools]\ndeny = ["bad"]\n[wasm]\nsigned_by = ["{"ab" * 32}"]\n'
    assert widened(policy(text)).wasm.signed_by == ("ab" * 32,)
    found = learned(
        Seen(1031, "tool:files.read"), Seen(1031, "tool:http_get"), Seen(0x505, "hostcall:http_request"), text=text
    ).policy
    assert found.tools.allow == ("files.read", "http_get")
    assert (found.tools.deny, found.wasm.hostcalls, found.wasm.signed_by) == (("bad",), ("http_request",), ("ab" * 32,))
    written = parse(as_toml(found), syntax="toml", name="written")
    assert written.tools.mcp == found.tools.mcp
    assert written.tools.mcp["files"].command == ("x",)
