"""A hub, a fake provider and clients, with hands to kill, arm and mend."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import asyncpg
import httpx2
import psutil
from rig.hub import Hub
from rig.provider import FakeProvider
from rig.servers import in_docker, make_streams
from rig.waiting import until

from contracts.permissions import OPERATOR, PROVISIONER
from contracts.rpc import catalog, identity, rate_changes
from contracts.rpc.envelope import Empty
from contracts.streams import CALLS, SETTLE
from faults import invariants
from faults.clients import Payer
from faults.invariants import Account
from hub_local.credentials import ADMIN
from hub_local.folder import read_json
from runtime import rpc
from runtime.bus import Bus

LEASE_S: Final = 3
ACK_WAIT_S: Final = 2
"""Instead of 30 s: how soon another metering gets what one took and never acknowledged."""
QUICK: Final = {"HUB_LEASE_S": str(LEASE_S), "HUB_STALE_PERIOD_S": "0.5", "HUB_DUTY_LEASE_S": "1"}
CLOCK: Final = Path(__file__).parent / "clock"
CLOSED_WITHIN_S: Final = LEASE_S + 10
"""A call whose router was killed is closed within its lease and ten seconds."""


@dataclass
class Scene:
    """Everything that a fault test touches; one per module, mended before each test."""

    hub: Hub
    provider: FakeProvider
    operator: Bus
    payers: list[Payer] = field(default_factory=list)
    _armed: set[str] = field(default_factory=set)

    @classmethod
    async def set(cls, hub: Hub, provider: FakeProvider) -> Self:
        """On a hub that is ready: audit the books, price the provider, shorten what is waited for."""
        await invariants.install_audit(hub)
        scene = cls(hub, provider, await hub.connect(OPERATOR))
        await scene.shorten_ack_wait()
        await scene.price("fake/*", input="0.001", output="0.002")
        return scene

    async def price(self, pattern: str, **rates: str) -> None:
        """Set rates of models that had none, and wait until every gateway serves them."""
        request = rate_changes.RatesSet(pattern=pattern, **rates)
        await rpc.ask(self.operator, catalog.SERVICE, rate_changes.RATES_SET, request, catalog.RateView)
        asking = await self.payer("0")

        async def known() -> bool:
            path = f"/v1/models/{pattern.replace('*', 'any')}"
            return all([(await asking.get(path, gateway=each)).is_success for each in range(len(self.hub.urls))])

        await until(known, what=f"every gateway serves {pattern}")
        self.payers.remove(asking)
        await asking.close()

    async def shorten_ack_wait(self) -> None:
        """The settle consumer, with `ACK_WAIT_S`."""
        bus = await self.hub.connect(PROVISIONER)
        try:
            info = await bus.jetstream().consumer_info(CALLS.name, SETTLE.durable)
            assert info.config is not None
            info.config.ack_wait = ACK_WAIT_S
            await bus.jetstream().add_consumer(CALLS.name, info.config)
        finally:
            await bus.close()

    async def payer(self, credits_: str = "1000") -> Payer:
        """A new account with so many credits, and its client."""
        request = identity.KeysCreate(count=1, welcome_credits=credits_)
        made = await rpc.ask(self.operator, identity.SERVICE, identity.KEYS_CREATE, request, identity.KeysCreated)
        (key,) = made.keys
        payer = Payer(self.hub.urls, key.account, key.key, key.key_id)
        self.payers.append(payer)
        return payer

    async def revoke(self, payer: Payer) -> None:
        """Revoke a payer's key."""
        request = identity.KeyRevoke(key_id=payer.key_id)
        await rpc.ask(self.operator, identity.SERVICE, identity.KEY_REVOKE, request, Empty)

    async def arm(self, name: str, point: str) -> None:
        """Restart a process with a failpoint."""
        if name in self.hub.processes.pids:
            await self.hub.kill(name)
        self._armed.add(name)
        await self.hub.start(name, fail=point)

    async def start_armed(self, name: str, point: str) -> None:
        """Start a process with a failpoint, which may kill it before it is ready."""
        self._armed.add(name)
        await self.hub.processes.start(name, {"HUB_FAIL": point})

    async def restart(self, name: str, env: dict[str, str]) -> None:
        """Start a process again with other settings, until the scene is mended."""
        await self.hub.kill(name)
        self._armed.add(name)
        await self.hub.processes.start(name, env)
        await self.hub.ready(name)

    async def died(self, name: str) -> None:
        """Wait for a failpoint's kill."""
        assert await self.hub.gone(name) == -9
        self._armed.discard(name)

    async def step_clock(self, name: str, step_s: int) -> None:
        """Start a service again, one process of it, with a wall clock that is so far off; see `clock/`."""
        running = [other for other in self.hub.processes.pids if other == name or other.startswith(f"{name}-")]
        await self.hub.kill(*running)
        self._armed.add(name)
        path = os.pathsep.join(filter(None, (str(CLOCK), os.environ.get("PYTHONPATH"))))
        await self.hub.processes.start(name, {"PYTHONPATH": path, "TEST_CLOCK_STEP_S": str(step_s)})
        await self.hub.ready(name)

    async def mend(self, *, without: Collection[str] = ()) -> None:
        """Bring everything back as it was at first: all processes but some run, nothing is armed, slow or stopped."""
        for proxy in self.hub.proxies.values():
            proxy.latency_s, proxy.refuse = 0.0, False
            proxy.resume()
        await self.hub.resume(*self.hub.pids)
        missing = (
            [name for name in ("nats", "postgres") if name not in self.hub.servers.pids()] if not in_docker() else []
        )
        if missing:
            await self.hub.start(*missing)
        for name in self._armed & set(self.hub.processes.pids):
            await self.hub.kill(name)
        self._armed.clear()
        await self.hub.kill(*(name for name in without if name in self.hub.processes.pids))
        wanted = [name for name in self.hub.processes.names if name not in without]
        missing = [name for name in wanted if name not in self.hub.processes.pids]
        if missing:
            await self.hub.start(*missing)
        await self.hub.ready(*wanted)
        for payer in self.payers:
            await payer.close()
        self.payers.clear()
        self.provider.forget()

    async def at_rest(self, payer: Payer, *, unpaid: int = 0, within_s: float = 20.0) -> Account:
        """Wait until an account is at rest and hold it against the invariants; see `invariants.check`."""
        account = await invariants.at_rest(
            self.hub, self.operator, payer.account, payer.journal, self.provider.journal,
            within_s=within_s,
        )  # fmt: skip
        await invariants.check(self.hub, account, unpaid=unpaid)
        return account

    async def still_serves(self, payer: Payer) -> None:
        """A call like any other succeeds, streamed and not."""
        for stream in (False, True):
            told = await payer.chat(stream=stream)
            assert told.final, f"no answer after the fault: {told}"

    async def row(self, payer: Payer, within_s: float = 15.0) -> asyncpg.Record:
        """The account's newest call, once there is one."""
        sql = "select * from metering.model_call where account = $1 order by id desc limit 1"

        async def look() -> list[asyncpg.Record]:
            return await self.hub.fetch(sql, payer.account)

        return (await until(look, within_s=within_s, what="a row"))[0]

    async def closed(self, payer: Payer, within_s: float = CLOSED_WITHIN_S) -> asyncpg.Record:
        """The account's newest call, once it is terminal."""

        async def look() -> asyncpg.Record | None:
            row = await self.row(payer)
            return row if row["state"] != "processing" else None

        return await until(look, within_s=within_s, what="the call is terminal")

    async def facts(self) -> int:
        """Outcomes on the stream that metering has not acknowledged."""
        info = await self.operator.jetstream().consumer_info(CALLS.name, SETTLE.durable)
        return (info.num_pending or 0) + (info.num_ack_pending or 0)

    async def stored(self, count: int = 1) -> None:
        """Wait until so many outcomes wait on the stream."""

        async def look() -> bool:
            return await self.facts() >= count

        await until(look, what=f"{count} outcomes on the stream")

    async def nothing_waits(self, within_s: float = 15.0) -> None:
        """Wait until every outcome on the stream is acknowledged."""

        async def look() -> bool:
            return await self.facts() == 0

        await until(look, within_s=within_s, what="no outcome waits on the stream")

    async def nothing_left_in(self, router: str) -> None:
        """Wait until a router runs no call and has no outcome that is not settled."""

        async def look() -> bool:
            text = await self.metrics(router)
            return "hub_router_calls_running 0.0" in text and "hub_router_outcomes_unsettled 0.0" in text

        await until(look, within_s=15.0, every_s=0.2, what=f"{router} has nothing left")

    async def metrics(self, name: str) -> str:
        """What a process' ops port tells Prometheus."""
        port = read_json(self.hub.servers.folder.root / "ports.json")[f"ops:{name}"]
        async with httpx2.AsyncClient(trust_env=False) as client:
            return (await client.get(f"http://127.0.0.1:{port}/metrics")).text

    async def logged(self, name: str, text: str) -> None:
        """Wait until a process has written something."""

        async def look() -> bool:
            return text in self.hub.log(name)

        await until(look, what=f"{name} says {text!r}")

    @asynccontextmanager
    async def locked(self, payer: Payer) -> AsyncIterator[None]:
        """The account's row locked by somebody else, who may die with the server."""
        secrets, ports = self.hub.servers.credentials, self.hub.servers.ports
        connection = await asyncpg.connect(secrets.dsn(ADMIN, ports.postgres))
        try:
            await connection.execute("begin")
            await connection.execute("select 1 from metering.account where id = $1 for update", payer.account)
            yield
        finally:
            connection.terminate()

    async def blocked(self, text: str) -> None:
        """Wait until a statement waits for a lock."""
        sql = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and query like $1"

        async def look() -> bool:
            return bool(await self.hub.fetch(sql, f"%{text}%"))

        await until(look, what=f"{text} waits for a lock")

    async def kill_postgres(self) -> None:
        """SIGKILL to the postmaster and all backends at once, as a power cut would."""
        if in_docker():
            await self.hub.kill("postgres")
            return
        postmaster = psutil.Process(self.hub.servers.pids()["postgres"])
        backends = postmaster.children(recursive=True)
        postmaster.suspend()  # it would clean up after backends that die before it
        for process in backends:
            process.kill()
        await self.hub.kill("postgres")
        await asyncio.to_thread(psutil.wait_procs, backends, 10)

    async def lose_bus(self) -> None:
        """NATS killed, and everything that it had stored gone; started and provisioned anew."""
        await self.hub.kill("nats")
        if not in_docker():
            for path in self.hub.servers.folder.nats.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
        await self.hub.start("nats")
        if in_docker():
            await self._delete_streams()
        await make_streams(self.hub.servers)
        await self.shorten_ack_wait()

    async def _delete_streams(self) -> None:
        bus = await self.hub.connect(PROVISIONER)
        try:
            for stream in await bus.jetstream().streams_info():
                await bus.jetstream().delete_stream(str(stream.config.name))
        finally:
            await bus.close()

    async def close(self) -> None:
        """Hang up and end everything."""
        for payer in self.payers:
            await payer.close()
        await self.operator.close()
        await self.hub.close()


async def stream_messages(hub: Hub, subject: str) -> list[bytes]:
    """Payloads on CALLS with a subject, oldest first; no service may read them, the provisioner may."""
    bus = await hub.connect(PROVISIONER)
    found: list[bytes] = []
    try:
        js = bus.jetstream()
        state = (await js.stream_info(CALLS.name)).state
        for sequence in range(state.first_seq, state.last_seq + 1):
            message = await js.get_msg(CALLS.name, sequence)
            if message.subject == subject and message.data is not None:
                found.append(message.data)
    finally:
        await bus.close()
    return found


def of_call(payloads: Sequence[bytes], call_id: str) -> bytes:
    """The newest fact of one call."""
    return [payload for payload in payloads if json.loads(payload)["call_id"] == call_id][-1]
