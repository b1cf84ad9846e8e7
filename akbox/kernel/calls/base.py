"""What a call is to the pipeline: data (its argument type, what it costs, what it is an effect on) and one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from akbox.kernel.effect import Effect
from akbox.kernel.ops import Op

if TYPE_CHECKING:
    from akbox.kernel.pipeline import Context


class Args(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A call's arguments: unknown ones are errors."""


class NoArgs(Args):
    pass


class Use(msgspec.Struct, frozen=True):
    """What a call does with what a capability stands for: its type (capability.Type), the target, the method."""

    type: int
    target: str
    method: str


class Sink(msgspec.Struct, frozen=True):
    """A place in the arguments where text is interpreted, and the label of what the call would put there (TRUSTED when
    nothing was said of it). `accepts`: the labels that may go there besides TRUSTED."""

    path: str
    taint: int
    accepts: tuple[int, ...] = ()


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One authority call.

    `prepare` makes the arguments ready (shapes that types can't say; aliases inside lists) and may raise CallError;
    `target` is what the log shows; `effect` is what the policy decides about (None: the call touches only the agent's
    own state); `uses` is what a capability has to cover; `sinks` where tainted data may not go; `cost` is reserved at
    BUDGET and settled when `execute`, which returns the result, has succeeded. `may_wait`: can that take long?
    """

    op: Op
    args: type[Args]
    execute: Callable[[Context, Any], dict[str, Any]]
    aliases: Mapping[str, str] = {}
    normalise: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    prepare: Callable[[Context, Any], None] | None = None
    target: Callable[[Any], str] | None = None
    effect: Callable[[Any], Effect] | None = None
    uses: Callable[[Any], Sequence[Use]] | None = None
    sinks: Callable[[Context, Any], Sequence[Sink]] | None = None
    cost: Callable[[Context, Any], Mapping[str, int]] | None = None
    may_wait: Callable[[Any], bool] | None = None
