"""The tools there are: those that come with akbox, and those that the user added to the state directory.

An added tool is a copy: `tools/NAME/` holds manifest, module and signature as they were when `akbox tool add` checked
them. No agent can write there (the state directory is refused to every one), and each load checks the hash again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import msgspec

from akbox.rundir import own_directory
from akbox.tools import manifest as manifests
from akbox.tools import signature as signatures
from akbox.tools.failure import ToolFailure
from akbox.tools.manifest import Manifest

BUILTIN = Path(__file__).resolve().parent / "builtin"
MODULE_BYTES_MAX = 32 << 20
TOOLS_MAX = 1000


class Tool(msgspec.Struct, frozen=True):
    """One tool, read and checked as far as that goes without wasmtime. `digest` is the module's SHA-256; `signer` the
    key of a signature that is good."""

    manifest: Manifest
    directory: Path
    module: bytes
    digest: str
    builtin: bool
    signer: str | None = None

    @property
    def name(self) -> str:
        return self.manifest.name


class Registry:
    """Reads tools by name. `state`: akbox's state directory; `extra`: the directory of one tool in development, which
    is read anew where it is."""

    def __init__(self, state: Path, extra: Path | None = None) -> None:
        self.root = state / "tools"
        self._extra = None if extra is None else read(extra, builtin=False)

    def names(self) -> list[str]:
        """All there are, in order."""
        extra = [] if self._extra is None else [self._extra.name]
        return sorted({*_directories(BUILTIN), *_directories(self.root), *extra})

    def load(self, name: str) -> Tool:
        """Raises ToolFailure: unknown, or one whose files are not what its manifest says."""
        if self._extra is not None and self._extra.name == name:
            return self._extra
        for base, builtin in ((BUILTIN, True), (self.root, False)):
            if _is_name(name) and (base / name).is_dir():
                tool = read(base / name, builtin=builtin)
                if tool.name != name:
                    raise ToolFailure("manifest", f"the manifest in {base / name} is of {tool.name!r}")
                return tool
        raise ToolFailure("unknown", f"there is no tool {name!r}", fix="`akbox tool list` shows those there are")

    def add(self, source: Path, *, replace: bool = False) -> Tool:
        """Copies a tool's directory in, its hash written into the manifest's place beside it. Raises ToolFailure,
        OSError."""
        tool = read(source, builtin=False)
        if tool.manifest.sha256 is None:
            raise ToolFailure(
                "hash", f"the manifest of {tool.name!r} does not say its module's hash",
                fix=f'add sha256 = "{tool.digest}"',
            )  # fmt: skip
        if (BUILTIN / tool.name).is_dir():
            raise ToolFailure("manifest", f"{tool.name!r} is the name of a tool that comes with akbox")
        target = self.root / tool.name
        if target.exists() and not replace:
            raise ToolFailure("manifest", f"there is a tool {tool.name!r} already", fix="--replace puts this one there")
        if len(self.names()) >= TOOLS_MAX:
            raise ToolFailure("manifest", f"there are {TOOLS_MAX} tools already")
        self._prepare()
        new = self.root / f".new-{tool.name}-{os.getpid()}"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        try:
            manifest = manifests.find(source)
            (new / manifest.name).write_bytes(manifest.read_bytes())
            (new / tool.manifest.module).write_bytes(tool.module)
            if tool.signer is not None:
                shutil.copyfile(source / signatures.NAME, new / signatures.NAME)
            added = read(new, builtin=False)  # what was copied, not what was looked at
            with contextlib.suppress(FileNotFoundError):
                os.rename(target, old := self.root / f".old-{tool.name}-{os.getpid()}")
                shutil.rmtree(old)
            os.rename(new, target)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return msgspec.structs.replace(added, directory=target)

    def remove(self, name: str) -> None:
        """Raises ToolFailure for one that was not added."""
        if not _is_name(name) or not (self.root / name).is_dir():
            raise ToolFailure("unknown", f"no tool {name!r} was added")
        shutil.rmtree(self.root / name)

    def _prepare(self) -> None:
        state = os.open(self.root.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.close(own_directory(self.root.name, state))
        finally:
            os.close(state)


def read(directory: Path, *, builtin: bool) -> Tool:
    """A tool from its directory, with its hash and signature checked. Raises ToolFailure."""
    manifest, text = manifests.load(manifests.find(directory))
    path = directory / manifest.module
    try:
        with open(path, "rb") as file:
            module = file.read(MODULE_BYTES_MAX + 1)
    except OSError as error:
        raise ToolFailure("module", f"{path}: {error.strerror}") from error
    if len(module) > MODULE_BYTES_MAX:
        raise ToolFailure("module", f"{path}: more than {MODULE_BYTES_MAX} bytes")
    digest = sha256(module).hexdigest()
    if manifest.sha256 is not None and digest != manifest.sha256:
        raise ToolFailure("hash", f"{path} has the SHA-256 {digest}, not the {manifest.sha256} of its manifest")
    found = None if builtin else signatures.read(directory)
    if found is not None:
        signatures.check(found, text, module, manifest.name)
    return Tool(manifest, directory, module, digest, builtin, None if found is None else found.key)


def check_signer(tool: Tool, allowed: Sequence[str]) -> None:
    """Raises ToolFailure unless one of `allowed` has signed it; what comes with akbox is covered by akbox's own
    hashes."""
    if tool.builtin or tool.signer in allowed:
        return
    why = "is not signed" if tool.signer is None else f"is signed by {tool.signer}"
    raise ToolFailure(
        "signature", f"tool {tool.name!r} {why}, which wasm.signed_by does not name",
        fix="`akbox tool sign DIR` as one of its signers, then `akbox tool add --replace DIR`",
    )  # fmt: skip


def _is_name(name: str) -> bool:
    return name.replace("_", "a").isalnum() and name.isascii()


def _directories(base: Path) -> list[str]:
    try:
        with os.scandir(base) as entries:
            return [e.name for e in entries if _is_name(e.name) and e.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
