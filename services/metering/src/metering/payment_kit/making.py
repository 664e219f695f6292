"""What Payment Kit shall have once is made by one process at a time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from runtime.postgres import Pool

_LOCK: Final = 7_201_190_511_361
_PAUSE_S: Final = 0.1


class BusyError(Exception):
    """Another process makes what is missing."""


@asynccontextmanager
async def alone(pool: Pool, wait_s: float = 0.0) -> AsyncIterator[None]:
    """No other process makes anything meanwhile.

    Raises:
        BusyError: one does, and did for as long as we waited.
        asyncpg.PostgresError, OSError, TimeoutError: the books do not answer.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_s
    async with pool.acquire() as connection:
        while not await connection.fetchval("select pg_try_advisory_lock($1)", _LOCK):
            if loop.time() >= until:
                raise BusyError
            await asyncio.sleep(_PAUSE_S)
        try:
            yield
        finally:
            await connection.execute("select pg_advisory_unlock($1)", _LOCK)
