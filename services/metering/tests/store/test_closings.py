"""Closed days prove that nobody has touched them; periods are priced again; a provider's day is summed up."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import asyncpg
import pytest
from neighbours import CANDIDATE, Neighbours, call
from rig.fixtures import Database
from rig.waiting import until

from contracts.errors import ErrorCode, HubError
from contracts.events import CallCompleted
from contracts.ids import new_call_id
from contracts.rpc import credit
from contracts.rpc import reconcile as r
from contracts.rpc.metering import ReserveCall
from contracts.usage import Rates, Usage
from metering.reconcile import closings, recompute
from metering.reconcile.check import text

A, B, C = "did:a", "did:b", "did:c"
DAYS = 3


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of yesterday is under way here, also when the test runs soon after midnight."""
    monkeypatch.setattr(closings, "_WAIT", timedelta(0))


def days_ago(days: int) -> datetime:
    """Noon of a day before today, in UTC."""
    today = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
    return today - timedelta(days=days)


async def settled(hub: Neighbours, reserved: Sequence[ReserveCall], *facts: CallCompleted) -> None:
    assert set(await hub.reserve_batch(*reserved)) == {"reserved"}
    await hub.publish(*(facts or (hub.completed(one) for one in reserved)))
    await hub.until_settled(*reserved)


async def backdated(hub: Neighbours, reserved: Sequence[ReserveCall], at: datetime) -> None:
    """As if these calls had been settled then; their ids say so already."""
    ids = [one.call_id for one in reserved]
    await hub.books.execute("update metering.ledger set at = $2 where call_id = any ($1)", ids, at)
    await hub.books.execute("update metering.model_call set settled_at = $2 where id = any ($1)", ids, at)


@pytest.fixture
async def past(hub: Neighbours) -> Neighbours:
    """Calls of the last three days and of today; nothing is closed."""
    for account in (A, B, C):
        await hub.open_account(account, "1000")
    for days in (*range(DAYS, 0, -1), 0):
        at = days_ago(days)
        ids = [new_call_id(int(at.timestamp() * 1000) + number) for number in range(6)]
        calls = [call((A, B)[number % 2], call_id=call_id) for number, call_id in enumerate(ids)]
        if days == 2:
            calls.append(call(C, call_id=new_call_id(int(at.timestamp() * 1000))))
        await settled(hub, calls)
        if days:
            await backdated(hub, calls, at)

    async def sent() -> bool:
        behind = "select count(*) from metering.account a left join metering.usage_sent s on s.account = a.id"
        return not await hub.books.fetchval(f"{behind} where a.seq > coalesce(s.seq, 0)")

    await until(sent, within_s=30, what="every usage event is stored")
    return hub


async def close(hub: Neighbours, most: int = 31) -> r.CloseDaysReply:
    return await hub.ask(r.CLOSE_DAYS, r.CloseDays(most=most), r.CloseDaysReply)


async def compared(hub: Neighbours, scope: r.Scope) -> r.ReconcileReport:
    started = await hub.ask(r.RECONCILE_START, r.ReconcileStart(scope=scope), r.ReconcileStarted)

    async def ended() -> r.ReconcileReport | None:
        report = await hub.ask(r.RECONCILE_GET, r.ReconcileGet(run_id=started.run_id), r.ReconcileReport)
        return report if report.state != "running" else None

    report = await until(ended, within_s=30, what="the comparison ends")
    assert report is not None
    assert report.state == "done", report.error
    return report


async def test_days_that_are_over_are_closed_once_each_chained_to_the_day_before(past: Neighbours) -> None:
    first = await close(past, most=2)
    assert (len(first.closed), first.more) == (2, True)
    rest = await close(past)
    assert (len(rest.closed), rest.more) == (1, False)
    assert await close(past) == r.CloseDaysReply(closed=(), more=False)
    closed = (*first.closed, *rest.closed)
    assert [day.day for day in closed] == [days_ago(days).date().isoformat() for days in range(DAYS, 0, -1)]
    assert [(day.accounts, day.calls, day.amount) for day in closed] == [
        (2, 6, Decimal("1.2")), (3, 7, Decimal("1.4")), (2, 6, Decimal("1.2")),
    ]  # fmt: skip
    chain = bytes(32)
    for row in await past.books.fetch("select * from metering.closing order by day"):
        chain = closings.chained(chain, row["day"], row["digest"])
        assert row["chain"] == chain
    assert closed[-1].chain == chain.hex()
    report = await compared(past, "closings")
    assert (report.page, report.closed_day, report.closed_chain) == ((), closed[-1].day, chain.hex())


async def test_a_day_without_a_call_is_closed_too(past: Neighbours) -> None:
    middle = days_ago(2).date()
    await past.books.execute("delete from metering.ledger where (at at time zone 'UTC')::date = $1", middle)
    closed = (await close(past)).closed
    assert [(day.calls, day.accounts) for day in closed] == [(6, 2), (0, 0), (6, 2)]
    assert (await compared(past, "closings")).page == ()


async def test_accounts_are_compared_with_what_their_closed_days_came_to(past: Neighbours) -> None:
    await close(past)
    report = await compared(past, "recent")
    assert [each.check for each in report.page] == []
    spent = next(each for each in report.comparisons if each.check == "spent")
    assert (spent.left_count, spent.left_sum, spent.right_sum) == (25, "5.0000000000", "5.0000000000")
    await past.books.execute("update metering.account set spent = spent + 1 where id = $1", C)
    assert [(each.check, each.account) for each in (await compared(past, "recent")).page] == [("spent", C)]


TAMPERED = [
    ("update metering.ledger set amount = amount + 0.0000000001 where {day} and account = 'did:b'",
     "closing_account", B),
    ("delete from metering.ledger where {day} and account = 'did:c'", "closing_account", C),
    ("update metering.model_call set output_tokens = 1 where id in (select call_id from metering.ledger where {day})",
     "closing_account", A),
    ("update metering.ledger set at = at + interval '1 microsecond' where {day} and account = 'did:a'",
     "closing_account", A),
    ("update metering.closing_account set amount_total = amount_total + 1 where day = {date} and account = 'did:a'",
     "closing_total", A),
    ("update metering.closing_account set digest = sha256('') where day = {date} and account = 'did:a'",
     "closing_account", A),
    ("update metering.closing set digest = sha256('') where day = {date}", "closing_digest", ""),
    ("update metering.closing set chain = sha256('') where day = {date}", "closing_chain", ""),
    ("delete from metering.closing where day = {date}", "closing_gap", ""),
]  # fmt: skip


async def test_the_first_broken_day_and_account_are_named(past: Neighbours) -> None:
    await close(past)
    day = days_ago(2).date()
    for statement, name, account in TAMPERED:
        undone = past.books.transaction()
        await undone.start()
        await past.books.execute(statement.format(day=f"(at at time zone 'UTC')::date = '{day}'", date=f"'{day}'"))
        found = (await closings.verify(past.books)).differences or []
        await undone.rollback()
        assert found, statement
        assert (found[0].check, found[0].account) == (name, account), statement
        assert found[0].detail.startswith(str(day)), statement
    assert (await closings.verify(past.books)).differences is None


async def test_columns_of_later_migrations_leave_closed_days_as_they_are_and_are_protected(past: Neighbours) -> None:
    await close(past)
    await past.books.execute("alter table metering.model_call add column later_units jsonb")
    assert (await closings.verify(past.books)).differences is None
    await past.books.execute("update metering.model_call set written_off = 1 where account = $1", A)
    assert (await closings.verify(past.books)).differences is None, "a success that comes too late is noted there"
    await past.books.execute("""update metering.model_call set later_units = '{"pieces": 1}' where account = $1""", C)
    found = (await closings.verify(past.books)).differences or []
    assert [(each.check, each.account) for each in found] == [("closing_account", C)]


async def test_a_row_that_is_put_back_makes_its_closed_day_whole_again(past: Neighbours) -> None:
    await close(past)
    row = await past.books.fetchrow("delete from metering.ledger where account = $1 returning *", C)
    assert row is not None
    assert (await compared(past, "closings")).differences == 1
    found = {each.check: each for each in (await compared(past, "all")).page}
    wanted = r.ReconcileRepair(difference_id=found["ledger_missing"].id)
    await past.ask(r.RECONCILE_REPAIR, wanted, r.ReconcileRepaired)
    assert await past.books.fetchrow("select * from metering.ledger where account = $1", C) == row
    assert (await compared(past, "closings")).page == ()


async def test_a_row_that_was_missing_when_its_day_was_closed_is_booked_today(past: Neighbours) -> None:
    row = await past.books.fetchrow("delete from metering.ledger where account = $1 returning *", C)
    assert row is not None
    await close(past)
    found = {each.check: each for each in (await compared(past, "all")).page}
    wanted = r.ReconcileRepair(difference_id=found["ledger_missing"].id)
    await past.ask(r.RECONCILE_REPAIR, wanted, r.ReconcileRepaired)
    booked = await past.books.fetchrow("select * from metering.ledger where account = $1", C)
    assert booked is not None
    assert (booked["call_id"], booked["acct_seq"], booked["amount"]) == (row["call_id"], 1, row["amount"])
    assert booked["at"].date() == datetime.now(UTC).date()
    assert (await compared(past, "closings")).page == ()
    assert {each.check for each in (await compared(past, "recent")).page} == set()


def test_a_days_digest_depends_on_each_account_and_not_on_their_order() -> None:
    one = closings.AccountDay("did:ä", 1, Decimal("0.1"), bytes(range(32)))
    two = closings.AccountDay('did:"\n', 2, Decimal(0), bytes(32))
    whole = closings.day_digest([one, two])
    assert whole == closings.day_digest([two, one])
    assert whole.hex() == "cae342f9c9b89c2bc63f8b909c4afebb8b6d39676cf97b6fbec84e70e90a7f62"
    for other in (
        [one],
        [two, closings.AccountDay("did:ä", 1, Decimal("0.2"), one.digest)],
        [two, closings.AccountDay("did:ä", 2, Decimal("0.1"), one.digest)],
        [two, closings.AccountDay("did:a", 1, Decimal("0.1"), one.digest)],
    ):
        assert closings.day_digest(other) != whole
    assert closings.chained(bytes(32), date(2026, 1, 1), whole) != closings.chained(bytes(32), date(2026, 1, 2), whole)


# ---- priced again ----------------------------------------------------------------------------------------------------


def _period(days: int, **other: object) -> r.Recompute:
    since, until = days_ago(days).date(), days_ago(days - 1).date()
    values = {"since": f"{since}T00:00:00Z", "until": f"{until}T00:00:00Z", **other}
    return r.Recompute.model_validate(values)


async def recomputed(hub: Neighbours, wanted: r.Recompute) -> list[r.RecomputePage]:
    pages: list[r.RecomputePage] = []
    while not pages or wanted.after is not None:
        pages.append(await hub.ask(r.RECOMPUTE, wanted, r.RecomputePage))
        wanted = wanted.model_copy(update={"after": pages[-1].next_after})
    return pages


async def test_a_period_that_nobody_touched_comes_to_what_was_charged(past: Neighbours) -> None:
    pages = await recomputed(past, _period(2, limit=3))
    assert [page.calls for page in pages] == [3, 3, 1]
    assert sum(Decimal(page.charged) for page in pages) == sum(Decimal(page.priced) for page in pages) == Decimal("1.4")
    assert [page.differences for page in pages] == [(), (), ()]
    (of_one,) = await recomputed(past, _period(2, account=C))
    assert (of_one.calls, of_one.priced) == (1, "0.2000000000")


async def test_a_wrong_charge_is_told_in_a_dry_run_and_adjusted_once(past: Neighbours) -> None:
    """As when rates were frozen wrongly: call, ledger and account agree, only not with usage by rates."""
    call_id = await past.books.fetchval("select call_id from metering.ledger where account = $1", C)
    await past.books.execute("update metering.model_call set credits = 0.5 where id = $1", call_id)
    await past.books.execute("update metering.ledger set amount = 0.5 where call_id = $1", call_id)
    await past.books.execute("update metering.account set spent = 0.5 where id = $1", C)
    await past.books.execute("select metering.credit_advance($1, now())", C)

    (dry,) = await recomputed(past, _period(2))
    (difference,) = dry.differences
    assert (difference.call_id, difference.account) == (str(call_id), C)
    assert (difference.charged, difference.priced, difference.applied) == ("0.5000000000", "0.2000000000", False)
    assert await past.books.fetchval("select count(*) from metering.adjustment") == 0

    (applied,) = await recomputed(past, _period(2, apply=True, applied_by="tester"))
    assert [each.applied for each in applied.differences] == [True]
    assert (await past.account(C))["spent"] == Decimal("0.2")
    (row,) = await past.books.fetch("select * from metering.adjustment")
    assert (row["target"], row["amount"], row["made_by"]) == ("charge", Decimal("-0.3"), "tester")
    (again,) = await recomputed(past, _period(2, apply=True))
    assert (again.differences, again.charged) == ((), "1.4000000000")
    found = {each.check for each in (await compared(past, "all")).page}
    assert not found & {"charge", "spent", "ledger_amount", "grants"}
    await past.open_account(C, "1")
    assert await past.books.fetch("select * from metering.credit_differences($1)", C) == []
    asked = credit.TransactionsList(account=C)
    page = await past.ask(credit.TRANSACTIONS, asked, credit.TransactionsPage)
    told = [(one.kind, one.amount, one.balance) for one in page.transactions[:2]]
    assert told == [("granted", 1, Decimal("1000.8")), ("adjusted", Decimal("0.3"), Decimal("999.8"))]
    assert page.transactions[1].call_id == str(call_id)
    assert page.transactions[1].reason == "recomputed"
    month = f"{datetime.now(UTC):%Y-%m}"
    statement = await past.ask(credit.STATEMENT, credit.StatementGet(account=C, month=month), credit.Statement)
    assert (statement.difference, statement.adjusted) == (0, Decimal("0.3"))
    refund = credit.RefundCall(refund_id=str(uuid4()), call_id=str(call_id), amount=Decimal("0.21"))
    with pytest.raises(HubError, match="no more than it cost"):
        await past.ask(credit.REFUND_CALL, refund, credit.CreditChanged)


async def test_a_charge_is_not_lowered_below_what_was_refunded(past: Neighbours) -> None:
    call_id = await past.books.fetchval("select call_id from metering.ledger where account = $1", C)
    refund = credit.RefundCall(refund_id=str(uuid4()), call_id=str(call_id))
    await past.ask(credit.REFUND_CALL, refund, credit.CreditChanged)
    await past.books.execute(
        "update metering.model_call set rates = replace(rates::text, '0.002', '0.001')::jsonb where id = $1", call_id
    )
    (page,) = await recomputed(past, _period(2, apply=True))
    (difference,) = page.differences
    assert (difference.priced, difference.applied) == ("0.1500000000", False)
    assert "refunded" in difference.note
    assert await past.books.fetchval("select count(*) from metering.adjustment") == 0


async def test_an_adjustment_that_the_grants_do_not_cover_is_told_and_not_made(past: Neighbours) -> None:
    call_id = await past.books.fetchval("select call_id from metering.ledger where account = $1", C)
    await past.books.execute("update metering.model_call set credits = 0 where id = $1", call_id)
    await past.books.execute("update metering.ledger set amount = 0 where call_id = $1", call_id)
    await past.books.execute("update metering.account set spent = 0, granted = 0.1 where id = $1", C)
    (page,) = await recomputed(past, _period(2, apply=True))
    (difference,) = page.differences
    assert not difference.applied
    assert "grant credits first" in difference.note
    assert (await past.account(C))["spent"] == 0
    assert await past.books.fetchval("select count(*) from metering.adjustment") == 0


NO_PERIODS = [
    ("2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z", "until"),
    ("yesterday", "2026-01-01T00:00:00Z", "since"),
    ("2026-01-01T00:00:00", "2026-01-02T00:00:00Z", "since"),
    ("2026-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "until"),
    ("0001-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "since"),
]


async def test_a_period_that_is_none_is_refused(database: Database) -> None:
    for since, until_, param in NO_PERIODS:
        with pytest.raises(HubError) as refused:
            await recompute.recompute(database.dsns["metering"], r.Recompute(since=since, until=until_))
        assert (refused.value.code, refused.value.param) == (ErrorCode.INVALID_REQUEST, param)


async def test_a_providers_day_is_summed_by_its_own_model_names(hub: Neighbours) -> None:
    await hub.open_account(A, "1000")
    calls = [call(A) for _ in range(3)]
    other = CANDIDATE.__class__("demo", "echo-2", Rates(input="0.001"), "r2")
    await settled(
        hub, calls, hub.completed(calls[0], usage=Usage(10, 20, 3, 4, 5)), hub.completed(calls[1]),
        hub.completed(calls[2], candidate=other, usage=Usage(1)),
    )  # fmt: skip
    lost = call(A)
    await hub.reserve_batch(lost)
    await hub.publish(hub.failed(lost, candidate=CANDIDATE, usage=Usage(input_tokens=7)))
    await hub.until_settled(lost)
    today = await hub.books.fetchval("select (now() at time zone 'UTC')::date::text")
    reply = await hub.ask(r.PROVIDER_SUMS, r.ProviderSums(provider="demo", day=today), r.ProviderSumsReply)
    first, second = reply.sums
    assert (first.model, first.requests) == ("echo", 3)
    assert (first.input_tokens, first.cached_tokens, first.output_tokens) == (17 + 100 + 7, 3, 25 + 50)
    assert text(first.written_off) == "0.0070000000"
    assert (second.model, second.requests, second.input_tokens) == ("echo-2", 1, 1)
    nobody = r.ProviderSums(provider="nobody", day=today)
    assert (await hub.ask(r.PROVIDER_SUMS, nobody, r.ProviderSumsReply)).sums == ()


async def test_partitions_hold_an_index_by_time_too(books: "asyncpg.Connection[asyncpg.Record]") -> None:
    found = await books.fetchval(
        "select count(*) from pg_indexes where schemaname = 'metering' and tablename like 'ledger_%' and indexdef like"
        " '%USING brin%'"
    )
    parts = await books.fetchval(
        "select count(*) from pg_tables where schemaname = 'metering' and tablename like 'ledger_%'"
    )
    assert found == parts
