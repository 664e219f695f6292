"""Rates as administrators give them: checked, or refused with the field that is wrong."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from contracts.errors import ErrorCode, HubError
from contracts.rpc.catalog import TierValues, Values
from contracts.rpc.rate_changes import GivenCost, RatesSet
from provider_router.catalog.costs import values_of
from provider_router.catalog.package import PackagePrices, PackageRate
from provider_router.catalog.patterns import WILDCARDS_MAX, is_pattern
from provider_router.sql.rate_rows import NewRate

_PLAIN: Final = re.compile(r"[0-9]{1,18}(\.[0-9]{1,20})?")
_UNITS: Final = ("input", "output", "cache_read", "cache_write", "cache_write_1h", "reasoning")
GIVEN: Final = "given"
"""Source of unit costs that somebody named."""
_CHANGED_BY_MAX: Final = 200
_AHEAD_MAX: Final = timedelta(days=5 * 366)


def new_rate(question: RatesSet, now: datetime) -> NewRate:
    """A rate to store, checked.

    Raises:
        HubError: `invalid_request`, with the field.
    """
    checked_pattern(question.pattern)
    values = checked_values(values_of(question))
    return NewRate(
        pattern=question.pattern,
        values=values,
        changed_by=by(question.changed_by),
        effective_at=None if question.effective_at is None else ahead(question.effective_at, now),
        expected_version=question.expected_version,
    )


def given_prices(costs: Sequence[GivenCost]) -> PackagePrices:
    """Unit costs that somebody names, in the place of the package's.

    Raises:
        HubError: `invalid_request`, with the row's index.
    """
    rates: dict[str, PackageRate] = {}
    for index, cost in enumerate(costs):
        try:
            checked_pattern(cost.pattern)
            checked_values(Values(**cost.model_dump(exclude={"pattern"})))
        except HubError as error:
            raise _wrong(f"Row {index}: {error.message}", f"costs.{index}.{error.param}") from error
        if cost.pattern in rates:
            raise _wrong(f"Row {index}: {cost.pattern} stands there twice.", f"costs.{index}.pattern")
        rates[cost.pattern] = PackageRate(**cost.model_dump())
    models: dict[str, tuple[str, ...]] = {pattern.partition("/")[0]: () for pattern in rates}
    return PackagePrices(name=GIVEN, rates=tuple(rates.values()), models=models)


def checked_pattern(pattern: str) -> str:
    """The same pattern.

    Raises:
        HubError: `invalid_request`.
    """
    if not is_pattern(pattern):
        raise _wrong(
            f"A pattern is provider/model, where * (at most {WILDCARDS_MAX}) matches any run of characters; "
            "the provider's name is in lower case.",
            "pattern",
        )
    return pattern


def checked_values(values: Values) -> Values:
    """The same prices.

    Raises:
        HubError: `invalid_request`: no plain decimals, tiers out of order or cheaper than what comes before them, a
            unit priced twice.
    """
    _check_prices(values, "")
    _amount(values.request, "request")
    before: Values | TierValues = values
    for number, tier in enumerate(values.tiers):
        _check_prices(tier, f"tiers.{number}.")
        if isinstance(before, TierValues) and tier.above <= before.above:
            raise _wrong("Tiers come in the order of their borders, each border once.", f"tiers.{number}.above")
        for unit in _UNITS:
            if _effective(tier, unit) < _effective(before, unit):
                raise _wrong(
                    "A longer prompt costs no less per token: a tier's rates are at least those before it.",
                    f"tiers.{number}.{unit}",
                )
        before = tier
    named = set()
    for number, piece in enumerate(values.pieces):
        _amount(piece.rate, f"pieces.{number}.rate")
        name = (piece.unit, piece.size, piece.quality)
        if name in named:
            raise _wrong("A unit has one rate for each size and quality.", f"pieces.{number}.unit")
        named.add(name)
    return values


def by(name: str) -> str:
    """Who changes something, bounded."""
    return name[:_CHANGED_BY_MAX].replace("\x00", "")


def _check_prices(part: Values | TierValues, where: str) -> None:
    for unit in _UNITS:
        price = getattr(part, unit)
        if price is not None:
            _amount(price, where + unit)


def _effective(part: Values | TierValues, unit: str) -> Decimal:
    """A unit's price with its fall-back."""
    price = getattr(part, unit)
    if price is not None:
        return Decimal(price)
    match unit:
        case "reasoning":
            return Decimal(part.output)
        case "cache_write_1h" if part.cache_write is not None:
            return Decimal(part.cache_write)
        case _:
            return Decimal(part.input)


def ahead(text: str, now: datetime) -> datetime:
    """A time from which something counts.

    Raises:
        HubError: `invalid_request`: no time, not in the future, or years away.
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise _wrong("A time is ISO 8601 with its offset from UTC, such as 2027-01-01T00:00:00Z.", "effective_at")
    if at <= now:
        raise _wrong("A version begins at once or in the future: what calls have cost is not changed.", "effective_at")
    if at > now + _AHEAD_MAX:
        raise _wrong("A version begins within the next five years.", "effective_at")
    return at.astimezone(UTC)


def _amount(text: str, param: str) -> None:
    if _PLAIN.fullmatch(text) is None:
        raise _wrong(
            "A rate is credits per unit as a plain decimal, such as 0.0000025, with at most 20 decimals.", param
        )


def _wrong(message: str, param: str) -> HubError:
    return HubError(ErrorCode.INVALID_REQUEST, message, param=param)
