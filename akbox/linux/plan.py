"""What a launch needs, worked out before anything is started: from a policy, a command and this host, to plain data.

Nothing here has an effect on the agent; akbox/linux/run.py carries the plan out. A host that cannot hold the policy is
refused here (CannotRun names the missing layer), never silently weakened.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from akbox import _native
from akbox.kernel.secrets import secret_files
from akbox.linux.argument_rules import FilterPlan
from akbox.linux.channel import NAME as CHANNEL
from akbox.linux.channel import new_token
from akbox.linux.compiling import Compiled, compile_once
from akbox.linux.control import control_dir
from akbox.linux.environ import build_environment
from akbox.linux.errors import EXIT_CANNOT, CannotRun
from akbox.linux.hostcheck import Host, check_host
from akbox.linux.kernel_opens import listings_hold, reads_hold
from akbox.linux.program import Program, program
from akbox.linux.runtime import Needs, runtime_needs
from akbox.policy.compile import CompiledPolicy, Context, compile_policy
from akbox.policy.inuse import policy_names
from akbox.policy.landlock import LandlockPlan
from akbox.policy.linked import with_links
from akbox.policy.model import Limits, Policy, Secret
from akbox.policy.rules import Grant, compose, states_names

INTERPOSERS = ("auto", "ptrace", "notify")
READ, WRITE = 1, 2
NO_BYTE_CODE = "PYTHONDONTWRITEBYTECODE"


class LaunchPlan(Struct, frozen=True):
    """argv, envp and paths are the bytes given to the kernel; `matcher` is the compiled policy for the enforcer;
    `resources` are the policy's limits, and no more than what a child agent's parent has; `limits` those of them that
    setrlimit(2) holds."""

    exec_path: bytes
    argv: tuple[bytes, ...]
    envp: tuple[bytes, ...]
    removed_env: tuple[str, ...]
    cwd: str
    tmpdir: Path
    policy: CompiledPolicy
    matcher: _native.Policy
    landlock: LandlockPlan
    filter: FilterPlan
    program: Program
    enforcer_flags: int
    listener_flags: int
    resources: Limits
    limits: tuple[tuple[int, int, int], ...]
    keep_fds: tuple[int, ...]
    degraded: tuple[str, ...]
    channel_token: str


class Request(Struct, frozen=True):
    """What the caller asked for. env: the environment that the policy's `env` section filters."""

    policy: Policy
    argv: Sequence[str]
    cwd: str
    env: Mapping[str, str]
    state_dir: Path
    tmpdir: Path
    interposer: str = "auto"
    audit_level: str | None = None
    allow_degraded: Sequence[str] = ()
    keep_fds: Sequence[int] = ()
    inner: bool = False  # of a child agent: every call that another policy above judges too is trapped
    strict: bool = False  # metadata is strict somewhere above
    within: Limits = Limits()  # what is above has no more
    set_env: Mapping[str, str] = {}  # set for the program, whatever the policy passes
    gateway: str = ""  # as in Context, as is the next
    gateway_socket: str = ""


def compile_for(
    policy: Policy, argv: Sequence[str], cwd: str, env: Mapping[str, str], tmpdir: Path, state_dir: Path
) -> CompiledPolicy:
    """The policy as a run of `argv` would have it. Raises PolicyError, CannotRun."""
    needs = _needs(policy, argv, cwd, env)
    files = secret_files(stated_secrets(policy))
    return compile_policy(policy, with_links(policy, _context(policy, needs, cwd, tmpdir, state_dir, files)))


def _needs(policy: Policy, argv: Sequence[str], cwd: str, env: Mapping[str, str]) -> Needs:
    parts = compose(policy)
    mode = next((part.runtime for _, part in parts if part.runtime), "auto")  # before the policy can be compiled
    return runtime_needs(argv, cwd, env, mode, names=states_names(parts))


def _context(
    policy: Policy,
    needs: Needs,
    cwd: str,
    tmpdir: Path,
    state_dir: Path,
    secret_files: tuple[str, ...],
    gateway: str = "",
    gateway_socket: str = "",
) -> Context:
    return Context(
        workdir=cwd,
        home=os.path.expanduser("~"),
        tmp=str(tmpdir),
        prefix=needs.prefix,
        state_dirs=(str(state_dir), *_control_dirs()),
        policy_files=policy_names(policy),
        channel=str(tmpdir / CHANNEL),
        secret_files=secret_files,
        gateway=gateway,
        gateway_socket=gateway_socket,
        runtime_grants=(*needs.grants, sdk_grant()),
    )


def make_plan(request: Request) -> LaunchPlan:
    """Raises CannotRun: 125 for a host or policy that does not fit, 126/127 for the command."""
    if request.interposer not in INTERPOSERS:
        raise CannotRun(f"unknown interposer {request.interposer!r}", "use auto, ptrace or notify")
    host = check_host(request.interposer, request.allow_degraded, request.state_dir)
    needs = _needs(request.policy, request.argv, request.cwd, request.env)
    secrets = stated_secrets(request.policy)
    context = _context(
        request.policy, needs, request.cwd, request.tmpdir, request.state_dir, secret_files(secrets), request.gateway,
        request.gateway_socket,
    )  # fmt: skip
    compiled = compile_once(request.policy, with_links(request.policy, context), request.state_dir)
    policy, landlock = compiled.policy, compiled.landlock
    level = request.audit_level or policy.audit.level
    reads_in_kernel = (
        not request.inner and host.landlock and level == "writes" and reads_hold(policy, landlock, compiled.rights)
    )
    listings_in_kernel = not request.inner and host.landlock and listings_hold(policy, landlock, compiled.rights)
    if reads_in_kernel:
        landlock = compiled.landlock_for_reads
    if policy.names:
        _check_resolver()
    plan = FilterPlan(
        arch=os.uname().machine,
        strict_metadata=request.strict or policy.fs_metadata == "strict",
        reads_in_kernel=reads_in_kernel,
        listings_in_kernel=listings_in_kernel,
        traced=host.authority_numbers,
        notify=host.notify,
        landlock=host.landlock,
        signals_scoped=host.signals_scoped,
        names=policy.names,
        accepts=host.accepts,
    )
    own = {secret.source.removeprefix("env:") for secret in secrets.values()}
    env, removed = build_environment(
        {name: value for name, value in request.env.items() if name not in own},
        policy.env,
        tmpdir=str(request.tmpdir),
        extra=agent_environment(),
        variables=policy.context.variables(),
    )
    token = new_token()
    resources = _narrowed(policy.limits, request.within)
    env |= {"AKBOX_CHANNEL": str(request.tmpdir / CHANNEL), "AKBOX_CHANNEL_TOKEN": token, **request.set_env}
    if _byte_code_is_of_use(compiled):
        env.pop(NO_BYTE_CODE, None)
    return LaunchPlan(
        exec_path=os.fsencode(needs.path),
        argv=tuple(_argument(a) for a in request.argv),
        envp=tuple(os.fsencode(f"{name}={value}") for name, value in env.items()),
        removed_env=tuple(removed),
        cwd=request.cwd,
        tmpdir=request.tmpdir,
        policy=policy,
        matcher=compiled.matcher,
        landlock=landlock,
        filter=plan,
        program=program(plan, request.state_dir),
        enforcer_flags=_enforcer_flags(plan, host),
        listener_flags=host.listener_flags,
        resources=resources,
        limits=_rlimits(resources),
        keep_fds=_keep(request.keep_fds),
        degraded=host.degraded,
        channel_token=token,
    )


def _control_dirs() -> tuple[str, ...]:
    """Where control sockets are; resolved, as paths are judged."""
    directory = control_dir()
    return () if directory is None else (os.path.realpath(directory),)


def with_environment(plan: LaunchPlan, extra: Mapping[str, str]) -> LaunchPlan:
    """The plan with variables that win over those of the same name."""
    names = tuple(os.fsencode(f"{name}=") for name in extra)
    kept = (item for item in plan.envp if not item.startswith(names))
    return replace(plan, envp=(*kept, *(os.fsencode(f"{name}={value}") for name, value in extra.items())))


def stated_secrets(policy: Policy) -> dict[str, Secret]:
    """The secrets of a policy and its profiles."""
    return {name: secret for _, part in reversed(compose(policy)) for name, secret in part.secrets.items()}


def agent_environment() -> dict[str, str]:
    """What akbox itself adds: the SDK on the agent's Python path, and a sign that it runs under akbox."""
    from akbox.resources import data_path

    return {"AKBOX": "1", "PYTHONPATH": str(data_path("sdk/python"))}


def _byte_code_is_of_use(compiled: Compiled) -> bool:
    """The shipped profile for Python turns byte code off; where the interpreter's packages may be written it is wanted,
    unless the policy itself says otherwise."""
    policy = compiled.policy
    own = policy.policy.env
    if NO_BYTE_CODE in own.set or NO_BYTE_CODE in own.passed:
        return False
    return bool(compiled.rights(f"{policy.context.prefix}/lib/python3/site-packages") & WRITE)


def sdk_grant() -> Grant:
    """The SDK is readable wherever it is on the path: programs list every directory of PYTHONPATH, and some (pip) end
    when they may not."""
    from akbox.resources import data_path

    return Grant(f"{os.path.realpath(data_path('sdk/python'))}/**", READ, "the SDK on the agent's path")


def _argument(text: str) -> bytes:
    data = os.fsencode(text)
    if b"\0" in data:
        raise CannotRun("an argument of the command holds a NUL byte, which no program can receive", "", EXIT_CANNOT)
    return data


def _enforcer_flags(plan: FilterPlan, host: Host) -> int:
    flags = _native.FLAG_EXEC_CONTINUE  # each image is verified by the tracer before its first instruction
    if plan.strict_metadata:
        flags |= _native.FLAG_STRICT_METADATA
    if host.fds_by_pidfd:
        flags |= _native.FLAG_FDS_BY_PIDFD
    return flags


def _check_resolver() -> None:
    from akbox.linux.resolvers import VARIABLE, servers

    try:
        servers(os.environ)
    except ValueError as error:
        raise CannotRun(str(error), f"or unset {VARIABLE}: then the host's resolv.conf says whom to ask") from error


def _narrowed(limits: Limits, within: Limits) -> Limits:
    """Of each limit the smaller. Core dumps are off unless asked for: they would copy the agent's memory past the
    policy."""
    limits = replace(limits, core=limits.core or 0)
    stated = ((name, getattr(limits, name), getattr(within, name)) for name in Limits.__struct_fields__)
    least = {name: min((n for n in both if n is not None), default=None) for name, *both in stated}
    return Limits(**least)


def _rlimits(limits: Limits) -> tuple[tuple[int, int, int], ...]:
    wanted = {
        resource.RLIMIT_CORE: limits.core,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_FSIZE: limits.file_size,
        resource.RLIMIT_STACK: limits.stack,
    }
    return tuple((which, value, value) for which, value in wanted.items() if value is not None)


def _keep(fds: Sequence[int]) -> tuple[int, ...]:
    for fd in fds:
        try:
            os.fstat(fd)
        except OSError:
            raise CannotRun(f"descriptor {fd} of --keep-fd is not open", "open it in the shell: 5<file") from None
        if fd < 3:
            raise CannotRun(f"--keep-fd {fd}: 0, 1 and 2 are always the agent's", "leave it out")
    return tuple(sorted(set(fds)))
