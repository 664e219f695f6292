"""Real NATS and PostgreSQL, a fresh database per test, and metering running inside the test's process."""

import itertools
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from contracts import permissions, streams
from hub_local import migrate
from hub_local.credentials import ADMIN, obtain
from hub_local.folder import DataFolder
from hub_local.servers import Ports, RunningServers, Servers
from metering.settings import Settings
from runtime import migrations
from runtime.provision import provision

sys.path.insert(0, str(Path(__file__).parent))
from metering_rig import Rig, connected  # noqa: E402 - beside this file, which is no package

TEMPLATE = "metering_template"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServers]:
    root: Path = tmp_path_factory.mktemp("servers")
    async with DataFolder(root) as folder:
        servers = Servers(folder, Ports(**folder.ports(("postgres", "nats", "nats_http"))), obtain(folder), fast=True)
        running = RunningServers(servers)
        await running.start()
        await _make_template(servers)
        yield running
        await running.stop()


@pytest.fixture
async def database(running: RunningServers) -> AsyncIterator[str]:
    """Name of a fresh database."""
    servers = running.servers
    name = f"test_{next(_numbers)}"
    admin = await asyncpg.connect(servers.credentials.dsn(ADMIN, servers.ports.postgres, "postgres"))
    await admin.execute(f"create database {name} template {TEMPLATE}")
    yield name
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


@pytest.fixture
async def admin(running: RunningServers, database: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """The superuser's view of the test's database."""
    servers = running.servers
    connection = await asyncpg.connect(servers.credentials.dsn(ADMIN, servers.ports.postgres, database))
    yield connection
    await connection.close()


@pytest.fixture
def settings(running: RunningServers, database: str) -> Settings:
    servers = running.servers
    return Settings.model_validate(
        {
            "nats_url": servers.credentials.nats_url(permissions.METERING, servers.ports.nats),
            "database_url": servers.credentials.dsn("metering", servers.ports.postgres, database),
            "lease_s": 2.0,
            "drain_s": 5.0,
        }
    )


@pytest.fixture
async def bus_emptied(running: RunningServers) -> None:
    """Streams and consumers as after a first start."""
    bus = await connected(running.servers, permissions.PROVISIONER)
    js = bus.jetstream()
    await provision(js)
    for stream in (streams.CALLS, streams.USAGE):
        await js.delete_stream(stream.name)
    await provision(js)
    await bus.close()


@pytest.fixture
async def rig(
    running: RunningServers,
    settings: Settings,
    admin: "asyncpg.Connection[asyncpg.Record]",
    bus_emptied: None,
) -> AsyncIterator[Rig]:
    """One metering, a gateway, a router and an operator on the bus, the books open for reading."""
    async with AsyncExitStack() as stack:
        rig = Rig(running, settings, admin, stack)
        await rig.connect()
        await rig.start_metering()
        yield rig


async def _make_template(servers: Servers) -> None:
    dsn = servers.credentials.dsn(ADMIN, servers.ports.postgres, "postgres")
    async with _connection(dsn) as connection:
        await migrate._roles(connection, servers.credentials.postgres)
        await connection.execute(f"create database {TEMPLATE}")
    async with _connection(servers.credentials.dsn(ADMIN, servers.ports.postgres, TEMPLATE)) as template:
        await migrations.apply(template, migrations.found("metering", "metering"))


@asynccontextmanager
async def _connection(dsn: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()
