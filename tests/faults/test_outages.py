"""Parts that are away, slow or silent for a while: what callers are told meanwhile, and that nothing is lost."""

import asyncio
import json
import time
from decimal import Decimal

import openai
import pytest
import pytest_asyncio
from rig.provider import Reply
from rig.waiting import until

from faults.clients import Payer, Told
from faults.conftest import SetScene
from faults.scene import CLOSED_WITHIN_S, Scene

SERVERS = ["nats", "postgres"]
REFUSED_WITHIN_S = 10.0
"""No part's answer is awaited for longer before a caller is told to come again."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def whole_scene(set_scene: SetScene) -> Scene:
    return await set_scene(counts={"gateway": 2, "janitor": 2}, proxied=SERVERS)


@pytest_asyncio.fixture(loop_scope="session")
async def payer(scene: Scene) -> Payer:
    payer = await scene.payer()
    assert (await payer.chat()).final
    return payer


def is_unavailable(told: Told) -> bool:
    return told.status == 503 and told.retry_after is not None and not told.hung


async def refuses_politely(payer: Payer, stranger: Payer) -> None:
    """Known key, key that must be looked up, JSON, stream, other questions: 503 and when to come again, soon."""
    calls = [payer.begin(), payer.begin(stream=True, gateway=1)]
    foreign = stranger.begin()
    started = time.monotonic()
    answer = await payer.get("/api/user/info")
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
    assert time.monotonic() - started < REFUSED_WITHIN_S
    for told in (*[await payer.ended(told) for told in calls], await stranger.ended(foreign)):
        assert is_unavailable(told), told
        assert told.seconds < REFUSED_WITHIN_S


async def recovers(scene: Scene, payer: Payer, within_s: float = 20.0) -> None:
    """The next calls are served, without anybody restarting anything."""
    pids = dict(scene.hub.processes.pids)

    async def served() -> bool:
        return (await payer.chat(stream=True)).final and (await payer.chat()).final

    await until(served, within_s=within_s, every_s=0.3, what="calls are served again")
    assert scene.hub.processes.pids == pids


@pytest.mark.parametrize("name", SERVERS)
async def test_a_server_that_is_down_means_503_and_recovers_by_itself(scene: Scene, payer: Payer, name: str) -> None:
    stranger = await scene.payer()
    await (scene.kill_postgres() if name == "postgres" else scene.hub.kill(name))
    await refuses_politely(payer, stranger)
    await scene.hub.start(name)
    await recovers(scene, payer)
    assert (await stranger.chat()).final
    await scene.at_rest(payer)
    await scene.at_rest(stranger)


@pytest.mark.parametrize("name", SERVERS)
async def test_a_server_that_says_nothing_means_503_and_recovers_by_itself(
    scene: Scene, payer: Payer, name: str
) -> None:
    stranger = await scene.payer()
    scene.hub.proxies[name].stall()
    await refuses_politely(payer, stranger)
    scene.hub.proxies[name].resume()
    await recovers(scene, payer)
    await scene.at_rest(payer)


@pytest.mark.parametrize("name", SERVERS)
async def test_a_slow_server_makes_calls_slow_and_nothing_else(scene: Scene, payer: Payer, name: str) -> None:
    scene.hub.proxies[name].latency_s = 0.15
    told = await payer.chat()
    assert told.final
    assert 0.3 < told.seconds < 8.0
    assert (await payer.chat(stream=True)).final
    scene.hub.proxies[name].latency_s = 0.0
    await scene.at_rest(payer)


@pytest.mark.crash(24)
@pytest.mark.parametrize("name", SERVERS)
async def test_calls_that_run_while_a_server_restarts_are_settled_once(scene: Scene, payer: Payer, name: str) -> None:
    reply = Reply(hold_at=3)
    scene.provider.always(reply)
    running = [payer.begin(stream=stream) for stream in (False, False, False, True, True, True)]
    await scene.provider.asked(len(running))
    for told in running[3:]:
        await asyncio.wait_for(told.began.wait(), 15.0)  # the gateway knows that the calls run, those before it too
    await (scene.kill_postgres() if name == "postgres" else scene.hub.kill(name))
    reply.released.set()
    scene.provider.always(Reply())
    await scene.logged("provider-router", "outcomes not settled yet")
    await scene.hub.start(name)
    await asyncio.gather(*(payer.ended(told) for told in running))
    await recovers(scene, payer)
    account = await scene.at_rest(payer, within_s=30.0)
    assert [account.call(told)["state"] for told in running] == ["success"] * len(running)
    assert all(account.call(told)["credits"] > 0 for told in running)


async def test_an_outage_longer_than_the_lease_closes_no_call_that_goes_on(scene: Scene, payer: Payer) -> None:
    reply = Reply(hold_at=3)
    scene.provider.always(reply)
    told = payer.begin(stream=True)
    await told.began.wait()
    scene.hub.proxies["postgres"].stall()
    row = await scene.row(payer)

    async def expired() -> bool:
        sql = "select lease_until < now() from metering.model_call where id = $1"
        return bool(await scene.hub.value(sql, row["id"]))

    await until(expired, what="the lease has ended")
    scene.hub.proxies["postgres"].resume()

    async def renewed() -> bool:
        return not await expired()

    await until(renewed, what="the lease is renewed")
    reply.released.set()
    assert (await payer.ended(told)).final
    await scene.at_rest(payer)


async def test_router_spools_outcomes_while_the_bus_is_away_and_its_successor_publishes_them(
    scene: Scene, payer: Payer
) -> None:
    await scene.hub.kill("janitor", "janitor-2")  # the lease ends in between; whose word comes first is row 15
    reply = Reply(hold_at=0, pieces=("a canary", " in the answer"))
    scene.provider.always(reply)
    told = payer.begin(text="a canary in the prompt")
    await scene.provider.asked()
    await scene.hub.kill("nats")
    reply.released.set()
    spool = scene.hub.servers.folder.root / "spool"

    async def spooled() -> list[bytes]:
        return [file.read_bytes() for file in spool.glob("*.jsonl") if file.stat().st_size]

    lines = await until(spooled, what="an outcome is spooled")
    assert b"canary" not in b"".join(lines)
    assert json.loads(lines[0].splitlines()[0])["subject"] == "hub.v1.calls.completed.chat"
    await scene.hub.kill("provider-router")
    await scene.hub.pause("gateway")  # it may miss the router before the successor is there, and say so first
    await scene.hub.start("nats")
    await scene.hub.start("provider-router")
    closed = await scene.closed(payer)
    await scene.hub.resume("gateway")
    assert (closed["state"], closed["settled_by"] is not None) == ("success", True)
    assert closed["credits"] > 0
    await payer.ended(told)
    await scene.nothing_left_in("provider-router")

    async def emptied() -> bool:
        return not await spooled()

    await until(emptied, what="the spool is empty")
    await scene.at_rest(payer)


@pytest.mark.parametrize("stream", [False, True])
async def test_sdk_raises_when_the_router_is_killed_in_mid_answer(scene: Scene, payer: Payer, stream: bool) -> None:
    scene.provider.always(Reply(hold_at=3 if stream else 1))
    sdk = openai.AsyncOpenAI(base_url=f"{scene.hub.url}/api/v2", api_key=payer.key, max_retries=0)

    async def whole() -> str:
        text = ""
        asked = [{"role": "user", "content": "Say hello."}]
        answer = await sdk.chat.completions.create(model="fake/gpt-4o-mini", messages=asked, stream=stream)  # type: ignore[call-overload]
        if not stream:
            return str(answer.choices[0].message.content)
        async for chunk in answer:
            text += chunk.choices[0].delta.content or ""
        return text

    asking = asyncio.create_task(whole())
    await scene.provider.asked()
    await scene.hub.kill("provider-router")
    with pytest.raises(openai.APIError):
        await asking
    await sdk.close()
    closed = await scene.closed(payer)
    assert (closed["state"], closed["credits"]) == ("failed", 0)
    await scene.at_rest(payer)


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves_cancels_upstream_within_a_second_and_pays_what_it_got(
    scene: Scene, payer: Payer, stream: bool
) -> None:
    scene.provider.always(Reply(hold_at=4 if stream else 1))
    told = payer.begin(stream=stream)
    received = await scene.provider.asked()

    async def delivered() -> bool:
        return told.text == ("Hello from the" if stream else "")

    await until(delivered, what="the first part of the answer is here")
    left_at = time.monotonic()
    await payer.leave(told)

    async def gone() -> float | None:
        return received.gone_at

    gone_at = await until(gone, within_s=10.0, what="the provider sees its client go")
    assert gone_at - left_at < 1.0
    closed = await scene.closed(payer, within_s=15.0)
    assert (closed["state"], closed["outcome"]) == ("success", "cancelled")
    assert closed["usage_source"] == "counted"
    assert closed["output_tokens"] == (3 if stream else 0)  # "Hello", " from", " the"
    rates = json.loads(closed["rates"])
    cost = closed["input_tokens"] * Decimal(rates["input"]) + closed["output_tokens"] * Decimal(rates["output"])
    assert closed["credits"] == cost
    await scene.at_rest(payer)


async def test_revoked_key_is_refused_within_a_second_on_both_gateways(scene: Scene) -> None:
    payer = await scene.payer()
    for gateway in (0, 1):
        assert (await payer.chat(gateway=gateway)).final
    await scene.revoke(payer)
    revoked_at = time.monotonic()

    async def refused() -> bool:
        told = [await payer.chat(gateway=gateway) for gateway in (0, 1)]
        return [one.status for one in told] == [401, 401]

    await until(refused, within_s=10.0, what="both gateways refuse the key")
    assert time.monotonic() - revoked_at < 1.0
    assert payer.journal[-1].error == "invalid_api_key"
    await scene.at_rest(payer)


async def test_second_janitor_takes_over_and_both_together_close_a_call_once(scene: Scene, payer: Payer) -> None:
    scene.provider.always(Reply(hold_at=3))
    told = payer.begin(stream=True)
    await told.began.wait()

    async def holders() -> list[str]:
        duty = 'hub_janitor_duty_holder{duty="stale-calls"} 1.0'
        return [name for name in ("janitor", "janitor-2") if duty in await scene.metrics(name)]

    (holder,) = await until(holders, what="one janitor has the duty")
    await scene.hub.kill("provider-router", holder)
    started = time.monotonic()
    closed = await scene.closed(payer)
    assert time.monotonic() - started < CLOSED_WITHIN_S
    assert (closed["state"], closed["error_code"]) == ("failed", "stale")
    await payer.ended(told)
    assert not told.final
    await scene.hub.start(holder)
    assert len(await holders()) == 1
    await scene.at_rest(payer)
