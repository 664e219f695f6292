"""CPU and memory of processes, from /proc (Linux).

A name stands for one or more processes with all their threads and descendants: PostgreSQL is its
postmaster. Descendants with a name of their own count only there. A child that ends between two
looks is not lost: its parent keeps its time.
"""

import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

Processes = Mapping[str, Sequence[int]]
"""Names and the process ids they stand for."""

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PROC: Final = Path("/proc")
_BUSY_COLUMNS: Final = (0, 1, 2, 5, 6, 7)
"""user, nice, system, irq, softirq, steal of the first line of /proc/stat; guests are in user."""


class ProcessGoneError(RuntimeError):
    """A process that was to be measured is not there."""


@dataclass(frozen=True)
class Stat:
    """One process as /proc/<pid>/stat has it; seconds of CPU, user and system together."""

    parent: int
    own_s: float
    reaped_s: float
    """Of its descendants that have ended and were waited for."""


@dataclass(frozen=True)
class Snapshot:
    """CPU used so far, in seconds.

    Attributes:
        at: monotonic clock.
        cpu_s: by name.
        machine_s: all that the machine's cores were busy, steal included.
    """

    at: float
    cpu_s: dict[str, float]
    machine_s: float


@dataclass(frozen=True)
class Memory:
    """Resident memory of one name, in bytes; `pss` shares shared pages out among their users."""

    rss: int
    pss: int


def parse_stat(text: str) -> Stat:
    """Parse /proc/<pid>/stat; the command in parentheses may hold spaces and parentheses."""
    fields = text[text.rindex(")") + 2 :].split()
    ticks = [int(field) for field in fields[11:15]]
    return Stat(
        parent=int(fields[1]),
        own_s=(ticks[0] + ticks[1]) / _TICKS_PER_S,
        reaped_s=(ticks[2] + ticks[3]) / _TICKS_PER_S,
    )


def snapshot(processes: Processes) -> Snapshot:
    """Look at all named processes now.

    Raises:
        ProcessGoneError: one of them has ended.
    """
    stats = _read_all()
    children = _children(stats, {pid for pids in processes.values() for pid in pids})
    cpu_s: dict[str, float] = {}
    for name, pids in processes.items():
        members = [member for pid in pids for member in _tree(name, pid, stats, children)]
        cpu_s[name] = sum(stats[pid].own_s + stats[pid].reaped_s for pid in members)
    return Snapshot(at=time.monotonic(), cpu_s=cpu_s, machine_s=_machine_s())


def cpu_between(earlier: Snapshot, later: Snapshot) -> dict[str, float]:
    """Return the seconds of CPU by name between two looks at the same names."""
    return {name: later.cpu_s[name] - used for name, used in earlier.cpu_s.items()}


def elsewhere_between(earlier: Snapshot, later: Snapshot) -> float:
    """Return the seconds of CPU that the machine spent on anything not named; not below 0."""
    named = sum(cpu_between(earlier, later).values())
    return max(0.0, later.machine_s - earlier.machine_s - named)


def memory(processes: Processes) -> dict[str, Memory]:
    """Return the memory of each name now.

    Raises:
        ProcessGoneError: one of them has ended.
    """
    stats = _read_all()
    children = _children(stats, {pid for pids in processes.values() for pid in pids})
    found: dict[str, Memory] = {}
    for name, pids in processes.items():
        parts = [_memory_of(m) for pid in pids for m in _tree(name, pid, stats, children)]
        found[name] = Memory(rss=sum(p.rss for p in parts), pss=sum(p.pss for p in parts))
    return found


def _read_all() -> dict[int, Stat]:
    stats: dict[int, Stat] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                stats[int(entry.name)] = parse_stat((entry / "stat").read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue  # It ended between the listing and the look; its parent has its time.
    return stats


def _children(stats: Mapping[int, Stat], named: set[int]) -> dict[int, list[int]]:
    children: dict[int, list[int]] = defaultdict(list)
    for pid, stat in stats.items():
        if pid not in named:
            children[stat.parent].append(pid)
    return children


def _tree(name: str, root: int, stats: Mapping[int, Stat], children: Mapping[int, list[int]]) -> list[int]:
    if root not in stats:
        message = f"{name} (process {root}) has ended"
        raise ProcessGoneError(message)
    members = [root]
    for pid in members:
        members.extend(children.get(pid, ()))
    return members


def _machine_s() -> float:
    columns = (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(int(columns[index]) for index in _BUSY_COLUMNS) / _TICKS_PER_S


def _memory_of(pid: int) -> Memory:
    try:
        text = (_PROC / str(pid) / "smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return Memory(rss=0, pss=0)  # It ended; it uses none.
    kilobytes = {line.split(":")[0]: line.split()[1] for line in text.splitlines()[1:]}
    if "Rss" not in kilobytes:
        return Memory(rss=0, pss=0)  # A process that is ending has no memory map any more.
    return Memory(rss=1024 * int(kilobytes["Rss"]), pss=1024 * int(kilobytes["Pss"]))
