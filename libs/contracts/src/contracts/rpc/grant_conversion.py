"""Questions about converting the unit of the grants that Payment Kit holds: pydantic.

A conversion runs inside metering and goes on in another process when the first one dies; whoever started it asks how it
stands. While one is open calls are refused with 503.
"""

from typing import Final, Literal

from pydantic import Field

from contracts.rpc.envelope import Message
from contracts.rpc.rate_changes import CreditPrice

GRANTS_CONVERT: Final = "grants_convert"
GRANTS_CONVERSION: Final = "grants_conversion"
GRANTS_CONVERT_FINISH: Final = "grants_convert_finish"
GRANTS_UNIT: Final = "grants_unit"
PROBLEMS_MAX: Final = 100
"""Grants that are told one by one; more are counted."""
ConversionState = Literal["running", "moved", "finished", "failed"]


class GrantsConvert(Message):
    """Make every open grant of the older unit a grant of the newer one; again, it goes on with the open conversion."""

    price: CreditPrice
    """New credits for one old credit."""
    dry_run: bool = False
    """Only tell what would become of each; calls go on."""
    in_new_unit: bool = False
    """Refuse unless the hub counts in the newer unit already, so that its rates stay as they are."""
    wait_s: float = Field(700.0, ge=0, le=3600)
    """Longest wait for running calls and unsent reports to end, and for a Payment Kit that is away."""


class GrantsConversionGet(Message):
    """How does this conversion stand?"""

    conversion_id: str = Field(max_length=36)


class GrantsConvertFinish(Message):
    """Admit calls again, in the newer unit; refused while grants wait or the hub still counts in the older one."""


class GrantProblem(Message):
    """A grant that stayed as it was, and why."""

    grant_id: str
    customer_id: str
    problem: str


class GrantsConversion(Message):
    """How a conversion of grants stands. `total` = `migrated` + `skipped` + `errors` once it has looked at all."""

    conversion_id: str
    price: str
    dry_run: bool
    changes_unit: bool
    """The hub counted in the older unit when it began: rates and settings change too before it is finished."""
    state: ConversionState
    """`moved`: done, and waiting for the hub to count in the newer unit. `failed`: nothing was moved."""
    error: str = ""
    """Why it failed, or what it waits for."""
    started_at: str
    finished_at: str | None = None
    total: int = 0
    """Grants of the older unit, ended ones too."""
    migrated: int = 0
    skipped: int = 0
    """They have ended, are used up, or are worth nothing in the newer unit."""
    errors: int = 0
    before: str = "0"
    """Old credits that were moved, exactly."""
    after: str = "0"
    problems: tuple[GrantProblem, ...] = ()
    late: int = 0
    """Calls that were admitted after all metering processes should have known: look at them one by one."""


class GrantsUnitGet(Message):
    """How do the meters of both units stand, and what is left in the older one?"""


class UnitMeter(Message):
    """A meter as Payment Kit has it."""

    id: str
    name: str
    status: str
    currency_id: str
    decimal: int


class GrantsUnit(Message):
    """Meters and grants of the two units; None = Payment Kit has no such meter, or does not run."""

    payment_running: bool
    in_new_unit: bool = False
    """The hub counts in the newer unit."""
    old_meter: UnitMeter | None = None
    new_meter: UnitMeter | None = None
    total_grants: int = 0
    """Of the older unit."""
    unmigrated_grants: int = 0
    credit_price: str
