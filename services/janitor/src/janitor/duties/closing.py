"""Close the days that are over: a digest of their rows, chained to the day before."""

from typing import Final

import structlog

from contracts.rpc import metering, reconcile
from runtime import rpc
from runtime.bus import Bus

NAME: Final = "closing"
LIMIT_S: Final = 1800.0
_DAYS: Final = 7
_ASK_TIMEOUT_S: Final = 600.0
_log = structlog.get_logger("closing")


async def close_days(bus: Bus) -> str:
    """Ask metering until no day is left; days that a janitor missed are closed one after the other.

    Raises:
        HubError: metering does not answer in time; what it has closed stays closed.
    """
    closed = 0
    while True:
        wanted = reconcile.CloseDays(most=_DAYS)
        reply = await rpc.ask(
            bus, metering.SERVICE, reconcile.CLOSE_DAYS, wanted, reconcile.CloseDaysReply, timeout_s=_ASK_TIMEOUT_S
        )
        for day in reply.closed:
            _log.info("day closed", day=day.day, accounts=day.accounts, calls=day.calls, chain=day.chain)
        closed += len(reply.closed)
        if not reply.more:
            return f"{closed} closed"
