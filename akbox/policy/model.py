"""The policy schema of version 1.0 as data. Every list is absent or a list of patterns; nothing here decides.

The `kind` in a string's Meta names the grammar that akbox/policy/check.py applies to it. Absent is not the same as
empty only where it says so (fs.exec); everywhere else both grant nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Struct, field

from akbox.policy.source import Source, Syntax

if TYPE_CHECKING:
    from os import PathLike

    from akbox.policy.check import Problem
    from akbox.policy.explain import Explanation

POLICY_VERSION = "1.0"
POLICY_BYTES_MAX = 1 << 20
RULES_MAX = 10_000

PathText = Annotated[str, Meta(extra={"kind": "path"})]
HostText = Annotated[str, Meta(extra={"kind": "host"})]
ConnectText = Annotated[str, Meta(extra={"kind": "connect"})]
BindText = Annotated[str, Meta(extra={"kind": "bind"})]
SocketText = Annotated[str, Meta(extra={"kind": "socket"})]
NameText = Annotated[str, Meta(extra={"kind": "name"})]
EffectText = Annotated[str, Meta(extra={"kind": "effect"})]
KeyText = Annotated[str, Meta(extra={"kind": "public-key"})]
SecretSource = Annotated[str, Meta(extra={"kind": "secret-source"})]
SecretUse = Annotated[str, Meta(extra={"kind": "secret-use"})]
ProfileName = Annotated[str, Meta(extra={"kind": "profile"})]
UpstreamName = Annotated[str, Meta(extra={"kind": "upstream"})]
MountName = Annotated[str, Meta(extra={"kind": "mount"})]
EnvName = Annotated[str, Meta(extra={"kind": "env"})]
EnvPass = Annotated[str, Meta(extra={"kind": "env-pass"})]  # also "LC_*"
EnvValue = Annotated[str, Meta(extra={"kind": "env-value"})]  # ${workdir}, ${home}, ${tmp}, ${prefix} are replaced
Url = Annotated[str, Meta(extra={"kind": "url"})]
Bytes = Annotated[int, Meta(ge=0, extra={"kind": "size"})]  # also "512K", "2G" (powers of 1,024)
Count = Annotated[int, Meta(ge=0)]


class Section(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What every part of a policy has in common."""


class Fs(Section, frozen=True):
    """Files. `exec` None means: what `read` grants outside every `write` pattern. `protect` is readable, never
    writable."""

    read: tuple[PathText, ...] = ()
    write: tuple[PathText, ...] = ()
    exec: tuple[PathText, ...] | None = None
    deny: tuple[PathText, ...] = ()
    protect: tuple[PathText, ...] = ()
    metadata: Literal["open", "strict"] | None = None


class Net(Section, frozen=True):
    """Network. A rule of `deny` without `udp+` covers TCP and UDP: a refusal is never narrower than it reads.
    `private`: names whose answers may lie in loopback, private or this machine's own networks."""

    dns: tuple[HostText, ...] = ()
    connect: tuple[ConnectText, ...] = ()
    bind: tuple[BindText, ...] = ()
    listen: tuple[BindText, ...] = ()
    unix: tuple[SocketText, ...] = ()
    deny: tuple[ConnectText, ...] = ()
    private: tuple[HostText, ...] = ()
    sni: Literal["off", "enforce"] | None = None


class McpServer(Section, frozen=True):
    """An MCP server that akbox starts with the run, in a sandbox of its own under `policy`; its tools are NAME.TOOL.

    `timeout_ms`: of its start, and of each call (default: 30,000)."""

    command: tuple[str, ...]
    policy: Policy
    timeout_ms: Count | None = None


class Tools(Section, frozen=True):
    """Tools by name; `mcp`: servers whose tools there are besides, by a name for each."""

    allow: tuple[NameText, ...] = ()
    deny: tuple[NameText, ...] = ()
    mcp: dict[MountName, McpServer] = field(default_factory=dict)


class Wasm(Section, frozen=True):
    """WebAssembly modules of tools that were added (those that come with akbox need no rule), and the host calls that
    any tool may make. `signed_by`: public keys (Ed25519, in hex), one of which must have signed what was added."""

    modules: tuple[NameText, ...] = ()
    hostcalls: tuple[NameText, ...] = ()
    signed_by: tuple[KeyText, ...] = ()


class Upstream(Section, frozen=True):
    """One model provider behind the gateway; `key` is `secret:NAME`. `models`: those it serves (empty: any).

    `timeout_ms`: how long it may be silent; `retries`: how often a call that failed before its reply began is sent
    again.
    """

    type: Literal["anthropic", "openai"]
    base_url: Url
    key: Annotated[str, Meta(extra={"kind": "secret-ref"})] | None = None
    models: tuple[NameText, ...] = ()
    timeout_ms: Count | None = None
    retries: Annotated[int, Meta(ge=0, le=10)] | None = None


class Price(Section, frozen=True):
    """What a model costs, in US dollars for a million tokens; `cache_*`: of the prompt, where it is priced apart."""

    input: Annotated[float, Meta(ge=0)]
    output: Annotated[float, Meta(ge=0)]
    cache_read: Annotated[float, Meta(ge=0)] | None = None
    cache_write: Annotated[float, Meta(ge=0)] | None = None


class Infer(Section, frozen=True):
    """Models by name; `max_tokens` is the most that one call may ask for. `aliases`: other names for models, replaced
    before anything is decided. `prices`: before the shipped ones, by name or glob. `detect`: what happens to a request
    that holds what looks like a secret."""

    models: tuple[NameText, ...] = ()
    max_tokens: Count | None = None
    upstreams: dict[UpstreamName, Upstream] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    prices: dict[NameText, Price] = field(default_factory=dict)
    log_bodies: bool | None = None
    detect: Literal["off", "block", "redact"] | None = None


class Spawn(Section, frozen=True):
    """Programs that SPAWN may start as child agents, and how many agents may live at once."""

    allow: tuple[PathText, ...] = ()
    deny: tuple[PathText, ...] = ()
    max_agents: Count | None = None


class Secret(Section, frozen=True, rename={"source": "from", "uses": "for"}):
    """Where a secret comes from (`env:NAME`, `file:/path`, `exec:COMMAND ARGS`) and who may use it. The agent never
    sees it."""

    source: SecretSource
    uses: tuple[SecretUse, ...] = ()


class Env(Section, frozen=True):
    """Variables passed through from the caller, and variables set."""

    passed: tuple[EnvPass, ...] = field(default=(), name="pass")
    set: dict[EnvName, EnvValue] = field(default_factory=dict)


class Limits(Section, frozen=True):
    """Resource limits of the kernel; sizes in bytes."""

    memory: Bytes | None = None
    pids: Count | None = None
    open_files: Count | None = None
    file_size: Bytes | None = None
    core: Bytes | None = None
    stack: Bytes | None = None
    io_bytes: Bytes | None = None


class Budgets(Section, frozen=True):
    """What the run may spend. 0 means none may be spent; None means the default of DEFAULT_BUDGETS, or no limit."""

    tokens: Count | None = None
    output_tokens: Count | None = None
    tool_calls: Count | None = None
    wall_time_ms: Count | None = None
    cpu_ns: Count | None = None
    bytes: Bytes | None = None
    heap_objects: Count | None = None
    heap_bytes: Bytes | None = None
    usd: Annotated[float, Meta(ge=0)] | None = None


DEFAULT_BUDGETS: dict[str, int] = {
    "tokens": 1_000_000,
    "tool_calls": 1_000,
    "heap_objects": 100_000,
    "heap_bytes": 256 << 20,
}


class Approve(Section, frozen=True):
    """Effects that wait for a person, as `section pattern` ("fs.write /app/deploy/**")."""

    timeout_ms: Count | None = None
    effects: tuple[EffectText, ...] = ()


class Heap(Section, frozen=True):
    """Types of heap objects; each value is a JSON Schema."""

    types: dict[str, dict[str, Any]] = field(default_factory=dict)  # Any: a JSON Schema is free-form by its definition


class Taint(Section, frozen=True):
    """Where tainted values may go. `respond`: what the run's answer may be made of, besides what is trusted."""

    respond: Literal["any", "trusted", "url", "path", "sql", "cmd", "html"] | None = None


class Audit(Section, frozen=True):
    """What is logged, when it is durable, and keys whose values never are written."""

    level: Literal["full", "writes"] | None = None
    durability: Literal["group", "sync", "async"] | None = None
    redact: tuple[str, ...] = ()


class Policy(Section, frozen=True):
    """One policy file. `profiles` are joined to it when it is compiled; `source` is where it was read, not part of
    it. The methods are the library's way to the functions of load.py and explain.py."""

    version: Literal["1.0"]
    profiles: tuple[ProfileName, ...] = ()
    fs: Fs = Fs()
    net: Net = Net()
    tools: Tools = field(default_factory=Tools)
    wasm: Wasm = Wasm()
    infer: Infer = field(default_factory=Infer)
    spawn: Spawn = Spawn()
    secrets: dict[str, Secret] = field(default_factory=dict)
    runtime: Literal["auto", "none"] | None = None
    env: Env = field(default_factory=Env)
    limits: Limits = Limits()
    budgets: Budgets = Budgets()
    approve: Approve = Approve()
    heap: Heap = field(default_factory=Heap)
    taint: Taint = Taint()
    audit: Audit = Audit()
    source: Source | None = None

    @staticmethod
    def load(path: str | PathLike[str]) -> Policy:
        """Read a policy file (.json is JSON, anything else TOML). A run under it protects the file. Raises PolicyError
        with every problem, or OSError when it can't be read."""
        from akbox.policy.load import load

        return load(path)

    @staticmethod
    def parse(text: str, *, syntax: Syntax = "toml", name: str = "policy") -> Policy:
        """Parse policy text; `name` is what problems call it. Raises PolicyError."""
        from akbox.policy.load import parse

        return parse(text, syntax=syntax, name=name)

    @staticmethod
    def check(path: str | PathLike[str]) -> list[Problem]:
        """What is wrong with a policy file, in the order of its lines; empty when it is valid. Raises OSError when it
        can't be read."""
        from akbox.policy.check import PolicyError
        from akbox.policy.load import load

        try:
            load(path)
        except PolicyError as error:
            return error.problems
        return []

    def explain(
        self,
        op: str,
        target: str,
        *,
        cwd: str | PathLike[str] | None = None,
        state_dir: str | PathLike[str] | None = None,
    ) -> Explanation:
        """Would a run that starts in `cwd` (default: here) now be allowed `op` on `target`, and by which rule?

        op: "fs.read", "fs.write", "fs.exec", "net.connect", …, as `akbox policy explain --op` takes them. target: a
        path, relative to cwd and followed through symbolic links, or an endpoint ("ip:10.0.0.1:443"). What the launched
        command itself needs is not counted in. Raises PatternError (a ValueError) for an op that is none, PolicyError.
        """
        from akbox.policy.explain import compile_here, explain_at

        folder = os.path.realpath(os.getcwd() if cwd is None else cwd)
        return explain_at(compile_here(self, folder, state_dir=state_dir), op, target, folder)
