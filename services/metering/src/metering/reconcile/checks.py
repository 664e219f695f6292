"""The list of checks: whoever adds a side to the books adds its comparison here."""

from typing import Final

from metering.reconcile import balances, credit, rows
from metering.reconcile.check import BusCheck, SqlCheck
from metering.reconcile.events import usage_events
from metering.reconcile.facts import facts

IN_SNAPSHOT: Final[tuple[SqlCheck, ...]] = (
    rows.ledger,
    rows.attempts,
    rows.parked,
    balances.held,
    balances.spent,
    balances.sequence,
    balances.usage_sent,
    credit.grants,
    credit.outbox,
)
"""All see the same moment of the books."""
WITH_BUS: Final[tuple[BusCheck, ...]] = (facts, usage_events)
