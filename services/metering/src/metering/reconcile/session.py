"""A connection for work on many rows: the pool's statements are cut off after seconds."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from metering.reconcile.check import Connection

_CONNECT_S: Final = 5.0
_SETTINGS: Final = {"application_name": "metering-reconcile", "jit": "off", "timezone": "UTC"}
_STATEMENT_S: Final = 900
BY_INDEX: Final = (
    "set local enable_sort = off; set local enable_bitmapscan = off; set local enable_hashjoin = off;"
    " set local enable_mergejoin = off"
)
"""For a transaction that reads a page: tables that have grown since they were last analysed would be read whole."""


async def connect(dsn: str) -> Connection:
    """Open one; whoever opened it closes it."""
    settings = {**_SETTINGS, "statement_timeout": f"{_STATEMENT_S}s"}
    return await asyncpg.connect(dsn, timeout=_CONNECT_S, server_settings=settings)


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Connection]:
    """Open one for a block."""
    connection = await connect(dsn)
    try:
        yield connection
    finally:
        connection.terminate()
