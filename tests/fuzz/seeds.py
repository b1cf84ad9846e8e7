"""What the C targets begin with. `seeds.py policy CORPUS`: compiled policies, from the shipped presets and small ones.
`seeds.py calls|address CORPUS WORLD`: calls or addresses, and in WORLD the files and policy that agent.h is about."""

from __future__ import annotations

import sys
from pathlib import Path
from socket import AF_INET, AF_INET6, AF_NETLINK, AF_UNIX

from akbox.policy.compile import compile_policy
from akbox.policy.load import parse
from akbox.policy.presets import load_preset
from akbox.policy.rules import Context

CONTEXT = Context(workdir="/w", home="/h", tmp="/t", prefix="/usr", state_dirs=("/s",))
SMALL = (
    'fs.read = ["/a/**"]',
    'fs.read = ["/a/*.txt", "**/x"]\nfs.deny = ["**/.env"]',
    'fs.write = ["/w/**"]\nfs.protect = ["**/.git/hooks/**"]\nfs.exec = ["/usr/bin/*"]',
    'net.connect = ["ip:10.0.0.0/8:1-99", "udp+ip:[fd00::]/8:*"]\nnet.bind = ["ip:127.0.0.1:8080"]',
    'net.unix = ["/run/x.sock", "/t/**"]\nnet.deny = ["ip:169.254.0.0/16:*"]',
)
PATHS = (b"/a/b.txt/w/.git/hooks/x", b"/usr/bin/true/run/x.sock", b"/")
PRESETS = ("default", "python-agent", "readonly")
CALLS = 90  # about as many as have handlers


# What agent.c's process may do. The port is nobody's (discard): nothing that is sent there arrives.
WORLD_POLICY = """version = "1.0"
[fs]
read = ["{0}/read/**", "{0}/work/**"]
write = ["{0}/work/**"]
exec = ["{0}/work/x"]
deny = ["{0}/work/d/secret"]
[net]
connect = ["ip:127.0.0.1:9", "udp+ip:127.0.0.1:9", "ip:[::1]:9"]
bind = ["ip:127.0.0.1:0"]
unix = ["{0}/read/socket"]
deny = ["ip:10.0.0.7:445"]
[approve]
effects = ["fs.write {0}/work/asked"]
"""
MEMORY = 0x200000000000
CWD, PLACE = bytes([14]), b"\x01"


def make_world(directory: Path) -> None:
    for name in ("work/d", "read", "host"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    for name in ("work/d/secret", "read/a", "host/h"):
        (directory / name).write_text(f"{name}\n")
    policy = parse(WORLD_POLICY.format(directory.resolve()), syntax="toml", name="seed")
    (directory / "policy.blob").write_bytes(compile_policy(policy, CONTEXT).blob)


def place(offset: int) -> bytes:
    return PLACE + offset.to_bytes(2, "little")


def number(value: int) -> bytes:
    return b"\x05" + value.to_bytes(4, "little")


def fd(index: int) -> bytes:
    return bytes([3, index])


def address_of(offset: int) -> bytes:
    return (MEMORY + offset).to_bytes(8, "little")


def calls() -> list[bytes]:
    """Each call with a handler (numbered as calls.c does) in the shapes that most of them have."""
    loopback = AF_INET.to_bytes(2, "little") + bytes([0, 9, 127, 0, 0, 1, *bytes(8)])
    other = AF_INET.to_bytes(2, "little") + bytes([0, 80, 10, 0, 0, 7, *bytes(8)])
    message = loopback.ljust(32, b"\0") + address_of(0) + (16).to_bytes(8, "little") + address_of(96)
    message += (1).to_bytes(8, "little") + bytes(24) + address_of(0) + (8).to_bytes(8, "little")
    argv = b"x\0".ljust(32, b"\0") + address_of(0) + bytes(24)
    two = b"ok\0".ljust(32, b"\0") + b"new\0"
    shapes = [
        (CWD + place(0) + number(0) * 4, b"ok\0"),
        (CWD + place(0) + number(0o101) + number(0o600) + number(0) * 2, b"new\0"),
        (CWD + place(0) + number(2) + number(0) * 3, b"d/secret\0"),
        (place(0) + number(1) + number(0) * 4, b"out\0"),
        (place(0) + place(32) + number(0) * 4, two),
        (CWD + place(0) + CWD + place(32) + number(0) * 2, two),
        (fd(7) + number(1) * 5, b""),
        (
            fd(9) + place(0) + place(32) + number(16) + number(0) * 2,
            b"ok\0".ljust(32, b"\0") + (2).to_bytes(8, "little") + bytes(24),
        ),
        (fd(0) + place(0) + number(16) + number(0) * 3, loopback),
        (fd(1) + place(0) + number(16) + number(0) + place(0) + number(16), other),
        (fd(1) + place(32) + number(0) * 4, message),
        (fd(4) + place(0) + number(20) + number(0) * 3, AF_UNIX.to_bytes(2, "little") + b"socket\0"),
        (place(0) + place(32) + place(40) + number(0) * 3, argv),
        (b"\x0f" + number(15) + place(0) + number(0) * 3, b"asked\0"),
        (
            b"\x00" + (0x414B0401).to_bytes(8, "little") + place(0) + number(2) + place(64) + number(99) + number(0),
            b"{}",
        ),
    ]
    return [bytes([nr, 2]) + args + memory for nr in range(CALLS) for args, memory in shapes]


def addresses() -> list[bytes]:
    v4 = AF_INET.to_bytes(2, "little") + bytes([0, 9, 127, 0, 0, 1, *bytes(8)])
    pinned = AF_INET.to_bytes(2, "little") + bytes([1, 187, 10, 0, 0, 7, *bytes(8)])
    dns = AF_INET.to_bytes(2, "little") + bytes([0, 53, 8, 8, 8, 8, *bytes(8)])
    v6 = AF_INET6.to_bytes(2, "little") + bytes([0, 9, *bytes(4), *bytes(15), 1, *bytes(4)])
    mapped = AF_INET6.to_bytes(2, "little") + bytes([0, 9, *bytes(4), *bytes(10), 255, 255, 127, 0, 0, 1, *bytes(4)])
    unix = [AF_UNIX.to_bytes(2, "little") + name for name in (b"ok\0", b"out\0", b"\0abstract", b"../read/socket\0")]
    netlink = AF_NETLINK.to_bytes(2, "little") + bytes(10)
    all_of_them = [v4, pinned, dns, v6, mapped, *unix, netlink]
    return [
        bytes([kind, flags, len(one), 0]) + one for kind in range(10) for flags in (0, 1, 128) for one in all_of_them
    ]


def policies() -> list[bytes]:
    blobs = [
        compile_policy(parse('version = "1.0"\n' + text, syntax="toml", name="seed"), CONTEXT).blob for text in SMALL
    ]
    blobs += [compile_policy(load_preset(name), CONTEXT).blob for name in PRESETS]
    return [
        len(blob).to_bytes(2, "little") + blob + PATHS[n % len(PATHS)]
        for n, blob in enumerate(blobs)
        if len(blob) < 1 << 16
    ]


SEEDS = {"policy": policies, "calls": calls, "address": addresses}


def main(target: str, corpus: Path, world: Path | None) -> None:
    corpus.mkdir(parents=True, exist_ok=True)
    if world is not None:
        make_world(world)
    for n, data in enumerate(SEEDS[target]()):
        (corpus / f"{target}-{n}").write_bytes(data)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
