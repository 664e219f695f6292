"""Open calls: holds raised, leases renewed, stale ones found."""

import asyncio
from collections.abc import Sequence

import msgspec
from neighbours import Neighbours, call
from rig.waiting import until

from contracts import subjects
from contracts.ids import new_call_id
from contracts.rpc import metering as questions
from contracts.rpc import model_calls
from contracts.rpc.metering import ExtendHold, ExtendReply, RenewLeases, RenewReply, ReserveCall
from contracts.rpc.model_calls import StaleCall, StaleCalls, StaleReply


async def _extend(hub: Neighbours, reserved: ReserveCall, amount: str, epoch: int = 1) -> ExtendReply:
    subject = subjects.rpc(questions.SERVICE, questions.EXTEND)
    payload = msgspec.json.encode(ExtendHold(reserved.call_id, epoch, reserved.account, amount))
    return msgspec.json.decode(await hub.router.call(subject, payload, 5), type=ExtendReply)


async def _renew(hub: Neighbours, *calls: tuple[str, int]) -> RenewReply:
    subject = subjects.rpc(questions.SERVICE, questions.RENEW)
    payload = msgspec.json.encode(RenewLeases(hub.router_id, calls))
    return msgspec.json.decode(await hub.router.call(subject, payload, 30), type=RenewReply)


async def _stale(hub: Neighbours) -> Sequence[StaleCall]:
    return (await hub.ask(model_calls.STALE, StaleCalls(), StaleReply)).calls


async def test_a_hold_grows_as_long_as_there_is_credit(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    reserved = call(hold="1")
    await hub.reserve_batch(reserved)
    assert (await _extend(hub, reserved, "8")).granted
    assert (await _extend(hub, reserved, "1.5")).reason == "not_enough"
    assert (await hub.account("did:a"))["held"] == 9
    assert (await hub.row(reserved.call_id))["hold"] == 9
    await hub.assert_balanced()


async def test_a_hold_does_not_grow_once_the_call_has_ended_or_was_taken_over(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    reserved = call()
    await hub.reserve_batch(reserved)
    assert (await _extend(hub, reserved, "1", epoch=2)).reason == "ended"
    assert (await _extend(hub, call(), "1")).reason == "ended"
    assert (await _extend(hub, reserved, "NaN")).reason == "invalid"
    await hub.publish(hub.completed(reserved))
    await hub.until_settled(reserved)
    assert (await _extend(hub, reserved, "1")).reason == "ended"
    await hub.assert_balanced()


async def test_extending_races_settling_and_the_books_stay_balanced(hub: Neighbours) -> None:
    await hub.start_metering()
    await hub.open_account("did:a", "1000")
    calls = [call() for _ in range(40)]
    await hub.reserve_batch(*calls)
    await asyncio.gather(
        *(_extend(hub, reserved, "0.5") for reserved in calls), hub.publish(*(hub.completed(one) for one in calls))
    )
    await hub.until_settled(*calls)
    assert (await hub.account("did:a"))["held"] == 0
    await hub.assert_balanced()


async def test_renewing_moves_the_lease_and_names_what_has_ended(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    running, ended, taken = call(), call(), call()
    await hub.reserve_batch(running, ended, taken)
    await hub.publish(hub.completed(ended))
    await hub.until_settled(ended)
    await hub.books.execute("update metering.model_call set epoch = 2 where id = $1", taken.call_id)
    before = (await hub.row(running.call_id))["lease_until"]
    unknown = new_call_id()

    reply = await _renew(hub, *((one, 1) for one in (running.call_id, ended.call_id, taken.call_id, unknown)))

    assert reply.renewed == 1
    assert set(reply.ended) == {ended.call_id, taken.call_id, unknown}
    row = await hub.row(running.call_id)
    assert row["lease_until"] > before
    assert row["router"] == hub.router_id


async def test_a_renewal_waits_for_whoever_changes_its_account_and_sees_what_came_of_it(hub: Neighbours) -> None:
    """Rows that change under a renewal, or under a turn because of one, have made PostgreSQL crash."""
    await hub.restart_metering(reserve_wait_s=30.0)
    await hub.open_account("did:a", "10")
    running, taken = call(), call()
    await hub.reserve_batch(running, taken)

    async def waits() -> bool:
        return bool(await hub.books.fetchval("select count(*) from pg_locks where not granted"))

    async with hub.books.transaction():
        await hub.books.execute("select 1 from metering.account where id = 'did:a' for no key update")
        renewing = asyncio.create_task(_renew(hub, (running.call_id, 1), (taken.call_id, 1)))
        await until(waits, what="the renewal waits for the account")
        await hub.books.execute("update metering.model_call set epoch = 2 where id = $1", taken.call_id)
    reply = await renewing

    assert (reply.renewed, reply.ended) == (1, (taken.call_id,))


async def test_a_renewal_of_many_calls_under_several_epochs_is_whole(hub: Neighbours) -> None:
    await hub.open_account("did:a", "1000")
    calls = [call() for _ in range(300)]
    await hub.reserve_batch(*calls)
    await hub.books.execute("update metering.model_call set epoch = 2 where id = $1", calls[0].call_id)

    reply = await _renew(hub, *((one.call_id, 2 if one is calls[0] else 1) for one in calls), ("no id", 1))

    assert (reply.renewed, reply.ended) == (300, ())
    assert await hub.books.fetchval("select count(*) from metering.model_call where router = $1", hub.router_id) == 300


async def test_a_call_whose_lease_ended_is_stale_until_it_is_closed(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    reserved, renewed = call(), call()
    await hub.reserve_batch(reserved, renewed)
    assert await _stale(hub) == ()

    async def is_stale() -> bool:
        await _renew(hub, (renewed.call_id, 1))
        return [one.call_id for one in await _stale(hub)] == [reserved.call_id]

    await until(is_stale, within_s=12, what="the call is stale")
    await hub.publish(hub.failed(reserved, code="stale"))
    await hub.until_settled(reserved)
    assert reserved.call_id not in {one.call_id for one in await _stale(hub)}


async def test_a_new_process_finds_stale_calls_of_long_ago(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    calls = [call(call_id=new_call_id(ms)) for ms in (1_000_000, 1_700_000_000_000, 4_000_000_000_000)]
    await hub.reserve_batch(*calls)
    await hub.books.execute("update metering.model_call set lease_until = now() - interval '1 s'")
    await hub.restart_metering()
    assert await _stale(hub) == (), "routers have had no time to renew since the start"

    async def found() -> bool:
        return {one.call_id for one in await _stale(hub)} == {one.call_id for one in calls}

    await until(found, within_s=15, what="all calls are stale")
