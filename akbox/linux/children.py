"""The agents that agents have started (SPAWN): each is a Run of its own beside the first one's, with its own id, policy
and end, under the same kernel and in the same log.

A child is confined by its own Landlock domain inside those of everybody above it, its calls are judged by its own
policy and theirs (`_native.Policy.view`), and every call that a policy restricts is trapped: what Landlock holds
exactly for one policy it need not hold for several.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from akbox.kernel.agents import Agent
from akbox.kernel.calls.spawn import SpawnArgs, given, limits_of_args
from akbox.kernel.codes import CallError, Code
from akbox.kernel.effect import Effect
from akbox.kernel.ops import NEED_EXEC, Op
from akbox.linux.errors import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, CannotRun, TooManyProcesses
from akbox.linux.plan import Request, make_plan, with_environment
from akbox.policy.check import PolicyError
from akbox.policy.model import Policy

if TYPE_CHECKING:
    from akbox.linux.result import RunResult
    from akbox.linux.run import Run

POLICY_BYTES_MAX = 1 << 20
_CODES = {EXIT_NOT_FOUND: Code.NOT_FOUND, EXIT_NOT_EXECUTABLE: Code.POLICY_DENY}


class Member(Struct, frozen=True, eq=False):
    """What makes a Run a child agent's."""

    agent: Agent
    parent: Run
    detached: bool = False


class Children:
    """All child agents of one run. `stdio`: descriptors of the run's output, ours to close; -1: closed."""

    def __init__(self, root: Run, request: Request, output: tuple[int, int]) -> None:
        self._lock = threading.Lock()
        self._runs: dict[bytes, Run] = {root.agent.id: root}  # living; guarded by _lock
        self._requests: dict[bytes, Request] = {root.agent.id: request}
        self._gateway = root.gateway
        self._detached: set[bytes] = set()
        self._counted: set[bytes] = set()  # what these have used is in the sums of those above; guarded by _lock
        self._closing = False
        self._output = output
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        """Precondition: no child lives."""
        for fd in (self._null, *self._output):
            if fd >= 0:
                os.close(fd)

    def spawn(self, parent: Agent, args: SpawnArgs) -> dict[str, Any]:
        """Starts a child agent and returns when its program runs. Raises CallError; then nothing of it is left."""
        with self._lock:
            above = self._runs.get(parent.id)
            if above is None or self._closing:
                raise CallError(Code.CAP_REVOKED, f"agent {parent.name} is ending")
            outer = self._requests[parent.id]
        policy = outer.policy if args.policy is None else _policy_of(args.policy)
        with contextlib.ExitStack() as undo:
            tmpdir = _make_tmpdir(above.plan.tmpdir)
            undo.callback(_remove_tmpdir, tmpdir)
            request = msgspec.structs.replace(
                outer, policy=policy, argv=(args.program, *(args.argv or [])[1:]), cwd=args.cwd or above.plan.cwd,
                tmpdir=tmpdir, keep_fds=(), audit_level="full", inner=True, set_env=args.env,
                strict=above.plan.filter.strict_metadata, within=above.plan.resources,
            )  # fmt: skip
            agent, run = self._prepare(parent, above, request, args)
            undo.pop_all()  # the run removes it
        self._start(parent, agent, run, request, args)
        return {"child_id": agent.id.hex(), "name": agent.name, "pid": run.pid}

    def _prepare(self, parent: Agent, above: Run, request: Request, args: SpawnArgs) -> tuple[Agent, Run]:
        from akbox.linux.run import Run

        kernel = above.kernel
        try:
            plan = make_plan(request)
        except CannotRun as error:
            raise _call_error(error) from error
        except PolicyError as error:
            raise _policy_error(error) from error
        except (OSError, ValueError) as error:
            raise CallError(Code.SCHEMA_INVALID, str(error)) from error
        # What was judged by its name is what is started: the name may lead elsewhere by now.
        effect = Effect(op=Op.SPAWN, target=os.path.realpath(os.fsdecode(plan.exec_path)), need=NEED_EXEC)
        decision = kernel.decide(parent.id, effect)
        if not decision.allowed and decision.code is not Code.APPROVAL_REQUIRED:
            raise CallError(Code.POLICY_DENY, decision.reason, missing_cap=decision.missing_cap, stage="POLICY")
        agent = kernel.tree.add(parent.id, args.name, plan.policy, limits_of_args(args.budgets))
        try:
            own = {
                "AKBOX_AGENT": agent.id.hex(),
                "AKBOX_CAPS": msgspec.json.encode(given(args.caps, agent.id)).decode(),
            }
            if self._gateway is not None:
                own |= self._gateway.environment(agent)
            plan = with_environment(plan, own)
            output = (self._null, self._null) if args.stdio == "null" else self._output
            run = Run(
                plan, kernel, above.run_dir, stdio=(self._null, *output), tty_fd=-1, on_stopped=None,
                member=Member(agent, above, args.detach), children=self,
            )  # fmt: skip
        except BaseException:
            kernel.tree.end(agent, "failed")
            raise
        return agent, run

    def _start(self, parent: Agent, agent: Agent, run: Run, request: Request, args: SpawnArgs) -> None:
        with self._lock:
            late = self._closing or parent.id not in self._runs
            if not late:
                self._runs[agent.id] = run
                self._requests[agent.id] = request
                if args.detach:
                    self._detached.add(agent.id)
        info = {"program": args.program, "argv": args.argv or [args.program], "parent_id": parent.id.hex()}
        run.kernel.note_agent(agent, "start", info | {"policy": run.plan.policy.rule_texts[:200]}, {})
        try:
            if late:
                run.kill()
            run.start()
        except CannotRun as error:
            raise _call_error(error) from error

    def ended(self, run: Run, result: RunResult | CannotRun) -> None:
        """A child's process tree is gone: its agent ends. Until its last entry is written it is waited for."""
        agent, kernel = run.agent, run.kernel
        try:
            agent.ledger.charge("cpu_ns", run.cpu_ns())
            kernel.tree.end(agent, "failed" if isinstance(result, CannotRun) else "ended")
            reason = result.message if isinstance(result, CannotRun) else result.reason
            kernel.note_agent(agent, "end", {}, {"exit_code": result.exit_code, "reason": reason})
        finally:
            with self._lock:
                self._runs.pop(agent.id, None)
                self._counted.discard(agent.id)
                self._requests.pop(agent.id, None)

    def run_of(self, agent: Agent) -> Run | None:
        with self._lock:
            return self._runs.get(agent.id)

    def below(self, agent: Agent) -> list[Run]:
        """The runs whose use counts for this agent's next: of its own living children, and of those that outlive a
        child of its."""
        with self._lock:
            return [
                run for run in self._runs.values() if run.agent.id not in self._counted and self._next(run) is agent
            ]

    def _next(self, run: Run) -> Agent | None:
        """The nearest above that lives. Precondition: _lock is held."""
        at = run.agent.parent
        while at is not None and (at.id not in self._runs or at.id in self._counted):
            at = at.parent
        return at

    def hand_over(self, run: Run) -> None:
        """A child is ending: what it has used, with all that it had started, is from now on its next above's."""
        with self._lock:
            self._counted.add(run.agent.id)
            above = self._next(run)
            if above is not None:
                self._runs[above.id].child_ended(run)

    def end_below(self, agent: Agent) -> None:
        """Ends the children of an agent that is ending, but for those that may outlive it; of the first agent, all
        there are. Returns when they are gone."""
        is_root = agent.parent is None
        with self._lock:
            if is_root:
                self._closing = True
                going = [run for run in self._runs.values() if run.agent.parent is not None]
            else:
                mine = [run for run in self._runs.values() if run.agent.parent is agent]
                going = [run for run in mine if run.agent.id not in self._detached]
        for run in going:
            run.kill()
        for run in going:
            with contextlib.suppress(CannotRun):
                run.wait()

    def flush(self) -> None:
        """Every event of every child that is in its ring is in the log."""
        with self._lock:
            runs = [run for run in self._runs.values() if run.agent.parent is not None]
        for run in runs:
            run.flush()


def _policy_of(given_policy: str | dict[str, Any]) -> Policy:
    from akbox.policy.load import parse

    text = given_policy if isinstance(given_policy, str) else msgspec.json.encode(given_policy).decode()
    if len(text) > POLICY_BYTES_MAX:
        raise CallError(Code.SCHEMA_INVALID, f"policy: at most {POLICY_BYTES_MAX} bytes")
    try:
        return parse(text, syntax="json" if text.lstrip().startswith("{") else "toml", name="policy")
    except PolicyError as error:
        raise _policy_error(error) from error


def _policy_error(error: PolicyError) -> CallError:
    first = error.problems[0]
    return CallError(
        Code.SCHEMA_INVALID, f"policy: {first.key}: {first.message}", suggested_fix=first.hint or None,
        details={"problems": len(error.problems)},
    )  # fmt: skip


def _call_error(error: CannotRun) -> CallError:
    if isinstance(error, TooManyProcesses):
        return CallError(Code.QUOTA_EXCEEDED, error.message, missing_cap="limits.pids", suggested_fix=error.hint)
    code = _CODES.get(error.exit_code, Code.TOOL_FAIL)
    return CallError(code, f"the agent could not be started: {error.message}", suggested_fix=error.hint or None)


def _make_tmpdir(parent: Path) -> Path:
    """In the parent's own, which its policy covers: nobody else can put something there."""
    directory = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        name = f"agent-{os.urandom(6).hex()}"
        os.mkdir(name, 0o700, dir_fd=directory)
    except OSError as error:
        raise CallError(Code.TOOL_FAIL, f"no directory can be made in {parent}: {error.strerror}") from error
    finally:
        os.close(directory)
    return parent / name


def _remove_tmpdir(path: Path) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)
