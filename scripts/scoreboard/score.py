"""One case in one sandbox, judged by what was attained and not by how it was said.

The judge is the same for akbox, for each other sandbox and for no sandbox at all: an attempt counts only if it succeeds
bare, as the same ordinary user. Which errno a refusal has, and whether anything is logged, is not asked here.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import dataclass

from akbox.conformance.engine import Result, environment, execute, judge, names_errno, policy_text, prepare, run_inside
from akbox.conformance.model import Case, Control, Failed
from akbox.conformance.world import MARK, World, Worlds
from scoreboard.peers import Cannot, Peer, Wish

REFUSED, OPEN, WORKS, BREAKS, CANNOT, UNTRIED = "refused", "open", "works", "breaks", "cannot", "untried"
TIMEOUT_S = 40
REFUSALS = ("EPERM", "EACCES", "ENOSYS")

# What only akbox has (its log, state, exit codes, supervisor), and what answers with a text of akbox's errors.
NOT_COMPARABLE = ("R11*", "A*", "P39*", "P31-dumpable", "P12-strace", "P10-parent-kill", "P28", "P36", "P37", "P41*",
                  "L0[1357]*", "T01*-high", "F66", "F62-pts", "N11", "N19", "N21", "N22-others", "I02")  # fmt: skip
# Where the host's state says it all: a masked file may well be opened, and nothing comes of it.
STATE_OPS = {"fs.open", "fs.truncate", "fs.unlink", "fs.rename", "fs.mkdir", "fs.rmdir", "fs.link"}


ABOUT_EXEC = ("P21", "P23", "P24", "F06")  # the cases of programs that may be read or written and not run


@dataclass(frozen=True)
class Score:
    case: str
    title: str
    sandbox: str
    verdict: str
    detail: str = ""


def comparable(cases: list[Case]) -> list[Case]:
    return [
        case
        for case in cases
        if "user" in case.users
        and not any(key.startswith("net.") for key in case.policy)  # rules of the network are not translated
        and not any(fnmatch.fnmatchcase(case.id, pattern) for pattern in NOT_COMPARABLE)
        and not any(shutil.which(name) is None for name in case.programs)
    ]


def score_bare(worlds: Worlds, case: Case, uid: int) -> Score:
    def run(world: World) -> Result:
        return execute(attack(world, case), world, uid=uid, timeout_s=TIMEOUT_S, terminal=case.terminal)

    return score(worlds, case, uid, "bare", run)


def score_akbox(worlds: Worlds, case: Case, uid: int, interposer: str) -> Score:
    def run(world: World) -> Result:
        return run_inside(
            world,
            attack(world, case),
            interposer=interposer,
            policy=case.policy,
            preset=case.preset,
            timeout_s=TIMEOUT_S,
            terminal=case.terminal,
        )

    return score(worlds, case, uid, "akbox", run)


def score_peer(worlds: Worlds, case: Case, uid: int, peer: Peer, path: str) -> Score:
    def run(world: World) -> Result:
        words = peer.wrap(wish_of(world, case))
        env = {**environment(world), "PATH": path, "CODEX_HOME": os.environ.get("CODEX_HOME", str(world.base / "run"))}
        user = 0 if peer.as_root else uid
        return execute(words, world, uid=user, timeout_s=TIMEOUT_S, terminal=case.terminal, env=env)

    return score(worlds, case, uid, peer.id, run)


def attack(world: World, case: Case) -> list[str]:
    """What the agent does: where the attempt needs a namespace of one's own, it makes one first."""
    words = [world.fill(word) for word in case.command]
    if case.control is not None and case.control.how == "namespace":
        return ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc", "--", *words]
    return words


def score(worlds: Worlds, case: Case, uid: int, sandbox: str, run: Callable[[World], Result]) -> Score:
    with worlds.lend(uid, case.network) as world:
        try:
            prepare(world, case)
            result = run(world)
        except Cannot as error:
            return Score(case.id, case.title, sandbox, CANNOT, str(error))
        except Failed as error:  # it did not end
            return Score(case.id, case.title, sandbox, REFUSED if is_attack(case) else BREAKS, str(error)[-600:])
        if is_attack(case):
            verdict = OPEN if attained(world, case, result) else REFUSED
        else:
            verdict = WORKS if holds(world, case, result) else BREAKS
        return Score(case.id, case.title, sandbox, verdict, str(result)[-900:])


def is_attack(case: Case) -> bool:
    """It must fail inside, and does not fail in the same way bare."""
    control = case.control
    if control is None or not case.refuses:
        return case.refuses
    same = control.errnos == case.expect.errnos and (control.errnos != () or control.exit == case.expect.exit)
    return not same


def attained(world: World, case: Case, result: Result) -> bool:
    if MARK in result.stdout + result.stderr or world.changed(case.changes) or not check_holds(world, case, result):
        return True
    control = case.control or Control()
    if control.stdout is not None:
        return world.fill(control.stdout) in result.stdout
    entry = case.expect.entry
    if entry is not None:
        ops = entry.op if isinstance(entry.op, tuple) else (entry.op,)
        target = world.fill(entry.target or "")
        if set(ops) <= STATE_OPS and (not target or target.startswith(str(world.base))):
            return case.check is None and result.exit == 0 and not masked(world, case)
    try:
        judge(result, world, control)
    except Failed:
        return False
    # A control may allow for kernels that refuse by themselves: here that is no success.
    return result.exit == 0 or not names_errno(result.stdout + result.stderr, REFUSALS)


def masked(world: World, case: Case) -> bool:
    """About a file that a sandbox may hide behind another one: only the host's state counts then."""
    text = " ".join(attack(world, case))
    return any(word in text for word in denied_words(world))


def holds(world: World, case: Case, result: Result) -> bool:
    try:
        judge(result, world, case.expect)
    except Failed:
        return False
    return check_holds(world, case, result) and MARK not in result.stdout


def check_holds(world: World, case: Case, result: Result) -> bool:
    try:
        if case.check is not None:
            case.check(world, result)
    except (Failed, OSError, LookupError, ValueError):
        return False
    return True


def wish_of(world: World, case: Case) -> Wish:
    """The case's policy as trees and files. A preset is what it comes to for a coding agent: read all, write here."""
    wish = Wish(attack(world, case), str(world.W), str(world.HOME), world.base)
    wish.hidden = [str(path) for path in (world.HOME, world.T, world.base / "state")]
    if case.preset is not None:
        wish.read, wish.write, wish.execute, wish.hidden = ["/"], [str(world.W), "/dev/null"], ["/"], []
        wish.patterns = bool(case.programs)  # what the preset protects, whether it is there or not
        return wish
    policy = tomllib.loads(policy_text(world, case.policy))
    for key, places in (("read", wish.read), ("write", wish.write), ("exec", wish.execute), ("deny", wish.deny)):
        for pattern in policy["fs"].get(key, []):
            place = pattern.removesuffix("/**")
            new = key == "deny" and not os.path.lexists(place)
            only_itself = place == pattern and os.path.isdir(place)
            if set(place) & set("*?[") or new or only_itself:
                wish.patterns = True
            else:
                places.append(place)
    text = " ".join(wish.command)
    wish.about_deny = "fs.deny" in case.policy or masked(world, case)
    wish.about_hidden = any(path in text for path in wish.hidden)
    wish.about_exec = case.id.startswith(ABOUT_EXEC)
    wish.strict = policy["fs"].get("metadata") == "strict"
    sizes = {"1M": 1 << 20}
    wish.limits = {name: sizes.get(value, value) for name, value in policy.get("limits", {}).items()}
    wish.wall_ms = policy.get("budgets", {}).get("wall_time_ms", 0)
    return wish


def denied_words(world: World) -> tuple[str, ...]:
    """What leads to the denied files in W: their names, the links to them and the directory of one."""
    return (str(world.S), str(world.W / "d"), "to-secret", "chain1", "/secret")


def works_at_all(worlds: Worlds, uid: int, peer: Peer, path: str) -> str:
    """Why this sandbox runs nothing here, or ""."""
    with worlds.lend(uid) as world:
        case = Case("S0", "a program of the kit", ("{K}/seven",), Control(exit=77))  # type: ignore[arg-type]
        wish = wish_of(world, case)
        wish.execute.append(str(world.W))
        wish.deny = []
        env = {**environment(world), "PATH": path, "CODEX_HOME": os.environ.get("CODEX_HOME", str(world.base / "run"))}
        result = execute(peer.wrap(wish), world, uid=0 if peer.as_root else uid, timeout_s=TIMEOUT_S, env=env)
        if result.exit == 77:
            return ""
        said = (result.stderr + result.stdout).strip().splitlines() or ["it says nothing"]
        return f"it runs nothing as uid {uid} here ({said[0]})"
