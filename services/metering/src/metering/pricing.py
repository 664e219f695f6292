"""What a call costs: usage by frozen rates. Pure; Decimal throughout."""

from decimal import Context, Decimal, DecimalException
from functools import lru_cache
from typing import Final, NamedTuple

from contracts.money import LIMIT, PLACES, ZERO, rounded
from contracts.usage import TOKENS_MAX, Rates, Usage, UsageSource

COST_MAX: Final = LIMIT - PLACES
"""The largest amount that the books can hold; a dearer call is bounded to it."""
_EXACT: Final = Context(prec=80)
_RATE_CHARS_MAX: Final = 40


class PricingError(ValueError):
    """A rate that is no number in 0 ≤ rate < 1e18."""


class _Prices(NamedTuple):
    """Credits per unit, fall-backs applied."""

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal
    reasoning: Decimal
    request: Decimal


def bounded(usage: Usage) -> Usage:
    """The same usage with every count in 0 … TOKENS_MAX; marked `estimated` when one had to be moved."""
    counts = (
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        usage.reasoning_tokens,
    )
    if all(0 <= count <= TOKENS_MAX for count in counts):
        return usage
    read, written, cache_read, cache_write, reasoning = (min(max(count, 0), TOKENS_MAX) for count in counts)
    return Usage(read, written, cache_read, cache_write, reasoning, UsageSource.ESTIMATED)


def cost(usage: Usage, rates: Rates) -> Decimal:
    """Credits of one call, ten places, half up, 0 ≤ cost < 1e18.

    Args:
        usage: bounded counts; parts never overlap.
        rates: frozen at admission. An absent cache rate is the input rate, an absent reasoning rate the output rate.

    Raises:
        PricingError: a rate is malformed, negative, NaN or out of bounds.
    """
    prices = _prices(rates)
    total = prices.request
    for count, price in (
        (usage.input_tokens, prices.input),
        (usage.output_tokens, prices.output),
        (usage.cache_read_tokens, prices.cache_read),
        (usage.cache_write_tokens, prices.cache_write),
        (usage.reasoning_tokens, prices.reasoning),
    ):
        if count > 0 and price:
            total = _EXACT.add(total, _EXACT.multiply(Decimal(count), price))
    return rounded(total) if total < COST_MAX else COST_MAX


def as_texts(rates: Rates) -> dict[str, str]:
    """The rates as they stand in a usage event: absent ones left out."""
    texts = {"input": rates.input, "output": rates.output, "request": rates.request}
    for name in ("cache_read", "cache_write", "reasoning"):
        value = getattr(rates, name)
        if value is not None:
            texts[name] = value
    return texts


@lru_cache(maxsize=4096)
def _prices(rates: Rates) -> _Prices:
    own_input, own_output = _rate(rates.input), _rate(rates.output)
    return _Prices(
        input=own_input,
        output=own_output,
        cache_read=own_input if rates.cache_read is None else _rate(rates.cache_read),
        cache_write=own_input if rates.cache_write is None else _rate(rates.cache_write),
        reasoning=own_output if rates.reasoning is None else _rate(rates.reasoning),
        request=_rate(rates.request),
    )


def _rate(text: str) -> Decimal:
    if len(text) > _RATE_CHARS_MAX:
        raise PricingError("a rate has at most 40 characters")
    try:
        rate = Decimal(text)
    except DecimalException as error:
        raise PricingError(f"{text!r} is no rate") from error
    if not rate.is_finite() or rate < ZERO or rate >= LIMIT:
        raise PricingError("a rate is finite, not negative and below 1e18")
    return abs(rate)
