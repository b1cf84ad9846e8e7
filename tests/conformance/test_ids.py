"""Each case of the list that the kit was made from is in the kit, in a test of another kind, or named as absent."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from akbox.conformance.suite import all_cases

from .races import RACES

TESTS = Path(__file__).resolve().parents[1]
# The list's ids that are asked for, without those put off to later versions.
ASKED = {
    "F": "1-7 9-11 13-19 21-25 27 28 30-34 36-41 43 44 46-56 62",
    "N": "1-4 6 7 9 11 12 14 15 17-22 24-32 34 35 43 46-50",
    "P": "1-5 7-13 15-21 23 24 27-29 31 32 34 36-46",
    "I": "1-3 5 7-10 12-16",
    "R": "1 4 9-11",
    "L": "1 3-5 7 8 10-12 14 15",
    "T": "1 3 4 7 8",
    "A": "1 4-8 10 11 13",
}
# What takes more than one command under one policy.
ELSEWHERE = {
    "N43": "e2e/test_audit_secrets.py::test_no_planted_secret_is_in_the_state_directory",
    "N46": "integration/test_network_fails_closed.py::test_nothing_goes_out_past_a_stopped_or_killed_akbox",
    "N47": "integration/test_network.py::test_another_process_cannot_use_the_relay",
    "N48": "integration/test_network.py::test_bytes_past_the_budget_are_cut_off",
    "I08": "integration/test_descriptors.py::test_a_host_program_cannot_hand_descriptors_over",
    "P38": "conformance/test_lifecycle.py::test_p38_killed_supervisor",
    "P42": "integration/test_programs.py::test_program",
    "P43": "conformance/test_lifecycle.py::test_p43_multi_threaded_host_under_a_runtime_filter",
    "P44": "conformance/test_lifecycle.py::test_p44_nested",
    "P45": "conformance/test_lifecycle.py::test_p45_open_descriptors_are_closed",
    "P46": "conformance/test_lifecycle.py::test_p46_keep_fd",
    "L10": "conformance/test_limits.py::test_l10_output_flood",
    "L12": "inference/test_metering.py::test_twenty_streams_at_once_never_pass_the_limit",
    "L14": "unit/test_budget_ledger.py::test_a_childs_share_comes_out_of_its_parents",
    "L15": "integration/test_revocation.py::test_an_open_that_worked_a_moment_ago",
    "T03": "conformance/test_terminal.py::test_vim",
    "T04": "conformance/test_terminal.py::test_it_is_left_usable_by_a_crash",
    "T07": "conformance/test_cli.py::test_t07_arguments_arrive_unchanged",
    "T08": "conformance/test_lifecycle.py::test_t08_standard_input",
    "A01": "conformance/test_cli.py::test_a01_a_wrong_policy_runs_nothing",
    "A04": "conformance/test_cli.py::test_a04_no_landlock_is_refused",
    "A06": "conformance/test_log.py::test_a06_a_touched_log_is_refused_at_that_entry",
    "A07": "e2e/test_audit_crash.py::test_killed_under_load",
    "A10": "integration/test_record.py::test_recorded_program_passes",
    "A11": "conformance/test_cases.py::test_case",  # engine.py asks `explain` about every path in every log
}
# Id: why nothing tests it.
ABSENT = {
    "A05": "`run --record` allows, `audit replay -p` says what a policy would refuse; no mode does both",
    "A13": "a run's name is for people; two may have the same, and their state is apart",
    "I15": "names nothing to refuse",
}


def _asked() -> list[str]:
    found = []
    for letter, ranges in ASKED.items():
        for part in ranges.split():
            first, _, last = part.partition("-")
            found += [f"{letter}{n:02}" for n in range(int(first), int(last or first) + 1)]
    return found


def _numbers(name: str) -> set[str]:
    """The list's ids that a case's own id stands for: F50-F53 for four, L11-cgroup for one."""
    several = re.fullmatch(r"([A-Z])(\d\d)-\1(\d\d)", name)
    if several:
        return {f"{several[1]}{n:02}" for n in range(int(several[2]), int(several[3]) + 1)}
    return {name.split("-", maxsplit=1)[0]}


IN_THE_KIT = set().union(*(_numbers(case.id) for case in all_cases()), *(_numbers(race.id) for race in RACES))


@pytest.mark.parametrize("wanted", _asked())
def test_each_is_somewhere(wanted: str) -> None:
    places = [wanted in IN_THE_KIT, wanted in ELSEWHERE, wanted in ABSENT]
    assert any(places), f"{wanted} was lost"
    assert not (wanted in ABSENT and (wanted in IN_THE_KIT or wanted in ELSEWHERE))


@pytest.mark.parametrize("place", sorted(set(ELSEWHERE.values())))
def test_what_is_named_elsewhere_is_there(place: str) -> None:
    file, name = place.split("::")
    assert re.search(rf"^def {name}\(", (TESTS / file).read_text(), re.MULTILINE)


def test_parts_that_were_lost_once() -> None:
    ids = {case.id for case in all_cases()}
    assert {
        "L11-cgroup",
        "L11-NOFILE",
        "L11-prlimit",
        "L04",
        "L08-open-files",
        "L08-core",
        "L08-file-size-error",
    } <= ids
