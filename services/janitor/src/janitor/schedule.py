"""The loop that keeps one duty: run when it is due, by one janitor at a time, missed runs made up."""

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
from janitor.runs import Run, RunsLog

_log = structlog.get_logger("schedule")
_TICKS_PER_LEASE: Final = 4
_RETRY_S: Final = 1.0
"""The first pause after a failure; each further one doubles it."""
_RETRY_MAX_S: Final = (5.0, 60.0)
"""A duty that is due often is tried again within the first, one that is due rarely within the second."""
_AWAY: Final = (HubError, NatsError, TimeoutError, OSError)

_runs = Counter("hub_janitor_duty_runs_total", "Runs of a duty by this janitor.", ["duty", "result"])
_holder = Gauge("hub_janitor_duty_holder", "1 while this janitor holds the duty's lease.", ["duty"])
_last = Gauge("hub_janitor_duty_last_success_seconds", "Unix time of the duty's last success here.", ["duty"])


@dataclass(frozen=True, slots=True)
class Duty:
    """Something that is to be done again and again, by one janitor at a time."""

    name: str
    period_s: float
    jitter: float
    """Share of the period by which a pause is shortened or lengthened, so that duties do not march in step."""
    lease_s: float
    """Renewed four times in its length, also while the duty runs; once it is lost, the run is cancelled."""
    run: Callable[[], Awaitable[str]]
    """Safe to repeat; returns what came of it, in a few words."""
    limit_s: float = 0.0
    """A run that takes longer is cut off; 0 = the lease."""


async def keep(duty: Duty, lease: DutyLease, log: RunsLog) -> None:
    """Run a duty for ever, whenever it is due and the lease is ours; lost connections are tried again.

    A duty that has been taken over is due when its period has passed since its last run, whoever ran it: at once, if
    that was missed.
    """
    tick = duty.lease_s / _TICKS_PER_LEASE
    claim, past = _Claim(duty, lease, log), _Past(duty)
    running: asyncio.Task[str] | None = None
    try:
        while True:
            is_sure = await claim.renew()
            if running is None and is_sure and time.monotonic() >= claim.due_at:
                running = asyncio.create_task(_limited(duty), name=duty.name)
            if running is None:
                until_due = claim.due_at - time.monotonic()
                await asyncio.sleep(min(tick, until_due) if claim.held and until_due > 0 else tick)
                continue
            if not claim.is_alive():
                running.cancel()
            await asyncio.wait([running], timeout=tick)
            if running.done():
                ended, running = running, None
                if not ended.cancelled():
                    claim.due_at = time.monotonic() + await _ended(duty, ended, log, past)
    finally:
        while running is not None and not running.done():
            # Repeated: before Python 3.12 `wait_for` loses a cancellation that comes with its result.
            running.cancel()
            await asyncio.wait([running], timeout=1.0)


@dataclass(slots=True)
class _Claim:
    """Whether a duty is ours, and when it is due."""

    duty: Duty
    lease: DutyLease
    log: RunsLog
    held: bool = False
    due_at: float = 0.0
    _sure_at: float = 0.0
    _unknown: str = ""
    """The error that was logged last, while the lease is not known."""

    async def renew(self) -> bool:
        """Take or keep the lease; whether it is ours for certain."""
        name = self.duty.name
        try:
            held_before, asked_at = self.held, time.monotonic()
            self.held = await self.lease.hold()
            self._sure_at = asked_at
            _holder.labels(name).set(self.held)
            if self.held and not held_before:
                self.due_at = 0.0
                _log.info("duty taken", duty=name)
                self.due_at = time.monotonic() + await self.log.due_in_s(name, self.duty.period_s)
        except _AWAY as error:
            if self._unknown != (kind := type(error).__name__):
                _log.warning("duty lease unknown", duty=name, error=kind, detail=str(error)[:200])
            self._unknown = kind
            return False
        self._unknown = ""
        return self.held

    def is_alive(self) -> bool:
        """Whether nobody else can have taken the duty over."""
        return self.held and time.monotonic() - self._sure_at < self.duty.lease_s


@dataclass(slots=True)
class _Past:
    """The failures of a duty in a row: each makes the next pause longer, and the same one is logged once."""

    duty: Duty
    failures: int = 0
    _told: str = ""

    def failed(self, error: BaseException) -> float:
        """Returns the seconds until the next try."""
        kind = str(error.code) if isinstance(error, HubError) else type(error).__name__
        if kind != self._told:
            _log.warning("duty failed", duty=self.duty.name, error=kind, detail=str(error)[:200])
        self._told = kind
        self.failures += 1
        often, rarely = _RETRY_MAX_S
        longest = min(max(self.duty.period_s, often), rarely)
        pause_s = min(_RETRY_S * 2.0 ** min(self.failures - 1, 10), longest)
        return pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret

    def done(self) -> float:
        """Returns the seconds until the next run."""
        if self.failures:
            _log.info("duty done again", duty=self.duty.name, failures=self.failures)
        self.failures, self._told = 0, ""
        return self.duty.period_s * random.uniform(1 - self.duty.jitter, 1 + self.duty.jitter)  # noqa: S311


async def _limited(duty: Duty) -> str:
    async with asyncio.timeout(duty.limit_s or duty.lease_s):
        return await duty.run()


async def _ended(duty: Duty, task: "asyncio.Task[str]", log: RunsLog, past: _Past) -> float:
    """Note what came of a run; returns the seconds until the next. A bug in a duty is raised."""
    try:
        result, is_done = task.result(), True
        pause_s = past.done()
    except _AWAY as error:
        result, is_done = f"{type(error).__name__}: {error}"[:300], False
        pause_s = past.failed(error)
    _runs.labels(duty.name, "done" if is_done else "failed").inc()
    if is_done:
        _last.labels(duty.name).set_to_current_time()
    try:
        await log.note(duty.name, Run.now(result, is_done, pause_s))
    except (NatsError, TimeoutError, OSError) as error:
        _log.warning("duty run not noted", duty=duty.name, error=type(error).__name__)
    return pause_s
