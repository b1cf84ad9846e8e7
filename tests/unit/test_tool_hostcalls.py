"""What the tools that come with akbox may do: what the policy of their agent allows, with their name in the entry."""

from __future__ import annotations

import base64
import ipaddress
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tool_kit import Bench, make_tool, wat

from akbox.kernel.codes import Code
from akbox.kernel.effect import AgentId
from akbox.tools.hostcalls import HOST_TABLE, Names
from akbox.tools.manifest import HOST_CALLS
from akbox.tools.wasi import FUNCTIONS

ALL = '[tools]\nallow = ["*"]\n[wasm]\nmodules = ["*"]\nhostcalls = ["*"]\n'


class Server(BaseHTTPRequestHandler):
    """`/to/URL` redirects there; `/headers` says what was sent; else the path, or the body of a POST."""

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("location", self.path[4:])
            self.send_header("content-length", "0")
            self.end_headers()
            return
        body = {"/headers": str(self.headers).encode(), "/bytes": b"\xff\x00", "/long": b"x" * 5000}
        self.answer(body.get(self.path, self.path.encode()))

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers["content-length"])))

    def answer(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def names(_subject: AgentId, host: str) -> Names:
    """What the target's resolver would say: three names on this machine, one of them withheld."""
    if host == "inside.test":
        return Names((), "10.0.0.1 (private network)")
    return Names((ipaddress.ip_address("127.0.0.1"),)) if host in ("listed.test", "other.test") else Names()


def http_bench(directory: Path, port: int) -> Bench:
    net = f'[net]\nconnect = ["dns:listed.test:{port}", "dns:inside.test:{port}", "ip:127.0.0.2:{port}"]\n'
    return Bench(directory, ALL + net, names)


def last(bench: Bench, name: str) -> dict[str, object]:
    return [e for e in bench.box.entries() if e["name"] == name][-1]


def test_http_get(tmp_path: Path, port: int) -> None:
    bench = http_bench(tmp_path, port)
    reply = bench.call("http_get", url=f"http://listed.test:{port}/hello")
    assert (reply["status"], reply["body"], reply["truncated"]) == (200, "/hello", False)
    entry = last(bench, "net.connect")
    assert (entry["target"], entry["decision"]) == (f"dns:listed.test:{port}", "allow")
    assert entry["req"]["detail"] == {"tool": "http_get", "method": "GET", "address": "127.0.0.1"}
    assert last(bench, "hostcall")["target"] == "hostcall:http_request"
    headers = bench.call("http_get", url=f"http://listed.test:{port}/headers", headers={"X-One": "1"})["body"].lower()
    assert "x-one: 1" in headers
    assert f"host: listed.test:{port}" in headers
    reply = bench.call("http_get", url=f"http://listed.test:{port}/bytes")
    assert (base64.b64decode(reply["body"]), reply["encoding"]) == (b"\xff\x00", "base64")
    reply = bench.call("http_get", url=f"http://listed.test:{port}/long", max_bytes=10)
    assert (reply["body"], reply["truncated"]) == ("x" * 10, True)
    reply = bench.call("http_post", url=f"http://listed.test:{port}/", body="hé")
    assert reply["body"] == "hé"
    reply = bench.call("http_get", url=f"http://listed.test:{port}/to//next")
    assert (reply["body"], reply["url"]) == ("/next", f"http://listed.test:{port}/next")
    assert bench.call("http_get", url=f"http://listed.test:{port}/to//next", follow=False)["status"] == 302
    bench.close()


@pytest.mark.parametrize(
    ("url", "target", "fix"),
    [
        ("http://other.test:{port}/", "dns:other.test:{port}", 'net.connect = ["dns:other.test:{port}"]'),
        ("http://listed.test:1/", "dns:listed.test:1", 'net.connect = ["dns:listed.test:1"]'),
        ("http://inside.test:{port}/", "dns:inside.test:{port}", 'net.private = ["inside.test"], if it is meant to'),
        ("http://127.0.0.1:{port}/", "ip:127.0.0.1:{port}", 'net.connect = ["ip:127.0.0.1:{port}"]'),
        ("http://169.254.169.254/latest", "ip:169.254.169.254:80", 'net.connect = ["ip:169.254.169.254:80"]'),
        ("http://[::ffff:127.0.0.1]:{port}/", "ip:127.0.0.1:{port}", 'net.connect = ["ip:127.0.0.1:{port}"]'),
        ("http://listed.test:{port}/to/http://other.test:{port}/", "dns:other.test:{port}",
         'net.connect = ["dns:other.test:{port}"]'),
        ("http://listed.test:{port}/to/http://127.0.0.1:{port}/", "ip:127.0.0.1:{port}",
         'net.connect = ["ip:127.0.0.1:{port}"]'),
        ("http://listed.test:{port}/to/http://inside.test:{port}/", "dns:inside.test:{port}",
         'net.private = ["inside.test"], if it is meant to'),
    ],
)  # fmt: skip
def test_what_http_get_is_refused(tmp_path: Path, port: int, url: str, target: str, fix: str) -> None:
    bench = http_bench(tmp_path, port)
    error = bench.fail("http_get", url=url.format(port=port))
    assert (error["code"], error["details"]["reason"]) == (Code.POLICY_DENY, "network"), error
    assert "http_get" in error["message"]
    assert error["suggested_fix"] == fix.format(port=port)
    entry = last(bench, "net.connect")
    assert (entry["target"], entry["decision"]) == (target.format(port=port), "deny")
    assert entry["req"]["detail"]["tool"] == "http_get"
    assert bench.used() == (0, 0)
    bench.close()


def test_a_rule_against_an_address_wins_over_the_name(tmp_path: Path, port: int) -> None:
    net = f'[net]\nconnect = ["dns:listed.test:{port}"]\ndeny = ["ip:127.0.0.0/8:*"]\n'
    bench = Bench(tmp_path, ALL + net, names)
    assert bench.fail("http_get", url=f"http://listed.test:{port}/")["code"] == Code.POLICY_DENY
    assert last(bench, "net.connect")["target"] == f"ip:127.0.0.1:{port}"
    bench.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [("file:///etc/passwd", "neither"), ("http://u:p@listed.test/", "password"), ("http://listed.test/a b", "%XX"),
     ("http://listed.test:99999/", "Port"), ("http:///x", "host name"), ("http://unknown.test/", "no rule")],
)  # fmt: skip
def test_urls_that_are_none(tmp_path: Path, url: str, words: str) -> None:
    bench = http_bench(tmp_path, 80)
    error = bench.fail("http_get", url=url)
    assert error["code"] in (Code.TOOL_FAIL, Code.POLICY_DENY)
    assert words in error["message"]
    bench.close()


def test_a_request_cannot_be_smuggled(tmp_path: Path, port: int) -> None:
    bench = http_bench(tmp_path, port)
    for headers in ({"host": "other.test"}, {"Content-Length": "3"}, {"x": "1\r\ny: 2"}, {"x y": "1"}):
        assert bench.fail("http_get", url=f"http://listed.test:{port}/", headers=headers)["code"] == Code.TOOL_FAIL
    bench.close()


def test_a_server_that_never_answers_is_left_at_the_deadline_and_at_the_end(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.2", 0)) as silent:
        port = silent.getsockname()[1]
        bench = Bench(tmp_path, ALL + f'[net]\nconnect = ["ip:127.0.0.2:{port}"]\n', names)
        errors: list[dict[str, object]] = []
        thread = threading.Thread(target=lambda: errors.append(bench.fail("http_get", url=f"http://127.0.0.2:{port}/")))
        thread.start()
        connection, _ = silent.accept()
        bench.tools.close()
        thread.join(20)
        connection.close()
        assert [error["code"] for error in errors] == [Code.TOOL_FAIL]
        bench.box.close()


FILES = '[fs]\nread = ["$W/**"]\nwrite = ["$W/out/**"]\ndeny = ["$W/.env"]\n'


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, ALL + FILES)
    (bench.work / "out").mkdir()
    (bench.work / "a.txt").write_text("one\ntwo\n")
    (bench.work / ".env").write_text("KEY=1")
    (tmp_path / "outside").write_text("secret")
    (bench.work / "link").symlink_to(tmp_path / "outside")
    (bench.work / "env").symlink_to(".env")
    (bench.work / "out" / "away").symlink_to(tmp_path / "outside")
    (bench.work / "out" / "new").symlink_to(tmp_path / "made")
    (bench.work / "memory").symlink_to("/proc/self/maps")
    os.mkfifo(bench.work / "fifo")
    yield bench
    bench.close()


def test_files(files: Bench) -> None:
    reply = files.call("file_read", path="a.txt")
    assert reply == {"content": "one\ntwo\n", "encoding": "utf-8", "size": 8, "truncated": False}
    entry = last(files, "fs.open")
    assert (entry["target"], entry["decision"]) == (str(files.work / "a.txt"), "allow")
    assert entry["req"]["detail"] == {"tool": "file_read"}
    assert files.call("file_read", path="a.txt", offset=4, max_bytes=2)["content"] == "tw"
    assert files.call("file_write", path="out/b", content="1") == {"written": 1}
    assert files.call("file_write", path="out/b", content="Mg==", encoding="base64", append=True) == {"written": 1}
    assert (files.work / "out" / "b").read_text() == "12"
    assert files.call("file_write", path="out/b", content="") == {"written": 0}
    assert (files.work / "out" / "b").read_text() == ""
    names = [entry["name"] for entry in files.call("file_list", path=".")["entries"]]
    assert names == [".env", "a.txt", "env", "fifo", "link", "memory", "out"]
    assert files.call("text_grep", pattern="w", path="a.txt") == {"matches": [{"line": 2, "text": "two"}], "count": 1}


@pytest.mark.parametrize(
    ("tool", "params", "code", "target"),
    [
        ("file_read", {"path": ".env"}, Code.POLICY_DENY, "$W/.env"),
        ("file_read", {"path": "env"}, Code.POLICY_DENY, "$W/.env"),
        ("file_read", {"path": "out/../.env"}, Code.POLICY_DENY, "$W/.env"),
        ("file_read", {"path": "link"}, Code.POLICY_DENY, "$T/outside"),
        ("file_read", {"path": "$T/outside"}, Code.POLICY_DENY, "$T/outside"),
        ("file_read", {"path": "/proc/self/environ"}, Code.POLICY_DENY, None),
        ("file_read", {"path": "memory"}, Code.POLICY_DENY, None),
        ("file_read", {"path": "/dev/null"}, Code.POLICY_DENY, "/dev/null"),
        ("file_read", {"path": "nothing"}, Code.TOOL_FAIL, None),
        ("file_read", {"path": "fifo"}, Code.TOOL_FAIL, None),
        ("file_read", {"path": "out"}, Code.TOOL_FAIL, None),
        ("file_list", {"path": "$T"}, Code.POLICY_DENY, "$T"),
        ("file_write", {"path": "a.txt", "content": "x"}, Code.POLICY_DENY, "$W/a.txt"),
        ("file_write", {"path": "out/away", "content": "x"}, Code.POLICY_DENY, "$T/outside"),
        ("file_write", {"path": "out/new", "content": "x"}, Code.POLICY_DENY, "$T/made"),
        ("file_write", {"path": "out/../a.txt", "content": "x"}, Code.POLICY_DENY, "$W/a.txt"),
        ("file_write", {"path": "out/no/where", "content": "x"}, Code.TOOL_FAIL, None),
        ("file_write", {"path": "out/..", "content": "x"}, Code.TOOL_FAIL, None),
        ("text_grep", {"pattern": "K", "path": ".env"}, Code.POLICY_DENY, "$W/.env"),
    ],
)  # fmt: skip
def test_what_files_are_refused(
    files: Bench, tool: str, params: dict[str, str], code: Code, target: str | None
) -> None:
    outside = files.work.parent

    def real(text: str) -> str:
        return text.replace("$W", str(files.work)).replace("$T", str(outside))

    error = files.fail(tool, **{name: real(value) for name, value in params.items()})
    assert error["code"] == code, error
    if code is Code.POLICY_DENY:
        assert error["details"]["reason"] == "fs"
        entry = last(files, "fs.open")
        assert (entry["decision"], entry["req"]["detail"]) == ("deny", {"tool": tool})
        assert target is None or entry["target"] == real(target)
    assert (outside / "outside").read_text() == "secret"
    assert (files.work / "a.txt").read_text() == "one\ntwo\n"
    assert not (outside / "made").exists()


def test_a_host_call_that_the_policy_does_not_grant(tmp_path: Path) -> None:
    bench = Bench(tmp_path, '[tools]\nallow = ["*"]\n[fs]\nread = ["$W/**"]\n[wasm]\nhostcalls = ["http_request"]\n')
    (bench.work / "a").write_text("x")
    error = bench.fail("file_read", path="a")
    assert (error["code"], error["missing_cap"], error["details"]["reason"]) == (
        Code.POLICY_DENY, "wasm.hostcalls", "hostcall",
    )  # fmt: skip
    assert error["suggested_fix"] == 'wasm.hostcalls = ["fs_read"]'
    entry = last(bench, "hostcall")
    assert (entry["target"], entry["decision"]) == ("hostcall:fs_read", "deny")
    assert bench.used() == (0, 0)
    assert not [e for e in bench.box.entries() if e["name"] == "fs.open"]
    bench.close()


def host_tool(name: str, request: str) -> str:
    """A tool that makes one host call and gives its reply, good or bad, as its result."""
    escaped = request.replace('"', '\\"')
    return wat(
        f"(local $n i32) (local.set $n (call $host (i32.const 1024) (i32.const {len(request)}))) "
        "(if (i32.lt_s (local.get $n) (i32.const 0)) (then (local.set $n (i32.sub (i32.const 0) (local.get $n))))) "
        "(drop (call $reply (i32.const 8192) (local.get $n))) (i32.store (i32.const 0) (i32.const 8192)) "
        "(i32.store (i32.const 4) (local.get $n)) "
        "(drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))",
        imports=f'(import "ak" "{name}" (func $host (param i32 i32) (result i32))) '
        '(import "ak" "reply" (func $reply (param i32 i32) (result i32)))',
        data=escaped,
    )


@pytest.mark.parametrize(
    ("name", "request_text", "wanted"),
    [
        ("time_now", "", {"unix_ns"}),
        ("time_now", "{}", {"unix_ns"}),
        ("random", '{"count":3}', {"bytes"}),
        ("random", '{"count":0}', "SCHEMA_INVALID"),
        ("random", '{"count"', "JSON_INVALID"),
        ("log", '{"message":"hello"}', set()),
        ("fs_stat", '{"path":"."}', {"type", "size", "mode", "mtime_ns"}),
        ("heap_read", '{"ptr":1}', {"ptr", "type", "version", "value", "taint"}),
        ("heap_read", '{"ptr":99}', "NOT_FOUND"),
        ("heap_write", '{"ptr":1,"patch":[{"op":"replace","path":"","value":2}]}', {"version"}),
        ("llm_complete", '{"model":"m","prompt":"x"}', "NO_UPSTREAM"),
    ],
)  # fmt: skip
def test_each_host_call(tmp_path: Path, name: str, request_text: str, wanted: set[str] | str) -> None:
    bench = Bench(tmp_path, ALL + FILES)
    bench.box.call(1025, type="t", value=1)
    make_tool(bench.state / "tools", "asks", host_tool(name, request_text), hostcalls=[name])
    reply = bench.call("asks")
    if isinstance(wanted, str):
        assert reply["error"]["name"] == wanted
    else:
        assert reply.keys() == wanted
    if name.startswith(("heap", "llm")):
        assert [e["req"]["tool"] for e in bench.box.entries() if "tool" in e["req"]] == ["asks"]
    bench.close()


def test_requests_outside_the_memory_trap(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ALL)
    host = '(import "ak" "time_now" (func $host (param i32 i32) (result i32)))'
    for i, numbers in enumerate(("(i32.const -1) (i32.const 10)", "(i32.const 0) (i32.const -1)")):
        bench.add(f"bad{i}", wat(f"(drop (call $host {numbers}))", imports=host), hostcalls=["time_now"])
        assert bench.fail(f"bad{i}")["details"] == {"reason": "trap"}
    bench.close()


def test_every_wasi_function_survives_every_number(tmp_path: Path) -> None:
    """Arguments at the edges of 32 and 64 bits: an errno, a failure of the tool, never one of ours."""
    bench = Bench(tmp_path, ALL)
    for name, params in FUNCTIONS.items():
        result = "" if name == "proc_exit" else "(result i32)"
        imports = f'(import "wasi_snapshot_preview1" "{name}" (func $f (param {" ".join(params)}) {result}))'
        calls = ""
        for value in (0, 1, -1, 65535, 65536, 2**31 - 1, -(2**31)):
            call = f"(call $f {' '.join(f'({p}.const {value})' for p in params)})"
            calls += call if name == "proc_exit" else f"(drop {call})"
        bench.add(f"f_{name}", wat(calls, imports=imports.replace("(param )", "")))
        error = bench.fail(f"f_{name}")
        assert error["details"]["reason"] == "output_json", (name, error)
    bench.close()


def test_tables_name_the_same_host_calls() -> None:
    assert tuple(HOST_TABLE) == HOST_CALLS


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights that its agents do not have")
def test_files_are_opened_without_capabilities(files: Bench) -> None:
    """Root reads another's file by CAP_DAC_OVERRIDE, which an agent that root started has not; nor do its tools."""
    for name in ("mine", "out/mine"):
        (files.work / name).write_text("another user's")
        os.chown(files.work / name, 65534, 65534)
        (files.work / name).chmod(0o600)
    assert (files.work / "mine").read_text() == "another user's", "the control"
    error = files.fail("file_read", path="mine")
    assert error["code"] == Code.TOOL_FAIL
    assert "Permission denied" in error["message"]
    assert "Permission denied" in files.fail("file_write", path="out/mine", content="x")["message"]
    assert (files.work / "out/mine").read_text() == "another user's"
