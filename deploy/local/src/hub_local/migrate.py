"""Database, roles and migrations: everything that needs the superuser, safe to repeat."""

import importlib.util
from importlib import resources
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from runtime import migrations

OWNERS: Final = {"gateway": "identity", "provider_router": "catalog", "metering": "metering"}
"""Packages, which are also the database roles, and the one schema that each owns."""


async def prepare(admin_dsn: str, passwords: dict[str, str], database: str) -> list[str]:
    """Make roles and database where they are missing, then apply the migrations.

    Args:
        admin_dsn: a superuser's URL of any database of the server.
        passwords: by role; set anew each time, so that a changed password counts.
        database: its name.

    Returns:
        Names of the migrations applied now.

    Raises:
        runtime.migrations.MigrationError: the database does not fit this code.
        asyncpg.PostgresError, OSError: the server refused or is away.
    """
    connection = await asyncpg.connect(admin_dsn)
    try:
        await _roles(connection, passwords)
        if not await connection.fetchval("select 1 from pg_database where datname = $1", database):
            await connection.execute(f"create database {_name(database)}")
    finally:
        await connection.close()
    return await migrate(_with_database(admin_dsn, database))


async def migrate(admin_dsn: str) -> list[str]:
    """Apply what is missing in one database whose roles exist; see `prepare`."""
    connection = await asyncpg.connect(admin_dsn)
    try:
        await _close_to_strangers(connection)
        return await migrations.apply(connection, all_found())
    finally:
        await connection.close()


def all_found() -> list[migrations.Migration]:
    """The migrations of every installed service that owns a schema."""
    return [
        migration
        for package, schema in OWNERS.items()
        if _has_migrations(package)
        for migration in migrations.found(package, schema)
    ]


def _has_migrations(package: str) -> bool:
    if importlib.util.find_spec(package) is None:
        return False
    return (resources.files(package) / "sql" / "migrations").is_dir()


async def _roles(connection: "asyncpg.Connection[asyncpg.Record]", passwords: dict[str, str]) -> None:
    known = {row["rolname"] for row in await connection.fetch("select rolname from pg_roles")}
    for role, schema in OWNERS.items():
        verb = "alter" if role in known else "create"
        password = await connection.fetchval("select quote_literal($1)", passwords[role])
        await connection.execute(
            f"{verb} role {_name(role)} login nosuperuser nocreatedb nocreaterole noreplication password {password}"
        )
        await connection.execute(f"alter role {_name(role)} set search_path = {_name(schema)}")


async def _close_to_strangers(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Nobody gets anything by being somebody: only our roles connect, and none makes objects in `public`."""
    database = _name(await connection.fetchval("select current_database()"))
    await connection.execute(
        f"revoke all on database {database} from public;"
        f" grant connect on database {database} to {', '.join(_name(role) for role in OWNERS)};"
        " revoke all on schema public from public"
    )


def _with_database(dsn: str, database: str) -> str:
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{database}"))


def _name(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'
