"""Catalogs of several routers inside the test's process, on real servers."""

from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from contracts import permissions, subjects
from contracts.ids import new_process_id
from provider_router import rpc
from provider_router.settings import Settings
from rig.servers import DockerServers, EmbeddedServers
from rig.waiting import until
from runtime.bus import Bus, opened

if TYPE_CHECKING:
    import asyncpg


@dataclass
class CatalogRig:
    """Servers, one database, and everything that a test opens on them."""

    servers: EmbeddedServers | DockerServers
    database_url: str
    books: "asyncpg.Connection[asyncpg.Record]"
    """The superuser's view of the database."""
    stack: AsyncExitStack

    async def connect(self, user: str) -> Bus:
        process = new_process_id(user)
        url = self.servers.credentials.nats_url(user, self.servers.ports.nats)
        bus = await opened(url, name=process, inbox_prefix=subjects.inbox_prefix(user, process))
        self.stack.push_async_callback(bus.close)
        return bus

    def settings(self, **given: object) -> Settings:
        nats_url = self.servers.credentials.nats_url(permissions.ROUTER, self.servers.ports.nats)
        return Settings.model_validate({"nats_url": nats_url, "database_url": self.database_url, **given})

    def opening(self, bus: Bus, **given: object) -> AbstractAsyncContextManager[rpc.Served]:
        return rpc.catalog(self.settings(**given), new_process_id(permissions.ROUTER), bus)

    async def router(self, **given: object) -> rpc.Served:
        """A router's catalog that has read its rates."""
        bus = await self.connect(permissions.ROUTER)
        served = await self.stack.enter_async_context(self.opening(bus, **given))
        await until(served.ready, what="the catalog is read")
        return served
