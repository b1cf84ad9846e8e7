"""What an MCP server's tools said of themselves when they were first seen: a tool that says something else later, or
that was not there, is held until its user has approved it (`akbox tool approve`).

A description is text that a model obeys, so a server that changes one after it was trusted changes what the agent does.
Kept in the state directory (`tools/mcp-pins.json`), which no agent reaches.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from akbox.kernel.canonical import canonical
from akbox.rundir import own_directory


class Held(msgspec.Struct):
    """A tool that waits: what it says now."""

    sha256: str
    description: str


class Mount(msgspec.Struct):
    tools: dict[str, str] = {}  # by name, the hash that is approved
    held: dict[str, Held] = {}


class Pins:
    """`state`: the state directory."""

    def __init__(self, state: Path) -> None:
        self._folder = state / "tools"

    def admit(self, name: str, command: Sequence[str], tools: Mapping[str, dict[str, Any]]) -> list[str]:
        """Of a server that has just started: the names that are held. Those of a server that was never seen (by name
        and command) are approved by being mounted. Raises OSError."""
        key = f"{name} {sha256(msgspec.json.encode(list(command))).hexdigest()[:16]}"
        hashes = {tool: digest_of(said) for tool, said in tools.items()}
        with self._open() as mounts:
            known = mounts.get(key)
            if known is None:
                mounts[key] = Mount(tools=hashes)
                return []
            known.held = {
                tool: Held(digest, str(tools[tool].get("description", ""))[:4096])
                for tool, digest in hashes.items()
                if known.tools.get(tool) != digest
            }
            return sorted(known.held)

    def held(self) -> dict[str, Held]:
        """What waits, by NAME.TOOL. Raises OSError."""
        with self._open() as mounts:
            return {
                f"{key.split()[0]}.{tool}": held for key, mount in mounts.items() for tool, held in mount.held.items()
            }

    def approve(self, what: str) -> list[str]:
        """NAME.TOOL, or NAME for all of a server; the names that were held. Raises OSError."""
        name, _, tool = what.partition(".")
        done = []
        with self._open() as mounts:
            for key, mount in mounts.items():
                for held in [t for t in mount.held if key.split()[0] == name and tool in ("", t)]:
                    mount.tools[held] = mount.held.pop(held).sha256
                    done.append(f"{name}.{held}")
        return sorted(done)

    @contextlib.contextmanager
    def _open(self) -> Iterator[dict[str, Mount]]:
        """The file's content, locked; written back whole. A file that cannot be understood is an error: to take it for
        empty would approve everything."""
        state = os.open(self._folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.close(own_directory(self._folder.name, state))
        finally:
            os.close(state)
        path = self._folder / "mcp-pins.json"
        with open(self._folder / ".mcp-pins.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                before = path.read_bytes()
                mounts = msgspec.json.decode(before, type=dict[str, Mount])
            except FileNotFoundError:
                before, mounts = b"", {}
            except msgspec.MsgspecError as error:
                raise OSError(f"{path} is damaged: {error}") from error
            yield mounts
            after = msgspec.json.encode(mounts)
            if after != before:
                new = path.with_name(f".mcp-pins.{os.getpid()}")
                new.write_bytes(after)
                os.rename(new, path)


def digest_of(said: dict[str, Any]) -> str:
    """Of all that a server says of a tool, in canonical JSON (RFC 8785)."""
    return sha256(canonical(said)).hexdigest()
