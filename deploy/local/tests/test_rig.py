"""The rig itself: what other parts' tests rely on."""

import signal

import httpx2
import pytest
from rig.fixtures import StartHub
from rig.hub import Hub
from rig.waiting import until

ASK = {"model": "demo/echo", "messages": [{"role": "user", "content": "one two three"}]}


async def ask(hub: Hub) -> int:
    async with httpx2.AsyncClient(timeout=10, trust_env=False) as client:
        answer = await client.post(f"{hub.url}/api/v2/chat/completions", json=ASK, headers=hub.headers)
    return answer.status_code


async def test_a_killed_service_stays_dead_until_the_test_starts_it(start_hub: StartHub) -> None:
    hub = await start_hub()
    assert await ask(hub) == 200
    assert await hub.value("select count(*) from metering.model_call where state = 'success'") == 1
    await hub.kill("provider-router")
    assert "provider-router" not in hub.pids
    assert await ask(hub) == 503
    await hub.start("provider-router")
    assert await ask(hub) == 200
    await hub.kill("nats", "postgres")
    await hub.start("nats", "postgres")

    async def look() -> bool:
        return await ask(hub) == 200

    await until(look, within_s=20, what="a call is answered after both servers were killed", every_s=0.1)
    await hub.stop("gateway")
    assert "stopped" in hub.log("gateway")


async def test_proxied_servers_can_be_cut_off(start_hub: StartHub) -> None:
    hub = await start_hub(proxied=("nats", "postgres"))
    assert await ask(hub) == 200
    postgres = hub.proxies["postgres"]
    postgres.refuse = True
    postgres.reset_all()
    assert await ask(hub) == 503
    postgres.refuse = False

    async def look() -> bool:
        return await ask(hub) == 200

    await until(look, within_s=20, what="a call is answered once the database is back", every_s=0.1)


async def test_counts_and_endings_are_in_the_tests_hand(start_hub: StartHub) -> None:
    hub = await start_hub(counts={"janitor": 0, "gateway": 2}, fail={"gateway-2": "gateway.none:kill"})
    assert "janitor" not in hub.pids
    assert len(hub.urls) == 2
    hub.processes.signal("gateway-2", signal.SIGKILL)
    assert await hub.gone("gateway-2") == -signal.SIGKILL
    with pytest.raises(AssertionError, match="runs already"):
        await hub.processes.start("gateway")
