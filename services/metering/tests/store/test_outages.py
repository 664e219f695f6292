"""PostgreSQL or NATS away, hung or killed: callers get an answer, and nothing is lost."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest
from neighbours import Neighbours, call
from rig.servers import DockerServers, EmbeddedServers
from rig.waiting import until

from contracts import permissions
from hub_local.credentials import ADMIN, DATABASE
from metering.settings import Settings

Infra = EmbeddedServers | DockerServers


@pytest.fixture
async def own_hub(own_infra: Infra, tmp_path: Path) -> AsyncIterator[Neighbours]:
    """A hub whose servers the test may kill."""
    settings = Settings.model_validate(
        {
            "nats_url": own_infra.credentials.nats_url(permissions.METERING, own_infra.ports.nats),
            "database_url": own_infra.credentials.dsn("metering", own_infra.ports.postgres),
            "reserve_wait_s": 1.0,
            "drain_s": 3.0,
        }
    )
    async with AsyncExitStack() as stack:
        hub = Neighbours(own_infra, settings, await _books(own_infra), stack)
        await hub.connect()
        yield hub


async def _books(infra: Infra) -> "asyncpg.Connection[asyncpg.Record]":
    return await asyncpg.connect(infra.credentials.dsn(ADMIN, infra.ports.postgres, DATABASE))


async def test_a_hung_database_hangs_nobody(hub: Neighbours) -> None:
    await hub.restart_metering(reserve_wait_s=0.5)
    await hub.open_account("did:a", "10")
    settled, waiting = call(), call()
    await hub.reserve_batch(settled)
    async with hub.books.transaction():
        await hub.books.execute("lock table metering.account in access exclusive mode")
        await hub.publish(hub.completed(settled))
        started = time.monotonic()
        assert await hub.reserve_batch(waiting) == ["unavailable"]
        assert await hub.reserve_batch(call()) == ["unavailable"]
        assert time.monotonic() - started < 3
    await hub.until_settled(settled)

    async def is_back() -> bool:
        return await hub.reserve_batch(waiting) in (["reserved"], ["exists"])

    await until(is_back, what="reserves are served again")
    await hub.until_drained()
    await hub.assert_balanced()


async def test_stopping_finishes_the_turn_and_answers_what_waits(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    settled = call()
    await hub.reserve_batch(settled)
    asked = asyncio.Event()

    async def ask() -> list[str]:
        waiting = asyncio.ensure_future(hub.reserve_batch(call(), call()))
        await hub.gateway.flush()
        await hub.publish(hub.completed(settled))
        asked.set()
        return await waiting

    async with hub.books.transaction():
        await hub.books.execute("lock table metering.account in access exclusive mode")
        answers = asyncio.create_task(ask())
        await asked.wait()
        stopping = asyncio.create_task(hub.stop_metering())
    await stopping
    assert await answers == ["reserved", "reserved"]
    await hub.assert_balanced()
    await hub.start_metering()
    await hub.until_settled(settled)
    await hub.until_drained()
    assert (await hub.account("did:a"))["seq"] == 1


async def test_a_killed_database_refuses_reserves_and_loses_no_fact(own_hub: Neighbours) -> None:
    hub = own_hub
    await hub.start_metering()
    await hub.open_account("did:a", "10")
    settled = call()
    await hub.reserve_batch(settled)
    await hub.infra.kill("postgres")
    await hub.publish(hub.completed(settled))
    started = time.monotonic()
    assert await hub.reserve_batch(call()) == ["unavailable"]
    assert time.monotonic() - started < 3
    await hub.infra.start("postgres")
    await hub.until_settled(settled)
    hub.books = await _books(hub.infra)

    async def is_back() -> bool:
        return await hub.reserve_batch(call()) == ["reserved"]

    await until(is_back, what="reserves are served again")
    await hub.assert_balanced()
    await hub.books.close()


async def test_it_starts_while_the_database_is_away(own_hub: Neighbours) -> None:
    hub = own_hub
    await hub.books.close()
    await hub.infra.kill("postgres")
    await hub.start_metering()
    assert await hub.reserve_batch(call("did:free", "0")) == ["unavailable"]
    await hub.infra.start("postgres")

    async def is_back() -> bool:
        return await hub.reserve_batch(call("did:free", "0")) == ["reserved"]

    await until(is_back, what="reserves are served")


async def test_a_killed_bus_comes_back_and_everything_goes_on(own_hub: Neighbours) -> None:
    hub = own_hub
    await hub.start_metering()
    await hub.open_account("did:a", "10")
    settled = call()
    await hub.reserve_batch(settled)
    await hub.infra.kill("nats")
    await hub.infra.start("nats")

    async def is_back() -> bool:
        try:
            return "unavailable" not in await hub.reserve_batch(call("did:a", "0.1"))
        except Exception:  # noqa: BLE001 - whatever the client says while it reconnects
            return False

    await until(is_back, within_s=20, what="reserves are served again")
    await hub.publish(hub.completed(settled))
    await hub.until_settled(settled)
    await hub.assert_balanced()
    await hub.books.close()
