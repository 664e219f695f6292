"""What became of rows of the outbox, beside others that change them."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest
from rig.fixtures import Database
from rig.waiting import until

from contracts.ids import new_call_id
from metering.payment_kit import outbox
from metering.payment_kit.outbox import Mark
from metering.sql.store import query_pool
from runtime.postgres import Pool

Connection = asyncpg.Connection


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    pool = await query_pool(database.dsns["metering"], 1)
    yield pool
    pool.terminate()


async def _rows(books: Connection, count: int) -> list[UUID]:
    ids = [UUID(new_call_id()) for _ in range(count)]
    await books.execute(
        "insert into metering.outbox (id, kind, identifier, account, user_did, project, value, event_at)"
        " select id, 'meter', 'mc_' || id, 'did:a', 'u', 'p', 1, 1 from unnest($1::uuid[]) id",
        ids,
    )
    return ids


async def _states(books: Connection, ids: list[UUID]) -> list[str]:
    return [await books.fetchval("select state from metering.outbox where id = $1", one) for one in ids]


async def test_a_mark_waits_for_whoever_has_the_row_and_does_not_count_once_it_was_taken(
    books: Connection, pool: Pool
) -> None:
    """Rows that change under such a statement could make PostgreSQL crash."""
    ids = await _rows(books, 3)

    async def waits() -> bool:
        return bool(await books.fetchval("select count(*) from pg_locks where not granted"))

    async with books.transaction():
        await books.execute("update metering.outbox set fence = 1 where id = $1", ids[1])
        marking = asyncio.create_task(outbox.mark(pool, [Mark(one, 0, "sent", event_id=f"e{one}") for one in ids]))
        await until(waits, what="the mark waits for the row")
    await marking

    assert await _states(books, ids) == ["sent", "pending", "sent"]


async def test_each_row_gets_its_own_mark_and_a_batch_takes_its_calls_along(books: Connection, pool: Pool) -> None:
    first, second, member, other = await _rows(books, 4)
    batch = UUID(new_call_id())
    await books.execute(
        "insert into metering.outbox (id, kind, identifier, account, user_did, project, value, event_at, members)"
        " values ($1::uuid, 'meter_batch', 'mb_' || $1::uuid, 'did:b', 'u', 'p', 2, 1, array[$2::uuid])",
        batch,
        member,
    )
    await books.execute("update metering.outbox set tries = 5 where id = $1", first)
    await outbox.mark(
        pool,
        [
            Mark(second, 0, "parked", "no\x00 such meter"),
            Mark(batch, 0, "sent", event_id="evt_1"),
            Mark(first, 0, "pending", "away", delay_s=60.0, untried=True),
        ],
    )
    assert await _states(books, [first, second, batch, member, other]) == [
        "pending", "parked", "sent", "sent", "pending",
    ]  # fmt: skip
    row = await books.fetchrow(
        "select reason, tries, next_at - now() > '50 s' as later from metering.outbox where id = $1", first
    )
    assert tuple(row or ()) == ("away", 4, True)
    assert await books.fetchval("select reason from metering.outbox where id = $1", second) == "no such meter"
    assert await books.fetchval("select event_id from metering.outbox where id = $1", batch) == "evt_1"
