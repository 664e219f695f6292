"""Credits: Decimal inside, plain decimal strings on the wire, ten places, half up. Floats never touch them."""

from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema

PLACES: Final = Decimal("1E-10")
LIMIT: Final = Decimal("1E18")
ZERO: Final = Decimal(0)
_CONTEXT: Final = Context(prec=60, rounding=ROUND_HALF_UP)


class CreditsError(ValueError):
    """A text or number that is no amount of credits: not finite, negative, too large or not decimal."""


def rounded(amount: Decimal) -> Decimal:
    """An amount at ten decimals, half up: the form in which credits are stored and charged."""
    return amount.quantize(PLACES, context=_CONTEXT)


def to_text(amount: Decimal) -> str:
    """Credits as they stand on the wire: `0.0000000001`, never `1E-10`."""
    return format(rounded(amount), "f")


def parse(text: str) -> Decimal:
    """Read credits from a plain decimal string.

    Raises:
        CreditsError: NaN, infinite, negative, ≥ 1e18, or no decimal number.
    """
    try:
        amount = Decimal(text)
    except InvalidOperation as error:
        raise CreditsError(f"{text[:40]!r} is not a decimal number") from error
    return checked(amount)


def checked(amount: Decimal) -> Decimal:
    """The same amount, if it lies in the domain 0 ≤ credits < 1e18.

    Raises:
        CreditsError: it does not.
    """
    if not amount.is_finite() or (amount.is_signed() and amount != ZERO) or amount >= LIMIT:
        raise CreditsError("credits are finite, not negative and below 1e18")
    return amount.copy_abs()  # a zero may have had a sign


def _from_wire(value: object) -> Decimal:
    if isinstance(value, Decimal):
        return value
    if isinstance(value, str):
        return parse(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value)
    raise CreditsError("credits are written as a decimal string")


def checked_change(amount: Decimal) -> Decimal:
    """The same amount, if it lies in the domain -1e18 < credits < 1e18.

    Raises:
        CreditsError: it does not.
    """
    if not amount.is_finite() or abs(amount) >= LIMIT:
        raise CreditsError("a change of credits is finite and lies between -1e18 and 1e18")
    return amount or ZERO


def _change_from_wire(value: object) -> Decimal:
    if isinstance(value, str):
        try:
            return Decimal(value)
        except InvalidOperation as error:
            raise CreditsError(f"{value[:40]!r} is not a decimal number") from error
    return _from_wire(value)


Credits = Annotated[
    Decimal,
    BeforeValidator(_from_wire),
    AfterValidator(checked),
    PlainSerializer(to_text, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^\d{1,18}(\.\d{1,10})?$", "examples": ["0.0012300000"]}),
]
"""An amount of credits in a pydantic model: Decimal in Python, a plain decimal string in JSON."""

CreditsChange = Annotated[
    Decimal,
    BeforeValidator(_change_from_wire),
    AfterValidator(checked_change),
    PlainSerializer(to_text, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^-?\d{1,18}(\.\d{1,10})?$", "examples": ["-0.0012300000"]}),
]
"""A change of an amount of credits: the same, with a sign."""
