"""`make bench-outbox`: how fast charges that wait in the outbox reach Payment Kit, and what each costs.

A hub on scratch data reports to the Payment Kit of the tests, in a process of its own on the same cores: signed calls,
verified there, each written to its journal. Rows are put into the outbox while reports are paused; the clock runs from
the moment when they go on until the last row is marked as sent. Then both sides must have the same events.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final
from uuid import UUID

import asyncpg
import msgspec
from rich.console import Console
from rich.table import Table
from rig.hub import Hub, started
from rig.payment_kit import KitProcess
from rig.processes import Processes
from rig.waiting import until

from bench.measure import cpu_between, elsewhere_between, snapshot
from contracts.ids import new_call_id
from hub_local.credentials import ADMIN

FLOOR_PER_S: Final = 1000
"""What the design asks for, everything on two cores."""
KIT: Final = "payment-kit"
VALUE: Final = Decimal("0.0042000000")
_POLL_S: Final = 0.05
_PATIENCE_S: Final = 600.0
_COLUMNS: Final = ("id", "kind", "identifier", "account", "user_did", "project", "value", "event_at", "tokens")
_ACCOUNTS: Final = "insert into metering.account (id) select unnest($1::text[])"
_PAYERS: Final = "insert into metering.payment_account (account, did, target) select a, a, 0 from unnest($1::text[]) a"
_STRANGERS: Final = "select count(*) from metering.payment_account where customer_id is null"
_PAUSE: Final = "update metering.payment_control set paused = $1"
_WAITING: Final = "select count(*) from metering.outbox where state = 'pending'"
_ENDED: Final = (
    "select count(*) filter (where state = 'sent') as sent, count(*) filter (where tries > 1) as repeated,"
    " count(*) filter (where state = 'parked') as parked from metering.outbox"
)


@dataclass(frozen=True)
class Drained:
    """What was measured."""

    events: int
    seconds: float
    cpu_ms: dict[str, float]
    """Per event, by process."""
    elsewhere: float
    """Share of the machine that others used meanwhile, 0 to 1."""
    repeated: int
    """Rows that were tried more than once."""
    problems: list[str]
    """Why the two sides are not equal; none, if all is well."""

    @property
    def per_s(self) -> float:
        """Events a second."""
        return self.events / self.seconds


def main() -> int:
    """Run from the command line; 2 when the two sides do not agree in the end."""
    parser = argparse.ArgumentParser(prog="bench.outbox", description=__doc__)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--accounts", type=int, default=100)
    parser.add_argument("--workers", type=int, default=8, help="HUB_PAYMENT_KIT_WORKERS")
    parser.add_argument("--meterings", type=int, default=1, help="processes that share the outbox")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    drained = asyncio.run(measured(options.events, options.accounts, options.workers, options.meterings))
    _print(drained)
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(drained), indent=2))
    return 2 if drained.problems else 0


async def measured(events: int, accounts: int, workers: int, meterings: int, template: Path | None = None) -> Drained:
    """Fill an outbox, have it reported, and hold both sides against each other.

    Args:
        events: charges in the outbox.
        accounts: whose they are, in turn.
        workers: of each metering.
        meterings: processes.
        template: see `rig.servers.opened`.
    """
    with tempfile.TemporaryDirectory(prefix="hub-bench-") as folder:
        async with _running(Path(folder), workers, meterings, template) as (hub, kit, pid):
            names = [f"z1payer{number}" for number in range(accounts)]
            await hub.fetch(_PAUSE, True)
            await hub.fetch(_ACCOUNTS, names)
            await hub.fetch(_PAYERS, names)
            await until(lambda: _none(hub, _STRANGERS), within_s=_PATIENCE_S, what="Payment Kit knows every account")
            identifiers = await _fill(hub, names, events)
            pids = {name: (number,) for name, number in {**hub.pids, KIT: pid}.items()}
            before = snapshot(pids)
            await hub.fetch(_PAUSE, False)
            await until(
                lambda: _none(hub, _WAITING), within_s=_PATIENCE_S, every_s=_POLL_S, what="every row has been reported"
            )
            after = snapshot(pids)
            (ended,) = await hub.fetch(_ENDED)
            seconds = after.at - before.at
            return Drained(
                events,
                seconds,
                {name: used / events * 1000 for name, used in cpu_between(before, after).items()},
                elsewhere_between(before, after) / seconds / (os.cpu_count() or 1),
                ended["repeated"],
                await problems(kit, identifiers, ended),
            )
    raise AssertionError("the folder's context swallows nothing")


@asynccontextmanager
async def _running(
    folder: Path, workers: int, meterings: int, template: Path | None
) -> AsyncIterator[tuple[Hub, KitProcess, int]]:
    kit, processes = KitProcess(folder / "journal.jsonl"), Processes()
    processes.add(kit.program)
    await processes.start(KIT)
    try:
        await processes.ready(KIT)
        # Waits as in production: on a machine that is busy no answer shall be given up.
        env = {
            name: value for name, value in kit.env.items() if name in {"HUB_PAYMENT_KIT_URL", "HUB_PAYMENT_KIT_APP_KEY"}
        }
        env["HUB_PAYMENT_KIT_WORKERS"] = str(workers)
        counts = {"gateway": 0, "provider-router": 0, "janitor": 0, "metering": meterings}
        hub = await started(folder / "hub", template, counts=counts, env=env)
        try:
            yield hub, kit, processes.pids[KIT]
        finally:
            await hub.close()
    finally:
        await processes.close([KIT])


async def _fill(hub: Hub, accounts: list[str], count: int) -> set[str]:
    """Put charges into the outbox; returns their identifiers."""
    now = int(time.time())
    rows = []
    for number in range(count):
        call_id = new_call_id()
        account = accounts[number % len(accounts)]
        rows.append((UUID(call_id), "meter", f"mc_{call_id}", account, "did:user", "did:app", VALUE, now, Decimal(150)))
    connection = await asyncpg.connect(hub.servers.credentials.dsn(ADMIN, hub.servers.ports.postgres))
    try:
        await connection.copy_records_to_table("outbox", schema_name="metering", records=rows, columns=_COLUMNS)
        await connection.execute("analyze metering.outbox")
    finally:
        await connection.close()
    return {row[2] for row in rows}


async def _none(hub: Hub, sql: str) -> bool:
    return not await hub.value(sql)


async def problems(kit: KitProcess, identifiers: set[str], ended: Mapping[str, int]) -> list[str]:
    """What is not equal on both sides."""
    journal = [line["wanted"] for line in await kit.control("journal") if line["kind"] == "meter_event"]
    counts = Counter(event["identifier"] for event in journal)
    total = sum((Decimal(event["payload"]["value"]) for event in journal), Decimal(0))
    found = []
    if ended["sent"] != len(identifiers):
        found.append(f"{len(identifiers)} rows, {ended['sent']} sent, {ended['parked']} parked")
    if counts.keys() != identifiers:
        found.append(f"{len(identifiers - counts.keys())} events are missing, {len(counts.keys() - identifiers)} extra")
    if repeats := [identifier for identifier, count in counts.items() if count > 1]:
        found.append(f"{len(repeats)} events were applied more than once")
    if total != VALUE * len(identifiers):
        found.append(f"Payment Kit has {total}, the outbox {VALUE * len(identifiers)}")
    return found


def _print(drained: Drained) -> None:
    console = Console(file=sys.stdout, width=120)
    table = Table(title="Outbox to Payment Kit", title_justify="left")
    names = sorted(drained.cpu_ms)
    for column in ("events", "events/s", *(f"{name}, CPU ms" for name in names), "all, CPU ms", "elsewhere"):
        table.add_column(column, justify="right")
    table.add_row(
        f"{drained.events:,}",
        f"{drained.per_s:,.0f}",
        *(f"{drained.cpu_ms[name]:.2f}" for name in names),
        f"{sum(drained.cpu_ms.values()):.2f}",
        f"{drained.elsewhere:.0%}",
    )
    console.print(table)
    met = "yes" if drained.per_s >= FLOOR_PER_S else "no"
    console.print(f"at least {FLOOR_PER_S:,} events/s: {met}; rows tried more than once: {drained.repeated}")
    for problem in drained.problems or [
        "each identifier once in Payment Kit's journal, sums equal to the last decimal"
    ]:
        console.print(problem, style="red" if drained.problems else None, markup=False)


if __name__ == "__main__":
    sys.exit(main())
