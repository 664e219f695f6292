"""Reserve and settle on real servers."""

import asyncio
from decimal import Decimal

import msgspec
import pytest
from neighbours import CANDIDATE, Neighbours, call
from rig.waiting import until

from contracts import subjects
from contracts.ids import new_call_id
from contracts.rpc.metering import ReserveBatch
from contracts.subjects import CallKind
from contracts.usage import Candidate, Rates, Usage
from runtime import failpoints

pytestmark = pytest.mark.timeout(60)


async def test_a_reserved_call_is_settled_once_and_everyone_is_told(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    reserved = call(hold="1")

    assert await hub.reserve_batch(reserved) == ["reserved"]
    assert (await hub.account("did:a"))["held"] == 1
    await hub.publish(hub.completed(reserved))
    await hub.until_settled(reserved)

    row = await hub.row(reserved.call_id)
    assert (row["state"], row["credits"], row["outcome"], row["attempts"]) == ("success", Decimal("0.2"), "stop", 1)
    assert hub.settled[reserved.call_id][0].credits == "0.2000000000"
    await hub.until_router_told(reserved)
    assert hub.router_settled[reserved.call_id][0].state == "success"
    await hub.assert_balanced()


async def test_funds_for_37_admit_37_of_500_however_often_they_ask(hub: Neighbours) -> None:
    await hub.start_metering()
    await hub.open_account("did:a", "37")
    calls = [call() for _ in range(500)]
    batches = [calls[at : at + 25] for at in range(0, 500, 25)]

    first = await asyncio.gather(*(hub.reserve_batch(*batch) for batch in batches + batches))

    answers = [status for batch in first for status in batch]
    assert answers.count("reserved") == 37
    assert answers.count("exists") == 37
    assert answers.count("not_enough") == 926
    assert (await hub.account("did:a"))["held"] == 37
    await hub.assert_balanced()


async def test_a_hold_too_large_does_not_refuse_those_behind_it(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    assert await hub.reserve_batch(call(hold="4"), call(hold="50"), call(hold="6"), call(hold="0.0000000001")) == [
        "reserved",
        "not_enough",
        "reserved",
        "not_enough",
    ]
    await hub.assert_balanced()


async def test_an_account_that_was_never_opened_has_nothing_but_may_call_for_free(hub: Neighbours) -> None:
    assert await hub.reserve_batch(call("did:new", "1"), call("did:free", "0")) == ["not_enough", "reserved"]
    assert (await hub.account("did:free"))["granted"] == 0
    assert await hub.books.fetchval("select count(*) from metering.account where id = 'did:new'") == 0


async def test_an_invalid_hold_leaves_its_neighbours_alone(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    statuses = await hub.reserve_batch(call(hold="1"), call(hold="NaN"), call(hold="-3"), call(hold="2"))
    assert statuses == ["reserved", "invalid", "invalid", "reserved"]
    assert (await hub.account("did:a"))["held"] == 3


async def test_an_idempotency_key_belongs_to_the_call_that_was_admitted_first(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    key = "ab" * 32
    refused = call(hold="99", idempotency_key=key)
    first, second = call(idempotency_key=key), call(idempotency_key=key)

    assert await hub.reserve_batch(refused) == ["not_enough"]
    reply = await hub.raw_reserve(msgspec.json.encode(ReserveBatch((first, second, first))))

    assert [result.status for result in reply.results] == ["reserved", "key_taken", "exists"]
    assert reply.results[1].other_call_id == first.call_id
    await hub.books.execute("update metering.idempotency set expires_at = now() - interval '1 s'")
    assert await hub.reserve_batch(second) == ["reserved"]
    await hub.assert_balanced()


async def test_a_key_is_for_one_body_only(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    key, body = "ab" * 32, "cd" * 32
    first = call(idempotency_key=key, body_digest=body)
    assert await hub.reserve_batch(first) == ["reserved"]

    same, other = call(idempotency_key=key, body_digest=body), call(idempotency_key=key, body_digest="ef" * 32)
    unknown = call(idempotency_key=key)  # as an older gateway asks
    reply = await hub.raw_reserve(msgspec.json.encode(ReserveBatch((same, other, unknown))))

    assert [result.status for result in reply.results] == ["key_taken", "key_reused", "key_taken"]
    assert {result.other_call_id for result in reply.results} == {first.call_id}
    assert await hub.books.fetchval("select body from metering.idempotency where digest = $1", key) == body
    await hub.assert_balanced()


async def test_a_key_is_free_again_when_its_call_has_failed(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    key = "ab" * 32
    first = call(idempotency_key=key, body_digest="cd" * 32)
    await hub.reserve_batch(first)
    await hub.publish(hub.failed(first))
    await hub.until_settled(first)

    second, third = (call(idempotency_key=key, body_digest=digit * 64) for digit in "12")
    reply = await hub.raw_reserve(msgspec.json.encode(ReserveBatch((second, third))))

    assert [result.status for result in reply.results] == ["reserved", "key_reused"]
    assert reply.results[1].other_call_id == second.call_id
    await hub.publish(hub.completed(second))
    await hub.until_settled(second)
    assert await hub.reserve_batch(call(idempotency_key=key, body_digest="1" * 64)) == ["key_taken"]
    await hub.assert_balanced()


async def test_cost_above_the_hold_is_not_charged(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    reserved = call(hold="0.1")
    await hub.reserve_batch(reserved)
    await hub.publish(hub.completed(reserved))
    await hub.until_settled(reserved)
    row = await hub.row(reserved.call_id)
    assert (row["credits"], row["overrun"]) == (Decimal("0.1"), Decimal("0.1"))
    await hub.assert_balanced()


async def test_a_failed_call_is_charged_nothing_and_its_cost_written_off(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    reserved = call()
    await hub.reserve_batch(reserved)
    await hub.publish(hub.failed(reserved, candidate=CANDIDATE, usage=Usage(input_tokens=100)))
    await hub.until_settled(reserved)
    row = await hub.row(reserved.call_id)
    assert (row["state"], row["credits"], row["written_off"]) == ("failed", 0, Decimal("0.1"))
    assert (row["error_code"], row["error_reason"]) == ("upstream_broken", "The stream ended early.")
    await hub.assert_balanced()


async def test_racing_outcomes_have_exactly_one_winner(hub: Neighbours) -> None:
    await hub.start_metering()
    accounts = [f"did:{number}" for number in range(7)]
    for account in accounts:
        await hub.open_account(account, "1000")
    calls = [call(accounts[number % 7]) for number in range(200)]
    await hub.reserve_batch(*calls)

    facts = [
        fact
        for reserved in calls
        for fact in (
            hub.completed(reserved),
            hub.failed(reserved, code="stale", gateway="", router=""),
            hub.completed(reserved),
            hub.completed(reserved, input_tokens=1),
        )
    ]
    await hub.publish(*facts)
    await hub.until_settled(*calls)
    await hub.until_drained()

    for reserved in calls:
        told = {(settled.state, settled.credits) for settled in hub.settled[reserved.call_id]}
        row = await hub.row(reserved.call_id)
        assert told == {(row["state"], f"{row['credits']:f}")}
    assert await hub.books.fetchval("select count(*) from metering.ledger") == 200
    assert await hub.books.fetchval("select sum(held) from metering.account") == 0
    await hub.assert_balanced()


async def test_success_after_the_call_was_closed_is_kept_but_not_charged(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    reserved = call()
    await hub.reserve_batch(reserved)
    await hub.publish(hub.failed(reserved, code="stale"))
    await hub.until_settled(reserved)
    await hub.publish(hub.completed(reserved), hub.completed(reserved))
    await hub.until_drained()

    row = await hub.row(reserved.call_id)
    assert (row["state"], row["credits"], row["written_off"]) == ("failed", 0, Decimal("0.2"))
    late = await hub.books.fetch("select * from metering.late_completion")
    assert [(str(one["call_id"]), one["cost"]) for one in late] == [(reserved.call_id, Decimal("0.2"))]
    assert {settled.state for settled in hub.settled[reserved.call_id]} == {"failed"}


async def test_a_message_of_an_earlier_epoch_changes_nothing(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    reserved = call()
    await hub.reserve_batch(reserved)
    await hub.books.execute("update metering.model_call set epoch = 2 where id = $1", reserved.call_id)
    await hub.publish(hub.completed(reserved, epoch=1))
    await hub.until_drained()
    assert (await hub.row(reserved.call_id))["state"] == "processing"
    await hub.publish(hub.completed(reserved, epoch=2))
    await hub.until_settled(reserved)
    assert (await hub.row(reserved.call_id))["state"] == "success"


@pytest.mark.parametrize("point", ["before_commit", "after_commit", "before_ack"])
async def test_redelivery_around_the_commit_settles_once(hub: Neighbours, point: str) -> None:
    await hub.open_account("did:a", "10")
    reserved = call()
    await hub.reserve_batch(reserved)
    failpoints.arm(f"metering.{point}:raise:times=1")
    try:
        await hub.publish(hub.completed(reserved))
        await hub.until_settled(reserved)
    finally:
        failpoints.arm("")
    if point != "before_ack":
        await hub.until_drained()
    assert (await hub.account("did:a"))["spent"] == Decimal("0.2")
    assert (await hub.account("did:a"))["seq"] == 1
    await hub.assert_balanced()


async def test_a_reserve_whose_reply_is_lost_is_a_repeat_the_next_time(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    reserved = call()
    failpoints.arm("metering.reserve_committed:raise:times=1")
    try:
        assert await hub.reserve_batch(reserved) == ["unavailable"]
    finally:
        failpoints.arm("")
    assert await hub.reserve_batch(reserved) == ["exists"]
    assert (await hub.account("did:a"))["held"] == 1


async def test_poison_is_parked_while_its_neighbours_settle(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    calls = [call() for _ in range(5)]
    await hub.reserve_batch(*calls)
    completed = subjects.calls_completed(CallKind.CHAT)
    stranger, foreign, huge = call(), calls[0], calls[1]
    await asyncio.gather(
        hub.publish_raw(completed, b"\x00 no json"),
        hub.publish(hub.completed(huge, first_byte_ms=2**40)),
        hub.publish(hub.completed(stranger)),
        hub.publish(hub.completed(foreign, account="did:b")),
        hub.publish(hub.completed(calls[2], candidate=Candidate("p", "m", Rates(input="-1")))),
        hub.publish(*(hub.completed(one) for one in calls[3:])),
    )
    await hub.until_settled(*calls[3:], stranger, foreign, huge)
    await hub.until_drained()

    reasons = [row["reason"].split(":")[0] for row in await hub.books.fetch("select reason from metering.parked")]
    assert sorted(reasons) == ["bad_value", "other_account", "unknown_call", "unreadable", "unreadable"]
    assert all(hub.settled[one.call_id][0].parked for one in (stranger, foreign, huge))
    assert [hub.settled[one.call_id][0].state for one in calls[3:]] == ["success", "success"]
    await hub.assert_balanced()


async def test_two_processes_settle_and_reserve_on_the_same_accounts_without_a_deadlock(hub: Neighbours) -> None:
    await hub.start_metering()
    accounts = [f"did:{number}" for number in range(20)]
    for account in accounts:
        await hub.open_account(account, "10000")
    before = await hub.books.fetchval("select deadlocks from pg_stat_database where datname = current_database()")

    async def client(number: int) -> None:
        for turn in range(8):
            batch = [call(accounts[(number * 7 + turn * 3 + place) % 20], "0.3") for place in range(12)]
            assert set(await hub.reserve_batch(*batch)) == {"reserved"}
            await hub.publish(*(hub.completed(one) for one in batch))

    await asyncio.gather(*(client(number) for number in range(12)))
    await hub.until_drained()

    async def all_settled() -> bool:
        return bool(await hub.books.fetchval("select count(*) from metering.ledger") == 12 * 8 * 12)

    await until(all_settled, what="all calls are settled")
    await hub.books.execute("select pg_stat_clear_snapshot()")
    after = await hub.books.fetchval("select deadlocks from pg_stat_database where datname = current_database()")
    assert after == before
    await hub.assert_balanced()


async def test_a_call_made_by_a_clock_far_away_is_still_settled(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    calls = [call(call_id=new_call_id(ms)) for ms in (1_000_000, 1_000_000_000_000, 4_000_000_000_000)]
    assert await hub.reserve_batch(*calls) == ["reserved"] * 3
    await hub.publish(*(hub.completed(one) for one in calls))
    await hub.until_settled(*calls)
    await hub.assert_balanced()
