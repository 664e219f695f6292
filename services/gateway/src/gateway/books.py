"""What the books say, for answers that no notice of theirs has released."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from contracts.errors import HubError
from contracts.rpc.metering import SettledCall
from gateway.dispatch import Dispatcher

_log = structlog.get_logger("books")
ASK_EVERY_S: Final = 0.5
ASK_AFTER_S: Final = 1.0
"""A notice that has not come by then is lost, or metering is far behind."""
_ASK_MAX: Final = 1000

Outcomes = Callable[[Sequence[str]], Awaitable[dict[str, SettledCall]]]
"""The closed ones among some calls; raises HubError when metering does not answer."""


async def closed(outcomes: Outcomes, call_ids: Sequence[str]) -> dict[str, SettledCall]:
    """The same, with nothing instead of an error: it is asked again."""
    try:
        return await outcomes(call_ids)
    except HubError as error:
        _log.warning("books not read", calls=len(call_ids), error=error.code)
        return {}


async def seek_lost_notices(dispatcher: Dispatcher, outcomes: Outcomes) -> None:
    """Ask about answers that are complete and have waited for the books for too long, for ever."""
    while True:
        await asyncio.sleep(ASK_EVERY_S)
        late = dispatcher.unsettled(ASK_AFTER_S)
        for start in range(0, len(late), _ASK_MAX):
            for settled in (await closed(outcomes, late[start : start + _ASK_MAX])).values():
                dispatcher.settled(settled)
