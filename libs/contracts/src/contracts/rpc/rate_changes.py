"""Questions to provider-router with which administrators and duties change, import, check and look up rates."""

from decimal import Decimal
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from contracts.money import parse
from contracts.rpc import envelope
from contracts.rpc.catalog import Rate, RateView, Values
from contracts.rpc.envelope import Message

RATES_SET: Final = "rates_set"
RATES_LIST: Final = "rates_list"
RATES_HISTORY: Final = "rates_history"
RATES_DEPRECATE: Final = "rates_deprecate"
RATES_SYNC: Final = "rates_sync"
RATES_MARGIN: Final = "rates_margin"
RATES_CHECK: Final = "rates_check"
RATES_PROPOSALS: Final = "rates_proposals"
RATES_DECIDE: Final = "rates_decide"
HISTORY_MAX: Final = 500
COSTS_MAX: Final = 2000
VERSION_MAX: Final = 2**62
PERCENT_LIMIT: Final = Decimal(1_000_000)
CREDIT_PRICE_MIN: Final = Decimal("1E-9")
CREDIT_PRICE_LIMIT: Final = Decimal(1_000_000)


def _percent(text: str) -> str:
    if parse(text) >= PERCENT_LIMIT:
        raise ValueError("a margin is below a million percent")
    return text


def _credit_price(text: str) -> str:
    if not CREDIT_PRICE_MIN <= parse(text) < CREDIT_PRICE_LIMIT:
        raise ValueError("a credit costs at least 0.000000001 and less than a million dollars")
    return text


Percent = Annotated[str, AfterValidator(_percent), Field(max_length=40)]
"""A percentage: a plain decimal string, 0 … 1,000,000."""
CreditPrice = Annotated[str, AfterValidator(_credit_price), Field(max_length=40)]
"""US dollars for one credit: a plain decimal string above 0."""
Pattern = Annotated[str, Field(min_length=1, max_length=200)]
"""`provider/model`; `*` matches any run of characters."""


class RatesSet(Values):
    """A new rate version; history is kept."""

    pattern: Pattern
    changed_by: str = ""
    effective_at: str | None = None
    """ISO 8601 with its offset, in the future; None = at once."""
    expected_version: int | None = Field(None, ge=0)
    """The version that is to be replaced, 0 = none yet; another one is a `conflict`. None = whatever is there."""


class RatesDeprecate(Message):
    """Take models out of lists and service, or put them back, at unchanged rates."""

    pattern: Pattern
    deprecated: bool = True
    changed_by: str = ""
    expected_version: int | None = Field(None, ge=0)


class RatesList(Message):
    """Rates in force; `pattern` filters by substring."""

    pattern: str | None = None
    deprecated: bool = True
    """Whether deprecated ones are listed, too."""


class RatesPage(Message):
    """Rates in force."""

    rates: tuple[RateView, ...]


ChangeType = Literal[
    "manual_update", "bulk_update", "bulk_create", "bulk_sync", "auto_update", "source_drift", "deprecation"
]
"""Why a version was added: by hand, margin of many, imported new, imported again, raised above cost, cost moved,
taken out or put back."""


class RateVersion(RateView):
    """One row of the history."""

    change_type: ChangeType
    changed_by: str
    changed_at: str
    previous: Values | None
    """The rates of the version before."""
    costs: Values | None
    """Unit costs in US dollars from which the rates were computed; None = set by hand."""
    cost_source: str
    cost_at: str | None
    margin_percent: str | None
    removed: bool = False
    """From this version on the pattern has no rates of its own; those that it had stand beside."""


class RatesHistory(Message):
    """Versions, newest first, of one pattern or of all."""

    pattern: str | None = Field(None, max_length=200, pattern=envelope.PRINTABLE)
    limit: int = Field(50, ge=1, le=HISTORY_MAX)
    before: int | None = Field(None, ge=1, le=VERSION_MAX)
    """Only versions older than this one."""


class RateVersions(Message):
    """A page of history."""

    versions: tuple[RateVersion, ...]


class GivenCost(Message):
    """What a vendor takes for a model, in US dollars per token."""

    pattern: Pattern
    input: Rate
    output: Rate
    cache_read: Rate | None = None
    cache_write: Rate | None = None


class RatesSync(Message):
    """Take unit costs from the price package over into the rates: `rate = cost * (1 + margin %) / credit price`."""

    providers: tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")], ...] = Field((), max_length=100)
    """Of which providers; none named = the configured ones, or those of the costs given."""
    costs: tuple[GivenCost, ...] | None = Field(None, max_length=COSTS_MAX)
    """To take over instead of the package's."""
    margin_percent: Percent | None = None
    """None = the configured one."""
    credit_price: CreditPrice | None = None
    """None = the configured one."""
    apply_rates: bool = True
    """False: note costs, leave rates as they are."""
    deprecate_unmatched: bool = False
    """Deprecate imported rates of these providers that the package does not know any more."""
    dry_run: bool = False
    changed_by: str = ""


class RatesMargin(Message):
    """Compute imported rates again with another margin; rates set by hand stay as they are."""

    margin_percent: Percent
    credit_price: CreditPrice | None = None
    dry_run: bool = False
    changed_by: str = ""


class RateChange(Message):
    """One rate that a bulk change moves, or would move."""

    pattern: str
    change: Literal["created", "updated", "deprecated"]
    old: Values | None
    new: Values
    cost_source: str = ""


class RatesChanged(Message):
    """What a bulk change did, or would do."""

    dry_run: bool
    created: int
    updated: int
    unchanged: int
    deprecated: int
    unmatched: tuple[str, ...]
    """Patterns for which the package has no price."""
    errors: tuple[str, ...] = ()
    changes: tuple[RateChange, ...]


class RatesCheck(Message):
    """Compare rates that have unit costs with what the price package says now."""

    apply: bool = False
    """Change rates whose cost moved by less than the limit, and propose the others; False: only look."""
    changed_by: str = ""


CheckClass = Literal["below_cost", "drift", "no_match", "normal"]


class CheckedRate(Message):
    """One rate as the check found it."""

    pattern: str
    found: CheckClass
    drift_percent: str
    """How far the costs moved: greatest difference ÷ the greater, over all units."""
    margin_percent: str | None
    """Least margin of all units over today's costs; None = nothing costs anything."""
    action: Literal["none", "applied", "proposed", "waiting"]
    """`waiting`: the same change has been proposed before and is not decided."""


class CheckReport(Message):
    """All that is not normal, and how many there were of each."""

    check_id: str
    source: str
    counts: dict[str, int]
    rates: tuple[CheckedRate, ...]


class RatesProposals(Message):
    """Changes that wait for approval."""


class Proposal(Message):
    """A change that the check found and may not make by itself."""

    proposal_id: str
    pattern: str
    version: int
    """The version it replaces; when that is gone, the proposal is void."""
    reason: Literal["drift", "below_cost"]
    drift_percent: str
    old: Values
    new: Values
    cost_source: str
    proposed_at: str


class Proposals(Message):
    """Open ones, oldest first."""

    proposals: tuple[Proposal, ...]


class RatesDecide(Message):
    """Approve or refuse a proposal, once."""

    proposal_id: str = Field(max_length=36, pattern=envelope.PRINTABLE)
    approve: bool
    changed_by: str = ""


class Decided(Message):
    """What became of a proposal."""

    pattern: str
    decision: Literal["approved", "refused"]
    rate: RateView | None
    """The new version, when it was approved."""
