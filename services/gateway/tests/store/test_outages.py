"""PostgreSQL and NATS die and come back under a running gateway's identity half."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial

import pytest
from rig.servers import DockerServers, EmbeddedServers
from rig.waiting import until

from contracts import permissions, subjects
from contracts.errors import ErrorCode, HubError
from contracts.ids import new_process_id
from contracts.rpc.identity import KeyCreate
from gateway.auth.principals import Principals
from gateway.identity import store
from gateway.identity.keys import Keys
from gateway.revisions import Revisions
from hub_local.credentials import DATABASE
from runtime import postgres
from runtime.bus import opened

PEPPER = b"a pepper for tests"


class Gateway:
    """Cache, keys and revisions on servers of the test's own."""

    def __init__(self, principals: Principals, keys: Keys) -> None:
        self.principals = principals
        self.keys = keys

    async def answer(self, text: str) -> str:
        try:
            await self.principals.authenticate(text.encode())
        except HubError as error:
            return error.code
        return "ok"


async def _gateway(servers: EmbeddedServers | DockerServers, stack: AsyncExitStack) -> Gateway:
    process = new_process_id("gateway")
    url = servers.credentials.nats_url(permissions.GATEWAY, servers.ports.nats)
    bus = await opened(url, name=process, inbox_prefix=subjects.inbox_prefix("gateway", process))
    stack.push_async_callback(bus.close)
    dsn = servers.credentials.dsn("gateway", servers.ports.postgres, DATABASE)
    pool = await postgres.pool(dsn, name=process, size=2)
    stack.callback(pool.terminate)
    principals = Principals(partial(store.key_rows, pool), partial(store.mark_used, pool), PEPPER)
    principals.established()
    revisions = Revisions(bus, principals, lambda _: None)
    await revisions.listen()
    polling = asyncio.create_task(revisions.poll())
    stack.callback(polling.cancel)
    return Gateway(principals, Keys(pool, PEPPER, revisions.announce))


@pytest.fixture
async def gateways(own_infra: EmbeddedServers | DockerServers) -> AsyncIterator[list[Gateway]]:
    async with AsyncExitStack() as stack:
        yield [await _gateway(own_infra, stack) for _ in range(2)]


async def test_while_postgres_is_dead_keys_are_503_and_afterwards_good_again(
    own_infra: EmbeddedServers | DockerServers, gateways: list[Gateway]
) -> None:
    cached, other = gateways
    made = await cached.keys.create(KeyCreate(), "test")
    assert await cached.answer(made.key) == "ok"
    await own_infra.kill("postgres")
    assert await cached.answer(made.key) == "ok"
    async with asyncio.timeout(10):
        assert await other.answer(made.key) == ErrorCode.SERVICE_UNAVAILABLE
    await own_infra.start("postgres")

    async def good() -> bool:
        return await other.answer(made.key) == "ok"

    await until(good, within_s=10, what="the key is read again")


async def test_a_key_revoked_while_nats_is_dead_is_refused_once_it_is_back(
    own_infra: EmbeddedServers | DockerServers, gateways: list[Gateway]
) -> None:
    revoking, other = gateways
    made = await revoking.keys.create(KeyCreate(), "test")
    assert await other.answer(made.key) == "ok"
    await own_infra.kill("nats")
    revocation = asyncio.create_task(revoking.keys.revoke(made.key_id, "test"))

    async def refused_here() -> bool:
        return await revoking.answer(made.key) == ErrorCode.INVALID_API_KEY

    await until(refused_here, within_s=15, what="the revoking gateway refuses at once")
    await own_infra.start("nats")
    await revocation

    async def refused_there() -> bool:
        return await other.answer(made.key) == ErrorCode.INVALID_API_KEY

    await until(refused_there, within_s=10, what="the other gateway refuses")
