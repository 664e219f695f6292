"""A fresh database per test and empty buckets, on the servers of `rig.fixtures`."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import asyncpg
import pytest
from rig.catalogs import CatalogRig
from rig.fixtures import Database
from rig.servers import DockerServers, EmbeddedServers, make_streams

from contracts import permissions, streams
from hub_local.credentials import ADMIN


@pytest.fixture
async def catalogs(infra: EmbeddedServers | DockerServers, database: Database) -> AsyncIterator[CatalogRig]:
    books = await asyncpg.connect(database.admin_dsn)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(books.close)
        rig = CatalogRig(infra, database.dsns["provider_router"], books, stack)
        js = (await rig.connect(permissions.PROVISIONER)).jetstream()
        for bucket in (streams.REVISIONS, streams.PROVIDER_HEALTH):
            await js.delete_key_value(bucket.name)
        await make_streams(infra)
        yield rig


@pytest.fixture
async def own_catalogs(own_infra: EmbeddedServers | DockerServers) -> AsyncIterator[CatalogRig]:
    """The same on servers that the test may kill."""
    secrets, port = own_infra.credentials, own_infra.ports.postgres
    books = await asyncpg.connect(secrets.dsn(ADMIN, port))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(books.close)
        yield CatalogRig(own_infra, secrets.dsn("provider_router", port), books, stack)
