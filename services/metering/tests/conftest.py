"""Metering running inside the test's process, on the real NATS and PostgreSQL of `rig.fixtures`."""

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest
from rig.fixtures import Database
from rig.servers import DockerServers, EmbeddedServers

from contracts import permissions, streams
from metering.settings import Settings
from runtime.provision import provision

sys.path.insert(0, str(Path(__file__).parent))
from neighbours import Neighbours, connected


@pytest.fixture
async def books(database: Database) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """The superuser's view of the test's database."""
    connection = await asyncpg.connect(database.admin_dsn)
    yield connection
    await connection.close()


@pytest.fixture
def settings(infra: EmbeddedServers | DockerServers, database: Database) -> Settings:
    return Settings.model_validate(
        {
            "nats_url": infra.credentials.nats_url(permissions.METERING, infra.ports.nats),
            "database_url": database.dsns["metering"],
            "lease_s": 2.0,
            "drain_s": 5.0,
        }
    )


@pytest.fixture
async def empty_streams(infra: EmbeddedServers | DockerServers) -> None:
    """Streams and consumers as after a first start: facts of other tests are of no concern."""
    bus = await connected(infra, permissions.PROVISIONER)
    js = bus.jetstream()
    for stream in (streams.CALLS, streams.USAGE):
        await js.delete_stream(stream.name)
    await provision(js)
    await bus.close()


@pytest.fixture
async def hub(
    infra: EmbeddedServers | DockerServers,
    settings: Settings,
    books: "asyncpg.Connection[asyncpg.Record]",
    empty_streams: None,
) -> AsyncIterator[Neighbours]:
    """One metering, its neighbours on the bus, the books open for reading."""
    async with AsyncExitStack() as stack:
        hub = Neighbours(infra, settings, books, stack)
        await hub.connect()
        await hub.start_metering()
        yield hub
