"""What a bulk change does to the rates: unit costs taken over from the package, or another margin. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Context, Decimal
from functools import partial
from typing import Final

from pydantic import ValidationError

from contracts.errors import ErrorCode, HubError
from contracts.rpc.rate_changes import RateChange, RatesChanged
from contracts.usage import RateType
from provider_router.catalog.costs import Policy, mapped
from provider_router.catalog.matching import Cost, Costs
from provider_router.catalog.package import PackagePrices
from provider_router.catalog.rates import OPERATOR
from provider_router.sql.rate_rows import NewRate, RateRow, same

_WIDE: Final = Context(prec=120)


@dataclass(slots=True)
class Plan:
    """The versions that a bulk change adds, and what it says about them."""

    new: list[NewRate] = field(default_factory=list)
    changes: list[RateChange] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    unchanged: int = 0

    def add(self, rate: NewRate, old: RateRow | None) -> None:
        """One more version."""
        kind = "created" if old is None else "deprecated" if rate.deprecated and not old.deprecated else "updated"
        self.new.append(rate)
        self.changes.append(
            RateChange(
                pattern=rate.pattern,
                change=kind,
                old=None if old is None else old.values,
                new=rate.values,
                cost_source=rate.cost_source,
            )
        )

    def report(self, *, dry_run: bool) -> RatesChanged:
        """What was done, or would be."""
        kinds = [change.change for change in self.changes]
        return RatesChanged(
            dry_run=dry_run,
            created=kinds.count("created"),
            updated=kinds.count("updated"),
            unchanged=self.unchanged,
            deprecated=kinds.count("deprecated"),
            unmatched=tuple(self.unmatched),
            changes=tuple(self.changes),
        )


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """How costs are taken over."""

    providers: frozenset[str]
    policy: Policy
    given_margin: bool
    """Whether the margin was asked for; else rates keep the one that they have."""
    apply_rates: bool
    deprecate_unmatched: bool
    changed_by: str
    now: datetime
    given_costs: bool = False
    """Whether the costs are somebody's own, and not the package's."""


def synced(rows: Sequence[RateRow], package: PackagePrices, options: SyncOptions) -> Plan:
    """Take unit costs over into rates.

    Rates set by hand keep their prices and only learn their costs, unless those were set with them. A rate that the
    package knows again is deprecated no more, unless it was taken out by hand. Costs are those of tokens: only rates of
    chat calls are looked at.
    """
    plan = Plan()
    costs = Costs(package)
    chat = [row for row in rows if row.type == RateType.CHAT]
    known = {row.pattern for row in chat}
    for row in chat:
        if row.pattern.partition("/")[0] not in options.providers:
            continue
        cost = costs.of(row.pattern)
        if cost is not None:
            _update(plan, row, cost, options)
            continue
        plan.unmatched.append(row.pattern)
        if options.deprecate_unmatched and row.source != OPERATOR and not row.deprecated:
            plan.add(replace(same(row, options.changed_by, "bulk_sync"), deprecated=True), row)
    if options.apply_rates:
        for pattern in _missing(package, known, options.providers):
            cost = costs.of(pattern)
            if cost is not None:
                plan.add(_created(pattern, cost, options), None)
    return plan


def with_margin(rows: Sequence[RateRow], policy: Policy, changed_by: str) -> Plan:
    """Compute imported rates again with this margin, and those that were set together with their unit costs.

    Others that were set by hand stay as they are.
    """
    plan = Plan()
    for row in rows:
        if row.costs is None or (row.source == OPERATOR and row.cost_source != OPERATOR):
            continue
        values = policy.rates(row.costs)
        if values == row.values and policy.margin_percent == row.margin:
            plan.unchanged += 1
            continue
        changed = replace(same(row, changed_by, "bulk_update"), values=values, margin=policy.margin_percent)
        plan.add(changed, row)
    return plan


def in_another_unit(rows: Sequence[RateRow], price: Decimal, changed_by: str) -> Plan:
    """Every rate times the price, exactly; costs, margins and what is deprecated stay.

    Raises:
        HubError: `invalid_request`, a rate would have more digits than a rate can have.
    """
    plan = Plan()
    for row in rows:
        try:
            values = mapped(row.values, partial(_times, price))
        except ValidationError as error:
            raise HubError(
                ErrorCode.INVALID_REQUEST,
                f"The rates of {row.pattern} would have too many digits at this price; set them by hand first.",
                param="price",
            ) from error
        plan.add(replace(same(row, changed_by, "bulk_update"), values=values), row)
    return plan


def _times(price: Decimal, rate: Decimal) -> Decimal:
    return _WIDE.multiply(rate, price).normalize(_WIDE)


def _missing(package: PackagePrices, known: set[str], providers: frozenset[str]) -> Iterator[str]:
    for rate in package.rates:
        if rate.pattern not in known and rate.pattern.partition("/")[0] in providers:
            yield rate.pattern


def _created(pattern: str, cost: Cost, options: SyncOptions) -> NewRate:
    return NewRate(
        pattern=pattern,
        values=options.policy.rates(cost.values),
        changed_by=options.changed_by,
        change_type="bulk_create",
        source=cost.source,
        costs=cost.values,
        cost_source=cost.source,
        cost_at=options.now,
        margin=options.policy.margin_percent,
    )


def _update(plan: Plan, row: RateRow, cost: Cost, options: SyncOptions) -> None:
    if row.cost_source == OPERATOR and not options.given_costs:
        plan.unchanged += 1  # whoever set its costs knows them better than the package
        return
    imported = row.source != OPERATOR
    policy = options.policy
    if row.margin is not None and not options.given_margin:
        policy = replace(policy, margin_percent=row.margin)
    applied = imported and options.apply_rates
    values = policy.rates(cost.values) if applied else row.values
    revived = imported and row.deprecated
    if values == row.values and cost.values == row.costs and not revived:
        plan.unchanged += 1
        return
    updated = replace(
        same(row, options.changed_by, "bulk_sync"),
        values=values,
        source=cost.source if imported else row.source,
        deprecated=row.deprecated and not revived,
        costs=cost.values,
        cost_source=cost.source,
        cost_at=options.now,
        margin=policy.margin_percent if applied else row.margin,
    )
    plan.add(updated, row)
