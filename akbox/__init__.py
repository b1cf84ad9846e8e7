"""akbox: a sandbox and authority kernel for AI agents on Linux.

    import akbox
    result = akbox.Sandbox("python-agent").run(["python3", "agent.py"])

Everything is imported at first use: `import akbox` itself costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from akbox.linux.errors import CannotRun
    from akbox.linux.result import RunResult
    from akbox.linux.run import Run
    from akbox.linux.sandbox import Sandbox
    from akbox.policy.check import PolicyError, Problem
    from akbox.policy.explain import Explanation
    from akbox.policy.model import Policy

__version__ = "0.1.0"
__all__ = [
    "CannotRun",
    "Explanation",
    "Policy",
    "PolicyError",
    "Problem",
    "Run",
    "RunResult",
    "Sandbox",
    "__version__",
]

_HOMES = {
    "CannotRun": "akbox.linux.errors",
    "Explanation": "akbox.policy.explain",
    "Policy": "akbox.policy.model",
    "PolicyError": "akbox.policy.check",
    "Problem": "akbox.policy.check",
    "Run": "akbox.linux.run",
    "RunResult": "akbox.linux.result",
    "Sandbox": "akbox.linux.sandbox",
}


def __getattr__(name: str) -> Any:  # PEP 562: the type depends on the name
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'akbox' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)
