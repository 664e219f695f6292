"""Repairs: each adds rows and edits none, under the lock of its account, with the amounts as they are by then.

An account's totals are moved by an adjustment in the same transaction, as a grant moves `granted`.
"""

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Final
from uuid import UUID

import asyncpg
import structlog
from nats.errors import Error as NatsError

from contracts.errors import ErrorCode, HubError
from contracts.money import ZERO
from contracts.rpc.reconcile import ReconcileRepair, ReconcileRepaired
from metering.payment_kit import records
from metering.reconcile.adjustments import Note, adjust, moved, put_right
from metering.reconcile.check import Connection, text
from metering.reconcile.credit import AGAIN, REPORT
from metering.reconcile.session import connected

_log = structlog.get_logger("reconcile")
_DIFFERENCE: Final = (
    "select d.* from metering.difference d join metering.reconciliation r on r.id = d.run_id where d.id = $1"
    " order by r.started_at desc limit 1"
)
_LOCK_ACCOUNT: Final = "select * from metering.account where id = $1 for no key update"
_RETURN: Final = "select metering.credit_return($1, now())"
_HOLDS: Final = """
select coalesce(sum(c.hold), 0) from metering.model_call c
where c.account = $1 and c.state = 'processing' and (
    c.id >= metering.id_bound(to_timestamp((select m.below_ms / 1000.0 from metering.open_mark m)))
    or c.id in (select s.call_id from metering.skewed_call s))
"""
_BOOKED: Final = """
select coalesce((select sum(l.amount) from metering.ledger l where l.account = $1), 0)
    + coalesce((select sum(j.amount) from metering.adjustment j
        where j.account = $1 and j.target in ('charge', 'ledger')), 0)
"""
_UNBOOKED: Final = """
select c.id, c.credits, c.settled_at from metering.model_call c
where c.account = $1 and c.state <> 'processing'
    and not exists (select 1 from metering.ledger l where l.call_id = c.id)
order by c.settled_at, c.id
"""
_FREE: Final = """
select s.number from generate_series(1, $2::bigint) s(number)
where not exists (select 1 from metering.ledger l where l.account = $1 and l.acct_seq = s.number) order by 1
"""
_BOOK_AT: Final = """
select case
    when not exists (select 1 from metering.closing k where k.day = d.day) then $2
    when coalesce((select k.calls from metering.closing_account k where k.account = $1 and k.day = d.day), 0)
        > (select count(*) from metering.ledger l
            where l.account = $1 and l.at >= d.day::timestamptz and l.at < (d.day + 1)::timestamptz) then $2
    else now()
end
from (select ($2::timestamptz at time zone 'UTC')::date as day) d
"""
"""When it was settled, unless that day was closed without it: then now, because no closed day may change."""
_SAID: Final = (
    "select d.found from metering.difference d join metering.reconciliation r on r.id = d.run_id"
    " where d.call_id = $1 and d.account = $2 and d.name = 'event_orphan' order by r.started_at desc limit 1"
)
_BOOK: Final = "insert into metering.ledger (call_id, account, acct_seq, amount, at) values ($1, $2, $3, $4, $5)"
_ORPHAN: Final = """
select l.account, l.amount + coalesce((select sum(a.amount) from metering.adjustment a
    where a.call_id = l.call_id and a.target in ('charge', 'ledger')), 0) as counts
from metering.ledger l left join metering.model_call c on c.id = l.call_id
where l.call_id = $1 and (c.id is null or c.state = 'processing')
"""


Again = Callable[[str], Awaitable[bool]]
"""Publish the usage event of a call again; whether the stream has stored it."""


async def repair(dsn: str, publish_again: Again, request: ReconcileRepair) -> ReconcileRepaired:
    """Repair one difference that a run has found.

    Raises:
        HubError: `not_found`; `conflict` when it is gone meanwhile, or is none that rows can repair.
    """
    _check_words(request.difference_id, request.reason, request.repaired_by)
    note = Note(request.difference_id, request.reason, request.repaired_by)
    async with connected(dsn) as connection:
        row = await connection.fetchrow(_DIFFERENCE, request.difference_id)
        if row is None:
            raise HubError(ErrorCode.NOT_FOUND, "No comparison has found this difference.", param="difference_id")
        if row["name"] == "event_missing":
            return ReconcileRepaired(done=await _republish(publish_again, str(row["call_id"])))
        async with connection.transaction():
            return ReconcileRepaired(done=await _repaired(connection, row, note))


async def _republish(publish_again: Again, call_id: str) -> str:
    try:
        stored = await publish_again(call_id)
    except NatsError as error:
        raise HubError(ErrorCode.SERVICE_UNAVAILABLE, "The bus is away; try again.") from error
    if not stored:
        raise HubError(
            ErrorCode.SERVICE_UNAVAILABLE, "The stream did not take the event, or knows its id still; try again later."
        )
    return f"usage event of call {call_id} published again"


async def _repaired(connection: Connection, row: asyncpg.Record, note: Note) -> str:
    name, account, call_id = row["name"], row["account"], row["call_id"]
    locked = await connection.fetchrow(_LOCK_ACCOUNT, account)
    if name == "ledger_orphan":
        return await _cancel_orphan(connection, call_id, note)
    if locked is None:
        raise HubError(ErrorCode.CONFLICT, "The account has no row; accept the difference, or open the account first.")
    match name:
        case "held":
            done = await _move(connection, locked, "held", await connection.fetchval(_HOLDS, account), note)
        case "spent":
            done = await _move(connection, locked, "spent", await connection.fetchval(_BOOKED, account), note)
        case "ledger_missing":
            done = await _book(connection, locked, call_id)
        case "payment_missing" | "payment_value":
            done = await _again(connection, row)
        case "outbox_missing" | "payment_row":
            done = await _report(connection, call_id)
        case "charge" | "ledger_amount":
            done = await put_right(connection, call_id, note)
        case _:
            raise HubError(ErrorCode.CONFLICT, "No added row repairs this; look at it, then accept it with a reason.")
    return done


async def _move(connection: Connection, account: asyncpg.Record, total: str, to: Decimal, note: Note) -> str:
    by = to - account[total]
    if not by:
        raise HubError(ErrorCode.CONFLICT, "There is no difference any more; compare again.")
    await adjust(connection, account["id"], None, total, by, note)
    column = {"held": "held", "spent": "spent"}[total]
    statement = f"update metering.account set {column} = $2 where id = $1"  # noqa: S608 - one of two words
    await moved(connection, statement, account["id"], to)
    await connection.execute(_RETURN, account["id"])
    return f"{account['id']}: {total} moved by {text(by)} to {text(to)}"


async def _book(connection: Connection, account: asyncpg.Record, call_id: object) -> str:
    """Write a missing ledger row as it was.

    Its number is the one in its usage event, if a comparison has met that; else the free ones are given out in the
    order of settling, which is how they were given out.
    """
    unbooked = await connection.fetch(_UNBOOKED, account["id"])
    free = [row["number"] for row in await connection.fetch(_FREE, account["id"], account["seq"])]
    places = {row["id"]: place for place, row in enumerate(unbooked)}
    place = places.get(call_id)
    if place is None:
        raise HubError(ErrorCode.CONFLICT, "There is no difference any more; compare again.")
    if not free:
        raise HubError(ErrorCode.CONFLICT, "The account's ledger has no number left for it; accept the difference.")
    said: str = await connection.fetchval(_SAID, call_id, account["id"]) or ""
    number = free[min(place, len(free) - 1)]
    for candidate in free:
        if said.startswith(f"#{candidate} "):
            number = candidate
    row = unbooked[place]
    at = await connection.fetchval(_BOOK_AT, account["id"], row["settled_at"])
    await connection.execute(_BOOK, row["id"], account["id"], number, row["credits"], at)
    return f"call {call_id}: ledger row {number} of {account['id']} written with {text(row['credits'])}"


async def _report(connection: Connection, call_id: object) -> str:
    identifier = await connection.fetchval(REPORT, call_id)
    if identifier is None:
        raise HubError(ErrorCode.CONFLICT, "There is no difference any more; compare again.")
    return f"call {call_id}: {identifier} is in the outbox again"


async def _again(connection: Connection, row: asyncpg.Record) -> str:
    """Send a row again that Payment Kit does not have; park one that it has with another value."""
    identifier = str(row["expected"]).partition(" ")[0]
    is_lost = row["name"] == "payment_missing"
    state, reason = ("pending", "") if is_lost else ("parked", f"Payment Kit has it as {row['found']}"[:500])
    done = await connection.fetchval(AGAIN, identifier, state, reason, UUID(identifier[3:]))
    if done is None:
        raise HubError(ErrorCode.CONFLICT, "There is no difference any more; compare again.")
    if is_lost:
        return f"{identifier} is sent again, after a look whether Payment Kit has it after all"
    records.PARKED.inc()
    _log.error("meter event parked", identifier=identifier, reason=reason)
    return f"{identifier} is parked: {reason}"


async def _cancel_orphan(connection: Connection, call_id: object, note: Note) -> str:
    row = await connection.fetchrow(_ORPHAN, call_id)
    if row is None or row["counts"] == ZERO:
        raise HubError(ErrorCode.CONFLICT, "There is no difference any more; compare again.")
    await adjust(connection, row["account"], call_id, "ledger", -row["counts"], note)
    return f"call {call_id}: ledger adjusted by {text(-row['counts'])}"


def _check_words(*words: str) -> None:
    if any("\x00" in word for word in words):
        raise HubError(ErrorCode.INVALID_REQUEST, "NUL cannot be stored.", param="reason")
