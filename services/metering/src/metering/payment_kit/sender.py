"""Meter events out: several workers, each identifier in one pair of hands at a time, until Payment Kit has it.

A worker takes rows (with a fence, so that a worker that was thought dead changes nothing), sends them one after the
other and writes what became of them. Its claim lasts for as long as Payment Kit may work on what it was sent, so a
row is never under way twice.
"""

import asyncio
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

import structlog

from metering.payment_kit import outbox, records
from metering.payment_kit.circuit import Circuit, backoff_s
from metering.payment_kit.client import PaymentKit, PaymentKitError
from metering.payment_kit.events import Judgement, Result, before_answer, judge, judge_error
from metering.payment_kit.look_up import look_up
from metering.payment_kit.meter import Meters
from metering.payment_kit.outbox import Mark, Picked, TransientErrors
from metering.payment_kit.settings import PaymentKitSettings
from runtime import failpoints
from runtime.postgres import Pool

_log = structlog.get_logger("payment_kit")
ROWS_MAX: Final = 16
"""Rows of one worker at a time: two statements for all of them."""
IDLE_S: Final = 0.25
_CALLS_MAX: Final = 3
"""Time of one row, in the longest waits for one answer: it may need a look-up before and after."""
_DUPLICATE_TRIES_MAX: Final = 8
"""Payment Kit says that it knows an identifier and does not list it: after so many tries a person must look."""


@dataclass(slots=True)
class Sender:
    """The workers of one process."""

    kit: PaymentKit
    meters: Meters
    pool: Pool
    settings: PaymentKitSettings
    circuit: Circuit
    _stopping: bool = False
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One idle worker looks for rows; the others wait for their turn to look."""

    async def run(self) -> None:
        """All workers, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self.settings.payment_kit_workers):
                group.create_task(self._work())
            if self.settings.payment_kit_batch_s:
                group.create_task(self._fold())

    def stop(self) -> None:
        """Take no more rows; those in hand are given back before the next is sent."""
        self._stopping = True

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping:
            try:
                async with self._looking:
                    began = loop.time()
                    picked = [] if self._stopping else await self._pick()
                    if not picked:
                        await asyncio.sleep(0 if self._stopping else max(IDLE_S, min(self.circuit.wait_s, 1.0)))
                await self._deliver(picked, began)
            except TransientErrors as error:  # the rows in hand come again after their claim
                _log.warning("outbox waits", error=type(error).__name__, detail=str(error)[:200])
                await asyncio.sleep(IDLE_S)

    async def _deliver(self, picked: list[Picked], began: float) -> None:
        """Send rows and write what became of them.

        Raises:
            asyncpg.PostgresError, OSError, TimeoutError: the rows come again after their claim.
        """
        try:
            marks = [await self._send(row, began) for row in picked]
        finally:
            if picked:
                self.circuit.unused()  # whatever happened, the next call may be tried
        await outbox.mark(self.pool, marks)

    async def _pick(self) -> list[Picked]:
        """Rows to send; none while paused, or while Payment Kit is left alone.

        Raises:
            asyncpg.PostgresError, OSError, TimeoutError: nothing is known.
        """
        admitted = 0 if self.settings.payment_kit_paused else self.circuit.admits(ROWS_MAX)
        if not admitted:
            return []
        picked: list[Picked] = []
        try:
            picked = await outbox.pick(
                self.pool,
                admitted,
                timedelta(seconds=self._claim_s),
                timedelta(seconds=self.settings.payment_kit_dedup_s / 2),
                self.meters.unit,
                batched=self.settings.payment_kit_batch_s > 0,
            )
        finally:
            if not picked:
                self.circuit.unused()
        return picked

    @property
    def _claim_s(self) -> float:
        """How long a picked row is ours: what one row may take at most, and a time in which each must have begun."""
        return self._row_s + self.settings.payment_kit_timeout_s

    @property
    def _row_s(self) -> float:
        return _CALLS_MAX * self.settings.payment_kit_timeout_s + self.settings.payment_kit_server_s

    async def _send(self, row: Picked, began: float) -> Mark:
        """One row, from the pick to what became of it."""
        left_s = began + self._claim_s - asyncio.get_running_loop().time()
        if self._stopping or left_s < self._row_s or self.circuit.wait_s > 0:
            return Mark(row.event.id, row.fence, "pending", untried=True)
        try:
            async with asyncio.timeout(_CALLS_MAX * self.settings.payment_kit_timeout_s):
                judgement = await self._report(row)
        except PaymentKitError as error:
            judgement = before_answer(error)
        except TimeoutError:
            judgement = before_answer(PaymentKitError("silent", detail="too many slow answers", transient=True))
        if judgement.unhealthy:
            self.circuit.failed(judgement.retry_after_s)
        else:
            self.circuit.succeeded()
        return self._mark(row, judgement)

    async def _report(self, row: Picked) -> Judgement:
        """Have Payment Kit know the event.

        Raises:
            PaymentKitError: it does not answer, or the meter cannot be had.
        """
        event_name = await self._event_name(row)
        if row.tries > 1 and row.is_old:
            found = await self._looked_up(row)
            if found is not None:
                return found
        failpoints.hit("metering.before_post")
        answer = await self.kit.send("POST", "/api/meter-events", body=row.event.body(event_name))
        failpoints.hit("metering.after_post")
        judgement = judge(row.event, answer)
        if judgement.result is Result.REFUSED:
            self.meters.forget()
        if judgement.result is not Result.LOOK_UP:
            return judgement
        found = await self._looked_up(row)
        if found is not None:
            return replace(found, reason=found.reason or "was known")
        if row.tries >= _DUPLICATE_TRIES_MAX:
            return Judgement(Result.PARKED, f"said to be known, but not listed: {judgement.reason}")
        return Judgement(Result.RETRY, judgement.reason, unhealthy=answer.status >= 500)  # noqa: PLR2004

    async def _event_name(self, row: Picked) -> str:
        """Of the meter that counts in the unit of the charge.

        Raises:
            PaymentKitError: this hub's meter cannot be had.
        """
        return self.meters.event_names[1] if row.is_before else (await self.meters.get()).event_name

    async def _looked_up(self, row: Picked) -> Judgement | None:
        """The event as Payment Kit has it; None when it has none. Parked when its list makes no sense.

        Raises:
            PaymentKitError: Payment Kit is away, or must be set up rightly first.
        """
        try:
            return await look_up(self.kit, self.meters, row.event, await self._event_name(row))
        except PaymentKitError as error:
            judged = judge_error(error)
            if judged.result is not Result.PARKED:
                raise
            return replace(judged, reason=f"in doubt, and cannot be looked up: {judged.reason}")

    def _mark(self, row: Picked, judgement: Judgement) -> Mark:
        records.POSTS.labels(judgement.result).inc()
        if judgement.result is Result.SENT:
            return Mark(row.event.id, row.fence, "sent", judgement.reason, judgement.event_id)
        report = _log.error if judgement.result in {Result.PARKED, Result.REFUSED} else _log.warning
        report(
            "meter event not sent",
            identifier=row.event.identifier,
            result=judgement.result,
            reason=judgement.reason,
            tries=row.tries,
        )
        if judgement.result is Result.PARKED:
            records.PARKED.inc()
            return Mark(row.event.id, row.fence, "parked", judgement.reason, judgement.event_id)
        delay_s = max(backoff_s(row.tries, self.settings.payment_kit_backoff_max_s), judgement.retry_after_s)
        if judgement.may_run_on:
            delay_s = max(delay_s, self.settings.payment_kit_server_s)
        return Mark(row.event.id, row.fence, "pending", judgement.reason, delay_s=delay_s)

    async def _fold(self) -> None:
        """Make batches of what has waited long enough."""
        age = timedelta(seconds=self.settings.payment_kit_batch_s)
        while not self._stopping:
            try:
                await outbox.fold(self.pool, age, self.meters.unit)
            except TransientErrors as error:
                _log.warning("batches wait", error=type(error).__name__, detail=str(error)[:200])
            await asyncio.sleep(min(1.0, self.settings.payment_kit_batch_s / 4))
