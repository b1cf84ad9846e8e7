"""The names through which the policy files of a run could be replaced, so that the run can refuse to write them.

A file is replaced by writing it, by renaming another one over it, or by turning a symbolic link on the way to it
somewhere else. (Moving a directory above it is refused because what lies below would lose a protection.)
"""

from __future__ import annotations

import os

from akbox.policy.model import Policy
from akbox.policy.rules import compose

_MAX_LINKS = 40  # as the kernel's look-up


def policy_names(policy: Policy) -> tuple[str, ...]:
    """Canonical names of the files that the policy and its profiles were read from, and of the links that led there."""
    names: dict[str, None] = {}
    for _, part in compose(policy):
        if part.source is not None and part.source.file is not None:
            names.update(dict.fromkeys(names_on_the_way(part.source.file)))
    return tuple(names)


def names_on_the_way(path: str) -> list[str]:
    """Every symbolic link that the look-up of an absolute path goes through, and then what it ends at (links in a
    circle: one of them)."""
    links: list[str] = []
    here, ahead = "/", path.split("/")[::-1]
    while ahead:
        name = ahead.pop()
        if name == "..":
            here = os.path.dirname(here)
        elif name not in ("", "."):
            step = os.path.join(here, name)
            try:
                target = os.readlink(step)
            except OSError:  # EINVAL: not a link
                here = step
                continue
            links.append(step)
            if len(links) > _MAX_LINKS:
                return links
            here = "/" if target.startswith("/") else here
            ahead += target.split("/")[::-1]
    return [*links, here]
