"""The limits of a run are of all its agents together: a child has no more for having a policy of its own, and many have
no more than one."""

from __future__ import annotations

from pathlib import Path

import pytest

from .test_spawn import World

NO_LIMITS = """version = "1.0"
profiles = ["python"]
[fs]
read = ["/**"]
write = ["/**"]
exec = ["/usr/bin/python3*", "/lib*/**", "/usr/lib/**"]
[spawn]
allow = ["/usr/bin/python3*"]
"""
FORKS = """
import signal
ak.recv(timeout_ms=60000)
n = 0
for _ in range(12):
    try:
        if os.fork() == 0:
            signal.pause()
        n += 1
    except OSError as e:
        assert e.errno == 11
ak.send("root", {"forked": n})
signal.pause()
"""
HOLD = """
import signal
held = bytearray(%d << 20)
for at in range(0, len(held), 4096): held[at] = 1
ak.send("root", {"held": len(held)})
signal.pause()
"""


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("akbox.linux.cgroup.make_cgroup", lambda name, memory: None)


def spawned(code: str, policy: str = NO_LIMITS, **more: object) -> str:
    return f"spawn({code!r}, policy={policy!r}, **{more!r})\n"


def forked(*policies: str) -> str:
    """Children that fork as often as they can once all of them are there."""
    code = "".join(spawned(FORKS, policy, name=f"c{n}") for n, policy in enumerate(policies))
    code += "".join(f"ak.send('c{n}', 'go')\n" for n in range(len(policies)))
    code += f"found = []\nwhile len(found) < {len(policies)}: found += ak.recv(timeout_ms=60000)\n"
    return code + "say(forked=[m['payload']['forked'] for m in sorted(found, key=lambda m: m['from_name'])])\n"


@pytest.mark.parametrize("interposer", ["auto", "ptrace"])
def test_processes_are_counted_over_all_agents(tmp_path: Path, interposer: str) -> None:
    code = forked(NO_LIMITS, NO_LIMITS, NO_LIMITS)
    result, (said,) = World(tmp_path, more="[limits]\npids = 10\n").run(code, interposer=interposer)
    assert result.exit_code == 0, result
    assert sum(said["forked"]) == 10 - 4  # the first agent and three children are four already
    free, (unlimited,) = World(tmp_path / "free").run(code)
    assert free.exit_code == 0
    assert unlimited["forked"] == [12, 12, 12]  # the control


def test_a_process_too_many_is_no_agent(tmp_path: Path) -> None:
    world = World(tmp_path, more="[limits]\npids = 2\n")
    code = spawned("import signal; signal.pause()")
    code += "say(refused=refused(lambda: spawn('', name='late')), agents=len(ak.query('agents')['agents']))\n"
    result, (said,) = world.run(code)
    assert result.exit_code == 0
    assert said == {"refused": "QUOTA_EXCEEDED", "agents": 3}  # known, and ended
    assert [e["res"]["exit_code"] for e in world.entries() if e["target"].endswith(":end")][:1] == [125]


def test_none_is_none(tmp_path: Path) -> None:
    code = "say(spawned=refused(lambda: spawn('')))\ntry: os.fork()\nexcept OSError as e: say(forked=e.errno)\n"
    result, said = World(tmp_path, more="[limits]\npids = 0\n").run(code)
    assert (result.exit_code, said) == (0, [{"spawned": "QUOTA_EXCEEDED"}, {"forked": 11}])


def test_a_child_may_have_less(tmp_path: Path) -> None:
    code = forked(NO_LIMITS + "[limits]\npids = 3\n", NO_LIMITS)
    result, (said,) = World(tmp_path, more="[limits]\npids = 30\n").run(code)
    assert result.exit_code == 0
    assert said["forked"] == [2, 12]
    # What is below it has no more than it, together.
    grandchild = spawned("import signal; signal.pause()").strip()
    inner = f"told = [refused(lambda: {grandchild}) for _ in range(2)]\nak.send('root', told)\n"
    code = spawned(inner + "import signal; signal.pause()\n", NO_LIMITS + "[limits]\npids = 2\n")
    _, (said,) = World(tmp_path / "deep").run(code + "say(told=ak.recv(timeout_ms=60000)[0]['payload'])")
    assert said["told"] == [None, "QUOTA_EXCEEDED"]


def test_limits_of_each_process_are_the_childs_too(tmp_path: Path) -> None:
    child = "from resource import *\n"
    child += "ak.send('root', [getrlimit(n) for n in (RLIMIT_NOFILE, RLIMIT_FSIZE, RLIMIT_CORE)])"
    wide = NO_LIMITS + '[limits]\nopen_files = 4000\nfile_size = "1K"\ncore = "1G"\n'
    code = spawned(child) + "say(plain=ak.recv(timeout_ms=60000)[0]['payload'])\n"
    code += spawned(child, wide) + "say(wide=ak.recv(timeout_ms=60000)[0]['payload'])\n"
    _, said = World(tmp_path, more='[limits]\nopen_files = 300\nfile_size = "1M"\n').run(code)
    assert said == [
        {"plain": [[300, 300], [1 << 20, 1 << 20], [0, 0]]}, {"wide": [[300, 300], [1 << 10, 1 << 10], [0, 0]]},
    ]  # fmt: skip


def test_memory_is_of_all_agents(tmp_path: Path, measured: None) -> None:
    one = spawned(HOLD % 100) + "ak.recv(timeout_ms=60000)\nsay(held=True)\n"
    world = World(tmp_path, more='[limits]\nmemory = "400M"\n')
    result, said = world.run(one * 6 + "time.sleep(60)")
    assert (result.exit_code, result.reason) == (137, "limit memory"), result
    assert len(said) >= 1  # each of them alone was within it
    assert any(e["target"] == "run:limit:memory" for e in world.entries())
    control, said = World(tmp_path / "free").run(one * 6)
    assert (control.exit_code, len(said)) == (0, 6)


def test_less_memory_ends_the_child_only(tmp_path: Path, measured: None) -> None:
    child = spawned(HOLD % 300, NO_LIMITS + '[limits]\nmemory = "100M"\n', name="greedy")
    code = child + "while ak.query('agents')['agents'][1]['state'] == 'running': ak.recv(timeout_ms=50)\n"
    code += "say(done=True)\n"
    world = World(tmp_path, more='[limits]\nmemory = "1G"\n')
    result, said = world.run(code)
    assert (result.exit_code, said) == (0, [{"done": True}])
    (end,) = [e for e in world.entries() if e["target"].endswith(":end") and e["req"]["agent_name"] == "greedy"]
    assert (end["res"]["exit_code"], end["res"]["reason"]) == (137, "limit memory")


class Group:
    """A cgroup as far as its files go; this machine may have none to give."""

    path = Path("/nonexistent/group")

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.removed_with: list[int] | None = None

    def admit(self, pid: int) -> None:
        self.pids.append(pid)

    def killed_for_memory(self) -> bool:
        return False

    def peak(self) -> int:
        return 0

    def remove(self) -> bool:
        self.removed_with = [pid for pid in self.pids if Path(f"/proc/{pid}").exists()]
        return not self.removed_with


def test_all_agents_are_in_the_cgroup_of_the_first_that_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[int, Group] = {}
    monkeypatch.setattr("akbox.linux.cgroup.make_cgroup", lambda _name, memory: made.setdefault(memory, Group()))
    pause = "import signal; signal.pause()"
    inner = f"ak.send('root', [os.getpid(), spawn({pause!r})['pid']])\n{pause}"
    code = spawned(HOLD % 300, NO_LIMITS + '[limits]\nmemory = "100M"\n', name="greedy")
    code += "while ak.query('agents')['agents'][1]['state'] == 'running': ak.recv(timeout_ms=50)\n"
    code += spawned(inner) + "pids = [os.getpid(), *ak.recv(timeout_ms=60000)[0]['payload']]\n"
    result, (said,) = World(tmp_path, more='[limits]\nmemory = "1G"\n').run(code + "say(pids=pids)\n")
    assert result.exit_code == 0
    (group,) = [g for g in made.values() if g.pids]  # the child that may have less is in it, too, and measured
    assert len(group.pids) == 4
    assert set(said["pids"]) <= set(group.pids)
    assert group.removed_with == []  # empty by then


def test_bytes_are_of_all_agents(tmp_path: Path) -> None:
    child = (
        "f = open(os.environ['TMPDIR'] + '/x', 'wb')\nfor _ in range(40): f.write(bytes(1 << 20))\nak.send('root', 1)"
    )
    code = (spawned(child) + "ak.recv(timeout_ms=60000)\nsay(done=True)\n") * 6 + "time.sleep(60)"
    result, said = World(tmp_path, more='[limits]\nio_bytes = "100M"\n').run(code)
    assert (result.exit_code, result.reason) == (124, "limit io_bytes"), result
    assert len(said) >= 1  # each of them alone was within it; ended ones count on
    assert result.usage["io_bytes"] >= 100 << 20
