"""What the schema needs from time to time, when a duty asks for it: partitions ahead, expired claims gone."""

from datetime import UTC, datetime
from typing import Final

import asyncpg
import structlog

from contracts.errors import ErrorCode, HubError
from contracts.rpc.envelope import Empty
from contracts.rpc.reconcile import ClaimsExpired, PartitionsMade
from runtime.postgres import Pool

MONTHS_AHEAD: Final = 3
_CLAIMS: Final = 10_000
_CLAIMS_MAX: Final = 500_000
"""Most claims of one question: the rest is dropped at the next."""
_EXPIRED: Final = (
    "with gone as (delete from metering.idempotency where digest = any (array("
    "select digest from metering.idempotency where expires_at < now() order by expires_at limit $1"
    " for update skip locked)) returning 1) select count(*) from gone"
)
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


async def expire_claims(pool: Pool, _request: Empty) -> ClaimsExpired:
    """Drop Idempotency-Keys that have expired, some at a time.

    Raises:
        asyncpg.PostgresError, OSError, TimeoutError: repeat it later.
    """
    total = 0
    while total < _CLAIMS_MAX:
        gone: int = await pool.fetchval(_EXPIRED, _CLAIMS)
        total += gone
        if gone < _CLAIMS:
            break
    return ClaimsExpired(claims=total)
