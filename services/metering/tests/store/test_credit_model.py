"""The ledger's SQL against a small model that pays every charge at once, while the SQL decides later who paid."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from neighbours import call
from rig.fixtures import Database

from contracts import subjects
from contracts.events import CallCompleted, CallFailed
from contracts.rpc import credit
from contracts.rpc.metering import ReserveBatch, ReserveCall
from contracts.subjects import CallKind
from contracts.usage import Candidate, Rates, Usage
from metering import events, reserve
from metering.ledger import statements, views
from metering.reconcile import adjustments
from metering.sql.store import QUERY_SETTINGS, TurnStore
from runtime import postgres
from runtime.postgres import Pool

BEGIN = datetime(2031, 1, 1, tzinfo=UTC)
CENT = Decimal("0.01")
PRICED = Candidate("demo", "echo", Rates(input="0.01", output="0"), "r1")
_accounts = count(1)


@dataclass
class Lot:
    """A grant as the model has it."""

    id: UUID
    priority: int
    starts: datetime
    ends: datetime | None
    made: datetime
    rest: Decimal
    state: str = "waiting"
    paid: Decimal = Decimal(0)
    """For charges, less what came back."""


@dataclass
class Model:
    """Every charge is paid at once, from the first open grant that has something left."""

    lots: list[Lot] = field(default_factory=list)
    granted: Decimal = Decimal(0)
    spent: Decimal = Decimal(0)
    held: Decimal = Decimal(0)
    paid: list[Lot] = field(default_factory=list)
    """Grants that paid charges, who paid last at the end."""

    @property
    def free(self) -> Decimal:
        return self.granted - self.spent - self.held

    def open_lots(self) -> list[Lot]:
        never = datetime.max.replace(tzinfo=UTC)
        ordered = [lot for lot in self.lots if lot.state in {"active", "lapsed"}]
        return sorted(ordered, key=lambda lot: (lot.state == "lapsed", lot.priority, lot.ends or never, lot.made))

    def pay(self, amount: Decimal, *, charge: bool) -> None:
        for lot in self.open_lots():
            part = min(lot.rest, amount)
            if charge and part:
                lot.paid += part
                self.paid = [*(other for other in self.paid if other is not lot), lot]
            lot.rest -= part
            amount -= part
            if lot.rest == 0:
                lot.state = "closed"
        assert amount == 0, "the grants did not suffice"

    def give_back(self, amount: Decimal, now: datetime) -> None:
        for lot in reversed(self.paid):
            part = min(lot.paid, amount)
            lot.paid -= part
            lot.rest += part
            amount -= part
            if part:
                lot.state = "lapsed" if lot.ends and lot.ends <= now else "active"
        assert amount == 0, "more came back than was paid"

    def advance(self, now: datetime) -> None:
        for lot in self.lots:
            if lot.state == "waiting" and lot.starts <= now:
                lot.state = "active"
                self.granted += lot.rest
        ending = [lot for lot in self.lots if lot.state in {"active", "lapsed"} and lot.ends and lot.ends <= now]
        for lot in sorted(ending, key=lambda lot: (lot.ends or now, lot.made)):
            self.end(lot, min(lot.rest, self.free))

    def end(self, lot: Lot, part: Decimal) -> None:
        lot.rest -= part
        self.granted -= part
        lot.state = "lapsed" if lot.rest else "closed"


@dataclass
class Books:
    """One account, driven through the real functions; `now` is the model's clock."""

    pool: Pool
    store: TurnStore
    account: str
    model: Model = field(default_factory=Model)
    now: datetime = BEGIN
    running: list[ReserveCall] = field(default_factory=list)
    charged: dict[str, Decimal] = field(default_factory=dict)
    refunded: dict[str, Decimal] = field(default_factory=dict)
    adjusted: dict[str, Decimal] = field(default_factory=dict)

    async def value(self, sql: str, *values: object) -> Any:
        return await self.pool.fetchval(sql, *values)

    # ---- what can happen --------------------------------------------------------------------------------------------

    async def give(self, amount: Decimal, priority: int, starts_in: int | None, lasts: int | None) -> None:
        starts = None if starts_in is None else self.now + timedelta(seconds=starts_in)
        ends = None if lasts is None else (starts or self.now) + timedelta(seconds=lasts)
        lot = Lot(uuid4(), priority, starts or self.now, ends, self.now, amount)
        word = await self.value(
            "select metering.credit_give($1, $2, $3, 'top_up', '', '', '', $4, $5, $6, null, $7)",
            lot.id, self.account, amount, priority, starts, ends, self.now,
        )  # fmt: skip
        assert word == "done"
        self.model.advance(self.now)
        self.model.lots.append(lot)
        self.model.advance(self.now)

    async def hold(self, amount: Decimal) -> None:
        wanted = call(self.account, str(amount), candidates=(PRICED,))
        _, asked = reserve.read(msgspec.json.encode(ReserveBatch((wanted,))), b"", 0.0)
        result = await self.store.turn((), asked)
        fits = amount <= self.model.free
        assert [refusal.status for refusal in result.refused] == ([] if fits else ["not_enough"])
        if fits:
            self.model.held += amount
            self.running.append(wanted)

    async def settle(self, pick: int, cents: int) -> None:
        if not self.running:
            return
        done = self.running.pop(pick % len(self.running))
        fact = CallCompleted(
            done.call_id, 1, self.account, "chat", "stop", PRICED, Usage(input_tokens=cents), (), 1, 1, ""
        )
        await self.store.turn([_arrival(subjects.calls_completed(CallKind.CHAT), fact)], ())
        hold = Decimal(done.hold)
        charge = min(cents * CENT, hold)
        self.model.held -= hold
        self.model.spent += charge
        self.model.pay(charge, charge=True)
        self.charged[done.call_id] = charge

    async def fail(self, pick: int) -> None:
        if not self.running:
            return
        done = self.running.pop(pick % len(self.running))
        fact = CallFailed(done.call_id, 1, self.account, "chat", "upstream_broken", "", "")
        await self.store.turn([_arrival(subjects.calls_failed(CallKind.CHAT), fact)], ())
        self.model.held -= Decimal(done.hold)
        self.charged[done.call_id] = Decimal(0)

    async def reduce(self, amount: Decimal) -> None:
        word = await self.value(
            "select metering.credit_reduce($1, $2, $3, '', '', $4)", uuid4(), self.account, amount, self.now
        )
        self.model.advance(self.now)
        assert word == ("done" if amount <= self.model.free else "not_enough")
        if word == "done":
            self.model.pay(amount, charge=False)
            self.model.granted -= amount

    async def end(self, pick: int, what: str, amount: Decimal | None) -> None:
        if not self.model.lots:
            return
        lot = self.model.lots[pick % len(self.model.lots)]
        word = await self.value(
            "select metering.credit_end($1, $2, $3, $4, '', '', $5)", uuid4(), lot.id, what, amount, self.now
        )
        self.model.advance(self.now)
        free = min(lot.rest, self.model.free)
        if lot.state == "closed" or (what == "withdrawn" and lot.state != "waiting" and free == 0):
            assert word == "nothing"
        elif lot.state == "waiting":
            assert word == ("done" if amount in {None, lot.rest} else "waiting")
            if word == "done":
                lot.state, lot.rest = "closed", Decimal(0)
        elif what == "withdrawn":
            assert word == ("done" if amount is None or amount <= free else "not_enough")
            if word == "done":
                state = lot.state
                self.model.end(lot, free if amount is None else amount)
                lot.state = state if lot.rest else "closed"
        else:
            assert word == "done"
            lot.ends = self.now
            self.model.end(lot, free)

    async def refund(self, pick: int, amount: Decimal | None) -> None:
        if not self.charged:
            return
        call_id = list(self.charged)[pick % len(self.charged)]
        rest = self.charged[call_id] + self.adjusted.get(call_id, Decimal(0)) - self.refunded.get(call_id, Decimal(0))
        given = uuid4()
        word = await self.value(
            "select metering.credit_refund($1, $2, $3, null, '', '', $4)", given, call_id, amount, self.now
        )
        if rest == 0:
            assert word == "nothing"
        elif amount is not None and amount > rest:
            assert word == "too_much"
        else:
            assert word == "done"
            back = rest if amount is None else amount
            self.model.advance(self.now)
            self.model.lots.append(Lot(given, 50, self.now, None, self.now, back, "active"))
            self.model.granted += back
            self.model.advance(self.now)  # what came in may cover a call that held an ended grant
            self.refunded[call_id] = self.refunded.get(call_id, Decimal(0)) + back

    async def reprice(self, pick: int, cents: int) -> None:
        """As `hub recompute --apply` does it when a call comes to another charge."""
        calls = [call_id for call_id, charge in self.charged.items() if charge]
        if not calls:
            return
        call_id = calls[pick % len(calls)]
        before = self.charged[call_id] + self.adjusted.get(call_id, Decimal(0))
        amount = max(cents * CENT, self.refunded.get(call_id, Decimal(0))) - before
        if not amount:
            return
        await self.wait(0)
        try:
            async with self.pool.acquire() as connection, connection.transaction():
                await connection.execute(adjustments._ADJUST, self.account, call_id, "charge", amount, "", "", "")
                await connection.execute("select metering.credit_charge($1, $2, $3)", self.account, amount, self.now)
        except asyncpg.CheckViolationError:
            assert amount > self.model.free
            return
        assert amount <= self.model.free
        self.adjusted[call_id] = self.adjusted.get(call_id, Decimal(0)) + amount
        self.model.spent += amount
        if amount > 0:
            self.model.pay(amount, charge=True)
        else:
            self.model.give_back(-amount, self.now)
        self.model.advance(self.now)

    async def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        await self.pool.fetchrow("select * from metering.credit_advance($1, $2)", self.account, self.now)
        self.model.advance(self.now)

    # ---- what must hold ---------------------------------------------------------------------------------------------

    async def check(self) -> None:
        row = await self.pool.fetchrow("select * from metering.account where id = $1", self.account)
        model = self.model
        if row is not None:
            assert (row["granted"], row["spent"], row["held"]) == (model.granted, model.spent, model.held)
        assert await self.pool.fetch("select * from metering.credit_differences($1)", self.account) == []
        open_rest = sum((lot.rest for lot in model.open_lots()), Decimal(0))
        assert open_rest == model.granted - model.spent >= model.held >= 0

    async def check_views(self) -> None:
        page = await views.grants(self.pool, credit.GrantsList(account=self.account, page_size=100))
        assert {grant.grant_id: grant.remaining for grant in page.grants} == {
            str(lot.id): lot.rest for lot in self.model.lots
        }
        seen: list[credit.Transaction] = []
        for number in count(1):
            asked = credit.TransactionsList(account=self.account, page=number, page_size=7)
            found = await views.transactions(self.pool, asked)
            seen += found.transactions
            if not found.transactions:
                assert len(seen) == found.count
                break
        balance = self.model.granted - self.model.spent
        for one in seen:
            assert one.balance == balance
            balance -= one.amount
        assert balance == 0
        charged = sum(one.amount for one in seen if one.kind == "charged")
        assert charged == sum(self.adjusted.values()) - self.model.spent
        repriced = [one for one in seen if one.kind == "adjusted" and one.call_id in self.adjusted]
        assert -sum(one.amount for one in repriced) == sum(self.adjusted.values())
        for month in {f"{BEGIN:%Y-%m}", f"{datetime.now(UTC):%Y-%m}"}:
            told = await statements.statement(self.pool, credit.StatementGet(account=self.account, month=month))
            assert told.difference == 0


def _arrival(subject: str, fact: CallCompleted | CallFailed) -> events.Arrival:
    payload = msgspec.json.encode(fact)
    return events.Arrival(events.read(subject, payload), subject, b"", payload)


amounts = st.integers(1, 500).map(lambda cents: cents * CENT)
picks = st.integers(0, 50)
operations = st.one_of(
    st.tuples(
        st.just("give"), amounts, st.sampled_from([10, 50, 50, 90]), st.sampled_from([None, None, 3, 9]),
        st.sampled_from([None, 2, 5, 20]),
    ),
    st.tuples(st.just("hold"), amounts),
    st.tuples(st.just("hold"), amounts),
    st.tuples(st.just("settle"), picks, st.integers(0, 600)),
    st.tuples(st.just("settle"), picks, st.integers(0, 600)),
    st.tuples(st.just("fail"), picks),
    st.tuples(st.just("reduce"), amounts),
    st.tuples(st.just("end"), picks, st.sampled_from(["withdrawn", "expired"]), st.none()),
    st.tuples(st.just("end"), picks, st.just("withdrawn"), amounts),
    st.tuples(st.just("refund"), picks, st.one_of(st.none(), amounts)),
    st.tuples(st.just("reprice"), picks, st.integers(0, 600)),
    st.tuples(st.just("wait"), st.integers(1, 8)),
)  # fmt: skip


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    pool = await postgres.pool(database.dsns["metering"], name="test", size=2, server_settings=QUERY_SETTINGS)
    yield pool
    pool.terminate()


@pytest.fixture
async def store(database: Database) -> AsyncIterator[TurnStore]:
    store = TurnStore(database.dsns["metering"], timedelta(seconds=30), timedelta(days=1))
    yield store
    store.discard()


@settings(
    max_examples=80, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(steps=st.lists(operations, min_size=8, max_size=24))
async def test_grants_pay_in_their_order_whatever_happens(
    pool: Pool, store: TurnStore, steps: list[tuple[Any, ...]]
) -> None:
    """Σ entries - Σ charges = granted - spent, nothing below 0, and each grant has what the model says."""
    books = Books(pool, store, f"did:model:{next(_accounts)}")
    for name, *arguments in [("give", Decimal(5), 50, None, 9), *steps]:
        books.now += timedelta(milliseconds=50)
        await getattr(books, name)(*arguments)
        await books.check()
    await books.check_views()


async def test_a_grant_that_ends_while_it_is_held_gives_up_only_what_is_free(pool: Pool, store: TurnStore) -> None:
    books = Books(pool, store, "did:held")
    await books.give(Decimal(10), 50, None, 5)
    await books.hold(Decimal(4))
    await books.wait(6)
    assert (books.model.granted, books.model.free) == (4, 0)
    await books.check()
    await books.settle(0, 150)
    await books.check()
    await books.wait(2)
    assert (books.model.granted, books.model.spent) == (Decimal("1.5"), Decimal("1.5"))
    await books.check()
    await books.check_views()


async def test_a_charge_that_comes_to_less_goes_back_to_the_grants_that_paid_last(pool: Pool, store: TurnStore) -> None:
    books = Books(pool, store, "did:less")
    await books.give(Decimal(2), 10, None, 5)
    await books.give(Decimal(4), 50, None, None)
    await books.hold(Decimal(5))
    await books.settle(0, 500)
    await books.wait(6)  # the first grant has paid 2 and is over, the second has paid 3
    await books.reprice(0, 100)
    await books.check()
    ended, left = books.model.lots
    assert (left.rest, ended.rest, ended.state) == (4, 0, "closed"), "what comes back to a grant that is over ends"
    assert (books.model.granted, books.model.spent) == (5, 1)
    await books.reduce(Decimal(4))
    await books.check()
    draws = await pool.fetch("select amount from metering.credit_draw where account = $1 order by number", "did:less")
    assert [row["amount"] for row in draws] == [2, 3, -3, -1, 4], "rows are added, none is changed"
    await books.check_views()


async def test_low_priority_numbers_pay_first_then_those_that_end_sooner_then_the_older(
    pool: Pool, store: TurnStore
) -> None:
    books = Books(pool, store, "did:order")
    for priority, lasts in ((50, None), (50, 900), (50, 300), (10, None), (50, None)):
        await books.give(Decimal(1), priority, None, lasts)
        books.now += timedelta(seconds=1)
    order = []
    for _ in range(5):
        await books.hold(Decimal(1))
        await books.settle(0, 100)
        page = await views.grants(pool, credit.GrantsList(account=books.account))
        order.append([number for number, grant in enumerate(reversed(page.grants)) if grant.status == "depleted"])
    assert order == [[3], [2, 3], [1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3, 4]]


async def test_what_was_in_the_books_before_is_explained_by_entries(infra: Any, database: Database) -> None:
    """The migration on books that an earlier release has kept."""
    from runtime.migrations import apply, found  # noqa: PLC0415 - only here

    admin = await asyncpg.connect(database.admin_dsn)
    try:
        await admin.execute("drop schema metering cascade; delete from public.hub_migration where schema = 'metering'")
        files = found("metering", "metering")
        await apply(admin, [file for file in files if file.name < "0004"])
        await admin.execute(
            """
            insert into metering.account (id, granted, spent, seq) values ('did:a', 30, 4, 2), ('did:b', 7, 0, 0),
                ('did:none', 0, 0, 0);
            insert into metering.credit_grant (id, account, amount, category, created_at) values
                (gen_random_uuid(), 'did:a', 10, 'welcome', now() - interval '3 days'),
                (gen_random_uuid(), 'did:a', 20, 'top_up', now() - interval '1 day');
            insert into metering.ledger (call_id, account, acct_seq, amount, at) values
                (gen_random_uuid(), 'did:a', 1, 3, now() - interval '2 days'),
                (gen_random_uuid(), 'did:a', 2, 1, now());
            """
        )
        await apply(admin, files)
        assert await admin.fetch("select * from metering.credit_differences() where what <> 'left of grants'") == []
        assert [tuple(row) for row in await admin.fetch(
            "select account, number, kind, amount, granted, spent from metering.credit_entry order by account, number"
        )] == [
            ("did:a", 1, "granted", 10, 10, 0), ("did:a", 2, "granted", 20, 30, 3), ("did:b", 1, "adjusted", 7, 7, 0),
        ]  # fmt: skip
        await admin.execute("select metering.credit_advance(id, now()) from metering.account")
        assert await admin.fetch("select * from metering.credit_differences()") == []
        assert await admin.fetchval("select sum(rest) from metering.credit_lot where account = 'did:a'") == 26
    finally:
        await admin.close()
