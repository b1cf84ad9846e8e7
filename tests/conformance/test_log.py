"""A log that was touched is refused at the entry that was touched (A06); a flood of output fills no memory (L10)."""

from __future__ import annotations

import json
import re
import sys

import pytest

from akbox.conformance.engine import Result, akbox_command, execute, run_inside, uid_of, verify
from akbox.conformance.model import sh
from akbox.conformance.world import World, Worlds


def touched(lines: list[bytes]) -> dict[str, tuple[list[bytes], int]]:
    """Damage by name: the lines of the log then, and the entry that must be named."""
    flipped = bytearray(lines[3])
    flipped[lines[3].index(b'"target":"') + 12] ^= 1
    entry = json.loads(lines[4])
    entry["decision"] = "allow" if entry["decision"] == "deny" else "deny"
    return {
        "flipped bit": ([*lines[:3], bytes(flipped), *lines[4:]], 4),
        "another verdict": ([*lines[:4], json.dumps(entry, separators=(",", ":")).encode() + b"\n", *lines[5:]], 5),
        "deleted": ([*lines[:4], *lines[5:]], 5),
        "repeated": ([*lines[:4], *lines[3:]], 5),
        "reordered": ([*lines[:2], lines[3], lines[2], *lines[4:]], 3),
        "first deleted": (lines[1:], 1),
        "torn": ([*lines[:-1], lines[-1][:-9]], len(lines)),
        "cut tail": (lines[:-2], len(lines) - 1),
    }


def test_a06_a_touched_log_is_refused_at_that_entry(worlds: Worlds) -> None:
    with worlds.lend(uid_of("user")) as world:
        result = run_inside(world, sh("cat {R}/a; cat {S}; cat {H}"))
        assert result.log is not None
        verify(world, result.log)
        whole = result.log.read_bytes()
        for name, (lines, entry) in touched(whole.splitlines(keepends=True)).items():
            result.log.write_bytes(b"".join(lines))
            verdict = audit_verify(world, str(result.log))
            assert verdict.exit == 1, f"{name}\n{verdict}"
            assert re.search(rf"FAILED at entry {entry}:", verdict.stdout), f"{name}: not entry {entry}\n{verdict}"
            with pytest.raises(AssertionError):
                verify(world, result.log)
        result.log.write_bytes(whole)
        assert audit_verify(world, str(result.log)).exit == 0


def audit_verify(world: World, log: str) -> Result:
    return execute([*akbox_command(), "audit", "verify", log], world, uid=world.uid)


FLOOD = """
import resource, akbox
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = akbox.Sandbox("default").run(["head", "-c", "1000000000", "/dev/zero"])
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(result.exit_code, len(result.stdout) <= 64 << 20, grown < 300 << 10)
"""


def test_l10_a_flood_of_output_is_capped(worlds: Worlds) -> None:
    """A gigabyte on standard output, collected by the library. ru_maxrss is in KiB (getrusage(2))."""
    with worlds.lend(uid_of("user")) as world:
        result = execute([sys.executable, "-c", FLOOD], world, uid=world.uid, timeout_s=120)
        assert result.stdout.split()[1:] == ["True", "True"], str(result)
