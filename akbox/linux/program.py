"""What a launch needs of the system call table under one FilterPlan: the filter, and what the enforcer is told.

Working it out takes libseccomp, which takes longer to load than the agent takes to start (ctypes looks for the library
with ldconfig and a compiler). So it is kept in the state directory, by what it was made of.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import msgspec

from akbox._native import sha256
from akbox.linux.argument_rules import FilterPlan
from akbox.linux.remembered import recall, remember

_SOURCES = ("syscalls_table.py", "argument_rules.py", "syscalls.py", "filter.py", "program.py")
_TRAPPED_BYTES = 64  # all numbers of calls, on both architectures, are below 512


class Program(msgspec.Struct, frozen=True):
    """bpf: an array of struct sock_filter. trapped: one bit for each call that some arguments send to the supervisor.
    refusals: packed (u32 nr, u32 errno). names: 32 bytes for each number. The last two are `_native.Enforcer`'s."""

    bpf: bytes
    trapped: bytes
    refusals: bytes
    names: bytes


@lru_cache(maxsize=16)
def program(plan: FilterPlan, state_dir: Path | None = None) -> Program:
    """Remembered in this process and in `state_dir`/filters. Raises FilterError, or OSError from libseccomp."""
    path = None if state_dir is None else state_dir / "filters" / _key(plan)
    kept = None if path is None else recall(path)
    if kept is not None:
        try:
            return msgspec.msgpack.decode(kept, type=Program)
        except msgspec.DecodeError:
            pass  # another layout under the same name: made anew, as if it were absent
    made = _make(plan)
    if path is not None:
        remember(path, msgspec.msgpack.encode(made))
    return made


def _key(plan: FilterPlan) -> str:
    """The plan, and every line of code that had a part in the result."""
    here = Path(__file__)
    sources = b"".join(here.with_name(name).read_bytes() for name in _SOURCES)
    return sha256(repr(plan).encode() + b"\0" + sources).hex()


def _make(plan: FilterPlan) -> Program:
    from akbox.linux.filter import compile_filter
    from akbox.linux.syscalls import decisions, name_cells, refusals

    bits = bytearray(_TRAPPED_BYTES)
    for nr, decision in decisions(plan).items():
        if not decision.always and not decision.recorded and nr < 8 * _TRAPPED_BYTES:
            bits[nr // 8] |= 1 << nr % 8
    return Program(compile_filter(plan), bytes(bits), refusals(plan), name_cells(plan.arch))
