"""Rates in force: what operators set, the built-in provider's, and the price package's, in this order."""

import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from contracts.rpc.catalog import RateView
from contracts.rpc.rate_changes import RateVersion
from contracts.rpc.rate_rows import FoundRate
from contracts.usage import RateType
from provider_router.catalog.costs import Policy, plain, values_of
from provider_router.catalog.package import PackagePrices, PackageRate
from provider_router.catalog.patterns import matches, specificity
from provider_router.sql.rate_rows import RateRow

OPERATOR: Final = "operator"
"""Source of rates that were set by hand."""
AT_COST: Final = Policy(Decimal(0), Decimal(1))
"""A credit is a dollar, and calls cost what the vendor takes."""
_RATE_IDS: Final = uuid.UUID("6f1d3a52-6d5b-5c5e-9a0e-0d8a4c2f7b11")
"""Namespace of the ids of rates that stand in no row: the same values always get the same id."""
_BUILT_IN_SINCE: Final = "1970-01-01T00:00:00.000Z"


def iso(at: datetime) -> str:
    """A time as messages carry it."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def from_row(row: RateRow) -> RateView:
    """A row as others see it."""
    return RateView(
        **dict(row.values),
        rate_id=row.rate_id,
        pattern=row.pattern,
        source=row.source,
        effective_at=iso(row.effective_at),
        version=row.version,
        deprecated=row.deprecated,
        type=row.type,
        about=row.about,
    )


def found_from_row(row: RateRow) -> FoundRate:
    """A row with what it was computed from."""
    return FoundRate(
        **dict(from_row(row)),
        costs=row.costs,
        cost_source=row.cost_source,
        margin_percent=None if row.margin is None else plain(row.margin),
        changed_at=iso(row.changed_at or row.effective_at),
    )


def version_from_row(row: RateRow, previous: RateRow | None) -> RateVersion:
    """A row of the history, with all that is known of it."""
    return RateVersion(
        **dict(from_row(row)),
        change_type=row.change_type,
        changed_by=row.changed_by,
        changed_at=iso(row.changed_at or row.effective_at),
        previous=None if previous is None else previous.values,
        costs=row.costs,
        cost_source=row.cost_source,
        cost_at=None if row.cost_at is None else iso(row.cost_at),
        margin_percent=None if row.margin is None else plain(row.margin),
        removed=row.removed,
    )


def from_package(rate: PackageRate, version: str, policy: Policy = AT_COST) -> RateView:
    """A price of the package, with an id that follows from pattern, version and values."""
    source = f"genai-prices {version}"
    values = policy.rates(values_of(rate))
    digest = f"{rate.pattern}\n{source}\n{values.model_dump_json()}"
    return RateView(
        **dict(values),
        rate_id=str(uuid.uuid5(_RATE_IDS, digest)),
        pattern=rate.pattern,
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


def in_force(
    stored: Iterable[RateRow], package: PackagePrices, *, demo: bool, policy: Policy = AT_COST
) -> tuple[RateView, ...]:
    """All rates of chat calls in the order in which they count: the first whose pattern matches a model is its rate.

    A pattern set by hand goes before any other, however broad: whoever sets `openai/*` means all of them. Then come
    rates imported from the package, and last its prices as they are today.
    """
    return in_order(stored, packaged(package, policy), demo=demo)


def packaged(package: PackagePrices, policy: Policy) -> tuple[RateView, ...]:
    """The package's prices as rates, the most specific first."""
    return tuple(sorted((from_package(rate, package.version, policy) for rate in package.rates), key=_order))


def in_order(stored: Iterable[RateRow], known: Iterable[RateView], *, demo: bool) -> tuple[RateView, ...]:
    """As `in_force`, with the package's part made before."""
    chat = (from_row(row) for row in stored if row.type == RateType.CHAT)
    ours = sorted(chat, key=lambda rate: (rate.source != OPERATOR, *_order(rate)))
    return (*ours, *((DEMO_RATE,) if demo else ()), *known)


def rate_for(rates: Iterable[RateView], name: str) -> RateView | None:
    """The rate of a `provider/model`; None = it has no price."""
    return next((rate for rate in rates if matches(rate.pattern, name)), None)


def _order(rate: RateView) -> tuple[int, int, str]:
    return specificity(rate.pattern)
