"""The kit as a command: every case, user and interposer, several at a time, with an outcome for each.

A host may itself refuse a call before akbox can (a container runtime's filter, a kernel built without something). Then
there is nothing to show in the log; such a case counts as `removed`: the same attempt fails bare too, and inside it
fails and harms nothing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from akbox.conformance.engine import (
    attempt,
    attempt_bare,
    check_case,
    check_control,
    controls,
    judge,
    judge_harmless,
    names_errno,
    parameters,
    uid_of,
)
from akbox.conformance.model import Case, Control, Failed, require
from akbox.conformance.world import Worlds

PASS, FAIL, REMOVED, ABSENT = "pass", "fail", "removed", "absent"
OUTSIDE = "outside"
REFUSALS = ("EPERM", "ENOSYS", "EACCES")  # by which a runtime's filter or a kernel's configuration answers


@dataclass(frozen=True)
class Outcome:
    """`user` is "root", "user" or, for a control, "outside"; `detail` says why it is not a plain pass."""

    case: str
    title: str
    user: str
    interposer: str
    status: str
    detail: str
    seconds: float


def run_kit(
    worlds: Worlds, cases: Sequence[Case], users: Sequence[str], interposers: Sequence[str], jobs: int, outside: bool
) -> Iterator[Outcome]:
    """Runs what applies, `jobs` at a time, and yields outcomes in the order of the cases. `outside`: controls, too."""
    work: list[Callable[[], Outcome]] = []
    for case in cases:
        lacking = absent_programs(case)
        if lacking:
            work.append(lambda c=case, d=f"needs {lacking}": Outcome(c.id, c.title, "", "", ABSENT, d, 0))  # type: ignore[misc]
            continue
        if outside:
            work += [lambda case=case: control_outcome(worlds, case) for case in controls([case])]  # type: ignore[misc]
        for _, user, interposer in parameters([case]):
            if user in users and interposer in interposers:
                work.append(lambda c=case, u=user, i=interposer: case_outcome(worlds, c, u, i))  # type: ignore[misc]
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        futures = [pool.submit(one) for one in work]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def absent_programs(case: Case) -> str:
    return ", ".join(name for name in case.programs if shutil.which(name) is None)


def count_work(cases: Sequence[Case], users: Sequence[str], interposers: Sequence[str], outside: bool) -> int:
    run = [case for case in cases if not absent_programs(case)]
    inside = [one for one in parameters(run) if one[1] in users and one[2] in interposers]
    return len(inside) + (len(controls(run)) if outside else 0) + len(cases) - len(run)


def control_outcome(worlds: Worlds, case: Case) -> Outcome:
    began = time.monotonic()
    status, detail = PASS, ""
    try:
        check_control(worlds, case)
    except Failed as error:
        status, detail = REMOVED, str(error)
    return Outcome(case.id, case.title, OUTSIDE, "", status, detail, time.monotonic() - began)


def case_outcome(worlds: Worlds, case: Case, user: str, interposer: str) -> Outcome:
    began = time.monotonic()
    status, detail = PASS, ""
    try:
        check_case(worlds, case, user, interposer)
    except Failed as error:
        detail = str(error)
        status = REMOVED if holds(lambda: removed_here(worlds, case, user, interposer)) else FAIL
    return Outcome(case.id, case.title, user, interposer, status, detail, time.monotonic() - began)


def removed_here(worlds: Worlds, case: Case, user: str, interposer: str) -> None:
    """This host lets nobody do what the case tries, so that only its failing can be seen inside. Raises Failed."""
    control = case.control or Control()
    with worlds.lend(uid_of(user), case.network) as world:
        bare = attempt_bare(world, case, control.how)
        refused = bare.exit != 0 and names_errno(bare.stdout + bare.stderr, REFUSALS)
        require(refused or not holds(lambda: judge(bare, world, control)), f"it works here\n{bare}")
    with worlds.lend(uid_of(user), case.network) as world:
        inside = attempt(world, case, interposer)
        require(inside.exit != 0 or not case.refuses, f"it works inside\n{inside}")
        judge_harmless(case, world, inside)


def holds(judgement: Callable[[], object]) -> bool:
    try:
        judgement()
    except Failed:
        return False
    return True
