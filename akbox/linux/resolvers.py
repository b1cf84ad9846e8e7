"""Which servers the host asks for names: resolv.conf(5), or AKBOX_RESOLVER=IP:PORT."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "AKBOX_RESOLVER"
_SERVERS_MAX = 3  # MAXNS of resolv.conf(5)

Server = tuple[str, int]


def servers(environ: Mapping[str, str], file: Path = Path("/etc/resolv.conf")) -> list[Server]:
    """Where questions go. Raises ValueError for an AKBOX_RESOLVER that is no address with a port."""
    text = environ.get(VARIABLE)
    if text:
        return [parse_server(text)]
    found: list[Server] = []
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver" and len(found) < _SERVERS_MAX:
            found.append((words[1], 53))
    return found or [("127.0.0.1", 53)]


def parse_server(text: str) -> Server:
    """`192.0.2.1:53` or `[2001:db8::1]:53`. Raises ValueError."""
    address, colon, port = text.rpartition(":")
    bare = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    problem = ValueError(f"{VARIABLE}={text}: write IP:PORT, such as 127.0.0.1:5353 or [::1]:5353")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise problem
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        raise problem from None
    return bare, int(port)
