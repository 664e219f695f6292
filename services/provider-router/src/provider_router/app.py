"""Wires the provider-router, top to bottom; the stack closes it bottom to top."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from contracts.subjects import inbox_prefix
from provider_router import rpc, tokens
from provider_router.adapters.registry import ADAPTERS
from provider_router.demo_upstream import DemoUpstream
from provider_router.frames_out import FramesOut
from provider_router.intake import Intake
from provider_router.outcome import Outcomes
from provider_router.running import Router
from provider_router.settings import Settings
from provider_router.transport import Deadlines
from provider_router.upstream import Upstream
from runtime.bus import opened
from runtime.liveness import ops_port
from runtime.process import background
from runtime.telemetry import Tracing

SERVICE = "provider-router"
_TOTAL_S = 590.0
"""Longest time of one try; a call's own deadline may be earlier."""
_SETTLE_S = 10.0


@asynccontextmanager
async def provider_router(settings: Settings, process: str) -> AsyncIterator[None]:
    """The running service; leaving drains it: no new call, running ones finish, outcomes are settled or spooled."""
    prefix = inbox_prefix(SERVICE, process)
    url = settings.nats_url.get_secret_value()
    async with AsyncExitStack() as stack:
        tracing = Tracing(SERVICE)
        stack.callback(tracing.shutdown)
        bus = await opened(url, name=process, inbox_prefix=prefix)
        stack.push_async_callback(bus.close)
        catalog = await stack.enter_async_context(rpc.catalog(settings, process, bus))
        upstream = Upstream()
        stack.callback(upstream.close)
        outcomes = Outcomes(bus, process, settings.spool)
        await outcomes.start()
        router = Router(
            bus=bus,
            process=process,
            frames=FramesOut(bus),
            outcomes=outcomes,
            routing=catalog.routing,
            tracing=tracing,
            providers=catalog.providers,
            adapters=ADAPTERS,
            openers={"openai": upstream, "anthropic": upstream, "demo": DemoUpstream()},
            deadlines=Deadlines(
                connect_s=settings.upstream_connect_s,
                first_byte_s=settings.upstream_first_byte_s,
                idle_s=settings.upstream_idle_s,
                total_s=_TOTAL_S,
            ),
            attempts_max=settings.attempts_max,
        )
        if settings.tokenizer_at_start:
            tokens.load()
        intake = Intake(router, settings.router_calls_max, settings.lease_s, settings.unsettled_max)
        await stack.enter_async_context(background("sweep", outcomes.run()))
        await stack.enter_async_context(background("beat", intake.run()))
        await intake.start()

        async def ready() -> dict[str, bool]:
            return {"nats": bus.is_connected, "catalog": await catalog.ready()}

        await stack.enter_async_context(ops_port(settings.ops_host, settings.ops_port, ready))
        yield
        await intake.leave()
        await intake.drain(settings.drain_s)
        await outcomes.drain(_SETTLE_S)
