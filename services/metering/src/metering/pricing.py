"""What a call costs: usage by frozen rates. Pure; Decimal throughout."""

from decimal import Context, Decimal, DecimalException
from functools import lru_cache
from typing import Final, NamedTuple

from contracts.money import LIMIT, PLACES, ZERO, rounded
from contracts.usage import PIECES_MAX, TOKENS_MAX, Piece, Rates, Tier, Usage, UsageSource, piece_rate

COST_MAX: Final = LIMIT - PLACES
"""The largest amount that the books can hold; a dearer call is bounded to it."""
_EXACT: Final = Context(prec=80)
_RATE_CHARS_MAX: Final = 40
_NAME_CHARS_MAX: Final = 100
_AMOUNT_MAX: Final = Decimal(TOKENS_MAX)
_TOKEN_RATES: Final = ("input", "output", "cache_read", "cache_write", "cache_write_1h", "reasoning")


class PricingError(ValueError):
    """A rate that is no number in 0 ≤ rate < 1e18."""


class _Prices(NamedTuple):
    """Credits per unit, fall-backs applied."""

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal
    cache_write_1h: Decimal
    reasoning: Decimal
    request: Decimal


def bounded(usage: Usage) -> Usage:
    """The same usage with every count in 0 … TOKENS_MAX; marked `estimated` when one had to be moved.

    Amounts of pieces have the same bounds; one that is no plain decimal number is none at all.
    """
    counts = (
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        usage.reasoning_tokens,
        usage.cache_write_1h_tokens,
    )
    pieces = _bounded_pieces(usage.pieces) if usage.pieces else ()
    if all(0 <= count <= TOKENS_MAX for count in counts) and pieces == usage.pieces:
        return usage
    read, written, cache_read, cache_write, reasoning, cache_1h = (min(max(count, 0), TOKENS_MAX) for count in counts)
    return Usage(read, written, cache_read, cache_write, reasoning, UsageSource.ESTIMATED, cache_1h, pieces)


def cost(usage: Usage, rates: Rates) -> Decimal:
    """Credits of one call, ten places, half up, 0 ≤ cost < 1e18.

    Args:
        usage: bounded counts; parts never overlap.
        rates: frozen at admission. Fall-backs as `contracts.usage.Rates` has them; a prompt longer than a tier's
            border pays that tier's rates for all of its tokens.

    Raises:
        PricingError: a rate is malformed, negative, NaN or out of bounds.
    """
    prices = _at_length(rates, usage.prompt_tokens) if rates.tiers else _prices(rates)
    total = prices.request
    for count, price in (
        (usage.input_tokens, prices.input),
        (usage.output_tokens, prices.output),
        (usage.cache_read_tokens, prices.cache_read),
        (usage.cache_write_tokens, prices.cache_write),
        (usage.cache_write_1h_tokens, prices.cache_write_1h),
        (usage.reasoning_tokens, prices.reasoning),
    ):
        if count > 0 and price:
            total = _EXACT.add(total, _EXACT.multiply(Decimal(count), price))
    if usage.pieces:
        total = _EXACT.add(total, _of_pieces(usage.pieces, rates))
    return rounded(total) if total < COST_MAX else COST_MAX


def as_texts(rates: Rates) -> dict[str, str]:
    """The rates as they stand in a usage event: absent ones left out.

    A tier's rates are named `input above 200000`, those of pieces `image`, `image 1024x1024`, `image 1024x1024 hd`,
    `image quality hd`.
    """
    texts = {"input": rates.input, "output": rates.output, "request": rates.request}
    for name in _TOKEN_RATES[2:]:
        value = getattr(rates, name)
        if value is not None:
            texts[name] = value
    for tier in rates.tiers:
        values = {name: getattr(tier, name) for name in _TOKEN_RATES}
        texts |= {f"{name} above {tier.above}": value for name, value in values.items() if value is not None}
    for piece in rates.pieces:
        quality = f"quality {piece.quality}" if piece.quality and not piece.size else piece.quality
        texts[" ".join(filter(None, (piece.unit, piece.size, quality)))] = piece.rate
    return texts


@lru_cache(maxsize=4096)
def _prices(rates: Rates) -> _Prices:
    for piece in rates.pieces:
        _rate(piece.rate)
    return _of_tokens(rates, _rate(rates.request))


@lru_cache(maxsize=4096)
def _tiers(rates: Rates) -> tuple[tuple[int, _Prices], ...]:
    """Border and prices of each tier, the highest first."""
    request = _rate(rates.request)
    found = [(tier.above, _of_tokens(tier, request)) for tier in rates.tiers]
    return tuple(sorted(found, key=lambda entry: -entry[0]))


def _at_length(rates: Rates, prompt_tokens: int) -> _Prices:
    base = _prices(rates)
    return next((prices for above, prices in _tiers(rates) if prompt_tokens > above), base)


def _of_tokens(rates: Rates | Tier, request: Decimal) -> _Prices:
    own_input, own_output = _rate(rates.input), _rate(rates.output)
    cache_write = own_input if rates.cache_write is None else _rate(rates.cache_write)
    return _Prices(
        input=own_input,
        output=own_output,
        cache_read=own_input if rates.cache_read is None else _rate(rates.cache_read),
        cache_write=cache_write,
        cache_write_1h=cache_write if rates.cache_write_1h is None else _rate(rates.cache_write_1h),
        reasoning=own_output if rates.reasoning is None else _rate(rates.reasoning),
        request=request,
    )


def _of_pieces(pieces: tuple[Piece, ...], rates: Rates) -> Decimal:
    total = ZERO
    for piece in pieces:
        total = _EXACT.add(total, _EXACT.multiply(Decimal(piece.amount), piece_rate(rates.pieces, piece)))
    return total


def _bounded_pieces(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    return tuple(
        Piece(_name(piece.unit), _amount(piece.amount), _name(piece.size), _name(piece.quality))
        for piece in pieces[:PIECES_MAX]
    )


def _name(text: str) -> str:
    """Bounded, and without NUL, which PostgreSQL cannot store."""
    return text[:_NAME_CHARS_MAX].replace("\x00", "")


def _amount(text: str) -> str:
    """The same text while it is an amount in bounds; else the nearest bound."""
    try:
        amount = Decimal(text) if len(text) <= _RATE_CHARS_MAX else ZERO
    except DecimalException:
        return "0"
    if not amount.is_finite() or amount < ZERO or len(text) > _RATE_CHARS_MAX:
        return "0"
    return text if amount <= _AMOUNT_MAX else str(TOKENS_MAX)


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
