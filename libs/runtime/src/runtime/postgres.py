"""A pool to the service's own schema, and the errors after which nothing is known."""

from typing import Any, Final, TypeAlias

import asyncpg

UNKNOWN_OUTCOME: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.QueryCanceledError,
    asyncpg.DiskFullError,
    asyncpg.OutOfMemoryError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    OSError,
    TimeoutError,
)
"""The database is away, slow, full or unlucky: the statement may or may not have been committed. Repeat it only
where a repeat changes nothing."""

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"  # asyncpg's class is generic for type checkers only


async def pool(
    dsn: str, *, name: str, size: int, command_timeout_s: float = 5.0, server_settings: dict[str, str] | None = None
) -> Pool:
    """Open a pool; connections are made when first needed, so that a service starts while the database is away.

    Args:
        dsn: with this service's role and password.
        name: `application_name`.
        size: most connections.
        command_timeout_s: longest wait for one statement.
        server_settings: session settings, e.g. `{"jit": "off"}`.
    """
    created: Any = asyncpg.create_pool(
        dsn,
        min_size=0,
        max_size=size,
        command_timeout=command_timeout_s,
        timeout=5.0,
        max_inactive_connection_lifetime=300.0,
        server_settings={"application_name": name, **(server_settings or {})},
    )
    opened: Pool = await created
    return opened
