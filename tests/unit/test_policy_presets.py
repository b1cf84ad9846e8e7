"""The policies that ship: they load, say who they are for, protect what they promise, and let programs work."""

from __future__ import annotations

import pytest

from akbox.policy.compile import CompiledPolicy, Context, Grant, compile_policy
from akbox.policy.explain import as_text, describe, explain
from akbox.policy.landlock import ACCESS_FS, handled_bits, landlock_plan
from akbox.policy.load import parse
from akbox.policy.matcher import ALLOW, DENY, EXEC, READ, WRITE
from akbox.policy.presets import (
    load_preset,
    load_profile,
    preset_names,
    preset_path,
    profile_names,
    profile_path,
    summary,
)

W = "/home/u/w"
CONTEXT = Context(
    W, "/home/u", "/tmp/run", "/usr", ("/home/u/.local/state/akbox",), (Grant("/usr/**", READ | EXEC, "prefix"),)
)


def preset(name: str) -> CompiledPolicy:
    return compile_policy(load_preset(name), CONTEXT)


def denied(policy: CompiledPolicy, path: str, need: int) -> bool:
    return policy.decide(0x300 if need == EXEC else 0x100, path, need=need).decision == DENY


def test_the_promised_ones_are_there_and_say_who_they_are_for() -> None:
    assert {"default", "python-agent", "node-agent", "readonly", "git-agent"} <= set(preset_names())
    assert {"base", "python", "node", "git", "tls", "tier1-musl", "tier2-glibc"} <= set(profile_names())
    for path in [*map(preset_path, preset_names()), *map(profile_path, profile_names())]:
        assert path is not None
        assert summary(path).startswith("For ")


@pytest.mark.parametrize("name", profile_names())
def test_profiles_load_and_only_add(name: str) -> None:
    profile = load_profile(name)
    assert profile.runtime is None
    assert profile.budgets == type(profile.budgets)()


@pytest.mark.parametrize("name", ["../default", "default.toml", "", "profiles/base", "/etc/passwd", "DEFAULT"])
def test_a_path_is_no_preset(name: str) -> None:
    assert preset_path(name) is None
    with pytest.raises(KeyError):
        load_preset(name)


PROTECTED = [
    ".git/hooks/pre-commit",
    ".git/config",
    ".bashrc",
    ".bash_profile",
    ".profile",
    ".zshrc",
    ".zshenv",
    ".gitconfig",
    ".gitmodules",
    ".mcp.json",
    ".vscode/settings.json",
    ".idea/workspace.xml",
    ".claude/settings.json",
    ".claude/commands/x.md",
    ".codex/config.toml",
    ".cursor/rules",
    "AGENTS.md",
    "akbox.toml",
]


@pytest.mark.parametrize("name", preset_names())
def test_files_that_run_later_or_steer_an_agent_are_never_written(name: str) -> None:
    policy = preset(name)
    nested = [] if name == "git-agent" else ["sub/.git/config", "sub/.git", ".git/modules/m/config"]
    for path in [*PROTECTED, "sub/.git/hooks/x", "sub/.vscode/tasks.json", "a/b/.mcp.json", *nested]:
        assert denied(policy, f"{W}/{path}", WRITE), path
        assert denied(policy, f"/tmp/run/{path}", WRITE) or path in (".git/config",), path
    assert not denied(policy, f"{W}/.git/config", READ)


@pytest.mark.parametrize("name", ["default", "python-agent", "node-agent", "git-agent"])
def test_a_repository_works_and_its_directory_cannot_be_swapped(name: str) -> None:
    policy = preset(name)
    for path in (
        "index.lock",
        "index",
        "objects/ab/cd",
        "refs/heads/main",
        "HEAD",
        "COMMIT_EDITMSG",
        "logs/HEAD",
        "worktrees/x/index",
    ):
        assert not denied(policy, f"{W}/.git/{path}", READ | WRITE), path
    for source, target in (
        (".git", "git"),
        ("git", ".git"),
        (".git/hooks", ".git/h"),
        (".git/h", ".git/hooks"),
        ("x", ".vscode"),
    ):
        assert policy.decide(0x102, f"{W}/{source}", target2=f"{W}/{target}").decision == DENY, (source, target)
    assert policy.decide(0x102, f"{W}/src", target2=f"{W}/lib").decision == ALLOW
    assert policy.decide(0x102, f"{W}/.git/index.lock", target2=f"{W}/.git/index").decision == ALLOW


def test_git_agent_creates_repositories_below_the_working_directory() -> None:
    policy = preset("git-agent")
    assert not denied(policy, f"{W}/clone/.git/config", WRITE)
    assert not denied(policy, f"{W}/clone/.git", WRITE)
    assert denied(policy, f"{W}/clone/.git/hooks/pre-commit", WRITE)
    assert policy.env.set["GIT_TEMPLATE_DIR"] == ""


@pytest.mark.parametrize("name", preset_names())
def test_what_programs_read(name: str) -> None:
    policy = preset(name)
    wanted = [
        "/usr/lib/x86_64-linux-gnu/libc.so.6",
        "/etc/ld.so.cache",
        "/etc/passwd",
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/localtime",
        "/proc/meminfo",
        "/proc/self/maps",
        "/proc/self/fd",
        "/proc/cpuinfo",
        "/sys/devices/system/cpu/online",
        "/dev/null",
        "/dev/urandom",
        "/home/u/.gitconfig",
        "/proc/sys/kernel/osrelease",
        "/tmp/run/x",
        "/",
        "/dev",
        "/proc",
    ]
    assert [path for path in [*wanted, f"{W}/a/b", W] if denied(policy, path, READ)] == []
    assert not denied(policy, "/dev/null", READ | WRITE)
    assert not denied(policy, "/tmp/run/x", READ | WRITE)
    assert not denied(policy, "/usr/bin/python3", EXEC)


@pytest.mark.parametrize("name", preset_names())
def test_what_no_program_reads(name: str) -> None:
    policy = preset(name)
    secrets = [
        "/etc/shadow",
        "/etc/shadow-",
        "/etc/gshadow",
        "/etc/sudoers",
        "/etc/sudoers.d/x",
        "/etc/ssh/ssh_host_rsa_key",
        "/etc/ssl/private/k.pem",
        "/home/u",
        "/home/u/x",
        "/home/u/.ssh/id_test",
        "/home/u/.aws/credentials",
        "/home/u/.netrc",
        "/home/u/.git-credentials",
        "/root/x",
        "/tmp/x",
        "/home/v/x",
        "/var/log/syslog",
        "/proc/1/environ",
        "/dev/sda",
        "/dev/kvm",
        "/dev/pts/0",
        "/run/docker.sock",
        "/proc/kcore",
        "/dev/shm/other",
    ]
    assert [path for path in secrets if not denied(policy, path, READ)] == []
    assert policy.decide(0x200, "ip:1.1.1.1:443").decision == DENY
    assert policy.decide(0x200, "unix:/run/docker.sock").decision == DENY
    assert policy.decide(0x201, "dns:example.com").decision == DENY


def test_credentials_stay_denied_in_a_home_directory_that_is_the_working_directory() -> None:
    policy = compile_policy(load_preset("default"), Context("/home/u", "/home/u", "/tmp/run", "/usr"))
    assert not denied(policy, "/home/u/notes.txt", READ | WRITE)
    for path in (".ssh/id_ed25519", ".aws/credentials", ".netrc", ".git-credentials", ".gnupg/private-keys-v1.d/x"):
        assert denied(policy, f"/home/u/{path}", READ), path


def test_readonly_writes_and_runs_nothing_of_the_project() -> None:
    policy = preset("readonly")
    assert denied(policy, f"{W}/x", WRITE)
    assert denied(policy, f"{W}/x", EXEC)
    assert denied(policy, "/tmp/run/x", EXEC)


def test_only_the_default_working_directory_runs_what_it_wrote() -> None:
    assert not denied(preset("default"), f"{W}/a.out", EXEC)
    assert denied(preset("default"), "/home/u/other", EXEC)


# ---- Landlock plan and explanations


def plan_of(text: str, on_behalf: bool = False) -> tuple[CompiledPolicy, dict[str, tuple[str, ...]], dict[str, bool]]:
    policy = compile_policy(parse(f'version = "1.0"\n{text}', syntax="toml", name="p"), CONTEXT)
    plan = landlock_plan(policy, on_behalf=on_behalf)
    exact = {str(policy.rules[rule]): is_exact for rule, is_exact in plan.exact.items()}
    return policy, {g.path.rstrip("/") + "/**" if g.tree else g.path: g.rights for g in plan.paths}, exact


def test_landlock_is_exact_for_trees_and_files_only() -> None:
    text = 'runtime = "none"\nfs.read = ["/a/**", "/b/c", "/d/*/x", "**/y"]\nfs.exec = []'
    _, paths, exact = plan_of(text)
    assert exact == {"fs.read /a/**": True, "fs.read /b/c": True, "fs.read /d/*/x": False, "fs.read **/y": False}
    assert paths == {
        "/**": ("READ_FILE", "READ_DIR"),
        "/a/**": ("READ_FILE", "READ_DIR"),
        "/b/c": ("READ_FILE",),
        "/d/**": ("READ_FILE", "READ_DIR"),
    }


@pytest.mark.parametrize(
    ("refusal", "exact"),
    [
        ('fs.deny = ["/a/secret"]', False),
        ('fs.deny = ["**/.env"]', False),
        ('fs.deny = ["/*/x/y"]', False),
        ('fs.deny = ["/b/**", "/a"]', False),
        ('fs.deny = ["/b/**", "/aa", "/*b/c"]', True),
        ('fs.protect = ["**/.git/**"]', True),
        ('approve.effects = ["fs.read /a/ask"]', False),
    ],
)
def test_a_refusal_inside_makes_a_grant_inexact(refusal: str, exact: bool) -> None:
    _, _, found = plan_of(f'runtime = "none"\nfs.read = ["/a/**"]\nfs.exec = []\n{refusal}')
    assert found["fs.read /a/**"] is exact


def test_default_exec_and_writing_are_exact_apart() -> None:
    policy = compile_policy(
        parse(
            'version = "1.0"\nruntime = "none"\nfs.read = ["/a/**"]\nfs.write = ["/a/w/**"]', syntax="toml", name="p"
        ),
        CONTEXT,
    )
    plan = landlock_plan(policy, on_behalf=False)
    assert plan.exact_for(READ)
    assert not plan.exact_for(EXEC)  # /a/w may not be executed
    assert not plan.exact_for(WRITE)  # akbox.toml may not be written


def test_on_behalf_grants_only_what_the_agents_own_calls_do() -> None:
    _, paths, _ = plan_of(
        'runtime = "none"\nfs.read = ["/a/**"]\nfs.write = ["/w/**"]\nfs.exec = ["/x/**", "/y"]', on_behalf=True
    )
    reads = ("READ_FILE", "READ_DIR")  # what Landlock holds exactly, the kernel may open itself
    assert paths == {"/a/**": reads, "/x/**": ("EXECUTE", "READ_FILE"), "/y": ("EXECUTE", "READ_FILE")}


def test_rights_follow_the_abi() -> None:
    assert handled_bits(7) == (1 << 16) - 1
    assert handled_bits(1) == (1 << 13) - 1
    assert handled_bits(2) & ACCESS_FS["REFER"][0]
    policy = compile_policy(load_preset("default"), CONTEXT)
    for grant in landlock_plan(policy, on_behalf=False).paths:
        assert not {"MAKE_CHAR", "MAKE_BLOCK", "MAKE_SOCK"} & set(grant.rights)
        assert grant.bits(1) < 1 << 13
        assert (grant.path, grant.tree) != ("/", True)


def test_explanations_name_the_rule_that_decides() -> None:
    policy = preset("default")
    found = explain(policy, "fs.write", f"{W}/.git/config")
    assert (found.decision, found.rule, found.origin) == ("denied", "fs.protect **/.git/config", "profile repositories")
    assert "repositories.toml" in found.where
    assert explain(policy, "fs.write", f"{W}/x").rule == "fs.write ${workdir}/**"
    assert "no rule covers it" in str(explain(policy, "net.connect", "dns:example.com:443"))
    assert explain(policy, "net.unix", "/run/docker.sock").decision == "denied"
    with pytest.raises(ValueError, match="no effect"):
        explain(policy, "fs.raed", "/x")


def test_the_description_is_complete() -> None:
    policy = preset("default")
    data = describe(policy)
    assert [rule["rule"] for rule in data["rules"]] == [str(rule) for rule in policy.rules]
    assert all(rule["origin"] for rule in data["rules"])
    text = as_text(policy)
    assert all(rule["rule"] in text for rule in data["rules"])
    assert "tool_calls = 1000" in text
    assert f"fs.write ${{workdir}}/**  = {W}/**" in text
    assert "Always trapped" in text
