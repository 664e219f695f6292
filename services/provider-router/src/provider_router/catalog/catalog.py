"""The catalog in memory: a copy of the rates in Postgres beside the configured providers and the package's prices.

Every router keeps one. A change anywhere takes the next revision in Postgres; the others hear `catalog.changed` and
read again, and every half minute each compares revisions, so that a message that was lost costs half a minute.
"""

import asyncio
import hashlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import structlog
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError

from contracts import streams, subjects
from contracts.errors import ErrorCode, HubError
from contracts.rpc.catalog import CatalogChanged, ProviderView, RateView, Snapshot
from provider_router.catalog import package
from provider_router.catalog.costs import Policy
from provider_router.catalog.package import PackagePrices
from provider_router.catalog.providers import Provider
from provider_router.catalog.rates import AT_COST, in_order, packaged
from provider_router.sql.rate_rows import RateRow
from provider_router.sql.store import Store, Stored
from runtime.bus import Bus
from runtime.postgres import UNKNOWN_OUTCOME

_log = structlog.get_logger("catalog")
REVISION_KEY: Final = "catalog"
"""Key in `contracts.streams.REVISIONS`; its value is the revision as decimal digits."""
_COMPARE_EVERY_S: Final = 30.0
_RETRY_S: Final = 1.0
_BEGUN_S: Final = 0.05
"""After its time a planned version is looked for: by then it has begun by the database's clock, too."""
CATCH_UP_S: Final = 1.0
"""Longest wait of a question for a revision that was announced and is not read yet."""


class Catalog:
    """What this router knows of providers and rates.

    Args:
        providers: as `catalog.providers.load` gives them.
        store: schema `catalog`.
        bus: for `catalog.changed`.
        js: for the revision that caches compare.
        policy: how rates follow from the package's prices, for models that nobody set or imported rates for.
    """

    def __init__(
        self,
        providers: Mapping[str, Provider],
        store: Store,
        bus: Bus,
        js: JetStreamContext,
        policy: Policy = AT_COST,
    ) -> None:
        self._providers = providers
        self._store = store
        self._bus = bus
        self._js = js
        self._policy = policy
        self._prices = PackagePrices()
        self._packaged: tuple[RateView, ...] = ()
        self._views: tuple[ProviderView, ...] = ()
        self._stored: Stored | None = None
        self._snapshot: Snapshot | None = None
        self._begins_at: float | None = None
        self._announced = 0
        self._wake = asyncio.Event()
        self._caught_up = asyncio.Event()

    async def start(self) -> None:
        """Read the package's prices and listen for changes; `run` then follows the database.

        Raises:
            PackageError: the price package cannot be read.
        """
        await self._read_package()
        await self._bus.listen(subjects.CATALOG_CHANGED, self._on_changed)

    async def run(self) -> None:
        """Read when something changed; until the first success, and after a failure, try every second.

        The database may be away when it starts. Never returns.
        """
        configured = False
        while True:
            self._wake.clear()
            try:
                if self._prices.changes_at is not None and self._prices.changes_at <= datetime.now(UTC):
                    await self._read_package()
                    configured = False
                if not configured:
                    changed = await self._store.configured(tuple(self._providers.values()), self._configuration())
                    if changed is not None:
                        self._announce(changed)
                    configured = True
                begun = await self._store.begun()
                if begun is not None:
                    self._announce(begun)
                if self._stored is None or await self._store.revision() != self._stored.revision:
                    await self._read()
                await self._put_revision()
            except (*UNKNOWN_OUTCOME, NatsError, package.PackageError) as error:
                _log.warning("catalog not read", error=type(error).__name__)
                await self._sleep(_RETRY_S)
            else:
                await self._sleep(self._until_next_look())

    @property
    def loaded(self) -> bool:
        """Whether the rates have been read at least once; from then on a database that is away is not missed."""
        return self._snapshot is not None

    def snapshot(self) -> Snapshot:
        """Everything that admission needs, from memory.

        Raises:
            HubError: `service_unavailable` until the rates have been read once: what an operator set is not known.
        """
        if self._snapshot is None:
            raise HubError(ErrorCode.SERVICE_UNAVAILABLE, "Rates are not read yet; try again shortly.", retry_after_s=1)
        return self._snapshot

    @property
    def rows(self) -> tuple[RateRow, ...]:
        """The rows from which the snapshot was made, of all kinds of calls."""
        return () if self._stored is None else self._stored.rates

    async def added(self, revision: int) -> Snapshot:
        """Versions were stored under this revision: tell every cache.

        Returns:
            The catalog with them.

        Raises:
            runtime.postgres.UNKNOWN_OUTCOME: they are stored and announced, and could not be read back.
        """
        self._announce(revision)
        self._wake.set()  # `run` puts the revision into the bucket
        await self._read()
        return self.snapshot()

    async def current(self) -> Snapshot:
        """The snapshot, after a moment for reading when a newer revision has been announced.

        Whoever hears `catalog.changed` and asks at once is not answered with what was true before; a database that
        is away costs `CATCH_UP_S` and then the answer comes from memory.

        Raises:
            HubError: as `snapshot`.
        """
        if self._stored is not None and self._stored.revision < self._announced:
            try:
                async with asyncio.timeout(CATCH_UP_S):
                    await self._caught_up.wait()
            except TimeoutError:
                _log.warning("catalog answered from memory", announced=self._announced)
        return self.snapshot()

    def _until_next_look(self) -> float:
        """Seconds until revisions are compared again, or until a planned version begins."""
        if self._begins_at is None:
            return _COMPARE_EVERY_S
        return min(_COMPARE_EVERY_S, max(0.0, self._begins_at - time.monotonic()) + _BEGUN_S)

    async def _sleep(self, seconds: float) -> None:
        # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _read(self) -> None:
        """Take over what the database says; an older answer that comes late changes nothing."""
        announced = self._announced
        stored = await self._store.read()
        if not await self._take(stored):
            return
        self._begins_at = None if stored.begins_in_s is None else time.monotonic() + stored.begins_in_s
        if stored.revision >= self._announced or announced == self._announced:
            # Read after the last announcement: that it promised more than there is is not worth waiting for.
            self._announced = stored.revision
            self._caught_up.set()

    async def _read_package(self) -> None:
        known = [name for name, provider in self._providers.items() if provider.kind != "demo"]
        self._prices = await package.read(known)
        self._packaged = await asyncio.to_thread(packaged, self._prices, self._policy)
        self._views = tuple(self._view(provider) for provider in self._providers.values())
        if self._stored is not None:
            await self._take(self._stored)

    async def _take(self, stored: Stored) -> bool:
        """Make the snapshot of these rates, in a thread: a thousand take as long as many calls; False = it is old."""
        demo = any(provider.kind == "demo" for provider in self._providers.values())
        known = None
        while known is not self._packaged:  # the package may be read again meanwhile
            known = self._packaged
            rates = await asyncio.to_thread(in_order, stored.rates, known, demo=demo)
        if self._stored is not None and stored.revision < self._stored.revision:
            return False
        self._stored = stored
        self._snapshot = Snapshot(revision=stored.revision, providers=self._views, rates=rates)
        return True

    def _view(self, provider: Provider) -> ProviderView:
        models = self._prices.models.get(provider.name) if provider.models is None else provider.models
        return ProviderView(name=provider.name, kind=provider.kind, models=models, weight=provider.weight)

    def _configuration(self) -> str:
        """Digest of what stands in a snapshot beside the database's rates, keys not included."""
        parts = [view.model_dump_json() for view in self._views]
        parts += [provider.base_url for provider in self._providers.values()]
        parts.append(f"{self._policy.margin_percent} {self._policy.credit_price}")
        parts.append(self._prices.model_dump_json(exclude={"changes_at", "name"}))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _announce(self, revision: int) -> None:
        """Say on the bus that caches are behind; a failure costs them the time until they compare revisions."""
        try:
            self._bus.send(subjects.CATALOG_CHANGED, CatalogChanged(revision=revision).model_dump_json().encode())
        except NatsError as error:
            _log.warning("catalog change not announced", error=type(error).__name__)

    def _on_changed(self, _subject: bytes, _reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        self._announced = max(self._announced, CatalogChanged.model_validate_json(payload).revision)
        if self._stored is None or self._stored.revision < self._announced:
            self._caught_up.clear()
            self._wake.set()

    async def _put_revision(self) -> None:
        """Raise the revision in the bucket to ours; never lower it, whatever other routers do meanwhile."""
        if self._stored is None:
            return
        revisions = await self._js.key_value(streams.REVISIONS.name)
        text = b"%d" % self._stored.revision
        try:
            entry = await revisions.get(REVISION_KEY)
            if int(entry.value or b"0") < self._stored.revision:
                await revisions.update(REVISION_KEY, text, last=entry.revision)
        except KeyNotFoundError:
            await revisions.create(REVISION_KEY, text)
        except KeyWrongLastSequenceError:
            self._wake.set()  # somebody else wrote in between: compare once more
