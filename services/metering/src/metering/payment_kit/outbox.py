"""The outbox: one row per charged call, or per batch of them, from the settle until Payment Kit has it.

A row's identifier, value and time never change; the role may not change them. `pending → sent`, or `parked` with a
reason. Rows are written by `metering.turn_with_outbox` in the transaction that settles.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

import asyncpg

from contracts.ids import new_call_id
from metering.payment_kit.events import MeterEvent
from runtime.postgres import Pool

BATCH_CALLS_MAX: Final = 1000
_REASON_CHARS_MAX: Final = 500
_LANE: Final = {False: 0, True: 1}
"""Lane 0: calls that nobody has tried to send, so they may still go into a batch. Lane 1: goes as it is."""
_PICK: Final = """
update metering.outbox o set fence = o.fence + 1, tries = o.tries + 1, lane = 1, next_at = now() + $3::interval,
    first_try_at = coalesce(o.first_try_at, now())
from (
    select id from metering.outbox
    where state = 'pending' and batch is null and lane >= $1 and next_at <= now()
        and not exists (select 1 from metering.payment_control where paused or unit <> $5)
    order by lane desc, next_at limit $2 for update skip locked
) due
where o.id = due.id
returning o.id, o.identifier, o.account, o.project, o.value, o.event_at, o.calls, o.tokens, o.fence, o.tries,
    now() - o.first_try_at > $4::interval as is_old, coalesce(o.members[1], o.id) < metering.unit_bound() as is_before
"""
_MARK: Final = "select metering.mark_outbox($1, $2, $3, $4, $5, $6, $7)"
_UNBATCHED: Final = """
select account, user_did, project, id < metering.unit_bound() as is_before from metering.outbox
where state = 'pending' and batch is null and lane = 0
    and not exists (select 1 from metering.payment_control where unit <> $2)
group by account, user_did, project, is_before having min(created_at) <= now() - $1::interval
limit 200
"""
_FOLD: Final = """
with taken as (
    select id, value, tokens, event_at from metering.outbox
    where state = 'pending' and batch is null and lane = 0 and account = $2 and user_did = $3 and project = $4
        and (id < metering.unit_bound()) = $6
    order by id limit $5 for update skip locked
), made as (
    insert into metering.outbox
        (id, kind, identifier, account, user_did, project, value, event_at, calls, tokens, members, lane)
    select $1::uuid, 'meter_batch', 'mb_' || $1::uuid, $2, $3, $4, sum(value), max(event_at), count(*), sum(tokens),
        array_agg(id order by id), 1
    from taken having count(*) > 0
    returning id
)
update metering.outbox m set batch = d.id from made d, taken t where m.id = t.id
"""
_RETRY: Final = """
update metering.outbox set state = 'pending', next_at = now(), reason = ''
where state = 'parked' and ($1::text[] is null or identifier = any ($1)) returning 1
"""


@dataclass(frozen=True, slots=True)
class Picked:
    """A row in our hands until its claim ends."""

    event: MeterEvent
    account: str
    fence: int
    tries: int
    is_old: bool
    """It was first tried longer ago than half of what Payment Kit remembers: look it up before sending it again."""
    is_before: bool = False
    """Charged before the unit of credits was converted: it belongs to the meter of that unit."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What became of a picked row."""

    id: UUID
    fence: int
    state: str
    """`sent`, `parked`, or `pending` for another try."""
    reason: str = ""
    event_id: str = ""
    delay_s: float = 0.0
    untried: bool = False
    """Nothing was sent: the pick does not count."""


async def pick(pool: Pool, limit: int, claim: timedelta, old: timedelta, unit: str, *, batched: bool) -> list[Picked]:
    """Take rows that are due; nobody else gets them before the claim ends. None while paused, or in another unit.

    Raises:
        asyncpg.PostgresError, OSError, TimeoutError: nothing is known; a row that was taken comes again.
    """
    rows = await pool.fetch(_PICK, _LANE[batched], limit, claim, old, unit)
    return [
        Picked(
            MeterEvent(
                row["id"], row["identifier"], customer_did(row["account"]), row["project"], row["value"],
                row["event_at"], row["calls"], row["tokens"],
            ),
            row["account"], row["fence"], row["tries"], row["is_old"], row["is_before"],
        )
        for row in rows
    ]  # fmt: skip


async def mark(pool: Pool, marks: Sequence[Mark]) -> None:
    """Write what became of rows, unless somebody else has taken them meanwhile (the fence).

    Raises:
        asyncpg.PostgresError, OSError, TimeoutError: nothing is known; the rows come again and change nothing twice.
    """
    if not marks:
        return
    await pool.execute(
        _MARK,
        [m.id for m in marks],
        [m.fence for m in marks],
        [m.state for m in marks],
        [m.reason.replace("\x00", "")[:_REASON_CHARS_MAX] for m in marks],
        [m.event_id.replace("\x00", "")[:_REASON_CHARS_MAX] for m in marks],
        [round(m.delay_s * 1000) for m in marks],
        [int(m.untried) for m in marks],
    )


async def fold(pool: Pool, age: timedelta, unit: str) -> int:
    """Put calls that wait since `age` into batches, one per account, user and project; returns how many batches.

    A batch names its calls, and its identifier is as constant as that of a call.

    Raises:
        asyncpg.PostgresError, OSError, TimeoutError: repeat it; a batch is made whole or not at all.
    """
    made = 0
    for row in await pool.fetch(_UNBATCHED, age, unit):
        status = await pool.execute(
            _FOLD, UUID(new_call_id()), row["account"], row["user_did"], row["project"], BATCH_CALLS_MAX,
            row["is_before"],
        )  # fmt: skip
        made += status != "UPDATE 0"
    return made


async def retry_parked(pool: Pool, identifiers: Sequence[str] | None) -> int:
    """Parked rows, all or these, wait for another try; returns how many."""
    return len(await pool.fetch(_RETRY, None if identifiers is None else list(identifiers)))


def customer_did(account: str) -> str:
    """An account as Payment Kit names it: an address, without `did:abt:`."""
    method, _, address = account.rpartition(":")
    return address if method.startswith("did:") and address else account


TransientErrors: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
"""A statement that failed: the work is repeated."""
