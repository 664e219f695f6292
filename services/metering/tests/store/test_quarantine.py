"""Facts that a process of their own settles: how it says so, and that nothing of a settlement is left out."""

from datetime import timedelta

import asyncpg
import msgspec
import pytest
from neighbours import Neighbours, call
from rig.fixtures import Database

from contracts import streams, subjects
from contracts.rpc.metering import ReserveBatch
from contracts.subjects import CallKind
from metering import turns as turns_module
from metering.alone import Progress
from metering.quarantine import Suspect, settled_alone
from metering.reserve import read
from metering.settings import Settings
from metering.settle import Announcer
from metering.sql.store import TurnStore
from metering.turns import Turns
from runtime.bus import StandingPull

COMPLETED = subjects.calls_completed(CallKind.CHAT)
HOUR = timedelta(hours=1)


@pytest.fixture
def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("HUB_NATS_URL", settings.nats_url.get_secret_value())
    monkeypatch.setenv("HUB_DATABASE_URL", settings.database_url.get_secret_value())
    return monkeypatch


async def test_it_settles_whole_and_says_what_can_never_be_settled(
    environment: pytest.MonkeyPatch,
    hub: Neighbours,
    database: Database,
    books: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    await hub.open_account("did:a", "10")
    reserved, unknown = call(), call()
    store = TurnStore(database.dsns["metering"], HOUR, HOUR)
    await store.turn([], read(msgspec.json.encode(ReserveBatch((reserved,))), b"", 0.0)[1])
    store.discard()
    facts = [msgspec.json.encode(hub.completed(one)) for one in (reserved, reserved, unknown)]
    suspects = [Suspect(COMPLETED, b"", payload) for payload in (facts[0], b"no json", facts[1], facts[2])]

    said = await settled_alone(suspects, with_outbox=True)

    ends = {progress.place: progress for progress in said if progress.step not in {"started", "read"}}
    assert [ends[place].step for place in range(4)] == ["settled", "refused", "settled", "refused"]
    assert (ends[0].state, ends[0].credits) == (ends[2].state, ends[2].credits) == ("success", "0.2000000000")
    assert ends[1].detail.startswith("unreadable: ")
    assert ends[3].detail == "unknown_call"
    assert await books.fetchval("select count(*) from metering.outbox") == 1, "the charge is to be reported"
    await hub.assert_balanced()


async def test_it_stops_where_it_died_and_says_whose_fact_that_was(
    environment: pytest.MonkeyPatch, hub: Neighbours
) -> None:
    environment.setenv("HUB_FAIL", "metering.poison:kill:with=deadly")
    first, second, third = call(), call(), call()
    deadly = hub.completed(second, outcome="deadly")
    payloads = [msgspec.json.encode(fact) for fact in (hub.completed(first), deadly, hub.completed(third))]
    said = await settled_alone([Suspect(COMPLETED, b"", payload) for payload in payloads], with_outbox=False)
    assert [(progress.place, progress.step) for progress in said] == [
        (-1, "started"),
        (0, "read"),
        (0, "refused"),
        (1, "read"),
    ]
    assert said[-1] == Progress(1, "read", second.call_id, second.account, hub.gateway_id, hub.router_id)


async def test_a_process_that_does_not_start_says_nothing_of_any_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUB_DATABASE_URL", raising=False)
    assert await settled_alone([Suspect(COMPLETED, b"", b"{}")], with_outbox=False) == []


async def test_only_a_turn_that_failed_lately_excuses_a_fact_that_came_again(
    hub: Neighbours, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspects: list[bytes] = []
    unreachable = TurnStore("postgresql://nobody@127.0.0.1:1/none", HOUR, HOUR)
    pull = StandingPull(hub.gateway, streams.SETTLE.stream, streams.SETTLE.durable, lambda *_: None)
    turns = Turns(
        store=unreachable,
        announcer=Announcer(hub.gateway, pull, unreachable),
        publish_usage=lambda _: None,
        usage_in_doubt=lambda: None,
        on_refused=lambda _: None,
        suspect=lambda _subject, ack, _payload: suspects.append(ack),
        suspect_deliveries=5,
        turn_max=10,
        wait_s=1.0,
        reserves_max=10,
    )
    reserved = call()
    payload = msgspec.json.encode(hub.completed(reserved))

    def comes(number: int) -> int:
        turns.on_fact(COMPLETED, b"$JS.ACK.CALLS.metering-settle.%d.1.1.0.0" % number, payload)
        return len(suspects)

    assert (comes(4), comes(5)) == (0, 1)
    turns.on_reserve(b"", b"", msgspec.json.encode(ReserveBatch((reserved,))), None)
    await turns._turn()
    assert comes(6) == 1, "the database was away: it is why the fact came again"
    monkeypatch.setattr(turns_module, "TROUBLE_S", 0.0)
    assert comes(7) == 2, "that is long ago"
