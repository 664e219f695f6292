"""`make bench-sync`: what it costs that NATS forces each message to disk, per call and per second.

The hub with NATS' default (`sync_interval: 2m`, a power cut may lose what came since) and with `always`
(`HUB_NATS_SYNC_ALWAYS=true`), in turn, each on fresh data on one disk, under one load. An fsync costs what the disk
makes it cost: put `--folder` on the disk that is meant; in memory (tmpfs) it is free.
"""

import argparse
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec
import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from bench.measure import ProcessGoneError
from bench.measured import cpu_s
from bench.processes import BenchError, Upstream, run_load, running_upstream
from bench.scenarios import JSON_1, JSON_64
from bench.system import running_hub

SETTINGS: Final = {"2m": "false", "always": "true"}
"""Of `sync_interval` → value of HUB_NATS_SYNC_ALWAYS."""
_WARMUP_S: Final = 2.0


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario under one setting.

    Attributes:
        nats_us: microseconds of CPU of NATS for each call; waiting for the disk is not among them.
        all_us: the same of everything but the load and the upstream.
        written_bytes: what NATS had written to the disk for each call.
    """

    setting: str
    scenario: str
    calls_per_s: float
    p50_ms: float
    p99_ms: float
    nats_us: float
    all_us: float
    written_bytes: float
    failures: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 when it could not be run, 2 when a call failed."""
    parser = argparse.ArgumentParser(
        prog="make bench-sync", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2, help="of both settings, the second one in reverse")
    parser.add_argument("--seconds", type=float, default=6.0, help="measured window of each scenario")
    parser.add_argument("--folder", type=Path, help="on the disk that is meant; default: the one for temporary files")
    parser.add_argument("--json", type=Path, help="write every sample there too")
    options = parser.parse_args(arguments)
    try:
        samples = _measured(options.rounds, options.seconds, options.folder)
    except (BenchError, ProcessGoneError) as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    Console(file=sys.stdout, width=140).print(_table(samples))
    for line in _costs(samples):
        print(line)
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(samples), indent=2))
    return 2 if any(sample.failures for sample in samples) else 0


def _measured(rounds: int, seconds: float, folder: Path | None) -> list[Sample]:
    samples: list[Sample] = []
    with running_upstream() as upstream:
        for number in range(rounds):
            settings = list(SETTINGS)
            for setting in settings if number % 2 == 0 else reversed(settings):
                sys.stderr.write(f"bench: round {number + 1}, sync_interval {setting} …\n")
                samples += _one(setting, upstream, seconds, folder)
    return samples


def _one(setting: str, upstream: Upstream, seconds: float, folder: Path | None) -> list[Sample]:
    """Both scenarios on a hub of their own."""
    with ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hub-sync-", dir=folder)))
        env = {"HUB_NATS_SYNC_ALWAYS": SETTINGS[setting]}
        system = stack.enter_context(running_hub(data, upstream, 1, env))
        (nats,) = system.processes["nats"]
        samples = []
        for scenario in (JSON_1, JSON_64):
            arguments = scenario.arguments(system.model_prefix, seconds, _WARMUP_S)
            written = _written(nats)
            run = run_load(system.url, system.keys, arguments, system.processes)
            written, used = _written(nats) - written, cpu_s(run)
            window, total = run.result.window, run.result.total
            if not window.ok:
                raise BenchError(f"no call of {scenario.name} succeeded: {run.result.examples}")
            ours = sum(spent for name, spent in used.items() if name in system.processes)
            samples.append(
                Sample(
                    setting=setting,
                    scenario=scenario.name,
                    calls_per_s=window.ok / run.result.seconds,
                    p50_ms=run.result.latency.p50,
                    p99_ms=run.result.latency.p99,
                    nats_us=used["nats"] * 1e6 / window.ok,
                    all_us=ours * 1e6 / window.ok,
                    written_bytes=written / total.ok,
                    failures=total.failures + run.result.connect_failures,
                )
            )
        return samples


def _written(pid: int) -> int:
    """Bytes that a process has caused to be written to a disk."""
    return int(psutil.Process(pid).io_counters().write_bytes)


def _table(samples: Sequence[Sample]) -> Table:
    table = Table(title="Each call is settled and charged; medians of all rounds", box=box.SIMPLE)
    columns = ("sync_interval", "scenario", "calls/s", "p50 ms", "p99 ms", "NATS µs", "all µs", "written B", "failed")
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:2] else "right")
    for (scenario, setting), group in _grouped(samples).items():
        table.add_row(
            setting, scenario, f"{_median(group, 'calls_per_s'):,.0f}", f"{_median(group, 'p50_ms'):.2f}",
            f"{_median(group, 'p99_ms'):.2f}", f"{_median(group, 'nats_us'):.0f}", f"{_median(group, 'all_us'):.0f}",
            f"{_median(group, 'written_bytes'):,.0f}", str(sum(sample.failures for sample in group)),
        )  # fmt: skip
    return table


def _costs(samples: Sequence[Sample]) -> list[str]:
    """What `always` costs, in a sentence for each scenario."""
    grouped = _grouped(samples)
    found = []
    for scenario in (JSON_1, JSON_64):
        lazy, always = grouped[scenario.name, "2m"], grouped[scenario.name, "always"]
        added = _median(always, "p50_ms") - _median(lazy, "p50_ms")
        before, after = _median(lazy, "calls_per_s"), _median(always, "calls_per_s")
        found.append(
            f"{scenario.name}: `always` adds {added:.2f} ms to the median call and turns {before:,.0f} calls a second"
            f" into {after:,.0f} ({after / before - 1:+.0%})"
        )
    return found


def _grouped(samples: Sequence[Sample]) -> dict[tuple[str, str], list[Sample]]:
    found: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        found[sample.scenario, sample.setting].append(sample)
    return dict(sorted(found.items()))


def _median(group: Sequence[Sample], what: str) -> float:
    return statistics.median(getattr(sample, what) for sample in group)


if __name__ == "__main__":
    raise SystemExit(main())
