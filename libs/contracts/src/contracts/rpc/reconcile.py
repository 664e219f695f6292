"""Questions to metering about its own books: do they agree, what repairs them, are the closed days untouched.

Asked by people and by duties; `contracts.rpc.metering.SERVICE` answers. Amounts that may be negative are plain decimal
strings, ten places.
"""

from typing import Final, Literal

from pydantic import Field

from contracts.money import Credits
from contracts.rpc.envelope import Message

RECONCILE_START: Final = "reconcile_start"
RECONCILE_GET: Final = "reconcile_get"
RECONCILE_REPAIR: Final = "reconcile_repair"
RECONCILE_ACCEPT: Final = "reconcile_accept"
RECOMPUTE: Final = "recompute"
PROVIDER_SUMS: Final = "provider_sums"
CLOSE_DAYS: Final = "close_days"
MAKE_PARTITIONS: Final = "make_partitions"
EXPIRE_CLAIMS: Final = "expire_claims"
PARKED_COUNT: Final = "parked_count"

Scope = Literal["all", "recent", "closings"]
"""`all` looks at every row, `recent` at what came after the last closed day and, on the bus, after the last run;
`closings` computes the digests of all closed days again."""


class ReconcileStart(Message):
    """Compare the books in the background; one run at a time in the whole hub."""

    scope: Scope = "all"
    started_by: str = Field("", max_length=200)


class ReconcileStarted(Message):
    """`already`: this run was under way when the question came; it may be one of another scope."""

    run_id: str
    already: bool


class ReconcileGet(Message):
    """A run with one page of its differences; the last run without `run_id`."""

    run_id: str | None = None
    after: int = Field(0, ge=0)
    """Differences behind this number."""
    limit: int = Field(200, gt=0, le=1000)


class ComparisonView(Message):
    """Two sides that must be equal, counted and summed."""

    check: str
    left: str
    left_count: int
    left_sum: str
    right: str
    right_count: int
    right_sum: str
    differences: int
    not_compared: str = ""
    """Why the sides, or the rest of them, could not be compared: then no difference means nothing."""
    note: str = ""
    """How much was compared, where that is not all."""


class DifferenceView(Message):
    """One difference, and what repairs it."""

    number: int
    id: str
    """The same for the same difference in every run."""
    check: str
    account: str
    call_id: str | None
    expected: str
    found: str
    detail: str
    repair: str
    """A command; it adds rows and edits none."""


class ReconcileReport(Message):
    """State of a run; `lost`: its process died, start another."""

    run_id: str
    scope: Scope
    state: Literal["running", "done", "failed", "lost"]
    progress: str
    error: str
    started_at: str
    finished_at: str | None
    comparisons: tuple[ComparisonView, ...]
    differences: int
    """All of them, accepted ones apart."""
    accepted: int
    page: tuple[DifferenceView, ...]
    next_after: int | None
    closed_day: str | None = None
    """The last closed day."""
    closed_chain: str | None = None
    """Its chain, 64 hex digits: kept elsewhere, it proves that no closed day was changed since."""


class ReconcileRepair(Message):
    """Repair one difference by added rows; the amounts are found again, under the account's lock."""

    difference_id: str = Field(max_length=64)
    reason: str = Field("", max_length=500)
    repaired_by: str = Field("", max_length=200)


class ReconcileRepaired(Message):
    """What was added, in words."""

    done: str


class ReconcileAccept(Message):
    """Leave one difference as it is, with a reason; it counts no more."""

    difference_id: str = Field(max_length=64)
    reason: str = Field(min_length=1, max_length=500)
    accepted_by: str = Field("", max_length=200)


class Recompute(Message):
    """Price calls again that were settled in a period: usage by frozen rates, at most the hold. One page of calls."""

    since: str
    """ISO 8601 with offset or `Z`; included."""
    until: str
    """Excluded."""
    account: str | None = None
    apply: bool = False
    """Write an adjustment for each difference."""
    applied_by: str = Field("", max_length=200)
    after: str | None = None
    """`next_after` of the page before."""
    limit: int = Field(2000, gt=0, le=5000)


class RecomputedCall(Message):
    """A call whose charge is not what its usage and rates come to."""

    call_id: str
    account: str
    charged: str
    priced: str
    applied: bool
    note: str = ""


class RecomputePage(Message):
    """`next_after` is None on the last page."""

    calls: int
    charged: str
    priced: str
    differences: tuple[RecomputedCall, ...]
    next_after: str | None


class ProviderSums(Message):
    """What one provider served on one UTC day, by model."""

    provider: str = Field(max_length=200)
    day: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")


class ProviderSum(Message):
    """Sums of one model; `input_tokens` has cached ones in it and `output_tokens` reasoning, as bills have."""

    model: str
    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    credits: Credits
    written_off: Credits


class ProviderSumsReply(Message):
    """In the order of the models' names."""

    sums: tuple[ProviderSum, ...]


class CloseDays(Message):
    """Close the oldest days that are over and not closed yet."""

    most: int = Field(31, gt=0, le=400)


class ClosedDay(Message):
    """A closed day: sums, and the digest chained to the day before."""

    day: str
    accounts: int
    calls: int
    amount: Credits
    chain: str
    """64 hex digits. Kept elsewhere, it proves that no closed day was changed since."""


class CloseDaysReply(Message):
    """`more`: days are left, ask again."""

    closed: tuple[ClosedDay, ...]
    more: bool


class PartitionsMade(Message):
    """Names of the partitions that were missing."""

    partitions: tuple[str, ...]


class ClaimsExpired(Message):
    """How many expired Idempotency-Keys were dropped, and how many notices of grants that were told long ago."""

    claims: int
    notices: int = 0


class ParkedCount(Message):
    """Facts that could not be settled and that nobody has accepted, and reports that Payment Kit would not take."""

    parked: int
    oldest_at: str | None = None
    reasons: dict[str, int] = Field(default_factory=dict)
    reports: int = 0
    """Meter events; not part of `parked`."""
