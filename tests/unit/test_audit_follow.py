"""`akbox audit show --follow` of a log that goes on in other files while it is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_kit import Box, event

AKBOX = [sys.executable, "-c", "import sys; from akbox.cli.main import main; sys.exit(main())"]


@pytest.mark.parametrize(("count", "step", "rotate_bytes"), [(12, 1, 1000), (120, 60, 8_000)])
def test_following_goes_on_over_rotations(tmp_path: Path, count: int, step: int, rotate_bytes: int) -> None:
    """`step` entries are written at a time and read before the next: at 1 the reader waits at the end of each file when
    its successor comes, at 60 several files come and go between two looks."""
    box = Box(tmp_path, rotate_bytes=rotate_bytes)
    box.kernel.start({})
    argv = [*AKBOX, "audit", "show", f"{tmp_path}/", "--follow", "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        assert follower.stderr is not None
        seen = [follower.stdout.readline()]
        for n in range(0, count, step):
            events = [event(f"/app/{n + i}", ts=n + i) for i in range(step)]
            for one in events:
                box.kernel.record(box.kernel.root, [one])
            seen += [follower.stdout.readline() for _ in events]
        box.kernel.finish({})
        rest, errors = follower.communicate(timeout=60)
    box.close()
    files = sorted(tmp_path.glob("audit-*.jsonl"))
    assert len(files) > 5
    whole = b"".join(file.read_bytes() for file in [*files, tmp_path / "audit.jsonl"])
    assert (follower.returncode, errors) == (0, b"")
    assert b"".join(seen) + rest == whole
    assert [json.loads(line)["seq"] for line in seen] == list(range(1, len(seen) + 1))
    assert json.loads(rest.splitlines()[-1])["target"] == "run:finish"


def test_following_ends_with_its_reader(tmp_path: Path) -> None:
    """As in `akbox audit show --follow | head -1`."""
    box = Box(tmp_path, rotate_bytes=8_000)
    box.kernel.start({})
    read, write = os.pipe()
    argv = [*AKBOX, "audit", "show", f"{tmp_path}/", "--follow"]
    with subprocess.Popen(argv, stdout=write, stderr=subprocess.PIPE) as follower:
        os.close(write)
        assert b"run:start" in os.read(read, 4096)
        os.close(read)
        box.kernel.record(box.kernel.root, [event("/app/1")])
        _, errors = follower.communicate(timeout=60)
    assert b"Traceback" not in errors
    assert follower.returncode != 0
    box.close()
