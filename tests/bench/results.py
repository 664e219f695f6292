"""What a run of the load generator found: counted while it runs, told as JSON."""

import resource
from array import array
from typing import Final

import msgspec

from bench.answers import fault_of, has_credits
from bench.client import Connection
from bench.figures import Spread, spread, stall_s

_EXAMPLE_BYTES: Final = 300


class Tally(msgspec.Struct):
    """Requests by their end; `sent` = `ok` + all of `failed`, once every request has ended."""

    sent: int = 0
    ok: int = 0
    """Status 200 and every piece of the answer there, once."""
    with_credits: int = 0
    """Of `ok`: told what it cost."""
    failed: dict[str, int] = msgspec.field(default_factory=dict)
    """By reason: the status, or what was wrong with the answer or the connection."""

    def fail(self, fault: str) -> None:
        """Count one failed request."""
        self.failed[fault] = self.failed.get(fault, 0) + 1

    @property
    def failures(self) -> int:
        """Requests that failed, for any reason."""
        return sum(self.failed.values())


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One run.

    `window` and all durations are of the measured window: in a closed loop what ended in it, in
    an open loop what was due in it. `total` has warm-up and the last answers after it as well.
    """

    seconds: float
    window: Tally
    total: Tally
    latency: Spread
    """From sending (open loop: from when it was due) to the last byte; good answers only."""
    first: Spread
    """To the first event of a stream, or first byte of another body."""
    stall: Spread
    """Of each paced stream: its longest silence beyond the pace, the one before the end too."""
    stall_in_text: Spread
    """The same without the last silence."""
    lag: Spread
    """Open loop: how much later than due a request was sent."""
    cpu_s: float
    """Of the load generator itself, in the window."""
    connections: int
    connect_failures: int
    examples: dict[str, str] = msgspec.field(default_factory=dict)
    """The end of the first answer with each fault, so that a failure can be explained."""


class Recorder:
    """Counts the ends of requests and keeps the durations of those in the window."""

    def __init__(self, *, stream: bool, pieces: int, pace_per_s: float, open_loop: bool) -> None:
        self._stream = stream
        self._pieces = pieces
        self._pace_per_s = pace_per_s
        self._open_loop = open_loop
        self._from = float("inf")
        self._to = float("inf")
        self._cpu_s = 0.0
        self._latencies = array("d")
        self._firsts = array("d")
        self._stalls = array("d")
        self._stalls_in_text = array("d")
        self._lags = array("d")
        self.window = Tally()
        self.total = Tally()
        self.connections = 0
        self.connect_failures = 0
        self._examples: dict[str, str] = {}

    def open_window(self, at: float) -> None:
        """Begin to measure."""
        self._from = at
        self._cpu_s = _own_cpu_s()

    def close_window(self, at: float) -> None:
        """Measure nothing that belongs to a later moment."""
        self._to = at
        self._cpu_s = _own_cpu_s() - self._cpu_s

    def sent(self) -> None:
        """Count a request that goes out."""
        self.total.sent += 1

    def answered(self, connection: Connection) -> None:
        """Judge a whole answer and count it."""
        body = connection.body
        fault = fault_of(connection.status, body, stream=self._stream, pieces=self._pieces)
        if fault is not None:
            self._examples.setdefault(fault, body[-_EXAMPLE_BYTES:].decode(errors="replace"))
            self.failed(fault, due_at=connection.due_at, ended_at=connection.ended_at)
            return
        credits_told = has_credits(body)
        self.total.ok += 1
        self.total.with_credits += credits_told
        if not self._in_window(connection.due_at, connection.ended_at):
            return
        self.window.sent += 1
        self.window.ok += 1
        self.window.with_credits += credits_told
        self._latencies.append(connection.ended_at - connection.due_at)
        self._firsts.append(connection.first_at - connection.due_at)
        if self._pace_per_s:
            gaps = connection.gaps
            self._stalls.append(stall_s(gaps.longest, self._pace_per_s))
            self._stalls_in_text.append(stall_s(gaps.longest_before_last, self._pace_per_s))
        if self._open_loop:
            self._lags.append(connection.sent_at - connection.due_at)

    def failed(self, fault: str, *, due_at: float, ended_at: float) -> None:
        """Count a request that was sent and did not get its whole good answer."""
        self.total.fail(fault)
        if self._in_window(due_at, ended_at):
            self.window.sent += 1
            self.window.fail(fault)

    def result(self) -> Result:
        """Summarise; after the last answer."""
        return Result(
            seconds=self._to - self._from,
            window=self.window,
            total=self.total,
            latency=spread(self._latencies),
            first=spread(self._firsts),
            stall=spread(self._stalls),
            stall_in_text=spread(self._stalls_in_text),
            lag=spread(self._lags),
            cpu_s=self._cpu_s,
            connections=self.connections,
            connect_failures=self.connect_failures,
            examples=self._examples,
        )

    def _in_window(self, due_at: float, ended_at: float) -> bool:
        return self._from <= (due_at if self._open_loop else ended_at) < self._to


def _own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
