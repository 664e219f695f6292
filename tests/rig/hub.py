"""The whole system as real processes, with every part in the test's hand."""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg

from contracts.ids import new_process_id
from contracts.permissions import GATEWAY, JANITOR, METERING, OPERATOR, ROUTER
from contracts.subjects import inbox_prefix
from hub_local import first_key, services
from hub_local.credentials import ADMIN
from hub_local.servers import Ports
from hub_local.settings import LocalSettings
from rig.fault_proxy import FaultProxy
from rig.processes import Processes
from rig.servers import NAMES, DockerServers, EmbeddedServers, opened
from rig.waiting import until
from runtime import bus

SERVICES = (GATEWAY, ROUTER, METERING, JANITOR)


class Hub:
    """Servers and services on free ports.

    Nothing restarts by itself: a process that a test or a failpoint killed stays dead until `start`.
    """

    def __init__(
        self,
        servers: EmbeddedServers | DockerServers,
        counts: Mapping[str, int],
        env: Mapping[str, str],
        proxies: Mapping[str, FaultProxy],
    ) -> None:
        self.servers = servers
        self.proxies = proxies
        """Between the services and `nats` or `postgres`, where the test asked for them."""
        self.owner_key = first_key.new_key()
        self.processes = Processes()
        settings = LocalSettings(
            data_dir=servers.folder.root,
            port=0,
            gateways=max(counts.get(GATEWAY, 1), 1),
            routers=max(counts.get(ROUTER, 1), 1),
            meterings=max(counts.get(METERING, 1), 1),
            janitors=max(counts.get(JANITOR, 1), 1),
            drain_s=10.0,
        )
        names = services.names(settings)
        ops = servers.folder.ports(f"ops:{name}" for name in names)
        http = servers.folder.ports(f"http:{number}" for number in range(1, settings.gateways + 1))
        real = servers.ports
        seen = Ports(
            proxies["postgres"].port if "postgres" in proxies else real.postgres,
            proxies["nats"].port if "nats" in proxies else real.nats,
            real.nats_http,
        )
        self.urls: list[str] = []
        """Base URL of each gateway."""
        self._order: list[str] = []
        for instance in services.instances(settings, {name: ops[f"ops:{name}"] for name in names}, list(http.values())):
            if counts.get(instance.service, 1) == 0:
                continue
            program = services.program(instance, settings, env, servers.credentials, seen, self.owner_key)
            self.processes.add(replace(program, env={**program.env, **_tree_under_test()}))
            self._order.append(instance.name)
            if instance.http_port is not None:
                self.urls.append(f"http://127.0.0.1:{instance.http_port}")

    @property
    def url(self) -> str:
        """Base URL of the first gateway."""
        return self.urls[0]

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers of the owner."""
        return {"Authorization": f"Bearer {self.owner_key}"}

    @property
    def pids(self) -> dict[str, int]:
        """Pids of everything that runs now, servers too."""
        return {**self.servers.pids(), **self.processes.pids}

    async def start(self, *names: str, fail: str = "") -> None:
        """Start processes (all, when none is named) and wait until they are ready; `fail` arms failpoints."""
        servers = [name for name in names if name in NAMES]
        if servers:
            await self.servers.start(*servers)
        chosen = [name for name in names if name not in NAMES] if names else self._order
        for name in chosen:
            await self.processes.start(name, {"HUB_FAIL": fail} if fail else None)
        await self.processes.ready(*chosen)

    async def ready(self, *names: str, within_s: float = 30.0) -> None:
        """Wait until services say that they are ready."""
        await self.processes.ready(*(names or self._order), within_s=within_s)

    async def stop(self, *names: str) -> None:
        """End processes as an operator would: SIGTERM, drain."""
        for name in names or self._order:
            await (self.servers.stop(name) if name in NAMES else self.processes.stop(name))

    async def kill(self, *names: str) -> None:
        """SIGKILL; returns when they are gone."""
        for name in names:
            await (self.servers.kill(name) if name in NAMES else self.processes.kill(name))

    async def pause(self, *names: str) -> None:
        """SIGSTOP: they keep their connections and say nothing."""
        for name in names:
            if name in NAMES:
                await self.servers.pause(name)
            else:
                self.processes.signal(name, signal.SIGSTOP)

    async def resume(self, *names: str) -> None:
        """SIGCONT."""
        for name in names:
            if name in NAMES:
                await self.servers.resume(name)
            else:
                self.processes.signal(name, signal.SIGCONT)

    async def gone(self, name: str, within_s: float = 20.0) -> int:
        """Wait until a service has ended by itself; returns its exit code, -9 after a failpoint's kill."""
        return await self.processes.gone(name, within_s)

    def log(self, name: str) -> str:
        """What a service wrote so far."""
        return self.processes.log(name)

    async def fetch(self, sql: str, *values: object) -> "list[asyncpg.Record]":
        """Rows, as the superuser; schemas are `identity`, `catalog`, `metering`."""
        connection = await asyncpg.connect(self.servers.credentials.dsn(ADMIN, self.servers.ports.postgres))
        try:
            return await connection.fetch(sql, *values)
        finally:
            await connection.close()

    async def value(self, sql: str, *values: object) -> Any:
        """First column of the first row, or None."""
        rows = await self.fetch(sql, *values)
        return rows[0][0] if rows else None

    async def connect(self, user: str = OPERATOR) -> bus.Bus:
        """A bus as one of the NATS users; the caller closes it."""
        url = self.servers.credentials.nats_url(user, self.servers.ports.nats)
        return await bus.opened(url, name="test", inbox_prefix=inbox_prefix(user, new_process_id("test")))

    async def welcomed(self, env: Mapping[str, str]) -> None:
        """Wait until the first owner's welcome grant is in the books, where there is one to come."""
        parts = {"gateway", "metering"}
        if not parts <= self.pids.keys() or env.get("HUB_BILLING") == "off" or env.get("HUB_WELCOME_CREDITS") == "0":
            return

        async def look() -> bool:
            return bool(await self.value("select exists (select 1 from metering.credit_grant)"))

        await until(look, within_s=20, what="the owner's welcome grant")

    async def close(self) -> None:
        """Kill everything."""
        await self.processes.close(self._order)
        await asyncio.gather(*(proxy.close() for proxy in self.proxies.values()))
        await self.servers.close()


async def started(
    root: Path,
    template: Path | None,
    *,
    counts: Mapping[str, int] | None = None,
    env: Mapping[str, str] | None = None,
    fail: Mapping[str, str] | None = None,
    proxied: Sequence[str] = (),
) -> Hub:
    """A hub that is ready.

    Args:
        root: an empty folder.
        template: see `rig.servers.opened`.
        counts: processes by service, 1 where nothing is said, 0 for none.
        env: settings for the services, e.g. `HUB_LEASE_S`, `OPENAI_BASE_URL`, `HUB_PROVIDERS__…`.
        fail: failpoints by process name, e.g. `{"metering": "metering.after_commit:kill"}`.
        proxied: `nats`, `postgres`: the services reach them through a `FaultProxy`.
    """
    servers = await opened(root, template)
    ports = {"nats": servers.ports.nats, "postgres": servers.ports.postgres}
    proxies = {name: await FaultProxy(ports[name]).start() for name in proxied}
    hub = Hub(servers, counts or {}, {**_minimal_environment(), **(env or {})}, proxies)
    try:
        names = hub.processes.names
        for name in names:
            point = (fail or {}).get(name, "")
            await hub.processes.start(name, {"HUB_FAIL": point} if point else None)
        await hub.ready()
        await hub.welcomed(env or {})
    except BaseException:
        await hub.close()
        raise
    return hub


def _tree_under_test() -> dict[str, str]:
    """Services take their packages from where the test's own process has them."""
    return {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}


def _minimal_environment() -> dict[str, str]:
    """No provider key or setting of the person who runs the tests gets in."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
