"""Whether Payment Kit is asked at all: after failures in a row it is left alone, then tried with one call."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

FAILURES_MAX: Final = 4
_FIRST_PAUSE_S: Final = 0.5
_PAUSE_MAX_S: Final = 60.0


def backoff_s(tries: int, longest_s: float, jitter: Callable[[], float] = random.random) -> float:
    """Wait before the next try: doubled each time, up to a bound, and half of it up to chance."""
    bound: float = min(longest_s, _FIRST_PAUSE_S * 2 ** min(tries, 20))
    return bound * (0.5 + jitter() / 2)


@dataclass(slots=True)
class Circuit:
    """The circuit of one process. Times are those of the event loop's clock."""

    clock: Callable[[], float]
    longest_s: float = _PAUSE_MAX_S
    _failures: int = 0
    _opened: int = 0
    """How often it opened since the last success."""
    _until: float = 0.0
    _probing: bool = False

    @property
    def is_closed(self) -> bool:
        """All is well."""
        return self._failures < FAILURES_MAX and self.clock() >= self._until

    @property
    def wait_s(self) -> float:
        """Until the next call may be made."""
        return max(0.0, self._until - self.clock())

    def admits(self, wanted: int) -> int:
        """How many calls may be made now: all, one that shall show whether it works again, or none.

        Whoever was admitted says `succeeded`, `failed` or `unused` afterwards.
        """
        if self.clock() < self._until:
            return 0
        if self._failures < FAILURES_MAX:
            return wanted
        if self._probing:
            return 0
        self._probing = True
        return 1

    def succeeded(self) -> None:
        """An answer came that shows Payment Kit at work."""
        self._failures = self._opened = 0
        self._until = 0.0
        self._probing = False

    def unused(self) -> None:
        """Nothing was asked after all, or nothing was learnt: somebody else may try."""
        self._probing = False

    def failed(self, retry_after_s: float = 0.0) -> None:
        """No answer, or one of a Payment Kit that is not well."""
        self._failures += 1
        self._probing = False
        if retry_after_s:
            self._until = max(self._until, self.clock() + retry_after_s)
        if self._failures >= FAILURES_MAX and self.clock() >= self._until:
            self._until = self.clock() + backoff_s(self._opened, self.longest_s)
            self._opened += 1
