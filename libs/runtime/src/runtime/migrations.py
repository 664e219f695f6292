"""SQL migrations of the schemas, applied in order, once each, by one process at a time.

Files are `NNNN_{before,after}_what.sql` in a package's `sql/migrations`; `before` runs before new code starts,
`after` once no old code is left. A file runs in one transaction, unless its first line is `-- no transaction`.
A file that was applied may never change: its SHA-256 is kept and compared.
"""

import asyncio
import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from typing import Final, Literal

import asyncpg

LOCK: Final = 7_201_190_511_342
_NAME: Final = re.compile(r"(\d{4})_(before|after)_[a-z0-9_]+\.sql")
Phase = Literal["before", "after"]


class MigrationError(Exception):
    """A migration was changed after it had been applied, or the database is newer than the code."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file."""

    schema: str
    name: str
    phase: Phase
    sql: str

    @property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def found(package: str, schema: str) -> list[Migration]:
    """The migrations of a package, in order of their numbers.

    Raises:
        MigrationError: a file's name has another form, or its number twice.
    """
    folder = resources.files(package) / "sql" / "migrations"
    result: list[Migration] = []
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if not entry.name.endswith(".sql"):
            continue
        match = _NAME.fullmatch(entry.name)
        if match is None:
            raise MigrationError(f"{entry.name}: a migration is named NNNN_before_what.sql or NNNN_after_what.sql")
        if result and result[-1].name[:4] == match[1]:
            raise MigrationError(f"{entry.name}: number {match[1]} is {result[-1].name} already")
        phase: Phase = "before" if match[2] == "before" else "after"
        result.append(Migration(schema, entry.name, phase, entry.read_text("utf-8")))
    return result


async def apply(
    connection: "asyncpg.Connection[asyncpg.Record]", migrations: list[Migration], *, through: Phase = "after"
) -> list[str]:
    """Apply what is missing; several processes at once are safe, one of them does it.

    Args:
        connection: with the right to create schemas.
        migrations: of all schemas, each schema's in order.
        through: `before` leaves the `after` files for later.

    Returns:
        Names of the files applied now, as `schema/name`.

    Raises:
        MigrationError: see the class.
    """
    while not await connection.fetchval("select pg_try_advisory_lock($1)", LOCK):  # noqa: ASYNC110
        # Polled: waiting inside pg_advisory_lock() deadlocks with `create index concurrently`.
        await asyncio.sleep(0.2)
    try:
        return await _apply_locked(connection, migrations, through)
    finally:
        await connection.execute("select pg_advisory_unlock($1)", LOCK)


async def _apply_locked(
    connection: "asyncpg.Connection[asyncpg.Record]", migrations: list[Migration], through: Phase
) -> list[str]:
    await connection.execute(
        "create table if not exists public.hub_migration (schema text not null, name text not null,"
        " digest text not null, applied_at timestamptz not null default now(), primary key (schema, name))"
    )
    rows = await connection.fetch("select schema, name, digest from public.hub_migration")
    known = {(row["schema"], row["name"]): row["digest"] for row in rows}
    ours = {(migration.schema, migration.name) for migration in migrations}
    schemas = {migration.schema for migration in migrations}
    newer = sorted(f"{schema}/{name}" for schema, name in set(known) - ours if schema in schemas)
    if newer:
        raise MigrationError(f"the database is newer than this code: it has {', '.join(newer)}")
    done = []
    for migration in migrations:
        digest = known.get((migration.schema, migration.name))
        if digest is not None and digest != migration.digest:
            raise MigrationError(f"{migration.schema}/{migration.name} was changed after it had been applied")
        if digest is not None or (migration.phase == "after" and through == "before"):
            continue
        await _apply_one(connection, migration)
        done.append(f"{migration.schema}/{migration.name}")
    return done


async def _apply_one(connection: "asyncpg.Connection[asyncpg.Record]", migration: Migration) -> None:
    record = "insert into public.hub_migration (schema, name, digest) values ($1, $2, $3)"
    values = (migration.schema, migration.name, migration.digest)
    if migration.sql.startswith("-- no transaction"):
        await connection.execute(migration.sql)
        await connection.execute(record, *values)
        return
    async with connection.transaction():
        await connection.execute(migration.sql)
        await connection.execute(record, *values)
