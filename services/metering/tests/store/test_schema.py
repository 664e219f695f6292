"""The schema: who may do what, and partitions that are there before they are needed."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import asyncpg
import pytest
from rig.fixtures import Database

from contracts.ids import new_call_id
from contracts.rpc.envelope import Empty
from metering.sql.store import TURN_SETTINGS, query_pool
from metering.upkeep import expire, make_partitions

Connection = asyncpg.Connection


@pytest.mark.parametrize("role", ["gateway", "provider_router"])
async def test_no_other_role_reads_or_calls_anything(database: Database, role: str) -> None:
    connection = await asyncpg.connect(database.dsns[role])
    for statement in (
        "select 1 from metering.account",
        "select metering.make_partitions(now()::date, 1)",
        "select metering.extend(gen_random_uuid(), 1, 'a', 1)",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    await connection.close()


async def test_metering_cannot_remove_or_rewrite_what_was_booked(database: Database) -> None:
    connection = await asyncpg.connect(database.dsns["metering"])
    for statement in (
        "delete from metering.ledger",
        "update metering.ledger set amount = 0",
        "delete from metering.model_call",
        "update metering.credit_grant set amount = 0",
        "drop table metering.ledger",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    await connection.close()


@pytest.mark.parametrize("amount", ["NaN", "-1", "1e18", "Infinity"])
async def test_the_books_take_no_amount_that_is_none(books: Connection, amount: str) -> None:
    with pytest.raises((asyncpg.CheckViolationError, asyncpg.NumericValueOutOfRangeError)):
        await books.execute("insert into metering.account (id, granted) values ('a', $1::text::numeric)", amount)


async def test_partitions_are_made_ahead_and_take_in_what_came_too_early(books: Connection, database: Database) -> None:
    later = new_call_id(int(datetime(2031, 5, 7, tzinfo=UTC).timestamp() * 1000))
    await books.execute(
        "insert into metering.ledger (call_id, account, acct_seq, amount) values ($1, 'a', 1, 2)", later
    )
    where = "select tableoid::regclass::text from metering.ledger where call_id = $1"
    assert await books.fetchval(where, later) == "metering.ledger_default"

    pool = await query_pool(database.dsns["metering"], 1)
    made = await pool.fetchval("select metering.make_partitions($1, 2)", date(2031, 5, 20))
    again = await pool.fetchval("select metering.make_partitions($1, 2)", date(2031, 5, 1))
    months_ahead = await make_partitions(pool, Empty())
    pool.terminate()

    assert len(made) == 6
    assert again == []
    assert months_ahead.partitions == (), "the migration has made them"
    assert await books.fetchval(where, later) == "metering.ledger_2031_05"
    assert await books.fetchval("select amount from metering.ledger where call_id = $1", later) == Decimal(2)


async def test_expired_claims_are_dropped(books: Connection, database: Database) -> None:
    insert = "insert into metering.idempotency values ($1, gen_random_uuid(), now() + make_interval(secs => $2))"
    await books.execute(insert, "old", -1.0)
    await books.execute(insert, "new", 60.0)
    pool = await query_pool(database.dsns["metering"], 1)
    dropped = await expire(pool, timedelta(days=30), Empty())
    pool.terminate()
    assert (dropped.claims, dropped.notices) == (1, 0)
    assert [row["digest"] for row in await books.fetch("select digest from metering.idempotency")] == ["new"]


async def test_notices_of_grants_go_some_time_after_they_were_told(books: Connection, database: Database) -> None:
    """Those that nobody was told stay, and those of a grant that Payment Kit may speak of again."""
    insert = (
        "insert into metering.grant_notice (id, account, level, amount, name, grant_id, sent_at, expires_at)"
        " values (gen_random_uuid(), 'a', 'granted', 1, $1, $2, now() - $3::interval, now() - $4::interval)"
    )
    days = [None, *(timedelta(days=number) for number in (3, 40, -40))]
    never, lately, long_ago, later = days
    for name, grant_id, sent, ended in (
        ("old", "", long_ago, None),
        ("new", "", lately, None),
        ("unsent", "", never, None),
        ("old, ended there", "crdg_1", long_ago, long_ago),
        ("old, just ended there", "crdg_2", long_ago, lately),
        ("old, goes on there", "crdg_3", long_ago, later),
        ("old, never ends there", "crdg_4", long_ago, None),
    ):
        await books.execute(insert, name, grant_id, sent, ended)
    pool = await query_pool(database.dsns["metering"], 1)
    dropped = await expire(pool, timedelta(days=30), Empty())
    with pytest.raises(asyncpg.InvalidParameterValueError):
        await pool.execute("select metering.drop_grant_notices('1 hour', 1)")
    pool.terminate()
    assert dropped.notices == 2
    assert {row["name"] for row in await books.fetch("select name from metering.grant_notice")} == {
        "new",
        "unsent",
        "old, just ended there",
        "old, goes on there",
        "old, never ends there",
    }


async def test_the_turn_goes_by_index_even_when_it_was_planned_on_empty_tables(
    books: Connection, database: Database
) -> None:
    """A sequential scan or a hash over a whole table would be kept for the life of the connection."""
    connection = await asyncpg.connect(database.dsns["metering"], server_settings=TURN_SETTINGS)
    joined = (
        "explain (generic_plan) update metering.model_call c set state = 'failed', credits = 0"
        " from unnest($1::metering.fact[]) with ordinality f"
        " where c.id = f.call_id and c.state = 'processing' and c.epoch = f.epoch"
        " and (c.account = f.account) is true"
    )
    plan = "\n".join(row[0] for row in await connection.fetch(joined.replace("$1", "null")))
    await connection.close()
    assert "Hash" not in plan
    assert "Seq Scan" not in plan
    assert "Index Cond: (id = f.call_id)" in plan
