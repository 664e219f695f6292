"""Every settled call has its event, in a sequence without gaps."""

import dataclasses

import msgspec
import pytest
from neighbours import CANDIDATE, Neighbours, call
from rig.waiting import until

from contracts.cloudevent import UsageEvent
from contracts.events import CallCompleted, CallFailed
from contracts.rpc import model_calls
from contracts.usage import Piece, PieceRate, Rates, Tier, Usage
from metering import pricing, recorded, usage_events
from metering.sql.store import TurnResult
from metering.stored import rates_of, usage_of


async def _until_sent(hub: Neighbours) -> None:
    async def sent() -> bool:
        behind = "select count(*) from metering.account a left join metering.usage_sent s on s.account = a.id"
        return not await hub.books.fetchval(f"{behind} where a.seq > coalesce(s.seq, 0)")

    await until(sent, within_s=30, what="every usage event is stored")


def _assert_contiguous(hub: Neighbours, account: str, count: int) -> None:
    events = [event for event in hub.events if event.data.account == account]
    assert {event.data.sequence for event in events} == set(range(1, count + 1))
    assert {event.sequence for event in events} == {f"{number:020d}" for number in range(1, count + 1)}


async def test_sequences_are_contiguous_per_account_over_two_processes(hub: Neighbours) -> None:
    await hub.start_metering()
    for account in ("did:a", "did:b"):
        await hub.open_account(account, "1000")
    calls = [call(("did:a", "did:b")[number % 2]) for number in range(120)]
    await hub.reserve_batch(*calls)
    await hub.publish(*(hub.failed(one) if number % 5 == 0 else hub.completed(one) for number, one in enumerate(calls)))
    await hub.until_settled(*calls)
    await _until_sent(hub)
    assert len(hub.events) == 120
    _assert_contiguous(hub, "did:a", 60)
    _assert_contiguous(hub, "did:b", 60)
    assert sum(event.data.state == "failed" for event in hub.events) == 24


async def test_two_processes_on_one_account_say_at_once_how_far_it_is_sent_and_send_nothing_twice(
    hub: Neighbours,
) -> None:
    """One call a turn: sequences alternate, so neither process ever has two in a row."""
    await hub.restart_metering(turn_max=1)
    await hub.start_metering(turn_max=1)
    await hub.open_account("did:a", "1000")
    calls = [call() for _ in range(200)]
    await hub.reserve_batch(*calls)
    await hub.publish(*(hub.completed(one) for one in calls))
    await hub.until_settled(*calls)
    await _until_sent(hub)
    assert sorted(event.data.sequence for event in hub.events) == list(range(1, 201)), "each was published once"
    assert await hub.books.fetchval("select ahead = '{}' from metering.usage_sent")


async def test_acknowledged_events_behind_a_gap_are_not_published_again(
    hub: Neighbours, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one in the gap is: as when another process died after its commit, before it published."""
    published = usage_events.UsageEvents.publish

    def lossy(usage: usage_events.UsageEvents, result: TurnResult) -> None:
        published(usage, dataclasses.replace(result, settled=[one for one in result.settled if one.sequence != 3]))

    monkeypatch.setattr(usage_events.UsageEvents, "publish", lossy)
    await hub.open_account("did:a", "1000")
    calls = [call() for _ in range(8)]
    await hub.reserve_batch(*calls)
    await hub.publish(*(hub.completed(one) for one in calls))

    async def known() -> bool:
        sent = "select seq = 2 and ahead = '{[4,8]}' from metering.usage_sent where account = 'did:a'"
        return await hub.books.fetchval(sent) is True

    await until(known, within_s=20, what="what was acknowledged behind the gap is in the books")
    await hub.books.execute("update metering.ledger set at = at - interval '1 minute'")
    await hub.restart_metering()
    await _until_sent(hub)
    assert [event.data.sequence for event in hub.events][-1] == 3
    _assert_contiguous(hub, "did:a", 8)
    assert len(hub.events) == 8


async def test_another_stream_has_nothing_that_was_ahead(hub: Neighbours) -> None:
    stored = "select seq from metering.usage_stored('first', '{did:a,did:a,did:a}', '{1,4,8}', '{2,5,8}')"
    await hub.stop_metering()
    await hub.books.execute("update metering.usage_stream set made_at = 'first'")
    assert await hub.books.fetchval(stored) == 2
    assert await hub.books.fetchval("select metering.refill_usage('second', '1 day')")
    assert tuple(await hub.books.fetchrow("select seq, ahead::text from metering.usage_sent") or ()) == (0, "{}")


async def test_an_event_says_what_the_books_say(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    reserved = call(hold="0.15")
    await hub.reserve_batch(reserved)
    await hub.publish(hub.completed(reserved))
    await hub.until_settled(reserved)
    await _until_sent(hub)
    (event,) = hub.events
    assert (event.id, event.subject) == (f"ue_{reserved.call_id}", "accounts/did:a")
    assert (event.data.credits, event.data.overrun) == ("0.1500000000", "0.0500000000")
    assert (event.data.rates, event.data.usage) == (
        {"input": "0.001", "output": "0.002", "request": "0"},
        Usage(input_tokens=100, output_tokens=50),
    )


@pytest.mark.parametrize("ended", ["success", "failed", "failed before anybody answered"])
async def test_an_event_read_from_the_books_is_the_one_that_was_lost(hub: Neighbours, ended: str) -> None:
    await hub.open_account("did:a", "10")
    reserved = call()
    await hub.reserve_batch(reserved)
    fact: CallCompleted | CallFailed
    if ended == "success":
        fact = hub.completed(reserved, usage=Usage(1, 2, 3, 4, 5))
    elif ended == "failed":
        fact = hub.failed(reserved, candidate=CANDIDATE, usage=Usage(1), duration_ms=77)
    else:
        fact = hub.failed(reserved)
    await hub.publish(fact)
    await hub.until_settled(reserved)
    await _until_sent(hub)
    await hub.stop_metering()

    await hub.books.execute("update metering.usage_sent set seq = 0")
    await hub.books.execute("update metering.ledger set at = at - interval '1 minute'")
    await hub.empty_usage_stream()
    await hub.start_metering()
    await _until_sent(hub)

    first, second = hub.events
    assert msgspec.to_builtins(second) == msgspec.to_builtins(first)


async def test_events_that_the_bus_never_took_are_published_again(
    hub: Neighbours, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the process dies after its commit."""
    monkeypatch.setattr(usage_events.UsageEvents, "publish", lambda _self, _result: None)
    await hub.restart_metering()
    await hub.open_account("did:a", "1000")
    calls = [call() for _ in range(50)]
    await hub.reserve_batch(*calls)
    await hub.publish(*(hub.completed(one) for one in calls))
    await hub.until_settled(*calls)
    assert hub.events == []
    monkeypatch.undo()

    await hub.books.execute("update metering.ledger set at = at - interval '1 minute'")
    await hub.restart_metering()
    await _until_sent(hub)
    _assert_contiguous(hub, "did:a", 50)


def test_a_gap_ends_a_run() -> None:
    assert list(usage_events._runs([5, 3, 4, 9, 8, 4])) == [(3, 5), (8, 9)]
    assert list(usage_events._runs([7])) == [(7, 7)]


def test_the_event_is_a_cloudevent() -> None:
    fields = set(UsageEvent.__struct_fields__)
    assert {"id", "source", "specversion", "type", "subject", "time", "datacontenttype", "data"} <= fields


async def test_all_units_of_a_call_are_charged_kept_and_told(hub: Neighbours) -> None:
    """From memory, from the books, and to whoever looks the call up: the same figures, tiers and pieces included."""
    rates = Rates(
        "0.001",
        "0.002",
        tiers=(Tier(200, "0.01", "0.02"),),
        pieces=(PieceRate("image", "0.5", quality="hd"),),
    )
    used = Usage(100, 10, cache_write_1h_tokens=101, pieces=(Piece("image", "2", "1024x1024", "hd"),))
    candidate = msgspec.structs.replace(CANDIDATE, rates=rates)
    await hub.open_account("did:a", "10")
    reserved = call(hold="5", candidates=(candidate,))
    await hub.reserve_batch(reserved)
    await hub.publish(hub.completed(reserved, candidate=candidate, usage=used))
    await hub.until_settled(reserved)
    await _until_sent(hub)
    (event,) = hub.events
    assert (event.data.credits, event.data.usage) == ("3.2100000000", used)
    row = await hub.row(reserved.call_id)
    assert pricing.cost(usage_of(row), rates_of(row) or Rates()) == row["credits"]
    behind = recorded.from_books({**dict(row), "acct_seq": 1, "amount": row["credits"]})
    assert (behind.usage, behind.rates, behind.credits) == (used, event.data.rates, event.data.credits)
    view = await hub.ask(model_calls.CALL_GET, model_calls.CallGet(call_id=reserved.call_id), model_calls.CallView)
    assert view.usage is not None
    assert (view.usage["cache_write_1h_tokens"], view.usage["image 1024x1024 hd"]) == (101, "2")


async def test_units_of_a_late_completion_are_kept_for_review(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    reserved = call()
    await hub.reserve_batch(reserved)
    await hub.publish(hub.failed(reserved))
    await hub.until_settled(reserved)
    await hub.publish(hub.completed(reserved, usage=Usage(1, cache_write_1h_tokens=7)))
    await hub.until_drained()
    late = await hub.books.fetchval("select usage from metering.late_completion")
    assert (msgspec.json.decode(late)["input_tokens"], msgspec.json.decode(late)["cache_write_1h_tokens"]) == (1, 7)
