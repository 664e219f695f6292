"""The load generator, its own process: many clients against one OpenAI-compatible URL.

Closed loop: each of C clients asks again as soon as it has its answer. Open loop: requests are
due on a fixed schedule whatever the answers do, and latency counts from when they were due.
Prints one JSON object; with `--announce` a line before it at both ends of the measured window.
"""

import asyncio
import gc
import itertools
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
import uvloop

from bench.answers import JSON_PIECES, pieces_of_stream, question
from bench.client import Connection, render_request
from bench.options import Options, parse
from bench.replies import plan_of
from bench.results import Recorder, Result
from bench.ticker import Ticker

WINDOW_OPENS: Final = "window opens"
WINDOW_CLOSES: Final = "window closes"
_CONNECT_RETRY_S: Final = 0.1
_SWEEP_S: Final = 0.25
_CONNECTIONS_MAX: Final = 2_048
_GOLDEN: Final = 0.618033988749895


class Load:
    """What both loops share: connections, the window, the end."""

    def __init__(self, options: Options) -> None:
        plan = plan_of(options.model)
        if plan is None:
            message = f"{options.model!r} is no model of the mock upstream"
            raise ValueError(message)
        pieces = pieces_of_stream(plan.chunks) if options.stream else JSON_PIECES
        self._options = options
        self._pace_per_s = plan.pace_per_s if options.stream else 0
        body = question(options.model, stream=options.stream)
        self._requests = itertools.cycle([render_request(options.target, key, body) for key in options.keys])
        self.recorder = Recorder(
            stream=options.stream,
            pieces=pieces,
            pace_per_s=self._pace_per_s,
            open_loop=options.rate_per_s > 0,
        )
        self._connections: set[Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._ended = False
        self._over = asyncio.Event()
        self._quiet = asyncio.Event()
        self._all_lost = asyncio.Event()
        self._ended_before = 0
        self._progress_at = 0.0
        self._bug: BaseException | None = None

    async def run(self) -> Result:
        """Warm up, measure, wait for the last answers.

        Raises:
            Exception: whatever a callback raised; figures of such a run are worth nothing.
        """
        asyncio.get_running_loop().set_exception_handler(self._callback_raised)
        self._progress_at = time.monotonic()
        sweep = asyncio.create_task(self._sweep())
        self._start()
        await asyncio.sleep(self._options.warmup_s)
        self._open_window()
        if self._options.requests:
            await self._over.wait()
        else:
            await asyncio.sleep(self._options.seconds)
        self._close_window()
        await self._drain()
        sweep.cancel()
        if self._bug is not None:
            raise self._bug
        return self.recorder.result()

    def opened(self, connection: Connection) -> None:
        """Put a new connection to use."""
        if self._ended:
            connection.close()
            return
        self._connections.add(connection)
        self.recorder.connections += 1
        self._ready(connection)

    def answered(self, connection: Connection) -> None:
        """Count an answer and put the connection to use again."""
        self.recorder.answered(connection)
        if connection.is_open:
            self._ready(connection)
        self._check_over()

    def lost(self, connection: Connection, fault: str | None) -> None:
        """Count a request that went down with its connection, and replace the connection."""
        self._connections.discard(connection)
        if fault is not None:
            self.recorder.failed(fault, due_at=connection.due_at, ended_at=time.monotonic())
        self._dropped(connection)
        self._check_over()
        if not self._stopping:
            self._connect()
        elif self._ended and not self._connections:
            self._all_lost.set()

    def _start(self) -> None:
        raise NotImplementedError

    def _ready(self, connection: Connection) -> None:
        raise NotImplementedError

    def _dropped(self, connection: Connection) -> None:
        raise NotImplementedError

    def _unsent(self) -> Sequence[float]:
        raise NotImplementedError

    def _ask(self, connection: Connection, due_at: float | None = None) -> None:
        connection.is_stream = self._options.stream
        self.recorder.sent()
        connection.ask(next(self._requests), due_at)

    def _connect(self, after_s: float = 0.0) -> None:
        task = asyncio.create_task(self._connect_after(after_s))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect_after(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        loop = asyncio.get_running_loop()
        target = self._options.target
        while not self._stopping:
            try:
                await loop.create_connection(
                    lambda: Connection(self, measures_gaps=self._pace_per_s > 0),
                    target.host,
                    target.port,
                )
            except OSError:
                self.recorder.connect_failures += 1
                await asyncio.sleep(_CONNECT_RETRY_S)
            else:
                return

    def _open_window(self) -> None:
        self.recorder.open_window(time.monotonic())
        self._announce(WINDOW_OPENS)

    def _close_window(self) -> None:
        self._announce(WINDOW_CLOSES)
        self.recorder.close_window(time.monotonic())
        self._stopping = True

    def _announce(self, event: str) -> None:
        if self._options.announce:
            _print_line(msgspec.json.encode({"event": event}))

    def _check_over(self) -> None:
        total = self.recorder.total
        if self._options.requests and total.ok + total.failures >= self._options.requests:
            self._over.set()
        if self._stopping and self._is_quiet():
            self._quiet.set()

    def _check_progress(self) -> None:
        """Let a run of so many requests end short when nothing ends any more."""
        ended = self.recorder.total.ok + self.recorder.total.failures
        if ended != self._ended_before:
            self._ended_before = ended
            self._progress_at = time.monotonic()
        elif time.monotonic() - self._progress_at > 2 * self._options.timeout_s:  # Single time-outs end by themselves.
            self._over.set()

    def _callback_raised(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._bug = context.get("exception") or RuntimeError(context["message"])
        loop.default_exception_handler(context)
        self._over.set()

    async def _sweep(self) -> None:
        """Give up on answers that take too long: one look for all, not a timer for each."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._check_progress()
            oldest = time.monotonic() - self._options.timeout_s
            for connection in tuple(self._connections):
                if connection.busy and connection.sent_at < oldest:
                    connection.abandon("timeout")

    async def _drain(self) -> None:
        """Wait for the answers under way; what is not there in time has failed."""
        if self._is_quiet():
            self._quiet.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), self._options.timeout_s)
        self._ended = True
        for due_at in self._unsent():
            self.recorder.sent()
            self.recorder.failed("never sent", due_at=due_at, ended_at=time.monotonic())
        for connection in tuple(self._connections):
            if connection.busy:
                connection.abandon("timeout")
            else:
                connection.close()
        for task in tuple(self._connecting):
            task.cancel()
        if self._connections:
            await self._all_lost.wait()

    def _is_quiet(self) -> bool:
        return self._stopping and not self._unsent() and not any(c.busy for c in self._connections)


class ClosedLoop(Load):
    """Each client asks again as soon as it has its answer."""

    def _start(self) -> None:
        for number in range(self._options.clients):
            # Golden steps fill any span evenly, so paced streams don't beat in step.
            self._connect(self._options.stagger_s * (number * _GOLDEN % 1))

    def _ready(self, connection: Connection) -> None:
        limit = self._options.requests
        if not self._stopping and not (limit and self.recorder.total.sent >= limit):
            self._ask(connection)

    def _dropped(self, connection: Connection) -> None:
        pass  # Its replacement asks the next request.

    def _unsent(self) -> Sequence[float]:
        return ()


class OpenLoop(Load):
    """Requests come on a schedule of their own; connections are added while they run short."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._idle: list[Connection] = []
        self._backlog: deque[float] = deque()
        self._ticks = 0
        self._ticker = Ticker(options.rate_per_s)

    def _start(self) -> None:
        for _ in range(self._options.clients):
            self._connect()
        asyncio.get_running_loop().add_reader(self._ticker.fd, self._ticked)

    def _ticked(self) -> None:
        for _ in range(self._ticker.elapsed()):
            if self._options.requests and self._ticks >= self._options.requests:
                return
            due_at = self._ticker.due_at(self._ticks)
            self._ticks += 1
            if self._idle:
                self._ask(self._idle.pop(), due_at)
                continue
            self._backlog.append(due_at)
            if len(self._connections) + len(self._connecting) < _CONNECTIONS_MAX:
                self._connect()

    def _ready(self, connection: Connection) -> None:
        if self._backlog:
            self._ask(connection, self._backlog.popleft())
        else:
            self._idle.append(connection)

    def _dropped(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def _unsent(self) -> Sequence[float]:
        return tuple(self._backlog)

    def _close_window(self) -> None:
        asyncio.get_running_loop().remove_reader(self._ticker.fd)
        self._ticker.close()
        super()._close_window()


async def run(options: Options) -> Result:
    """Run one load to its end."""
    load = OpenLoop(options) if options.rate_per_s else ClosedLoop(options)
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    return await load.run()


def main() -> None:
    """Run from the command line."""
    result = uvloop.run(run(parse(sys.argv[1:])))
    _print_line(msgspec.json.encode(result))


def _print_line(line: bytes) -> None:
    sys.stdout.write(line.decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
