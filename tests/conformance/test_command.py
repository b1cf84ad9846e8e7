"""`akbox test confinement`: few cases of the kit, by the command. That they hold is test_cases.py's to show."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from akbox.conformance import runner
from akbox.conformance.engine import USERS, akbox_command
from akbox.conformance.model import Case, Control, Entry, Expect, call, sh
from akbox.conformance.world import Worlds


def akbox_test(*words: str) -> subprocess.CompletedProcess[str]:
    command = [*akbox_command(), "test", "confinement", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_outcomes_as_json() -> None:
    done = akbox_test("--case", "F18-neighbour", "--case", "P17", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["cases"] == 2
    assert {(o["case"], o["user"]) for o in said["outcomes"]} == {
        (case, user) for case in ("F18-neighbour", "P17") for user in ("outside", *USERS)
    }
    assert {outcome["status"] for outcome in said["outcomes"]} == {"pass"}


def test_list_and_unknown_case() -> None:
    assert "F19-neighbour" in akbox_test("--list", "--case", "F19").stdout
    unknown = akbox_test("--case", "Z99")
    assert unknown.returncode == 2
    assert "there is no case Z99" in unknown.stderr


def test_a_case_that_does_not_hold_fails(worlds: Worlds) -> None:
    """A kit that could not fail would show nothing."""
    for case in (
        Case("X1", "refused, it says, but it is granted", ("cat", "{R}/a"), Expect(errnos=("EACCES",))),
        Case("X2", "works, it says, but it is denied", ("cat", "{H}"), Expect(exit=0)),
        Case("X3", "the wrong errno", call("openat", "{S}", "0"), Expect(errnos=("EROFS",))),
        Case("X4", "an entry that is not there", ("true",), Expect(exit=0, entry=Entry("fs.open", "/nowhere"))),
    ):
        outcome = runner.case_outcome(worlds, case, USERS[-1], "auto")
        assert outcome.status == "fail", outcome


def test_removed_is_what_fails_outside_too(worlds: Worlds) -> None:
    no_such_call = Case("X5", "a call no kernel has, with an entry of another", call("number", "600", *["0"] * 6),
                        Expect(exit=1, errnos=("EXDEV",)), Control())  # fmt: skip
    assert runner.case_outcome(worlds, no_such_call, USERS[-1], "auto").status == "removed"
    reads = Case("X6", "it reads what it must not", sh("cat {H}; exit 1"), Expect(errnos=("EXDEV",)), Control(exit=1))
    assert runner.case_outcome(worlds, reads, USERS[-1], "auto").status == "fail"


def test_the_wheel_has_the_kit(tmp_path: Path) -> None:
    """Built and unpacked, it lists and loads its cases, helper sources and verifier without the checkout."""
    project = Path(__file__).resolve().parents[2]
    source = tmp_path / "source"
    ignored = ("build", ".venv", ".git", "*.so", "__pycache__", "*.egg-info")
    shutil.copytree(project, source, ignore=shutil.ignore_patterns(*ignored))
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run(build, cwd=source, check=True, capture_output=True, timeout=120)
    script = (
        "from akbox.conformance import evidence, suite, world\n"
        "from pathlib import Path\n"
        "evidence.independent_verifier(); print(len(suite.all_cases()))\n"
        f"world.build_helpers(Path({str(tmp_path / 'helpers')!r})); print(world.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "lib")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    count, place = done.stdout.split()
    assert int(count) > 300
    assert place.startswith(str(tmp_path / "lib"))
    assert (tmp_path / "helpers" / "try_call").exists()
