"""Answers of provider-router about providers and rates."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from faststream.nats import NatsBroker

from contracts import subjects
from contracts.errors import ErrorCode, HubError
from contracts.rpc import catalog as questions
from contracts.rpc.catalog import RatesList, RatesPage, RatesSet, RateView, Snapshot, SnapshotGet
from provider_router.catalog.catalog import Catalog
from provider_router.catalog.patterns import WILDCARDS_MAX, is_pattern
from provider_router.catalog.providers import Provider, load
from provider_router.routing.circuit import Routing
from provider_router.routing.shared import HealthExchange
from provider_router.settings import Settings
from provider_router.sql.store import NewRate, Store
from runtime.bus import Bus
from runtime.postgres import pool
from runtime.process import background
from runtime.rpc import answer, broker

_PLAIN: Final = re.compile(r"[0-9]{1,18}(\.[0-9]{1,20})?")
_CHANGED_BY_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class Served:
    """What a call needs of providers."""

    providers: Mapping[str, Provider]
    routing: Routing
    catalog: Catalog

    async def ready(self) -> bool:
        """Whether questions can be answered: the rates have been read, and stay in memory from then on."""
        return self.catalog.loaded


@asynccontextmanager
async def catalog(settings: Settings, process: str, bus: Bus) -> AsyncIterator[Served]:
    """Providers, rates and routing of this process, with their questions answered while the block runs.

    Raises:
        catalog.package.PackageError: the price package cannot be read.
        nats.errors.Error, OSError: the bus is away.
    """
    providers = load(settings)
    async with AsyncExitStack() as stack:
        database = await pool(
            settings.database_url.get_secret_value(),
            name=process,
            size=settings.database_pool,
            server_settings={"jit": "off"},
        )
        stack.push_async_callback(database.close)
        js = bus.jetstream()
        exchange = HealthExchange(js)
        routing = Routing(providers, settings.attempts_max, exchange.tell)
        known = Catalog(providers, Store(database), bus, js)
        await known.start()
        await stack.enter_async_context(background("catalog", known.run()))
        await stack.enter_async_context(background("health", exchange.run(routing)))
        prefix = subjects.inbox_prefix(questions.SERVICE, process)
        on = broker(settings.nats_url.get_secret_value(), name=f"{process}-rpc", inbox_prefix=prefix)
        serve(on, known)
        stack.push_async_callback(on.stop)
        await on.start()
        yield Served(providers, routing, known)


def serve(on: NatsBroker, catalog: Catalog) -> None:
    """Add the subscribers; the broker is started afterwards."""

    async def snapshot(_question: SnapshotGet) -> Snapshot:
        return await catalog.current()

    async def rates_list(question: RatesList) -> RatesPage:
        rates = (await catalog.current()).rates
        if question.pattern is None:
            return RatesPage(rates=rates)
        return RatesPage(rates=tuple(rate for rate in rates if question.pattern in rate.pattern))

    async def rates_set(question: RatesSet) -> RateView:
        after = await catalog.add_rate(new_rate(question))
        return next(rate for rate in after.rates if rate.pattern == question.pattern)

    answer(on, questions.SERVICE, questions.SNAPSHOT, SnapshotGet, Snapshot, snapshot)
    answer(on, questions.SERVICE, questions.RATES_LIST, RatesList, RatesPage, rates_list)
    answer(on, questions.SERVICE, questions.RATES_SET, RatesSet, RateView, rates_set)


def new_rate(question: RatesSet) -> NewRate:
    """A rate to store, checked.

    Raises:
        HubError: `invalid_request`, with the field.
    """
    if not is_pattern(question.pattern):
        raise HubError(
            ErrorCode.INVALID_REQUEST,
            f"A pattern is provider/model, where * (at most {WILDCARDS_MAX}) matches any run of characters; "
            "the provider's name is in lower case.",
            param="pattern",
        )
    return NewRate(
        pattern=question.pattern,
        input=_amount(question.input, "input"),
        output=_amount(question.output, "output"),
        cache_read=_optional(question.cache_read, "cache_read"),
        cache_write=_optional(question.cache_write, "cache_write"),
        reasoning=_optional(question.reasoning, "reasoning"),
        request=_amount(question.request, "request"),
        changed_by=question.changed_by[:_CHANGED_BY_MAX],
    )


def _amount(text: str, param: str) -> Decimal:
    if _PLAIN.fullmatch(text) is None:
        raise HubError(
            ErrorCode.INVALID_REQUEST,
            "A rate is credits per unit as a plain decimal, such as 0.0000025, with at most 20 decimals.",
            param=param,
        )
    return Decimal(text)


def _optional(text: str | None, param: str) -> Decimal | None:
    return None if text is None else _amount(text, param)
