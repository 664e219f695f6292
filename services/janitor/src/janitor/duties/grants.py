"""Begin the grants whose time has come, and end those whose time is over."""

from typing import Final

from contracts.rpc import credit, metering
from runtime import rpc
from runtime.bus import Bus

NAME: Final = "grants"
LIMIT_S: Final = 300.0
_ACCOUNTS: Final = 500
"""Of one question: each is a transaction of its own."""
_ASK_TIMEOUT_S: Final = 60.0


async def advance_grants(bus: Bus) -> str:
    """Ask metering until nothing is due, or nothing of it can be done yet: what calls hold ends when they leave it.

    Raises:
        HubError: metering does not answer in time; what it has done stays done.
    """
    question = credit.GrantsDue(limit=_ACCOUNTS)
    started = ended = 0
    while True:
        done = await rpc.ask(
            bus, metering.SERVICE, credit.GRANTS_DUE, question, credit.GrantsDone, timeout_s=_ASK_TIMEOUT_S
        )
        started, ended = started + done.started, ended + done.ended
        if not (done.more and done.started + done.ended):
            return f"{started} begun, {ended} ended"
