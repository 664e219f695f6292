"""Fixtures for everybody's tests; the root conftest.py loads them."""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from hub_local.credentials import ADMIN, DATABASE
from rig.hub import Hub, started
from rig.servers import DockerServers, EmbeddedServers, in_docker, make_template, opened

StartHub = Callable[..., Awaitable[Hub]]
_numbers = itertools.count(1)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def template_folder(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A data folder with a migrated database, made once; None with containers."""
    return None if in_docker() else await make_template(tmp_path_factory.mktemp("template"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def infra(
    tmp_path_factory: pytest.TempPathFactory, template_folder: Path | None
) -> AsyncIterator[EmbeddedServers | DockerServers]:
    """NATS with all users and streams, and PostgreSQL with the migrated database `hub`, shared by the whole run.

    `infra.credentials.nats_url(user, infra.ports.nats)` is the URL of a NATS user (`contracts.permissions`).
    """
    servers = await opened(tmp_path_factory.mktemp("infra"), template_folder)
    yield servers
    await servers.close()


@pytest_asyncio.fixture(loop_scope="session")
async def own_infra(tmp_path: Path, template_folder: Path | None) -> AsyncIterator[EmbeddedServers | DockerServers]:
    """The same for one test alone: it may kill, pause and wipe."""
    servers = await opened(tmp_path / "infra", template_folder)
    yield servers
    await servers.close()


@dataclass(frozen=True)
class Database:
    """A migrated database of one test."""

    name: str
    admin_dsn: str
    dsns: dict[str, str]
    """By role: gateway, provider_router, metering."""


@pytest_asyncio.fixture(loop_scope="session")
async def database(infra: EmbeddedServers | DockerServers) -> AsyncIterator[Database]:
    """A fresh migrated database, copied from the template in about 40 ms."""
    name = f"t{next(_numbers)}"
    port, secrets = infra.ports.postgres, infra.credentials
    admin = await asyncpg.connect(secrets.dsn(ADMIN, port, "postgres"))
    try:
        await admin.execute(f"create database {name} template {DATABASE}")
        dsns = {role: secrets.dsn(role, port, name) for role in secrets.postgres if role != ADMIN}
        yield Database(name, secrets.dsn(ADMIN, port, name), dsns)
        await admin.execute(f"drop database {name} with (force)")
    finally:
        await admin.close()


@pytest_asyncio.fixture(loop_scope="session")
async def start_hub(tmp_path: Path, template_folder: Path | None) -> AsyncIterator[StartHub]:
    """`await start_hub(counts={"gateway": 2}, env={…}, fail={…}, proxied=("nats",))`; see `rig.hub.started`."""
    hubs: list[Hub] = []

    async def start(**options: object) -> Hub:
        hub = await started(tmp_path / f"hub{len(hubs)}", template_folder, **options)  # type: ignore[arg-type]
        hubs.append(hub)
        return hub

    yield start
    for hub in hubs:
        await hub.close()
