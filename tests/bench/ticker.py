"""A timer that counts in microseconds, for arrivals on a fixed schedule (Linux).

The event loop's own timers are whole milliseconds, coarser than 1,500 requests a second need.
"""

import ctypes
import os
import time
from typing import Final

_CLOCK_MONOTONIC: Final = 1
_NONBLOCK_CLOEXEC: Final = os.O_NONBLOCK | os.O_CLOEXEC
_NS: Final = 1_000_000_000


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Ticker:
    """A file descriptor that becomes readable `per_s` times a second from `started_at` on.

    Attributes:
        started_at: monotonic clock; tick n, from 0, is due at `due_at(n)`.
    """

    def __init__(self, per_s: float) -> None:
        self._interval_ns = round(_NS / per_s)
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        interval = _Timespec(*divmod(self._interval_ns, _NS))
        self._started_ns = time.monotonic_ns()
        self.started_at = self._started_ns / _NS
        spec = _Itimerspec(interval, interval)
        if libc.timerfd_settime(self.fd, 0, ctypes.byref(spec), None) < 0:
            os.close(self.fd)
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def due_at(self, tick: int) -> float:
        """Return when a tick is due, on the monotonic clock."""
        return (self._started_ns + (tick + 1) * self._interval_ns) / _NS

    def elapsed(self) -> int:
        """Return how many ticks have come since the last time this was asked."""
        try:
            return int.from_bytes(os.read(self.fd, 8), "little")
        except BlockingIOError:
            return 0

    def close(self) -> None:
        """Stop ticking."""
        os.close(self.fd)
