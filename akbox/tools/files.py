"""Files for tools, judged as the agent's own and opened with no more rights than it has.

What is decided about is the object, not the text of a path: it is opened by O_PATH first, the kernel says where that
is, and what is read or written afterwards is that object. A link that is put in the way in between changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from akbox.kernel.codes import CallError, Code
from akbox.kernel.effect import Effect
from akbox.kernel.ops import NEED_READ, NEED_WRITE, Op
from akbox.tools.hostcalls import HostCalls, List, Path, Read, Write, decoded, encoded
from akbox.tools.privilege import as_the_agent

if TYPE_CHECKING:
    from collections.abc import Callable

# Kernel interfaces: there the supervisor would be seen where the agent asked about itself.
_NOT_FOR_TOOLS = ("/proc", "/sys", "/dev")
_LINKS_MAX = 8
_ERRORS = {
    errno.ENOENT: Code.NOT_FOUND,
    errno.EEXIST: Code.NAME_EXISTS,
}


def read(host: HostCalls, request: Read) -> dict[str, Any]:
    """{content, encoding, size, truncated}."""
    with _errors(request.path), _object(host, request.path) as (fd, path, info):
        _judge(host, Op.FS_OPEN, path, NEED_READ)
        _regular(info, path)

        def work() -> tuple[bytes, int]:
            with open(_again(fd, os.O_RDONLY), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                return os.pread(file.fileno(), request.max_bytes, request.offset), size

        data, size = as_the_agent(work)
        return {**encoded(data, request.encoding), "size": size, "truncated": request.offset + len(data) < size}


def write(host: HostCalls, request: Write) -> dict[str, Any]:
    """{written}. Makes the file when there is none; its directory has to be there."""
    data = decoded(request.content, request.encoding)
    with _errors(request.path):
        directory, name = _place(host, request.path)
        with contextlib.ExitStack() as undo:
            folder = as_the_agent(lambda: os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            undo.callback(os.close, folder)
            where = _where(folder)
            path = f"{where.rstrip('/')}/{name}"
            _not_kernel(host, path)
            _judge(host, Op.FS_OPEN, path, NEED_WRITE)

            def work() -> None:
                with _to_write(folder, name, append=request.append) as fd:
                    left = memoryview(data)
                    while left:
                        left = left[os.write(fd, left) :]

            as_the_agent(work)
    return {"written": len(data)}


def list_(host: HostCalls, request: List) -> dict[str, Any]:
    """{entries: [{name, type}], truncated}, in order of names."""
    with _errors(request.path), _object(host, request.path) as (fd, path, info):
        _judge(host, Op.FS_OPEN, path, NEED_READ)
        if not stat.S_ISDIR(info.st_mode):
            raise CallError(Code.TOOL_FAIL, f"{path} is no directory")

        def work() -> list[dict[str, str]]:
            inside = _again(fd, os.O_RDONLY | os.O_DIRECTORY)
            try:
                with os.scandir(inside) as entries:
                    found = []
                    for entry in entries:
                        found.append({"name": os.fsencode(entry.name).decode("utf-8", "replace"), "type": _kind(entry)})
                        if len(found) > 10 * request.limit:
                            break
                    return found
            finally:
                os.close(inside)

        found = sorted(as_the_agent(work), key=lambda e: e["name"])
        return {"entries": found[: request.limit], "truncated": len(found) > request.limit}


def stat_(host: HostCalls, request: Path) -> dict[str, Any]:
    """{type, size, mode, mtime_ns}."""
    with _errors(request.path), _object(host, request.path) as (_fd, path, info):
        _judge(host, Op.FS_STAT, path, NEED_READ)
        return {
            "type": _type(info.st_mode), "size": info.st_size, "mode": stat.S_IMODE(info.st_mode),
            "mtime_ns": info.st_mtime_ns,
        }  # fmt: skip


def _judge(host: HostCalls, op: Op, path: str, need: int) -> None:
    host.allow(Effect(op=op, target=path, need=need, detail=host.detail(), pid=host.pid), "fs")


@contextlib.contextmanager
def _object(host: HostCalls, path: str) -> Iterator[tuple[int, str, os.stat_result]]:
    """The object a path leads to, by O_PATH; where it is; what it is."""
    fd = as_the_agent(lambda: os.open(_absolute(host, path), os.O_PATH | os.O_CLOEXEC))
    try:
        where = _where(fd)
        _not_kernel(host, where)
        yield fd, where, os.fstat(fd)
    finally:
        os.close(fd)


def _absolute(host: HostCalls, path: str) -> str:
    if "\0" in path:
        raise CallError(Code.SCHEMA_INVALID, "path: a NUL byte")
    return os.path.join(host.box.cwd, path)


def _where(fd: int) -> str:
    """The object's name. Raises CallError for one that has none (any more)."""
    path = os.readlink(f"/proc/self/fd/{fd}")
    info = os.fstat(fd)
    if not path.startswith("/") or info.st_nlink == 0 or path.endswith(" (deleted)"):
        raise CallError(Code.NOT_FOUND, "it has no name any more")
    return path


def _not_kernel(host: HostCalls, path: str) -> None:
    if any(path == top or path.startswith(f"{top}/") for top in _NOT_FOR_TOOLS):
        effect = Effect(op=Op.FS_OPEN, target=path, need=NEED_READ, detail=host.detail(), pid=host.pid)
        raise host.refuse(effect, "tools have no kernel interfaces", "fs")


def _place(host: HostCalls, path: str) -> tuple[str, str]:
    """(directory, name) of what is to be written, links at its end followed. Raises CallError."""
    at = _absolute(host, path)
    for _ in range(_LINKS_MAX):
        directory, name = os.path.split(at)
        if name in ("", ".", ".."):
            raise CallError(Code.SCHEMA_INVALID, f"{path} names no file")
        try:
            at = os.path.join(directory, as_the_agent(lambda at=at: os.readlink(at)))  # type: ignore[misc]
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):  # no link, or nothing there yet
                return directory, name
            raise
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


@contextlib.contextmanager
def _to_write(folder: int, name: str, *, append: bool) -> Iterator[int]:
    """The file of this name in a directory that was judged: a link that has come in its place meanwhile, a device, a
    pipe are refused."""
    flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_APPEND if append else 0)
    fd = os.open(name, flags | os.O_CREAT, 0o666, dir_fd=folder)
    try:
        _regular(os.fstat(fd), name)
        if not append:
            os.ftruncate(fd, 0)
        yield fd
    finally:
        os.close(fd)


def _again(fd: int, flags: int) -> int:
    """The same object, opened: no name is looked up."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC | os.O_NONBLOCK)


def _regular(info: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise CallError(Code.TOOL_FAIL, f"{path} is a {_type(info.st_mode)}, not a file")


def _type(mode: int) -> str:
    kinds: tuple[tuple[str, Callable[[int], bool]], ...] = (
        ("file", stat.S_ISREG), ("directory", stat.S_ISDIR), ("link", stat.S_ISLNK), ("fifo", stat.S_ISFIFO),
        ("socket", stat.S_ISSOCK),
    )  # fmt: skip
    return next((name for name, is_one in kinds if is_one(mode)), "device")


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "link"
    if entry.is_dir(follow_symlinks=False):
        return "directory"
    return "file" if entry.is_file(follow_symlinks=False) else "other"


@contextlib.contextmanager
def _errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CallError(_ERRORS.get(error.errno or 0, Code.TOOL_FAIL), f"{path}: {error.strerror}") from error
