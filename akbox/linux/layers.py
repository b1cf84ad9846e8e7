"""One layer of the confinement as it was found on this host: what `doctor` prints, and what a run is refused for."""

from msgspec import Struct


class Layer(Struct, frozen=True):
    """works: it was tried and held. detail: what was found. remedy: what to do about it, "" when there is nothing."""

    name: str
    works: bool
    detail: str
    remedy: str = ""
