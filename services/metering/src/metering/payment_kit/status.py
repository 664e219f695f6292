"""The adapter as an operator sees it: what waits, what is parked, and the switches."""

import asyncio
from dataclasses import dataclass
from typing import Final

import structlog

from contracts.money import to_text
from contracts.rpc.payments import (
    ParkedReport,
    PaymentPause,
    PaymentRetried,
    PaymentRetry,
    PaymentStatus,
    PaymentStatusGet,
)
from metering.payment_kit import outbox, records
from metering.payment_kit.circuit import Circuit
from metering.payment_kit.outbox import TransientErrors
from metering.payment_kit.settings import PaymentKitSettings
from metering.times import iso_ms
from runtime.postgres import Pool

_log = structlog.get_logger("payment_kit")
_COUNT_EVERY_S: Final = 10.0
_COUNTS: Final = """
select (select paused from metering.payment_control) as paused,
    count(*) filter (where state = 'pending') as pending, count(*) filter (where state = 'parked') as parked,
    coalesce(sum(value) filter (where kind = 'meter'), 0) as unreported,
    min(created_at) filter (where state = 'pending') as oldest,
    extract(epoch from now() - min(created_at) filter (where state = 'pending'))::int as oldest_s
from metering.outbox where state <> 'sent'
"""
_PARKED: Final = """
select identifier, account, value, reason, tries, created_at from metering.outbox
where state = 'parked' order by id limit $1
"""
_PAUSE: Final = "update metering.payment_control set paused = $1"


@dataclass(frozen=True, slots=True)
class Status:
    """Answers the questions of operators."""

    settings: PaymentKitSettings
    pool: Pool
    circuit: Circuit

    async def get(self, request: PaymentStatusGet) -> PaymentStatus:
        """Counts, and the first parked rows."""
        row = await self.pool.fetchrow(_COUNTS)
        assert row is not None  # noqa: S101 - an aggregate gives one row
        parked = await self.pool.fetch(_PARKED, request.parked_max)
        return PaymentStatus(
            is_on=True,
            is_paused=row["paused"] or self.settings.payment_kit_paused,
            circuit_closed=self.circuit.is_closed,
            pending=row["pending"],
            parked=row["parked"],
            unreported=row["unreported"],
            oldest_pending_at=None if row["oldest"] is None else iso_ms(row["oldest"]),
            parked_reports=tuple(
                ParkedReport(
                    identifier=report["identifier"],
                    account=report["account"],
                    value=to_text(report["value"]),
                    reason=report["reason"],
                    tries=report["tries"],
                    created_at=iso_ms(report["created_at"]),
                )
                for report in parked
            ),
        )

    async def pause(self, request: PaymentPause) -> PaymentStatus:
        """Stop or go on sending, in every process."""
        await self.pool.execute(_PAUSE, request.paused)
        _log.warning("meter events paused" if request.paused else "meter events go on")
        return await self.get(PaymentStatusGet())

    async def retry(self, request: PaymentRetry) -> PaymentRetried:
        """Try parked rows again, as they are: same identifier, same value."""
        retried = await outbox.retry_parked(self.pool, request.identifiers)
        _log.warning("parked meter events are tried again", rows=retried)
        return PaymentRetried(retried=retried)

    async def count(self) -> None:
        """Keep the gauges, until cancelled."""
        while True:
            try:
                row = await self.pool.fetchrow(_COUNTS)
            except TransientErrors as error:
                _log.warning("outbox not counted", error=type(error).__name__)
            else:
                assert row is not None  # noqa: S101 - an aggregate gives one row
                records.ROWS.labels("pending").set(row["pending"])
                records.ROWS.labels("parked").set(row["parked"])
                records.OLDEST_S.set(row["oldest_s"] or 0)
                records.CIRCUIT.set(not self.circuit.is_closed)
            await asyncio.sleep(_COUNT_EVERY_S)
