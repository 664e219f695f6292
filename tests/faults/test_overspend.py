"""Two hundred calls at once on an account funded for thirty-seven, over two gateways."""

import asyncio
from collections import Counter
from decimal import Decimal

import pytest
import pytest_asyncio
from rig.provider import BEFORE_HEAD, Reply
from rig.waiting import until

from faults.clients import Payer
from faults.conftest import SetScene
from faults.scene import Scene

CALLS = 200
FUNDED = 37
REFUSED = CALLS - FUNDED


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def whole_scene(set_scene: SetScene) -> Scene:
    # 200 held calls on two cores must not lose their leases for want of processor time.
    scene = await set_scene(counts={"gateway": 2, "metering": 2}, env={"HUB_LEASE_S": "30"})
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
