"""Wires the gateway, top to bottom; the stack closes it bottom to top."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import asyncpg
import uvicorn
from fastapi import FastAPI

from contracts.subjects import inbox_prefix
from gateway import metrics, rpc
from gateway.admission.prices import Prices
from gateway.admission.reserve import Reserver
from gateway.api.application import build
from gateway.api.chat import Chat
from gateway.api.services import Services
from gateway.auth.principals import Principals
from gateway.books import seek_lost_notices
from gateway.dispatch import Dispatcher
from gateway.http_protocol import Limits, limited
from gateway.identity import store
from gateway.identity.bootstrap import bootstrap
from gateway.identity.keys import Keys
from gateway.joining import joining
from gateway.kept import KeptAnswers
from gateway.payment_link import PaymentLink
from gateway.revisions import Revisions
from gateway.settings import Settings
from runtime import postgres
from runtime.bus import opened
from runtime.liveness import ops_port
from runtime.process import background
from runtime.rpc import broker
from runtime.telemetry import Tracing

SERVICE = "gateway"
_GAUGE_S = 1.0
_KEEP_ALIVE_S = 75


@asynccontextmanager
async def gateway(settings: Settings, process: str) -> AsyncIterator[None]:
    """The running service; leaving drains it: no new connection, open calls get their answers."""
    prefix = inbox_prefix(SERVICE, process)
    url = settings.nats_url.get_secret_value()
    pepper = settings.key_pepper.get_secret_value().encode()
    async with AsyncExitStack() as stack:
        tracing = Tracing(SERVICE)
        stack.callback(tracing.shutdown)
        bus = await opened(url, name=process, inbox_prefix=prefix)
        stack.push_async_callback(bus.close)
        pool = await postgres.pool(settings.database_url.get_secret_value(), name=process, size=settings.database_pool)
        stack.callback(pool.terminate)

        peers = rpc.Peers(bus, settings.welcome_credits, settings.new_user_credits, settings.welcome_days)
        principals = Principals(partial(store.key_rows, pool), partial(store.mark_used, pool), pepper)
        prices = Prices(peers.snapshot, billing=settings.billing, unpriced=settings.unpriced)
        revisions = Revisions(bus, principals, prices.changed)
        await revisions.listen()
        keys = Keys(pool, pepper, revisions.announce)
        on = broker(url, name=f"{process}-rpc", inbox_prefix=prefix)
        rpc.serve(on, keys, peers)
        await on.start()
        stack.push_async_callback(on.stop)

        dispatcher = Dispatcher(bus, process, settings)
        await dispatcher.start()
        kept = KeptAnswers(bus, process, peers.outcomes, settings.settle_s, settings.call_ttl_s)
        await kept.start()
        link = PaymentLink(settings.payment_link, peers.payment_link)
        reserver = Reserver(bus, dispatcher.dispatch, joining(kept), link.current)
        established = principals.established
        given = settings.bootstrap_key.get_secret_value() if settings.bootstrap_key else None
        for name, work in (
            ("revisions", revisions.poll()),
            ("prices", prices.keep_fresh()),
            ("last use", principals.write_used()),
            ("sweep", dispatcher.run()),
            ("lost notices", seek_lost_notices(dispatcher, peers.outcomes)),
            ("payment link", link.keep_fresh()),
            ("gauges", _gauges(dispatcher)),
            ("bootstrap", bootstrap(pool, pepper, given, keys.announce, peers.grant_welcome, _show_key, established)),
        ):
            await stack.enter_async_context(background(name, work))

        async def ready() -> dict[str, bool]:
            return {
                "nats": bus.is_connected,
                "postgres": await _answers(pool),
                "prices": prices.ready,
                "owner": principals.is_established,
            }

        services = Services(
            principals=principals,
            prices=prices,
            peers=peers,
            full_name=partial(store.full_name, pool),
            ready=ready,
            billing=settings.billing == "credit",
            kept=kept,
            payment_link=link.current,
        )
        rest = build(services, settings.mount_path)
        if tracing.enabled:
            tracing.instrument(rest)
        chat = Chat(settings, process, principals, prices, reserver, dispatcher, tracing)
        await stack.enter_async_context(ops_port(settings.ops_host, settings.ops_port, ready))
        await stack.enter_async_context(_http(rest, chat, settings))
        yield
        await principals.flush_used()


@asynccontextmanager
async def _http(rest: FastAPI, chat: Chat, settings: Settings) -> AsyncIterator[None]:
    """Serve HTTP while the block runs; then stop listening and let open requests end.

    Raises:
        RuntimeError: the port is taken.
    """
    limits = Limits(
        headers=settings.headers_max,
        header_bytes=settings.header_bytes_max,
        head_timeout_s=settings.header_timeout_s,
    )
    config = uvicorn.Config(
        rest,
        host=settings.host,
        port=settings.port,
        http=limited(limits, chat, settings.mount_path),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(settings.drain_s),
        backlog=4096,
        timeout_keep_alive=_KEEP_ALIVE_S,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())  # noqa: SLF001 - serve() would take the process' signals
    while not server.started:
        if task.done():
            raise RuntimeError(f"{settings.host}:{settings.port} is taken; set HUB_PORT to another port")
        await asyncio.sleep(0.005)
    try:
        yield
    finally:
        server.should_exit = True
        await task


async def _gauges(dispatcher: Dispatcher) -> None:
    while True:
        metrics.OPEN.set(len(dispatcher))
        await asyncio.sleep(_GAUGE_S)


def _show_key(text: str) -> None:
    """The one time that a key made at the first start is shown."""
    sys.stdout.write(f"Access key of the owner, shown only this once: {text}\n")
    sys.stdout.flush()


async def _answers(pool: postgres.Pool) -> bool:
    try:
        async with asyncio.timeout(2):
            await pool.fetchval("select 1")
    except (*postgres.UNKNOWN_OUTCOME, asyncpg.PostgresError):
        return False
    return True
