"""A real nats-server with the users, rights, streams and buckets of a deployment."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from contracts import permissions, subjects
from contracts.ids import new_process_id
from hub_local import nats_config
from hub_local.credentials import obtain
from hub_local.folder import DataFolder
from hub_local.programs import finish, spawn
from hub_local.servers import Ports, Servers
from runtime.bus import Bus, opened
from runtime.provision import provision


@dataclass
class Nats:
    """The server, and who may connect to it."""

    servers: Servers
    process: asyncio.subprocess.Process | None = None

    def url(self, user: str) -> str:
        return self.servers.credentials.nats_url(user, self.servers.ports.nats)

    async def connect(self, user: str) -> Bus:
        process = new_process_id(user)
        return await opened(self.url(user), name=process, inbox_prefix=subjects.inbox_prefix(user, process))

    async def start(self) -> None:
        program = self.servers.nats()
        self.process = await spawn(program)
        async with asyncio.timeout(10):
            while not await program.ready():
                assert self.process.returncode is None, "nats-server has ended"
                await asyncio.sleep(0.02)

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.communicate()

    async def stop(self) -> None:
        if self.process is not None:
            program = self.servers.nats()
            await finish(self.process, program.stop_signal, program.stop_within_s)


@pytest.fixture
async def stopped_nats(tmp_path: Path) -> AsyncIterator[Nats]:
    """Ports and passwords are chosen; no server runs yet."""
    async with DataFolder(tmp_path) as folder:
        servers = Servers(folder, Ports(**folder.ports(("postgres", "nats", "nats_http"))), obtain(folder))
        nats_config.write(
            folder.nats, servers.ports.nats, servers.ports.nats_http, servers.credentials.nats, sync_always=False
        )
        nats = Nats(servers)
        yield nats
        await nats.stop()


@pytest.fixture
async def nats(stopped_nats: Nats) -> Nats:
    await stopped_nats.start()
    await provisioned(stopped_nats)
    return stopped_nats


async def provisioned(nats: Nats) -> None:
    bus = await nats.connect(permissions.PROVISIONER)
    await provision(bus.jetstream())
    await bus.close()


@pytest.fixture
def provision_streams() -> object:
    """Make the streams and buckets of a server that was started by the test itself."""
    return provisioned
