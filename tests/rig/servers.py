"""NATS and PostgreSQL for tests: the embedded ones, or containers when HUB_TEST_INFRA=docker."""

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import nats
import pytest

from contracts.permissions import PROVISIONER
from hub_local import credentials, migrate, nats_config
from hub_local.credentials import ADMIN, DATABASE, Credentials
from hub_local.folder import DataFolder
from hub_local.servers import FAST, SETTINGS, Ports, Servers
from rig.processes import Processes
from rig.waiting import until
from runtime.provision import provision

NAMES = ("nats", "postgres")


class EmbeddedServers:
    """The servers of `hub up`, without its supervisor."""

    def __init__(self, root: Path, *, fast: bool = True) -> None:
        self.folder = DataFolder(root)
        self.processes = Processes()
        self.credentials: Credentials
        self.ports: Ports
        self._fast = fast

    async def open(self) -> None:
        """Lock the folder, make the database where there is none; start nothing."""
        await self.folder.lock()
        chosen = self.folder.ports(["postgres", "nats", "nats_http"])
        self.ports = Ports(chosen["postgres"], chosen["nats"], chosen["nats_http"])
        self.credentials = credentials.obtain(self.folder)
        servers = Servers(self.folder, self.ports, self.credentials, fast=self._fast)
        await servers.prepare()
        self.processes.add(servers.nats())
        self.processes.add(servers.postgres())

    async def start(self, *names: str) -> None:
        chosen = names or NAMES
        for name in chosen:
            await self.processes.start(name)
        await self.processes.ready(*chosen)

    async def stop(self, *names: str) -> None:
        await self.processes.stop(*(names or NAMES))

    async def kill(self, *names: str) -> None:
        await self.processes.kill(*(names or NAMES))

    async def pause(self, *names: str) -> None:
        for name in names or NAMES:
            self.processes.signal(name, signal.SIGSTOP)

    async def resume(self, *names: str) -> None:
        for name in names or NAMES:
            self.processes.signal(name, signal.SIGCONT)

    async def close(self) -> None:
        await self.processes.close(NAMES)
        self.folder.unlock()

    def pids(self) -> dict[str, int]:
        return self.processes.pids


class DockerServers:
    """The same servers as containers, with the same users, roles and settings."""

    def __init__(self, root: Path) -> None:
        self.folder = DataFolder(root)
        self.credentials: Credentials
        self.ports: Ports
        self._containers: dict[str, Any] = {}

    async def open(self) -> None:
        """Choose ports and passwords; describe the containers."""
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - only where there is an engine

        await self.folder.lock()
        chosen = self.folder.ports(["postgres", "nats", "nats_http"])
        self.ports = Ports(chosen["postgres"], chosen["nats"], chosen["nats_http"])
        self.credentials = credentials.obtain(self.folder)
        config = self.folder.nats / "nats.conf"
        nats_config.write(
            config, nats_config.Listen("/data", 4222, 8222, "0.0.0.0"), self.credentials.nats, sync_always=False
        )
        config.chmod(0o644)
        own = {"listen_addresses", "unix_socket_directories"}
        settings = {name: value for name, value in {**SETTINGS, **FAST}.items() if name not in own}
        options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
        self._containers = {
            "nats": DockerContainer("nats:2.15-alpine")
            .with_command("nats-server -c /etc/hub/nats.conf")
            .with_volume_mapping(str(config), "/etc/hub/nats.conf", "ro")
            .with_bind_ports(4222, self.ports.nats)
            .with_bind_ports(8222, self.ports.nats_http),
            "postgres": DockerContainer("postgres:18-alpine")
            .with_env("POSTGRES_PASSWORD", self.credentials.postgres[ADMIN])
            .with_command(f"postgres {options}")
            .with_bind_ports(5432, self.ports.postgres),
        }

    async def start(self, *names: str) -> None:
        for name in names or NAMES:
            container = self._containers[name]
            wrapped = container.get_wrapped_container()
            await asyncio.to_thread(container.start if wrapped is None else wrapped.start)
        probes = Servers(self.folder, self.ports, self.credentials)
        programs = {"nats": probes.nats(), "postgres": probes.postgres()}
        for name in names or NAMES:
            await until(programs[name].ready, within_s=60, what=f"{name} in its container is ready")

    async def stop(self, *names: str) -> None:
        await self._each(names, "stop")

    async def kill(self, *names: str) -> None:
        await self._each(names, "kill")

    async def pause(self, *names: str) -> None:
        await self._each(names, "pause")

    async def resume(self, *names: str) -> None:
        await self._each(names, "unpause")

    async def close(self) -> None:
        for container in self._containers.values():
            await asyncio.to_thread(container.stop)
        self.folder.unlock()

    def pids(self) -> dict[str, int]:
        return {}

    async def _each(self, names: tuple[str, ...], verb: str) -> None:
        for name in names or NAMES:
            await asyncio.to_thread(getattr(self._containers[name].get_wrapped_container(), verb))


def in_docker() -> bool:
    """Whether this run tests against containers; asking for them without an engine ends the run."""
    wanted = os.environ.get("HUB_TEST_INFRA", "embedded")
    if wanted not in {"embedded", "docker"}:
        pytest.exit(f"HUB_TEST_INFRA is embedded or docker, not {wanted!r}", 2)
    return wanted == "docker"


async def opened(root: Path, template: Path | None) -> EmbeddedServers | DockerServers:
    """Both servers running, with database `hub` migrated and the streams made.

    Args:
        root: an empty folder.
        template: a folder that `make_template` filled, so that the database need not be made again.
    """
    servers: EmbeddedServers | DockerServers
    if in_docker():
        servers = DockerServers(root)
    else:
        servers = EmbeddedServers(root)
        if template is not None:
            await asyncio.to_thread(_copy, template, root)
    await servers.open()
    await servers.start()
    if in_docker() or template is None:
        admin = servers.credentials.dsn(ADMIN, servers.ports.postgres, "postgres")
        await migrate.prepare(admin, servers.credentials.postgres, DATABASE)
    await make_streams(servers)
    return servers


async def make_template(root: Path) -> Path:
    """A folder with a migrated database, shut down cleanly, to be copied."""
    servers = EmbeddedServers(root)
    await servers.open()
    await servers.start("postgres")
    admin = servers.credentials.dsn(ADMIN, servers.ports.postgres, "postgres")
    await migrate.prepare(admin, servers.credentials.postgres, DATABASE)
    await servers.stop("postgres")
    await servers.close()
    return root


async def make_streams(servers: EmbeddedServers | DockerServers) -> None:
    """Streams, consumers and buckets, as `hub up` makes them."""
    url = servers.credentials.nats_url(PROVISIONER, servers.ports.nats)
    client = await nats.connect(url, inbox_prefix=f"_INBOX.{PROVISIONER}".encode())
    try:
        await provision(client.jetstream())
    finally:
        await client.close()


def _copy(template: Path, root: Path) -> None:
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copytree(template / "postgres", root / "postgres", symlinks=True)
    shutil.copy(template / "credentials.json", root / "credentials.json")
