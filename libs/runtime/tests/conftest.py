"""Real servers: a nats-server, shared or to be killed, and databases of a test's own."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from rig.servers import DockerServers, EmbeddedServers, make_streams

from contracts import permissions, streams, subjects
from contracts.ids import new_process_id
from hub_local.credentials import ADMIN
from runtime.bus import Bus, opened

_numbers = itertools.count(1)


@dataclass
class Nats:
    """The server, and who may connect to it."""

    servers: EmbeddedServers | DockerServers

    def url(self, user: str, password: str = "") -> str:
        if password:
            return f"nats://{user}:{password}@127.0.0.1:{self.servers.ports.nats}"
        return self.servers.credentials.nats_url(user, self.servers.ports.nats)

    async def connect(self, user: str) -> Bus:
        process = new_process_id(user)
        return await opened(self.url(user), name=process, inbox_prefix=subjects.inbox_prefix(user, process))

    async def kill(self) -> None:
        await self.servers.kill("nats")

    async def start(self) -> None:
        await self.servers.start("nats")

    async def provision(self) -> None:
        await make_streams(self.servers)

    async def wipe(self) -> None:
        """Streams, consumers and buckets as after a first start."""
        bus = await self.connect(permissions.PROVISIONER)
        js = bus.jetstream()
        for stream in (streams.CALLS.name, f"KV_{streams.DUTY_LEASES.name}"):
            await js.delete_stream(stream)
        await bus.close()
        await self.provision()


@pytest.fixture
async def nats(infra: EmbeddedServers | DockerServers) -> Nats:
    """The run's server, its streams emptied."""
    server = Nats(infra)
    await server.wipe()
    return server


@pytest.fixture
async def own_nats(own_infra: EmbeddedServers | DockerServers) -> Nats:
    """A server that the test may kill."""
    return Nats(own_infra)


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
