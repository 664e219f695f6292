"""Real servers: a nats-server, shared or to be killed, and databases of a test's own."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import asyncpg
import pytest
from rig.servers import DockerServers, EmbeddedServers

from hub_local.credentials import ADMIN

_numbers = itertools.count(1)


@pytest.fixture
async def dsn(infra: EmbeddedServers | DockerServers) -> AsyncIterator[str]:
    """An empty database of its own, as the administrator sees it."""
    name = f"empty_{next(_numbers)}"
    admin = await asyncpg.connect(infra.credentials.dsn(ADMIN, infra.ports.postgres, "postgres"))
    await admin.execute(f"create database {name}")
    yield infra.credentials.dsn(ADMIN, infra.ports.postgres, name)
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


Until = Callable[..., Coroutine[Any, Any, None]]


@pytest.fixture
def until() -> Until:
    """Wait until a condition holds, with a deadline."""

    async def wait(condition: Callable[[], bool], what: str, within_s: float = 10.0) -> None:
        try:
            async with asyncio.timeout(within_s):
                while not condition():  # noqa: ASYNC110 - any condition, not an event
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pytest.fail(f"not within {within_s} s: {what}")

    return wait
