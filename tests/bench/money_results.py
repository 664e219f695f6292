"""What one run of the money load generator found, told as JSON."""

import resource
import time
from array import array
from collections import Counter

import msgspec

from bench.figures import Spread, spread


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies of the hot account's calls, or of all others; milliseconds.

    `reserve` is from when a call was due until metering's answer, `whole` until the gateway heard that it is settled.
    """

    reserve: Spread
    whole: Spread


class Spent(msgspec.Struct):
    """What the books must say of one account."""

    calls: int = 0
    tokens: int = 0


class MoneyResult(msgspec.Struct, frozen=True, kw_only=True):
    """One run.

    Attributes:
        settled: calls that were settled within the window; closed loops and backlogs count by this.
        started: calls that were asked for in the whole run.
        wrong: what must not be, by what it was; whole run.
        repeated: notices of calls that had one before: allowed, since messages may come twice.
        spent: by account, over the whole run.
        cpu_s: of the load generator itself within the window.
    """

    seconds: float
    settled: int
    started: int
    wrong: dict[str, int]
    repeated: int
    hot: Group
    others: Group
    spent: dict[str, Spent]
    cpu_s: float


class Notes:
    """Counts while a run goes on; hot calls are told apart."""

    def __init__(self) -> None:
        self.started = 0
        self.repeated = 0
        self.wrong: Counter[str] = Counter()
        self.spent: dict[str, Spent] = {}
        self._settled = 0
        self._reserve = {False: array("d"), True: array("d")}
        self._whole = {False: array("d"), True: array("d")}
        self._opened_at = float("inf")
        self._closed_at = float("inf")
        self._cpu_s = 0.0

    def open_window(self, now: float) -> None:
        """From now on everything counts."""
        self._opened_at = now
        self._cpu_s = -_cpu_s()

    def close_window(self, now: float) -> None:
        """From now on nothing counts but what was due before."""
        self._closed_at = now
        self._cpu_s += _cpu_s()

    def reserved(self, due_at: float, now: float, *, hot: bool) -> None:
        """A call was admitted."""
        if self._opened_at <= due_at < self._closed_at:
            self._reserve[hot].append(now - due_at)

    def settled(self, account: str, tokens: int, due_at: float, now: float, *, hot: bool) -> None:
        """A call was charged."""
        spent = self.spent.setdefault(account, Spent())
        spent.calls += 1
        spent.tokens += tokens
        if self._opened_at <= now < self._closed_at:
            self._settled += 1
        if self._opened_at <= due_at < self._closed_at:
            self._whole[hot].append(now - due_at)

    def result(self) -> MoneyResult:
        """Everything, once the window is closed."""
        return MoneyResult(
            seconds=self._closed_at - self._opened_at,
            settled=self._settled,
            started=self.started,
            wrong=dict(self.wrong),
            repeated=self.repeated,
            hot=self._group(hot=True),
            others=self._group(hot=False),
            spent=self.spent,
            cpu_s=self._cpu_s,
        )

    def _group(self, *, hot: bool) -> Group:
        return Group(reserve=spread(self._reserve[hot]), whole=spread(self._whole[hot]))


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def now() -> float:
    """The clock of all these times."""
    return time.monotonic()
