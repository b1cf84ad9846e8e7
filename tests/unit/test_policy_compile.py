"""Compiled policies: precedence, defaults, what is always denied, every kind of effect, and the suggestions."""

from __future__ import annotations

import json
import re
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from akbox.kernel.ops import Op
from akbox.policy import effects, suggest
from akbox.policy.check import PolicyError
from akbox.policy.compile import CompiledPolicy, Context, Grant, compile_policy
from akbox.policy.load import parse
from akbox.policy.matcher import ALLOW, ASK, DENY, EXEC, READ, WRITE

CONTEXT = Context("/home/u/w", "/home/u", "/tmp/run", "/usr", ("/home/u/.local/state/akbox",))
OPEN, UNLINK, RENAME, STAT = 0x100, 0x101, 0x102, 0x105
CONNECT, DNS, BIND, LISTEN, ACCEPT, SEND = range(0x200, 0x206)
EXECUTE, SIGNAL, TOOL, WASM, INFER, MAIL, SECRET = 0x300, 0x301, 0x500, 0x501, 0x502, 0x503, 0x504


def compiled(text: str, context: Context = CONTEXT) -> CompiledPolicy:
    return compile_policy(parse(f'version = "1.0"\n{text}', syntax="toml", name="p.toml"), context)


def decision(policy: CompiledPolicy, op: int, target: str, need: int = 0, target2: str | None = None) -> int:
    return policy.decide(op, target, need=need, target2=target2).decision


# ---- precedence and defaults


def test_deny_before_approve_before_allow() -> None:
    policy = compiled(
        'fs.write = ["/d/**"]\nfs.deny = ["/d/no/**"]\n'
        'approve.effects = ["fs.write /d/ask/**", "fs.write /d/no/**", "fs.write /e"]'
    )
    assert decision(policy, OPEN, "/d/x", WRITE) == ALLOW
    assert decision(policy, OPEN, "/d/ask/x", WRITE) == ASK
    assert decision(policy, OPEN, "/e", WRITE) == ASK
    verdict = policy.decide(OPEN, "/d/no/x", need=WRITE)
    assert verdict.decision == DENY
    assert str(verdict.rule) == "fs.deny /d/no/**"
    assert verdict.rule is not None
    assert verdict.rule.where == "p.toml:3"


def test_an_empty_policy_grants_nothing() -> None:
    policy = compiled("")
    for op, target in [
        (OPEN, "/etc/hosts"),
        (UNLINK, "/x"),
        (EXECUTE, "/bin/sh"),
        (CONNECT, "ip:127.0.0.1:80"),
        (CONNECT, "dns:example.com:80"),
        (CONNECT, "unix:/run/x"),
        (DNS, "dns:example.com"),
        (BIND, "ip:127.0.0.1:0"),
        (TOOL, "tool:x"),
        (WASM, "wasm:x"),
        (INFER, "model:x"),
        (SECRET, "secret:x"),
        (1032, "/bin/sh"),
    ]:
        assert decision(policy, op, target) == DENY, (op, target)


def test_both_needs_for_reading_and_writing() -> None:
    policy = compiled('fs.read = ["/d/**"]\nfs.write = ["/d/w", "/x"]')
    assert decision(policy, OPEN, "/d/w", READ | WRITE) == ALLOW
    assert decision(policy, OPEN, "/d/r", READ | WRITE) == DENY
    assert policy.decide(OPEN, "/x", need=READ | WRITE).missing_cap == "fs.read"


def test_exec_defaults_to_read_outside_write() -> None:
    grants = (Grant("/opt/py/**", READ | EXEC, "prefix"), Grant("/home/u/w/.venv/**", READ | EXEC, "prefix"))
    context = Context("/home/u/w", "/home/u", "/tmp/run", "/usr", (), grants)
    policy = compiled('fs.read = ["/usr/**", "/home/u/w/**"]\nfs.write = ["/home/u/w/**"]', context)
    assert policy.default_exec
    assert decision(policy, EXECUTE, "/usr/bin/ls") == ALLOW
    assert decision(policy, EXECUTE, "/opt/py/bin/python") == ALLOW
    assert decision(policy, EXECUTE, "/home/u/w/evil") == DENY
    assert decision(policy, EXECUTE, "/home/u/w/.venv/bin/python") == DENY
    stated = compiled('fs.read = ["/usr/**"]\nfs.exec = []')
    assert decision(stated, EXECUTE, "/usr/bin/ls") == DENY


def test_runtime_none_drops_the_grants() -> None:
    context = Context("/w", "/home/u", "/tmp/run", "/usr", (), (Grant("/opt/**", READ, "prefix"),))
    assert decision(compiled("", context), OPEN, "/opt/x") == ALLOW
    assert decision(compiled('runtime = "none"', context), OPEN, "/opt/x") == DENY


def test_protect_is_readable_and_never_written() -> None:
    policy = compiled('fs.read = ["/d/**"]\nfs.write = ["/d/**"]\nfs.protect = ["**/.git/hooks/**"]')
    assert decision(policy, OPEN, "/d/a/.git/hooks/x", READ) == ALLOW
    assert decision(policy, OPEN, "/d/a/.git/hooks/x", WRITE) == DENY
    assert decision(policy, UNLINK, "/d/.git/hooks") == DENY


def test_renames_need_both_ends_and_keep_rights() -> None:
    policy = compiled('fs.read = ["/d/**"]\nfs.write = ["/d/**"]\nfs.exec = ["/d/bin/**"]\nfs.deny = ["/d/x/secret"]')
    assert decision(policy, RENAME, "/d/a", target2="/d/b") == ALLOW
    assert decision(policy, RENAME, "/d/a", target2="/e/b") == DENY
    assert decision(policy, RENAME, "/d/a", target2="/d/bin/a") == DENY
    assert decision(policy, RENAME, "/d/x", target2="/d/y") == DENY
    assert decision(policy, RENAME, "/d/x/secret", target2="/d/y") == DENY


@pytest.mark.parametrize(
    ("source", "target", "allowed"),
    [
        ("/d/sub", "/d/other", True),
        ("/d/sub", "/t/other", True),
        ("/d/x", "/d/y", False),  # /d/x/secret would be readable as /d/y/secret
        ("/d/tree", "/d/x", False),  # a prepared tree would become protected
        ("/d/a/.git", "/d/b", False),
        ("/d/b", "/d/a/.git", False),
        ("/d/b", "/ro/b", False),
        ("/d/b", "/d/bin", False),
    ],
)
def test_directories_move_only_between_places_with_equal_rights(source: str, target: str, allowed: bool) -> None:
    policy = compiled(
        'fs.read = ["/d/**", "/t/**", "/ro/**"]\nfs.write = ["/d/**", "/t/**"]\nfs.exec = ["/d/bin/*"]\n'
        'fs.deny = ["/d/x/secret"]\nfs.protect = ["**/.git/config"]'
    )
    assert (decision(policy, RENAME, source, target2=target) == ALLOW) is allowed


# ---- always denied, exact only


@pytest.mark.parametrize(
    ("path", "need"),
    [
        ("/home/u/.local/state/akbox/runs/1/audit.jsonl", READ),
        ("/home/u/.local/state/akbox", WRITE),
        ("/home/u/w/akbox.toml", WRITE),
        ("/home/u/w/a/b/akbox.json", WRITE),
        ("/proc/1/environ", READ),
        ("/proc/4242", READ),
        ("/proc/self/mem", WRITE),
        ("/proc/self/task/77/mem", WRITE),
        ("/proc/sys/kernel/core_pattern", WRITE),
        ("/proc/sysrq-trigger", WRITE),
        ("/sys/fs/cgroup/x/memory.max", WRITE),
        ("/dev/mem", READ),
        ("/dev/kmem", READ),
        ("/proc/kcore", READ),
    ],
)
def test_always_denied_whatever_the_policy_says(path: str, need: int) -> None:
    wide = compiled(f'fs.read = ["/**", "{path}"]\nfs.write = ["/**", "{path}"]\nfs.exec = ["/**", "{path}"]')
    verdict = wide.decide(OPEN, path, need=need)
    assert verdict.decision == DENY
    assert verdict.rule is not None
    assert verdict.rule.origin == "builtin"
    assert "always denied" in (verdict.suggested_fix or "")


def test_what_is_denied_for_writing_can_be_read() -> None:
    wide = compiled('fs.read = ["/**"]')
    for path in ("/home/u/w/akbox.toml", "/proc/sys/kernel/osrelease", "/proc/self/mem", "/sys/fs/cgroup/cgroup.procs"):
        assert decision(wide, OPEN, path, READ) == ALLOW


@pytest.mark.parametrize(
    "device", ["/dev/kvm", "/dev/fuse", "/dev/input/event0", "/dev/video0", "/dev/sda", "/dev/pts/3"]
)
def test_devices_need_an_exact_path(device: str) -> None:
    for wide in ("/**", "/dev/**", "/dev/*", device[:-1] + "?"):
        policy = compiled(f'fs.read = ["{wide}"]\nfs.write = ["{wide}"]')
        verdict = policy.decide(OPEN, device, need=READ)
        assert verdict.decision == DENY
        assert verdict.suggested_fix == f'fs.read = ["{device}"]'
    assert decision(compiled(f'fs.read = ["{device}"]'), OPEN, device, READ) == ALLOW


@pytest.mark.parametrize("device", ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "shm/x"])
def test_safe_devices_do_not(device: str) -> None:
    assert decision(compiled('fs.read = ["/dev/**"]'), OPEN, f"/dev/{device}", READ) == ALLOW


@pytest.mark.parametrize(
    "path",
    [
        "/run/docker.sock",
        "/run/podman/podman.sock",
        "/run/user/1000/podman/podman.sock",
        "/run/containerd/containerd.sock",
        "/run/dbus/system_bus_socket",
        "/run/user/1000/bus",
        "/tmp/ssh-XYZ/agent.42",
        "/run/user/1000/gnupg/S.gpg-agent",
        "/home/u/.gnupg/S.gpg-agent.ssh",
        "/tmp/.X11-unix/X0",
        "/run/user/1000/wayland-0",
        "/run/snapd.socket",
        "/tmp/tmux-1000/default",
    ],
)
def test_authority_sockets_need_an_exact_rule(path: str) -> None:
    wide = compiled('net.unix = ["/run/**", "/tmp/**", "/**"]')
    verdict = wide.decide(CONNECT, f"unix:{path}")
    assert verdict.decision == DENY
    assert verdict.missing_cap == "net.unix"
    exact = compiled(verdict.suggested_fix or "")
    assert decision(exact, CONNECT, f"unix:{path}") == ALLOW
    assert decision(wide, CONNECT, "unix:/run/app.sock") == ALLOW


def test_only_a_stated_exact_rule_runs_a_dynamic_linker() -> None:
    linker = "/lib64/ld-linux-x86-64.so.2"
    context = Context("/w", "/home/u", "/tmp/run", "/usr", (), (Grant(linker, READ | EXEC, "loader"),))
    assert not compiled('fs.read = ["/lib64/**"]', context).exec_exact(linker)
    assert not compiled(f'fs.read = ["{linker}"]', context).exec_exact(linker)
    assert compiled(f'fs.exec = ["{linker}"]', context).exec_exact(linker)
    assert not compiled(f'fs.exec = ["{linker}"]\nfs.deny = ["{linker}"]', context).exec_exact(linker)


@pytest.mark.parametrize(
    ("text", "context"),
    [
        ('fs.read = ["${workdir}/**"]', Context("/", "/home/u", "/tmp/r", "/usr")),
        ('fs.write = ["${workdir}/**"]', Context("/home", "/home/u", "/tmp/r", "/usr")),
        ('fs.read = ["${prefix}/**"]', Context("/w", "/home/u", "/tmp/r", "/home")),
        ('fs.read = ["${prefix}/**"]', Context("/w", "/home/u", "/tmp/r", "/home/u")),
    ],
)
def test_a_variable_may_not_stand_for_home_directories(text: str, context: Context) -> None:
    with pytest.raises(PolicyError, match="holds the home directory"):
        compiled(text, context)


# ---- the other effects


def test_names_and_addresses() -> None:
    policy = compiled(
        'net.dns = ["*.example.com"]\n'
        'net.connect = ["dns:api.example.com:443", "ip:10.0.0.0/8:1-100", "udp+dns:t.example:53"]\n'
        'net.deny = ["ip:10.9.0.0/16:*", "dns:bad.example.com:*"]\nnet.listen = ["ip:127.0.0.1:80"]\n'
        'approve.effects = ["net.connect dns:*.example.org:443"]'
    )
    expected = [
        (DNS, "dns:a.example.com", ALLOW),
        (DNS, "dns:bad.example.com", DENY),
        (DNS, "dns:example.com:53", DENY),
        (CONNECT, "dns:API.example.com.:443", ALLOW),
        (CONNECT, "dns:api.example.com:80", DENY),
        (CONNECT, "udp+dns:api.example.com:443", DENY),
        (CONNECT, "udp+dns:t.example:53", ALLOW),
        (CONNECT, "dns:x.example.org:443", ASK),
        (CONNECT, "ip:10.1.1.1:99", ALLOW),
        (SEND, "ip:[::ffff:10.1.1.1]:99", ALLOW),
        (CONNECT, "ip:10.9.1.1:99", DENY),
        (CONNECT, "udp+ip:10.1.1.1:99", DENY),
        (LISTEN, "ip:127.0.0.1:80", ALLOW),
        (ACCEPT, "ip:127.0.0.1:80", ALLOW),
        (BIND, "ip:127.0.0.1:80", DENY),
        (CONNECT, "ip:10.1.1.1", DENY),
        (CONNECT, "ip:10.0.0.0/8:1", DENY),
        (CONNECT, "nonsense", DENY),
    ]
    assert [(op, target, decision(policy, op, target)) for op, target, _ in expected] == expected


def test_tools_models_modules_and_agents() -> None:
    policy = compiled(
        'tools = { allow = ["file_*", "shell_exec"], deny = ["shell_*"] }\n'
        'infer.models = ["claude-*"]\nwasm.modules = ["t_*"]\n'
        'spawn = { allow = ["/usr/bin/*"], deny = ["/usr/bin/sudo"] }\nfs.exec = ["/usr/bin/*"]\n'
        'approve.effects = ["tools file_rm"]'
    )
    expected = [
        (TOOL, "tool:file_read", ALLOW),
        (1031, "tool:file_read", ALLOW),
        (TOOL, "tool:file_rm", ASK),
        (TOOL, "tool:shell_exec", DENY),
        (INFER, "model:claude-x", ALLOW),
        (1037, "model:gpt", DENY),
        (WASM, "wasm:t_1", ALLOW),
        (1032, "/usr/bin/python3", ALLOW),
        (1032, "/usr/bin/sudo", DENY),
        (1032, "/bin/x", DENY),
        (SIGNAL, "agent:1", ALLOW),
        (MAIL, "agent:1", ALLOW),
        (1025, "heap:counter", ALLOW),
        (1030, "heap:counter", ALLOW),
        (TOOL, "x", DENY),
        (1045, "x", DENY),
        (0xFFFF, "x", DENY),
    ]
    assert [(op, target, decision(policy, op, target)) for op, target, _ in expected] == expected


@pytest.mark.parametrize("target", ["a", "/a/../b", "/a//b", "/a/", "/./a", "", "/a\0b"])
def test_paths_that_are_not_canonical_are_refused(target: str) -> None:
    assert decision(compiled('fs.read = ["/**"]'), OPEN, target, READ) == DENY


def test_stat_is_open_unless_strict() -> None:
    assert decision(compiled(""), STAT, "/home/u/.ssh") == ALLOW
    strict = compiled('fs.metadata = "strict"\nfs.read = ["/a/b/**"]')
    assert [decision(strict, STAT, path) for path in ("/a", "/a/b/c", "/a/c", "/home/u/.ssh")] == [
        ALLOW,
        ALLOW,
        DENY,
        DENY,
    ]


def test_op_numbers_are_the_kernels() -> None:
    """The policy is below the kernel and cannot import its table."""
    theirs = [
        Op.FS_OPEN,
        Op.FS_STAT,
        Op.NET_CONNECT,
        Op.NET_SEND,
        Op.EXEC,
        Op.SIGNAL,
        Op.TOOL_CALL,
        Op.WASM_RUN,
        Op.INFER,
    ]
    ours = [effects.FS_OPEN, effects.FS_STAT, effects.NET_CONNECT, effects.NET_SEND, effects.EXEC_OP, effects.SIGNAL]
    assert [*ours, effects.TOOL, effects.WASM, effects.INFER] == theirs
    assert (effects.SEND, effects.SECRET) == (Op.AGENT_SEND, Op.SECRET_GET)
    assert (effects.CALL_TOOL, effects.CALL_SPAWN, effects.CALL_INFERENCE) == (Op.CALL, Op.SPAWN, Op.INFERENCE)


# ---- suggestions


PATH_CHARS = st.characters(min_codepoint=1, max_codepoint=0x2FFF, blacklist_characters="/", blacklist_categories=())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(PATH_CHARS, min_size=1, max_size=8), min_size=2, max_size=4))
def test_a_suggestion_parses_and_allows_exactly_what_was_refused(names: list[str]) -> None:
    path = "/srv/" + "/".join(names)
    policy = compiled("")
    verdict = policy.decide(OPEN, path, need=READ | WRITE)
    if any(name in (".", "..") for name in names):
        assert verdict.decision == DENY
        return
    fix = verdict.suggested_fix or ""
    if any(f"/{place}/" in f"{path}/" for place in suggest.CREDENTIAL_DIRS):
        assert " = [" not in fix
        return
    tomllib.loads(fix)
    again = compiled(fix)
    assert decision(again, OPEN, path, READ | WRITE) == ALLOW
    assert decision(again, OPEN, path + "/below", READ) == DENY
    assert decision(again, OPEN, "/srv", READ) == DENY


@pytest.mark.parametrize(
    "path", ["/", "/home/u", "/home", "/root", "/home/u/.ssh", "/home/u/.aws", "/etc", "/usr", "/proc", "/dev"]
)
def test_whole_places_are_never_suggested(path: str) -> None:
    assert " = [" not in compiled("").suggest(OPEN, path, READ)


def test_suggestions_by_kind() -> None:
    policy = compiled('fs.read = ["/usr/**"]\nfs.write = ["/w/**"]')
    assert policy.suggest(CONNECT, "ip:[2001:db8::1]:443") == 'net.connect = ["ip:[2001:db8::1]:443"]'
    assert policy.suggest(CONNECT, "udp+dns:a.example.com:53") == 'net.connect = ["udp+dns:a.example.com:53"]'
    assert policy.suggest(DNS, "dns:a.example.com") == 'net.dns = ["a.example.com"]'
    assert policy.suggest(TOOL, "tool:x") == 'tools.allow = ["x"]'
    assert policy.suggest(EXECUTE, "/w/run") == 'fs.exec = ["/usr/**", "/w/run"]'  # stating fs.exec ends its default
    both = compiled('fs.read = ["/usr/**", "/w/**"]\nfs.write = ["/w/**"]')
    assert both.suggest(EXECUTE, "/w/run") == 'fs.exec = ["/usr/**", "/w/run"]'  # never all that is writable
    assert policy.suggest(EXECUTE, "/opt/run") == 'fs.read = ["/opt/run"]'  # an fs.exec would end what fs.read implies
    assert policy.suggest(0x3FF, "syscall:mount") == "no policy allows it"


def test_a_rule_that_refuses_is_named_with_its_place() -> None:
    own = compiled('fs.read = ["/d/**"]\nfs.deny = ["/d/x"]')
    assert own.suggest(OPEN, "/d/x", READ) == 'remove "/d/x" from fs.deny (p.toml:3), or narrow it'
    assert own.suggest(OPEN, "/d/x", WRITE).endswith('\nand: fs.write = ["/d/x"]')
    base = compiled('profiles = ["base"]').suggest(OPEN, "/etc/shadow", READ)
    assert re.fullmatch(r"the profile base denies this on purpose \(/.*/policies/profiles/base\.toml:[0-9]+\)", base)


# ---- what else a run asks


def test_budgets_limits_env_and_audit() -> None:
    policy = compiled(
        'profiles = ["git"]\nbudgets = { tokens = 0, usd = 1.5 }\nlimits.memory = "1G"\n'
        'env.set = { A = "${tmp}/a", GIT_TEMPLATE_DIR = "/t" }'
    )
    assert policy.budgets["tokens"] == 0
    assert policy.budgets["usd"] == 1.5
    assert policy.budgets["tool_calls"] == 1000
    assert "wall_time_ms" not in policy.budgets
    assert policy.limits.memory == 1 << 30
    assert policy.env.set == {"A": "/tmp/run/a", "GIT_TEMPLATE_DIR": "/t"}
    assert (policy.audit.level, policy.audit.durability) == ("full", "group")
    assert policy.fs_metadata == "open"


def test_the_canonical_policy_decides_alike() -> None:
    policy = compiled(
        'profiles = ["base", "git"]\nfs.write = ["/d/**"]\napprove.effects = ["fs.write /d/x"]\nfs.exec = []'
    )
    text = policy.to_json().decode()
    again = compile_policy(parse(text, syntax="json", name="j"), CONTEXT)
    assert again.to_json() == policy.to_json()
    assert {str(r) for r in again.rules} == {str(r) for r in policy.rules}
    assert "profiles" not in json.loads(text)
    assert decision(again, EXECUTE, "/usr/bin/ls") == DENY


def test_profiles_are_joined_once_and_named() -> None:
    policy = compiled('profiles = ["git", "tls"]\nfs.read = ["~/.gitconfig"]')
    rules = [r for r in policy.rules if str(r) == "fs.read ~/.gitconfig"]
    assert [r.origin for r in rules] == ["policy"]
    assert any(r.origin == "profile tls" for r in policy.rules)
    assert policy.grants("fs.read")[0] is policy.rules[0]
