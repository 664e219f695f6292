"""Loaded at start by a process that has this folder in PYTHONPATH: its wall clock is `TEST_CLOCK_STEP_S` off.

The monotonic clock goes on as it is, as after a step of a host's clock.
"""

import datetime as dt
import os
import time

_STEP_S = float(os.environ.get("TEST_CLOCK_STEP_S", "0"))
_time, _time_ns = time.time, time.time_ns


_datetime = dt.datetime


class _AnyDatetime(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _datetime)


class _Stepped(_datetime, metaclass=_AnyDatetime):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
        return dt.datetime.fromtimestamp(_time() + _STEP_S, tz)

    @classmethod
    def utcnow(cls) -> dt.datetime:
        return dt.datetime.fromtimestamp(_time() + _STEP_S, dt.UTC).replace(tzinfo=None)


if _STEP_S:
    time.time = lambda: _time() + _STEP_S
    time.time_ns = lambda: _time_ns() + int(_STEP_S * 1e9)
    dt.datetime = _Stepped  # type: ignore[misc]
