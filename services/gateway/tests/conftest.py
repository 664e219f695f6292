"""Real NATS and PostgreSQL, and any number of gateways' identity halves on them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial

import pytest
from rig.fixtures import Database
from rig.servers import DockerServers, EmbeddedServers

from contracts import permissions, subjects
from contracts.ids import new_process_id
from gateway.auth.principals import Principals
from gateway.identity import store
from gateway.identity.keys import Keys
from gateway.revisions import Revisions
from runtime import postgres
from runtime.bus import Bus, opened

PEPPER = b"a pepper for tests"


@dataclass
class Node:
    """The identity half of one gateway."""

    process: str
    bus: Bus
    pool: postgres.Pool
    principals: Principals
    revisions: Revisions
    keys: Keys
    catalog_revisions: list[int] = field(default_factory=list)


StartNode = Callable[[], Awaitable[Node]]
Connect = Callable[[str], Awaitable[Bus]]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def nats_url(infra: EmbeddedServers | DockerServers) -> Callable[[str], str]:
    return lambda user: infra.credentials.nats_url(user, infra.ports.nats)


@pytest.fixture
def connect(nats_url: Callable[[str], str], stack: AsyncExitStack) -> Connect:
    async def connected(user: str) -> Bus:
        process = new_process_id(user)
        bus = await opened(nats_url(user), name=process, inbox_prefix=subjects.inbox_prefix(user, process))
        stack.push_async_callback(bus.close)
        return bus

    return connected


@pytest.fixture
async def pool(database: Database, stack: AsyncExitStack) -> postgres.Pool:
    pool = await postgres.pool(database.dsns["gateway"], name="test", size=4)
    stack.push_async_callback(pool.close)
    return pool


@pytest.fixture
def start_node(database: Database, connect: Connect, stack: AsyncExitStack) -> StartNode:
    async def start() -> Node:
        bus = await connect(permissions.GATEWAY)
        pool = await postgres.pool(database.dsns["gateway"], name="test", size=4)
        stack.push_async_callback(pool.close)
        principals = Principals(partial(store.key_rows, pool), partial(store.mark_used, pool), PEPPER)
        principals.established()
        heard: list[int] = []
        revisions = Revisions(bus, principals, heard.append)
        await revisions.listen()
        polling = asyncio.create_task(revisions.poll())
        stack.callback(polling.cancel)
        keys = Keys(pool, PEPPER, revisions.announce)
        return Node("", bus, pool, principals, revisions, keys, heard)

    return start
