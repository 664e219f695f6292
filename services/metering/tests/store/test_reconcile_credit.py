"""Grants and the outbox to Payment Kit are compared with the ledger; a deleted outbox row is named and put back."""

from collections.abc import AsyncIterator

import asyncpg
import pytest
from rig.fixtures import Database

from metering.reconcile import credit
from metering.reconcile.check import FIRST_ID, Connection, Found, Window
from metering.reconcile.session import connected

WHOLE = Window(since=None, first_id=FIRST_ID, open_from=FIRST_ID, bus_from=None)
IDS = [f"019c0000-0000-7000-8000-00000000000{number}" for number in range(1, 4)]
CALLS = """
insert into metering.account (id, spent, granted, seq) values ('did:a', 1.5, 10, 3);
insert into metering.payment_account (account, did) values ('did:a', 'a');
insert into metering.model_call (id, account, user_did, project, key_id, kind, dialect, model, stream, state,
    lease_until, deadline, hold, credits, candidates)
select ('019c0000-0000-7000-8000-00000000000' || n)::uuid, 'did:a', 'u', 'p', 'k', 'chat', 'openai', 'm', false,
    'success', now(), now(), 1, 0.5, '[]' from generate_series(1, 3) n;
insert into metering.ledger (call_id, account, acct_seq, amount)
select ('019c0000-0000-7000-8000-00000000000' || n)::uuid, 'did:a', n, 0.5 from generate_series(1, 3) n;
insert into metering.outbox (id, kind, identifier, account, user_did, project, value, event_at)
select l.call_id, 'meter', 'mc_' || l.call_id, l.account, 'u', 'p', l.amount, floor(extract(epoch from l.at))
from metering.ledger l;
"""


@pytest.fixture
async def connection(database: Database) -> AsyncIterator[Connection]:
    async with connected(database.dsns["metering"]) as connection:
        yield connection


def names(found: Found) -> list[tuple[str, str | None]]:
    return [(each.check, each.call_id) for each in found.differences or ()]


async def test_a_hub_without_payment_kit_or_grants_has_no_difference(connection: Connection) -> None:
    assert names(await credit.outbox(connection, WHOLE)) == []
    assert names(await credit.grants(connection, WHOLE)) == []


async def test_a_row_of_the_outbox_that_is_not_its_charge_is_named(
    books: "asyncpg.Connection[asyncpg.Record]", connection: Connection
) -> None:
    await books.execute(CALLS)
    whole = await credit.outbox(connection, WHOLE)
    assert (names(whole), whole.left_count, whole.left_sum) == ([], 3, whole.right_sum)
    grants = await credit.grants(connection, WHOLE)
    assert (names(grants), grants.left_sum, grants.right_sum) == ([], 0, 0), "Payment Kit keeps this balance"

    deleted = await books.fetchrow("delete from metering.outbox where id = $1 returning id, value, event_at", IDS[0])
    await books.execute("update metering.outbox set value = 0.6 where id = $1", IDS[1])
    assert names(await credit.outbox(connection, WHOLE)) == [("outbox_missing", IDS[0]), ("outbox_amount", IDS[1])]
    assert await connection.fetchval(credit.REPORT, IDS[0]) == f"mc_{IDS[0]}"
    again = await books.fetchrow("select id, value, event_at from metering.outbox where id = $1", IDS[0])
    assert again == deleted
    assert names(await credit.outbox(connection, WHOLE)) == [("outbox_amount", IDS[1])]


async def test_parked_and_stuck_rows_and_batches_that_do_not_add_up_are_named(
    books: "asyncpg.Connection[asyncpg.Record]", connection: Connection
) -> None:
    await books.execute(CALLS)
    await books.execute("update metering.outbox set state = 'parked', reason = 'refused' where id = $1", IDS[0])
    await books.execute("update metering.outbox set created_at = now() - interval '2 hours' where id = $1", IDS[1])
    batch = "019c0000-0000-7000-8000-000000000009"
    await books.execute(
        "insert into metering.outbox (id, kind, identifier, account, user_did, project, value, event_at, members)"
        " values ($1::text::uuid, 'meter_batch', 'mb_' || $1, 'did:a', 'u', 'p', 2, 1, array[$2::uuid])", batch, IDS[2],
    )  # fmt: skip
    found = {each.check for each in (await credit.outbox(connection, WHOLE)).differences or ()}
    assert found == {"outbox_parked", "outbox_pending", "outbox_batch"}


async def test_more_drawn_from_grants_than_spent_is_named_and_given_back(
    books: "asyncpg.Connection[asyncpg.Record]", connection: Connection
) -> None:
    await books.execute("select metering.credit_welcome(array['did:c'], array[gen_random_uuid()], 5, '', null, now())")
    await books.execute("update metering.account set spent = 3 where id = 'did:c'")
    await books.execute("select metering.credit_advance('did:c', now())")
    await books.execute("update metering.account set spent = 1 where id = 'did:c'")
    found = await credit.grants(connection, WHOLE)
    assert found.differences is not None
    (difference,) = found.differences
    assert (difference.account, difference.expected, difference.found, difference.detail) == (
        "did:c", "1.0000000000", "3.0000000000", "drawn above what is spent",
    )  # fmt: skip
    await books.execute("select metering.credit_advance('did:c', now())")
    assert names(await credit.grants(connection, WHOLE)) == []
    assert await books.fetchval("select rest from metering.credit_lot where account = 'did:c'") == 4


async def test_grants_that_do_not_add_up_are_named(
    books: "asyncpg.Connection[asyncpg.Record]", connection: Connection
) -> None:
    await books.execute("insert into metering.account (id, granted) values ('did:b', 5)")
    found = await credit.grants(connection, WHOLE)
    assert ("grants", None) in names(found)
    assert {each.account for each in found.differences or ()} == {"did:b"}
