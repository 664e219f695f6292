"""What the schema needs from time to time: partitions of the months ahead, expired claims gone."""

import asyncio
from datetime import UTC, datetime
from typing import Final

import asyncpg
import structlog

from runtime.postgres import UNKNOWN_OUTCOME, Pool

MONTHS_AHEAD: Final = 3
_EVERY_S: Final = 86_400.0
_RETRY_S: Final = 30.0
_EXPIRED: Final = (
    "delete from metering.idempotency where digest = any (array("
    "select digest from metering.idempotency where expires_at < now() order by expires_at limit 10000"
    " for update skip locked))"
)
_log = structlog.get_logger("upkeep")


async def run(pool: Pool) -> None:
    """At start and daily, until cancelled."""
    while True:
        try:
            await once(pool)
        except (*UNKNOWN_OUTCOME, asyncpg.PostgresError) as error:
            _log.warning("upkeep failed", error=type(error).__name__, detail=str(error)[:200])
            await asyncio.sleep(_RETRY_S)
            continue
        await asyncio.sleep(_EVERY_S)


async def once(pool: Pool) -> None:
    """Make missing partitions, drop expired claims.

    Raises:
        asyncpg.PostgresError, OSError, TimeoutError: repeat it later; nothing is half done.
    """
    made = await pool.fetchval("select metering.make_partitions($1, $2)", datetime.now(UTC).date(), MONTHS_AHEAD)
    made += await pool.fetchval(
        "select metering.make_outbox_partitions($1, $2)", datetime.now(UTC).date(), MONTHS_AHEAD
    )
    if made:
        _log.info("partitions made", partitions=made)
    while await pool.execute(_EXPIRED) == "DELETE 10000":
        _log.info("expired idempotency claims dropped", claims=10_000)
