"""Payment Kit's own list of events is held against what was reported; each difference is named and can be put right."""

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
from neighbours import Neighbours, call
from rig.payment_kit import QUICK, LocalKit, served, total
from rig.waiting import until

from contracts.ids import new_call_id
from contracts.rpc import metering as questions
from contracts.rpc import payments
from contracts.rpc import reconcile as r
from contracts.rpc.envelope import Empty
from contracts.rpc.metering import Grant
from contracts.rpc.payments import PaymentPause, PaymentRetry
from metering.reconcile import rotation as rotating
from metering.reconcile import runs, stream
from metering.reconcile.rotation import Rotation
from metering.settings import Settings

A, B = "did:abt:z1payer", "did:abt:z1other"
COST = Decimal("0.2")


@pytest.fixture(autouse=True)
def one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """NATS and PostgreSQL run on one machine here, and the streams were made a moment ago."""
    monkeypatch.setattr(stream, "_CLOCKS_DIFFER", timedelta(0))


@pytest.fixture
async def kit() -> AsyncIterator[LocalKit]:
    async with served() as kit:
        for account in (A, B):
            kit.give(account, "1000")
        yield kit


@pytest.fixture
def settings(settings: Settings, kit: LocalKit) -> Settings:
    quick = {name.removeprefix("HUB_").lower(): value for name, value in QUICK.items()}
    return Settings.model_validate(settings.model_dump() | quick | {"payment_kit_url": kit.url})


async def charged(hub: Neighbours, account: str = A, count: int = 1) -> list[str]:
    """Identifiers of calls that were settled, 0.2 credits each."""
    calls = [call(account) for _ in range(count)]
    for some in (calls[:1], calls[1:]):  # whoever comes first, and alone, has the balance read
        assert await hub.reserve_batch(*some) == ["reserved"] * len(some)
    await hub.publish(*map(hub.completed, calls))
    await hub.until_settled(*calls)
    return [f"mc_{one.call_id}" for one in calls]


async def all_sent(hub: Neighbours, state: str = "sent") -> None:
    async def look() -> bool:
        return not await hub.books.fetchval("select count(*) from metering.outbox where state <> $1", state)

    await until(look, within_s=20, what=f"every row is {state}")


async def compared(hub: Neighbours, scope: r.Scope = "all") -> r.ReconcileReport:
    started = await hub.ask(r.RECONCILE_START, r.ReconcileStart(scope=scope), r.ReconcileStarted)

    async def ended() -> r.ReconcileReport | None:
        report = await hub.ask(r.RECONCILE_GET, r.ReconcileGet(run_id=started.run_id, limit=1000), r.ReconcileReport)
        return report if report.state != "running" else None

    report = await until(ended, within_s=30, what="the comparison ends")
    assert report is not None
    assert report.state == "done", report.error
    return report


def sides(report: r.ReconcileReport) -> r.ComparisonView:
    return next(each for each in report.comparisons if each.check == "payment_kit")


async def repaired(hub: Neighbours, difference: r.DifferenceView) -> str:
    assert difference.repair == f"hub reconcile --repair {difference.id}"
    wanted = r.ReconcileRepair(difference_id=difference.id, reason="a test", repaired_by="tester")
    return (await hub.ask(r.RECONCILE_REPAIR, wanted, r.ReconcileRepaired)).done


@pytest.mark.parametrize("scope", ["all", "recent"])
async def test_both_sides_are_counted_and_summed(hub: Neighbours, kit: LocalKit, scope: r.Scope) -> None:
    await charged(hub, count=3)
    await charged(hub, B)
    await all_sent(hub)
    report = await compared(hub, scope)
    found = sides(report)
    assert (report.differences, found.left_count, found.right_count) == (0, 4, 4)
    assert found.left_sum == found.right_sum == "0.8000000000"
    assert not found.not_compared


@pytest.mark.parity(64)
async def test_an_event_that_payment_kit_lost_is_named_and_sent_again_under_its_name(
    hub: Neighbours, kit: LocalKit
) -> None:
    identifiers = await charged(hub, count=3)
    await all_sent(hub)
    before = [event for event in kit.books.events if event["identifier"] == identifiers[1]]
    kit.books.lose(identifiers[1])
    (difference,) = (await compared(hub)).page
    assert (difference.check, difference.account, difference.call_id) == ("payment_missing", A, identifiers[1][3:])
    assert (difference.expected, difference.found) == (f"{identifiers[1]} 0.2000000000", "none")
    assert identifiers[1] in await repaired(hub, difference)
    await all_sent(hub)
    again = [event for event in kit.books.events if event["identifier"] == identifiers[1]]
    constant = ("identifier", "timestamp", "payload", "metadata", "source_data")
    assert [[event[name] for name in constant] for event in again] == [[e[name] for name in constant] for e in before]
    assert (await compared(hub)).differences == 0
    assert total(kit.books.events) == 3 * COST


async def test_a_repair_of_what_came_back_meanwhile_sends_nothing_twice(hub: Neighbours, kit: LocalKit) -> None:
    await hub.restart_metering(payment_kit_dedup_s=0.2)
    (identifier,) = await charged(hub)
    await all_sent(hub)
    (event,) = kit.books.events
    kit.books.events.clear()  # a list that is behind
    (difference,) = (await compared(hub)).page
    kit.books.events.append(event)
    kit.books.dedup_s = 0.0
    await repaired(hub, difference)
    await all_sent(hub)
    assert [each["identifier"] for each in kit.books.events] == [identifier]
    assert (await compared(hub)).differences == 0


async def test_another_value_is_named_parked_with_an_alert_and_never_overwritten(
    hub: Neighbours, kit: LocalKit
) -> None:
    (identifier,) = await charged(hub)
    await all_sent(hub)
    kit.books.change(identifier, "0.3")
    report = await compared(hub)
    (difference,) = report.page
    assert (difference.check, difference.expected) == ("payment_value", f"{identifier} 0.2000000000")
    assert difference.found == f"{identifier} 0.3"
    assert (sides(report).left_sum, sides(report).right_sum) == ("0.2000000000", "0.3000000000")
    assert "parked" in await repaired(hub, difference)
    for _ in range(2):
        await all_sent(hub, "parked")
        (row,) = await hub.books.fetch("select * from metering.outbox")
        assert (row["value"], "0.3" in row["reason"]) == (COST, True)
        assert [each.check for each in (await compared(hub)).page] == ["outbox_parked"]
        await hub.ask(payments.PAYMENT_RETRY, PaymentRetry(), payments.PaymentRetried)
    await all_sent(hub, "parked")
    assert [event["payload"]["value"] for event in kit.books.events] == ["0.3"]


async def test_events_that_nobody_reported_are_named_with_what_gives_them_back(hub: Neighbours, kit: LocalKit) -> None:
    (identifier,) = await charged(hub)
    await all_sent(hub)
    (event,) = kit.books.events
    unknown = f"mc_{new_call_id()}"
    kit.books.dedup_s = 0.0
    for name, value in ((unknown, "1.5"), ("somebody-elses", "2"), (identifier, "0.2")):
        kit.books.make_event(
            {
                "event_name": event["event_name"], "identifier": name, "timestamp": int(time.time()),
                "payload": {"customer_id": "z1payer", "value": value},
            }
        )  # fmt: skip
    report = await compared(hub)
    assert (sides(report).right_count, sides(report).right_sum) == (4, "3.9000000000")
    found = {each.found: each for each in report.page}
    assert {words: each.check for words, each in found.items()} == {
        f"{unknown} 1.5": "payment_extra", "somebody-elses 2": "payment_extra", f"{identifier} 0.2": "payment_twice",
    }  # fmt: skip
    granted = 0
    for difference in found.values():
        command = re.search(r"hub credits grant (\S+) (\S+) --category adjustment --id (\S+)", difference.detail)
        assert command is not None, difference.detail
        grant = Grant(grant_id=command[3], account=command[1], amount=Decimal(command[2]), category="adjustment")
        for _ in range(2):
            await hub.ask(questions.GRANT, grant, questions.Balance)
        granted += 1
        assert difference.repair == f'hub reconcile --accept {difference.id} --reason "…"'
        accept = r.ReconcileAccept(difference_id=difference.id, reason="given back", accepted_by="tester")
        await hub.ask(r.RECONCILE_ACCEPT, accept, Empty)
    assert len(kit.books.grants) == 2 + granted
    assert kit.left(A) == 1000 - COST
    assert (await compared(hub)).differences == 0


async def test_a_charge_whose_row_is_gone_is_found_at_payment_kit(hub: Neighbours, kit: LocalKit) -> None:
    (identifier, _) = await charged(hub, count=2)
    await all_sent(hub)
    await hub.books.execute("delete from metering.outbox where identifier = $1", identifier)
    page = {each.check: each for each in (await compared(hub)).page}
    assert page.keys() == {"payment_row", "outbox_missing"}
    await repaired(hub, page["payment_row"])
    await all_sent(hub)
    assert (await compared(hub)).differences == 0
    assert total(kit.books.events) == 2 * COST


async def test_a_batch_that_was_lost_is_sent_again_with_its_calls(hub: Neighbours, kit: LocalKit) -> None:
    await hub.restart_metering(payment_kit_batch_s=0.3)
    await charged(hub, count=3)
    await all_sent(hub)
    (event,) = kit.books.events
    assert sides(await compared(hub)).left_count == 1
    kit.books.lose(event["identifier"])
    (difference,) = (await compared(hub)).page
    assert (difference.check, difference.call_id) == ("payment_missing", None)
    await hub.ask(payments.PAYMENT_PAUSE, PaymentPause(paused=True), payments.PaymentStatus)
    await repaired(hub, difference)
    told = await hub.ask(payments.PAYMENT_STATUS, payments.PaymentStatusGet(), payments.PaymentStatus)
    assert told.unreported == 3 * COST, "its calls count as not reported"
    await hub.ask(payments.PAYMENT_PAUSE, PaymentPause(paused=False), payments.PaymentStatus)
    await all_sent(hub)
    assert [each["identifier"] for each in kit.books.events] == [event["identifier"]]
    assert (await compared(hub)).differences == 0


async def test_payment_kit_away_is_not_compared_and_is_looked_at_by_the_next_run(
    hub: Neighbours, kit: LocalKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_BEFORE", timedelta(0))
    assert not sides(await compared(hub, "recent")).not_compared
    (identifier,) = await charged(hub)
    await all_sent(hub)
    await kit.stop()
    report = await compared(hub, "recent")
    assert report.differences == 0
    assert "unreachable" in sides(report).not_compared
    await kit.start()
    kit.books.lose(identifier)
    assert [each.check for each in (await compared(hub, "recent")).page] == ["payment_missing"]


async def test_an_account_without_new_reports_is_looked_at_in_its_turn_and_until_it_is_put_right(
    hub: Neighbours, kit: LocalKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_BEFORE", timedelta(0))
    (identifier,) = await charged(hub, B)
    await charged(hub)
    await all_sent(hub)
    assert sides(await compared(hub, "recent")).note == "Payment Kit: 2 of 2 accounts compared"
    kit.books.lose(identifier)
    in_turn = [await compared(hub, "recent") for _ in range(3)]
    for report in in_turn:
        words = r"Payment Kit: 0 accounts with new reports, [012] others of 2 compared, every account since 2.*Z"
        assert re.fullmatch(words, sides(report).note)
    found = [[(each.check, each.account) for each in report.page] for report in in_turn]
    assert [("payment_missing", B)] in found[:2]
    assert found[2] == [("payment_missing", B)], "it is looked at again, though it is no longer its turn"
    await repaired(hub, in_turn[2].page[0])
    await all_sent(hub)
    assert (await compared(hub, "recent")).differences == 0


async def test_a_run_takes_the_part_of_all_accounts_that_its_time_asks_for(
    books: "asyncpg.Connection[asyncpg.Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    await books.execute(
        "insert into metering.payment_account (account, did) select 'a' || lpad(n::text, 3, '0'), 'd' || n"
        " from generate_series(1, 110) n"
    )

    async def ran(hours_ago: float, rotation: Rotation | None) -> None:
        memory = None if rotation is None else rotation.memory()
        await books.execute("delete from metering.reconciliation")
        await books.execute(
            "insert into metering.reconciliation (id, scope, state, started_at, comparisons)"
            " values (gen_random_uuid(), 'recent', 'done', now() - $1::interval, $2)",
            timedelta(hours=hours_ago),
            json.dumps([{"check": "charges"}, {"check": "payment_kit", "memory": memory}]),
        )

    looked: list[str] = []
    rotation = None
    for _ in range(24):
        await ran(1, rotation)
        rotation = await Rotation.read(books)
        due = await rotation.due(books)
        assert len(due) <= 6, "an hour of twenty-two: five, and what the clock has gone on"
        looked += [row["account"] for row in due]
        rotation.after = looked[-1]
        if not due:
            rotation.ended()
            break
    assert looked == [f"a{number:03}" for number in range(1, 111)], "each once in a round, within a day"
    assert rotation is not None
    assert (rotation.after, rotation.whole_at is None) == ("", False)
    await ran(500, rotation)
    monkeypatch.setattr(rotating, "LOOKS_MAX", 7)
    assert len(await (await Rotation.read(books)).due(books)) == 7, "however long ago the last run was"


async def test_answers_that_are_no_list_are_not_compared(hub: Neighbours, kit: LocalKit) -> None:
    await charged(hub)
    await all_sent(hub)
    faults: list[dict[str, Any]] = [
        {"action": "html"}, {"action": "redirect"}, {"action": "error", "status": 500},
        {"action": "error", "status": 401}, {"action": "lose_reply"},
    ]  # fmt: skip
    for fault in faults:
        kit.fail(method="GET", path="/api/meter-events", **fault)
        report = await compared(hub)
        assert (report.differences, bool(sides(report).not_compared)) == (0, True), fault
    kit.fail("error", method="GET", path="/api/meter-events", status=404)
    assert [each.check for each in (await compared(hub)).page] == ["payment_missing"], "no such customer there"


async def test_events_that_come_while_the_list_is_read_raise_no_false_alarm(hub: Neighbours, kit: LocalKit) -> None:
    await charged(hub, count=120)  # two pages
    ended = asyncio.Event()

    async def load() -> None:
        while not ended.is_set():
            await charged(hub, count=5)

    loading = asyncio.create_task(load())
    found: Counter[str] = Counter()
    for scope in ("all", "recent", "all"):
        report = await compared(hub, scope)
        assert not sides(report).not_compared
        found.update(each.check for each in report.page)
    ended.set()
    await loading
    assert not found
