"""Questions to provider-router about single rates: looked up page by page, changed many at once, taken away."""

from typing import Annotated, Final, Literal

from pydantic import Field

from contracts.errors import ErrorCode
from contracts.rpc import envelope
from contracts.rpc.catalog import About, Rate, RateView, Values
from contracts.rpc.envelope import Message
from contracts.rpc.rate_changes import VERSION_MAX, Pattern
from contracts.usage import RateType

RATES_FIND: Final = "rates_find"
RATE_GET: Final = "rate_get"
RATES_CHANGE: Final = "rates_change"
RATES_REMOVE: Final = "rates_remove"
PAGE_MAX: Final = 100_000
PAGE_SIZE_MAX: Final = 100
ROWS_MAX: Final = 200
"""Most rates that one change adds."""
Text = Annotated[str, Field(max_length=200, pattern=envelope.PRINTABLE)]


class Wanted(Message):
    """A condition on the rates to be found."""

    field: Literal["provider", "model", "type", "display", "description"]
    values: tuple[Text, ...] = Field(min_length=1, max_length=200)
    """One of them fits."""
    part: bool = False
    """Fits when it is a part of the field's text, whatever the case; False: when it is all of it."""


class RatesFind(Message):
    """Rates in force, by provider and model."""

    wanted: tuple[Wanted, ...] = Field((), max_length=50)
    """All of them hold."""
    deprecated: bool = False
    """Whether deprecated ones are found, too."""
    descending: bool = False
    page: int = Field(1, ge=1, le=PAGE_MAX)
    page_size: int = Field(20, ge=1, le=PAGE_SIZE_MAX)


class FoundRate(RateView):
    """A rate with what it was computed from."""

    costs: Values | None = None
    """Unit costs in US dollars; None = unknown."""
    cost_source: str = ""
    margin_percent: str | None = None
    changed_at: str | None = None
    """None: it stands in no row."""


class RatesFound(Message):
    """A page of them."""

    count: int
    """On all pages."""
    rates: tuple[FoundRate, ...]


class RateGet(Message):
    """The version with this id, unless its rate has been removed (`not_found`)."""

    rate_id: Text


class UnitCosts(Message):
    """What a vendor takes, in US dollars per token."""

    input: Rate
    output: Rate


class RateInput(Values):
    """A rate to add, or to replace."""

    pattern: Pattern
    type: RateType = RateType.CHAT
    expected_version: int = Field(0, ge=0, le=VERSION_MAX)
    """The version that it replaces, 0 = there is none; another one is a `conflict`."""
    effective_at: str | None = Field(None, max_length=40)
    """ISO 8601 with its offset, in the future; None = at once."""
    about: About | None = None
    """None = as it was."""
    unit_costs: UnitCosts | None = None
    """None = as they were."""
    deprecated: bool | None = None
    """None = as it was."""


class RatesChange(Message):
    """Add versions, all or none."""

    rates: tuple[RateInput, ...] = Field(min_length=1, max_length=ROWS_MAX)
    dry_run: bool = False
    """Only say what is wrong."""
    changed_by: str = ""


class RowError(Message):
    """What is wrong with a row."""

    index: int
    """Of the row, from 0."""
    code: ErrorCode
    message: str
    param: str | None = None


class RatesAdded(Message):
    """Either all rows as they are now, or what is wrong and nothing was added."""

    rates: tuple[FoundRate, ...] = ()
    errors: tuple[RowError, ...] = ()


class RatesRemove(Message):
    """Take a rate away; what was planned for it before is void, and its history stays."""

    pattern: Pattern
    type: RateType = RateType.CHAT
    expected_version: int | None = Field(None, ge=0, le=VERSION_MAX)
    """None = whatever is there."""
    effective_at: str | None = Field(None, max_length=40)
    """ISO 8601 with its offset, in the future; None = at once."""
    changed_by: str = ""


class RateRemoved(Message):
    """A version without rates."""

    pattern: str
    type: RateType
    version: int
    effective_at: str
    now: RateView | None
    """What the pattern's models cost now; None = nothing, they are not served."""
