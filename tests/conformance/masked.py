"""`masked.py ABI AKBOX-ARGUMENTS...`: akbox on a kernel whose Landlock is believed to be no newer than ABI.

What the code builds is then what it would build there, and this kernel enforces no more than that ruleset asks for.
"""

from __future__ import annotations

import sys

from akbox import _native
from akbox.linux import probe


def mask(abi: int) -> None:
    plain = probe._report

    def report(found: dict[str, tuple[bool, str]]) -> probe.HostReport:
        found["landlock-abi"] = True, str(abi)
        if abi < 6:
            found["landlock-scope"] = False, f"ABI {abi} has no scopes"
        return plain(found)

    probe._report = report
    _native.landlock_abi = lambda: abi


if __name__ == "__main__":
    mask(int(sys.argv.pop(1)))
    from akbox.cli.main import main

    sys.exit(main())
