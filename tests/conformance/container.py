"""A real container of this machine's own files, with what containerd gives one by default: its seccomp profile, masked
paths and devices. Needs root, containerd and runc.

containerd is started only to say what its default is (`ctr container create --seccomp`, nothing pulled, nothing run);
runc runs it as an unprivileged user, as a Kubernetes pod with `seccompProfile: RuntimeDefault` would be.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
POD_UID = 65532
DEADLINE_S = 30
TEMPORARY = ("/tmp", "/var/tmp")


@contextmanager
def containerd(folder: Path) -> Iterator[Path]:
    """A containerd of our own, with root, state and socket in `folder`; yields the socket."""
    socket = folder / "containerd.sock"
    config = folder / "containerd.toml"
    config.write_text(
        f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{socket}"\n'
    )
    with open(folder / "containerd.log", "wb") as log:
        process = subprocess.Popen(["containerd", "-c", str(config)], stdout=log, stderr=log)
    try:
        end = time.monotonic() + DEADLINE_S
        while subprocess.run(["ctr", "-a", str(socket), "version"], capture_output=True, check=False).returncode != 0:
            assert process.poll() is None, (folder / "containerd.log").read_text()
            assert time.monotonic() < end, "containerd does not answer"
        yield socket
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


def default_spec(folder: Path) -> dict[str, Any]:
    """The OCI spec of a container that was asked for nothing but `--seccomp`."""
    with containerd(folder) as socket:
        ctr = ["ctr", "-a", str(socket), "container"]
        made = [*ctr, "create", "--seccomp", "--rootfs", str(folder / "rootfs"), "kit", "/bin/true"]
        subprocess.run(made, check=True, capture_output=True)
        said = subprocess.run([*ctr, "info", "--spec", "kit"], check=True, capture_output=True)
        subprocess.run([*ctr, "delete", "kit"], check=True, capture_output=True)
    spec: dict[str, Any] = json.loads(said.stdout)
    assert spec["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO", "containerd gave no seccomp profile"
    return spec


def make_bundle(folder: Path, command: Sequence[str], uid: int = POD_UID) -> Path:
    """An OCI bundle in `folder`: a root of this machine's /usr and /etc and the project, read-only, and its own /tmp.
    `uid` 0 keeps the runtime's default capabilities; others have none, as in a pod that runs as non-root."""
    root = folder / "rootfs"
    for name in ("usr", "etc", "proc", "sys", "dev", "run", "tmp", "var/tmp"):
        (root / name).mkdir(parents=True)
    for name in TEMPORARY:
        (root / name.lstrip("/")).chmod(0o1777)  # runc gives a tmpfs the mode of the directory it covers
    shared = [Path("/usr"), Path("/etc"), *{PROJECT, Path(sys.prefix)}]
    for name in ("bin", "sbin", "lib", "lib64"):
        link = Path("/") / name
        if link.is_symlink():
            (root / name).symlink_to(link.readlink())
        elif link.is_dir():
            (root / name).mkdir()
            shared.append(link)
    spec = default_spec(folder)
    # First, because the project may lie below one of them.
    for name in TEMPORARY:
        options = ["nosuid", "nodev", "size=512m"]
        spec["mounts"].append({"destination": name, "type": "tmpfs", "source": "tmpfs", "options": options})
    for path in shared:
        place = root / path.relative_to("/")
        place.mkdir(parents=True, exist_ok=True)
        spec["mounts"].append(
            {
                "destination": str(path),
                "type": "bind",
                "source": str(path),
                "options": ["rbind", "ro", "nosuid", "nodev"],
            }
        )
    spec["root"] = {"path": str(root), "readonly": True}
    spec["process"] |= {
        "user": {"uid": uid, "gid": uid},
        "args": list(command),
        "env": ["PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/tmp", "LANG=C.UTF-8", "TMPDIR=/tmp"],
        "cwd": "/tmp",
    }
    if uid != 0:
        spec["process"]["capabilities"] = {}
    spec["linux"]["cgroupsPath"] = f"/{name_of(folder)}"
    (folder / "config.json").write_text(json.dumps(spec))
    return folder


def name_of(bundle: Path) -> str:
    """Of the container and its cgroup: runc ends whatever is in a cgroup of that name, so no two may share one."""
    return "akbox-kit" + str(bundle).replace("/", "-")


def run_container(bundle: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
    name = name_of(bundle)
    runc = ["runc", "--root", str(bundle / "runc")]
    try:
        return subprocess.run(
            [*runc, "run", "--bundle", str(bundle), name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    finally:
        subprocess.run([*runc, "delete", "--force", name], capture_output=True, check=False)
