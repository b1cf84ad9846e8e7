"""The library's front door: a policy, held over as many runs as one likes, several at once if need be.

    result = akbox.Sandbox("python-agent").run(["python3", "agent.py"])

The command line is a client of this module; neither decides anything.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from akbox.kernel.audit import AuditError
from akbox.kernel.kernel import Kernel
from akbox.kernel.open import open_kernel
from akbox.kernel.signing import SigningKeyError
from akbox.linux import tmpdirs
from akbox.linux.capture import Capture
from akbox.linux.errors import CannotRun
from akbox.linux.plan import LaunchPlan, Request, make_plan, with_environment
from akbox.linux.result import RunResult
from akbox.linux.run import Run
from akbox.linux.shipped import recall_shipped, remember_shipped
from akbox.linux.unfinished import mark, recover_unfinished
from akbox.policy.load import load
from akbox.policy.model import Policy
from akbox.policy.presets import load_preset
from akbox.policy.rules import compose
from akbox.rundir import StateError, new_run_dir, state_root

if TYPE_CHECKING:
    from akbox.kernel.anchor import Anchors
    from akbox.kernel.approvals import Request as ApprovalRequest
    from akbox.linux.children import Children
    from akbox.linux.gateway import ModelGateway
    from akbox.linux.resume import Resumed
    from akbox.linux.terminal import Terminal
    from akbox.linux.tools import RunTools

__all__ = ["CannotRun", "Run", "RunResult", "Sandbox"]


class Sandbox:
    """A policy and where its runs are kept.

    policy: a Policy, a file's path, or a preset's name (default: "default"). cwd: the runs' working directory. audit:
    "full" or "writes" instead of the policy's level. allow_degraded: layers that may be missing, by `akbox doctor`'s
    names. env: the environment that the policy's `env` section filters (default: this process's). gateway: whether a
    policy with `infer.upstreams` gets its model gateway. anchors: as `akbox run --anchor`, where checkpoints go.
    tool: the directory of a tool in development, which the runs have besides those of `akbox tool list`. As a context
    manager it kills what still runs at the end. The process becomes non-dumpable with its first run (prctl(2),
    PR_SET_DUMPABLE): the agent has its uid and must not read it. Raises PolicyError, StateError.
    """

    def __init__(
        self,
        policy: Policy | str | os.PathLike[str] | None = None,
        *,
        cwd: str | os.PathLike[str] | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        interposer: str = "auto",
        audit: str | None = None,
        allow_degraded: Sequence[str] = (),
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        keep_fds: Sequence[int] = (),
        gateway: bool = True,
        anchors: Sequence[str] = (),
        tool: Path | None = None,
    ) -> None:
        self._state = state_root(state_dir)
        recall_shipped(self._state)
        self._policy = _as_policy(policy)
        self._cwd = os.path.realpath(cwd if cwd is not None else os.getcwd())
        self._interposer = interposer
        self._audit = audit
        self._allow_degraded = tuple(allow_degraded)
        self._name = name
        self._env = env
        self._keep_fds = tuple(keep_fds)
        self._gateway = gateway
        self._anchors = tuple(anchors)
        self._tool = tool
        self._lock = threading.Lock()
        self._live: list[Run] = []  # guarded by _lock

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        with self._lock:
            live, self._live = self._live, []
        for run in live:
            if not run.finished:
                run.kill()
                run.wait()

    def start(
        self,
        argv: Sequence[str],
        *,
        stdio: tuple[int, int, int] = (0, 1, 2),
        terminal: Terminal | None = None,
        on_stopped: Callable[[int], None] | None = None,
        on_request: Callable[[ApprovalRequest], None] | None = None,
        resume: Resumed | None = None,
    ) -> Run:
        """Starts `argv` and returns when its program runs. stdio: the three standard streams' descriptors, -1 for
        closed.

        terminal: the pty whose slave the agent gets as its controlling terminal. on_stopped(signal) is called, from
        another thread, when the first process stopped (^Z). on_request(request) is called, from another thread, when an
        `approve` rule makes the agent wait for a person (`akbox approve`). Raises
        CannotRun with the exit code 125, 126 or 127.
        """
        if not argv:
            raise ValueError("there is no command to run")
        with contextlib.ExitStack() as undo:
            tmpdir = tmpdirs.make(self._state)
            undo.callback(tmpdirs.remove, tmpdir)
            gateway = self._make_gateway(tmpdir)
            if gateway is not None:
                undo.callback(gateway.close)
            request = self._request(argv, tmpdir, gateway)
            plan = make_plan(request)
            kernel, run_dir = (
                self._open_kernel(plan, argv) if resume is None else self._reopen_kernel(plan, argv, resume)
            )
            undo.callback(kernel.close)
            if gateway is not None:
                gateway.prepare(kernel, self._environ())
                plan = with_environment(plan, gateway.environment(kernel.agent(kernel.root)))
                if not any(item.startswith(b"CODEX_HOME=") for item in plan.envp):
                    plan = with_environment(plan, gateway.settings(tmpdir))
            tools = self._make_tools(plan, kernel)
            if tools is not None:
                undo.callback(tools.release)
                undo.callback(tools.close)
            run = Run(
                plan,
                kernel,
                run_dir,
                stdio=terminal.stdio if terminal is not None else stdio,
                tty_fd=terminal.slave_fd if terminal is not None else -1,
                on_stopped=on_stopped,
                on_request=on_request,
                gateway=gateway,
                tools=tools,
            )
            run.anchors = self._start_anchors(kernel)
            if plan.policy.grants("spawn.allow") or any(r.ask and r.section == "spawn" for r in plan.policy.rules):
                run.children = _children(run, request, terminal.stdio if terminal is not None else stdio)
            undo.pop_all()  # from here on the run closes and removes them: their names may soon be another run's
        run.start()
        remember_shipped(self._state)
        with self._lock:
            self._live = [r for r in self._live if not r.finished] + [run]
        return run

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        capture: bool = True,
        timeout: float | None = None,
    ) -> RunResult:
        """Runs `argv` to its end. stdin: what it reads (None: nothing). capture: keep its output in the result, at most
        64 MiB of each stream (the rest is read and thrown away). timeout: seconds, then it is killed and TimeoutError
        raised. Raises CannotRun."""
        with Capture(stdin, capture) as streams:
            run = self.start(argv, stdio=streams.child_ends)
            return streams.finish(run, timeout)

    async def run_async(
        self, argv: Sequence[str], *, stdin: bytes | None = None, capture: bool = True, timeout: float | None = None
    ) -> RunResult:
        """`run` for asyncio: the same, without blocking the loop."""
        import asyncio  # 20 ms that other callers need not wait for

        return await asyncio.to_thread(self.run, argv, stdin=stdin, capture=capture, timeout=timeout)

    def _make_gateway(self, tmpdir: Path) -> ModelGateway | None:
        if not self._gateway or not any(part.infer.upstreams for _, part in compose(self._policy)):
            return None
        from akbox.linux.gateway import model_gateway

        return model_gateway(self._policy, tmpdir)

    def _make_tools(self, plan: LaunchPlan, kernel: Kernel) -> RunTools | None:
        if not any(rule.section in ("tools.allow", "tools") for rule in plan.policy.rules):
            return None
        from akbox.linux.tools import RunTools
        from akbox.tools.failure import ToolFailure

        try:
            return RunTools(kernel, self._state, plan.cwd, self._tool, plan.policy.mcp)
        except ToolFailure as error:
            raise CannotRun(error.message, error.suggested_fix or "") from error

    def _environ(self) -> Mapping[str, str]:
        return os.environ if self._env is None else self._env

    def _request(self, argv: Sequence[str], tmpdir: Path, gateway: ModelGateway | None) -> Request:
        return Request(
            policy=self._policy,
            argv=tuple(argv),
            cwd=self._cwd,
            env=dict(self._environ()),
            state_dir=self._state,
            tmpdir=tmpdir,
            interposer=self._interposer,
            audit_level=self._audit,
            allow_degraded=self._allow_degraded,
            keep_fds=self._keep_fds,
            gateway="" if gateway is None else gateway.endpoint,
            gateway_socket="" if gateway is None else gateway.socket_path,
        )

    def _open_kernel(self, plan: LaunchPlan, argv: Sequence[str]) -> tuple[Kernel, Path]:
        """The kernel, with the run's first entry in its log, and the run's directory. Raises CannotRun."""
        run_id = os.urandom(16)
        try:
            run_dir = new_run_dir(run_id.hex(), self._state)
        except StateError as error:
            raise CannotRun(error.message, error.hint) from error
        recover_unfinished(self._state)
        with contextlib.ExitStack() as undo:
            try:
                mark(self._state, run_id.hex())
                kernel = open_kernel(plan.policy, run_dir, run_id=run_id, keys_dir=self._state / "keys")
                undo.callback(kernel.close)
                kernel.start(self._start_info(plan, argv))
            except (AuditError, SigningKeyError, OSError) as error:
                raise CannotRun(f"the audit log cannot be written: {error}") from error
            undo.pop_all()
        return kernel, run_dir

    def _reopen_kernel(self, plan: LaunchPlan, argv: Sequence[str], resume: Resumed) -> tuple[Kernel, Path]:
        """The kernel of an earlier run, with what it left. Raises CannotRun."""
        from akbox.store.base import StoreError

        with contextlib.ExitStack() as undo:
            try:
                mark(self._state, resume.run_dir.name)
                kernel = open_kernel(
                    plan.policy, resume.run_dir, run_id=resume.run_id, keys_dir=self._state / "keys", root=resume.root
                )
                undo.callback(kernel.close)
                kernel.resume(self._start_info(plan, argv), wall_ms=resume.wall_ms, cpu_ns=resume.cpu_ns)
            except (AuditError, SigningKeyError, StoreError, OSError) as error:
                raise CannotRun(f"the run cannot be taken up: {error}") from error
            undo.pop_all()
        return kernel, resume.run_dir

    def _start_anchors(self, kernel: Kernel) -> Anchors | None:
        """The run's anchors, which have its first checkpoint. Raises CannotRun."""
        if not self._anchors:
            return None
        from akbox.kernel.anchor import AnchorError, Anchors, parse_anchor

        try:
            anchors = Anchors([parse_anchor(text) for text in self._anchors])
            anchors.first(kernel.log.checkpoint())
        except AnchorError as error:
            raise CannotRun(f"the log cannot be anchored: {error}") from error
        except AuditError as error:
            raise CannotRun(f"the audit log cannot be written: {error}") from error
        kernel.log.on_checkpoint(anchors.offer)
        return anchors

    def _start_info(self, plan: LaunchPlan, argv: Sequence[str]) -> dict[str, object]:
        from akbox import __version__

        return {
            "akbox": __version__,
            "argv": list(argv),
            "cwd": plan.cwd,
            "tmpdir": str(plan.tmpdir),
            "run_name": self._name,  # not "name": that key is the entry's own and is hashed with the request
            "interposer": {"ptrace": plan.filter.traced, "notify": plan.filter.notify},
            "degraded": list(plan.degraded),
        }


def _children(run: Run, request: Request, stdio: tuple[int, int, int]) -> Children:
    """What starts further agents; their output goes where the first one's goes."""
    from akbox.linux.children import Children

    out, err = (os.dup(fd) if fd >= 0 else -1 for fd in stdio[1:])
    return Children(run, request, (out, err))


def _as_policy(policy: Policy | str | os.PathLike[str] | None) -> Policy:
    """A name with a slash, a dot or a Path is a file; anything else is a preset."""
    if policy is None:
        return load_preset("default")
    if isinstance(policy, Policy):
        return policy
    text = os.fspath(policy)
    if isinstance(policy, str) and "/" not in text and "." not in text:
        return load_preset(text)
    return load(text)
