"""One run: a confined process tree, from its launch to the last entry of its log.

A run has one thread of its own that clones the first process, seizes it and is its tracer to the end (ptrace and the
parent-death signal both know threads, not processes). Beside it: the enforcer's notify threads (C), the drain, the
upcalls of the prctl door and, when there are time limits, the watchdog.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from akbox import _native
from akbox.kernel.audit import AuditError
from akbox.kernel.kernel import Kernel
from akbox.kernel.signing import Signer
from akbox.linux import ruleset, tmpdirs
from akbox.linux.authority import Doors
from akbox.linux.channel import Channel
from akbox.linux.control import Control
from akbox.linux.drain import Drain
from akbox.linux.errors import (
    EXIT_BUDGET,
    EXIT_CANNOT,
    EXIT_NOT_EXECUTABLE,
    EXIT_NOT_FOUND,
    CannotRun,
    TooManyProcesses,
)
from akbox.linux.limits import IO_BYTES, MEMORY, RunLimits
from akbox.linux.once import Once
from akbox.linux.plan import LaunchPlan
from akbox.linux.result import RunResult
from akbox.linux.summary import result_document, write_summary
from akbox.linux.tracer import TraceLoop
from akbox.linux.unfinished import unmark
from akbox.linux.upcalls import Upcalls
from akbox.linux.watchdog import GRACE_S, Watchdog
from akbox.store.base import StoreError

if TYPE_CHECKING:
    from akbox.kernel.agents import Agent
    from akbox.kernel.anchor import Anchors
    from akbox.kernel.approvals import Request
    from akbox.linux.children import Children, Member
    from akbox.linux.gateway import ModelGateway
    from akbox.linux.net_services import NetServices
    from akbox.linux.ptrace_calls import PtraceCalls
    from akbox.linux.tools import RunTools

PR_SET_DUMPABLE = 4
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5
_RING_BYTES = 1 << 18  # two to three thousand events: 20 ms of the fastest agent, half of it before the drain is woken
_NOTIFY_THREADS = 2


class Run:
    """Started by Sandbox.start(). `wait()` for its result; the other methods may be called from any thread
    meanwhile. Once it is made, the kernel, its log and the private TMPDIR are its own to close, also when it cannot
    start."""

    def __init__(
        self,
        plan: LaunchPlan,
        kernel: Kernel,
        run_dir: Path,
        *,
        stdio: tuple[int, int, int],
        tty_fd: int,
        on_stopped: Callable[[int], None] | None,
        on_request: Callable[[Request], None] | None = None,
        member: Member | None = None,
        children: Children | None = None,
        gateway: ModelGateway | None = None,
        tools: RunTools | None = None,
    ) -> None:
        self.plan = plan
        self.kernel = kernel
        self.run_dir = run_dir
        self.agent = kernel.agent(kernel.root) if member is None else member.agent
        self._above = None if member is None else member.parent  # of a child agent: the run of the one that started it
        self.children = children
        self.anchors: Anchors | None = None  # set before start(), as children is
        self._not_anchored: str | None = None
        self.pid = 0
        self._stdio = stdio
        self._tty_fd = tty_fd
        self._on_request = on_request or (lambda _request: None)
        self._on_stopped = on_stopped or (lambda _signal: None)
        self._lock = threading.Lock()  # guards _status, _reason and _failure, and signals against the end of pid
        self._status: int | None = None
        self._reason: str | None = None  # the budget or limit that ended the run: "budget wall_time_ms"
        self._failure: str | None = None  # what went wrong on our side
        self._started: Once[None] = Once()
        self._result: Once[RunResult] = Once()
        self._thread = threading.Thread(target=self._main, name="akbox-run", daemon=True)
        ring_path = run_dir / ("ring" if member is None else f"ring-{self.agent.id.hex()}")
        self._ring = _make_ring(ring_path, kernel.run_id)
        self._things = contextlib.ExitStack()  # what is put away when no process is left, the last one first
        self._things.callback(tmpdirs.remove, plan.tmpdir)
        if member is not None:
            self._things.callback(ring_path.unlink)  # its events are in the log by then
        self._things.callback(self._ring.close)
        self.gateway = gateway
        if gateway is not None:
            self._things.callback(gateway.close)
        self._tools = tools
        if tools is not None:
            self._things.callback(tools.release)
            self._things.callback(tools.close)
            tools.attach(self)
        self._drain = Drain(self._ring, kernel, self.agent.id, self.fail)
        self._tracer: _native.Tracer = _native.Tracer(
            plan.program.trapped,
            not plan.filter.notify,
            0 if plan.resources.pids is None else max(plan.resources.pids, 1),  # 0: none beside the first
            plan.resources.io_bytes is not None,
            None if self._above is None else self._above._tracer,
        )
        self._limits: RunLimits = RunLimits(
            plan, kernel, self.agent, self._tracer, self.tree_cpu_ns,
            above=None if self._above is None else self._above._limits,
            below=lambda: [run._limits for run in self._below()], detached=member is not None and member.detached,
        )  # fmt: skip
        self._watchdog: Watchdog | None = None
        self.matcher: _native.Policy = plan.matcher.view(None if self._above is None else self._above.matcher)
        self._control = Control(kernel, run_dir, self.fail) if member is None else None
        self._child: _native.Child | None = None
        self._net: NetServices | None = None  # when the policy takes it
        self._seized = False
        self._began_ns = 0
        # Of ended child agents, and of an earlier supervisor of this run; guarded by _lock:
        self._ended_cpu_ns = self.agent.ledger.used("cpu_ns")

    # ---- what a caller may do ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Returns when the program runs. Raises CannotRun; then no process, thread or file of the run is left."""
        _native.prctl(PR_SET_DUMPABLE, 0)  # the agent has our uid: without this it could read and trace us
        try:
            self._thread.start()
        except RuntimeError as error:
            self._things.close()
            self._publish(CannotRun(f"no thread can be started: {error}", "is there a limit on processes?"))
        try:
            self._started.get()
        except BaseException:  # an interrupted caller has no Run to end
            self.kill()
            if self._thread.ident is not None:
                self._thread.join()
            raise

    def wait(self, timeout: float | None = None) -> RunResult:
        """The result, once the whole tree is gone and the log is complete. Raises TimeoutError; then the run goes
        on."""
        return self._result.get(timeout)

    @property
    def finished(self) -> bool:
        return self._result.done()

    def signal(self, number: int) -> None:
        """Sends a signal to the agent's first process group. A run that has ended is no error."""
        with self._lock:
            if self.pid and self._status is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, number)

    def kill(self) -> None:
        """SIGKILL to the whole tree."""
        self._tracer.kill()

    def fail(self, reason: str) -> None:
        """akbox cannot go on holding this run: it ends now, with exit code 125 and this reason."""
        if self._above is not None:
            self._above.fail(reason)
            return
        with self._lock:
            self._failure = self._failure or reason
        self._tracer.kill()

    def flush(self) -> None:
        """Every event of this run, and of the agents it started, is in the log, and its bytes are counted."""
        if self._net is not None:
            self._net.count()
        self._drain.flush()
        if self._above is None and self.children is not None:
            self.children.flush()

    def tree_cpu_ns(self) -> int:
        """CPU time of the agent and of everything below it, ended ones included."""
        return self.cpu_ns() + self._ended_cpu_ns + sum(run.tree_cpu_ns() for run in self._below())

    def _below(self) -> list[Run]:
        return [] if self.children is None else self.children.below(self.agent)

    def net_of(self, agent_id: bytes) -> NetServices | None:
        """What an agent of this run has of its own on loopback; None: its policy takes nothing of it."""
        if agent_id == self.agent.id:
            return self._net
        run = None if self.children is None else self.children.run_of(self.kernel.agent(agent_id))
        return None if run is None else run._net

    def child_ended(self, child: Run) -> None:
        """A child agent has ended: what it had used, with all that it had started, is in these sums from now on."""
        cpu_ns = child.cpu_ns() + child._ended_cpu_ns
        with self._lock:
            self._ended_cpu_ns += cpu_ns
        self._limits.child_ended(child._limits)

    def cpu_ns(self) -> int:
        """CPU time that the tree has used, ended processes included."""
        return self._tracer.cpu_ns()

    # ---- the run's thread ----------------------------------------------------------------------------------------

    def _main(self) -> None:
        """Whatever goes wrong in here: no process is left, everything is put away, and whoever waits hears of it."""
        error: Exception | None = None
        try:
            with self._things:
                try:
                    self._hold()
                finally:
                    self._end_tree()
                    if self.children is not None:  # what they used is held by what is put away now
                        self.children.end_below(self.agent)
        except Exception as problem:  # the run's edge
            error = problem
        try:
            self._publish(error)
        except Exception as problem:  # nothing is swallowed: it is what wait() raises
            self._started.fail(CannotRun(f"internal error: {problem!r}"))
            self._result.fail(problem)

    def _launch(self) -> _native.Enforcer:
        """Clone, seize, confine. On return the child waits in its execve for an answer of the enforcer."""
        plan = self.plan
        flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | plan.listener_flags if plan.filter.notify else 0
        with contextlib.ExitStack() as files:
            cwd_fd = os.open(plan.cwd, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            files.callback(os.close, cwd_fd)
            ruleset_fd, kernel_reads, outer = -1, b"", []
            if plan.filter.landlock:
                rules = ruleset.build_ruleset(plan.landlock)
                ruleset_fd = rules.fd
                files.callback(os.close, ruleset_fd)
                if self._above is None:
                    kernel_reads = self._kernel_reads(rules.skipped)
                for above in self._all_above():
                    outer.append(ruleset.make_ruleset(above.plan.landlock))
                    files.callback(os.close, outer[-1])
            try:
                child = _native.launch(
                    exec_path=plan.exec_path,
                    argv=plan.argv,
                    envp=plan.envp,
                    cwd_fd=cwd_fd,
                    stdio=self._stdio,
                    keep_fds=plan.keep_fds,
                    ruleset_fd=ruleset_fd,
                    bpf=plan.program.bpf,
                    filter_flags=flags,
                    limits=plan.limits,
                    tty_fd=self._tty_fd,
                    drop_ids=None,
                    outer_rulesets=tuple(outer),
                )
                self._child = child
                child.ready()
                self._seize(child.pid)
                self._seized = True
                self._limits.admit(child.pid)
                enforcer = self._make_enforcer(child.pid)
                self._things.callback(enforcer.stop)
                enforcer.set_kernel_reads(kernel_reads)
                if self._net is not None:
                    enforcer.use_names(self._net.names)
                    self._net.start()
                listener = child.go()
            except _native.LaunchError as error:
                raise _launch_problem(error.args[0], error.args[2], plan) from error
        if listener >= 0:
            enforcer.start(listener, _NOTIFY_THREADS)
        Signer.prepare()
        self.pid = child.pid
        return enforcer

    def _seize(self, pid: int) -> None:
        try:
            self._tracer.seize(pid)
        except BlockingIOError:  # seized and killed: its end is to come
            self._seized = True
            raise TooManyProcesses from None

    def _wall_left_ms(self) -> int | None:
        """Of the limit, what an earlier supervisor of this run has left."""
        limit = self.agent.ledger.limit("wall_time_ms")
        earlier = self.kernel.earlier_ms if self._above is None else 0
        return None if limit is None else max(limit - earlier, 0)

    def _all_above(self) -> Iterator[Run]:
        """The runs of the agents above, the nearest first."""
        at = self._above
        while at is not None:
            yield at
            at = at._above

    def _kernel_reads(self, skipped: tuple[str, ...]) -> bytes:
        """A bit for each rule that Landlock enforces exactly for reading, little-endian."""
        plan = self.plan
        rules = plan.landlock.kernel_reads(lambda path: plan.matcher.rights(os.fsencode(path)), skipped)
        return sum(1 << rule for rule in rules).to_bytes(len(plan.policy.rules) // 8 + 1, "little")

    def _make_enforcer(self, pid: int) -> _native.Enforcer:
        return _native.Enforcer(
            self.matcher,
            self._ring,
            main_pid=pid,
            tracer_tid=_native.gettid(),
            flags=self.plan.enforcer_flags,
            refusals=self.plan.program.refusals,
            names=self.plan.program.names,
        )

    def _hold(self) -> None:
        """From the launch to the end of the tree. What is started is left to _things, in the order of its putting away:
        the last named first."""
        things = self._things
        self._drain.start()
        things.callback(self._drain.close)
        things.callback(self._limits.close)
        if self._control is not None:
            if self._control.start() and self.kernel.asks:
                self.kernel.enable_approvals(self._on_request)
            things.callback(self._control.close)
        self.agent.layer_ends(self._rule_over)
        things.callback(self._close_watchdog)
        self._net = self._make_net()
        if self._net is not None:
            things.callback(self._net.close)
        channel = Channel(self.kernel, self.agent.id, self.plan.channel_token, self.plan.tmpdir, self.fail)
        channel.start()
        things.callback(channel.close)
        enforcer = self._launch()
        doors = Doors(self.kernel, self.agent.id)
        if self._above is None:
            self.kernel.pre_query = self.flush
            self.kernel.halt = self.fail
            self.kernel.over_budget = self._over_budget
            self.kernel.spawner = None if self.children is None else self.children.spawn
        calls = None if self.plan.filter.notify else self._ptrace_calls(enforcer)
        if calls is not None:
            things.callback(calls.close)
        upcalls = Upcalls(enforcer, self.kernel, doors, self.fail)
        upcalls.start()
        things.callback(upcalls.join)
        things.callback(enforcer.stop)  # so that nobody waits for it any more
        if self.gateway is not None:
            things.callback(self.gateway.close)  # before those who wait for an answer of it are waited for
        if self._tools is not None:
            things.callback(self._tools.close)
        TraceLoop(
            self._tracer,
            enforcer,
            self._ring,
            doors,
            self.pid,
            on_started=self._program_started,
            on_stopped=self._on_stopped,
            on_exit=self._main_exited,
            on_failure=self.fail,
            calls=calls,
        ).run()

    def _rule_over(self, rule: int, at_ns: int) -> None:
        """A capability was revoked, or will be over: the matcher knows from here on. Where reads are Landlock's alone
        that cannot be, so the run ends."""
        self.matcher.end(rule, at_ns)
        what = self.plan.policy.rules[rule]
        if self.plan.filter.reads_in_kernel and (what.section == "fs.read" or what.need & 1):
            self.fail(
                f"{what} was revoked, and audit.level = writes leaves reads to Landlock, which cannot take it back"
            )

    def _make_net(self) -> NetServices | None:
        above = None if self._above is None else self._above._net
        policy, agent = self.plan.policy, self.agent
        if not policy.names and above is None and agent.ledger.limit("bytes") is None:
            return None
        from akbox.linux.net_services import NetServices

        return NetServices(policy, agent, self._ring, above=above, on_failure=self.fail)

    def _ptrace_calls(self, enforcer: _native.Enforcer) -> PtraceCalls:
        from akbox.linux.inject import Injector
        from akbox.linux.ptrace_calls import PtraceCalls
        from akbox.linux.syscalls import ARCHES

        arch = self.plan.filter.arch
        return PtraceCalls(self._tracer, enforcer, Injector(self.plan.tmpdir, arch), ARCHES[arch])

    def _program_started(self) -> None:
        self._began_ns = time.monotonic_ns()
        self._watchdog = Watchdog(wall_ms=self._wall_left_ms(), gauges=self._limits.gauges(), stop=self._limit_passed)
        self._watchdog.start()
        if self.gateway is not None:
            self.gateway.start(self.fail)
        self._started.put(None)

    def _close_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.close()

    def _main_exited(self, status: int) -> None:
        with self._lock:
            self._status = status

    def _end_tree(self) -> None:
        """Kills what is left and waits for its end; after an orderly run there is nothing."""
        if self._child is not None and not self._seized:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child.pid, signal.SIGKILL)
        self._tracer.kill()
        while self._tracer.wait()[0] != _native.STOP_ALL_GONE:
            pass

    def _publish(self, error: Exception | None) -> None:
        """No process is left: the log's last entry, the summary, and the news for whoever waits."""
        if self.children is not None:
            self.children.end_below(self.agent)
        if self._above is not None:
            self._publish_child(error)
            return
        if self.children is not None:
            self.children.close()
        self.kernel.pre_query = None
        cannot = None if self._started.done() else self._not_started(error)
        if cannot is not None:
            self._end_log({"exit_code": cannot.exit_code, "reason": cannot.message})
            write_summary(self.run_dir, self.kernel, {"exit_code": cannot.exit_code, "reason": cannot.message})
            self._started.fail(cannot)
            self._result.fail(cannot)
            return
        if error is not None:
            self._failure = self._failure or f"internal error: {error!r}"
        if self._reason is None and (limit := self._limits.ended_by_kernel(self._status)) is not None:
            self._reason = limit
            self._limits.record(limit)
        result = self._make_result()
        if not self._end_log({"exit_code": result.exit_code, "reason": result.reason, "usage": result.usage}):
            result = self._make_result()
        result = msgspec.structs.replace(result, not_anchored=self._not_anchored)
        write_summary(self.run_dir, self.kernel, result_document(result))
        self._started.put(None)  # killed before its first instruction, if nobody has heard of its start yet
        self._result.put(result)

    def _publish_child(self, error: Exception | None) -> None:
        """A child agent's end; a failure on our side is the whole run's."""
        assert self._above is not None
        assert self.children is not None
        cannot = None if self._started.done() else self._not_started(error)
        result = None if cannot is not None else self._make_result()
        try:
            if error is not None and cannot is None:
                self.fail(f"internal error: {error!r}")
            self.children.hand_over(self)
            ended = cannot or result
            assert ended is not None
            self.children.ended(self, ended)
        except (AuditError, StoreError, OSError) as problem:
            self.fail(f"the end of an agent cannot be recorded: {problem}")
        if cannot is not None:
            self._started.fail(cannot)
            self._result.fail(cannot)
        elif result is not None:
            self._started.put(None)
            self._result.put(result)

    def _not_started(self, error: Exception | None) -> CannotRun | None:
        """Why there was no program to run. None: there was."""
        if isinstance(error, CannotRun):
            return error
        if error is not None:
            return CannotRun(str(error) if isinstance(error, OSError) else f"internal error: {error!r}")
        problem = self._child.failure() if self._child is not None else None
        return None if problem is None else _launch_problem(problem[0], problem[1], self.plan)

    def _end_log(self, info: dict[str, Any]) -> bool:
        """False when the log could not be completed: then that is what ended the run."""
        try:
            try:
                self.kernel.finish(info)
            finally:
                self.kernel.close()
        except (AuditError, OSError) as error:
            self._failure = self._failure or f"the audit log cannot be written: {error}"
            return False
        unmark(self.run_dir.parent.parent, self.run_dir.name)
        if self.anchors is not None:
            self._not_anchored = self.anchors.close()
        return True

    def _make_result(self) -> RunResult:
        status = self._status if self._status is not None else signal.SIGKILL
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        exit_code = 128 + number if number else os.WEXITSTATUS(status)
        reason = "signalled" if number else "exited"
        if self._reason is not None:
            reason = self._reason
            if reason == MEMORY:
                number, exit_code = signal.SIGKILL, 128 + signal.SIGKILL
            elif reason.startswith("budget ") or reason == IO_BYTES:
                exit_code = EXIT_BUDGET
        if self._failure is not None:
            exit_code, reason = EXIT_CANNOT, self._failure
        usage: dict[str, Any] = {
            "wall_time_ms": (time.monotonic_ns() - self._began_ns) // 1_000_000 if self._began_ns else 0,
            "cpu_ns": self.cpu_ns(),
            **self._limits.usage(),
        }
        return RunResult(
            exit_code=exit_code,
            signal=number or None,
            reason=reason,
            usage=usage,
            denials=self.kernel.denials(),
            run_id=self.kernel.run_id.hex(),
        )

    def _over_budget(self, agent: Agent, name: str) -> None:
        """A measured budget of an agent is spent: as when time is up, on a thread that need not wait for it."""
        run = self if self.children is None else self.children.run_of(agent) or self

        def end() -> None:
            run._limit_passed(f"budget {name}", False)
            try:
                run.wait(GRACE_S)
            except TimeoutError:
                run._limit_passed(f"budget {name}", True)

        threading.Thread(target=end, name="akbox-over", daemon=True).start()

    def _limit_passed(self, reason: str, hard: bool) -> None:
        """The watchdog's thread: the entry first, then SIGTERM; five seconds later SIGKILL to the whole tree. Past the
        memory limit there is no time for the first two: it can grow by a gigabyte in that time."""
        with self._lock:
            first = self._reason is None
            self._reason = self._reason or reason
        if hard:
            self._tracer.kill()
        if first:
            self._limits.record(reason)
        if not hard:
            self.signal(signal.SIGTERM)


def _make_ring(path: Path, run_id: bytes) -> _native.Ring:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        return _native.Ring(fd, _RING_BYTES, run_id)  # maps the file and needs the descriptor no more
    finally:
        os.close(fd)


def _launch_problem(error: int, step: str, plan: LaunchPlan) -> CannotRun:
    """One sentence for what went wrong in the child."""
    program = os.fsdecode(plan.exec_path)
    reason = os.strerror(error)
    if error == errno.ESRCH:
        return CannotRun("the agent's first process was killed while the sandbox was set up")
    if step != "execve":
        return CannotRun(f"the sandbox could not be set up at step {step!r}: {reason}", "run `akbox doctor`")
    if error == errno.ENOENT:
        return CannotRun(f"{program}: {reason} (or its interpreter is missing)", exit_code=EXIT_NOT_FOUND)
    if error in (errno.EACCES, errno.EPERM):
        hint = "the policy does not let it be executed, or it has no execute permission; see `akbox policy explain`"
        return CannotRun(f"{program}: {reason}", hint, EXIT_NOT_EXECUTABLE)
    return CannotRun(f"{program}: {reason}", exit_code=EXIT_NOT_EXECUTABLE)
