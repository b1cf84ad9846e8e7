"""A policy compiled for a run, kept for the next run that would compile to the same.

Compiling is a pure function of the policy and its Context (profiles are part of the installation), so both together
are the key. What of the Context the file system decides, such as the libraries of the executable, is looked at for
every run before this is asked.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import cached_property

import msgspec

from akbox import _native
from akbox.policy.compile import CompiledPolicy, Context, compile_policy
from akbox.policy.landlock import LandlockPlan, landlock_plan
from akbox.policy.model import Policy

_MAX_KEPT = 16  # a few hundred kilobytes each


class Compiled(msgspec.Struct, frozen=True, dict=True):
    """The policy, its C form, and what Landlock shall hold of it."""

    policy: CompiledPolicy
    matcher: _native.Policy
    landlock: LandlockPlan

    @cached_property
    def landlock_for_reads(self) -> LandlockPlan:
        """The same, when read-only opens are the agent's own."""
        return landlock_plan(self.policy, on_behalf=True, reads_in_kernel=True)


_lock = threading.Lock()
_kept: OrderedDict[tuple[bytes, Context], Compiled] = OrderedDict()  # guarded by _lock; the one used last at the end


def compile_once(policy: Policy, context: Context) -> Compiled:
    """Raises PolicyError. The policy's content is the key, not the object: nobody is kept from changing one."""
    key = (msgspec.msgpack.encode(policy), context)
    with _lock:
        found = _kept.get(key)
        if found is not None:
            _kept.move_to_end(key)
            return found
    compiled = compile_policy(policy, context)
    made = Compiled(compiled, _native.Policy(compiled.blob), landlock_plan(compiled, on_behalf=True))
    with _lock:
        _kept[key] = made
        if len(_kept) > _MAX_KEPT:
            _kept.popitem(last=False)
    return made
