"""Where users buy credits: as the operator has set it, or as metering has it from Payment Kit.

Refusals tell it without asking anybody: the last link that was known stays through any outage.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from contracts.errors import HubError

_log = structlog.get_logger("payment_link")
_FIRST_S: Final = 1.0
_EVERY_S: Final = 60.0


class PaymentLink:
    """The link of this gateway."""

    def __init__(self, given: str | None, ask: Callable[[], Awaitable[str | None]]) -> None:
        self._is_given = given is not None and not given.startswith("/")
        self._url = given if self._is_given else None
        self._ask = ask

    def current(self) -> str | None:
        """An http or https URL; None where there is no such page, or it is not known yet."""
        return self._url

    async def keep_fresh(self) -> None:
        """Ask again and again, ever less often, until cancelled."""
        wait_s = _FIRST_S
        while not self._is_given:
            try:
                self._url = await self._ask() or self._url
            except HubError as error:
                _log.info("payment link not asked", code=str(error.code))
            await asyncio.sleep(wait_s)
            wait_s = min(_EVERY_S, wait_s * 2)
