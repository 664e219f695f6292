"""The whole hub with Payment Kit in a process of its own; both are killed. What the ledger has is there, once."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any, Final

import httpx2
import pytest
import pytest_asyncio
from payment_kit.books import PLACES
from rig.payment_kit import KEY, KitProcess
from rig.processes import Processes
from rig.waiting import until

from contracts.errors import ErrorCode, HubError
from faults.clients import Payer
from faults.conftest import SetScene
from faults.scene import Scene
from runtime.component_call import AppKey, signed_headers

CALLBACK: Final = "/api/payment/callback"
pytestmark = [pytest.mark.timeout(180)]


class Kit(KitProcess):
    """The process, and hands to kill it."""

    processes: Processes

    async def start(self) -> None:
        await self.processes.start(self.program.name)
        await self.processes.ready(self.program.name)

    async def kill(self) -> None:
        await self.processes.kill(self.program.name)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def kit(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kit]:
    kit = Kit(tmp_path_factory.mktemp("payment-kit") / "journal.jsonl")
    kit.processes = Processes()
    kit.processes.add(kit.program)
    await kit.start()
    yield kit
    await kit.processes.close([kit.program.name])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def one_scene(set_scene: SetScene, kit: Kit) -> Scene:
    return await set_scene(env=kit.env)


@pytest_asyncio.fixture(loop_scope="session")
async def scene(one_scene: Scene, kit: Kit) -> AsyncIterator[Scene]:
    if kit.program.name not in kit.processes.pids:
        await kit.start()
    await kit.fail()
    await one_scene.mend()
    yield one_scene


async def even(scene: Scene, kit: Kit, payer: Payer, within_s: float = 30.0) -> Decimal:
    """Wait until everything is reported; ledger and Payment Kit then agree call by call, to the last decimal.

    Returns:
        What the account was charged.
    """

    async def look() -> bool:
        sql = "select count(*) from metering.outbox where account = $1 and state <> 'sent'"
        return not await scene.hub.value(sql, payer.account)

    await until(look, within_s=within_s, what="every charge is reported")
    await scene.at_rest(payer, unpaid=len(payer.journal))
    rows = await scene.hub.fetch(
        "select call_id::text as id, amount from metering.ledger where account = $1 and amount > 0", payer.account
    )
    ledger = {f"mc_{row['id']}": row["amount"] for row in rows}
    journal = [line["wanted"] for line in await kit.control("journal") if line["kind"] == "meter_event"]
    customer = payer.account.rpartition(":")[2]
    reported = [
        (wanted["identifier"], Decimal(wanted["payload"]["value"]))
        for wanted in journal
        if wanted["payload"]["customer_id"] == customer
    ]
    assert sorted(reported) == sorted(ledger.items()), "each identifier once, with the ledger's value"
    total = sum(ledger.values(), Decimal(0))
    assert total == await scene.hub.value("select spent from metering.account where id = $1", payer.account)
    events = [event for event in await kit.events() if event["identifier"] in ledger]
    units = sum(int(event["credit_consumed"]) + int(event["credit_pending"]) for event in events)
    assert Decimal(units).scaleb(-PLACES) == total
    return total


@pytest.mark.parity(51, 58, 60, 61)
async def test_metering_killed_between_post_and_mark_bills_once(scene: Scene, kit: Kit) -> None:
    payer = await scene.payer("100")
    await scene.arm("metering", "metering.after_post:kill:after=2")
    told = await asyncio.gather(*(payer.chat() for _ in range(4)))
    await scene.died("metering")
    await scene.hub.start("metering")
    assert all(one.final for one in told)
    assert await even(scene, kit, payer) > 0


async def test_kill_after_kill_leaves_every_book_alike(scene: Scene, kit: Kit) -> None:
    payer = await scene.payer("100")
    await kit.fail(
        {"action": "lose_reply", "p": 0.2}, {"action": "error", "status": 503, "p": 0.1}, {"action": "drop", "p": 0.1}
    )
    ended = asyncio.Event()

    async def load() -> None:
        while not ended.is_set():
            await asyncio.gather(*(payer.chat(stream=number % 2 == 0) for number in range(4)))

    loading = asyncio.create_task(load())
    for victim in ("metering", "payment-kit"):
        count = await scene.hub.value("select count(*) from metering.outbox")

        async def grown(count: int = count) -> bool:
            return bool(await scene.hub.value("select count(*) > $1 + 3 from metering.outbox", count))

        await until(grown, within_s=20, what="calls go on")
        if victim == "metering":
            await scene.hub.kill(victim)
            await scene.hub.start(victim)
        else:
            await kit.kill()
            await kit.start()
    ended.set()
    await loading
    await kit.fail()
    assert await even(scene, kit, payer) > 0


@pytest.mark.parity(46, 51)
async def test_an_outage_of_payment_kit_stops_no_call_that_the_balance_covers(scene: Scene, kit: Kit) -> None:
    payer = await scene.payer("10")
    await kit.kill()
    for _ in range(5):
        assert (await payer.chat()).final
    stranger = await refused_payer(scene)
    assert stranger == ErrorCode.SERVICE_UNAVAILABLE
    await kit.start()
    assert await even(scene, kit, payer) > 0


async def refused_payer(scene: Scene) -> str:
    """A new user while Payment Kit is away: no account can be opened, and the operator is told so."""
    with pytest.raises(HubError) as refused:
        await scene.payer("1")
    return refused.value.code


async def test_a_webhook_is_taken_from_the_application_only(scene: Scene, kit: Kit) -> None:
    payer = await scene.payer("1")
    event = {"id": "evt_1", "type": "customer.credit_grant.granted", "data": {"object": {"customer_id": "cus_1"}}}
    key = AppKey.read(KEY)
    body = json.dumps(event).encode()
    url = scene.hub.url + CALLBACK

    async def send(headers: dict[str, str], content: bytes = body, query: str = "") -> tuple[int, Any]:
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = await client.post(url + query, content=content, headers=headers)
            return answer.status_code, answer.json()

    good = signed_headers(key, "z2q", "POST", CALLBACK, event, int(time.time()))
    late = signed_headers(key, "z2q", "POST", CALLBACK, event, int(time.time()) - 301)
    other = signed_headers(AppKey.read("11" * 32), "z2q", "POST", CALLBACK, event, int(time.time()))
    for _ in range(2):
        assert await send(good) == (200, {"received": True})
    assert await send({}) == (400, {"error": "Bad Request"})
    for wrong in (late, other):
        assert await send(wrong) == (401, {"error": "verify sig failed"})
    assert await send(good, b'{"id":"evt_2"}') == (401, {"error": "verify sig failed"})
    assert await send(good, query="?livemode=true") == (401, {"error": "verify sig failed"})
    status, refusal = await send(good, b"x" * 300_000)
    assert status == 413, refusal
    assert await scene.hub.value("select granted from metering.account where id = $1", payer.account) == 1
