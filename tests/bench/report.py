"""The tables of `make bench`."""

import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from bench.measured import LOAD, UPSTREAM, Measured
from bench.results import Result
from bench.targets import Verdict

_WIDTH = 170
_NONE = "-"


def print_report(measured: Sequence[Measured], verdicts: Sequence[Verdict] | None) -> None:
    """Print all tables; without verdicts, as for a peer, not the last."""
    console = Console(file=sys.stdout, width=_WIDTH)
    console.print(_calls(measured))
    if any(one.ours for one in measured):
        console.print(_cpu(measured))
        console.print(_memory(measured))
    console.print(_direct(measured))
    for one in measured:
        for where, result in (("through the gateway", one.through), ("direct", one.direct)):
            for line in _failures(result):
                console.print(f"{one.scenario}, {where}: {line}", style="red", markup=False)
    if verdicts is not None:
        console.print(_targets(verdicts))


def _calls(measured: Iterable[Measured]) -> Table:
    table = _table(
        "Through the gateway (ms; added = less the same figure direct; asked = requests seen upstream)",
        ("rate/s", "ok", "failed", "credits", "asked", "p50", "p99", "first p50", "first p99"),
        ("+p50", "+p99", "+first", "stall p99", "stall max", "in text"),
    )
    for one in measured:
        through = one.through
        stalls = through.stall.count > 0
        table.add_row(
            one.scenario,
            f"{one.rate_per_s:,.0f}",
            f"{through.total.ok:,}",
            _flag(one.failures),
            f"{through.total.with_credits:,}",
            _asked(one),
            *_times(through),
            *(_ms(v) for v in (one.added_p50_ms, one.added_p99_ms, one.added_first_p50_ms)),
            *(_ms(v if stalls else None) for v in (through.stall.p99, through.stall.max, through.stall_in_text.max)),
        )
    return table


def _cpu(measured: Sequence[Measured]) -> Table:
    names = [name for name in measured[0].cpu_s if name not in {LOAD, UPSTREAM}]
    table = _table("CPU, µs a call (elsewhere = share of the machine used by others)", names, ("ours", "all"))
    for column in (UPSTREAM, LOAD, "elsewhere"):
        table.add_column(column, justify="right")
    for one in measured:
        columns = [(name,) for name in names] + [one.ours, one.everything, (UPSTREAM,), (LOAD,)]
        table.add_row(one.scenario, *(_us(one.cpu_ms_per_call(column)) for column in columns), f"{one.elsewhere:.0%}")
    return table


def _memory(measured: Sequence[Measured]) -> Table:
    names = list(measured[0].memory_mb)
    table = _table("Memory at the end of each, MB resident (postgres: shared pages once)", names, ("ours",))
    for one in measured:
        ours = one.our_memory_mb
        table.add_row(
            one.scenario,
            *(f"{one.memory_mb.get(name, 0):.0f}" for name in names),
            _NONE if ours is None else f"{ours:.0f}",
        )
    return table


def _direct(measured: Iterable[Measured]) -> Table:
    table = _table(
        "Direct to the mock upstream: what can be measured at most",
        ("rate/s", "ok", "failed", "p50", "p99", "first p50", "first p99", "stall p99", "stall max"),
        ("upstream µs", "load µs", "elsewhere"),
    )
    for one in measured:
        direct = one.direct
        answers = direct.window.ok
        stalls = direct.stall.count > 0
        table.add_row(
            one.scenario,
            f"{answers / direct.seconds:,.0f}",
            f"{direct.total.ok:,}",
            _flag(one.direct_failures),
            *_times(direct),
            *(_ms(v if stalls else None) for v in (direct.stall.p99, direct.stall.max)),
            *(_us(1000 * one.direct_cpu_s[n] / answers if answers else None) for n in (UPSTREAM, LOAD)),
            f"{one.direct_elsewhere:.0%}",
        )
    return table


def _targets(verdicts: Iterable[Verdict]) -> Table:
    table = _table("Against the design", ("unit", "floor", "aim", "measured", "floor met", "aim met"))
    for verdict in verdicts:
        target = verdict.target
        sign = "≤" if target.at_most else "≥"
        value = verdict.measured
        table.add_row(
            target.name,
            target.unit,
            f"{sign} {target.floor:,}",
            f"{sign} {target.aim:,}",
            "not measured" if value is None else _figure(value),
            _met(verdict.floor_met, verdict.failures),
            _met(verdict.aim_met, verdict.failures),
        )
    return table


def _table(title: str, *columns: Iterable[str]) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, min_width=len(title)
    )
    table.add_column("", no_wrap=True)
    for names in columns:
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
    return table


def _failures(result: Result) -> list[str]:
    lines = [
        f"{count:,} times {fault}" + (f", such as: …{result.examples[fault]}" if fault in result.examples else "")
        for fault, count in sorted(result.total.failed.items())
    ]
    if result.connect_failures:
        lines.append(f"{result.connect_failures:,} times no connection")
    return lines


def _times(result: Result) -> list[str]:
    if not result.window.ok:
        return [_NONE] * 4
    return [_ms(v) for v in (result.latency.p50, result.latency.p99, result.first.p50, result.first.p99)]


def _asked(one: Measured) -> str:
    """The upstream is asked once for each good call; more is a retry, fewer a cache."""
    total = one.through.total
    same = total.ok <= one.upstream_asked <= total.ok + one.failures
    return f"{one.upstream_asked:,}" if same else f"[red]{one.upstream_asked:,} ![/red]"


def _flag(failures: int) -> str:
    return f"[red]{failures:,}[/red]" if failures else "0"


def _met(met: bool | None, failures: int) -> str:
    if met is None:
        return _NONE
    if failures:
        return f"[red]no: {failures:,} failed[/red]"
    return "[green]yes[/green]" if met else "[red]no[/red]"


def _ms(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}"


def _us(milliseconds: float | None) -> str:
    return _NONE if milliseconds is None else f"{1000 * milliseconds:,.0f}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
