"""What a check is, and what it finds.

A check compares two sides that must be equal. It is one function of a list (`checks.py`) and knows nothing of the
others; a check for one more pair of sides is one more function there.
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from uuid import UUID

import asyncpg

from contracts.money import PLACES, ZERO

if TYPE_CHECKING:
    from metering.reconcile.stream import BusView

DIFFERENCES_MAX: Final = 1000
"""Most differences that one check tells row by row; more are counted."""
REPAIRABLE: Final = frozenset(
    (
        "held", "spent", "charge", "ledger_amount", "ledger_missing", "ledger_orphan", "event_missing",
        "outbox_missing", "payment_missing", "payment_value", "payment_row",
    )
)  # fmt: skip
FIRST_ID: Final = UUID(int=0)
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it must be."""

    check: str
    account: str
    call_id: str | None
    expected: str
    found: str
    detail: str

    @property
    def is_repairable(self) -> bool:
        """Whether added rows put it right; others are looked at by people and accepted."""
        return self.check in REPAIRABLE

    @property
    def id(self) -> str:
        """The same for the same difference in every run; other amounts are another difference."""
        text = "\n".join((self.check, self.account, self.call_id or "", self.expected, self.found))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(slots=True)
class Found:
    """What one check found. Sides without a sum leave it at zero."""

    check: str
    left: str
    right: str
    left_count: int = 0
    left_sum: Decimal = ZERO
    right_count: int = 0
    right_sum: Decimal = ZERO
    differences: list[Difference] | None = None
    total: int = 0
    """All differences, also those beyond `DIFFERENCES_MAX`."""
    not_compared: str = ""
    """Why the two sides, or the rest of them, could not be compared: then no difference means nothing."""
    note: str = ""
    """How much was compared, where that is not all."""
    memory: dict[str, str] | None = None
    """Kept with the run, for the next one."""

    def add(self, difference: Difference) -> None:
        """Count a difference, and keep it while there is room."""
        if self.differences is None:
            self.differences = []
        self.total += 1
        if len(self.differences) < DIFFERENCES_MAX:
            self.differences.append(difference)


@dataclass(frozen=True, slots=True)
class Window:
    """Which rows a run looks at."""

    since: datetime | None
    """Beginning of the first day that is not closed: earlier rows count by what their closing says. None = all."""
    first_id: UUID
    """Calls settled since then have this id or a later one."""
    open_from: UUID
    """Every call before it is terminal, except those listed in `skewed_call`."""
    bus_from: datetime | None
    """Messages and settled calls since then are compared; None = all that the bus has."""
    reported_from: datetime | None = None
    """What was reported to Payment Kit since then is looked for there; None = all."""


SqlCheck: TypeAlias = Callable[[Connection, Window], Awaitable[Found]]
"""Runs in one snapshot of the books, shared by all of them, so that calls under way are no difference."""
BusCheck: TypeAlias = Callable[[Connection, "BusView", Window], Awaitable[Found]]
"""Compares books and bus; it relies on the order in which it reads them, since both only grow."""


def text(amount: Decimal | None) -> str:
    """An amount that may be negative, ten places."""
    return "none" if amount is None else format(amount.quantize(PLACES), "f")


async def one_row(connection: Connection, query: str, *values: Any) -> asyncpg.Record:
    """The row of a query that gives exactly one, as aggregates do."""
    row = await connection.fetchrow(query, *values)
    assert row is not None  # noqa: S101 - see above
    return row
