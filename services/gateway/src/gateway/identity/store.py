"""Statements on schema `identity`; whoever calls them decides about transactions."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy

from contracts.rpc.identity import Role
from runtime.postgres import Pool

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
Reader: TypeAlias = "Pool | Connection"
_BOOTSTRAP_LOCK = 5_118_203_377_921

_BY_ID = """select k.id, k.digest, k.user_did, u.account, k.role, k.name, k.revoked_at is not null as revoked
from identity.access_key k join identity."user" u on u.did = k.user_did where k.id = any($1::text[])"""
_KEYS = """select id, user_did, role, name, created_at, revoked_at, last_used_at from identity.access_key
where $1::text is null or user_did = $1 order by created_at desc, id limit $2"""
_USED = """update identity.access_key k set last_used_at = u.at
from unnest($1::text[], $2::timestamptz[]) u (id, at) where k.id = u.id and coalesce(k.last_used_at < u.at, true)"""
_OWNER = """select did, account from identity."user" where role = 'owner' order by created_at, did limit 1"""


class KeyRow(NamedTuple):
    """A stored key with what its principal is made of."""

    id: str
    digest: bytes
    user: str
    account: str
    role: Role
    name: str
    revoked: bool


class ListedKey(NamedTuple):
    """A stored key as people see it."""

    id: str
    user: str
    role: Role
    name: str
    created_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None


class NewUser(NamedTuple):
    """A user to insert, unless the DID is known."""

    did: str
    account: str
    role: Role


class NewKey(NamedTuple):
    """A key to insert."""

    id: str
    digest: bytes
    user: str
    role: Role
    name: str
    created_by: str


class Owner(NamedTuple):
    """The first owner."""

    did: str
    account: str


async def key_rows(connection: Reader, key_ids: Sequence[str]) -> dict[str, KeyRow]:
    """Keys by id, revoked or not; unknown ones are left out."""
    return {row["id"]: KeyRow(*row) for row in await connection.fetch(_BY_ID, key_ids)}


async def user_account(connection: Connection, did: str) -> str | None:
    """Who pays for a user; None for an unknown one."""
    account: str | None = await connection.fetchval('select account from identity."user" where did = $1', did)
    return account


async def full_name(pool: Pool, did: str) -> str:
    """A user's name; empty when none was given."""
    return await pool.fetchval('select full_name from identity."user" where did = $1', did) or ""


async def listed_keys(pool: Pool, user: str | None, limit: int) -> list[ListedKey]:
    """Keys of a user, or of all, newest first."""
    return [ListedKey(*row) for row in await pool.fetch(_KEYS, user, limit)]


async def insert_users(connection: Connection, users: Sequence[NewUser]) -> None:
    """Insert users; known ones are left as they are."""
    await connection.execute(
        """insert into identity."user" (did, account, role) select * from unnest($1::text[], $2::text[], $3::text[])
        on conflict (did) do nothing""",
        *_columns(users, 3),
    )


async def insert_keys(connection: Connection, keys: Sequence[NewKey]) -> None:
    """Insert keys.

    Raises:
        asyncpg.UniqueViolationError: an id or digest is taken.
    """
    await connection.execute(
        """insert into identity.access_key (id, digest, user_did, role, name, created_by)
        select * from unnest($1::text[], $2::bytea[], $3::text[], $4::text[], $5::text[], $6::text[])""",
        *_columns(keys, 6),
    )


async def revoke_key(connection: Connection, key_id: str) -> bool | None:
    """Revoke a key. True = now, False = it was revoked before, None = there is no such key."""
    revoked_at = await connection.fetchrow(
        "select revoked_at from identity.access_key where id = $1 for no key update", key_id
    )
    if revoked_at is None:
        return None
    if revoked_at[0] is not None:
        return False
    await connection.execute("update identity.access_key set revoked_at = now() where id = $1", key_id)
    return True


async def mark_used(pool: Pool, used: dict[str, datetime]) -> None:
    """Note when keys were last used."""
    await pool.execute(_USED, list(used), list(used.values()))


async def next_revision(connection: Connection) -> int:
    """Raise the revision of identities; holds the row to the end of the transaction, so revisions commit in order."""
    revision: int = await connection.fetchval("update identity.revision set revision = revision + 1 returning revision")
    return revision


async def revision(pool: Pool) -> int:
    """The revision of identities."""
    value: int = await pool.fetchval("select revision from identity.revision")
    return value


async def audit(connection: Connection, who: str, what: str, changed: str, **details: str | int) -> None:
    """Note who did what; no secret in the details."""
    await connection.execute(
        "insert into identity.audit_log (who, what, object, details) values ($1, $2, $3, $4::jsonb)",
        who,
        what,
        changed,
        msgspec.json.encode(details).decode(),
    )


async def lock_bootstrap(connection: Connection) -> None:
    """Let one gateway at a time make the first owner; held to the end of the transaction."""
    await connection.execute("select pg_advisory_xact_lock($1)", _BOOTSTRAP_LOCK)


async def first_owner(connection: Connection) -> Owner | None:
    """The oldest owner."""
    row = await connection.fetchrow(_OWNER)
    return None if row is None else Owner(*row)


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [[row[column] for row in rows] for column in range(width)]
