"""SPAWN: starts a child agent, a process of its own in a sandbox of its own, within what its parent may do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from akbox.kernel.budget import ALIASES, MICROS_PER_USD, NAMES, U64_MAX
from akbox.kernel.calls.base import Args, Call, Sink, Use
from akbox.kernel.calls.objects import label_from
from akbox.kernel.capability import Caveat, Type, derive, new_tid
from akbox.kernel.codes import CallError, Code
from akbox.kernel.effect import Effect
from akbox.kernel.ops import NEED_EXEC, Op
from akbox.kernel.taint import TAINT_CMD, TAINT_PATH

if TYPE_CHECKING:
    from akbox.kernel.pipeline import Context

MAX_CAPS = 32
SINKS = {"program": (TAINT_PATH,), "argv": (TAINT_CMD,), "env": (TAINT_CMD,), "cwd": (TAINT_PATH,), "policy": ()}
Word = Annotated[str, msgspec.Meta(max_length=131_072)]


class SpawnArgs(Args):
    """`program`: an absolute path. `policy`: a policy as JSON or TOML text, or as an object; it narrows the parent's.
    `budgets`: set aside from the parent's. `caps`: tokens that the child gets (AKBOX_CAPS), for it alone. `env`: what
    is set besides what the policy passes. `from`: for each of SINKS, the objects it was made of. `stdio`: "inherit"
    (output only) or "null". `detach`: it may outlive its parent, not the run."""

    program: Annotated[str, msgspec.Meta(min_length=1, max_length=4095)]
    argv: Annotated[list[Word], msgspec.Meta(max_length=1024)] | None = None
    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    policy: str | dict[str, Any] | None = None
    budgets: dict[str, int | float] = msgspec.field(default_factory=dict)
    caps: Annotated[list[str], msgspec.Meta(max_length=MAX_CAPS)] = msgspec.field(default_factory=list)
    env: dict[str, Word] = msgspec.field(default_factory=dict)
    cwd: str | None = None
    stdio: Literal["inherit", "null"] = "inherit"
    detach: bool = False
    sources: dict[Literal["program", "argv", "env", "cwd", "policy"], list[int]] = msgspec.field(
        name="from", default_factory=dict
    )


def limits_of_args(budgets: dict[str, int | float]) -> dict[str, int | None]:
    """In ledger units. Raises CallError(SCHEMA_INVALID) for what is no budget or no amount."""
    out: dict[str, int | None] = {}
    for key, value in budgets.items():
        name = ALIASES.get(key, key)
        if name not in NAMES:
            raise CallError(Code.SCHEMA_INVALID, f"budgets.{key}: there is none; there are {', '.join(NAMES)}")
        if name == "usd" and 0 <= value < U64_MAX / MICROS_PER_USD:
            out[name] = int(value * MICROS_PER_USD)
        elif isinstance(value, int) and 0 <= value < U64_MAX:
            out[name] = value
        else:
            raise CallError(Code.SCHEMA_INVALID, f"budgets.{key}: a whole number from 0, below 2^64-1")
    return out


def _prepare(_ctx: Context, args: SpawnArgs) -> None:
    limits_of_args(args.budgets)
    if not args.program.startswith("/"):
        raise CallError(Code.SCHEMA_INVALID, "program: an absolute path")
    for word in (args.program, *(args.argv or ()), *args.env, *args.env.values(), args.cwd or ""):
        if "\0" in word:
            raise CallError(Code.SCHEMA_INVALID, "a NUL byte, which no program can receive")
    for name in args.env:
        if not name or "=" in name or name.startswith(("LD_", "AKBOX")):
            raise CallError(Code.SCHEMA_INVALID, f"env: {name!r} cannot be set")


def _effect(args: SpawnArgs) -> Effect:
    import os

    return Effect(op=Op.SPAWN, target=os.path.realpath(args.program), need=NEED_EXEC)


def _sinks(ctx: Context, args: SpawnArgs) -> list[Sink]:
    """A new process reads its arguments as a path, a command or a policy: what came from elsewhere has to be fit."""
    return [Sink(name, label_from(ctx, ptrs, f"from.{name}"), SINKS[name]) for name, ptrs in args.sources.items()]


def _spawn(ctx: Context, args: SpawnArgs) -> dict[str, Any]:
    if ctx.kernel.spawner is None:
        raise CallError(Code.NOT_IMPLEMENTED, "this target starts no agents")
    for text in args.caps:
        ctx.kernel.caps.verify(text, agent=ctx.subject)
    return ctx.kernel.spawner(ctx.agent, args)


def given(caps: list[str], agent: bytes) -> list[str]:
    """The tokens, each narrowed to the one agent."""
    return [derive(text, Caveat(tid=new_tid(), agent=agent.hex())) for text in caps]


CALLS = (
    Call(
        op=Op.SPAWN,
        args=SpawnArgs,
        aliases={"args": "argv"},
        prepare=_prepare,
        effect=_effect,
        uses=lambda args: (Use(Type.SPAWN, args.program, "spawn"),),
        sinks=_sinks,
        may_wait=lambda _args: True,
        execute=_spawn,
    ),
)
