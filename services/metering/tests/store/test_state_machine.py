"""Random histories on the real SQL, over two connections, held against a reference model after each step.

`STATE_MACHINE_EXAMPLES` says how many histories of fifty steps; `make state-machine` runs five thousand. With
`STATE_MACHINE_SHRINK=no` a failure is reported as it was found.
"""

import asyncio
import os
import uuid
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import ROUND_DOWN, Decimal
from typing import Any, ClassVar, Final, TypeVar

import asyncpg
import msgspec
import pytest
from books_model import Account, Books, Fact, Reserve, Said
from faults.invariants import AUDIT
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from neighbours import CANDIDATE
from neighbours import call as reserve_call
from rig.fixtures import Database

from contracts import subjects
from contracts.events import Attempt, CallCompleted, CallFailed
from contracts.ids import new_call_id
from contracts.rpc.metering import ExtendHold, Grant, RenewLeases, ReserveBatch
from contracts.rpc.model_calls import StaleCalls
from contracts.subjects import CallKind
from contracts.usage import Usage
from metering.events import Arrival
from metering.events import read as read_fact
from metering.leases import Leases
from metering.ledger import changes
from metering.reserve import Asked
from metering.reserve import read as read_reserves
from metering.sql.store import TurnResult, TurnStore, query_pool
from runtime.postgres import Pool

EXAMPLES: Final = int(os.environ.get("STATE_MACHINE_EXAMPLES", "25"))
STEPS: Final = 50
PHASES: Final = (Phase.generate,) if os.environ.get("STATE_MACHINE_SHRINK") == "no" else (Phase.generate, Phase.shrink)
ENCODE: Final = msgspec.json.Encoder().encode
HOUR: Final = timedelta(hours=1)
CREDIT: Final = Decimal("1E-10")
A = TypeVar("A")

_ROWS: Final = """
select
    (select json_agg(json_build_array(a.id, a.granted::text, a.held::text, a.spent::text, a.seq, coalesce(s.seq, 0)))
     from metering.account a left join metering.usage_sent s on s.account = a.id where a.id = any ($1)),
    (select json_agg(json_build_array(c.id, c.account, c.state, c.epoch, c.hold::text, c.credits::text,
        c.overrun::text, c.written_off::text, c.lease_until < now()))
     from metering.model_call c where c.account = any ($1)),
    (select json_agg(json_build_array(l.account, l.acct_seq, l.call_id, l.amount::text) order by l.account, l.acct_seq)
     from metering.ledger l where l.account = any ($1)),
    (select json_agg(json_build_array(l.call_id, l.epoch)) from metering.late_completion l
     where l.call_id in (select c.id from metering.model_call c where c.account = any ($1))),
    (select json_agg(json_build_array(u.account, u.held::text, u.open_holds::text))
     from audit.unbalanced u where u.account = any ($1)),
    (select count(*) - count(distinct e.call_id) from audit.ended e
     where e.call_id in (select c.id from metering.model_call c where c.account = any ($1)))
"""

amounts = st.one_of(
    st.sampled_from([Decimal(0), CREDIT, Decimal(1), Decimal("7.5"), Decimal(10)]),
    st.decimals(0, 12, places=10, allow_nan=False, allow_infinity=False),
)
tokens = st.one_of(st.none(), st.tuples(st.integers(0, 6000), st.integers(0, 6000)))
names = st.integers(0, 2)
picks = st.integers(0, 1000)
new_reserve = st.tuples(st.just("reserve"), names, amounts)
"""A call that nobody knows."""
again = st.tuples(st.just("again"), picks, amounts)
"""A reserve whose reply was lost."""
outcome = st.tuples(st.sampled_from(["success", "failed"]), picks, tokens)
"""Of a call that was reserved once, open or not: a first word, a duplicate, a late one."""
strange = st.tuples(st.sampled_from(["other epoch", "other account", "unknown call"]), picks, tokens)
works = st.lists(st.one_of(new_reserve, new_reserve, again, outcome, outcome, strange), min_size=1, max_size=5)


@dataclass(frozen=True)
class Work:
    """One turn's worth."""

    facts: tuple[Fact, ...]
    asked: tuple[Reserve, ...]


@dataclass(frozen=True)
class Rig:
    """What all histories share: a database, two processes' connections, and the operator's view."""

    loop: asyncio.AbstractEventLoop
    stores: tuple[TurnStore, TurnStore]
    pool: Pool
    books: "asyncpg.Connection[asyncpg.Record]"
    leases: Leases
    scanner: Leases
    """With a lease so far below zero that calls made just now are listed."""

    def run(self, work: Coroutine[Any, Any, A]) -> A:
        return self.loop.run_until_complete(work)


class Histories(RuleBasedStateMachine):
    """Three accounts of its own per history; the third is never opened by anybody but a free call or a grant.

    Preconditions ask only what was drawn: which of two turns at once came first differs from run to run.
    """

    rig: ClassVar[Rig]

    def __init__(self) -> None:
        super().__init__()
        run = uuid.uuid4().hex
        self.accounts = [f"{run}:{name}" for name in "abc"]
        self.known: list[str] = []
        """Calls that somebody asked a reserve for, admitted or not."""
        self.payer: dict[str, str] = {}
        self.charged_for: dict[str, set[Decimal]] = {}
        """Costs of the successes that were ever said of a call."""
        self.books = Books()
        for account in self.accounts[:2]:
            self._grant(account, Decimal(20), str(uuid.uuid4()))
            self.books.granted(account, Decimal(20))

    # ---- steps ------------------------------------------------------------------------------------------------------

    @rule(work=works, process=st.integers(0, 1))
    def a_turn(self, work: list[Any], process: int) -> None:
        self._apply(self._work(work), process)

    @rule(work=works, process=st.integers(0, 1))
    def a_turn_that_is_rolled_back_and_comes_again(self, work: list[Any], process: int) -> None:
        chosen = self._work(work)
        self.rig.run(self._rolled_back(chosen, process))
        self._compare()
        self._apply(chosen, 1 - process)

    @rule(work=works, process=st.integers(0, 1))
    def a_turn_whose_answer_is_lost_and_comes_again(self, work: list[Any], process: int) -> None:
        chosen = self._work(work)
        self._apply(chosen, process)
        self._apply(chosen, 1 - process)

    @rule(first=works, second=works, shared=st.booleans())
    def two_turns_at_once(self, first: list[Any], second: list[Any], shared: bool) -> None:
        """On the same accounts and calls; each order of the two is right, a mixture is not."""
        one = self._work(first)
        two = one if shared else self._work(second)
        said = self.rig.run(self._both(one, two))
        orders = []
        for order in ((0, 1), (1, 0)):
            books = self.books
            answers: list[Any] = [[], []]
            for place in order:
                books, answers[place] = books.turned((one, two)[place].facts, (one, two)[place].asked)
            orders.append((books, answers))
        fitting = [books for books, answers in orders if answers == said]
        assert fitting, f"neither order: {said}, {[answers for _, answers in orders]}"
        self.books = fitting[0]
        if len(fitting) > 1 and fitting[0] != fitting[1]:  # alike in what they say, not in what they write off
            self._compare_either(fitting[1])

    @rule(name=st.integers(0, 1), parts=st.integers(1, 4), more=st.integers(0, 2), process=st.integers(0, 1))
    def more_calls_at_once_than_there_is_credit_for(self, name: int, parts: int, more: int, process: int) -> None:
        """Each takes its part of all that is free, to the last decimal."""
        free = self.books.accounts[self.accounts[name]].free
        hold = (free / parts).quantize(CREDIT, ROUND_DOWN)
        self._apply(self._work([("reserve", name, hold)] * (parts + more)), process)

    @precondition(lambda self: self.known)
    @rule(pick=picks, amount=amounts, epoch=st.sampled_from([1, 1, 1, 2]))
    def extend(self, pick: int, amount: Decimal, epoch: int) -> None:
        call_id = self._picked(pick)
        account = self.payer[call_id]
        request = ENCODE(ExtendHold(call_id, epoch, account, f"{amount:f}"))
        reply = self.rig.run(self.rig.leases.extend(request))
        expected = self.books.extended(call_id, epoch, account, amount)
        assert ("granted" if reply.granted else reply.reason) == expected

    @precondition(lambda self: self.known)
    @rule(chosen=st.lists(picks, min_size=1, max_size=4), epoch=st.sampled_from([1, 1, 2]))
    def renew(self, chosen: list[int], epoch: int) -> None:
        calls = list(dict.fromkeys(self._picked(pick) for pick in chosen))
        reply = self.rig.run(self.rig.leases.renew(ENCODE(RenewLeases("r", tuple((call, epoch) for call in calls)))))
        found = [self.books.calls.get(call_id) for call_id in calls]
        mine = [call for call in found if call is not None and (call.state, call.epoch) == ("processing", epoch)]
        assert reply.renewed == len(mine)
        assert len(reply.ended) == len(calls) - len(mine)
        for call in mine:
            call.is_stale = False

    @precondition(lambda self: self.known)
    @rule(pick=picks)
    def a_lease_ends(self, pick: int) -> None:
        calls = self.books.open_calls()
        if not calls:
            return
        call_id = calls[pick % len(calls)]
        sql = "update metering.model_call set lease_until = now() - interval '1 second' where id = $1"
        self.rig.run(self.rig.books.execute(sql, call_id))
        self.books.calls[call_id].is_stale = True

    @precondition(lambda self: self.known)
    @rule(pick=picks)
    def another_owner_takes_a_call_over(self, pick: int) -> None:
        stale = [call_id for call_id in self.books.open_calls() if self.books.calls[call_id].is_stale]
        if not stale:
            return
        call_id = stale[pick % len(stale)]
        sql = "update metering.model_call set epoch = epoch + 1 where id = $1 and state = 'processing'"
        self.rig.run(self.rig.books.execute(sql, call_id))
        self.books.calls[call_id].epoch += 1

    @rule(process=st.integers(0, 1), most=st.integers(1, 5))
    def the_janitor_closes_what_is_stale(self, process: int, most: int) -> None:
        listed = self._stale()
        expected = {call_id: call.epoch for call_id, call in self.books.calls.items()
                    if call.state == "processing" and call.is_stale}  # fmt: skip
        assert listed == expected
        facts = [Fact(call_id, self.payer[call_id], epoch, False, None) for call_id, epoch in listed.items()]
        if facts:
            self._apply(Work(tuple(facts[:most]), ()), process)

    @rule(name=names, amount=amounts, times=st.integers(1, 2))
    def a_grant_however_often_it_is_sent(self, name: int, amount: Decimal, times: int) -> None:
        grant_id = str(uuid.uuid4())
        for _ in range(times):
            self._grant(self.accounts[name], amount, grant_id)
        self.books.granted(self.accounts[name], amount)

    @precondition(lambda self: self.known)
    @rule(pick=picks, length=st.integers(0, 4))
    def usage_events_are_acknowledged(self, pick: int, length: int) -> None:
        settled = [name for name, account in self.books.accounts.items() if account.seq]
        if not settled:
            return
        account = settled[pick % len(settled)]
        known = self.books.accounts[account]
        first = 1 + pick // 3 % known.seq
        last = min(first + length, known.seq)
        sql = "select account, seq from metering.forward_usage_sent($1, $2, $3)"
        rows = self.rig.run(self.rig.pool.fetch(sql, [account], [first], [last]))
        self.books.forwarded(account, first, last)
        assert [tuple(row) for row in rows] == [(account, known.sent)]

    # ---- what must hold after each ----------------------------------------------------------------------------------

    @invariant()
    def the_books_are_as_they_should_be(self) -> None:
        self._compare()

    def teardown(self) -> None:
        """The janitor closes what is left; then everything is at rest."""
        while open_calls := self.books.open_calls():
            facts = [Fact(one, self.payer[one], self.books.calls[one].epoch, False, None) for one in open_calls[:50]]
            self._apply(Work(tuple(facts), ()), 0)
        self._compare()
        assert all(account.held == 0 for account in self.books.accounts.values()), "I2: held at rest"

    def _compare(self) -> None:
        row = self.rig.run(self.rig.books.fetchrow(_ROWS, self.accounts))
        assert row is not None
        found, calls, ledger, late, unbalanced = ([] if part is None else msgspec.json.decode(part) for part in row[:5])
        assert unbalanced == [], f"I2: what was held was not the sum of open holds: {unbalanced}"
        assert row[5] == 0, "I1: a call ended twice"
        self._compare_accounts(found, calls, ledger)
        self._compare_calls(calls)
        self._compare_ledger(ledger)
        assert {(call_id, epoch) for call_id, epoch in late} == self.books.late

    def _compare_either(self, other: Books) -> None:
        try:
            self._compare()
        except AssertionError:
            self.books = other
            self._compare()

    def _compare_accounts(self, found: list[Any], calls: list[Any], ledger: list[Any]) -> None:
        assert len(found) == len(self.books.accounts)
        for name, *figures, seq, sent in found:
            granted, held, spent = map(Decimal, figures)
            assert Account(granted, held, spent, seq, sent) == self.books.accounts[name]
            mine = [call for call in calls if call[1] == name]
            booked = sum((Decimal(entry[3]) for entry in ledger if entry[0] == name), Decimal(0))
            assert spent == booked == sum((Decimal(call[5] or 0) for call in mine), Decimal(0)), "I3"
            assert held == sum((Decimal(call[4]) for call in mine if call[2] == "processing"), Decimal(0)), "I2"
            assert spent + held <= granted, "I7"
            assert sent <= seq, "I9"

    def _compare_calls(self, calls: list[Any]) -> None:
        assert {call[0] for call in calls} == set(self.books.calls)
        for call_id, account, state, epoch, *figures, is_stale in calls:
            expected = self.books.calls[call_id]
            hold, credits_, overrun, written_off = (None if text is None else Decimal(text) for text in figures)
            assert (account, state, epoch) == (expected.account, expected.state, expected.epoch)
            assert (hold, credits_, overrun, written_off) == (
                expected.hold, expected.credits, expected.overrun, expected.written_off,
            )  # fmt: skip
            assert hold is not None
            assert overrun is not None
            if credits_ is None:
                assert state == "processing"
                assert is_stale == expected.is_stale
                continue
            assert state != "processing"
            assert credits_ <= hold, "I8"
            assert state != "failed" or credits_ == 0, "I5"
            assert not credits_ or credits_ + overrun in self.charged_for[call_id], "I6: charged what nobody served"

    def _compare_ledger(self, ledger: list[Any]) -> None:
        expected = sorted(
            (call.account, call.sequence, call_id, call.credits)
            for call_id, call in self.books.calls.items()
            if call.credits is not None
        )
        assert [(account, seq, call_id, Decimal(amount)) for account, seq, call_id, amount in ledger] == expected
        for account in self.accounts:
            numbers = [seq for name, seq, _, _ in ledger if name == account]
            assert numbers == list(range(1, len(numbers) + 1)), "I9"

    # ---- hands ------------------------------------------------------------------------------------------------------

    def _picked(self, pick: int) -> str:
        return self.known[-1 - pick % len(self.known)]

    def _work(self, chosen: Sequence[tuple[str, int, Any]]) -> Work:
        """Facts and reserves of a turn; no two of either name the same call."""
        facts: dict[str, Fact] = {}
        asked: dict[str, Reserve] = {}
        for kind, number, value in chosen:
            if kind == "reserve":
                call_id = new_call_id()
                self.payer[call_id] = self.accounts[number]
                self.known.append(call_id)
                asked[call_id] = Reserve(call_id, self.accounts[number], value)
            elif kind == "unknown call":
                call_id = new_call_id()
                facts[call_id] = Fact(call_id, self.accounts[number % 3], 1, True, value or (1, 1))
            elif self.known:
                call_id = self._picked(number)
                if kind == "again":
                    asked.setdefault(call_id, Reserve(call_id, self.payer[call_id], value))
                else:
                    facts.setdefault(call_id, self._fact(kind, call_id, value))
        for fact in facts.values():
            if fact.success:
                self.charged_for.setdefault(fact.call_id, set()).add(fact.cost)
        return Work(tuple(facts.values()), tuple(asked.values()))

    def _fact(self, kind: str, call_id: str, used: tuple[int, int] | None) -> Fact:
        account, call = self.payer[call_id], self.books.calls.get(call_id)
        epoch = 1 if call is None else call.epoch
        if kind == "other epoch":
            return Fact(call_id, account, 3 - min(epoch, 2), True, used or (1, 1))
        if kind == "other account":
            others = [other for other in self.accounts if other != account]
            return Fact(call_id, others[0], epoch, True, used or (1, 1))
        return Fact(call_id, account, epoch, kind == "success", (used or (1, 1)) if kind == "success" else used)

    def _apply(self, work: Work, process: int) -> None:
        said = self.rig.run(self._turn(work, process))
        self.books, expected = self.books.turned(work.facts, work.asked)
        assert said == expected

    async def _both(self, one: Work, two: Work) -> list[list[Said]]:
        return list(await asyncio.gather(self._turn(one, 0), self._turn(two, 1)))

    async def _turn(self, work: Work, process: int) -> list[Said]:
        facts, asked = _arrivals(work.facts), _asked(work.asked)
        return _said(await self.rig.stores[process].turn(facts, asked), facts, asked)

    async def _rolled_back(self, work: Work, process: int) -> None:
        """Everything is done but committed: the process dies, or its server."""
        store = self.rig.stores[process]
        transaction = (await store._connection()).transaction()
        await transaction.start()
        try:
            await self._turn(work, process)
        finally:
            await transaction.rollback()
            store._known.clear()

    def _grant(self, account: str, amount: Decimal, grant_id: str) -> None:
        self.rig.run(changes.grant(self.rig.pool, Grant(grant_id=grant_id, account=account, amount=amount)))

    def _stale(self) -> dict[str, int]:
        reply = self.rig.run(self.rig.scanner.stale(StaleCalls(limit=1000)))
        return {call.call_id: call.epoch for call in reply.calls if call.account in self.accounts}


def _arrivals(facts: Sequence[Fact]) -> list[Arrival]:
    arrivals = []
    for fact in facts:
        usage = None if fact.tokens is None else Usage(*fact.tokens)
        attempts = (Attempt(1, "demo", "echo", "main", 200, "", 0, 120, 30),)
        head = (fact.call_id, fact.epoch, fact.account, "chat")
        if fact.success:
            assert usage is not None
            subject = subjects.calls_completed(CallKind.CHAT)
            event: CallCompleted | CallFailed = CallCompleted(
                *head, "stop", CANDIDATE, usage, attempts, 9, 1, "2026-11-25T09:30:00.000Z"
            )
        else:
            subject = subjects.calls_failed(CallKind.CHAT)
            event = CallFailed(
                *head, "stale", "No sign of life.", "2026-11-25T09:30:00.000Z",
                candidate=None if usage is None else CANDIDATE, usage=usage,
            )  # fmt: skip
        payload = ENCODE(event)
        arrivals.append(Arrival(read_fact(subject, payload), subject, b"", payload))
    return arrivals


def _asked(reserves: Sequence[Reserve]) -> list[Asked]:
    calls = tuple(reserve_call(one.account, f"{one.hold:f}", call_id=one.call_id) for one in reserves)
    return read_reserves(ENCODE(ReserveBatch(calls)), b"", 0.0)[1] if calls else []


def _said(result: TurnResult, facts: Sequence[Arrival], asked: Sequence[Asked]) -> list[Said]:
    said: dict[int, Said] = {id(call): ("reserved",) for call in asked}
    for settled in result.settled:
        said[id(settled.arrival)] = ("settled", settled.credits, settled.overrun, str(settled.sequence))
    for standing in result.standing:
        said[id(standing.arrival)] = ("standing", standing.state or "", standing.credits if standing.state else "")
    for refused in result.refused:
        said[id(refused.asked)] = (refused.status,)
    return [said[id(one)] for one in (*facts, *asked)]


@pytest.fixture
def rig(database: Database) -> Iterator[Rig]:
    """On a loop of its own: a state machine's steps are plain functions."""
    loop = asyncio.new_event_loop()
    dsn = database.dsns["metering"]
    stores = (TurnStore(dsn, HOUR, HOUR), TurnStore(dsn, HOUR, HOUR))
    pool = loop.run_until_complete(query_pool(dsn, 2))
    books = loop.run_until_complete(asyncpg.connect(database.admin_dsn))
    loop.run_until_complete(books.execute(AUDIT))
    scanner = Leases(pool, timedelta(seconds=-1), 5.0, _interrupted_at=float("-inf"))
    yield Rig(loop, stores, pool, books, Leases(pool, HOUR, 5.0), scanner)
    for store in stores:
        store.discard()
    pool.terminate()
    loop.run_until_complete(books.close())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_every_history_of_the_books_is_the_models(rig: Rig) -> None:
    Histories.rig = rig
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            phases=PHASES,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
