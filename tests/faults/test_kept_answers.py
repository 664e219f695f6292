"""Answers that are kept outlive whoever carried them: gateways and routers that die, frames that are lost."""

import asyncio
from decimal import Decimal

import httpx2
import openai
import pytest
import pytest_asyncio
from rig.provider_replies import INPUT_TOKENS, PIECES, Reply
from rig.waiting import until

from faults.clients import MODEL, Payer, Told
from faults.conftest import SetScene
from faults.scene import Scene

PRICE = Decimal("0.001") * INPUT_TOKENS + Decimal("0.002") * len(PIECES)
RESUMABLE = {"x-hub-resumable": "true"}
SPARE_ROUTER = "provider-router-2"
"""Runs only in tests that start it."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def whole_scene(set_scene: SetScene) -> Scene:
    return await set_scene(counts={"gateway": 2, "provider-router": 2}, env={"HUB_SETTLE_S": "3"})


@pytest_asyncio.fixture(loop_scope="session")
async def scene(whole_scene: Scene) -> Scene:
    await whole_scene.mend(without={SPARE_ROUTER})
    return whole_scene


@pytest_asyncio.fixture(loop_scope="session")
async def payer(scene: Scene) -> Payer:
    payer = await scene.payer()
    assert (await payer.chat(gateway=1)).final
    return payer


async def resume(payer: Payer, call_id: str, seen: int = 0) -> httpx2.Response:
    return await payer.get(f"/api/v2/calls/{call_id}/stream", gateway=1, headers={"last-event-id": str(seen)})


async def kill_its_gateway(scene: Scene) -> None:
    """Kill the first gateway, and wait until the router has noticed."""
    noticed = scene.hub.log("provider-router").count("gateway lost")
    await scene.hub.kill("gateway")

    async def look() -> bool:
        return scene.hub.log("provider-router").count("gateway lost") > noticed

    await until(look, within_s=15.0, what="the router notices that the gateway is gone")


def events(told: Told) -> list[str]:
    """The whole events that a client got."""
    *whole, _ = ("\n".join(told.lines) + "\n").split("\n\n")
    return whole


@pytest.mark.crash(4)
@pytest.mark.parametrize("place", [1, 4])
async def test_row_4_a_stream_is_resumed_elsewhere_after_its_gateway_was_killed(
    scene: Scene, payer: Payer, place: int
) -> None:
    reply = Reply(hold_at=place)
    scene.provider.always(reply)
    told = payer.begin(stream=True, headers=RESUMABLE)

    async def begun() -> bool:
        return len(events(told)) == place

    await until(begun, what="the first events are here")
    await kill_its_gateway(scene)
    await payer.ended(told)
    assert told.broken
    resuming = asyncio.create_task(resume(payer, told.call_id, place))
    reply.released.set()
    rest = await resuming
    whole = await resume(payer, told.call_id)
    assert "".join(f"{event}\n\n" for event in events(told)) + rest.text == whole.text
    assert f'"credits":"{PRICE:.10f}","call_id":"{told.call_id}"' in rest.text
    assert "\ndata: [DONE]\nid: " in rest.text
    for seen in range(place, whole.text.count("\n\n") + 1):
        skipped = whole.text.split("\n\n", seen)[-1]
        assert (await resume(payer, told.call_id, seen)).text == skipped
    account = await scene.at_rest(payer)
    assert (account.call(told)["state"], account.call(told)["credits"]) == ("success", PRICE)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_with_the_same_key_gets_the_answer_of_a_call_whose_gateway_was_killed(
    scene: Scene, payer: Payer, stream: bool
) -> None:
    reply = Reply(hold_at=1)
    scene.provider.always(reply)
    key = {"idempotency-key": f"killed-{stream}"}
    first = payer.begin(stream=stream, headers=key)
    received = await scene.provider.asked()
    await kill_its_gateway(scene)
    await payer.ended(first)
    assert first.broken
    second = payer.begin(stream=stream, gateway=1, headers=key)
    reply.released.set()
    await payer.ended(second)
    assert (second.final, second.replayed, second.call_id) == (True, True, received.call_id)
    account = await scene.at_rest(payer)
    assert len(account.calls) == 2
    assert account.call(first)["credits"] == PRICE


@pytest.mark.crash(9)
async def test_row_9_books_that_say_nothing_leave_the_client_in_doubt_until_it_asks_again(
    scene: Scene, payer: Payer
) -> None:
    reply = Reply(hold_at=0)
    scene.provider.always(reply)
    key = {"idempotency-key": "in doubt"}
    told = payer.begin(headers=key)
    await scene.provider.asked()
    await scene.hub.kill("metering")
    reply.released.set()
    await payer.ended(told)
    assert (told.status, told.error) == (504, "settlement_timeout")
    await scene.hub.start("metering")
    closed = await scene.closed(payer)
    assert (closed["state"], closed["credits"]) == ("success", PRICE)
    again = await payer.chat(gateway=1, headers=key)
    assert (again.final, again.replayed, again.call_id) == (True, True, str(closed["id"]))
    await scene.at_rest(payer)


async def test_a_request_that_waits_for_a_call_whose_router_died_becomes_a_call_of_its_own(
    scene: Scene, payer: Payer
) -> None:
    scene.provider.always(Reply(hold_at=0))
    key = {"idempotency-key": "router"}
    first = payer.begin(headers=key)
    await scene.provider.asked()
    waiting = payer.begin(gateway=1, headers=key)
    await scene.hub.start(SPARE_ROUTER)
    scene.provider.always(Reply())
    await scene.hub.kill("provider-router")
    await payer.ended(first)
    assert first.error in {"answer_lost", "stale"}  # whoever notices first
    await payer.ended(waiting)
    assert (waiting.final, waiting.replayed) == (True, False)
    account = await scene.at_rest(payer)
    assert [(call["state"], call["credits"]) for call in account.calls[1:]] == [("failed", 0), ("success", PRICE)]


async def test_frames_that_a_gateway_never_got_are_kept(scene: Scene, payer: Payer) -> None:
    scene.provider.always(Reply(piece_delay_s=0.02))
    await scene.arm("provider-router", "provider_router.before_frames:raise:after=1:times=1")
    key = {"idempotency-key": "lost frames"}
    told = await payer.chat(stream=True, headers=key)
    assert told.error == "answer_lost"
    again = await payer.chat(stream=True, gateway=1, headers=key)
    assert (again.final, again.replayed, again.credits) == (True, True, f"{PRICE:.10f}")
    account = await scene.at_rest(payer)
    assert len(account.calls) == 2


async def test_an_sdk_repeats_a_request_whose_paid_answer_was_lost_only_under_a_key(scene: Scene, payer: Payer) -> None:
    lost = "provider_router.before_frames:raise:after=1:times=1"
    before = len(scene.provider.journal)
    url = f"{payer._urls[0]}/api/v2"
    async with openai.AsyncOpenAI(base_url=url, api_key=payer.key, max_retries=2) as client:
        completions = client.chat.completions
        await scene.arm("provider-router", lost)
        with pytest.raises(openai.InternalServerError) as error:
            await completions.create(model=MODEL, messages=[{"role": "user", "content": "Hello?"}])
        assert (error.value.code, error.value.response.headers["x-should-retry"]) == ("answer_lost", "false")
        assert len(scene.provider.journal) == before + 1
        await scene.arm("provider-router", lost)
        answer = await completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hello?"}], extra_headers={"idempotency-key": "sdk"}
        )
    assert answer.choices[0].message.content == "".join(PIECES)
    assert len(scene.provider.journal) == before + 2
    account = await scene.at_rest(payer)
    assert [(call["state"], call["credits"]) for call in account.calls] == [("success", PRICE)] * 3
