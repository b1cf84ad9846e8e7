"""Which opens the kernel may carry out without asking anybody: those that Landlock judges exactly as the policy does.

A plan of Landlock rules says by itself which of them are only rough. This looks at the rest, which depends on what is
there: Landlock knows directories only with everything below, so a rule on one directory alone cannot be put to it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from akbox.policy.compiled import CompiledPolicy
from akbox.policy.landlock import LandlockPlan, granted_names
from akbox.policy.matcher import READ, WRITE

Rights = Callable[[str], int]  # the need bits that a policy gives on a path


def reads_hold(policy: CompiledPolicy, plan: LandlockPlan, rights: Rights | None = None) -> bool:
    """May read-only opens, of directories too, be the agent's own? Then Landlock lets exactly that be read which the
    policy does, and no rule is on a directory alone. rights: a quicker `policy.rights`."""
    return plan.reads_exactly(rights or policy.rights) and not any(
        _is_directory(path) for path, tree in granted_names(policy, READ) if not tree
    )


def listings_hold(policy: CompiledPolicy, plan: LandlockPlan, rights: Rights | None = None) -> bool:
    """May directories be listed by the agent's own opens, and will that stay so?

    A Landlock rule is on an object and the policy on a name, so no granted path may be the agent's to remake: not a
    tree's root, nor a file or an absent name that could become a directory.
    """
    rights = rights or policy.rights
    return reads_hold(policy, plan, rights) and not any(rights(path) & WRITE for path, _ in granted_names(policy, READ))


def _is_directory(path: str) -> bool:
    """A link is no name that the policy is asked about, so it grants nothing in either."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False
