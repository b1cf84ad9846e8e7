"""What a 64-bit ELF file asks the dynamic linker for, and where that would be found. No ldd: that may run the file.

Sources: elf(5), ld.so(8), and the "new format" of ld.so.cache in glibc's dl-cache.h.
"""

import os
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_DYN = struct.Struct("<qQ")
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
_MAX_TABLE_BYTES = 1 << 20  # program headers, dynamic section and strings of a real file are far smaller
_CACHE_MAGIC = b"glibc-ld.so.cache1.1"
_CACHE_HEADER_BYTES, _CACHE_ENTRY = 48, struct.Struct("<iIIIQ")
_DEFAULT_DIRS = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")  # the last three are musl's


class Elf(NamedTuple):
    """interpreter: PT_INTERP or "". search: directories of RPATH and RUNPATH, $ORIGIN expanded."""

    interpreter: str
    needed: tuple[str, ...]
    search: tuple[str, ...]


def closure(path: str) -> tuple[str, tuple[str, ...]]:
    """(interpreter, libraries) that the ELF file at `path` starts with, as canonical paths; ("", ()) for another file.

    A library that is not found is left out: the program will say so itself. So are others of that name that the linker
    passes over (32-bit ones).
    """
    main = read_elf(path)
    if main is None:
        return "", ()
    found: dict[str, None] = {}
    queue = [(name, main.search) for name in main.needed]
    while queue:
        name, search = queue.pop()
        for library in _find(name, (*search, *main.search)):
            elf = read_elf(library) if library not in found else None
            if elf is not None:
                found[library] = None
                queue += [(needed, elf.search) for needed in elf.needed]
    interpreter = os.path.realpath(main.interpreter) if main.interpreter else ""
    return interpreter, tuple(found)


def read_elf(path: str) -> Elf | None:
    """None when the file is not a 64-bit little-endian ELF file, or cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        info = os.fstat(fd)
        return _read(fd, os.path.realpath(path), (info.st_dev, info.st_ino, info.st_mtime_ns, info.st_size))
    except (struct.error, OSError):
        return None
    finally:
        os.close(fd)


_known: dict[tuple[str, tuple[int, ...]], Elf | None] = {}
_MAX_KNOWN = 512


def _read(fd: int, path: str, identity: tuple[int, ...]) -> Elf | None:
    """Remembers by the file's identity: the libraries of one interpreter are the same run after run."""
    key = (path, identity)
    if key not in _known:
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
        _known[key] = _parse(fd, path)
    return _known[key]


def _parse(fd: int, path: str) -> Elf | None:
    head = os.pread(fd, _EHDR.size, 0)
    if len(head) < _EHDR.size or head[:4] != b"\x7fELF" or head[4:6] != b"\x02\x01":
        return None
    fields = _EHDR.unpack(head)
    offset, entry_bytes, count = fields[5], fields[9], fields[10]
    if entry_bytes != _PHDR.size:
        return None
    segments = list(_PHDR.iter_unpack(_table(fd, offset, count * entry_bytes)))
    interpreter, dynamic = "", b""
    for kind, _, where, _, _, size, _, _ in segments:
        if kind == _PT_INTERP:
            interpreter = os.fsdecode(_table(fd, where, size).split(b"\0")[0])
        elif kind == _PT_DYNAMIC:
            dynamic = _table(fd, where, size - size % _DYN.size)
    tags = list(_DYN.iter_unpack(dynamic))
    strings = _strings(fd, segments, dict(tags).get(_DT_STRTAB))
    named = [(tag, os.fsdecode(strings[value:].split(b"\0", 1)[0])) for tag, value in tags if tag in _STRING_TAGS]
    search = [text for tag, text in named if tag != _DT_NEEDED]
    return Elf(
        interpreter,
        tuple(text for tag, text in named if tag == _DT_NEEDED),
        tuple(_expand(part, path) for text in search for part in text.split(":") if part),
    )


_STRING_TAGS = (_DT_NEEDED, _DT_RPATH, _DT_RUNPATH)


def _table(fd: int, offset: int, size: int) -> bytes:
    if size > _MAX_TABLE_BYTES:
        raise struct.error("table too large")
    data = os.pread(fd, size, offset)
    if len(data) != size:
        raise struct.error("file too short")
    return data


def _strings(fd: int, segments: list[tuple[int, ...]], address: int | None) -> bytes:
    """The dynamic string table: from its address to the end of its segment, cut at the size that matters."""
    for kind, _, where, virtual, _, size, _, _ in segments:
        if address is not None and kind == _PT_LOAD and virtual <= address < virtual + size:
            skip = address - virtual
            return os.pread(fd, min(size - skip, _MAX_TABLE_BYTES), where + skip)
    return b""


def _expand(text: str, path: str) -> str:
    for name, value in (("ORIGIN", os.path.dirname(path)), ("LIB", "lib64"), ("PLATFORM", os.uname().machine)):
        text = text.replace(f"${{{name}}}", value).replace(f"${name}", value)
    return text


def _find(name: str, search: tuple[str, ...]) -> Iterator[str]:
    """Canonical paths that the linker may choose for `name`: every variant that the cache lists (hwcaps), else from the
    first directory that has it."""
    if "/" in name:
        if os.path.exists(name):
            yield os.path.realpath(name)
        return
    for directory in search:
        candidate = os.path.join(directory, name)
        if os.path.exists(candidate):
            yield os.path.realpath(candidate)
            return
    cached = [path for path in library_cache().get(name, ()) if os.path.exists(path)]
    if cached:
        yield from {os.path.realpath(path): None for path in cached}
        return
    for directory in _DEFAULT_DIRS:
        candidate = os.path.join(directory, name)
        if os.path.exists(candidate):
            yield os.path.realpath(candidate)
            return


def library_cache(path: str = "/etc/ld.so.cache") -> dict[str, tuple[str, ...]]:
    """Library name → paths in the linker's cache; empty where there is none (musl, static images)."""
    try:
        info = os.stat(path)
    except OSError:
        return {}
    return _library_cache(path, info.st_mtime_ns, info.st_size)


@lru_cache(maxsize=2)
def _library_cache(path: str, mtime_ns: int, size: int) -> dict[str, tuple[str, ...]]:
    del mtime_ns, size  # the key of this cache
    with open(path, "rb") as file:
        data = file.read()
    start = data.find(_CACHE_MAGIC)
    if start < 0:
        return {}
    data = data[start:]
    (count,) = struct.unpack_from("<I", data, len(_CACHE_MAGIC))
    entries = data[_CACHE_HEADER_BYTES : _CACHE_HEADER_BYTES + count * _CACHE_ENTRY.size]
    result: dict[str, tuple[str, ...]] = {}
    for _, key, value, _, _ in _CACHE_ENTRY.iter_unpack(entries[: len(entries) - len(entries) % _CACHE_ENTRY.size]):
        name, where = (os.fsdecode(data[at : data.find(b"\0", at)]) for at in (key, value))
        result[name] = (*result.get(name, ()), where)
    return result
