"""A reserve that the mirrored balance does not cover: read the balance, ask for auto top-up, and try once more.

Only reserves that are alone in their message wait for this; others are told to ask again alone, so that nobody waits
for somebody else's balance.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

import structlog

from contracts.rpc.metering import ReserveResult, ReserveStatus
from metering.payment_kit.amounts import to_smallest
from metering.payment_kit.client import PaymentKit, PaymentKitError
from metering.payment_kit.meter import Meters
from metering.payment_kit.mirror import Mirror
from metering.payment_kit.outbox import TransientErrors, customer_did
from metering.reserve import Asked
from runtime.postgres import Pool

_log = structlog.get_logger("payment_kit")
FRESH_S: Final = 2.0
"""A look that was this short a time ago is not repeated."""
_LOOKED_MAX: Final = 10_000
_ASK_AGAIN: Final = ReserveResult(ReserveStatus.ASK_AGAIN)
_NOT_ENOUGH: Final = ReserveResult(ReserveStatus.NOT_ENOUGH)
_UNAVAILABLE: Final = ReserveResult(ReserveStatus.UNAVAILABLE)
_IS_KNOWN: Final = "select refreshed_at is not null from metering.payment_account where account = $1"
_OWED: Final = "select greatest(pending - balance, 0) from metering.payment_account where account = $1"
_ADVANCE: Final = "select metering.advance($1, $2)"


@dataclass(frozen=True, slots=True)
class _Look:
    at: float
    can_continue: bool


@dataclass(slots=True)
class SecondLook:
    """What metering's turn asks before it refuses for want of credit."""

    kit: PaymentKit
    meters: Meters
    mirror: Mirror
    pool: Pool
    wait_s: float
    """Longest wait for Payment Kit while a client waits for us."""
    _looks: dict[str, _Look] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def answer(
        self, call: Asked, again: Callable[[Asked], None], refuse: Callable[[Asked, ReserveResult], None]
    ) -> None:
        """Decide on a call that was refused: `again` reserves it once more, `refuse` answers it."""
        look = self._looks.get(call.account)
        if look is not None and asyncio.get_running_loop().time() - look.at < FRESH_S and not look.can_continue:
            refuse(call, _NOT_ENOUGH)
        elif len(call.request.results) > 1:
            refuse(call, _ASK_AGAIN)
        else:
            task = asyncio.create_task(self._look(call, again, refuse))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _look(
        self, call: Asked, again: Callable[[Asked], None], refuse: Callable[[Asked, ReserveResult], None]
    ) -> None:
        hold = Decimal(str(call.row[2]))
        try:
            if self.mirror.circuit.wait_s > 0:
                raise PaymentKitError("unreachable", detail="left alone for a while", transient=True)  # noqa: TRY301
            async with asyncio.timeout(self.wait_s):
                covered = await self.mirror.refresh(call.account) >= hold
                can_continue = not covered and await self._can_continue(call.account)
                if can_continue:
                    await self.pool.execute(_ADVANCE, call.account, hold)
        except (PaymentKitError, *TransientErrors) as error:
            _log.warning("no second look", error=type(error).__name__, detail=str(error)[:200])
            refuse(call, _NOT_ENOUGH if await self._is_known(call.account) else _UNAVAILABLE)
            return
        if len(self._looks) >= _LOOKED_MAX:
            self._looks.clear()
        self._looks[call.account] = _Look(asyncio.get_running_loop().time(), can_continue)
        if covered or can_continue:
            again(call)
        else:
            refuse(call, _NOT_ENOUGH)

    async def _can_continue(self, account: str) -> bool:
        """Whether Payment Kit tops the account up by itself. A refusal to say so means no."""
        meter = await self.meters.get()
        owed = await self.pool.fetchval(_OWED, account) or Decimal(0)
        query = {
            "customer_id": customer_did(account),
            "currency_id": meter.currency_id,
            "pending_amount": to_smallest(owed, meter.places),
        }
        try:
            answer = await self.kit.ask("GET", "/api/credit-grants/verify-availability", query)
        except PaymentKitError as error:
            _log.warning("auto top-up not known", reason=error.reason, status=error.status)
            return False
        return isinstance(answer, dict) and answer.get("can_continue") is True

    async def _is_known(self, account: str) -> bool:
        """Whether the account's balance was ever read."""
        try:
            return bool(await self.pool.fetchval(_IS_KNOWN, account))
        except TransientErrors:
            return False
