"""The arithmetic of the tables: percentiles, gaps between arrivals, stalls. Pure."""

import math
from collections.abc import Sequence

import msgspec


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """How a set of durations is spread; milliseconds, all 0 when there are none."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile of ascending values: always one that was measured.

    Raises:
        ValueError: no values, or `percent` is not in (0, 100].
    """
    if not ordered or not 0 < percent <= 100:
        message = f"no percentile {percent} of {len(ordered)} values"
        raise ValueError(message)
    return ordered[math.ceil(percent / 100 * len(ordered)) - 1]


def spread(durations_s: Sequence[float]) -> Spread:
    """Summarise durations given in seconds, in any order."""
    if not durations_s:
        return Spread(count=0, mean=0.0, p50=0.0, p90=0.0, p99=0.0, max=0.0)
    ordered = sorted(durations_s)
    return Spread(
        count=len(ordered),
        mean=1000 * math.fsum(ordered) / len(ordered),
        p50=1000 * percentile(ordered, 50),
        p90=1000 * percentile(ordered, 90),
        p99=1000 * percentile(ordered, 99),
        max=1000 * ordered[-1],
    )


def stall_s(gap_s: float, pace_per_s: float) -> float:
    """Return how much longer than its pace a stream was silent; never below 0."""
    return max(0.0, gap_s - 1 / pace_per_s)


class GapMeter:
    """The longest gap between consecutive arrivals of one stream, in seconds.

    `longest` counts every gap; `longest_before_last` leaves out the last one, which in a
    gateway that holds the end back until the books are closed is not silence within the text.
    """

    __slots__ = ("_at", "longest", "longest_before_last")

    def __init__(self) -> None:
        self._at: float | None = None
        self.longest = 0.0
        self.longest_before_last = 0.0

    def arrived(self, at: float) -> None:
        """Note that something arrived at `at`, on a monotonic clock."""
        self.longest_before_last = self.longest
        if self._at is not None and at - self._at > self.longest:
            self.longest = at - self._at
        self._at = at
