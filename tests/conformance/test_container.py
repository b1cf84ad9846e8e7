"""The container row: `akbox test confinement` inside a real container, under containerd's default seccomp profile.

Where the runtime's own filter removes a call, only its failing is left to see: those cases are the exceptions below,
each with its reason, and none may be among them for another one.
"""

from __future__ import annotations

import fnmatch
import json
import os
from pathlib import Path
from typing import Any

import pytest

from akbox.conformance.engine import akbox_command

from .container import POD_UID, make_bundle, run_container

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a container here")

# Pattern of case ids: what the runtime's filter does there. All of them are refused inside; what lacks is our entry.
REMOVED = {
    "F33": "open_by_handle_at",
    "F38-fchmodat2*": "newer than the runtime's libseccomp: ENOSYS",
    "P01-*": "unshare, without CAP_SYS_ADMIN",
    "P02-NEW*": "clone with namespace flags",
    "P02-clone3": "clone3: ENOSYS, so that clone's flags can be seen",
    "P03-*": "setns",
    "P04-*": "mount, umount2, pivot_root, chroot",
    "P05-*": "the new mount calls",
    "P08-*": "process_vm_readv and writev (allowed from containerd 1.7)",
    "P09-*": "pidfd_getfd",
    "P10-kcmp": "kcmp",
    "P15-*": "each needs a capability that the container lacks, or is on no profile",
    "P18-*": "personality, but for what glibc asks for",
    "P19*": "unknown numbers: ENOSYS",
    "P20": "cachestat and mseal are newer than the runtime's libseccomp",
    "P32": "unshare",
    "L03-tmpfs": "not the filter: the container's /tmp is smaller than what the case writes",
    "N*": "names and the network: as below, and this container's own resolver answers nothing bare",
}
# What does not hold here, although the attempt works bare, and why.
FAILS = {
    "F49-inotify": "watches are made on a duplicate of the agent's descriptor, by pidfd_getfd: refused with EPERM",
    "F49-inotify-W": "the same: there are no watches in such a container",
    "N*": "so are connect, bind and sends: every one is refused with EPERM; the entry is not about the address",
    "I0*": "the same for unix sockets",
    "I13": "not the filter: its segment does not fit into the container's /dev/shm",
}
SOMETIMES = {"I13", "L03-tmpfs"}  # as space is left
# How an exception may differ from the case: another error, no entry, or what is granted does not work. Nothing else.
TAME = (
    *("none of (", "no entry ", "exit 1,", "exit 7,", "'made", "'Permission denied' is not", "P2 was not reached"),
    "I13 cannot be prepared",
)


def kit(folder: Path, uid: int, *words: str) -> dict[str, Any]:
    command = [*akbox_command(), "test", "confinement", "--json", "--no-controls", *words]
    done = run_container(make_bundle(folder, command, uid), timeout_s=280)
    assert done.returncode in (0, 1), f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def check_exceptions(said: dict[str, Any], status: str, allowed: dict[str, str], *, all_needed: bool = False) -> None:
    """Whatever has this status is an exception; `all_needed`: and each exception that names a case here is one."""
    seen, needed = set(), set()
    for outcome in said["outcomes"]:
        fits = {pattern for pattern in allowed if fnmatch.fnmatchcase(outcome["case"], pattern)}
        seen |= fits
        if outcome["status"] == status:
            assert fits, f"{outcome['case']} {outcome['user']} {outcome['interposer']}: {status}\n{outcome['detail']}"
            needed |= fits
            assert status != "fail" or outcome["detail"].startswith(TAME), outcome["detail"]
    unneeded = seen - needed - SOMETIMES
    assert not all_needed or not unneeded, f"not needed any more: {unneeded}"


# All cases, in parts that take about as long.
@pytest.mark.parametrize(
    ("part", "least"), [("F[0-3]*", 75), ("F[4-9]*", 75), ("P*", 50), ("[NI]*", 10), ("[!FPNI]*", 40)]
)
def test_the_kit_in_a_pod(tmp_path: Path, part: str, least: int) -> None:
    said = kit(tmp_path / "pod", POD_UID, "--interposer", "auto", "--case", part)
    check_exceptions(said, "removed", REMOVED, all_needed=True)
    check_exceptions(said, "fail", FAILS, all_needed=True)
    assert said["counts"]["pass"] >= least


@pytest.mark.parametrize("uid", [0, POD_UID])
def test_files_and_processes_under_ptrace(tmp_path: Path, uid: int) -> None:
    """As the container's root, with its default capabilities, too."""
    words = [word for name in ("F05", "F18", "F19", "P03", "P07", "P24", "R04") for word in ("--case", name)]
    user = ["--user", "root"] if uid == 0 else []
    said = kit(tmp_path / "pod", uid, "--interposer", "ptrace", *words, *user)
    check_exceptions(said, "removed", REMOVED)
    check_exceptions(said, "fail", FAILS)
    assert said["counts"]["pass"] > 15


def test_sockets_and_watches_where_the_profile_allows_pidfd_getfd(tmp_path: Path) -> None:
    """The one call that a container has to be given for them (docs/compatibility.md)."""
    words = [word for name in ("F49-inotify", "I01", "I02", "I03", "I05", "N02", "N03") for word in ("--case", name)]
    command = [*akbox_command(), "test", "confinement", "--json", "--no-controls", "--interposer", "auto", *words]
    bundle = make_bundle(tmp_path / "pod", command)
    spec = json.loads((bundle / "config.json").read_text())
    spec["linux"]["seccomp"]["syscalls"].append({"names": ["pidfd_getfd"], "action": "SCMP_ACT_ALLOW"})
    (bundle / "config.json").write_text(json.dumps(spec))
    done = run_container(bundle, timeout_s=120)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert set(json.loads(done.stdout)["counts"]) == {"pass"}, done.stdout


def test_the_default_policy_is_held_in_a_pod(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "pod", [*akbox_command(), "doctor", "--json"])
    done = run_container(bundle, timeout_s=60)
    assert json.loads(done.stdout)["default_policy_holds"], done.stdout
