"""`seeds.py DIRECTORY`: compiled policies as inputs of policy.c, from the shipped presets and from small policies."""

from __future__ import annotations

import sys
from pathlib import Path

from akbox.policy.compile import compile_policy
from akbox.policy.load import parse
from akbox.policy.presets import load_preset
from akbox.policy.rules import Context

CONTEXT = Context(workdir="/w", home="/h", tmp="/t", prefix="/usr", state_dirs=("/s",))
SMALL = (
    'fs.read = ["/a/**"]',
    'fs.read = ["/a/*.txt", "**/x"]\nfs.deny = ["**/.env"]',
    'fs.write = ["/w/**"]\nfs.protect = ["**/.git/hooks/**"]\nfs.exec = ["/usr/bin/*"]',
    'net.connect = ["ip:10.0.0.0/8:1-99", "udp+ip:[fd00::]/8:*"]\nnet.bind = ["ip:127.0.0.1:8080"]',
    'net.unix = ["/run/x.sock", "/t/**"]\nnet.deny = ["ip:169.254.0.0/16:*"]',
)
PATHS = (b"/a/b.txt/w/.git/hooks/x", b"/usr/bin/true/run/x.sock", b"/")
PRESETS = ("default", "python-agent", "readonly")


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    blobs = [
        compile_policy(parse('version = "1.0"\n' + text, syntax="toml", name="seed"), CONTEXT).blob for text in SMALL
    ]
    blobs += [compile_policy(load_preset(name), CONTEXT).blob for name in PRESETS]
    for n, blob in enumerate(blobs):
        if len(blob) < 1 << 16:
            (directory / f"policy-{n}").write_bytes(len(blob).to_bytes(2, "little") + blob + PATHS[n % len(PATHS)])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
