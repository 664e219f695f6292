"""Wiring: opens what metering needs, top to bottom; the stack closes it bottom to top."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial

import asyncpg
import structlog
from faststream.nats import NatsBroker
from nats.errors import Error as NatsError

from contracts import streams, subjects
from contracts.rpc import metering as questions
from metering import rpc
from metering.leases import Leases, answering
from metering.ledger import conversion
from metering.ledger.notices import Notices
from metering.payment_kit import adapter as payment_kit
from metering.payment_kit.adapter import Adapter
from metering.quarantine import Quarantine
from metering.reconcile.runs import Runs
from metering.reconcile.stream import BusView
from metering.settings import Settings
from metering.settle import Announcer
from metering.sql.store import TurnResult, TurnStore, query_pool
from metering.turns import Turns
from metering.usage_events import UsageEvents
from runtime.bus import Bus, StandingPull, opened
from runtime.liveness import ops_port
from runtime.postgres import UNKNOWN_OUTCOME, Pool
from runtime.process import background
from runtime.rpc import broker as rpc_broker
from runtime.telemetry import Tracing

_log = structlog.get_logger("metering")


@asynccontextmanager
async def metering(settings: Settings, process: str) -> AsyncIterator[None]:
    """The running service; leaving finishes what waits, then closes."""
    inbox = subjects.inbox_prefix(questions.SERVICE, process)
    dsn = settings.database_url.get_secret_value()
    url = settings.nats_url.get_secret_value()
    async with AsyncExitStack() as stack:
        tracing = Tracing(questions.SERVICE)
        stack.callback(tracing.shutdown)
        if tracing.enabled:
            tracing.instrument()
        pool = await stack.enter_async_context(_closing(await query_pool(dsn, settings.database_pool)))
        bus = await opened(url, name=process, inbox_prefix=inbox)
        stack.push_async_callback(_close_bus, bus)
        payment = await stack.enter_async_context(payment_kit.opened(settings))
        store = TurnStore(
            dsn,
            timedelta(seconds=settings.lease_s),
            timedelta(seconds=settings.idempotency_s),
            with_outbox=payment is not None,
        )
        stack.callback(store.discard)
        usage = UsageEvents(bus, pool, f"{inbox}.usage")
        await usage.start()
        stack.push_async_callback(usage.finish, 2.0)
        await stack.enter_async_context(background("usage events", usage.run()))
        notices = Notices(bus, pool, settings.credit_low, partial(_pay_link, settings, payment))

        def on_settled(result: TurnResult) -> None:
            usage.publish(result)
            notices.settled(result)

        def on_fact(subject: str, ack: bytes, payload: bytes) -> None:
            turns.on_fact(subject, ack, payload)

        pull = StandingPull(bus, streams.SETTLE.stream, streams.SETTLE.durable, on_fact)
        announcer = Announcer(bus, pull, store)
        quarantine = Quarantine(announcer, usage, notices.changed)
        turns = Turns(
            store,
            announcer,
            on_settled,
            usage.catch_up_soon,
            notices.refused,
            quarantine.put,
            settings.suspect_deliveries,
            settings.turn_max,
            settings.reserve_wait_s,
            settings.reserves_max,
            None if payment is None else payment.second_look.answer,
        )
        leases = Leases(pool, timedelta(seconds=settings.lease_s), settings.reserve_wait_s)
        bus.after_reconnect(leases.interrupted)
        bus.after_reconnect(usage.reconnected)
        await stack.enter_async_context(background("notices", notices.run()))
        await stack.enter_async_context(_open_to_reserves(turns, pool, None if payment is None else payment.unit))
        await stack.enter_async_context(background("quarantine", quarantine.run()))
        await stack.enter_async_context(_turning(turns, settings.drain_s))
        runs = Runs(dsn, pool, BusView(bus, f"{inbox}.stored"), None if payment is None else payment.events)
        stack.push_async_callback(runs.stop)
        broker = rpc_broker(url, name=f"{process}-rpc", inbox_prefix=inbox)
        rpc.serve(broker, pool, leases, notices.changed, payment, settings.payment_link, settings.credit_price)
        rpc.serve_books(broker, pool, runs, usage, timedelta(seconds=settings.grant_notices_kept_s))
        await stack.enter_async_context(_started(broker))
        await stack.enter_async_context(_listening(bus, turns, leases))
        await pull.start(inbox)
        stack.callback(pull.stop)

        async def ready() -> dict[str, bool]:
            return {"nats": bus.is_connected, "postgres": await _answers(pool)}

        await stack.enter_async_context(ops_port(settings.ops_host, settings.ops_port, ready))
        yield


@asynccontextmanager
async def _started(broker: NatsBroker) -> AsyncIterator[None]:
    """Everything that can be asked; entered once the server knows of every subscription."""
    connection = await broker.connect()
    try:
        await broker.start()
        await connection.flush()
        yield
    finally:
        await broker.stop()


@asynccontextmanager
async def _listening(bus: Bus, turns: Turns, leases: Leases) -> AsyncIterator[None]:
    """The questions of the bytes path; leaving takes no more of them and answers those that have come."""
    tasks: set[asyncio.Task[None]] = set()
    me = questions.SERVICE
    heard = [
        await bus.listen(subjects.rpc(me, method), listener, queue=me)
        for method, listener in (
            (questions.RESERVE, turns.on_reserve),
            (questions.EXTEND, answering(bus, leases.extend, tasks)),
            (questions.RENEW, answering(bus, leases.renew, tasks)),
        )
    ]
    await bus.flush()
    try:
        yield
    finally:
        try:
            for subscription in heard:
                await subscription.unsubscribe()
            await bus.flush(timeout=2)  # what the server had sent before it heard of this has come with the answer
        except (NatsError, TimeoutError) as error:
            _log.warning("left without the bus", error=type(error).__name__)
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _turning(turns: Turns, drain_s: float) -> AsyncIterator[None]:
    """The money loop; leaving lets it finish what waits. If it breaks, the service ends."""
    async with background("reserve waits", turns.watch()), asyncio.TaskGroup() as group:
        loop = group.create_task(turns.run(), name="turns")
        try:
            yield
        finally:
            turns.drain()
            done, _ = await asyncio.wait([loop], timeout=drain_s)
            if not done:
                _log.warning("not drained", seconds=drain_s)
            loop.cancel()


@asynccontextmanager
async def _open_to_reserves(turns: Turns, pool: Pool, unit: str | None) -> AsyncIterator[None]:
    """Reserves are taken unless the unit of credits is being converted; entered once that is known."""

    def close(closed: bool) -> None:  # noqa: FBT001 - what is told
        if closed != turns.closed:
            _log.warning(
                "reserves are refused: credits change their unit, or have" if closed else "reserves are taken again"
            )
        turns.closed = closed

    close(await conversion.is_open(pool, unit) is not False)
    async with background("conversions", conversion.watch(pool, unit, close)):
        yield


async def _pay_link(settings: Settings, payment: Adapter | None) -> str | None:
    return settings.payment_link if payment is None else await payment.links.url()


@asynccontextmanager
async def _closing(pool: Pool) -> AsyncIterator[Pool]:
    try:
        yield pool
    finally:
        pool.terminate()


async def _close_bus(bus: Bus) -> None:
    """Send what is pending, then close."""
    try:
        await bus.flush(timeout=2)
    except (NatsError, TimeoutError) as error:
        _log.warning("bus closed with messages unsent", error=type(error).__name__)
    await bus.close()


async def _answers(pool: Pool) -> bool:
    try:
        async with asyncio.timeout(2):
            await pool.fetchval("select 1")
    except (*UNKNOWN_OUTCOME, asyncpg.PostgresError):
        return False
    return True
