"""The table of duties, and the loop that keeps one of them."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog
from nats.errors import Error as NatsError
from prometheus_client import Counter, Gauge

from contracts.errors import HubError
from janitor.leases import DutyLease

_log = structlog.get_logger("schedule")
_TICKS_PER_LEASE: Final = 4

_runs = Counter("hub_janitor_duty_runs_total", "Runs of a duty by this janitor.", ["duty", "result"])
_holder = Gauge("hub_janitor_duty_holder", "1 while this janitor holds the duty's lease.", ["duty"])


@dataclass(frozen=True, slots=True)
class Duty:
    """Something that is to be done again and again, by one janitor at a time."""

    name: str
    period_s: float
    jitter: float
    """Share of the period by which a pause is shortened or lengthened, so that duties do not march in step."""
    lease_s: float
    """A run that takes longer is cut off: another janitor may have taken over. Runs must be safe to repeat."""
    run: Callable[[], Awaitable[object]]


async def keep(duty: Duty, lease: DutyLease) -> None:
    """Run a duty for ever, whenever it is due and the lease is ours; lost connections are tried again.

    The lease is renewed four times in its length also while nothing is due. A duty is due at once after it has been
    taken over.
    """
    due_at = 0.0
    held = False
    while True:
        try:
            held_before, held = held, await lease.hold()
            _holder.labels(duty.name).set(held)
            if held and not held_before:
                _log.info("duty taken", duty=duty.name)
                due_at = 0.0
            if held and time.monotonic() >= due_at:
                due_at = time.monotonic() + _spread(duty.period_s, duty.jitter)
                async with asyncio.timeout(duty.lease_s):
                    await duty.run()
                _runs.labels(duty.name, "done").inc()
        except (HubError, NatsError, TimeoutError, OSError) as error:
            _runs.labels(duty.name, "failed").inc()
            _log.warning("duty failed", duty=duty.name, error=type(error).__name__, detail=str(error)[:200])
        tick = duty.lease_s / _TICKS_PER_LEASE
        until_due = due_at - time.monotonic()
        await asyncio.sleep(min(tick, until_due) if held and until_due > 0 else tick)


def _spread(period_s: float, jitter: float) -> float:
    return period_s * random.uniform(1 - jitter, 1 + jitter)  # noqa: S311 - no secret
