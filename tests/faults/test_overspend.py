"""Two hundred calls at once on an account that is funded for some of them, over two gateways and two routers."""

import asyncio
import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal

import asyncpg
import pytest
import pytest_asyncio
from rig.provider import BEFORE_HEAD, Reply
from rig.waiting import until

from faults import invariants
from faults.clients import Payer, Told
from faults.conftest import SetScene
from faults.scene import Scene
from hub_local.credentials import ADMIN

CALLS = 200
FUNDED = 37
REFUSED = CALLS - FUNDED
SLICE = 6
"""Output tokens that are held at first, and with each extension."""
WORDS = (" hello",) * 24
"""One token each."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def whole_scene(set_scene: SetScene) -> Scene:
    # 200 held calls on two cores must not lose their leases for want of processor time.
    env = {"HUB_LEASE_S": "30", "HUB_HOLD_OUTPUT_TOKENS": str(SLICE), "HUB_TOKENIZER_AT_START": "true"}
    scene = await set_scene(counts={"gateway": 2, "provider-router": 2, "metering": 2}, env=env)
    await scene.price("fake/one-credit", input="0", output="0", request="1")
    return scene


@pytest_asyncio.fixture(loop_scope="session", params=[1, 2], ids=["one metering", "two meterings"])
async def scene(whole_scene: Scene, request: pytest.FixtureRequest) -> Scene:
    await whole_scene.mend()
    if request.param == 1:
        await whole_scene.hub.kill("metering-2")
    return whole_scene


async def storm(payer: Payer, **fields: object) -> None:
    """All calls at once, half of them to each gateway, half of them streams."""
    told = [payer.begin(gateway=n % 2, stream=n % 4 < 2, **fields) for n in range(CALLS)]
    await asyncio.gather(*(payer.ended(one) for one in told))


def answers(payer: Payer) -> Counter[tuple[int, str, bool]]:
    return Counter((told.status, told.error, told.final) for told in payer.journal)


async def test_a_price_per_call_admits_as_many_as_were_paid_for(scene: Scene) -> None:
    payer = await scene.payer(str(FUNDED))
    await storm(payer, model="fake/one-credit")
    assert answers(payer) == {(200, "", True): FUNDED, (402, "not_enough_credit", False): REFUSED}
    assert len(scene.provider.journal) == FUNDED
    account = await scene.at_rest(payer)
    assert len(account.calls) == FUNDED
    assert account.row["spent"] == account.row["granted"] == FUNDED


async def test_open_holds_count_like_money_spent(scene: Scene) -> None:
    """Holds are far above the charge here: all 37 stay open until the other 163 have been refused."""
    probe = await scene.payer()
    assert (await probe.chat(max_tokens=50)).final
    (call,) = (await scene.at_rest(probe)).calls
    scene.provider.forget()
    reply = Reply(hold_at=BEFORE_HEAD)
    scene.provider.always(reply)
    payer = await scene.payer(str(call["hold"] * FUNDED + call["hold"] / 2))
    # A streamed body is longer and would hold more: all alike here.
    told = [payer.begin(gateway=n % 2, max_tokens=50) for n in range(CALLS)]

    async def decided() -> bool:
        refused = sum(one.status == 402 for one in told)
        assert refused <= REFUSED
        return refused == REFUSED and len(scene.provider.journal) >= FUNDED

    await until(decided, within_s=30, what=f"{REFUSED} refusals and {FUNDED} calls at the provider")
    assert len(scene.provider.journal) == FUNDED
    held = await scene.hub.value("select held from metering.account where id = $1", payer.account)
    assert held == call["hold"] * FUNDED
    reply.released.set()
    await asyncio.gather(*(payer.ended(one) for one in told))
    assert answers(payer) == {(200, "", True): FUNDED, (402, "not_enough_credit", False): REFUSED}
    assert len(scene.provider.journal) == FUNDED
    account = await scene.at_rest(payer)
    assert account.row["spent"] == call["credits"] * FUNDED < account.row["granted"] / Decimal(2)


async def test_refusals_reach_no_provider_and_leave_no_row(scene: Scene) -> None:
    payer = await scene.payer("0.5")
    await storm(payer, model="fake/one-credit")
    assert answers(payer) == {(402, "not_enough_credit", False): CALLS}
    assert not scene.provider.journal
    account = await scene.at_rest(payer)
    assert not account.calls
    assert account.row["held"] == account.row["spent"] == 0


@dataclass
class Watch:
    """Looks at an account without a pause, by SQL, each time in one snapshot."""

    looks: int = 0
    most_held: Decimal = Decimal(0)

    async def run(self, scene: Scene, account: str) -> None:
        sql = """select granted, spent, held, (select coalesce(sum(hold), 0) from metering.model_call
                 where account = $1 and state = 'processing') as open from metering.account where id = $1"""
        servers = scene.hub.servers
        connection = await asyncpg.connect(servers.credentials.dsn(ADMIN, servers.ports.postgres))
        try:
            while True:
                row = await connection.fetchrow(sql, account)
                assert row is not None
                assert row["spent"] + row["held"] <= row["granted"], f"overspent: {dict(row)}"
                assert row["held"] == row["open"], f"held is not the sum of the open holds: {dict(row)}"
                self.looks += 1
                self.most_held = max(self.most_held, row["held"])
                await asyncio.sleep(0.01)
        finally:
            await connection.close()


def finish(told: Told) -> tuple[str, str]:
    """Finish reason of a stream, and what the hub says about it."""
    chunks = [json.loads(line[6:]) for line in told.lines if line.startswith("data: {")]
    (choice,) = [choice for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    return choice["finish_reason"], choice.get("finish_details", {}).get("type", "")


@pytest.mark.parametrize("scene", [2], indirect=True, ids=["two meterings"])
async def test_holds_that_are_extended_while_they_run_never_overspend(scene: Scene) -> None:
    """The first holds of most calls fit; what all of them want afterwards does not."""
    probe = await scene.payer()
    scene.provider.always(Reply(pieces=WORDS))
    assert (await probe.chat(stream=True)).final
    whole = (await scene.at_rest(probe)).calls[0]["credits"]
    scene.provider.always(Reply(pieces=WORDS[:1]))
    assert (await probe.chat(stream=True)).final
    first_hold = (await scene.at_rest(probe)).calls[-1]["hold"]
    scene.provider.forget()

    scene.provider.always(Reply(pieces=WORDS, piece_delay_s=0.06))
    payer = await scene.payer(str(first_hold * CALLS * 8 / 10))
    watch = Watch()
    watching = asyncio.create_task(watch.run(scene, payer.account))
    told = [payer.begin(gateway=n % 2, stream=True) for n in range(CALLS)]
    await asyncio.gather(*(payer.ended(one) for one in told))
    assert not watching.done() or watching.result() is None
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching

    account = await invariants.at_rest(
        scene.hub, scene.operator, payer.account, payer.journal, scene.provider.journal, announced=False
    )
    await invariants.check_transitions(scene.hub, account)
    await invariants.check_provider(scene.hub, account, unpaid=0)
    for check in (invariants.check_books, invariants.check_prices, invariants.check_clients):
        check(account)
    rows = {call["request_id"]: call for call in account.calls}
    refused = [one for one in told if not one.final]
    assert {(one.status, one.error) for one in refused} == {(402, "not_enough_credit")}
    assert len(rows) == CALLS - len(refused)
    endings = Counter(finish(one) for one in told if one.final)
    assert endings.keys() == {("stop", ""), ("length", "credit_exhausted")}, endings
    for one in told:
        if one.final:
            call, delivered = rows[one.request_id], one.text.count("hello")
            assert call["output_tokens"] == delivered, "the bill is not what was delivered"
            assert (call["credits"] + call["overrun"] == whole) == (delivered == len(WORDS))
    assert watch.looks > 50
    assert watch.most_held > first_hold * CALLS * 7 / 10, "the account was never near its end"
    assert account.row["held"] == 0


@pytest.mark.parametrize("scene", [2], indirect=True, ids=["two meterings"])
async def test_an_answer_longer_than_its_hold_is_paid_though_nobody_could_raise_the_hold(scene: Scene) -> None:
    """Metering is away at its end: what it cost above the hold is overrun, and the answer is not thrown away."""
    reply = Reply(pieces=WORDS, hold_at=BEFORE_HEAD)
    scene.provider.always(reply)
    payer = await scene.payer()
    told = payer.begin()
    await scene.provider.asked()
    await scene.hub.kill("metering", "metering-2")
    reply.released.set()

    async def noticed() -> bool:
        logs = [scene.hub.log(name) for name in ("provider-router", "provider-router-2")]
        return any("hold not raised" in line and "NoResponders" in line for log in logs for line in log.splitlines())

    await until(noticed, what="its router notices that nobody raises the hold")
    await scene.hub.start("metering")
    await payer.ended(told)
    assert told.error in {"", "settlement_timeout"}
    (call,) = (await scene.at_rest(payer)).calls
    assert (call["state"], call["output_tokens"]) == ("success", len(WORDS))
