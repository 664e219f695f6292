"""Answers of provider-router about providers and rates."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from faststream.nats import NatsBroker

from contracts import subjects
from contracts.rpc import catalog as questions
from contracts.rpc import rate_changes, rate_rows
from contracts.rpc.catalog import RateView, Snapshot, SnapshotGet
from contracts.rpc.conversion import RATES_CONVERT, RatesConvert
from provider_router.catalog import package
from provider_router.catalog.administration import Administration
from provider_router.catalog.catalog import Catalog
from provider_router.catalog.costs import Policy
from provider_router.catalog.providers import Provider, load
from provider_router.catalog.rows import Rows
from provider_router.routing.circuit import Routing
from provider_router.routing.shared import HealthExchange
from provider_router.settings import Settings
from provider_router.sql.reviews import Reviews
from provider_router.sql.store import Store
from runtime.bus import Bus
from runtime.postgres import pool
from runtime.process import background
from runtime.rpc import answer, broker


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
        policy = Policy(settings.margin_percent, settings.credit_price)
        store = Store(database)
        known = Catalog(providers, store, bus, js, policy)
        vendors = tuple(name for name, provider in providers.items() if provider.kind != "demo")
        rates = Administration(known, store, Reviews(database), policy, vendors, package.read)
        await known.start()
        await stack.enter_async_context(background("catalog", known.run()))
        await stack.enter_async_context(background("health", exchange.run(routing)))
        prefix = subjects.inbox_prefix(questions.SERVICE, process)
        on = broker(settings.nats_url.get_secret_value(), name=f"{process}-rpc", inbox_prefix=prefix)
        serve(on, known, rates, Rows(known, store))
        stack.push_async_callback(on.stop)
        await on.start()
        yield Served(providers, routing, known)


def serve(on: NatsBroker, catalog: Catalog, rates: Administration, rows: Rows) -> None:
    """Add the subscribers; the broker is started afterwards."""

    async def snapshot(_question: SnapshotGet) -> Snapshot:
        return await catalog.current()

    async def proposals(_question: rate_changes.RatesProposals) -> rate_changes.Proposals:
        return await rates.proposals()

    answer(on, questions.SERVICE, questions.SNAPSHOT, SnapshotGet, Snapshot, snapshot)
    answer(on, questions.SERVICE, rate_changes.RATES_LIST, rate_changes.RatesList, rate_changes.RatesPage, rows.listed)
    answer(on, questions.SERVICE, rate_rows.RATES_FIND, rate_rows.RatesFind, rate_rows.RatesFound, rows.find)
    answer(on, questions.SERVICE, rate_rows.RATE_GET, rate_rows.RateGet, rate_rows.FoundRate, rows.get)
    answer(on, questions.SERVICE, rate_rows.RATES_CHANGE, rate_rows.RatesChange, rate_rows.RatesAdded, rows.change)
    answer(on, questions.SERVICE, rate_rows.RATES_REMOVE, rate_rows.RatesRemove, rate_rows.RateRemoved, rows.remove)
    answer(on, questions.SERVICE, rate_changes.RATES_SET, rate_changes.RatesSet, RateView, rates.set_rates)
    answer(
        on,
        questions.SERVICE,
        rate_changes.RATES_HISTORY,
        rate_changes.RatesHistory,
        rate_changes.RateVersions,
        rates.history,
    )
    answer(on, questions.SERVICE, rate_changes.RATES_DEPRECATE, rate_changes.RatesDeprecate, RateView, rates.deprecate)
    answer(
        on, questions.SERVICE, rate_changes.RATES_SYNC, rate_changes.RatesSync, rate_changes.RatesChanged, rates.sync
    )
    answer(
        on,
        questions.SERVICE,
        rate_changes.RATES_MARGIN,
        rate_changes.RatesMargin,
        rate_changes.RatesChanged,
        rates.margin,
    )
    answer(
        on, questions.SERVICE, rate_changes.RATES_CHECK, rate_changes.RatesCheck, rate_changes.CheckReport, rates.check
    )
    answer(
        on,
        questions.SERVICE,
        rate_changes.RATES_PROPOSALS,
        rate_changes.RatesProposals,
        rate_changes.Proposals,
        proposals,
    )
    answer(
        on, questions.SERVICE, rate_changes.RATES_DECIDE, rate_changes.RatesDecide, rate_changes.Decided, rates.decide
    )
    answer(on, questions.SERVICE, RATES_CONVERT, RatesConvert, rate_changes.RatesChanged, rates.convert)
