"""Grants whose time has come: begun, or ended with what of them is free. Safe to run anywhere, at once and again."""

from collections.abc import Callable, Iterable
from typing import Final

import structlog

from contracts.rpc.credit import GrantsDone, GrantsDue
from metering import metrics
from runtime.postgres import Pool

_log = structlog.get_logger("grants")
_DUE: Final = (
    "select l.account from metering.credit_lot l where l.due_at <= now()"
    " group by l.account order by min(l.due_at), l.account limit $1"
)
"""Who waits longest first: accounts whose calls hold what has ended come again and again, and keep nobody waiting."""
_ADVANCE: Final = "select started, ended from metering.credit_advance($1, now())"

Changed = Callable[[Iterable[str]], None]
"""Told the accounts whose credit has changed."""


async def once(pool: Pool, changed: Changed, request: GrantsDue) -> GrantsDone:
    """One transaction per account that has something due.

    Raises:
        asyncpg.PostgresError, OSError, TimeoutError: what is done is done; repeat it for the rest.
    """
    accounts = [row["account"] for row in await pool.fetch(_DUE, request.limit)]
    started = ended = 0
    for account in accounts:
        row = await pool.fetchrow(_ADVANCE, account)
        assert row is not None  # noqa: S101 - a function with out parameters gives one row
        started, ended = started + row["started"], ended + row["ended"]
    metrics.GRANTS.labels("started").inc(started)
    metrics.GRANTS.labels("ended").inc(ended)
    if started or ended:
        _log.info("grants begun and ended", accounts=len(accounts), started=started, ended=ended)
        changed(accounts)
    return GrantsDone(accounts=len(accounts), started=started, ended=ended, more=len(accounts) == request.limit)
