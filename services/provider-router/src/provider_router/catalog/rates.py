"""Rates in force: what operators set, the built-in provider's, and the price package's, in this order."""

import uuid
from collections.abc import Iterable
from decimal import Decimal
from typing import Final

from contracts.rpc.catalog import RateView
from provider_router.catalog.package import PackagePrices, PackageRate
from provider_router.catalog.patterns import matches, specificity
from provider_router.sql.store import RateRow

_RATE_IDS: Final = uuid.UUID("6f1d3a52-6d5b-5c5e-9a0e-0d8a4c2f7b11")
"""Namespace of the ids of rates that stand in no row: the same values always get the same id."""
_BUILT_IN_SINCE: Final = "1970-01-01T00:00:00.000Z"


def plain(amount: Decimal) -> str:
    """Every digit of a rate and no exponent."""
    return format(amount, "f")


def from_operator(row: RateRow) -> RateView:
    """A row as others see it."""
    return RateView(
        rate_id=row.rate_id,
        pattern=row.pattern,
        input=plain(row.input),
        output=plain(row.output),
        cache_read=_optional(row.cache_read),
        cache_write=_optional(row.cache_write),
        reasoning=_optional(row.reasoning),
        request=plain(row.request),
        source=row.source,
        effective_at=row.effective_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    )


def from_package(rate: PackageRate, version: str) -> RateView:
    """A price of the package, with an id that follows from pattern, version and values."""
    source = f"genai-prices {version}"
    values = (rate.pattern, source, rate.input, rate.output, rate.cache_read or "", rate.cache_write or "")
    return RateView(
        rate_id=str(uuid.uuid5(_RATE_IDS, "\n".join(values))),
        pattern=rate.pattern,
        input=rate.input,
        output=rate.output,
        cache_read=rate.cache_read,
        cache_write=rate.cache_write,
        source=source,
        effective_at=_BUILT_IN_SINCE,
    )


DEMO_RATE: Final = RateView(
    rate_id=str(uuid.uuid5(_RATE_IDS, "demo\n0.000001\n0.000002")),
    pattern="demo/*",
    input="0.000001",
    output="0.000002",
    source="demo",
    effective_at=_BUILT_IN_SINCE,
)
"""Above zero, so that every part of charging can be seen without a provider's key."""


def in_force(operator: Iterable[RateRow], package: PackagePrices, *, demo: bool) -> tuple[RateView, ...]:
    """All rates in the order in which they count: the first whose pattern matches a model is its rate.

    An operator's pattern goes before any other, however broad: whoever sets `openai/*` means all of them.
    """
    ours = sorted((from_operator(row) for row in operator), key=_order)
    known = sorted((from_package(rate, package.version) for rate in package.rates), key=_order)
    return (*ours, *((DEMO_RATE,) if demo else ()), *known)


def rate_for(rates: Iterable[RateView], name: str) -> RateView | None:
    """The rate of a `provider/model`; None = it has no price."""
    return next((rate for rate in rates if matches(rate.pattern, name)), None)


def _order(rate: RateView) -> tuple[int, int, str]:
    return specificity(rate.pattern)


def _optional(amount: Decimal | None) -> str | None:
    return None if amount is None else plain(amount)
