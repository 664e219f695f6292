"""Rows 21 to 25 of the crash table: facts that kill, servers without room, a bus that lost its store, clocks."""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import asyncpg
import msgspec
import pytest
import pytest_asyncio
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, DiscardPolicy
from rig.provider import Reply
from rig.waiting import until

from contracts.cloudevent import UsageEvent
from contracts.permissions import PROVISIONER
from contracts.streams import CALLS, USAGE
from faults.clients import Payer, Told
from faults.conftest import SetScene
from faults.scene import CLOSED_WITHIN_S, Scene
from hub_local.credentials import ADMIN
from runtime.bus import Bus

HOUR_S = 3600
DAY_S = 24 * HOUR_S
SUSPECT = 3
"""Deliveries; five in real life."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def whole_scene(set_scene: SetScene) -> Scene:
    env = {"HUB_SETTLE_S": "4", "HUB_UNSETTLED_MAX": "3", "HUB_SUSPECT_DELIVERIES": str(SUSPECT)}
    return await set_scene(counts={"metering": 2}, env=env)


@pytest.mark.crash(21)
async def test_row_21_metering_dies_after_a_usage_event_is_stored_before_it_says_so(scene: Scene, payer: Payer) -> None:
    await scene.hub.kill("metering-2")
    await scene.arm("metering", "metering.before_usage_sent:kill")
    told = await payer.chat()
    assert told.final
    await scene.died("metering")
    account = await scene.row(payer)
    assert await scene.hub.value("select seq from metering.usage_sent where account = $1", payer.account) is None
    await scene.hub.start("metering")
    await scene.logged("metering", "usage events published again")
    assert [event.data.call_id for event in (await scene.at_rest(payer)).events] == [str(account["id"])]


@pytest.mark.crash(22)
async def test_row_22_fact_that_kills_whoever_settles_it_is_parked_and_all_others_are_settled(
    scene: Scene, payer: Payer
) -> None:
    await scene.hub.kill("metering-2")
    deadly = "metering.poison:kill:with=deadly-model"
    await scene.arm("metering", deadly)
    told = payer.begin(model="fake/deadly-model")
    for _ in range(SUSPECT - 1):
        await scene.died("metering")
        await scene.start_armed("metering", deadly)

    async def parked() -> list[asyncpg.Record]:
        return await scene.hub.fetch("select * from metering.parked")

    (row,) = await until(parked, within_s=20.0, what="the fact is parked")
    assert row["reason"] == "poison"
    other = await scene.payer()
    await scene.still_serves(other)
    await payer.ended(told)
    assert not told.final
    closed = await scene.closed(payer)
    assert (closed["state"], closed["error_code"], closed["credits"]) == ("failed", "stale", 0)
    assert [fact["payload"] for fact in await parked()] == [row["payload"]]
    await scene.nothing_waits()
    await scene.hub.fetch("delete from metering.parked")  # an operator has looked at it
    await scene.at_rest(payer, unpaid=1)
    await scene.at_rest(other)


@asynccontextmanager
async def full_stream(scene: Scene) -> AsyncIterator[None]:
    """CALLS takes no message more, as on a full disk; afterwards there is room again."""
    bus = await scene.hub.connect(PROVISIONER)
    js = bus.jetstream()
    config = (await js.stream_info(CALLS.name)).config
    room, policy = config.max_bytes, config.discard
    config.max_bytes, config.discard = 1, DiscardPolicy.NEW
    await js.purge_stream(CALLS.name)
    await js.update_stream(config)
    try:
        yield
    finally:
        config.max_bytes, config.discard = room, policy
        await js.update_stream(config)
        await bus.close()


@pytest.mark.crash(23)
async def test_row_23_bus_has_no_room_and_what_it_refused_is_settled_when_it_has(scene: Scene, payer: Payer) -> None:
    served: list[Told] = []
    async with full_stream(scene):
        served = await asyncio.gather(*(payer.chat(stream=number % 2 == 0) for number in range(5)))
        assert [told.error for told in served] == ["settlement_timeout"] * len(served)
        await scene.logged("provider-router", "no new calls")
        refused = await payer.chat()
        assert (refused.status, refused.error, refused.retry_after) == (503, "router_unavailable", "1")
        assert len(scene.provider.journal) == len(served), "nobody asked a provider for a call that could not be booked"
        assert len(list((scene.hub.servers.folder.root / "spool").glob("*.jsonl"))) == 1
    await scene.logged("provider-router", "new calls are taken again")
    await scene.still_serves(payer)
    account = await scene.at_rest(payer)
    assert [account.call(told)["state"] for told in served] == ["success"] * len(served)
    assert (account.call(refused)["state"], account.call(refused)["credits"]) == ("failed", 0)


@asynccontextmanager
async def full_disk(scene: Scene) -> AsyncIterator[None]:
    """PostgreSQL answers each write to the books as it does without room for it."""
    connection = await asyncpg.connect(scene.hub.servers.credentials.dsn(ADMIN, scene.hub.servers.ports.postgres))
    try:
        await connection.execute(
            """
            create function audit.no_room() returns trigger language plpgsql as $$
            begin raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$;
            create trigger no_room before insert or update on metering.account
                for each statement execute function audit.no_room();
            """
        )
        yield
    finally:
        await connection.execute("drop trigger if exists no_room on metering.account")
        await connection.execute("drop function if exists audit.no_room()")
        await connection.close()


@pytest.mark.crash(24)
async def test_row_24_database_has_no_room_and_completions_wait_on_the_bus(scene: Scene, payer: Payer) -> None:
    reply = Reply(hold_at=1)
    scene.provider.always(reply)
    running = [payer.begin(stream=number % 2 == 0) for number in range(3)]
    await scene.provider.asked(len(running))
    async with full_disk(scene):
        reply.released.set()
        await scene.stored(len(running))
        refused = await payer.chat()
        assert (refused.status, refused.error) == (503, "service_unavailable")
        assert len(scene.provider.journal) == len(running)
    scene.provider.always(Reply())
    await asyncio.gather(*(payer.ended(told) for told in running))
    account = await scene.at_rest(payer, within_s=40.0)
    assert [account.call(told)["state"] for told in running] == ["success"] * len(running)
    assert len(account.calls) == len(running), "nothing was admitted meanwhile"
    await scene.still_serves(payer)


@pytest.mark.crash(25)
async def test_row_25_every_clock_steps_another_way_and_nothing_ends_before_its_time(
    scene: Scene, payer: Payer
) -> None:
    steps = {"gateway": -DAY_S, "provider-router": HOUR_S, "metering": DAY_S, "janitor": DAY_S}
    await asyncio.gather(*(scene.step_clock(name, step_s) for name, step_s in steps.items()))
    reply = Reply(hold_at=3)
    scene.provider.always(reply)
    told = payer.begin(stream=True)
    await told.began.wait()
    await _looked_at_by_the_janitor(scene)
    for _ in range(3):  # metering's own grace after its start is over by then
        await _renewed(scene, payer)
    assert (await scene.row(payer))["state"] == "processing"
    reply.released.set()
    assert (await payer.ended(told)).final
    scene.provider.always(Reply(hold_at=3))
    lost = payer.begin(stream=True)
    await lost.began.wait()
    await scene.hub.kill("provider-router")
    closed = await scene.closed(payer, within_s=CLOSED_WITHIN_S)
    assert (closed["state"], closed["error_code"]) == ("failed", "stale")
    await payer.ended(lost)
    await scene.at_rest(payer)


async def _looked_at_by_the_janitor(scene: Scene) -> None:
    """Its duty has run, and has seen an open call."""

    async def look() -> bool:
        gauge = [line for line in (await scene.metrics("janitor")).splitlines() if line.startswith("hub_oldest_open")]
        return float(gauge[0].split()[1]) > 0

    await until(look, within_s=20.0, every_s=0.1, what="the janitor has looked at open calls")


async def _renewed(scene: Scene, payer: Payer) -> None:
    lease = (await scene.row(payer))["lease_until"]

    async def look() -> bool:
        return bool((await scene.row(payer))["lease_until"] > lease)

    await until(look, what="the lease is renewed")


@dataclass
class Subscriber:
    """Reads USAGE as anybody outside would; when the stream is another one, from its beginning."""

    heard: dict[str, dict[int, UsageEvent]] = field(default_factory=lambda: defaultdict(dict))
    """By account and sequence."""
    contradictions: list[tuple[UsageEvent, UsageEvent]] = field(default_factory=list)

    async def follow(self, operator: Bus) -> None:
        """For ever, over streams that come and go."""
        js = operator.jetstream()
        while True:
            try:
                made_at = (await js.stream_info(USAGE.name)).created
                config = ConsumerConfig(ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.ALL)
                reading = await js.subscribe("hub.v1.usage.recorded.*", stream=USAGE.name, config=config)
                try:
                    while made_at == (await js.stream_info(USAGE.name)).created:
                        with suppress(TimeoutError):
                            while True:
                                self._take((await reading.next_msg(timeout=0.5)).data)
                finally:
                    await reading.unsubscribe()
            except (NatsError, TimeoutError):
                await asyncio.sleep(0.2)  # the bus is away, or has no stream yet

    def up_to(self, account: str) -> int:
        """How far an account's events were heard without a gap."""
        heard = self.heard[account]
        return next(number for number in itertools.count(1) if number not in heard) - 1

    def _take(self, payload: bytes) -> None:
        event = msgspec.json.decode(payload, type=UsageEvent)
        known = self.heard[event.data.account].setdefault(event.data.sequence, event)
        if known != event:
            self.contradictions.append((known, event))


@asynccontextmanager
async def under_load(payers: list[Payer]) -> AsyncIterator[None]:
    """Each account calls without a pause, streams and JSON; leaving waits for the last answers."""
    over = asyncio.Event()

    async def call(payer: Payer, stream: bool) -> None:
        while not over.is_set():
            if not (await payer.chat(stream=stream)).final:
                await asyncio.sleep(0.1)

    calling = [asyncio.create_task(call(payer, stream)) for payer in payers for stream in (False, True)]
    try:
        yield
    finally:
        over.set()
        await asyncio.gather(*calling)


async def test_power_cut_of_the_bus_under_load_loses_no_charge_and_no_usage_event(scene: Scene) -> None:
    """Its store is gone: streams are made again, unsettled outcomes said again, USAGE filled again from the ledger."""
    payers = [await scene.payer() for _ in range(3)]
    subscriber = Subscriber()
    following = asyncio.create_task(subscriber.follow(scene.operator))
    scene.provider.always(Reply(piece_delay_s=0.02))
    async with under_load(payers):

        async def heard() -> bool:
            return all(subscriber.up_to(payer.account) >= 4 for payer in payers)

        await until(heard, within_s=30.0, every_s=0.1, what="usage events of every account are heard")
        stored = {payer.account: subscriber.up_to(payer.account) for payer in payers}
        await scene.lose_bus()
        served = {payer.account: sum(told.final for told in payer.journal) for payer in payers}

        async def served_again() -> bool:
            return all(sum(told.final for told in payer.journal) >= served[payer.account] + 2 for payer in payers)

        await until(served_again, within_s=60.0, every_s=0.1, what="calls are served again")
    assert all(told.final or told.error or told.broken for payer in payers for told in payer.journal)
    accounts = await asyncio.gather(*(scene.at_rest(payer, within_s=30.0) for payer in payers))
    for account in accounts:
        before = stored[account.row["id"]]
        assert len(account.events) == account.row["seq"] > before, "the stream that is there now has a gap"
        again = [event.data.sequence for event in account.events if event.data.sequence <= before]
        assert again == list(range(1, before + 1)), "filled again in another order"

    async def all_heard() -> bool:
        return all(subscriber.up_to(account.row["id"]) == account.row["seq"] for account in accounts)

    await until(all_heard, within_s=20.0, every_s=0.1, what="the subscriber has no gap")
    assert not subscriber.contradictions, "an event came again with other content"
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following
