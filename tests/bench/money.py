"""`make bench-money`: how fast reserves and completions are booked, with gateways and routers played on the bus.

Real NATS, PostgreSQL with every fsync, and one metering on scratch data. After each run the books must say, for every
account and to the last decimal, what the gateway was told.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec
import structlog

from bench.measure import Snapshot, cpu_between, elsewhere_between, snapshot
from bench.money_load import QUEUED, RESERVED, WINDOW_CLOSES, WINDOW_OPENS, account_names
from bench.money_report import MoneyMeasured, print_money
from bench.money_results import MoneyResult
from bench.money_scenarios import SCENARIOS, MoneyScenario, arguments, in_order
from bench.money_system import MoneySystem, high_water_mb, running
from bench.processes import BenchError
from contracts.permissions import JANITOR, METERING
from metering.settings import Settings

_PACKAGES: Final = Path(__file__).parent.parent
_LEASE_S: Final = float(Settings.model_fields["lease_s"].default)
_READ_S: Final = 600.0


class LoadProcess:
    """The load generator, line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def started(cls, system: MoneySystem, options: list[str]) -> "LoadProcess":
        """Running, with the URLs that it connects to."""
        made = cls(
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", "bench.money_load", *options,
                env=os.environ | {"PYTHONPATH": str(_PACKAGES)},
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**24,
            )
        )  # fmt: skip
        for url in system.load_urls:
            await made.tell(url)
        return made

    async def tell(self, line: str) -> None:
        """Write one line to its input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()

    async def until(self, event: str) -> None:
        """Wait for the next thing that it says.

        Raises:
            BenchError: it says something else, or nothing more.
        """
        said = msgspec.json.decode(await self._line(event), type=dict[str, str])["event"]
        if said != event:
            raise BenchError(f"the load generator said {said!r} instead of {event!r}")

    async def result(self) -> MoneyResult:
        """What it found, once it has ended."""
        return msgspec.json.decode(await self._line("its result"), type=MoneyResult)

    async def end(self) -> None:
        """Wait for it, or kill it when something went wrong."""
        try:
            await asyncio.wait_for(self._process.wait(), 10)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _line(self, awaited: str) -> bytes:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), _READ_S)
        if not line:
            raise BenchError(f"the load generator ended with code {await self._process.wait()} before: {awaited}")
        return line


def main() -> int:
    """Run from the command line; 1 when it could not be run, 2 when a call was refused or the books are wrong."""
    options = _parse()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        measured = asyncio.run(_measure_all(options))
    except BenchError as error:
        sys.stderr.write(f"bench-money: {error}\n")
        return 1
    print_money(measured)
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(measured), indent=2))
    return 2 if any(one.wrong for one in measured) else 0


async def _measure_all(options: argparse.Namespace) -> list[MoneyMeasured]:
    wanted = [one for one in SCENARIOS if not options.scenario or one.name in options.scenario]
    measured: list[MoneyMeasured] = []
    rate = options.rate
    with ExitStack() as stack:
        if options.keep:
            options.keep.mkdir(parents=True)
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hub-bench-money-")))
        async with running(folder) as system:
            for number, scenario in enumerate(in_order(wanted)):
                sys.stderr.write(f"bench-money: {scenario.name} …\n")
                await system.open_accounts(account_names(f"run{number}-", scenario.accounts))
                told = arguments(scenario, f"run{number}-", rate, options.seconds, options.backlog)
                if scenario.backlog:
                    one = await _backlog(system, scenario, told, options.backlog)
                else:
                    one = await _window(system, scenario, told)
                measured.append(one)
                if scenario.sets_rate and not options.rate:
                    rate = one.rate_per_s / 2
                await system.settle_down()
    return measured


async def _window(system: MoneySystem, scenario: MoneyScenario, options: list[str]) -> MoneyMeasured:
    load = await LoadProcess.started(system, options)
    try:
        await load.until(WINDOW_OPENS)
        before = snapshot(system.pids)
        await load.until(WINDOW_CLOSES)
        after = snapshot(system.pids)
        result = await load.result()
    finally:
        await load.end()
    return await _measured(system, scenario, result, before, after)


async def _backlog(system: MoneySystem, scenario: MoneyScenario, options: list[str], expected: int) -> MoneyMeasured:
    """Completions queue while metering is away, until every lease has ended; a janitor looks on all the time."""
    await system.start(JANITOR)
    await system.ready(JANITOR)
    load = await LoadProcess.started(system, options)
    try:
        await load.until(RESERVED)
        leases_end_at = time.monotonic() + _LEASE_S
        await system.stop(METERING)
        await load.tell("queue")
        await load.until(QUEUED)
        queued = await system.queued(expected)
        await asyncio.sleep(max(0.0, leases_end_at + 1 - time.monotonic()))
        await load.tell("metering is back")
        servers = {name: pids for name, pids in system.pids.items() if name != JANITOR}
        await system.start(METERING)
        before = snapshot(servers)
        await load.until(WINDOW_CLOSES)
        names = {**servers, METERING: system.pids[METERING]}
        after = snapshot(names)
        before.cpu_s[METERING] = 0.0
        result = await load.result()
    finally:
        await load.end()
    one = await _measured(system, scenario, result, before, after)
    await system.stop(JANITOR)
    if queued != expected:
        one.wrong["outcomes not queued"] = expected - queued
    return one


async def _measured(
    system: MoneySystem, scenario: MoneyScenario, result: MoneyResult, before: Snapshot, after: Snapshot
) -> MoneyMeasured:
    wrong = dict(result.wrong)
    if sum(spent.calls for spent in result.spent.values()) + sum(wrong.values()) != result.started:
        wrong["calls without an end"] = 1
    wrong.update(await system.mistakes(result.spent))
    cores = os.cpu_count() or 1
    elsewhere = max(0.0, elsewhere_between(before, after) - result.cpu_s) / (cores * (after.at - before.at))
    return MoneyMeasured(
        scenario=scenario.name,
        result=msgspec.structs.replace(result, spent={}),
        cpu_s=cpu_between(before, after) | {"load": result.cpu_s},
        elsewhere=elsewhere,
        memory_mb=high_water_mb(system.pids[METERING][0]),
        wrong=wrong,
    )


def _parse() -> argparse.Namespace:
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(
        prog="bench.money", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenario", action="append", choices=names, help="only this one; may be repeated")
    parser.add_argument("--seconds", type=float, default=8.0, help="measured window of each run")
    parser.add_argument("--backlog", type=int, default=100_000, help="completions that queue")
    parser.add_argument("--rate", type=float, default=0.0, help="calls a second of the open loops; 0: half of `settle`")
    parser.add_argument("--keep", type=Path, help="new folder for the data, kept afterwards")
    parser.add_argument("--json", type=Path, help="write everything there too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
