"""Books that agree show no difference, also under load; each seeded corruption is named, and repaired by added rows."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from uuid import uuid4

import asyncpg
import msgspec
import pytest
from neighbours import CANDIDATE, RATES, Neighbours, call
from rig.fixtures import Database
from rig.waiting import until

from contracts.cloudevent import usage_event
from contracts.errors import ErrorCode, HubError
from contracts.events import UsageRecorded
from contracts.ids import new_call_id
from contracts.rpc import reconcile as r
from contracts.rpc.envelope import Empty
from contracts.rpc.metering import ReserveCall
from contracts.subjects import CallKind, calls_completed, usage_recorded
from contracts.usage import Candidate, Usage
from metering.reconcile import stream

A, B = "did:a", "did:b"


@pytest.fixture(autouse=True)
def one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """NATS and PostgreSQL run on one machine here, and the streams were made a moment ago."""
    monkeypatch.setattr(stream, "_CLOCKS_DIFFER", timedelta(0))


async def compared(hub: Neighbours, scope: r.Scope = "all") -> r.ReconcileReport:
    """Start a run and wait for its end."""
    started = await hub.ask(r.RECONCILE_START, r.ReconcileStart(scope=scope), r.ReconcileStarted)

    async def ended() -> r.ReconcileReport | None:
        wanted = r.ReconcileGet(run_id=started.run_id, limit=1000)
        report = await hub.ask(r.RECONCILE_GET, wanted, r.ReconcileReport)
        return report if report.state != "running" else None

    report = await until(ended, within_s=30, what="the comparison ends")
    assert report is not None
    assert report.state == "done", report.error
    return report


async def named(hub: Neighbours, scope: r.Scope = "all") -> dict[str, r.DifferenceView]:
    """What a run finds, by the names of the checks; the last one of each."""
    report = await compared(hub, scope)
    assert report.differences == len(report.page)
    return {each.check: each for each in report.page}


async def repaired(hub: Neighbours, difference: r.DifferenceView) -> str:
    assert difference.repair == f"hub reconcile --repair {difference.id}"
    wanted = r.ReconcileRepair(difference_id=difference.id, reason="a test", repaired_by="tester")
    return (await hub.ask(r.RECONCILE_REPAIR, wanted, r.ReconcileRepaired)).done


async def until_sent(hub: Neighbours) -> None:
    async def sent() -> bool:
        behind = "select count(*) from metering.account a left join metering.usage_sent s on s.account = a.id"
        return not await hub.books.fetchval(f"{behind} where a.seq > coalesce(s.seq, 0)")

    await until(sent, within_s=30, what="every usage event is stored")


@dataclass
class Story:
    """Settled calls of two accounts, and an open one of the first."""

    hub: Neighbours
    success: ReserveCall
    failed: ReserveCall
    other: ReserveCall
    """Of the second account."""
    spare: list[ReserveCall]
    """More successes of the second account."""


@pytest.fixture
async def story(hub: Neighbours) -> Story:
    for account in (A, B):
        await hub.open_account(account, "100")
    done = [call(A), call(A), call(A), call(B)]
    running = call(A, hold="3")
    spare = [call(B) for _ in range(6)]
    await hub.reserve_batch(*done, running, *spare)
    first, second, failed, other = done
    await hub.publish(hub.completed(first), hub.completed(other))
    await hub.until_settled(first, other)
    await hub.publish(*(hub.completed(one) for one in spare))
    await hub.publish(hub.failed(failed, candidate=CANDIDATE, usage=Usage(input_tokens=7)))
    await hub.publish(hub.completed(second, 33))
    await hub.until_settled(second, failed, *spare)
    await until_sent(hub)
    await hub.until_drained()
    return Story(hub, first, failed, other, spare)


async def test_books_that_agree_have_no_difference_and_both_sides_are_told(story: Story) -> None:
    report = await compared(story.hub)
    assert (report.differences, report.page, report.accepted) == (0, (), 0)
    sides = {each.check: each for each in report.comparisons}
    cost = "1.7330000000"
    for check in ("ledger", "spent", "facts", "usage_events", "charges"):
        side = sides[check]
        assert (side.left_count, side.right_count) == (10, 10), side
        assert (side.left_sum, side.right_sum) == (cost, cost), side
    assert (sides["held"].left_sum, sides["held"].right_sum) == ("3.0000000000", "3.0000000000")
    assert (sides["attempts"].left_count, sides["attempts"].right_count) == (9, 9)


async def test_a_comparison_beside_live_calls_raises_no_false_alarm(hub: Neighbours) -> None:
    """Two meterings settle, reserve and publish all the time; holds, facts and events are under way in every look."""
    await hub.start_metering()
    accounts = [f"did:{number}" for number in range(8)]
    for account in accounts:
        await hub.open_account(account, "100000")
    ending = asyncio.Event()

    async def keep_calling(account: str) -> int:
        number = 0
        while not ending.is_set():
            calls = [call(account) for _ in range(6)]
            await hub.reserve_batch(*calls)
            await hub.publish(*(hub.failed(one) if number % 4 == 3 else hub.completed(one) for one in calls[:5]))
            number += 1
        return number

    callers = [asyncio.create_task(keep_calling(account)) for account in accounts]
    scopes: tuple[r.Scope, ...] = ("all", "recent", "all")
    reports = [await compared(hub, scope) for scope in scopes]
    ending.set()
    assert sum(await asyncio.gather(*callers)) > len(accounts)
    for report in reports:
        assert report.page == ()
        assert report.differences == 0
    assert max(each.left_count for each in reports[-1].comparisons if each.check == "facts") > 0


CORRUPTIONS: list[tuple[str, set[str], set[str]]] = [
    ("update metering.ledger set amount = amount + 0.0000000001 where call_id = $1",
     {"ledger_amount", "spent", "event_amount"}, {"ledger_amount"}),
    ("delete from metering.ledger where call_id = $1",
     {"ledger_missing", "sequence_gap", "spent", "event_orphan"}, {"ledger_missing"}),
    ("update metering.model_call set credits = 0.1 where id = $1",
     {"charge", "ledger_amount", "fact_amount"}, {"ledger_amount"}),
    ("update metering.account set held = held + 1 where id = (select account from metering.model_call where id = $1)",
     {"held"}, {"held"}),
    (("update metering.account set spent = spent - 0.0000000001"
     " where id = (select account from metering.model_call where id = $1)"), {"spent"}, {"spent"}),
    (("with c as (update metering.model_call set credits = 0.3 where id = $1 returning id) update metering.ledger l"
     " set amount = 0.3 from c where l.call_id = c.id"),
     {"charge", "fact_amount", "event_amount", "spent"}, {"spent", "charge"}),
]  # fmt: skip
"""Statement, what it must be called, and which of the differences are repaired; the others go with them."""


@pytest.mark.parity(64)
async def test_each_corruption_is_named_row_by_row_and_repaired_by_added_rows(story: Story) -> None:
    hub = story.hub
    for (statement, names, repairs), victim in zip(CORRUPTIONS, story.spare, strict=True):
        accepted = (await compared(hub)).accepted
        await hub.books.execute(statement, victim.call_id)
        before = await hub.books.fetch("select call_id, amount, acct_seq from metering.ledger order by call_id")
        found = await named(hub)
        assert found.keys() == names, statement
        assert all(difference.detail for difference in found.values())
        assert all(difference.account == B for difference in found.values())
        for name in sorted(repairs):
            await repaired(hub, found[name])

        rows = await hub.books.fetch("select call_id, amount, acct_seq from metering.ledger order by call_id")
        assert [row for row in rows if row in before] == before, "no row was edited"
        left = await named(hub)
        evidence = {"event_amount", "fact_amount"}
        assert left.keys() <= evidence, "only messages that said something else stay, until they are accepted"
        for difference in left.values():
            wanted = r.ReconcileAccept(difference_id=difference.id, reason="The row was corrupted.")
            await hub.ask(r.RECONCILE_ACCEPT, wanted, Empty)
        report = await compared(hub)
        assert (report.differences, report.accepted) == (0, accepted + len(left))
    assert (await hub.account(B))["spent"] == Decimal("1.4"), "seven calls, as they were charged"


async def test_missing_rows_get_back_the_numbers_that_their_events_have(story: Story) -> None:
    hub = story.hub
    rows = await hub.books.fetch("select * from metering.ledger order by account, acct_seq")
    await hub.books.execute("delete from metering.ledger where account = $1", B)
    report = await compared(hub)
    missing = [each for each in report.page if each.check == "ledger_missing"]
    assert len(missing) == 7
    for difference in reversed(missing):
        await repaired(hub, difference)
    assert await hub.books.fetch("select * from metering.ledger order by account, acct_seq") == rows
    assert (await compared(hub)).page == ()


async def test_a_missing_row_without_an_event_gets_the_free_number(story: Story) -> None:
    hub = story.hub
    row = await hub.books.fetchrow("delete from metering.ledger where account = $1 and acct_seq = 2 returning *", A)
    await hub.empty_usage_stream()
    missing = (await named(hub))["ledger_missing"]
    await repaired(hub, missing)
    assert await hub.books.fetchrow("select * from metering.ledger where account = $1 and acct_seq = 2", A) == row


STRANGERS: list[tuple[str, str]] = [
    ("attempt_orphan", ("insert into metering.attempt (call_id, number, provider, model)"
                       " select '019c0000-0000-7000-8000-000000000000', 1, $1::text, 'm'")),
    ("attempt_count", "delete from metering.attempt where call_id = $1"),
    ("sequence_repeat", "update metering.ledger set acct_seq = 9 where call_id = $1"),
    ("ledger_account", "update metering.ledger set account = 'did:a' where call_id = $1"),
    ("usage_sent", "update metering.usage_sent set seq = 99 where account = 'did:b' and $1::text <> ''"),
    ("overrun", "update metering.model_call set overrun = 1 where id = $1"),
    ("fact_unsettled", "update metering.model_call set state = 'processing', credits = null, hold = 0 where id = $1"),
    ("parked", ("insert into metering.parked (digest, reason, subject, payload)"
               " values ('x', 'unreadable: no JSON', $1::text, 'p')")),
]  # fmt: skip


async def test_what_no_row_can_repair_is_named_and_can_be_accepted(story: Story) -> None:
    hub = story.hub
    for place, (name, statement) in enumerate(STRANGERS):
        await hub.books.execute(statement, story.spare[place % len(story.spare)].call_id)
        found = (await named(hub))[name]
        assert found.repair.startswith(f"hub reconcile --accept {found.id}")
        with pytest.raises(HubError) as refused:
            await hub.ask(r.RECONCILE_REPAIR, r.ReconcileRepair(difference_id=found.id), r.ReconcileRepaired)
        assert refused.value.code == ErrorCode.CONFLICT
        await hub.ask(r.RECONCILE_ACCEPT, r.ReconcileAccept(difference_id=found.id, reason="seen"), Empty)
        again = await compared(hub)
        assert found.id not in {each.id for each in again.page}


async def test_a_ledger_row_without_a_call_is_cancelled_by_an_adjustment(story: Story) -> None:
    hub, stranger = story.hub, new_call_id()
    await hub.books.execute(
        "insert into metering.ledger (call_id, account, acct_seq, amount) values ($1, $2, 4, 5)", stranger, A
    )
    found = await named(hub)
    assert found.keys() == {"ledger_orphan", "sequence_repeat", "spent", "fact_missing"}
    assert (found["ledger_orphan"].call_id, found["ledger_orphan"].found) == (stranger, "5.0000000000")
    await repaired(hub, found["ledger_orphan"])
    assert (await named(hub)).keys() == {"sequence_repeat", "fact_missing"}
    assert (await hub.account(A))["spent"] == Decimal("0.333"), "the account never paid for it"


async def test_a_usage_event_that_the_bus_lost_is_named_and_published_again(story: Story) -> None:
    hub = story.hub
    await hub.empty_usage_stream()
    report = await compared(hub)
    assert {each.check for each in report.page} == {"event_missing"}
    ids = {str(row["call_id"]) for row in await hub.books.fetch("select call_id from metering.ledger")}
    assert {each.call_id for each in report.page} == ids
    for difference in report.page:
        await repaired(hub, difference)
    assert (await compared(hub)).page == ()
    twice = r.ReconcileRepair(difference_id=report.page[0].id)
    with pytest.raises(HubError) as refused:
        await hub.ask(r.RECONCILE_REPAIR, twice, r.ReconcileRepaired)
    assert refused.value.code == ErrorCode.SERVICE_UNAVAILABLE, "the stream has it and says so"


async def test_an_event_of_another_amount_or_of_no_call_is_named(story: Story) -> None:
    hub = story.hub
    metering = await hub._open("metering", "metering-forger")
    for call_id, sequence in ((story.other.call_id, 1), (new_call_id(), 8)):
        forged = UsageRecorded(
            call_id, B, sequence, "success", "stop", "0.7000000000", "chat", "m", "demo", Usage(), {}
        )
        payload = msgspec.json.encode(usage_event(forged))
        assert b'"error"' not in await metering.call(usage_recorded(CallKind.CHAT), payload, 5)
    found = await named(hub)
    assert found.keys() == {"event_amount", "event_orphan"}
    assert found["event_orphan"].found == "#8 0.7000000000"
    assert (found["event_amount"].expected, found["event_amount"].found) == ("0.2000000000", "0.7000000000")


async def test_a_fact_that_costs_something_else_is_named(story: Story) -> None:
    """The bus keeps what providers said: a charge that was changed everywhere in the books is found by it."""
    hub = story.hub
    dearer = Candidate("demo", "echo", RATES, "r1")
    forged = hub.completed(story.success, 200, candidate=dearer)
    await hub.books.execute("update metering.model_call set epoch = 2 where id = $1", story.success.call_id)
    await hub.publish_raw(calls_completed(CallKind.CHAT), msgspec.json.encode(msgspec.structs.replace(forged, epoch=2)))
    await hub.until_drained()
    found = await named(hub)
    assert found.keys() == {"fact_amount"}
    assert (found["fact_amount"].expected, found["fact_amount"].found) == ("0.3000000000", "0.2000000000")


async def test_a_success_that_came_too_late_is_expected_among_the_late_ones(hub: Neighbours) -> None:
    await hub.open_account(A, "10")
    reserved = call(A)
    await hub.reserve_batch(reserved)
    await hub.publish(hub.failed(reserved, code="stale"))
    await hub.until_settled(reserved)
    await hub.publish(hub.completed(reserved))
    await until_sent(hub)
    await hub.until_drained()
    assert (await compared(hub)).page == ()
    await hub.books.execute("delete from metering.late_completion")
    found = await named(hub)
    assert found.keys() == {"fact_late"}
    assert found["fact_late"].expected == "0.2000000000"


async def test_what_is_settled_without_a_fact_is_named(story: Story) -> None:
    """A call and its ledger row, written by hand, agree with each other: only the bus knows nothing of it."""
    hub, forged = story.hub, new_call_id()
    await hub.books.execute(
        "insert into metering.model_call (id, account, user_did, project, key_id, kind, dialect, model, stream, state,"
        " lease_until, deadline, hold, credits, candidates, settled_at, duration_s) values ($1, $2, 'u', 'p', 'k',"
        " 'chat', 'openai', 'm', false, 'failed', now(), now(), 1, 0, '[]', now(), 0)", forged, B,
    )  # fmt: skip
    await hub.books.execute("insert into metering.ledger values ($1, $2, 8, 0, now())", forged, B)
    await hub.books.execute("update metering.account set seq = 8 where id = $1", B)
    found = await named(hub)
    assert found.keys() == {"fact_missing"}
    assert found["fact_missing"].call_id == forged
    recent = await named(hub, "recent")
    assert recent.keys() == {"fact_missing"}, "also with the bus read from the last run on"


async def test_facts_that_are_parked_count_as_looked_after(story: Story) -> None:
    hub = story.hub
    await hub.publish_raw(calls_completed(CallKind.CHAT), b"\x00 no JSON")
    await hub.publish(hub.completed(call("did:nobody")))
    await hub.until_drained()
    report = await compared(hub)
    assert [each.check for each in report.page] == ["parked", "parked"]
    assert all("hub reconcile --accept" in each.repair for each in report.page)
    await hub.books.execute(
        "insert into metering.outbox (id, kind, identifier, account, user_did, project, value, event_at, state, reason)"
        " values ($1::text::uuid, 'meter', 'mc_' || $1, 'did:a', 'u', 'p', 1, 1, 'parked', 'refused')", new_call_id(),
    )  # fmt: skip
    counted = await hub.ask(r.PARKED_COUNT, Empty(), r.ParkedCount)
    assert (counted.parked, counted.reports) == (2, 1)
    assert counted.reasons == {"unreadable": 1, "unknown_call": 1}
    for each in report.page:
        await hub.ask(r.RECONCILE_ACCEPT, r.ReconcileAccept(difference_id=each.id, reason="seen"), Empty)
    assert (await hub.ask(r.PARKED_COUNT, Empty(), r.ParkedCount)).parked == 0


async def test_a_repair_is_made_once_and_an_unknown_one_is_refused(story: Story) -> None:
    hub = story.hub
    await hub.books.execute("update metering.account set held = held + 1 where id = 'did:b'")
    held = (await named(hub))["held"]
    assert "held moved by -1.0000000000" in await repaired(hub, held)
    for difference_id, code in ((held.id, ErrorCode.CONFLICT), ("000000000000", ErrorCode.NOT_FOUND)):
        with pytest.raises(HubError) as refused:
            await hub.ask(r.RECONCILE_REPAIR, r.ReconcileRepair(difference_id=difference_id), r.ReconcileRepaired)
        assert refused.value.code == code
    with pytest.raises(HubError) as refused:
        await hub.ask(r.RECONCILE_ACCEPT, r.ReconcileAccept(difference_id="nothing", reason="x"), Empty)
    assert refused.value.code == ErrorCode.NOT_FOUND
    (made,) = await hub.books.fetch("select * from metering.adjustment")
    assert (made["target"], made["amount"], made["made_by"]) == ("held", Decimal(-1), "tester")


async def test_one_comparison_runs_at_a_time_and_one_whose_process_died_is_lost(hub: Neighbours) -> None:
    assert (await hub.books.fetchval("select pg_try_advisory_lock(7201190511361)")) is True
    await hub.books.execute("insert into metering.reconciliation (id, scope) values ($1, 'all')", run := uuid4())
    other = await hub.ask(r.RECONCILE_START, r.ReconcileStart(), r.ReconcileStarted)
    assert (other.run_id, other.already) == (str(run), True)
    get = r.ReconcileGet(run_id=str(run))
    assert (await hub.ask(r.RECONCILE_GET, get, r.ReconcileReport)).state == "running"
    await hub.books.execute("select pg_advisory_unlock(7201190511361)")
    assert (await hub.ask(r.RECONCILE_GET, get, r.ReconcileReport)).state == "lost"
    assert (await compared(hub)).page == ()
    assert await hub.books.fetchval("select state from metering.reconciliation where id = $1", run) == "lost"


async def test_a_comparison_that_cannot_read_the_bus_fails_and_does_not_pass(
    hub: Neighbours, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream.BusView, "settled_up_to", lambda _: _away())
    started = await hub.ask(r.RECONCILE_START, r.ReconcileStart(), r.ReconcileStarted)

    async def ended() -> r.ReconcileReport | None:
        report = await hub.ask(r.RECONCILE_GET, r.ReconcileGet(run_id=started.run_id), r.ReconcileReport)
        return report if report.state != "running" else None

    report = await until(ended, what="the comparison ends")
    assert report is not None
    assert (report.state, report.error) == ("failed", "TimeoutError: the bus is away")


async def _away() -> int:
    raise TimeoutError("the bus is away")


async def test_the_service_cannot_edit_what_proves_its_books(database: Database) -> None:
    connection = await asyncpg.connect(database.dsns["metering"])
    for table in ("closing", "closing_account", "adjustment", "difference_accepted", "difference"):
        for right in ("update", "delete", "truncate"):
            has = await connection.fetchval("select has_table_privilege($1, $2)", f"metering.{table}", right)
            assert not has, f"{right} {table}"
    await connection.close()
