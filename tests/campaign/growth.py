"""I13: memory and file descriptors of each process stay bounded, from its start to its death, by what /proc says.

A life is judged from the moment on at which it is warm: imports, pools, caches and tokenizers are there. Growth is the
median of its last quarter over that of its first, so that a burst is none. One bound for every life, however short:
what leaks by the call shows in the longest ones.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

MIB: Final = 2**20
WARM_S: Final = 10.0
"""From then on a process has all that it needs for any call."""
_SAMPLES_MIN: Final = 12
"""Fewer after that tell no growth from noise: three on each side."""
_SHARE: Final = 0.1
"""What I13 allows: a tenth above the start."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class Bound:
    """Growth that is no leak although it is more than a tenth."""

    rss: int
    """Bytes."""
    fds: int


BOUND: Final = Bound(12 * MIB, 32)
"""Arenas that the allocator keeps after a burst; a connection for each of two dozen clients, when a twin has died."""
BOUNDS: Final[Mapping[str, Bound]] = {
    "nats": Bound((256 + 64) * MIB, 64),  # its stream in memory holds a quarter of a GiB, by its limit
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One look."""

    at: float
    """Monotonic seconds."""
    rss: int
    """Bytes."""
    fds: int


@dataclass(slots=True)
class Life:
    """One process from its start to its death."""

    name: str
    samples: list[Sample] = field(default_factory=list)

    def growth(self, of: Callable[[Sample], int]) -> tuple[float, float] | None:
        """What it had when it was warm, and how much more in the end; None for a life too short to tell."""
        warm = [of(sample) for sample in self.samples if sample.at - self.samples[0].at >= WARM_S]
        if len(warm) < _SAMPLES_MIN:
            return None
        quarter = len(warm) // 4
        begun = median(warm[:quarter])
        return begun, median(warm[-quarter:]) - begun

    def violations(self) -> Iterable[str]:
        """What has grown beyond a tenth and beyond its bound."""
        bound = BOUNDS.get(self.name, BOUND)
        for what, of, allowed, unit in (
            ("MiB of memory", _rss, bound.rss, MIB),
            ("file descriptors", _fds, bound.fds, 1),
        ):
            found = self.growth(of)
            if found is not None and found[1] > max(_SHARE * found[0], allowed):
                begun, more = found[0] / unit, found[1] / unit
                seconds = self.samples[-1].at - self.samples[0].at
                yield f"I13, {self.name}: from {begun:.0f} to {begun + more:.0f} {what} in a life of {seconds:.0f} s"


@dataclass(slots=True)
class Vitals:
    """Looks at every process that runs."""

    running: Callable[[], Mapping[str, int]]
    """Name → pid."""
    lives: dict[tuple[str, int], Life] = field(default_factory=dict)

    async def run(self, every_s: float) -> None:
        """For ever."""
        while True:
            self.look()
            await asyncio.sleep(every_s)

    def look(self) -> None:
        """Once; what is just dying is passed over."""
        for name, pid in self.running().items():
            sample = _sample(pid)
            if sample is not None:
                self.lives.setdefault((name, pid), Life(name)).samples.append(sample)

    def violations(self) -> list[str]:
        """Of every life."""
        return [words for life in self.lives.values() for words in life.violations()]

    def figures(self) -> dict[str, str]:
        """By name: the most that a life had, and the most that one has grown by since it was warm."""
        by_name: dict[str, list[Life]] = {}
        for life in self.lives.values():
            by_name.setdefault(life.name, []).append(life)
        return {f"{name}, RSS and descriptors": _most(lives) for name, lives in sorted(by_name.items())}


def _most(lives: list[Life]) -> str:
    rss = max(sample.rss for life in lives for sample in life.samples)
    fds = max(sample.fds for life in lives for sample in life.samples)
    grown = [
        (of_rss[1], of_fds[1]) for life in lives if (of_rss := life.growth(_rss)) and (of_fds := life.growth(_fds))
    ]
    most = f"at most {rss / MIB:.0f} MiB and {fds}"
    if not grown:
        return f"{most}; {len(lives)} lives, none long enough to judge"
    more, more_fds = max(one[0] for one in grown), max(one[1] for one in grown)
    return f"{most}; grown by {more / MIB:+.1f} MiB and {more_fds:+.0f} at most in {len(grown)} of {len(lives)} lives"


def _sample(pid: int) -> Sample | None:
    try:
        resident = int((_PROC / str(pid) / "statm").read_text().split()[1])
        fds = sum(1 for _ in (_PROC / str(pid) / "fd").iterdir())
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return None
    return Sample(time.monotonic(), resident * _PAGE, fds)


def _rss(sample: Sample) -> int:
    return sample.rss


def _fds(sample: Sample) -> int:
    return sample.fds
