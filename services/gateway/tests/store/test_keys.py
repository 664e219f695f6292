import time
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
from rig.fixtures import Database
from rig.waiting import until

from contracts import permissions, streams, subjects
from contracts.errors import ErrorCode, HubError
from contracts.rpc.catalog import CatalogChanged
from contracts.rpc.identity import KeyCreate, KeysCreate
from gateway.auth import access_keys
from gateway.identity import store
from runtime.bus import Bus

StartNode = Callable[[], Awaitable[Any]]
Connect = Callable[[str], Awaitable[Bus]]


async def _works(node: Any, text: str) -> bool:
    try:
        await node.principals.authenticate(text.encode())
    except HubError as error:
        if error.code is not ErrorCode.INVALID_API_KEY:
            raise
        return False
    return True


async def test_a_made_key_works_and_only_its_digest_is_stored(start_node: StartNode, database: Database) -> None:
    node = await start_node()
    made = await node.keys.create(KeyCreate(role="member", name="laptop"), "operator")
    principal = await node.principals.authenticate(made.key.encode())
    assert (principal.user, principal.account, principal.role) == (made.user, made.account, "member")
    assert access_keys.key_id(made.key) == made.key_id
    admin = await asyncpg.connect(database.admin_dsn)
    try:
        for table in ('"user"', "access_key", "audit_log"):
            rows = await admin.fetch(f"select t::text from identity.{table} t")  # noqa: S608 - our own names
            assert rows
            assert not [row for row in rows if made.key in row[0] or made.key[9:] in row[0]]
    finally:
        await admin.close()


@pytest.mark.parity(33)
async def test_a_key_for_a_known_user_is_paid_by_that_users_account(start_node: StartNode) -> None:
    node = await start_node()
    first = await node.keys.create(KeyCreate(role="admin"), "operator")
    second = await node.keys.create(KeyCreate(user=f"did:abt:{first.user}", role="guest"), "operator")
    assert (second.user, second.account, second.role) == (first.user, first.account, "guest")
    assert (await node.principals.authenticate(second.key.encode())).role == "guest"
    assert [key.key_id for key in await node.keys.listed(first.user)] == [second.key_id, first.key_id]


@pytest.mark.parametrize("user", ["", "not a did", "z1'; drop table", "did:abt:"])
async def test_a_user_that_is_no_did_is_refused(start_node: StartNode, user: str) -> None:
    with pytest.raises(HubError) as caught:
        await (await start_node()).keys.create(KeyCreate(user=user), "operator")
    assert (caught.value.code, caught.value.param) == (ErrorCode.INVALID_REQUEST, "user")


@pytest.mark.parity(34, 131)
async def test_a_revoked_key_is_refused_within_a_second_on_every_gateway(start_node: StartNode) -> None:
    nodes = [await start_node(), await start_node()]
    made = await nodes[0].keys.create(KeyCreate(), "operator")
    for node in nodes:
        assert await _works(node, made.key)
    started = time.monotonic()
    await nodes[0].keys.revoke(made.key_id, "operator")
    for node in nodes:

        async def refused(node: Any = node) -> bool:
            return not await _works(node, made.key)

        await until(refused, within_s=5.0, what="the revoked key is refused")
    assert time.monotonic() - started < 1.0
    (listed,) = await nodes[1].keys.listed(made.user)
    assert listed.revoked_at is not None


async def test_a_missed_message_is_noticed_in_the_bucket_within_a_second(
    start_node: StartNode, connect: Connect
) -> None:
    node = await start_node()
    made = await node.keys.create(KeyCreate(), "operator")
    assert await _works(node, made.key)
    other = await connect(permissions.GATEWAY)
    async with node.pool.acquire() as connection, connection.transaction():
        await store.revoke_key(connection, made.key_id)
        revision = await store.next_revision(connection)
    bucket = await other.jetstream().key_value(streams.REVISIONS.name)
    await bucket.put("identity", b"%d" % revision)

    async def refused() -> bool:
        return not await _works(node, made.key)

    await until(refused, within_s=5.0, what="the change is seen in the bucket")


async def test_revoking_twice_is_no_error_and_audited_once(start_node: StartNode, database: Database) -> None:
    node = await start_node()
    made = await node.keys.create(KeyCreate(), "operator")
    await node.keys.revoke(made.key_id, "ann")
    await node.keys.revoke(made.key_id, "bob")
    admin = await asyncpg.connect(database.admin_dsn)
    try:
        rows = await admin.fetch("select who, what, object from identity.audit_log order by id")
    finally:
        await admin.close()
    assert [tuple(row) for row in rows] == [
        ("operator", "user.created", made.user),
        ("operator", "key.created", made.key_id),
        ("ann", "key.revoked", made.key_id),
    ]


async def test_revoking_an_unknown_key_is_not_found(start_node: StartNode) -> None:
    with pytest.raises(HubError) as caught:
        await (await start_node()).keys.revoke("z1nothing", "operator")
    assert caught.value.code is ErrorCode.NOT_FOUND


async def test_many_keys_are_made_with_their_accounts_or_not_at_all(start_node: StartNode) -> None:
    node = await start_node()
    opened: list[tuple[Sequence[str], Decimal | None]] = []

    async def open_accounts(accounts: Sequence[str], amount: Decimal | None) -> None:
        opened.append((accounts, amount))

    made = await node.keys.create_many(KeysCreate(count=300, welcome_credits="5.5"), "operator", open_accounts)
    assert len({one.key for one in made}) == len({one.account for one in made}) == 300
    assert opened == [([one.account for one in made], Decimal("5.5"))]
    assert await _works(node, made[0].key)
    assert await _works(node, made[-1].key)

    async def away(accounts: Sequence[str], amount: Decimal | None) -> None:
        raise HubError(ErrorCode.SERVICE_UNAVAILABLE, "metering does not answer")

    with pytest.raises(HubError):
        await node.keys.create_many(KeysCreate(count=3), "operator", away)
    assert len(await node.keys.listed(None)) == 300


async def test_last_use_reaches_the_database(start_node: StartNode) -> None:
    node = await start_node()
    made = await node.keys.create(KeyCreate(), "operator")
    assert await _works(node, made.key)
    await node.principals.flush_used()
    (listed,) = await node.keys.listed(made.user)
    assert listed.last_used_at is not None


async def test_a_change_of_the_catalogue_is_heard(start_node: StartNode, connect: Connect) -> None:
    node = await start_node()
    router = await connect(permissions.ROUTER)
    router.send(subjects.CATALOG_CHANGED, b"nonsense")
    router.send(subjects.CATALOG_CHANGED, CatalogChanged(revision=4711).model_dump_json().encode())

    async def heard() -> bool:
        return 4711 in node.catalog_revisions

    await until(heard, within_s=10.0, what="the revision is heard")


async def test_the_role_gateway_has_no_more_rights_than_it_needs(start_node: StartNode) -> None:
    pool = (await start_node()).pool
    for statement in (
        "delete from identity.access_key",
        "delete from identity.audit_log",
        "update identity.audit_log set who = 'x'",
        "drop table identity.access_key",
        "create table identity.x (y int)",
        "select * from metering.account",
    ):
        with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.InvalidSchemaNameError)):
            await pool.execute(statement)
