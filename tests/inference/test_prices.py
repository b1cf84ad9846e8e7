"""The shipped prices can be read, and what calls cost follows from them."""

from __future__ import annotations

from akbox.inference.prices import Price, Prices, shipped
from akbox.inference.wire import Usage
from akbox.policy.model import Price as Stated


def test_the_shipped_list_is_whole() -> None:
    listed = shipped()
    assert listed.date.startswith("20")
    assert listed.source
    assert len(listed.models) > 50
    for name, price in listed.models.items():
        assert 0 < price.input < 1000, name
        assert 0 <= price.output < 1000, name
        assert price.cache_read is None or price.cache_read <= price.input, name
        assert price.cache_write is None or price.cache_write >= price.input, name


def test_a_policys_price_comes_first_and_the_closest_pattern_wins() -> None:
    prices = Prices({"gpt-4o": Stated(1, 2), "local-*": Stated(0, 0), "local-big*": Stated(5, 6)})
    assert prices.find("gpt-4o") == Price(1, 2)
    assert prices.find("openai/gpt-4o") == Price(1, 2)
    assert prices.find("local-big-1") == Price(5, 6)
    assert prices.find("local-x") == Price(0, 0)
    assert prices.find("gpt-4o-mini") == shipped().models["gpt-4o-mini"]
    assert prices.find("nobody-knows") is None


def test_costs_are_rounded_up_and_know_the_cache() -> None:
    price = Price(3.0, 15.0, cache_read=0.3, cache_write=3.75)
    assert price.micros(Usage(prompt=1)) == 3
    assert price.micros(Usage(prompt=1, cache_read=1)) == 1
    usage = Usage(prompt=1000, output=10, cache_read=600, cache_write=300, cache_write_long=100)
    assert price.micros(usage) == 100 * 3 + 180 + 200 * 3.75 + 100 * 6 + 150
    assert price.prompt_bound_micros(1000) == 6000, "as if all of it were kept for an hour"
    for cached in range(0, 1001, 50):
        most = Usage(prompt=1000, cache_write=cached, cache_write_long=cached)
        assert price.micros(most) <= price.prompt_bound_micros(1000)
