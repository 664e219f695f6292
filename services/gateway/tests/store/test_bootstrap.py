import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import asyncpg
import pytest
from rig.fixtures import Database

from contracts.errors import ErrorCode, HubError
from contracts.ids import welcome_grant_id
from gateway.auth import access_keys
from gateway.identity import bootstrap, store
from runtime import postgres

PEPPER = b"a pepper for tests"


@dataclass
class World:
    """What the first start touches beside the database."""

    pool: postgres.Pool
    announced: list[int] = field(default_factory=list)
    grants: list[tuple[str, str]] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    failures: list[HubError] = field(default_factory=list)
    established: asyncio.Event = field(default_factory=asyncio.Event)

    async def announce(self, _key_ids: Sequence[str], revision: int) -> None:
        self.announced.append(revision)

    async def grant(self, account: str, grant_id: str) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.grants.append((account, grant_id))

    async def start(self, given: str | None = None) -> None:
        async with asyncio.timeout(20):
            await bootstrap.bootstrap(
                self.pool, PEPPER, given, self.announce, self.grant, self.shown.append, self.established.set
            )


@pytest.fixture
def world(pool: postgres.Pool) -> World:
    return World(pool)


async def _keys(database: Database) -> list[tuple[str, str, str]]:
    admin = await asyncpg.connect(database.admin_dsn)
    try:
        rows = await admin.fetch("select id, user_did, role from identity.access_key order by created_at")
        owners = await admin.fetchval("select count(*) from identity.\"user\" where role = 'owner'")
    finally:
        await admin.close()
    assert owners == 1
    return [tuple(row) for row in rows]


async def test_the_first_start_makes_an_owner_and_shows_its_key_once(world: World, database: Database) -> None:
    await world.start()
    await world.start()
    (shown,) = world.shown
    ((key_id, owner, role),) = await _keys(database)
    assert (access_keys.key_id(shown), role) == (key_id, "owner")
    row = (await store.key_rows(world.pool, [key_id]))[key_id]
    assert row.digest == access_keys.digest(PEPPER, shown.encode())
    assert len(world.announced) == 1
    assert set(world.grants) == {(owner, welcome_grant_id(owner))}


async def test_a_given_key_is_stored_and_never_shown(world: World, database: Database) -> None:
    given = access_keys.new_access_key()
    await world.start(given.text)
    await world.start(given.text)
    assert [key for key, _, _ in await _keys(database)] == [given.id]
    assert not world.shown


async def test_another_given_key_is_added_for_the_same_owner(world: World, database: Database) -> None:
    await world.start()
    given = access_keys.new_access_key()
    await world.start(given.text)
    keys = await _keys(database)
    assert len(keys) == 2
    assert keys[1][0] == given.id
    assert keys[0][1] == keys[1][1]


async def test_a_revoked_bootstrap_key_stays_revoked(world: World, database: Database) -> None:
    given = access_keys.new_access_key()
    await world.start(given.text)
    async with world.pool.acquire() as connection:
        await store.revoke_key(connection, given.id)
    await world.start(given.text)
    row = (await store.key_rows(world.pool, [given.id]))[given.id]
    assert row.revoked


async def test_several_gateways_at_once_make_one_owner_and_one_key(pool: postgres.Pool, database: Database) -> None:
    worlds = [World(pool) for _ in range(6)]
    await asyncio.gather(*(world.start() for world in worlds))
    assert len(await _keys(database)) == 1
    assert sum(len(world.shown) for world in worlds) == 1
    assert len({grant for world in worlds for grant in world.grants}) == 1


async def test_the_welcome_grant_is_asked_for_until_metering_answers(world: World) -> None:
    world.failures = [HubError(ErrorCode.SERVICE_UNAVAILABLE, "metering does not answer") for _ in range(2)]
    await world.start()
    assert len(world.grants) == 1


async def test_a_welcome_grant_of_another_amount_given_before_is_left_alone(world: World) -> None:
    world.failures = [HubError(ErrorCode.CONFLICT, "This grant id was used for another grant.")]
    await world.start()
    assert not world.grants


async def test_a_database_that_is_away_is_waited_for(world: World, database: Database) -> None:
    admin = await asyncpg.connect(database.admin_dsn)
    try:
        await admin.execute("revoke usage on schema identity from gateway")
        starting = asyncio.create_task(world.start())
        done, _ = await asyncio.wait([starting], timeout=0.2)
        assert not done
        assert not world.established.is_set()
        await admin.execute("grant usage on schema identity to gateway")
        await starting
    finally:
        await admin.close()
    assert len(world.shown) == 1
    assert world.established.is_set()
