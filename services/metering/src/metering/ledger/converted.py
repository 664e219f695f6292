"""Amounts in another unit. Pure."""

from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Context, Decimal, localcontext
from typing import Final

from contracts.money import PLACES, ZERO

_EXACT: Final = Context(prec=120, rounding=ROUND_HALF_UP)


def converted(rests: Sequence[Decimal], price: Decimal) -> list[Decimal]:
    """What is left of an account's grants, in the new unit.

    Running totals are rounded, not the parts: so the whole is `price` times the whole before, rounded once, however
    many parts there are, and every part lies within 1e-10 of what it would be exactly.

    Args:
        rests: credits with ten places, not negative.
        price: new credits for one old credit, above 0.

    Returns:
        Same order, ten places, not negative.
    """
    with localcontext(_EXACT):
        parts: list[Decimal] = []
        total = told = ZERO
        for rest in rests:
            total += rest
            upto = (total * price).quantize(PLACES)
            parts.append(upto - told)
            told = upto
        return parts


def rounding(before: Decimal, after: Decimal, price: Decimal) -> Decimal:
    """What rounding gave (above 0) or took, with all its places."""
    with localcontext(_EXACT):
        return after - before * price


def exact_text(amount: Decimal) -> str:
    """All places, no exponent, no needless zeros."""
    text = format(amount, "f")
    return (text.rstrip("0").rstrip(".") if "." in text else text) or "0"
