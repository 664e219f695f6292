"""Named points at which a test lets a process die, stop or wait; inert unless `HUB_FAIL` is set.

`HUB_FAIL` = comma-separated `point:action[:key=value…]`, e.g. `metering.after_commit:kill:after=3`.
Actions: `kill` (SIGKILL to the own process), `stop` (SIGSTOP, until somebody continues it), `raise` (ConnectionError).
Keys: `after=N` skips the first N hits; `times=N` acts at most N times (default 1, `raise` without bound);
`p=0.01` acts with that probability; `with=TEXT` acts only where a message has this text (`hit_with`).
"""

import asyncio
import os
import random
import signal
import sys
from dataclasses import dataclass

_UNBOUNDED = 1 << 30


@dataclass(slots=True)
class _Point:
    action: str
    after: int = 0
    times: int = 1
    p: float = 1.0
    text: bytes = b""


_points: dict[str, _Point] = {}


def arm(text: str) -> None:
    """Arm the points of one `HUB_FAIL` text.

    Raises:
        ValueError: unknown action or malformed text.
    """
    _points.clear()
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, action, *options = item.split(":")
        if action not in {"kill", "stop", "raise"}:
            raise ValueError(f"HUB_FAIL: unknown action {action!r}")
        point = _Point(action, times=_UNBOUNDED if action == "raise" else 1)
        for option in options:
            key, _, value = option.partition("=")
            if key == "after":
                point.after = int(value)
            elif key == "times":
                point.times = int(value)
            elif key == "p":
                point.p = float(value)
            elif key == "with":
                point.text = value.encode()
            else:
                raise ValueError(f"HUB_FAIL: unknown option {key!r}")
        _points[name] = point


def hit(name: str) -> None:
    """Pass a point. Costs one look-up in an empty dict when nothing is armed.

    Raises:
        ConnectionError: the point is armed with `raise`.
    """
    if not _points:
        return
    point = _points.get(name)
    if point is None or point.times <= 0 or random.random() >= point.p:  # noqa: S311 - no secret
        return
    if point.after > 0:
        point.after -= 1
        return
    point.times -= 1
    sys.stderr.write(f"failpoint {name}: {point.action}\n")
    sys.stderr.flush()
    if point.action == "raise":
        raise ConnectionError(f"failpoint {name}")
    os.kill(os.getpid(), signal.SIGKILL if point.action == "kill" else signal.SIGSTOP)


def hit_with(name: str, message: bytes) -> None:
    """Pass a point with a message: it acts only on one that has the point's text.

    Raises:
        ConnectionError: the point is armed with `raise`.
    """
    if _points and (point := _points.get(name)) is not None and point.text in message:
        hit(name)


def hit_written(name: str) -> None:
    """Pass a point once everything sent in this turn of the event loop has been written to its socket.

    A kill right behind `Bus.send` would take along what was sent; this one is that of a process whose message is out.
    """
    if _points:
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, hit, name)  # the first turn hands it to the transport, the second has it out
