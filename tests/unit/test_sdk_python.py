"""The Python SDK: against a real kernel, against a libc that plays the doors, and outside akbox."""

from __future__ import annotations

import asyncio
import builtins
import ctypes
import errno
import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel_kit import Box, event

SDK = Path(__file__).parents[2] / "sdk" / "python"
sys.path.insert(0, str(SDK))

import authority_nanos as sdk  # noqa: E402
from authority_nanos import AsyncAuthorityKernel, AuthorityKernel, Handle  # noqa: E402
from authority_nanos.errors import error_class  # noqa: E402
from authority_nanos.transport import FIRST_CAPACITY, PRCTL_BASE, PRCTL_FETCH, Doors  # noqa: E402

from akbox.kernel.codes import Code  # noqa: E402


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    made.close()


@pytest.fixture
def ak(box: Box) -> AuthorityKernel:
    return AuthorityKernel(lambda nr, request: _pair(box, nr, request))


def _pair(box: Box, nr: int, request: bytes) -> tuple[int, bytes]:
    reply = box.kernel.call(box.kernel.root, nr, request)
    return reply.errno, reply.body


def test_the_original_example(ak: AuthorityKernel) -> None:
    """As printed in the README of the project that this one follows (its parts that exist)."""
    handle = ak.alloc("counter", b'{"value": 0}')
    data = ak.read(handle)
    ak.write(handle, b'[{"op": "set", "path": "/value", "value": 1}]')
    assert data == b'{"value":0}'
    assert ak.read(handle) == b'{"value":1}'
    ak.delete(handle)
    assert ak.authorize("READ", "/etc/passwd") is False
    status = ak.budget_status("tokens")
    assert (status["used"], status["limit"]) == (0, 1_000_000)
    with pytest.raises(sdk.OperationDeniedError) as caught:
        ak.call_tool("http_get", {"url": "https://example.com"})
    assert (caught.value.name, caught.value.suggested_fix) == ("POLICY_DENY", 'tools.allow = ["http_get"]')
    with pytest.raises(sdk.InferenceError) as no_model:
        ak.inference("m", "What is 2+2?")
    assert (no_model.value.name, no_model.value.errno) == ("NO_UPSTREAM", errno.EIO)


def test_heap(ak: AuthorityKernel) -> None:
    handle = ak.alloc("t", {"a": [1, "é"]})
    assert handle == Handle(1, 1)
    assert ak.read(handle) == '{"a":[1,"é"]}'.encode()
    assert ak.read_object(handle.id)["type"] == "t"
    assert ak.write(handle, [{"op": "add", "path": "/a/-", "value": 2}], expected_version=handle.version) == 2
    assert handle.version == 1  # a value: nothing moves it
    with pytest.raises(sdk.ConflictError) as caught:
        ak.write(handle, '[{"op":"remove","path":"/a"}]', expected_version=handle.version)
    assert caught.value.details == {"version": 2}
    assert ak.read(ak.alloc("t")) == b"null"
    assert ak.read(ak.alloc("t", "text")) == b'"text"'
    with pytest.raises(sdk.InvalidArgumentError, match="not JSON"):
        ak.alloc("t", b"{")
    results = ak.batch([{"op": "alloc", "type": "t", "value": 1}, {"op": "delete", "ptr": handle.id}])
    assert results[1] == {"deleted": True}
    with pytest.raises(sdk.NotFoundError):
        ak.read(handle)
    with pytest.raises(LookupError):
        ak.delete(handle)
    assert len(ak.query("objects", type="t")["objects"]) == 3
    with pytest.raises(ValueError, match="no budget"):
        ak.budget_status("love")
    with pytest.raises(sdk.CapabilityError) as refused:
        ak.syscall(sdk.Syscall.READ, {"ptr": 1}, cap="akc1.x.y")
    assert refused.value.name == "CAP_INVALID"


def test_authorize(ak: AuthorityKernel, box: Box) -> None:
    assert ak.authorize("read", "/app/x")
    assert ak.authorize("FS.WRITE", "/app/out/../out/x")
    assert not ak.authorize("fs.write", "/app/x")
    assert ak.authorize("net.connect", "dns:api.example.com:443")
    details = ak.authorize_details("READ", "/etc/../etc/passwd")
    assert not details
    assert (details.operation, details.target, details.missing_cap, details.rule) == (
        "fs.open", os.path.realpath("/etc/passwd"), "fs.read", None,
    )  # fmt: skip
    assert details.suggested_fix
    assert ak.get_last_denial() is None  # asking is not being refused
    box.kernel.record(box.kernel.root, [event("/etc/shadow", allow=False)])
    denial = ak.get_last_denial()
    assert denial is not None
    assert (denial.operation, denial.target, denial.capability_required, denial.errno) == (
        "fs.open", "/etc/shadow", "fs.read", errno.EACCES,
    )  # fmt: skip
    assert denial.suggestion == denial.suggested_fix


def test_the_rest(ak: AuthorityKernel) -> None:
    with ak as inside:
        inside.init()
        assert inside.budget.remaining("tool_calls") == 1000
        assert inside.budget.remaining("cpu_ns") is None
        assert set(inside.budget.status()) == set(ak.budget_status())
        assert inside.budget.history(5)[-1]["tokens"] == 0
    point = ak.commit()
    entries = ak.audit_query(from_seq=1, limit=2)
    assert [e["seq"] for e in entries] == [1, 2]
    assert ak.audit_logs({"op": "COMMIT"})[0]["seq"] == point["seq"] + 1
    denied: list[tuple[str, tuple[object, ...]]] = [
        ("http_request", ("GET", "http://x")), ("http_request", ("post", "http://x", "body")), ("tool_call", ("x",)),
    ]  # fmt: skip
    for name, args in denied:
        with pytest.raises(sdk.OperationDeniedError, match=r"tools\.allow"):
            getattr(ak, name)(*args)
    for method, body in (("GET", "body"), ("DELETE", None)):
        with pytest.raises(sdk.InvalidArgumentError, match="POST requests"):
            ak.http_request(method, "http://x", body)


def test_files(ak: AuthorityKernel, box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "f")
    ak.file_write(path, b"12345")
    assert ak.file_read(path) == b"12345"
    assert ak.file_read(path, max_size=5) == b"12345"
    with pytest.raises(sdk.BufferOverflowError):
        ak.file_read(path, max_size=4)
    with pytest.raises(sdk.NotFoundError):
        ak.file_read(path + "x")
    with pytest.raises(IsADirectoryError):
        ak.file_read(str(tmp_path))

    def refused(*_args: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(builtins, "open", refused)
    with pytest.raises(sdk.OperationDeniedError) as plain:
        ak.file_read(path)
    assert plain.value.missing_cap is None  # by the file's own mode: akbox refused nothing
    monkeypatch.undo()
    box.kernel.record(box.kernel.root, [event(os.path.realpath(path), allow=False)])
    box.kernel.flush_events()
    denial = ak.get_last_denial()
    monkeypatch.setattr("authority_nanos.files.open", refused, raising=False)
    with pytest.raises(sdk.OperationDeniedError) as caught:
        ak.file_write(path, b"")
    assert denial is not None
    assert (caught.value.missing_cap, caught.value.trace_id) == ("fs.read", denial.trace_id)
    assert caught.value.suggested_fix in str(caught.value)


def test_every_code_has_an_exception_of_the_tree() -> None:
    for code in Code:
        kind = error_class(code)
        assert issubclass(kind, sdk.AuthorityKernelError)
        assert kind is not sdk.AuthorityKernelError or code in (Code.LOG_CORRUPT, Code.IPC_INVALID, Code.SEQ_GAP), code
    assert error_class(-4201) is sdk.OperationDeniedError
    assert issubclass(sdk.TimeoutError, builtins.TimeoutError)
    assert sdk.LibakError is sdk.AuthorityKernelError


def test_async_twin(box: Box) -> None:
    async def work() -> None:
        async with AsyncAuthorityKernel(lambda nr, request: _pair(box, nr, request)) as ak:
            handles = await asyncio.gather(*(ak.alloc("t", {"n": n}) for n in range(8)))
            assert sorted(h.id for h in handles) == list(range(1, 9))
            assert await ak.write(handles[0], [{"op": "set", "path": "/n", "value": 9}]) == 2
            assert await ak.read(handles[0]) == b'{"n":9}'
            assert await ak.authorize("READ", "/etc/passwd") is False
            with pytest.raises(sdk.NotFoundError):
                await ak.read(99)

    asyncio.run(work())


def test_the_async_twin_has_every_call() -> None:
    def public(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(f).parameters)
            for name, f in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_") and name not in ("init", "shutdown", "audit_logs")
        }

    assert public(AsyncAuthorityKernel) == public(AuthorityKernel)


class FakeFunction:
    """A libc function: takes any attribute, calls back."""

    def __init__(self, body: Any) -> None:
        self.body = body

    def __call__(self, *args: Any) -> int:
        return int(self.body(*args))


class FakeLibc:
    """The doors as the supervisor serves them: one of them, and a reply that must be fetched when it does not fit."""

    def __init__(self, door: str, box: Box) -> None:
        self.door, self.box, self.kept, self.calls = door, box, threading.local(), []
        self.prctl = FakeFunction(self._prctl)
        self.syscall = FakeFunction(self._syscall)

    def _prctl(self, option: int, req: bytes, req_len: int, resp: int, cap: int) -> int:
        if self.door != "prctl" or option & ~0xFFFF != PRCTL_BASE:
            return _fail(errno.EINVAL)
        return self._serve(option & 0x7FFF, req[:req_len], resp, cap, bool(option & PRCTL_FETCH))

    def _syscall(self, nr: int, agent: object, req: bytes, req_len: int, resp: int, cap: int, flags: int) -> int:
        if self.door != "raw":
            return _fail(errno.ENOSYS)
        assert agent is None
        return self._serve(nr, req[:req_len], resp, cap, flags == 1)

    def _serve(self, nr: int, request: bytes, resp: int, cap: int, fetch: bool) -> int:
        self.calls.append((nr, fetch, cap))
        if fetch:
            error, body = 0, self.kept.body
        else:
            error, body = _pair(self.box, nr, request)
        if error:
            ctypes.memmove(resp, (body[: cap - 1] + b"\0"), min(len(body), cap - 1) + 1)
            return _fail(error)
        if len(body) > cap:
            self.kept.body = body
            return _fail(errno.EMSGSIZE)
        ctypes.memmove(resp, body, len(body))
        return len(body)


def _fail(error: int) -> int:
    ctypes.set_errno(error)
    return -1


@pytest.mark.parametrize("door", ["prctl", "raw"])
def test_both_doors(box: Box, door: str) -> None:
    libc = FakeLibc(door, box)
    ak = AuthorityKernel(Doors(libc))
    with pytest.raises(sdk.InvalidArgumentError):  # EINVAL with a reply is an answer, not a missing door
        ak.syscall(sdk.Syscall.READ, {"nonsense": 1})
    with pytest.raises(sdk.NotSupportedError):  # and so is ENOSYS
        ak.syscall(1045)
    handle = ak.alloc("t", "x" * 700_000)
    libc.calls.clear()
    assert len(ak.read(handle)) == 700_002
    assert [c for c in libc.calls if c[0] == 1024] == [
        (1024, False, FIRST_CAPACITY), (1024, True, FIRST_CAPACITY * 8), (1024, True, FIRST_CAPACITY * 64),
    ]  # fmt: skip
    assert len([e for e in box.entries() if e["name"] == "READ" and e["decision"] == "allow"]) == 1  # not done again


def test_a_reply_past_all_bounds(box: Box) -> None:
    libc = FakeLibc("prctl", box)
    libc._serve = lambda *_args: _fail(errno.EMSGSIZE)  # type: ignore[method-assign, assignment]
    with pytest.raises(sdk.BufferOverflowError, match=str(FIRST_CAPACITY * 512)):
        AuthorityKernel(Doors(libc)).commit()


def test_an_error_without_a_reply(box: Box) -> None:
    libc = FakeLibc("prctl", box)
    libc._serve = lambda *_args: _fail(errno.EFAULT)  # type: ignore[method-assign, assignment]
    with pytest.raises(sdk.AuthorityKernelError, match="Bad address") as caught:
        AuthorityKernel(Doors(libc)).commit()
    assert (caught.value.errno, caught.value.code) == (errno.EFAULT, 0)


def test_doors_from_eight_threads(box: Box) -> None:
    """Each thread has its own buffer and errno: no answer reaches the wrong one."""
    ak = AuthorityKernel(Doors(FakeLibc("prctl", box)))
    handles = [ak.alloc("t", n) for n in range(8)]
    wrong: list[object] = []

    def work(n: int) -> None:
        for _ in range(20):
            if ak.read(handles[n]) != str(n).encode():
                wrong.append(n)
            try:
                ak.read(1000 + n)
            except sdk.NotFoundError as error:
                if str(1000 + n) not in error.message:
                    wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_outside_akbox() -> None:
    """The real libc: prctl says EINVAL, the raw number ENOSYS."""
    for call in (lambda ak: ak.alloc("t", 1), lambda ak: ak.budget_status(), lambda ak: ak.call_tool("x")):
        with pytest.raises(sdk.NotUnderAkboxError, match="akbox run -- python"):
            call(AuthorityKernel())


def test_import_is_light_and_needs_nothing() -> None:
    program = "import sys; import authority_nanos; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(SDK)}
    )
    loaded = set(done.stdout.split())
    assert "authority_nanos" in loaded
    assert not loaded & {"asyncio", "typing", "dataclasses", "inspect", "msgspec", "akbox", "subprocess", "socket"}


def test_the_sdk_is_python_3_8() -> None:
    """Parsed with the grammar of 3.8, and no builtin generics or unions at run time."""
    import ast

    for path in (SDK / "authority_nanos").glob("*.py"):
        text = path.read_text()
        ast.parse(text, feature_version=(3, 8))
        assert "from __future__ import annotations" in text
        assert "removeprefix" not in text
