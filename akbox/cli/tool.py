"""`akbox tool`: the tools that agents may call, those that come with akbox and those that were added."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from akbox.cli.control import state_option
from akbox.cli.output import EXIT_USAGE, Failure, columns, emit_json, printable
from akbox.rundir import StateError, state_root
from akbox.tools.failure import ToolFailure
from akbox.tools.registry import Registry, Tool, read

T = TypeVar("T")
json_option = click.option("--json", "as_json", is_flag=True, help="As JSON.")
_KEY = "tool-signing"
_PROGRAM = """
import json, sys
import authority_nanos as sdk
try:
    result = sdk.AuthorityKernel().call_tool(sys.argv[1], json.loads(sys.argv[2]))
    print(json.dumps(result, ensure_ascii=False, indent=2))
except sdk.AuthorityKernelError as error:
    fix = f"\\n  to allow it: {error.suggested_fix}" if error.suggested_fix else ""
    print(f"{error.name}: {error.message}{fix}", file=sys.stderr)
    sys.exit(1)
"""


@click.group(short_help="Add, list, sign, check and call tools.")
def tool() -> None:
    """WebAssembly tools. A run's agents may call those that `tools.allow` of its policy names; one that was added needs
    `wasm.modules` too, and what it asks of akbox `wasm.hostcalls`."""


@tool.command(name="list")
@json_option
@state_option
def list_(as_json: bool, state_dir: str | None) -> int:
    """All tools there are. The exit code is 1 when one of them cannot be used."""
    registry = Registry(_state(state_dir))
    rows, found, broken = [], [], False
    for name in registry.names():
        try:
            tool = registry.load(name)
        except ToolFailure as failure:
            broken = True
            found.append({"name": name, "error": failure.message})
            rows.append((name, "-", "broken", failure.message))
            continue
        found.append(_described(tool))
        rows.append((name, tool.manifest.version, _origin(tool), tool.manifest.description))
    if as_json:
        emit_json(found)
    else:
        for line in columns([("NAME", "VERSION", "FROM", "DESCRIPTION"), *rows]):
            print(line)
    return int(broken)


@tool.command()
@click.argument("name", metavar="NAME|DIR")
@state_option
def inspect(name: str, state_dir: str | None) -> int:
    """What a tool takes, gives, may ask for and may use, as JSON."""
    emit_json(_described(_find(name, state_dir)))
    return 0


@tool.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--replace", is_flag=True, help="In place of one of the same name.")
@state_option
def add(directory: Path, replace: bool, state_dir: str | None) -> int:
    """Copy a tool (tool.toml, its module and, if there is one, tool.sig) to akbox's own, once it was checked and
    compiled."""
    root = _state(state_dir)
    _compiled(_try(lambda: read(directory, builtin=False)))
    added = _try(lambda: Registry(root).add(directory, replace=replace))
    print(f"added: {added.name} {added.manifest.version} ({_origin(added)}, sha256 {added.digest})")
    print("a run may use it under a policy with:")
    print(f'  tools.allow = ["{added.name}"]\n  wasm.modules = ["{added.name}"]')
    if added.manifest.hostcalls:
        print(f"  wasm.hostcalls = {json.dumps(added.manifest.hostcalls)}")
    return 0


@tool.command()
@click.argument("name")
@state_option
def remove(name: str, state_dir: str | None) -> int:
    """Take away a tool that was added."""
    _try(lambda: Registry(_state(state_dir)).remove(name))
    print(f"removed: {name}")
    return 0


@tool.command()
@click.argument("names", metavar="[NAME|DIR]…", nargs=-1)
@state_option
def verify(names: tuple[str, ...], state_dir: str | None) -> int:
    """Check manifests, hashes, signatures, and that modules compile and import only what they may. Default: all."""
    failed = 0
    for name in names or Registry(_state(state_dir)).names():
        try:
            found = _load(name, state_dir)
            _compile(found)
            print(f"ok      {found.name} {found.manifest.version} ({_origin(found)})")
        except ToolFailure as failure:
            failed = 1
            print(f"FAILED  {name}: {failure.reason}: {failure.message}")
    return failed


@tool.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@state_option
def sign(directory: Path, state_dir: str | None) -> int:
    """Write tool.sig: your signature over the manifest and the module. The key is made with the first use."""
    from akbox.tools import manifest, signature

    found = _try(lambda: read(directory, builtin=False))
    signer = _signer(state_dir)
    text = manifest.find(directory).read_bytes()
    made = signature.Signature(signer.public_hex(), signer.sign(signature.message(text, found.module)).hex())
    (directory / signature.NAME).write_bytes(msgspec.json.encode(made) + b"\n")
    print(f"signed: {found.name} {found.manifest.version} by {made.key}")
    return 0


@tool.command()
@state_option
def key(state_dir: str | None) -> int:
    """Print your public key, as `wasm.signed_by` takes it."""
    print(_signer(state_dir).public_hex())
    return 0


@tool.command()
@click.argument("name", metavar="NAME|DIR")
@click.argument("params", metavar="JSON", default="{}")
@click.option("-p", "--policy", metavar="POLICY", help="Of the run that calls it. Default: this tool, no host calls.")
@state_option
def call(name: str, params: str, policy: str | None, state_dir: str | None) -> int:
    """Call a tool once, from a run of its own (with a log, as any). DIR is a tool in development: it needs no hash."""
    from akbox.linux.sandbox import CannotRun, Sandbox
    from akbox.policy.load import load, parse
    from akbox.policy.presets import load_preset

    found = _find(name, state_dir)
    try:
        json.loads(params)
    except ValueError as error:
        raise Failure(f"not JSON: {error}", exit_code=EXIT_USAGE) from error
    if policy is None:
        rules = f'tools.allow = ["{found.name}"]\nwasm.modules = ["{found.name}"]\n'
        used = parse('version = "1.0"\nprofiles = ["base", "python"]\n' + rules, syntax="toml", name="tool call")
    else:
        used = load(policy) if "/" in policy or "." in policy else load_preset(policy)
    extra = found.directory.absolute() if _is_directory(name) else None
    try:
        sandbox = Sandbox(used, state_dir=_state(state_dir), tool=extra)
        run = sandbox.start([sys.executable, "-c", _PROGRAM, found.name, params])
        return run.wait().exit_code
    except CannotRun as error:
        raise Failure(error.message, fix=error.hint, exit_code=error.exit_code) from error


@tool.command()
@json_option
@state_option
def held(as_json: bool, state_dir: str | None) -> int:
    """Tools of mounted MCP servers that say something else of themselves than what was approved, and what they say."""
    from akbox.tools.pins import Pins

    found = _try(lambda: Pins(_state(state_dir)).held())
    if as_json:
        emit_json(msgspec.to_builtins(found))
        return 0
    for name, item in sorted(found.items()):
        print(f"{name}\n  {printable(item.description)}")
    return 0


@tool.command()
@click.argument("name", metavar="SERVER.TOOL|SERVER")
@state_option
def approve(name: str, state_dir: str | None) -> int:
    """Let runs use a tool that is held, as it describes itself now; SERVER: all of its."""
    from akbox.tools.pins import Pins

    done = _try(lambda: Pins(_state(state_dir)).approve(name))
    if not done:
        raise Failure(f"nothing is held that is called {name!r}", fix="`akbox tool held` shows what is")
    print("approved: " + ", ".join(done))
    return 0


tool.add_command(inspect, "show")


def _is_directory(name: str) -> bool:
    return "/" in name or name in (".", "..")


def _load(name: str, state_dir: str | None) -> Tool:
    return read(Path(name), builtin=False) if _is_directory(name) else Registry(_state(state_dir)).load(name)


def _find(name: str, state_dir: str | None) -> Tool:
    return _try(lambda: _load(name, state_dir))


def _compile(tool: Tool) -> None:
    """Raises ToolFailure for a module that is none, or that imports what it may not."""
    from akbox.tools.runtime import Runtime

    runtime = Runtime(None)
    try:
        runtime.prepare(tool)
    finally:
        runtime.close()


def _compiled(tool: Tool) -> None:
    _try(lambda: _compile(tool))


def _signer(state_dir: str | None) -> Any:
    from akbox.kernel.signing import Signer, SigningKeyError

    try:
        return Signer.of_user(_state(state_dir) / _KEY)
    except (SigningKeyError, OSError) as error:
        raise Failure(str(error)) from error


def _described(tool: Tool) -> dict[str, Any]:
    manifest: dict[str, Any] = msgspec.to_builtins(tool.manifest)
    return manifest | {"sha256": tool.digest, "from": _origin(tool), "signed_by": tool.signer}


def _origin(tool: Tool) -> str:
    return "akbox" if tool.builtin else "added, signed" if tool.signer else "added"


def _state(state_dir: str | None) -> Path:
    try:
        return state_root(state_dir)
    except StateError as error:
        raise Failure(error.message, fix=error.hint) from error


def _try(work: Callable[[], T]) -> T:
    try:
        return work()
    except ToolFailure as failure:
        raise Failure(failure.message, fix=failure.suggested_fix or "") from failure
    except OSError as error:
        raise Failure(str(error)) from error
