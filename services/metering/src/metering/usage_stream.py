"""Which stream has the usage events: after a bus lost its store it is another one, and is filled from the ledger."""

from datetime import timedelta
from typing import Final

import msgspec
import structlog
from nats.errors import Error as NatsError

from contracts.streams import USAGE
from runtime.bus import Bus
from runtime.postgres import Pool

_log = structlog.get_logger("usage_stream")
_INFO: Final = f"$JS.API.STREAM.INFO.{USAGE.name}"
_ASK_S: Final = 2.0
_REFILL_S: Final = 600.0
"""A month of calls is looked through."""
_KNOWN: Final = "select made_at from metering.usage_stream"
_REFILL: Final = "select metering.refill_usage($1, $2)"


class _Info(msgspec.Struct):
    created: str = ""
    """Absent when there is no such stream."""


_DECODE: Final = msgspec.json.Decoder(_Info).decode


async def recognised(bus: Bus, pool: Pool) -> str:
    """The mark of the stream that is there now, once the books know it; empty while there is none.

    If the books knew another one, "sent up to" of every account has been set back, as far as the stream keeps events.

    Raises:
        asyncpg.PostgresError, OSError, TimeoutError: ask again later.
    """
    try:
        made_at = _DECODE(await bus.call(_INFO, b"", _ASK_S)).created
    except (NatsError, TimeoutError, msgspec.DecodeError) as error:
        _log.warning("usage stream not seen", error=type(error).__name__)
        return ""
    if made_at and await pool.fetchval(_KNOWN) != made_at:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(f"set local statement_timeout = {int(_REFILL_S * 1000)}")
            keep = timedelta(seconds=USAGE.max_age_s)
            if await connection.fetchval(_REFILL, made_at, keep, timeout=_REFILL_S):
                _log.warning("the usage stream is a new one: events are published again from the ledger")
    return made_at
