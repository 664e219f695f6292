"""A grant in another unit: what it is worth there, and how it is asked for. Pure."""

from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Any, Final

from contracts.money import LIMIT, PLACES
from metering.payment_kit.amounts import to_decimal_text
from metering.payment_kit.grant_list import OPEN, ListedGrant
from metering.times import iso_ms

_EXACT: Final = Context(prec=120, rounding=ROUND_HALF_UP)
_PREFIX: Final = "[Migrated]"
_NAME_CHARS: Final = 255
_FACTOR_PLACES: Final = Decimal("1E-10")
_DIGITS_MAX: Final = 60


@dataclass(frozen=True, slots=True)
class Worth:
    """What is left of a grant: old credits exactly, new ones rounded half up to ten places."""

    before: Decimal
    after: Decimal
    problem: str = ""
    """Why it cannot be moved; empty = it can."""


def is_open(grant: ListedGrant, now: int) -> bool:
    """Whether a grant can still be spent, now or later, and has not been moved."""
    return grant.status in OPEN and not 0 < grant.expires_at <= now and not _is_empty(grant.remaining)


def worth(remaining: Any, places: int, price: Decimal) -> Worth:
    """What an amount comes to in the new unit: `remaining ÷ 10^places ÷ factor`, the factor being 1 ÷ price.

    Args:
        remaining: an integer in the smallest unit, as a string or a number.
        places: of the old currency.
        price: new credits for one old credit, above 0.
    """
    units = _units(remaining)
    if units is None:
        return Worth(Decimal(0), Decimal(0), "unreadable")
    before = Decimal(units).scaleb(-places, _EXACT)
    after = _EXACT.multiply(before, price).quantize(PLACES, context=_EXACT)
    if after >= LIMIT:
        return Worth(before, LIMIT - 1, "too_much")
    return Worth(before, after, "" if after else "too_little")


def factor(price: Decimal) -> str:
    """Old credits for one new credit, as the grant's metadata tells it: `400000`."""
    exact = _EXACT.divide(Decimal(1), price)
    return to_decimal_text(exact if exact == exact.to_integral_value() else exact.quantize(_FACTOR_PLACES))


def new_grant(grant: ListedGrant, value: Worth, currency_id: str, price: Decimal, now: datetime) -> dict[str, Any]:
    """The body that makes the new grant. Its metadata is the old one's and says where it comes from.

    What the original hub writes for these four names is not recorded but for the names; amounts are in credits.
    """
    wanted: dict[str, Any] = {
        "customer_id": grant.customer_id,
        "currency_id": currency_id,
        "amount": to_decimal_text(value.after),
        "name": f"{_PREFIX} {grant.name}".strip()[:_NAME_CHARS],
        "expires_at": grant.expires_at,
        "category": "paid" if grant.category == "paid" else "promotional",
        "metadata": {
            **grant.metadata,
            "migratedFromGrantId": grant.id,
            "migratedAt": iso_ms(now),
            "originalAmount": to_decimal_text(value.before),
            "conversionFactor": factor(price),
        },
    }
    if isinstance(grant.priority, int):
        wanted["priority"] = grant.priority
    if grant.effective_at > now.timestamp():
        wanted["effective_at"] = grant.effective_at
    return wanted


def ended_grant(grant: ListedGrant, new_grant_id: str) -> dict[str, Any]:
    """The body that ends the old grant. Whether metadata is replaced or merged is not recorded: it is sent whole."""
    return {"expired": True, "metadata": {**grant.metadata, "migratedTo": new_grant_id}}


def _is_empty(remaining: Any) -> bool:
    units = _units(remaining)
    return units is not None and units == 0


def _units(remaining: Any) -> int | None:
    """Whole smallest units; None when it is no such amount."""
    if isinstance(remaining, bool):
        return None
    if isinstance(remaining, int):
        return remaining if remaining >= 0 else None
    if isinstance(remaining, str) and remaining.isascii() and remaining.isdecimal() and len(remaining) <= _DIGITS_MAX:
        return int(remaining)
    return None
