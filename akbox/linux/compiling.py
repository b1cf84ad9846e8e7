"""A policy compiled for a run, kept for the next run that would compile to the same.

Compiling is a pure function of the policy and its Context (profiles are part of the installation), so both together
are the key. What of the Context the file system decides, such as the libraries of the executable, is looked at for
every run before this is asked. The rules are put together anew by each process; what takes long, the C form and the
Landlock plans, is kept for other processes too, in the state directory (remembered.py).
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

import msgspec

from akbox import _native
from akbox.linux.remembered import recall, remember
from akbox.linux.shipped import installation
from akbox.policy.compile import CompiledPolicy, Context, compile_policy
from akbox.policy.landlock import LandlockPlan, landlock_plan
from akbox.policy.model import Policy

_MAX_KEPT = 16  # a few hundred kilobytes each


class Forms(msgspec.Struct, frozen=True):
    """A compiled policy as others take it: the C matcher, and Landlock. `landlock_for_reads`: when read-only opens are
    the agent's own."""

    blob: bytes
    landlock: LandlockPlan
    landlock_for_reads: LandlockPlan


class Compiled(msgspec.Struct, frozen=True):
    """The policy, its C form, and what Landlock shall hold of it."""

    policy: CompiledPolicy
    matcher: _native.Policy
    landlock: LandlockPlan
    landlock_for_reads: LandlockPlan

    def rights(self, path: str) -> int:
        """As CompiledPolicy.rights(), by the C matcher."""
        return self.matcher.rights(os.fsencode(path))


_lock = threading.Lock()
_kept: OrderedDict[tuple[bytes, Context], Compiled] = OrderedDict()  # guarded by _lock; the one used last at the end


def compile_once(policy: Policy, context: Context, state_dir: Path) -> Compiled:
    """Raises PolicyError. The policy's content is the key, not the object: nobody is kept from changing one."""
    if context.gateway:
        return _with_gateway(policy, context, state_dir)
    key = (msgspec.msgpack.encode(policy), context)
    with _lock:
        found = _kept.get(key)
        if found is not None:
            _kept.move_to_end(key)
            return found
    compiled = compile_policy(policy, context)
    forms = _forms(compiled, state_dir / "compiled" / _name(*key))
    made = Compiled(compiled, _native.Policy(forms.blob), forms.landlock, forms.landlock_for_reads)
    with _lock:
        _kept[key] = made
        if len(_kept) > _MAX_KEPT:
            _kept.popitem(last=False)
    return made


def _with_gateway(policy: Policy, context: Context, state_dir: Path) -> Compiled:
    """Its port is another one each time, and only the C form knows it: the rest is what it is without."""
    plain = compile_once(policy, msgspec.structs.replace(context, gateway=""), state_dir)
    compiled = compile_policy(policy, context)
    return Compiled(compiled, _native.Policy(compiled.blob), plain.landlock, plain.landlock_for_reads)


def _name(policy: bytes, context: Context) -> str:
    whole = f"{installation()}\0{len(policy)}\0{context!r}\0".encode("utf-8", "surrogatepass") + policy
    return _native.sha256(whole).hex()


def _forms(compiled: CompiledPolicy, path: Path) -> Forms:
    kept = recall(path)
    if kept is not None:
        try:
            return msgspec.msgpack.decode(kept, type=Forms)
        except msgspec.DecodeError:
            pass  # another layout under the same name: made anew, as if it were absent
    made = Forms(
        compiled.blob,
        landlock_plan(compiled, on_behalf=True),
        landlock_plan(compiled, on_behalf=True, reads_in_kernel=True),
    )
    try:
        data = msgspec.msgpack.encode(made)
    except UnicodeEncodeError:  # a path that is not UTF-8, which msgpack has no strings for
        return made
    remember(path, data)
    return made
