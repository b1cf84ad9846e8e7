"""What can be done, as numbers: the op of every effect and of every authority call (u16, design 02).

Not for deciding anything: a number and its name, shared by the log, the ring (native/ring.h) and the kernel.
"""

from enum import IntEnum, unique


@unique
class Op(IntEnum):
    """Effect ops (0x100-0x505), authority calls (their system call number) and the log's own ops (0xFFFD-0xFFFF)."""

    FS_OPEN = 0x100
    FS_UNLINK = 0x101
    FS_RENAME = 0x102
    FS_MKDIR = 0x103
    FS_RMDIR = 0x104
    FS_STAT = 0x105
    FS_METADATA = 0x106
    FS_LINK = 0x107
    FS_TRUNCATE = 0x108
    NET_CONNECT = 0x200
    NET_DNS = 0x201
    NET_BIND = 0x202
    NET_LISTEN = 0x203
    NET_ACCEPT = 0x204
    NET_SEND = 0x205
    EXEC = 0x300
    SIGNAL = 0x301
    SYS_REFUSED = 0x3FF  # a system call that no policy can grant, by name: "syscall:mount"
    # Not 0x400, where the authority calls begin (1024).
    TOOL_CALL = 0x500
    WASM_RUN = 0x501
    INFER = 0x502
    AGENT_SEND = 0x503
    SECRET_GET = 0x504
    HOST_CALL = 0x505  # what a tool asks of akbox: "hostcall:http_request"

    READ = 1024
    ALLOC = 1025
    WRITE = 1026
    DELETE = 1027
    QUERY = 1028
    BATCH = 1029
    COMMIT = 1030
    CALL = 1031
    SPAWN = 1032
    SEND = 1033
    RECV = 1034
    RESPOND = 1035
    ASSERT = 1036
    INFERENCE = 1037
    BUDGET_STATUS = 1038
    BUDGET_HISTORY = 1039
    LAST_ERROR = 1040
    TRACE = 1041
    POLICY_SUGGEST = 1042
    CAP = 1043
    APPROVAL = 1044

    LIFECYCLE = 0xFFFD
    POLICY_CHANGE = 0xFFFE
    REVOCATION = 0xFFFF


CALL_FIRST, CALL_LAST = 1024, 1044

NAMES: dict[int, str] = {
    Op.FS_OPEN: "fs.open",
    Op.FS_UNLINK: "fs.unlink",
    Op.FS_RENAME: "fs.rename",
    Op.FS_MKDIR: "fs.mkdir",
    Op.FS_RMDIR: "fs.rmdir",
    Op.FS_STAT: "fs.stat",
    Op.FS_METADATA: "fs.metadata",
    Op.FS_LINK: "fs.link",
    Op.FS_TRUNCATE: "fs.truncate",
    Op.NET_CONNECT: "net.connect",
    Op.NET_DNS: "net.dns",
    Op.NET_BIND: "net.bind",
    Op.NET_LISTEN: "net.listen",
    Op.NET_ACCEPT: "net.accept",
    Op.NET_SEND: "net.send",
    Op.EXEC: "exec",
    Op.SIGNAL: "signal",
    Op.SYS_REFUSED: "sys.refused",
    Op.TOOL_CALL: "tool",
    Op.WASM_RUN: "wasm",
    Op.INFER: "infer",
    Op.AGENT_SEND: "send",
    Op.SECRET_GET: "secret",
    Op.HOST_CALL: "hostcall",
    Op.LIFECYCLE: "lifecycle",
    Op.POLICY_CHANGE: "policy.change",
    Op.REVOCATION: "revocation",
} | {int(op): op.name for op in Op if CALL_FIRST <= op <= CALL_LAST}

BY_NAME: dict[str, Op] = {name: Op(number) for number, name in NAMES.items()}

# What older clients and people write for an effect: (op, need bits, 0 where the op has none).
NEED_READ, NEED_WRITE, NEED_EXEC = 1, 2, 4
ALIASES: dict[str, tuple[Op, int]] = {
    "fs.open": (Op.FS_OPEN, NEED_READ),
    "fs.read": (Op.FS_OPEN, NEED_READ),
    "fs.write": (Op.FS_OPEN, NEED_WRITE),
    "fs.exec": (Op.EXEC, NEED_EXEC),
    "exec": (Op.EXEC, NEED_EXEC),
    "read": (Op.FS_OPEN, NEED_READ),
    "write": (Op.FS_OPEN, NEED_WRITE),
    "file_read": (Op.FS_OPEN, NEED_READ),
    "file_write": (Op.FS_OPEN, NEED_WRITE),
    "connect": (Op.NET_CONNECT, 0),
    "http": (Op.NET_CONNECT, 0),
    "dns": (Op.NET_DNS, 0),
    "bind": (Op.NET_BIND, 0),
    "listen": (Op.NET_LISTEN, 0),
    "tools.call": (Op.TOOL_CALL, 0),
    "call": (Op.TOOL_CALL, 0),
    "infer.call": (Op.INFER, 0),
    "inference": (Op.INFER, 0),
    "wasm.run": (Op.WASM_RUN, 0),
    "spawn": (Op.EXEC, NEED_EXEC),
}
# Every other effect by its own name; changes to a tree need write.
for _op in Op:
    if not CALL_FIRST <= _op <= CALL_LAST and _op <= Op.HOST_CALL:
        _need = NEED_WRITE if 0x101 <= _op <= 0x108 and _op != Op.FS_STAT else 0
        ALIASES.setdefault(NAMES[_op], (_op, NEED_READ if _op == Op.FS_STAT else _need))


def op_name(number: int) -> str:
    """The op's name in the log; `op:0x…` for a number this version does not know (a newer log)."""
    return NAMES.get(number) or f"op:{number:#x}"


def effect_op(what: str | int) -> tuple[Op, int]:
    """(op, need bits) for an effect named as in the log, as a policy section (`fs.read`), as older clients write it
    (`READ`), or by number. Raises ValueError for what names no effect."""
    if isinstance(what, int):
        return ALIASES[op_name(what)] if op_name(what) in ALIASES else _unknown(what)
    key = what.strip().lower()
    return ALIASES[key] if key in ALIASES else _unknown(what)


def _unknown(what: str | int) -> tuple[Op, int]:
    raise ValueError(f"{what!r} names no effect (try fs.read, fs.write, exec, net.connect, net.dns, tool, infer)")
