"""`hub migrate` and `hub provision`: schemas and streams, made as this version wants them. Both are safe to repeat."""

import os

import asyncpg
import nats
import nats.errors

from contracts.permissions import PROVISIONER
from hub_local import migrate as migrations
from hub_local.commands.session import UsageError, run, running
from hub_local.services import process_environment
from hub_local.settings import read_settings
from runtime.migrations import MigrationError
from runtime.provision import provision as make


def migrate(*, database_url: str | None = None) -> None:
    """Apply the migrations of all services.

    Args:
        database_url: the database, as a role that may create schemas, with the services' roles made before;
            HUB_ADMIN_DATABASE_URL when absent, else the embedded one.
    """
    run(_migrate(database_url or os.environ.get("HUB_ADMIN_DATABASE_URL")))


def provision(*, nats_url: str | None = None) -> None:
    """Make streams, consumers and buckets.

    Args:
        nats_url: the server, as the user `provisioner`; HUB_ADMIN_NATS_URL when absent, else the embedded one.
    """
    run(_provision(nats_url or os.environ.get("HUB_ADMIN_NATS_URL")))


async def _migrate(url: str | None) -> None:
    try:
        applied = await migrations.migrate(url or running().database_url)
    except (MigrationError, asyncpg.PostgresError) as error:
        raise UsageError(str(error)) from error
    print("\n".join(f"{name} applied" for name in applied) or "nothing to apply")


async def _provision(url: str | None) -> None:
    try:
        client = await nats.connect(
            url or running().nats_provision_url,
            inbox_prefix=f"_INBOX.{PROVISIONER}".encode(),
            allow_reconnect=False,
            connect_timeout=5,
        )
        try:
            await make(client.jetstream(), read_settings(process_environment()).kept_answers)
        finally:
            await client.close()
    except nats.errors.Error as error:
        raise UsageError(f"NATS: {error}") from error
    print("streams, consumers and buckets are as they should be")
