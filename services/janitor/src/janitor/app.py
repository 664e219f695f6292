"""The janitor, wired: a bus, and one loop per duty."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

import structlog
from nats.errors import Error as NatsError
from nats.js import JetStreamContext

from contracts import subjects
from contracts.events import now_text
from contracts.streams import DUTY_LEASES, DUTY_RUNS
from janitor.duties import claims, closing, grants, parked, partitions, rate_check, reconcile, stale_calls
from janitor.leases import DutyLease
from janitor.runs import RunsLog
from janitor.schedule import Duty, keep
from janitor.settings import Settings
from runtime.bus import Bus, opened
from runtime.liveness import ops_port
from runtime.process import background
from runtime.telemetry import Tracing

_log = structlog.get_logger("janitor")
_JETSTREAM_TIMEOUT_S: Final = 2.0
_CALM: Final = 8
"""A duty that is due rarely may be without a janitor for so many leases; each lease costs a write in its quarter."""


@asynccontextmanager
async def janitor(settings: Settings, process: str) -> AsyncIterator[None]:
    """Open the bus and keep the duties; leaving cancels them and gives their leases up."""
    inbox = subjects.inbox_prefix("janitor", process)
    connection: list[Bus] = []

    async def ready() -> dict[str, bool]:
        return {"bus": bool(connection) and connection[0].is_connected}

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(ops_port(settings.ops_host, settings.ops_port, ready))
        tracing = Tracing("janitor")
        stack.callback(tracing.shutdown)
        bus = await _connected(settings, process, inbox)
        stack.push_async_callback(bus.close)
        connection.append(bus)
        js = bus.jetstream(timeout=_JETSTREAM_TIMEOUT_S)
        kept = [
            (duty, DutyLease(partial(js.key_value, DUTY_LEASES.name), duty.name, process, duty.lease_s, time.monotonic))
            for duty in table(settings, bus, js, tracing)
        ]
        for _, lease in kept:
            stack.push_async_callback(_released, lease, bus)
        log = RunsLog(partial(js.key_value, DUTY_RUNS.name), process)
        for duty, lease in kept:
            await stack.enter_async_context(background(duty.name, keep(duty, lease, log)))
        yield


def table(settings: Settings, bus: Bus, js: JetStreamContext, tracing: Tracing) -> tuple[Duty, ...]:
    """All duties: name, period, jitter, lease, what to do, longest run."""
    s, lease_s, calm_s = settings, settings.duty_lease_s, _CALM * settings.duty_lease_s
    close_stale = partial(stale_calls.close_stale_calls, bus, js, tracing, settings.lease_s, now_text)
    check_rates = partial(rate_check.check_rates, bus, apply=settings.rates_auto_update)
    compare, close = partial(reconcile.compare_books, bus), partial(closing.close_days, bus)
    return (
        Duty(stale_calls.NAME, s.stale_period_s, 0.1, lease_s, close_stale),
        Duty(grants.NAME, s.grants_period_s, 0.1, lease_s, partial(grants.advance_grants, bus), grants.LIMIT_S),
        Duty(claims.NAME, s.claims_period_s, 0.1, calm_s, partial(claims.expire_claims, bus), 120.0),
        Duty(partitions.NAME, s.partitions_period_s, 0.1, calm_s, partial(partitions.make_partitions, bus), 30.0),
        Duty(reconcile.NAME, s.reconcile_period_s, 0.05, calm_s, compare, reconcile.LIMIT_S),
        Duty(closing.NAME, s.closing_period_s, 0.05, calm_s, close, closing.LIMIT_S),
        Duty(rate_check.NAME, s.rates_check_period_s, 0.1, calm_s, check_rates, rate_check.LIMIT_S),
        Duty(parked.NAME, s.parked_period_s, 0.1, calm_s, partial(parked.watch_parked, bus)),
    )


async def _connected(settings: Settings, process: str, inbox: str) -> Bus:
    while True:
        try:
            return await opened(settings.nats_url.get_secret_value(), name=process, inbox_prefix=inbox)
        except TimeoutError:
            _log.warning("no nats server yet, still trying")


async def _released(lease: DutyLease, bus: Bus) -> None:
    if not bus.is_connected:
        return  # the lease ends by itself
    try:
        await lease.release()
    except (NatsError, TimeoutError) as error:
        _log.warning("duty lease not released", error=type(error).__name__)
