"""The most that the rates frozen with a call can make it cost."""

from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

from contracts.usage import Rates, Tier


class Ceiling(NamedTuple):
    """The most that one unit can cost."""

    input: Decimal
    output: Decimal
    request: Decimal


@lru_cache(4096)
def dearest(rates: Rates | Tier) -> Ceiling:
    """The dearest of a candidate's rates, or of one of its tiers."""
    inputs = (rates.input, rates.cache_read, rates.cache_write, rates.cache_write_1h)
    return Ceiling(
        max(Decimal(rate) for rate in inputs if rate is not None),
        max(Decimal(rate) for rate in (rates.output, rates.reasoning) if rate is not None),
        Decimal(rates.request) if isinstance(rates, Rates) else Decimal(0),
    )


def reachable(rates: Rates, tokens_in: int) -> Ceiling:
    """The dearest of the rates and of all tiers that a prompt of at most this length can pay."""
    own = dearest(rates)
    ceilings = [own, *(dearest(tier) for tier in rates.tiers if tokens_in > tier.above)]
    return Ceiling(max(each.input for each in ceilings), max(each.output for each in ceilings), own.request)
