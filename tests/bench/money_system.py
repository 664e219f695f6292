"""NATS, PostgreSQL and one metering on scratch data, without gateways and routers; and what the books say."""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

import asyncpg
import nats
from rig.processes import Processes
from rig.servers import EmbeddedServers, make_streams

from bench.money_messages import cost
from bench.money_results import Spent
from contracts import streams
from contracts.permissions import GATEWAY, JANITOR, METERING, PROVISIONER, ROUTER
from hub_local import migrate, services
from hub_local.credentials import ADMIN, DATABASE
from hub_local.services import Instance
from hub_local.settings import LocalSettings

CREDITS: Final = Decimal(1_000_000_000)
"""Of each account: more than any run spends."""
_USAGE_SENT_S: Final = 30.0
_QUEUED_S: Final = 30.0
_HIGH_WATER: Final = re.compile(r"VmHWM:\s+(\d+) kB")
_OPEN_ACCOUNT: Final = (
    "select metering.credit_give(gen_random_uuid(), a, $2, 'top_up', '', '', '', 50, null, null, null, now())"
    " from unnest($1::text[]) a"
)
_BOOKS: Final = """
select a.id, a.held, a.spent, a.seq, l.calls, l.amount, c.closed, c.credits, coalesce(s.seq, 0) as sent
from metering.account a
left join metering.usage_sent s on s.account = a.id
cross join lateral (
    select count(*) as calls, coalesce(sum(amount), 0) as amount from metering.ledger l where l.account = a.id
) l
cross join lateral (
    select count(*) filter (where state = 'success') as closed, coalesce(sum(credits), 0) as credits
    from metering.model_call c where c.account = a.id
) c
where a.id = any ($1)
"""


@dataclass(frozen=True)
class MoneySystem:
    """What is measured, and the books behind it."""

    servers: EmbeddedServers
    processes: Processes
    books: "asyncpg.Connection[asyncpg.Record]"

    @property
    def pids(self) -> dict[str, tuple[int, ...]]:
        """Process ids by name of what runs now."""
        return {name: (pid,) for name, pid in {**self.processes.pids, **self.servers.pids()}.items()}

    @property
    def load_urls(self) -> tuple[str, str]:
        """The bus for the load generator: as a gateway and as a router."""
        return self._url(GATEWAY), self._url(ROUTER)

    async def start(self, name: str) -> None:
        """Start metering or the janitor; `ready` waits for it."""
        await self.processes.start(name)

    async def ready(self, name: str) -> None:
        """Wait until a process says that it is ready."""
        await self.processes.ready(name)

    async def stop(self, name: str) -> None:
        """End a process as an operator would."""
        await self.processes.stop(name)

    async def open_accounts(self, names: Sequence[str]) -> None:
        """Give each so much credit that none is refused."""
        words = await self.books.fetch(_OPEN_ACCOUNT, list(names), CREDITS)
        assert {word for (word,) in words} == {"done"}

    async def queued(self, number: int) -> int:
        """Outcomes that wait on the bus for metering, once they are so many or half a minute has passed."""
        client = await nats.connect(self._url(PROVISIONER), inbox_prefix=f"_INBOX.{PROVISIONER}".encode())
        try:
            deadline = time.monotonic() + _QUEUED_S
            while True:
                info = await client.jetstream().consumer_info(streams.SETTLE.stream, streams.SETTLE.durable)
                found = (info.num_pending or 0) + (info.num_ack_pending or 0)
                if found == number or time.monotonic() > deadline:
                    return found
                await asyncio.sleep(0.2)  # what the server has taken it writes a moment later
        finally:
            await client.close()

    async def settle_down(self) -> None:
        """Between two runs: nothing of the last one is still to be written."""
        await self.books.execute("vacuum (analyze) metering.account, metering.model_call")
        await self.books.execute("checkpoint")

    async def mistakes(self, spent: Mapping[str, Spent]) -> dict[str, int]:
        """Whether the books say what they must: by what is wrong, how many accounts. Waits for the usage events."""
        accounts = list(spent)

        deadline = time.monotonic() + _USAGE_SENT_S
        while True:
            found = mistakes(await self.books.fetch(_BOOKS, accounts), spent)
            if not found or time.monotonic() > deadline:
                return found
            await asyncio.sleep(1)

    def _url(self, user: str) -> str:
        return self.servers.credentials.nats_url(user, self.servers.ports.nats)


def mistakes(rows: Sequence[Mapping[str, object]], spent: Mapping[str, Spent]) -> dict[str, int]:
    """Compare the books with what was told to the gateway.

    Args:
        rows: id, held, spent, seq of each account, sums of its ledger and calls, and "sent up to" of its events.
        spent: what each of these accounts must have spent.
    """
    found = {"accounts missing": len(spent) - len(rows)}
    for row in rows:
        due = spent[str(row["id"])]
        credits_due = cost(due.calls, due.tokens)
        checks = {
            "holds not 0": row["held"] == 0,
            "spent differs from what was told": row["spent"] == credits_due,
            "ledger differs from what was told": (row["amount"], row["calls"]) == (credits_due, due.calls),
            "calls differ from what was told": (row["credits"], row["closed"]) == (credits_due, due.calls),
            "sequence is not the number of calls": row["seq"] == due.calls,
            "usage events missing on the bus": row["sent"] == row["seq"],
        }
        for what, right in checks.items():
            found[what] = found.get(what, 0) + (not right)
    return {what: number for what, number in found.items() if number}


def high_water_mb(pid: int) -> float:
    """Most memory that a process has had resident, in megabytes (Linux)."""
    found = _HIGH_WATER.search(Path(f"/proc/{pid}/status").read_text())
    return 0.0 if found is None else int(found[1]) * 1024 / 1_000_000


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[MoneySystem]:
    """Servers as `hub up` runs them, with every fsync, and one metering; a janitor can be started beside it."""
    servers = EmbeddedServers(folder, fast=False)
    await servers.open()
    try:
        await servers.start()
        admin = servers.credentials.dsn(ADMIN, servers.ports.postgres, "postgres")
        await migrate.prepare(admin, servers.credentials.postgres, DATABASE)
        await make_streams(servers)
        books = await asyncpg.connect(servers.credentials.dsn(ADMIN, servers.ports.postgres))
        processes = _processes(servers)
        try:
            await processes.start(METERING)
            await processes.ready(METERING)
            yield MoneySystem(servers, processes, books)
        finally:
            await processes.close(processes.names)
            await books.close()
    finally:
        await servers.close()


def _processes(servers: EmbeddedServers) -> Processes:
    ops = servers.folder.ports([METERING, JANITOR])
    settings = LocalSettings(data_dir=servers.folder.root, port=0, drain_s=10.0)
    found = Processes()
    for service in (METERING, JANITOR):
        instance = Instance(service, 1, ops[service])
        found.add(services.program(instance, settings, _environment(), servers.credentials, servers.ports, None))
    return found


def _environment() -> dict[str, str]:
    """The caller's without its own hub; all else by default."""
    return {name: value for name, value in os.environ.items() if not name.startswith("HUB_")}
