"""What the schema needs from time to time, when a duty asks for it: partitions ahead, what has expired gone."""

from datetime import UTC, datetime, timedelta
from typing import Final

import asyncpg
import structlog

from contracts.errors import ErrorCode, HubError
from contracts.rpc.envelope import Empty
from contracts.rpc.reconcile import ClaimsExpired, PartitionsMade
from runtime.postgres import Pool

MONTHS_AHEAD: Final = 3
_ROWS: Final = 10_000
_ROWS_MAX: Final = 500_000
"""Most rows of a kind for one question: the rest is dropped at the next."""
_EXPIRED: Final = (
    "with gone as (delete from metering.idempotency where digest = any (array("
    "select digest from metering.idempotency where expires_at < now() order by expires_at limit $1"
    " for update skip locked)) returning 1) select count(*) from gone"
)
_NOTICES: Final = "select metering.drop_grant_notices($1, $2)"
_log = structlog.get_logger("upkeep")


async def make_partitions(pool: Pool, _request: Empty) -> PartitionsMade:
    """Make the partitions of this month and the next ones, where they are missing.

    Raises:
        HubError: `service_unavailable`, when the tables were too busy to be locked for a moment.
        asyncpg.PostgresError, OSError, TimeoutError: repeat it later; nothing is half done.
    """
    today = datetime.now(UTC).date()
    try:
        made = await pool.fetchval("select metering.make_partitions($1, $2)", today, MONTHS_AHEAD)
        made += await pool.fetchval("select metering.make_outbox_partitions($1, $2)", today, MONTHS_AHEAD)
    except asyncpg.LockNotAvailableError as error:
        raise HubError(ErrorCode.SERVICE_UNAVAILABLE, "The tables are busy; ask again.") from error
    if made:
        _log.info("partitions made", partitions=made)
    return PartitionsMade(partitions=tuple(made))


async def expire(pool: Pool, notices_kept: timedelta, _request: Empty) -> ClaimsExpired:
    """Drop Idempotency-Keys that have expired, and notices of grants that were told long ago, some at a time.

    Raises:
        asyncpg.PostgresError, OSError, TimeoutError: repeat it later.
    """
    claims = await _dropped(pool, _EXPIRED)
    return ClaimsExpired(claims=claims, notices=await _dropped(pool, _NOTICES, notices_kept))


async def _dropped(pool: Pool, statement: str, *arguments: timedelta) -> int:
    total = 0
    while total < _ROWS_MAX:
        gone: int = await pool.fetchval(statement, *arguments, _ROWS)
        total += gone
        if gone < _ROWS:
            break
    return total
