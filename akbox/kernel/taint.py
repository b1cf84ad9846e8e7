"""Taint: where a value came from, as a label that follows it, and the places where that matters.

TRUSTED is the agent's own. What comes from the network, tools, models and other agents is UNTRUSTED until a sanitizer
made it fit for one kind of place, its sink; the label says which, and it fits no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from akbox.kernel.codes import CallError, Code

if TYPE_CHECKING:
    from akbox.kernel.calls.base import Sink
    from akbox.kernel.pipeline import Context

TAINT_TRUSTED, TAINT_URL, TAINT_PATH, TAINT_SQL, TAINT_CMD, TAINT_HTML, TAINT_UNTRUSTED = 0, 10, 11, 12, 13, 14, 100
LABELS = {
    "TRUSTED": TAINT_TRUSTED, "SANITIZED_URL": TAINT_URL, "SANITIZED_PATH": TAINT_PATH, "SANITIZED_SQL": TAINT_SQL,
    "SANITIZED_CMD": TAINT_CMD, "SANITIZED_HTML": TAINT_HTML, "UNTRUSTED": TAINT_UNTRUSTED,
}  # fmt: skip
NAMES = {number: name for name, number in LABELS.items()}


def combined(*labels: int) -> int:
    """The label of what is made of several values: trusted parts add nothing, and two that are fit for different sinks
    are together fit for none."""
    tainted = {label for label in labels if label != TAINT_TRUSTED}
    if not tainted:
        return TAINT_TRUSTED
    return tainted.pop() if len(tainted) == 1 else TAINT_UNTRUSTED


def check_sinks(ctx: Context, sinks: Sequence[Sink]) -> bool:
    """Raises CallError(TAINT) for a value that may not go where the call would take it. False: there was none."""
    for sink in sinks:
        if sink.taint != TAINT_TRUSTED and sink.taint not in sink.accepts:
            wanted = " or ".join(NAMES[label] for label in sink.accepts) or "TRUSTED"
            raise CallError(
                Code.TAINT, f"{sink.path}: {NAMES.get(sink.taint, sink.taint)} data may not go here, only {wanted}",
                suggested_fix="sanitize it: ALLOC {type, sanitize, from}", details={"taint": sink.taint},
            )  # fmt: skip
    return bool(sinks)
