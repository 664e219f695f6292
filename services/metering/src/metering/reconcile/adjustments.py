"""Adjustments: a call whose charge is not what it comes to is put right by an added row, under its account's lock."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import asyncpg
import msgspec

from contracts.errors import ErrorCode, HubError
from metering.ledger.units import check_unit
from metering.pricing import PricingError
from metering.reconcile.charges import priced
from metering.reconcile.check import Connection, text

_ADJUST: Final = (
    "insert into metering.adjustment (account, call_id, target, amount, difference, reason, made_by, acct_seq, entries)"
    " values ($1, $2, $3, $4, $5, $6, $7,"
    " coalesce((select a.seq from metering.account a where a.id = $1), 0),"
    " coalesce((select b.entries from metering.credit_book b where b.account = $1), 0))"
)
_IS_MIRRORED: Final = "select exists (select from metering.payment_account p where p.account = $1)"
"""Whether Payment Kit keeps the account's grants."""
_CHARGE: Final = "select metering.credit_charge($1, $2, now())"
_CHARGE_MIRRORED: Final = "update metering.account set spent = spent + $2 where id = $1"
_REFUNDED: Final = (
    "select coalesce(sum(e.amount), 0) from metering.credit_entry e where e.call_id = $1 and e.kind = 'refunded'"
)
_SIDES: Final = """
select c.*, c.credits + coalesce(j.call, 0) as charged, l.amount + coalesce(j.ledger, 0) as booked
from metering.model_call c left join metering.ledger l on l.call_id = c.id
    left join lateral (
        select sum(a.amount) filter (where a.target in ('charge', 'call')) as call,
            sum(a.amount) filter (where a.target in ('charge', 'ledger')) as ledger
        from metering.adjustment a where a.call_id = c.id
    ) j on true
where c.id = $1
"""


@dataclass(frozen=True, slots=True)
class Note:
    """Why an adjustment is made, and by whom."""

    difference: str
    reason: str
    made_by: str


async def put_right(connection: Connection, call_id: object, note: Note) -> str:
    """Make call and ledger say what the call comes to; the caller has locked the account.

    Where only one of them is wrong, or they differ from each other, nobody was charged by that row: only the row is put
    right. Where both say the same, the account was charged so: the adjustment moves what it has spent.

    Raises:
        HubError: `conflict`.
    """
    sides = await connection.fetchrow(_SIDES, call_id)
    if sides is None or sides["charged"] is None or sides["booked"] is None:
        raise HubError(ErrorCode.CONFLICT, "The call is not settled, or not in the ledger; compare again.")
    price, charged, booked = _price(sides), sides["charged"], sides["booked"]
    account = sides["account"]
    if charged == booked == price:
        raise HubError(ErrorCode.CONFLICT, "There is no difference any more; compare again.")
    if charged == booked:
        if price < charged and price < await connection.fetchval(_REFUNDED, call_id):
            raise HubError(ErrorCode.CONFLICT, "More than the rest was refunded; accept the difference with a reason.")
        await adjust_charge(connection, account, call_id, price - charged, note)
        return f"call {call_id}: charge adjusted by {text(price - charged)}, {account} has paid it"
    done = []
    for target, says in (("call", charged), ("ledger", booked)):
        if says != price:
            await adjust(connection, account, call_id, target, price - says, note)
            done.append(f"{target} adjusted by {text(price - says)}")
    return f"call {call_id}: {', '.join(done)}"


async def adjust_charge(connection: Connection, account: str, call_id: object, amount: Decimal, note: Note) -> None:
    """An account pays so much more for a call, or gets it back into the grants that had paid; it is locked.

    Raises:
        HubError: `conflict`, when its grants do not cover it, or the unit of credits was converted since.
    """
    await check_unit(connection, call_id)
    await adjust(connection, account, call_id, "charge", amount, note)
    mirrored = await connection.fetchval(_IS_MIRRORED, account)
    await moved(connection, _CHARGE_MIRRORED if mirrored else _CHARGE, account, amount)


async def adjust(
    connection: Connection, account: str, call_id: object, target: str, amount: Decimal, note: Note
) -> None:
    """Add the row, with its place among the account's rows; `target` is one of the table's words."""
    values: tuple[Any, ...] = (account, call_id, target, amount, note.difference, note.reason, note.made_by)
    await connection.execute(_ADJUST, *values)


async def moved(connection: Connection, statement: str, account: str, amount: Decimal) -> None:
    """Move a total of an account by a statement that takes both.

    Raises:
        HubError: `conflict`, when the total cannot be that.
    """
    try:
        await connection.execute(statement, account, amount)
    except (asyncpg.CheckViolationError, asyncpg.NumericValueOutOfRangeError) as error:
        raise HubError(
            ErrorCode.CONFLICT,
            "The account's grants do not cover it, or it would fall below zero; grant credits first.",
        ) from error


def _price(row: asyncpg.Record) -> Decimal:
    try:
        return priced(row).charge
    except (PricingError, msgspec.DecodeError) as error:
        raise HubError(ErrorCode.CONFLICT, "The call's rates cannot be read: nothing says what it costs.") from error
