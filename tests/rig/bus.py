"""A nats-server with the users, rights, streams and buckets of a deployment, for tests that need nothing more."""

from dataclasses import dataclass

import pytest

from contracts import permissions, streams, subjects
from contracts.ids import new_process_id
from rig.servers import DockerServers, EmbeddedServers, make_streams
from runtime.bus import Bus, opened


@dataclass
class Nats:
    """The server, and who may connect to it."""

    servers: EmbeddedServers | DockerServers

    def url(self, user: str, password: str = "") -> str:
        if password:
            return f"nats://{user}:{password}@127.0.0.1:{self.servers.ports.nats}"
        return self.servers.credentials.nats_url(user, self.servers.ports.nats)

    async def connect(self, user: str) -> Bus:
        process = new_process_id(user)
        return await opened(self.url(user), name=process, inbox_prefix=subjects.inbox_prefix(user, process))

    async def kill(self) -> None:
        await self.servers.kill("nats")

    async def start(self) -> None:
        await self.servers.start("nats")

    async def provision(self) -> None:
        await make_streams(self.servers)

    async def wipe(self) -> None:
        """Streams, consumers and buckets as after a first start."""
        bus = await self.connect(permissions.PROVISIONER)
        js = bus.jetstream()
        for stream in (streams.CALLS.name, f"KV_{streams.DUTY_LEASES.name}", f"KV_{streams.DUTY_RUNS.name}"):
            await js.delete_stream(stream)
        await bus.close()
        await self.provision()


@pytest.fixture
async def nats(infra: EmbeddedServers | DockerServers) -> Nats:
    """The run's server, its streams emptied."""
    server = Nats(infra)
    await server.wipe()
    return server


@pytest.fixture
async def own_nats(own_infra: EmbeddedServers | DockerServers) -> Nats:
    """A server that the test may kill."""
    return Nats(own_infra)
