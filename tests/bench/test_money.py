import asyncio
import io
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bench import money_report
from bench.figures import Spread
from bench.money_load import BATCH_MAX, Load, Neighbours, account_names
from bench.money_messages import Messages, cost, input_tokens
from bench.money_report import BARS, MoneyMeasured, print_money, verdict
from bench.money_results import Group, MoneyResult, Notes, Spent
from bench.money_scenarios import BACKLOG, HALF, HOT, SCENARIOS, SETTLE, arguments, in_order
from bench.money_system import mistakes
from contracts.events import CallCompleted
from contracts.ids import new_call_id
from contracts.rpc.metering import ReserveBatch, ReserveReply, ReserveResult, SettledBatch, SettledCall
from metering.events import read
from metering.reserve import read as read_reserves

NOTHING = Spread(count=0, mean=0, p50=0, p90=0, p99=0, max=0)
A = "did:abt:one"


def some(p99: float) -> Spread:
    return Spread(count=100, mean=1, p50=1, p90=1, p99=p99, max=p99)


def measured(scenario: str = SETTLE.name, p99: float = 5, **changes: Any) -> MoneyMeasured:
    group = Group(reserve=some(p99), whole=some(2 * p99))
    found = MoneyResult(
        seconds=2.0, settled=10_000, started=12_000, wrong={}, repeated=0, hot=group, others=group, spent={}, cpu_s=0.1
    )
    values: dict[str, Any] = {
        "scenario": scenario,
        "result": found,
        "cpu_s": {"metering": 0.6, "postgres": 0.5, "nats": 0.3, "load": 0.1},
        "elsewhere": 0.1,
        "memory_mb": 80.0,
        "wrong": {},
    }
    return MoneyMeasured(**(values | changes))


def judged(name: str, *found: MoneyMeasured) -> tuple[float | None, bool | None]:
    by_scenario: dict[str, list[MoneyMeasured]] = {}
    for one in found:
        by_scenario.setdefault(one.scenario, []).append(one)
    return verdict(next(bar for bar in BARS if bar.name.startswith(name)), by_scenario)


# ---- messages: metering must take them for a gateway's and a router's ----------------------------------------------


def test_metering_admits_every_call_of_a_batch_that_was_put_together_from_templates() -> None:
    calls = [(new_call_id(), f"did:abt:{n}%s") for n in range(3)]
    batch = Messages("gateway-1", "provider-router-1").reserve_batch(calls)
    request, asked = read_reserves(batch, b"reply", 0.0)
    assert [(call.call_id, call.account) for call in asked] == calls
    assert request.missing == 3
    assert msgspec.json.encode(msgspec.json.decode(batch, type=ReserveBatch)) == batch


def test_metering_prices_a_completion_as_the_benchmark_does() -> None:
    call_id = new_call_id()
    payload = Messages("gateway-1", "provider-router-1").completed(call_id, A, 123)
    fact = read("hub.v1.calls.completed.chat", payload)
    assert (fact.call_id, fact.account, fact.gateway, fact.router) == (call_id, A, "gateway-1", "provider-router-1")
    assert fact.cost == cost(1, 123) == Decimal("0.223")
    assert msgspec.json.encode(msgspec.json.decode(payload, type=CallCompleted)) == payload


def test_calls_cost_different_amounts_and_none_more_than_its_hold() -> None:
    assert len({input_tokens(number) for number in range(1000)}) == 100
    assert max(cost(1, input_tokens(number)) for number in range(1000)) < Decimal("0.5")


# ---- the load ------------------------------------------------------------------------------------------------------


class FakeBus:
    def __init__(self) -> None:
        self.asked: list[tuple[bytes, Callable[[bytes | None, bytes | None], None]]] = []
        self.sent: list[bytes] = []

    def ask(self, _subject: str, payload: bytes, replied: Any, _timeout_s: float) -> None:
        self.asked.append((payload, replied))

    def send(self, _subject: str, payload: bytes, *, headers: bytes) -> None:
        assert b"Nats-Msg-Id" in headers
        self.sent.append(payload)


def neighbours() -> tuple[Neighbours, FakeBus]:
    bus: Any = FakeBus()
    return Neighbours(bus, bus, Messages("g", "r"), ("g", "r")), bus


def reply(*statuses: str) -> bytes:
    return msgspec.json.encode(ReserveReply(tuple(ReserveResult(status) for status in statuses)))


async def begun(here: Neighbours, number: int) -> list[str]:
    for _ in range(number):
        here.start(A, time.monotonic())
    await asyncio.sleep(0)
    return list(here.open)


def told(*calls: tuple[str, str]) -> bytes:
    return msgspec.json.encode(SettledBatch(tuple(SettledCall(call_id, state, "0.1") for call_id, state in calls)))


async def test_calls_of_one_turn_leave_as_one_message_up_to_a_gateways_most() -> None:
    here, bus = neighbours()
    await begun(here, BATCH_MAX + 1)
    batches = [msgspec.json.decode(payload, type=ReserveBatch) for payload, _ in bus.asked]
    assert [len(batch.calls) for batch in batches] == [BATCH_MAX, 1]


async def test_only_admitted_calls_are_completed_and_the_others_are_wrong() -> None:
    here, bus = neighbours()
    here.notes.open_window(0.0)
    first, second = await begun(here, 2)
    bus.asked[0][1](reply("reserved", "not_enough"), None)
    assert [msgspec.json.decode(fact, type=CallCompleted).call_id for fact in bus.sent] == [first]
    assert here.notes.wrong == {"reserve: not_enough": 1}
    assert second not in here.open


async def test_a_reserve_without_an_answer_is_wrong() -> None:
    here, bus = neighbours()
    await begun(here, 2)
    bus.asked[0][1](None, None)
    assert here.notes.wrong == {"reserve: no answer": 2}
    assert not here.open


async def test_a_second_notice_is_a_repeat_and_a_failed_call_is_wrong() -> None:
    here, bus = neighbours()
    here.notes.open_window(0.0)
    first, second = await begun(here, 2)
    bus.asked[0][1](reply("reserved", "reserved"), None)
    for state in ("success", "success"):
        here._settled(b"", b"", told((first, state)), None)
    here._settled(b"", b"", told((second, "failed")), None)
    here.notes.close_window(time.monotonic())
    found = here.notes.result()
    assert (found.settled, found.repeated, found.wrong) == (1, 1, {"settled: failed": 1})
    assert found.spent == {A: Spent(1, 100)}


def test_latencies_count_from_when_a_call_was_due_and_only_of_those_due_in_the_window() -> None:
    notes = Notes()
    notes.open_window(10.0)
    for due_at, at in ((9.0, 10.5), (11.0, 11.25), (12.0, 30.0)):
        notes.reserved(due_at, at, hot=False)
        notes.settled(A, 100, due_at, at, hot=due_at == 12.0)
    notes.close_window(20.0)
    notes.settled(A, 100, 25.0, 26.0, hot=False)
    found = notes.result()
    assert (found.settled, found.spent[A].calls, found.seconds) == (3, 4, 10.0)
    assert (found.others.reserve.count, found.others.reserve.p50) == (2, 250)
    assert (found.others.whole.count, found.hot.whole.count, found.hot.whole.max) == (1, 1, 18_000)


@given(share=st.sampled_from([0.0, 0.25, 0.5, 0.75]), accounts=st.integers(2, 20))
def test_the_hot_account_has_its_share_and_the_others_take_turns(share: float, accounts: int) -> None:
    load = Load(account_names("x", accounts), 1, 0.0, share, 0, 1.0, 0.0)
    payers = [load.payer(number) for number in range(400)]
    assert sum(hot for _, hot in payers) == 400 * share
    assert {account for account, hot in payers if hot} <= {"did:abt:x1"}
    if share:
        assert "did:abt:x1" not in {account for account, hot in payers if not hot}


# ---- the books -----------------------------------------------------------------------------------------------------


def books(**changes: Any) -> dict[str, object]:
    credits_due = cost(2, 201)
    right = {
        "id": A,
        "held": Decimal(0),
        "spent": credits_due,
        "seq": 2,
        "calls": 2,
        "amount": credits_due,
        "closed": 2,
        "credits": credits_due,
        "sent": 2,
    }
    return right | changes


def test_right_books_have_no_mistakes() -> None:
    assert mistakes([books()], {A: Spent(2, 201)}) == {}


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("held", Decimal("0.5"), "holds not 0"),
        ("spent", Decimal("0.4009999999"), "spent differs from what was told"),
        ("amount", Decimal("0.4020000000"), "ledger differs from what was told"),
        ("calls", 3, "ledger differs from what was told"),
        ("closed", 1, "calls differ from what was told"),
        ("seq", 3, "sequence is not the number of calls"),
        ("sent", 1, "usage events missing on the bus"),
    ],
)
def test_each_wrong_figure_of_the_books_is_named(field: str, value: object, what: str) -> None:
    assert what in mistakes([books(**{field: value})], {A: Spent(2, 201)})


def test_an_account_without_a_row_is_missing() -> None:
    assert mistakes([], {A: Spent(1, 100)}) == {"accounts missing": 1}


# ---- bars and tables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settled", "met"), [(8_000, True), (7_999, False)])
def test_the_rate_is_of_the_window_and_held_against_its_bar(settled: int, met: bool) -> None:
    run = measured()
    found = judged(
        "reserved", msgspec.structs.replace(run, result=msgspec.structs.replace(run.result, settled=settled))
    )
    assert found == (settled / 2, met)


def test_a_run_whose_books_are_wrong_meets_no_bar() -> None:
    assert judged("reserved", measured(wrong={"holds not 0": 1})) == (5000, False)


def test_the_others_beside_a_hot_account_are_compared_with_the_run_without_one() -> None:
    assert judged("others", measured(HALF.name, p99=4), measured(HOT.name, p99=6)) == (1.5, True)
    assert judged("others", measured(HALF.name, p99=4), measured(HOT.name, p99=6.1))[1] is False
    assert judged("others", measured(HALF.name)) == (None, None)


def test_of_several_rounds_the_median_counts_and_each_pair_is_compared_with_itself() -> None:
    rounds = [measured(HALF.name, p99=4), measured(HOT.name, p99=4), measured(HALF.name, p99=4)]
    rounds += [measured(HOT.name, p99=40), measured(HALF.name, p99=40), measured(HOT.name, p99=44)]
    assert judged("others", *rounds) == (pytest.approx(1.1), True)
    assert judged("reserve at", *rounds) == (4, True)


def test_open_loops_run_by_turns_after_the_run_that_gives_their_rate() -> None:
    names = [one.name for one in in_order(SCENARIOS)]
    assert names == ["settle", *3 * ["half", "half-hot"], "one-account", "backlog"]


def test_the_limit_of_one_account_is_published_without_a_bar() -> None:
    assert judged("limit", measured("one-account")) == (5000, None)


def test_cpu_a_call_is_of_the_calls_settled_in_the_window() -> None:
    assert measured().cpu_us("metering") == pytest.approx(60)


def test_open_loops_run_at_the_rate_given_and_a_backlog_has_no_window() -> None:
    assert arguments(HOT, "x", 1234.4, 8, 0)[-4:] == ["--rate", "1234", "--hot-share", "0.5"]
    assert arguments(HALF, "x", 0, 8, 0)[-3] == "2000"
    assert arguments(BACKLOG, "x", 0, 8, 77) == ["--accounts", "x:1000", "--calls", "77"]


def test_the_report_names_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(money_report, "Console", lambda **_: Console(file=out, width=170))
    print_money([measured(wrong={"holds not 0": 3})])
    text = out.getvalue()
    assert "settle: 3 times holds not 0" in text
    assert "not measured" in text
