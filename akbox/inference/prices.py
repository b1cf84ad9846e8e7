"""What models cost: the shipped list, and a policy's own prices before it.

List prices for requests as they are usually made. Higher rates for very long prompts, discounts and taxes are not in
it: a policy that has them states its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import msgspec

from akbox.inference.wire import Usage
from akbox.policy.model import Price as Stated
from akbox.policy.patterns import match_name

FILE = Path(__file__).with_name("prices.json")
_LONG_CACHE = 2.0  # times the price of input: what keeping a prompt for an hour costs where writing it has a price


class Price(msgspec.Struct, frozen=True):
    """US dollars for a million tokens, which is millionths of a dollar for one. `most_output`: the longest answer that
    the model gives, in tokens."""

    input: float
    output: float
    cache_read: float | None = None
    cache_write: float | None = None
    most_output: int | None = None

    def prompt_bound_micros(self, tokens: int) -> int:
        """The most that a prompt of so many tokens can cost."""
        dearest = max(self.input, self.cache_write or 0, _LONG_CACHE * self.input if self.cache_write else 0)
        return math.ceil(tokens * dearest)

    def output_micros(self, tokens: int) -> int:
        return math.ceil(tokens * self.output)

    def micros(self, usage: Usage) -> int:
        """What a call cost, rounded up to a millionth of a dollar."""
        read = self.input if self.cache_read is None else self.cache_read
        write = self.input if self.cache_write is None else self.cache_write
        long = _LONG_CACHE * self.input if self.cache_write else write
        plain = max(usage.prompt - usage.cache_read - usage.cache_write, 0)
        short_write = max(usage.cache_write - usage.cache_write_long, 0)
        total = plain * self.input + usage.cache_read * read + short_write * write + usage.cache_write_long * long
        return math.ceil(total + usage.output * self.output)


class PriceList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file: when and where the prices were read, and the models by name or by the start of it and a `*`."""

    date: str
    source: tuple[str, ...]
    models: dict[str, Price]


@cache
def shipped() -> PriceList:
    return msgspec.json.decode(FILE.read_bytes(), type=PriceList)


class Prices:
    """Finds a model's price: of the patterns that match, the policy's before the shipped, exact before longer before
    shorter."""

    def __init__(self, stated: Mapping[str, Stated]) -> None:
        self._own = {name: Price(p.input, p.output, p.cache_read, p.cache_write) for name, p in stated.items()}
        self._found: dict[str, Price | None] = {}

    def find(self, model: str) -> Price | None:
        """None: not known."""
        if model not in self._found:
            if len(self._found) >= 1024:  # names come from the agent
                self._found.clear()
            self._found[model] = _best(self._own, model) or _best(shipped().models, model)
        return self._found[model]

    def cost_micros(self, model: str, usage: Usage) -> int | None:
        price = self.find(model)
        return None if price is None else price.micros(usage)


def _best(table: Mapping[str, Price], model: str) -> Price | None:
    """Providers prefix names with an owner on the way ("anthropic/claude-…"); the last part is the model."""
    for name in dict.fromkeys((model, model.rpartition("/")[2])):
        if name in table:
            return table[name]
        fitting = [pattern for pattern in table if match_name(pattern, name)]
        if fitting:
            return table[max(fitting, key=len)]
    return None
