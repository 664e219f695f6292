"""Amounts as Payment Kit writes them: decimal strings out, integer strings in the smallest unit in."""

import re
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any, Final

from contracts.money import LIMIT, PLACES

PLACES_MIN: Final = 10
"""A currency with fewer places cannot hold our credits."""
PLACES_MAX: Final = 36
_WHOLE: Final = re.compile(r"-?[0-9]{1,60}")
_DECIMAL: Final = re.compile(r"[0-9]{1,40}(\.[0-9]{1,40})?")
_CONTEXT: Final = Context(prec=120)


class AmountError(ValueError):
    """A text or number that is no amount."""


def to_decimal_text(value: Decimal) -> str:
    """Credits as a meter event carries them: `0.0042`, `10`; never an exponent, no needless zero."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def same_value(ours: Decimal, theirs: Any) -> bool:
    """Whether a value that came back is the one we sent.

    Raises:
        AmountError: it is no amount at all.
    """
    return value_of(theirs) == ours


def value_of(theirs: Any) -> Decimal:
    """A value that came back, exactly.

    Raises:
        AmountError: it is no amount at all.
    """
    if isinstance(theirs, int) and not isinstance(theirs, bool):
        theirs = str(theirs)
    if not isinstance(theirs, str) or not _DECIMAL.fullmatch(theirs):
        raise AmountError("a value that is no plain decimal")
    return Decimal(theirs)


def from_smallest(text: Any, places: int, *, owed: bool) -> Decimal:
    """Credits of an amount in the smallest unit; absent is 0.

    Args:
        text: an integer string, or an integer.
        places: of the currency.
        owed: a debt is rounded up, all else down: never in favour of more spending.

    Raises:
        AmountError: no integer, negative, or from 1e18 credits on.
    """
    if text is None:
        return Decimal(0)
    if isinstance(text, int) and not isinstance(text, bool):
        text = str(text)
    if not isinstance(text, str) or not _WHOLE.fullmatch(text):
        raise AmountError("an amount in the smallest unit is an integer string")
    exact = Decimal(text).scaleb(-places, _CONTEXT)
    if exact < 0 or exact >= LIMIT:
        raise AmountError("an amount lies between 0 and 1e18")
    return exact.quantize(PLACES, ROUND_CEILING if owed else ROUND_FLOOR, _CONTEXT)


def to_smallest(credits_: Decimal, places: int) -> str:
    """Credits as an integer string of the smallest unit."""
    return format(credits_.scaleb(places, _CONTEXT).quantize(Decimal(1), ROUND_FLOOR, _CONTEXT), "f")
