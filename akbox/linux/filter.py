"""Compiles a FilterPlan to seccomp-BPF with libseccomp (through pyseccomp). What is decided is in syscalls.py.

libseccomp compiles the step from architecture and number to one of a few returns, as a binary tree. Two things it is
not given:
- USER_NOTIF as default and as answer to a wrong architecture: it does not take it there. It gets errnos that no call
  returns in their place (so do the calls with argument rules), and those return instructions are replaced.
- comparisons of arguments: libseccomp 2.5 merges equal blocks of different calls, and when the merged blocks expect
  different values in the accumulator it jumps past a load. Measured: socket(AF_INET, SOCK_STREAM, IPPROTO_ICMP) was
  allowed in the arm64 filter. Argument rules are laid out below instead, one after the other, sharing nothing.

Calls are given by number: libseccomp's own names end where its release ended, numbers do not.
"""

import os
import struct
from collections.abc import Iterator
from functools import lru_cache

import pyseccomp

from akbox.linux.syscalls import ARCHES, AUTHORITY_NUMBERS, FilterPlan, Rule, decisions

RET_TRAP = 0x0003_0000
RET_USER_NOTIF = 0x7FC0_0000
RET_TRACE = 0x7FF0_0000
RET_RECORD = RET_TRACE | 1  # the tracer tells its own TRACE from others by the data (native/tracer.c)
RET_ALLOW = 0x7FFF_0000

Instruction = tuple[int, int, int, int]  # code, jt, jf, k of struct sock_filter

_SOCK_FILTER = struct.Struct("=HBBI")
_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_LOAD, _AND, _EQUAL, _JUMP, _RETURN, _RETURN_A = 0x20, 0x54, 0x15, 0x05, 0x06, 0x16
_OFFSET_ARGS = 16  # of seccomp_data: nr, arch, instruction_pointer, args[6]

_DEFAULT = 4000  # Linux errnos end at 133, MAX_ERRNO is 4095
_OTHER_ARCH = 4001
_FIRST_SECTION = 3000
_BINARY_TREE = 2  # SCMP_FLTATR_CTL_OPTIMIZE: about 9 comparisons to any number instead of up to 300


class FilterError(RuntimeError):
    """libseccomp produced something other than what was asked of it; the run must not start."""


@lru_cache(maxsize=16)
def compile_filter(plan: FilterPlan) -> bytes:
    """An array of struct sock_filter in this machine's byte order, ready for seccomp(2).

    Also for an architecture that is not this machine's (numbers are only numbers; the one architecture check is
    rewritten), so that arm64 filters can be tested anywhere. Raises FilterError, or OSError from libseccomp.
    """
    supervisor = RET_USER_NOTIF if plan.notify else RET_TRACE
    sections = [
        (d.nr, _section(d.rules, supervisor)) for d in decisions(plan).values() if d.rules
    ]  # marker of section i: _FIRST_SECTION + i
    tree = list(instructions(_number_tree(plan, [nr for nr, _ in sections])))
    program = _link(tree, [code for _, code in sections], plan, supervisor)
    if len(program) > _MAX_INSTRUCTIONS:
        raise FilterError(f"the compiled filter has {len(program)} instructions, more than the kernel takes")
    return b"".join(_SOCK_FILTER.pack(*instruction) for instruction in program)


def instructions(program: bytes) -> Iterator[Instruction]:
    """The instructions of a compiled filter."""
    return _SOCK_FILTER.iter_unpack(program)


def _number_tree(plan: FilterPlan, conditional: list[int]) -> bytes:
    """libseccomp's part: number → ALLOW, TRAP, the marker of a section, or the default's marker."""
    rules = pyseccomp.SyscallFilter(pyseccomp.ERRNO(_DEFAULT))
    rules.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.ERRNO(_OTHER_ARCH))
    rules.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, _BINARY_TREE)
    for decision in decisions(plan).values():
        if decision.always:
            rules.add_rule_exactly(pyseccomp.ALLOW, decision.nr)
        elif decision.recorded:
            rules.add_rule_exactly(pyseccomp.TRACE(1), decision.nr)
    for index, nr in enumerate(conditional):
        rules.add_rule_exactly(pyseccomp.ERRNO(_FIRST_SECTION + index), nr)
    if plan.traced:
        for nr in AUTHORITY_NUMBERS:
            rules.add_rule_exactly(pyseccomp.TRAP, nr)
    with open(os.memfd_create("akbox-filter"), "w+b") as out:
        rules.export_bpf(out)
        out.seek(0)
        return out.read()


def _section(rules: tuple[Rule, ...], supervisor: int) -> list[Instruction]:
    """One call's rules in order: each ends in ALLOW or falls through to the next, the last to the supervisor."""
    code: list[Instruction] = []
    for rule in rules:
        tests = [test for match in rule for test in _tests(*match)]
        size = sum(len(test) for test in tests) + 1  # and its RET ALLOW
        start = len(code)
        for *loads, (op, jt, _, k) in tests:
            code += loads
            code.append((op, jt, start + size - len(code) - 1, k))
        code.append((_RETURN, 0, 0, RET_ALLOW))
    return [*code, (_RETURN, 0, 0, supervisor)]


def _tests(arg: int, mask: int, value: int) -> Iterator[list[Instruction]]:
    """The halves of an argument that the mask looks at, low half first (little-endian): load, mask, compare."""
    for shift, offset in ((0, 0), (32, 4)):
        half = mask >> shift & 0xFFFF_FFFF
        if not half:
            continue
        test = [(_LOAD, 0, 0, _OFFSET_ARGS + 8 * arg + offset)]
        if half != 0xFFFF_FFFF:
            test.append((_AND, 0, 0, half))
        yield [*test, (_EQUAL, 0, 0, value >> shift & 0xFFFF_FFFF)]


def _link(
    tree: list[Instruction], sections: list[list[Instruction]], plan: FilterPlan, supervisor: int
) -> list[Instruction]:
    """Tree and sections as one program: markers become jumps to their section or the supervisor's return, and the
    architecture becomes the plan's. Every return must be one that was asked for."""
    jumps, at = {}, len(tree)
    for index, code in enumerate(sections):
        jumps[pyseccomp.ERRNO(_FIRST_SECTION + index)] = at
        at += len(code)
    defaults = {pyseccomp.ERRNO(_DEFAULT), pyseccomp.ERRNO(_OTHER_ARCH)}
    native, seen, arch_checks = pyseccomp.system_arch(), set(), 0
    out: list[Instruction] = []
    for index, (op, jt, jf, k) in enumerate(tree):
        if op == _RETURN:
            seen.add(k)
        if op == _RETURN and k in jumps:
            out.append((_JUMP, 0, 0, jumps[k] - index - 1))
        elif op == _RETURN and k in defaults:
            out.append((_RETURN, 0, 0, supervisor))
        elif op == _RETURN_A or (op == _RETURN and k not in (RET_ALLOW, RET_TRAP, RET_RECORD)):
            raise FilterError(f"the compiled filter returns {k:#x}, which nobody asked for")
        elif op == _EQUAL and k == native:
            arch_checks += 1
            out.append((op, jt, jf, ARCHES[plan.arch]))
        else:
            out.append((op, jt, jf, k))
    if arch_checks != 1 or not (defaults | jumps.keys()) <= seen:
        raise FilterError("the compiled filter lacks its architecture check, its default or a call")
    return [*out, *(instruction for code in sections for instruction in code)]
