"""Arithmetic on prices: what applies at which prompt length, rates from unit costs, margins and drifts. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Final

from contracts.money import PLACES
from contracts.rpc.catalog import PieceValue, TierValues, Values

_EXACT: Final = Context(prec=60, rounding=ROUND_HALF_UP)
_TOKEN_UNITS: Final = ("input", "output", "cache_read", "cache_write", "cache_write_1h", "reasoning")
_ZERO: Final = Decimal(0)
_HUNDRED: Final = Decimal(100)

Priced = dict[tuple[int, str], Decimal]
"""Price by unit and by the prompt length above which it counts."""


def plain(amount: Decimal) -> str:
    """Every digit of a price and no exponent."""
    return format(amount, "f")


@dataclass(frozen=True, slots=True)
class Policy:
    """How rates follow from unit costs: `rate = cost * (1 + margin %) / credit price`."""

    margin_percent: Decimal
    """≥ 0."""
    credit_price: Decimal
    """US dollars for one credit, > 0."""

    def rates(self, costs: Values) -> Values:
        """Credits per unit, ten places, half up; exactly the costs while there is no margin and a credit is a dollar.

        What costs something is never free: the least rate is the last of the ten places.
        """
        if not self.margin_percent and self.credit_price == 1:
            return costs
        return mapped(costs, self.rate)

    def rate(self, cost: Decimal) -> Decimal:
        """The rate of one unit cost."""
        marked_up = _EXACT.multiply(cost, 1 + self.margin_percent / _HUNDRED)
        rate = _EXACT.divide(marked_up, self.credit_price).quantize(PLACES, context=_EXACT)
        return PLACES if cost and not rate else rate


def mapped(values: Values, change: Callable[[Decimal], Decimal]) -> Values:
    """The same structure with every price changed."""

    def text(price: str | None) -> str | None:
        return None if price is None else plain(change(Decimal(price)))

    def members(part: Values | TierValues) -> dict[str, str | None]:
        return {unit: text(getattr(part, unit)) for unit in _TOKEN_UNITS}

    return Values.model_validate(
        {
            **members(values),
            "request": text(values.request),
            "tiers": [{"above": tier.above, **members(tier)} for tier in values.tiers],
            "pieces": [{**piece.model_dump(), "rate": text(piece.rate)} for piece in values.pieces],
        }
    )


def values_of(values: Values) -> Values:
    """The prices alone, without what a message that extends them says beside."""
    return Values(**{name: getattr(values, name) for name in Values.model_fields})


def at_length(values: Values, above: int) -> dict[str, Decimal]:
    """Token prices, fall-backs applied, of a prompt one token longer than `above`."""
    part: Values | TierValues = values
    for tier in values.tiers:
        if tier.above <= above:
            part = tier
    given = {unit: getattr(part, unit) for unit in _TOKEN_UNITS}
    prices = {unit: Decimal(price) for unit, price in given.items() if price is not None}
    prices.setdefault("cache_read", prices["input"])
    prices.setdefault("cache_write", prices["input"])
    prices.setdefault("cache_write_1h", prices["cache_write"])
    prices.setdefault("reasoning", prices["output"])
    return prices


def compared(first: Values, second: Values) -> Iterator[tuple[Decimal, Decimal]]:
    """The prices of both for each unit, at each prompt length where one of them changes."""
    ours, theirs = _everything(first, second)
    for key in ours.keys() | theirs.keys():
        yield ours.get(key, _ZERO), theirs.get(key, _ZERO)


def drift(first: Values, second: Values) -> Decimal:
    """How far two prices lie apart, 0 … 1: the greatest difference ÷ the greater, over all units."""
    return max((abs(a - b) / max(a, b) for a, b in compared(first, second) if a != b), default=_ZERO)


def least_margin(rates: Values, costs: Values, credit_price: Decimal) -> Decimal | None:
    """The least margin over cost in percent, of all units that cost something; None = none does."""
    pairs = [(rate * credit_price, cost) for rate, cost in compared(rates, costs) if cost]
    return min(((rate - cost) / cost * _HUNDRED for rate, cost in pairs), default=None)


def lifted(rates: Values, floor: Values) -> Values:
    """Rates raised to a floor wherever they lie below it, with every fall-back spelt out."""
    ours, theirs = _everything(rates, floor)
    most = {key: max(ours.get(key, _ZERO), theirs.get(key, _ZERO)) for key in ours.keys() | theirs.keys()}

    def members(border: int) -> dict[str, str]:
        return {unit: plain(most[border, unit]) for unit in _TOKEN_UNITS}

    return Values.model_validate(
        {
            **members(0),
            "request": plain(most[0, "request"]),
            "tiers": [{"above": border, **members(border)} for border in _borders(rates, floor) if border],
            "pieces": [
                {"unit": unit, "size": size, "quality": quality, "rate": plain(price)}
                for name, price in sorted((name, price) for (_, name), price in most.items() if "\n" in name)
                for unit, size, quality in (name.split("\n"),)
            ],
        }
    )


def _borders(*several: Values) -> list[int]:
    return sorted({0, *(tier.above for values in several for tier in values.tiers)})


def _everything(first: Values, second: Values) -> tuple[Priced, Priced]:
    borders = _borders(first, second)
    ours, theirs = (
        {
            **{(border, unit): price for border in borders for unit, price in at_length(values, border).items()},
            (0, "request"): Decimal(values.request),
            **{(0, _name(piece)): Decimal(piece.rate) for piece in values.pieces},
        }
        for values in (first, second)
    )
    return ours, theirs


def _name(piece: PieceValue) -> str:
    return f"{piece.unit}\n{piece.size}\n{piece.quality}"
