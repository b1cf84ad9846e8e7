"""What a start must not do, by structure and not by the clock: load what it does not need, or do again what it did."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import msgspec
import pytest

import akbox
from akbox.linux import compiling, program, remembered, shipped, tmpdirs
from akbox.linux.argument_rules import FilterPlan
from akbox.policy import presets
from akbox.policy.compile import CompiledPolicy, Context
from akbox.policy.model import Policy

# One `akbox run -- true` in this process; prints the modules that were loaded at the launch and at the end.
RUN = """
import json, sys
from akbox import _native
seen, launch = {}, _native.launch
def recorded(**arguments):
    seen["launch"] = sorted(sys.modules)
    return launch(**arguments)
_native.launch = recorded
from akbox.cli.main import main
sys.argv = ["akbox", "run", "-q", "-p", "default", "--state-dir", sys.argv[1], "--", "true"]
code = main()
seen["end"] = sorted(sys.modules)
print(json.dumps(seen))
sys.exit(code)
"""
# `platform` would be here if msgspec did not load it.
NEVER = {
    *("asyncio", "concurrent.futures", "logging", "socket", "ssl", "subprocess", "selectors", "multiprocessing"),
    *("inspect", "ast", "typing_extensions", "hashlib"),
    *("dataclasses", "tempfile", "shutil", "secrets", "random", "ctypes", "sqlite3", "difflib", "glob"),
    *("click", "rich", "jsonschema", "jsonpatch", "jsonpointer", "pyseccomp", "ptrace"),
    *("akbox.kernel.pipeline", "akbox.kernel.heap", "akbox.linux.filter", "akbox.linux.syscalls_table"),
    *("akbox.linux.ptrace_calls", "akbox.linux.terminal", "akbox.policy.toml_places", "tomllib"),
}


def modules_of_a_run(state: Path) -> dict[str, set[str]]:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(state)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return {when: set(names) for when, names in json.loads(done.stdout).items()}


def test_a_run_loads_only_what_it_needs(tmp_path: Path) -> None:
    first = modules_of_a_run(tmp_path / "state")
    assert "pyseccomp" in first["end"], "the first run on a host compiles the filter: this test would see it"
    second = modules_of_a_run(tmp_path / "state")
    assert sorted(NEVER & second["end"]) == []
    assert not any(name.startswith("cryptography") for name in second["launch"]), "only the end of a run needs it"


def test_import_akbox_loads_nothing() -> None:
    code = "import sys; before = set(sys.modules); import akbox; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if name.startswith(("akbox.", "msgspec"))}
    assert not loaded


@pytest.fixture
def compiled_for(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The working directories for which a policy was compiled."""
    seen: list[str] = []
    compile_policy = compiling.compile_policy

    def counted(policy: Policy, context: Context) -> CompiledPolicy:
        seen.append(context.workdir)
        return compile_policy(policy, context)

    monkeypatch.setattr(compiling, "compile_policy", counted)
    return seen


def test_a_second_run_compiles_nothing(tmp_path: Path, compiled_for: list[str]) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    for cwd in (here, here, there, here):
        result = akbox.Sandbox("default", cwd=cwd, state_dir=tmp_path / "state").run(["true"])
        assert result.exit_code == 0
    assert compiled_for == [str(here), str(there)]


def test_a_policy_that_was_changed_is_compiled_again(tmp_path: Path, compiled_for: list[str]) -> None:
    policy = tmp_path / "policy.toml"
    seen = []
    for word in ("first", "second"):
        policy.write_text(f'version = "1.0"\n[env.set]\nWORD = "{word}"\n')
        result = akbox.Sandbox(policy, cwd=tmp_path, state_dir=tmp_path / "state").run(["sh", "-c", "echo $WORD"])
        seen.append(result.stdout)
    assert seen == [b"first\n", b"second\n"]
    assert len(compiled_for) == 2


def test_a_second_process_takes_the_forms_that_the_first_has_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = presets.load_preset("default")
    context = Context(str(tmp_path), "/home/u", "/tmp/akbox-0-0", "/usr", (str(tmp_path / "state"),))
    state = tmp_path / "state"
    state.mkdir()
    made = []
    for _ in range(2):
        monkeypatch.setattr(compiling, "_kept", OrderedDict())
        made.append(compiling.compile_once(policy, context, state))
        assert len(list((state / "compiled").iterdir())) == 1
    monkeypatch.setattr(compiling, "_kept", OrderedDict())
    monkeypatch.setattr(compiling, "landlock_plan", lambda *_, **__: pytest.fail("worked out again"))
    made.append(compiling.compile_once(policy, context, state))
    first = made[0]
    for other in made[1:]:
        assert (other.landlock, other.landlock_for_reads) == (first.landlock, first.landlock_for_reads)
        assert (other.policy.rules, other.policy.blob) == (first.policy.rules, first.policy.blob)
        for path in ("/usr/bin/env", "/home/u/.ssh/id_rsa", "/tmp/akbox-0-0/x", str(tmp_path / "x"), "/etc/shadow"):
            assert other.rights(path) == other.policy.rights(path) == first.rights(path)

    monkeypatch.undo()
    monkeypatch.setattr(compiling, "_kept", OrderedDict())
    compiling.compile_once(msgspec.structs.replace(policy, runtime="none"), context, state)
    compiling.compile_once(policy, msgspec.structs.replace(context, tmp="/tmp/akbox-0-1"), state)
    monkeypatch.setattr(compiling, "installation", lambda: "another")
    monkeypatch.setattr(compiling, "_kept", OrderedDict())
    compiling.compile_once(policy, context, state)
    assert len(list((state / "compiled").iterdir())) == 4


def test_a_path_that_is_not_utf8_is_not_kept(tmp_path: Path) -> None:
    context = Context(os.fsdecode(b"/srv/\xff"), "/home/u", "/tmp/akbox-0-0", "/usr")
    compiled = compiling.compile_once(presets.load_preset("default"), context, tmp_path)
    assert compiled.rights(os.fsdecode(b"/srv/\xff/file")) == 7
    assert not (tmp_path / "compiled").exists()


def test_what_is_kept_does_not_grow_for_ever(tmp_path: Path) -> None:
    for n in range(6):
        remembered.remember(tmp_path / str(n), b"", most=4)
        os.utime(tmp_path / str(n), ns=(n, n))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "4", "5"]


def test_shipped_policies_that_are_kept_are_those_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "_kept", set())
    monkeypatch.setattr(presets, "_loaded", {})
    read = {name: presets.load_preset(name) for name in presets.preset_names()}
    read |= {name: presets.load_profile(name) for name in presets.profile_names()}
    shipped.remember_shipped(tmp_path)
    (kept,) = (tmp_path / "policies").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600

    monkeypatch.setattr(shipped, "_kept", set())
    monkeypatch.setattr(presets, "_loaded", {})
    shipped.recall_shipped(tmp_path)
    assert sorted(presets.loaded().values(), key=repr) == sorted(read.values(), key=repr)
    assert presets.load_preset("default").source == read["default"].source

    monkeypatch.setattr(shipped, "_kept", set())
    monkeypatch.setattr(presets, "_loaded", {})
    monkeypatch.setattr(shipped, "installation", lambda: "another installation's")
    shipped.recall_shipped(tmp_path)
    assert presets.loaded() == {}


def test_a_changed_policy_file_is_another_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "profiles").mkdir()
    file = tmp_path / "profiles" / "some.toml"
    file.write_text("a = 1")
    places = {"policies": tmp_path, "policies/profiles": tmp_path / "profiles"}
    monkeypatch.setattr(shipped, "data_path", places.__getitem__)
    before, info = shipped.installation.__wrapped__(), file.stat()
    assert shipped.installation.__wrapped__() == before
    changed = tmp_path / "other"
    changed.write_text("a = 2")
    os.utime(changed, ns=(info.st_atime_ns, info.st_mtime_ns))
    changed.rename(file)  # as long, as old
    assert shipped.installation.__wrapped__() != before


PLAN = FilterPlan(arch="x86_64")


def test_a_kept_filter_is_the_one_that_was_made(tmp_path: Path) -> None:
    make = program.program.__wrapped__
    made = make(PLAN, tmp_path)
    (kept,) = (tmp_path / "filters").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert make(PLAN, tmp_path) == made == make(PLAN, None)
    assert make(FilterPlan(arch="x86_64", traced=False), tmp_path).bpf != made.bpf


@pytest.mark.parametrize("harm", ["bit", "cut", "readable", "link", "empty"])
def test_a_harmed_file_counts_as_absent(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "kept"
    remembered.remember(path, b"what was worked out")
    assert remembered.recall(path) == b"what was worked out"
    content = path.read_bytes()
    if harm == "bit":
        path.write_bytes(content[:-1] + bytes((content[-1] ^ 1,)))
    elif harm == "cut":
        path.write_bytes(content[:-1])
    elif harm == "readable":
        path.chmod(0o640)
    elif harm == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_bytes(b"")
    assert remembered.recall(path) is None


def test_a_temporary_directory_is_new_for_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    first = tmpdirs.make(state)
    assert first.stat().st_mode & 0o777 == 0o700
    assert re.fullmatch(r"akbox-[0-9a-f]{16}-0", first.name), "nobody else can tell it beforehand"
    other_user = tmp_path / "other"
    other_user.mkdir(mode=0o700)
    assert tmpdirs.make(other_user).name[:22] != first.name[:22]
    other = tmpdirs.make(state)
    assert other != first, "two runs at once"
    (first / "left").mkdir()
    (first / "left" / "behind").touch()
    tmpdirs.remove(first)
    again = tmpdirs.make(state)
    assert again == first
    assert not os.listdir(again)
    tmpdirs.remove(again)
    again.mkdir()  # somebody takes the name while it is free
    assert tmpdirs.make(state) not in (again, other)
