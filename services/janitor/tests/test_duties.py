"""Duties run when they are due, by one janitor at a time; what was missed is made up, and each run can be looked up."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec
import pytest
import structlog
from nats.js.errors import KeyNotFoundError
from pydantic import BaseModel
from rig.waiting import until

from contracts import permissions, subjects
from contracts.duties import DutyRun
from contracts.errors import ErrorCode, HubError
from contracts.ids import new_process_id
from contracts.rpc import credit, metering, model_calls, reconcile
from contracts.rpc.envelope import Problem
from contracts.streams import DUTY_LEASES, DUTY_RUNS
from janitor import schedule
from janitor.app import janitor, table
from janitor.duties import claims, closing, grants, parked, partitions, stale_calls
from janitor.duties import reconcile as reconciliation
from janitor.leases import DutyLease
from janitor.runs import RunsLog
from janitor.schedule import Duty, keep
from janitor.settings import Settings
from runtime.bus import Bus

NAME = "a-duty"
LEASE_S = 0.4
HOUR_S = 3600.0


@dataclass
class Worker:
    """A duty that counts its runs, each of which takes as long as it is told."""

    takes_s: float = 0.0
    fails: bool = False
    begun: int = 0
    ended: int = 0
    cancelled: int = 0
    resume: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> str:
        self.begun += 1
        if self.fails:
            raise HubError(ErrorCode.SERVICE_UNAVAILABLE, "metering does not answer")
        try:
            if self.takes_s:
                await asyncio.wait_for(self.resume.wait(), self.takes_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.ended += 1
        return f"{self.ended} done"


@pytest.mark.parity(82)
def test_every_duty_runs_as_often_as_its_setting_says(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name in Settings.model_fields if name.endswith("_period_s")]
    wanted = {name: 11.0 + place for place, name in enumerate(names)}
    monkeypatch.setenv("HUB_NATS_URL", "nats://janitor@localhost")
    for name, period_s in wanted.items():
        monkeypatch.setenv(f"HUB_{name.upper()}", str(period_s))
    nobody: Any = None  # whom duties would ask
    duties = table(Settings(), nobody, nobody, nobody)  # from the environment
    assert sorted(duty.period_s for duty in duties) == sorted(wanted.values())
    assert len({duty.name for duty in duties}) == len(duties)


@contextlib.asynccontextmanager
async def kept(bus: Bus, worker: Worker, holder: str, period_s: float = HOUR_S) -> AsyncIterator[None]:
    """One janitor's loop for one duty."""
    js = bus.jetstream(timeout=2)
    lease = DutyLease(partial(js.key_value, DUTY_LEASES.name), NAME, holder, LEASE_S, time.monotonic)
    log = RunsLog(partial(js.key_value, DUTY_RUNS.name), holder)
    task = asyncio.create_task(keep(Duty(NAME, period_s, 0.0, LEASE_S, worker.run, 30.0), lease, log))
    try:
        yield
    finally:
        while not task.done():  # see `runtime.process.background`
            task.cancel()
            await asyncio.wait([task], timeout=1.0)


async def last_run(bus: Bus, name: str = NAME, holder: str = "") -> DutyRun:
    """The run that is noted, once there is one (of this janitor)."""

    async def look() -> DutyRun | None:
        bucket = await bus.jetstream(timeout=2).key_value(DUTY_RUNS.name)
        try:
            entry = await bucket.get(name)
        except KeyNotFoundError:
            return None
        run = msgspec.json.decode(entry.value or b"", type=DutyRun)
        return run if run.holder == holder or not holder else None

    run = await until(look, what=f"a run of {name} is noted")
    assert run is not None
    return run


async def write_run(bus: Bus, ended: datetime, result: str = "done") -> None:
    bucket = await bus.jetstream(timeout=2).key_value(DUTY_RUNS.name)
    text = ended.isoformat(timespec="milliseconds")
    await bucket.put(NAME, msgspec.json.encode(DutyRun(result, "", text, text, "janitor-before")))


@pytest.fixture
async def bus(nats: Any) -> AsyncIterator[Bus]:
    connection = await nats.connect(permissions.JANITOR)
    yield connection
    await connection.close()


async def until_true(look: Callable[[], bool], what: str, within_s: float = 10.0) -> None:
    async def looked() -> bool:
        return look()

    await until(looked, within_s=within_s, what=what)


@pytest.mark.parametrize(
    ("ended", "result"),
    [
        (timedelta(hours=-30), "done"),
        (timedelta(minutes=-5), "failed"),
        (timedelta(hours=+5), "done"),
    ],
    ids=["missed while no janitor ran", "failed before", "noted by a clock far ahead"],
)
async def test_a_run_that_was_missed_is_made_up_at_once(bus: Bus, ended: timedelta, result: str) -> None:
    await write_run(bus, datetime.now(UTC) + ended, result)
    worker = Worker()
    async with kept(bus, worker, "janitor-1"):
        run = await last_run(bus, holder="janitor-1")
    assert (run.result, run.detail, worker.ended) == ("done", "1 done", 1)
    pause = datetime.fromisoformat(run.next_at) - datetime.fromisoformat(run.ended_at)
    assert pause == timedelta(seconds=HOUR_S)


async def test_a_duty_taken_over_is_not_run_before_its_period_is_over(bus: Bus) -> None:
    first, second = Worker(), Worker()
    async with kept(bus, first, "janitor-1"):
        await until_true(lambda: first.ended == 1, "the duty runs")
        await last_run(bus)
    bucket = await bus.jetstream(timeout=2).key_value(DUTY_LEASES.name)
    async with kept(bus, second, "janitor-2"):

        async def taken() -> bool:
            return b"janitor-2" in ((await bucket.get(NAME)).value or b"")

        await until(taken, what="the second janitor holds the duty")
        revision = (await bucket.get(NAME)).revision or 0

        async def renewed() -> bool:
            return ((await bucket.get(NAME)).revision or 0) > revision + 2

        await until(renewed, what="and holds it for a while")
    assert (first.ended, second.begun) == (1, 0)


async def test_a_run_longer_than_the_lease_keeps_it(bus: Bus) -> None:
    slow, other = Worker(takes_s=30), Worker()
    async with kept(bus, slow, "janitor-1"):
        await until_true(lambda: slow.begun == 1, "the slow run begins")
        async with kept(bus, other, "janitor-2"):
            began = time.monotonic()
            await until_true(lambda: time.monotonic() - began > 4 * LEASE_S, "four leases pass")
            slow.resume.set()
            await until_true(lambda: slow.ended == 1, "the slow run ends")
            assert (other.begun, slow.cancelled) == (0, 0)


async def test_a_run_whose_lease_is_lost_is_cancelled_and_the_other_janitor_makes_it_up(bus: Bus, nats: Any) -> None:
    slow, other = Worker(takes_s=30), Worker()
    second_bus = await nats.connect(permissions.JANITOR)
    async with kept(bus, slow, "janitor-1"):
        await until_true(lambda: slow.begun == 1, "the slow run begins")
        bucket = await second_bus.jetstream(timeout=2).key_value(DUTY_LEASES.name)
        await bucket.put(NAME, b'{"holder":"janitor-2","lease_s":0.4}')  # as after a stop longer than the lease
        async with kept(second_bus, other, "janitor-2"):
            await until_true(lambda: slow.cancelled == 1, "the run without a lease is cancelled")
            await last_run(second_bus, holder="janitor-2")
    assert (slow.ended, other.ended) == (0, 1)
    await second_bus.close()


async def test_a_run_that_fails_is_noted_and_repeated_soon(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_RETRY_S", 0.1)
    worker = Worker(fails=True)
    with structlog.testing.capture_logs() as logs:
        async with kept(bus, worker, "janitor-1"):
            run = await last_run(bus)
            assert run.result == "failed"
            assert "metering does not answer" in run.detail
            await until_true(lambda: worker.begun >= 3, "it is tried again")
            worker.fails = False
            await until_true(lambda: worker.ended == 1, "it succeeds")
    told = [
        (entry["event"], entry.get("failures")) for entry in logs if entry["event"].startswith(("duty f", "duty d"))
    ]
    failures = worker.begun - 1
    assert told == [("duty failed", None), ("duty done again", failures)], "each change is told once"


@pytest.mark.parametrize(("period_s", "longest"), [(0.5, 5.0), (2.0, 5.0), (HOUR_S, 60.0)])
def test_pauses_grow_while_a_duty_fails_and_are_the_period_once_it_is_done(period_s: float, longest: float) -> None:
    past = schedule._Past(Duty(NAME, period_s, 0.0, LEASE_S, Worker().run))
    pauses = [past.failed(HubError(ErrorCode.SERVICE_UNAVAILABLE, "away")) for _ in range(2000)]
    assert 0.5 <= pauses[0] <= 1.0
    assert all(pause <= longest for pause in pauses)
    assert all(longest / 2 <= pause for pause in pauses[10:]), "and they go on at the longest"
    assert len(set(pauses)) > 100, "janitors do not try again in step"
    assert past.done() == period_s
    assert past.failed(TimeoutError()) <= 1.0


async def test_a_bug_in_a_duty_ends_its_loop(bus: Bus) -> None:
    async def broken() -> str:
        raise LookupError("a bug")

    js = bus.jetstream(timeout=2)
    lease = DutyLease(partial(js.key_value, DUTY_LEASES.name), NAME, "janitor-1", LEASE_S, time.monotonic)
    log = RunsLog(partial(js.key_value, DUTY_RUNS.name), "janitor-1")
    with pytest.raises(LookupError):
        async with asyncio.timeout(10):
            await keep(Duty(NAME, HOUR_S, 0.0, LEASE_S, broken), lease, log)


# ---- the duties themselves -------------------------------------------------------------------------------------------


class Books:
    """Answers as metering does; counts what was asked."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.asked: Counter[str] = Counter()
        self.state = "done"
        self.differences = 0
        self.not_compared = ""
        self.note = "Payment Kit: 3 of 9 accounts compared"
        self.days_left = 9
        self.accounts_due = 700

    async def listen(self) -> None:
        answers: dict[str, Callable[[], BaseModel]] = {
            model_calls.STALE: lambda: model_calls.StaleReply(calls=()),
            credit.GRANTS_DUE: self._grants,
            reconcile.EXPIRE_CLAIMS: lambda: reconcile.ClaimsExpired(claims=3),
            reconcile.MAKE_PARTITIONS: lambda: reconcile.PartitionsMade(partitions=("ledger_2031_05",)),
            reconcile.PARKED_COUNT: lambda: reconcile.ParkedCount(parked=2, reasons={"unreadable": 2}, reports=1),
            reconcile.RECONCILE_START: lambda: reconcile.ReconcileStarted(run_id="r1", already=False),
            reconcile.RECONCILE_GET: self._report,
            reconcile.CLOSE_DAYS: self._close,
        }
        for method, answer in answers.items():
            await self.bus.listen(
                subjects.rpc(metering.SERVICE, method), self._listener(method, answer), queue="metering"
            )
        await self.bus.flush()

    def _listener(self, method: str, answer: Callable[[], BaseModel]) -> Any:
        def listener(_subject: bytes, reply: bytes, _payload: bytes, _headers: bytes | None) -> None:
            self.asked[method] += 1
            self.bus.send(reply.decode(), b'{"ok":%s}' % answer().model_dump_json().encode())

        return listener

    def _report(self) -> BaseModel:
        state = "running" if self.asked[reconcile.RECONCILE_GET] % 3 else self.state
        return reconcile.ReconcileReport.model_validate({
            "run_id": "r1", "scope": "recent", "state": state, "progress": "", "error": "no bus", "started_at": "",
            "finished_at": None, "comparisons": (self._comparison(),), "differences": self.differences,
            "accepted": 0, "page": (), "next_after": None,
        })  # fmt: skip

    def _comparison(self) -> dict[str, object]:
        return {
            "check": "payment_kit", "left": "", "left_count": 0, "left_sum": "0", "right": "", "right_count": 0,
            "right_sum": "0", "differences": 0, "not_compared": self.not_compared,
            "note": self.note,
        }  # fmt: skip

    def _grants(self) -> BaseModel:
        accounts = min(self.accounts_due, 500)
        self.accounts_due -= accounts
        return credit.GrantsDone(accounts=accounts, started=accounts, ended=2, more=accounts == 500)

    def _close(self) -> BaseModel:
        days = min(self.days_left, 7)
        self.days_left -= days
        day = reconcile.ClosedDay.model_validate(
            {"day": "2026-01-01", "accounts": 1, "calls": 1, "amount": "1", "chain": "a" * 64}
        )
        return reconcile.CloseDaysReply(closed=(day,) * days, more=self.days_left > 0)


@pytest.fixture
async def books(nats: Any) -> AsyncIterator[Books]:
    connection = await nats.connect(permissions.METERING)
    books = Books(connection)
    await books.listen()
    yield books
    await connection.close()


async def test_every_duty_asks_the_owner_and_operators_see_what_came_of_it(nats: Any, books: Books) -> None:
    settings = Settings.model_validate({"nats_url": nats.url(permissions.JANITOR), "duty_lease_s": 0.5})
    operator = await nats.connect(permissions.OPERATOR)
    async with janitor(settings, process := new_process_id("janitor")):
        runs = {
            name: await last_run(operator, name)
            for name in (
                stale_calls.NAME, grants.NAME, claims.NAME, partitions.NAME, parked.NAME, closing.NAME,
                reconciliation.NAME,
            )
        }  # fmt: skip
    await operator.close()
    assert {run.holder for run in runs.values()} == {process}
    assert {name: (run.result, run.detail) for name, run in runs.items()} == {
        stale_calls.NAME: ("done", "0 closed"),
        grants.NAME: ("done", "700 begun, 4 ended"),
        claims.NAME: ("done", "3 keys, 0 notices dropped"),
        partitions.NAME: ("done", "1 made"),
        parked.NAME: ("done", "2 facts, 1 reports"),
        closing.NAME: ("done", "9 closed"),
        reconciliation.NAME: ("done", "0 differences; Payment Kit: 3 of 9 accounts compared"),
    }
    assert books.asked[reconcile.CLOSE_DAYS] == 2, "days that were missed are closed until none is left"
    assert books.asked[reconcile.RECONCILE_GET] == 3, "the comparison's end is waited for"


async def test_differences_are_told_and_a_comparison_that_failed_is_a_failure(
    bus: Bus, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciliation, "_LOOK_EVERY_S", 0.01)
    books.differences, books.note = 4, ""
    assert await reconciliation.compare_books(bus) == "4 differences"
    books.not_compared = "away"
    assert await reconciliation.compare_books(bus) == "4 differences; payment_kit not compared: away"
    for state in ("failed", "lost"):
        books.state = state
        with pytest.raises(HubError, match=f"{state}: no bus"):
            await reconciliation.compare_books(bus)


@pytest.mark.parametrize(
    "duty",
    [grants.advance_grants, claims.expire_claims, partitions.make_partitions, parked.watch_parked, closing.close_days,
     reconciliation.compare_books],
)  # fmt: skip
async def test_a_refusal_of_the_owner_is_a_failed_run(
    bus: Bus, nats: Any, duty: Callable[[Bus], Awaitable[str]]
) -> None:
    owner = await nats.connect(permissions.METERING)
    problem = Problem(code=ErrorCode.SERVICE_UNAVAILABLE, message="The database did not answer; try again.")

    def refuse(_subject: bytes, reply: bytes, _payload: bytes, _headers: bytes | None) -> None:
        owner.send(reply.decode(), b'{"error":%s}' % problem.model_dump_json().encode())

    await owner.listen(subjects.rpc(metering.SERVICE, "*"), refuse)
    await owner.flush()
    with pytest.raises(HubError) as refused:
        await duty(bus)
    assert refused.value.code == ErrorCode.SERVICE_UNAVAILABLE
    await owner.close()
