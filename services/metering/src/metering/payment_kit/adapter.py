"""Wires the adapter: opened by the service when `HUB_PAYMENT_KIT_URL` names a Payment Kit."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog

from metering.payment_kit import client
from metering.payment_kit.callback import Callbacks
from metering.payment_kit.circuit import Circuit
from metering.payment_kit.conversion import GrantConversions
from metering.payment_kit.conversion_run import GrantConversionRuns
from metering.payment_kit.grants import Grants
from metering.payment_kit.links import Links
from metering.payment_kit.look_up import EventList
from metering.payment_kit.meter import Meters
from metering.payment_kit.mirror import Mirror
from metering.payment_kit.second_look import SecondLook
from metering.payment_kit.sender import Sender
from metering.payment_kit.settings import PaymentKitSettings
from metering.payment_kit.status import Status
from runtime.component_call import AppKey
from runtime.postgres import Pool
from runtime.postgres import pool as open_pool
from runtime.process import background

_log = structlog.get_logger("payment_kit")
_POOL: Final = 4
_LOOK_S: Final = 1.5
_FINISH_S: Final = 3.0
_SESSION: Final = {
    "jit": "off",
    "statement_timeout": "4000",
    "timezone": "UTC",
    # As in a turn: plans that were made while the tables were empty must not read them whole later.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}


@dataclass(frozen=True, slots=True)
class Adapter:
    """The parts that the rest of metering talks to."""

    second_look: SecondLook
    grants: Grants
    callbacks: Callbacks
    status: Status
    links: Links
    events: EventList
    conversions: GrantConversions
    unit: str
    """What this process counts in."""


@asynccontextmanager
async def opened(settings: PaymentKitSettings) -> AsyncIterator[Adapter | None]:
    """The running adapter, or None without Payment Kit; leaving lets what is under way end, for a moment."""
    if not settings.payment_kit_url or settings.payment_kit_app_key is None or settings.billing == "off":
        yield None
        return
    async with AsyncExitStack() as stack:
        pool = await open_pool(
            settings.database_url.get_secret_value(), name="metering-payment", size=_POOL, server_settings=_SESSION
        )
        stack.push_async_callback(_closed, pool)
        kit = stack.enter_context(
            client.opened(
                settings.payment_kit_url,
                AppKey.read(settings.payment_kit_app_key.get_secret_value()),
                settings.payment_kit_component_did,
                livemode=settings.payment_kit_livemode,
                connections=settings.payment_kit_workers + 16,
                timeout_s=settings.payment_kit_timeout_s,
            )
        )
        meters = Meters(kit, settings.payment_kit_unit, pool)
        circuit = Circuit(asyncio.get_running_loop().time, min(60.0, settings.payment_kit_backoff_max_s))
        mirror = Mirror(kit, meters, pool, settings.payment_kit_refresh_s, circuit)
        sender = Sender(kit, meters, pool, settings, circuit)
        status = Status(settings, pool, circuit)
        links = Links(kit, meters, pool, settings)
        conversions = GrantConversions(kit, meters, pool, settings)
        for name, work in (
            ("balances", mirror.run()),
            ("outbox gauges", status.count()),
            ("payment link", links.run()),
            ("grant conversions", GrantConversionRuns(conversions).run()),
        ):
            await stack.enter_async_context(background(name, work))
        await stack.enter_async_context(_sending(sender))
        _log.info("payment kit", unit=settings.payment_kit_unit, batch_s=settings.payment_kit_batch_s)
        yield Adapter(
            SecondLook(kit, meters, mirror, pool, min(_LOOK_S, settings.payment_kit_timeout_s)),
            Grants(kit, meters, mirror, pool),
            Callbacks(kit, meters, pool),
            status,
            links,
            EventList(kit, meters),
            conversions,
            settings.payment_kit_unit,
        )


@asynccontextmanager
async def _sending(sender: Sender) -> AsyncIterator[None]:
    ended = asyncio.Event()

    async def run() -> None:
        await sender.run()
        ended.set()

    async with background("meter events", run()):
        try:
            yield
        finally:
            sender.stop()
            try:
                async with asyncio.timeout(_FINISH_S):
                    await ended.wait()
            except TimeoutError:
                _log.warning("meter events under way are left for the next process")


async def _closed(pool: Pool) -> None:
    pool.terminate()
