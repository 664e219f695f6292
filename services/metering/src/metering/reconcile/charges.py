"""Settled calls priced again: their usage by the rates frozen into them, at most their hold."""

import asyncio
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import asyncpg

from contracts.events import CallState
from contracts.money import ZERO
from metering.pricing import cost
from metering.reconcile.check import Connection, Difference, Found, Window, text
from metering.reconcile.session import BY_INDEX
from metering.stored import COUNTS, rates_of, usage_of

_PAGE: Final = 4000
_SLICE: Final = 200
"""Rows that are priced in one go, between which calls have their turn."""
_SETTLED: Final = f"""
select c.id, c.account, c.state, c.hold, c.overrun, c.usage_source, c.rates, c.units, {", ".join(COUNTS)},
    c.credits + coalesce((
        select sum(a.amount) from metering.adjustment a where a.call_id = c.id and a.target in ('charge', 'call')
    ), 0) as charged
from metering.ledger l join metering.model_call c on c.id = l.call_id
where l.call_id > $1 and ($2::timestamptz is null or l.at >= $2) and c.state <> 'processing'
order by l.call_id limit $3
"""  # noqa: S608 - our own words only


@dataclass(frozen=True, slots=True)
class Price:
    """What a settled call comes to."""

    charge: Decimal
    """At most the hold; 0 for a failed call."""
    overrun: Decimal


def priced(row: "asyncpg.Record | dict[str, Any]") -> Price:
    """The price of a settled row of `model_call`, from what is frozen in it.

    Raises:
        metering.pricing.PricingError, msgspec.DecodeError: its rates are none; somebody has changed them.
    """
    if row["state"] != CallState.SUCCESS:
        return Price(ZERO, ZERO)
    rates = rates_of(row)
    total = ZERO if rates is None else cost(usage_of(row), rates)
    charge = min(total, row["hold"])
    return Price(charge, total - charge)


async def charges(connection: Connection, window: Window) -> Found:
    """Each settled call was charged what its usage and rates come to.

    A settled row never changes, so the pages need no snapshot, which would keep the tables from being cleaned up.
    """
    found = Found("charges", "priced again", "charged")
    after = window.first_id
    while True:
        async with connection.transaction(readonly=True):
            await connection.execute(BY_INDEX)
            rows = await connection.fetch(_SETTLED, after, window.bus_from, _PAGE)
        for place, row in enumerate(rows):
            _compare(found, row)
            if place % _SLICE == 0:
                await asyncio.sleep(0)
        if len(rows) < _PAGE:
            return found
        after = rows[-1]["id"]


def _compare(found: Found, row: asyncpg.Record) -> None:
    price = priced(row)
    found.left_count += 1
    found.right_count += 1
    found.left_sum += price.charge
    found.right_sum += row["charged"]
    account, call_id = row["account"], str(row["id"])
    if price.charge != row["charged"]:
        expected, charged = text(price.charge), text(row["charged"])
        what = f"usage by rates comes to {expected}, the hold was {text(row['hold'])}"
        found.add(Difference("charge", account, call_id, expected, charged, what))
    elif price.overrun != row["overrun"]:
        what = "usage by rates, less the charge, is another overrun"
        found.add(Difference("overrun", account, call_id, text(price.overrun), text(row["overrun"]), what))
