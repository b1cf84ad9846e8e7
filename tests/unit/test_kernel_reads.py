"""Which read-only opens may be left to the kernel: only those that Landlock judges exactly as the policy does."""

from __future__ import annotations

import pytest

from akbox.policy.compile import CompiledPolicy, Context, Grant, compile_policy
from akbox.policy.landlock import landlock_plan
from akbox.policy.load import parse


def compiled(fs: str, grants: tuple[Grant, ...] = ()) -> CompiledPolicy:
    context = Context(
        workdir="/w",
        home="/home/u",
        tmp="/tmp/run",
        prefix="/usr",
        state_dirs=("/home/u/.local/state/akbox",),
        runtime_grants=grants,
    )
    return compile_policy(parse(f'version = "1.0"\n[fs]\n{fs}\n', syntax="toml", name="p.toml"), context)


def kernel_reads(fs: str, *, skipped: tuple[str, ...] = (), grants: tuple[Grant, ...] = ()) -> set[str]:
    policy = compiled(fs, grants)
    plan = landlock_plan(policy, on_behalf=True)
    return {str(policy.rules[rule]) for rule in plan.kernel_reads(policy.rights, skipped)}


def test_a_plain_tree_is_the_kernels() -> None:
    assert kernel_reads('read = ["/usr/**"]') == {"fs.read /usr/**"}


@pytest.mark.parametrize(
    ("fs", "why"),
    [
        ('read = ["/usr/**"]\ndeny = ["/usr/secret"]', "a refusal lies inside"),
        ('read = ["/usr/**"]\ndeny = ["**/.env"]', "a refusal may lie anywhere"),
        ('read = ["/usr/**"]\nwrite = ["/usr/**"]', "the agent could replace the tree's root"),
        ('read = ["/usr/*"]', "no tree"),
        ('read = ["/usr/file"]', "a single file may be replaced by another"),
        ('read = ["/home/u/**"]', "akbox's own state lies inside"),
        ('read = ["/proc/self/**"]', "another directory for each process"),
    ],
)
def test_what_landlock_does_not_hold_exactly_is_not(fs: str, why: str) -> None:
    assert kernel_reads(fs) == set(), why


def test_a_tree_that_could_not_be_granted_is_not() -> None:
    assert kernel_reads('read = ["/usr/**", "/opt/**"]', skipped=("/opt",)) == {"fs.read /usr/**"}


@pytest.mark.parametrize(
    "exec_grant",
    ['exec = ["/opt/**"]', 'exec = ["/opt/bin/*"]', 'exec = ["/opt/tool"]'],
    ids=["tree", "pattern", "file"],
)
def test_nothing_is_when_something_may_be_run_but_not_read(exec_grant: str) -> None:
    """Landlock lets the kernel read what it may execute: a path that changes during the call could lead there."""
    assert kernel_reads(f'read = ["/usr/**"]\n{exec_grant}') == set()


def test_programs_that_may_also_be_read_do_not_matter() -> None:
    grants = (Grant("/srv/app/main", 1 | 4, "the command"), Grant("/usr/bin/tool", 1 | 4, "the command"))
    assert kernel_reads('read = ["/usr/**"]\nexec = ["/usr/bin/*"]', grants=grants) == {"fs.read /usr/**"}


def test_landlock_lets_only_exact_trees_be_read() -> None:
    policy = compiled('read = ["/usr/**", "/etc/**"]\ndeny = ["/etc/shadow"]\nexec = ["/usr/bin/*"]')
    readable = {grant.path for grant in landlock_plan(policy, on_behalf=True).paths if "READ_FILE" in grant.rights}
    assert readable == {"/usr", "/usr/bin"}
