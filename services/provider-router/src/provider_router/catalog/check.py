"""Do rates still fit what the vendor takes? Drift of costs and rates below cost, and what to do about each. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final, Literal

from contracts.rpc.catalog import Values
from contracts.rpc.rate_changes import CheckClass
from contracts.usage import RateType
from provider_router.catalog.costs import Policy, drift, least_margin, lifted
from provider_router.catalog.matching import Cost, Costs
from provider_router.catalog.rates import OPERATOR
from provider_router.sql.rate_rows import RateRow

APPROVAL_FROM: Final = Decimal("0.1")
"""A rate or cost that moves by this share or more is changed by nobody but an administrator."""
BELOW_COST_PERCENT: Final = Decimal(-2)
"""A margin under this is a loss; rounding is not."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One rate, held against today's costs."""

    row: RateRow
    found: CheckClass
    drift: Decimal = Decimal(0)
    """Of its costs, and of the rate itself where a change is suggested; 0 … 1."""
    margin_percent: Decimal | None = None
    cost: Cost | None = None
    suggested: Values | None = None
    """New rates; None = nothing is to be done, or it is for people to decide what."""

    @property
    def reason(self) -> Literal["drift", "below_cost"]:
        """Why the change is suggested."""
        return "below_cost" if self.found == "below_cost" else "drift"

    @property
    def needs_approval(self) -> bool:
        """Whether the suggested change is too large to be made without being asked, or touches what people set."""
        return self.drift >= APPROVAL_FROM or self.row.source == OPERATOR


def checked(rows: Sequence[RateRow], costs: Costs, policy: Policy) -> list[Finding]:
    """All rates of chat calls that are in service, in their order."""
    return [
        _finding(row, costs.of(row.pattern), policy) for row in rows if row.type == RateType.CHAT and not row.deprecated
    ]


def _finding(row: RateRow, cost: Cost | None, policy: Policy) -> Finding:
    if cost is None:
        return Finding(row, "no_match")
    moved = Decimal(0) if row.costs is None else drift(row.costs, cost.values)
    margin = least_margin(row.values, cost.values, policy.credit_price)
    below = margin is not None and margin < BELOW_COST_PERCENT
    found: CheckClass = "below_cost" if below else "drift" if moved else "normal"
    suggested = _suggested(row, cost, policy, moved=bool(moved), below=below)
    if suggested is not None:
        moved = max(moved, drift(row.values, suggested))
    return Finding(row, found, moved, margin, cost, suggested)


def _suggested(row: RateRow, cost: Cost, policy: Policy, *, moved: bool, below: bool) -> Values | None:
    """Imported rates follow their costs at their margin; rates set by hand are raised where they lie below cost."""
    if row.source != OPERATOR and moved:
        return replace(policy, margin_percent=row.margin or Decimal(0)).rates(cost.values)
    if below:
        return lifted(row.values, replace(policy, margin_percent=row.margin or Decimal(0)).rates(cost.values))
    return None
