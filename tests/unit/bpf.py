"""A plain interpreter of the classic BPF that seccomp runs: the tests' own reading of a compiled filter."""

import struct
from collections.abc import Sequence

from akbox.linux.filter import instructions

_JUMPS = {
    0x10: lambda a, k: a == k,
    0x20: lambda a, k: a > k,
    0x30: lambda a, k: a >= k,
    0x40: lambda a, k: bool(a & k),
}


def run(program: bytes, nr: int, arch: int, args: Sequence[int]) -> int:
    """The value that `program` returns for one call, as the kernel computes it (little-endian seccomp_data)."""
    data = struct.pack("<IIQ6Q", nr & 0xFFFF_FFFF, arch, 0x7F00_0000_1234, *args)
    code = list(instructions(program))
    accumulator, pc = 0, 0
    while True:
        op, jt, jf, k = code[pc]
        pc += 1
        if op == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif op == 0x54:  # BPF_ALU | BPF_AND | BPF_K
            accumulator &= k
        elif op == 0x06:  # BPF_RET | BPF_K
            return k
        elif op == 0x05:  # BPF_JMP | BPF_JA
            pc += k
        elif op & 0x0F == 0x05:  # BPF_JMP | … | BPF_K
            pc += jt if _JUMPS[op & 0xF0](accumulator, k) else jf
        else:
            raise AssertionError(f"unexpected instruction {op:#x}")
