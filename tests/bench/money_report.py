"""The tables of `make bench-money`, and the bars that its figures are held against."""

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from bench.figures import Spread
from bench.money_results import MoneyResult
from bench.money_scenarios import BACKLOG, HALF, HOT, ONE, SETTLE

_WIDTH: Final = 150
_CPU: Final = ("metering", "postgres", "nats", "load")


class MoneyMeasured(msgspec.Struct, frozen=True, kw_only=True):
    """One run with what the processes used meanwhile.

    Attributes:
        cpu_s: seconds of CPU in the window by process; `load` is the load generator.
        elsewhere: share of the machine that others used in the window; 1 is all cores.
        memory_mb: most that metering has had resident since its start.
        wrong: what must not be, by what it is; empty when the books say what the gateway was told.
    """

    scenario: str
    result: MoneyResult
    cpu_s: dict[str, float]
    elsewhere: float
    memory_mb: float
    wrong: dict[str, int]

    @property
    def rate_per_s(self) -> float:
        """Calls settled a second."""
        return self.result.settled / self.result.seconds

    def cpu_us(self, name: str) -> float:
        """Microseconds of CPU of a process for each settled call."""
        return 1_000_000 * self.cpu_s.get(name, 0.0) / self.result.settled if self.result.settled else 0.0


@dataclass(frozen=True)
class Bar:
    """One figure that was asked for, from one run of each of its scenarios; without a bound it is only published."""

    name: str
    unit: str
    bound: float | None
    at_most: bool
    of: tuple[str, ...]
    value: Callable[[Sequence[MoneyMeasured]], float]


def _rate(runs: Sequence[MoneyMeasured]) -> float:
    return runs[0].rate_per_s


def _reserve_p99(runs: Sequence[MoneyMeasured]) -> float:
    return runs[0].result.others.reserve.p99


def _others_ratio(runs: Sequence[MoneyMeasured]) -> float:
    even, hot = (run.result.others.whole.p99 for run in runs)
    return hot / even if even else 0.0


def _seconds(runs: Sequence[MoneyMeasured]) -> float:
    return runs[0].result.seconds


BARS: Final = (
    Bar("reserved and settled", "calls/s", 4000, False, (SETTLE.name,), _rate),
    Bar("reserve at half load, p99", "ms", 10, True, (HALF.name,), _reserve_p99),
    Bar("others' p99 beside a hot account", "times", 1.5, True, (HALF.name, HOT.name), _others_ratio),
    Bar("limit of one account", "calls/s", None, False, (ONE.name,), _rate),
    Bar("backlog caught up", "s", 60, True, (BACKLOG.name,), _seconds),
)


def verdict(bar: Bar, measured: Mapping[str, Sequence[MoneyMeasured]]) -> tuple[float | None, bool | None]:
    """The figure of a bar, the median of its rounds, and whether it is met; by runs with right books only.

    Args:
        measured: the runs of each scenario, in order.

    Returns:
        None where nothing was measured, or there is no bound.
    """
    rounds = list(zip(*(measured.get(name, ()) for name in bar.of), strict=False))
    if not rounds:
        return None, None
    value = statistics.median(bar.value(runs) for runs in rounds)
    if bar.bound is None:
        return value, None
    within = value <= bar.bound if bar.at_most else value >= bar.bound
    return value, within and not any(run.wrong for runs in rounds for run in runs)


def print_money(measured: Sequence[MoneyMeasured]) -> None:
    """Print all tables."""
    console = Console(file=sys.stdout, width=_WIDTH)
    console.print(_runs(measured))
    by_scenario: dict[str, list[MoneyMeasured]] = {}
    for one in measured:
        by_scenario.setdefault(one.scenario, []).append(one)
    console.print(_bars(by_scenario))
    for one in measured:
        for what, number in sorted(one.wrong.items()):
            console.print(f"{one.scenario}: {number:,} times {what}", style="red", markup=False)


def _runs(measured: Sequence[MoneyMeasured]) -> Table:
    table = _table(
        "Reserved and settled (ms; whole = until the gateway hears of it; CPU in µs a call; MB = metering's most)",
        ("calls/s", "settled", "wrong", "reserve p50", "p99", "whole p50", "p99", "hot p99", *_CPU),
        ("elsewhere", "MB"),
    )
    for one in measured:
        result = one.result
        table.add_row(
            one.scenario,
            f"{one.rate_per_s:,.0f}",
            f"{result.settled:,}",
            f"[red]{sum(one.wrong.values()):,}[/red]" if one.wrong else "0",
            *_ms(result.others.reserve),
            *_ms(result.others.whole),
            _ms(result.hot.whole)[1],
            *(f"{one.cpu_us(name):.0f}" for name in _CPU),
            f"{one.elsewhere:.0%}",
            f"{one.memory_mb:.0f}",
        )
    return table


def _bars(measured: Mapping[str, Sequence[MoneyMeasured]]) -> Table:
    table = _table("Against what was asked for (median of the rounds)", ("unit", "bar", "measured", "met"))
    for bar in BARS:
        value, met = verdict(bar, measured)
        table.add_row(
            bar.name,
            bar.unit,
            "-" if bar.bound is None else f"{'≤' if bar.at_most else '≥'} {bar.bound:,}",
            "not measured" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}",
            "-" if met is None else "[green]yes[/green]" if met else "[red]no[/red]",
        )
    return table


def _table(title: str, *columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for names in columns:
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
    return table


def _ms(spread: Spread) -> tuple[str, str]:
    return ("-", "-") if not spread.count else (f"{spread.p50:.1f}", f"{spread.p99:.1f}")
