"""Packages that only the audit tests use, installed by the tests themselves: what they check akbox's output with."""

from __future__ import annotations

import fcntl
import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

PACKAGES = {
    "aics_tlog": ("aics-tlog==0.2.1",),
    "ocsf_json_schema": ("ocsf-json-schema==1.2.0",),
    "opentelemetry": ("opentelemetry-proto==1.27.0", "protobuf==4.25.5"),
}


def package(name: str) -> ModuleType:
    """The module `name`, from a directory of this user's that lives between runs of the tests. `--no-deps`: what they
    need is in the tests' environment; `--ignore-requires-python`: they work with 3.11, whatever their metadata say."""
    base = Path(tempfile.gettempdir()) / f"akbox-test-packages-{os.geteuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    if base.stat().st_uid != os.geteuid():
        raise PermissionError(f"{base} belongs to someone else")
    wanted = PACKAGES[name.partition(".")[0]]
    folder = base / wanted[0]
    with open(base / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            fresh = Path(tempfile.mkdtemp(dir=base))
            pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input"]
            options = ["--no-deps", "--ignore-requires-python", "--target", str(fresh)]
            subprocess.run([*pip, *options, *wanted], check=True, timeout=240)
            fresh.rename(folder)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return importlib.import_module(name)
