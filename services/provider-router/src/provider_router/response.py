"""One answer that arrives on a connection: its bytes, its one timer, its bounded buffer."""

import asyncio
import math
from collections.abc import Callable
from typing import Final, Protocol

from provider_router.transport import (
    ClosedEarlyError,
    Deadlines,
    Phase,
    TimedOutError,
    TooLargeError,
    UpstreamError,
)

UNREAD_BYTES_MAX: Final = 262_144
"""Above this the connection stops reading until somebody takes the bytes."""
QUICK_S: Final = 0.002
"""Pieces of a relayed answer that follow each other within this time are read a few at a time."""
FINISH_S: Final = 1.0
FINISH_BYTES_MAX: Final = 16_384
"""Time and bytes in which an answer may end by itself after `finish`."""


class Line(Protocol):
    """What an answer needs of its connection."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    def fail(self, failure: UpstreamError) -> None:
        """End the answer with a failure and drop the connection."""
        ...

    def pause_reading(self) -> None:
        """Let the provider wait."""
        ...

    def resume_reading(self) -> None:
        """Read on."""
        ...

    def rest(self) -> None:
        """Read on in a moment."""
        ...


class HttpResponse:
    """The answer on a real connection; see `transport.Response`."""

    def __init__(self, connection: Line, deadlines: Deadlines, total_at: float) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.head_here = False
        self.complete = False
        self.silent = True
        self.failure: UpstreamError | None = None
        self.parts: list[bytes] = []
        self.unread = 0
        self.whole = False
        """Somebody waits for the whole body, not for the next piece."""
        self.limit: float = math.inf
        self._connection: Line | None = connection
        self._deadlines = deadlines
        self._total_at = total_at
        self._loop = connection.loop
        self._first_byte_at = math.inf
        self._paused = False
        self._quick = False
        """The last piece came so soon after the one before that waiting for company pays."""
        self._finishing = False
        self._active_at = connection.loop.time()
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._armed_at = math.inf
        self._relay: Callable[[bytes], bool] | None = None
        self._taken_badly: Exception | None = None

    async def head(self) -> None:
        """Wait for the status line and the headers."""
        while not self.head_here:
            if self.failure is not None:
                raise self.failure
            await self._arrival()

    async def read(self, limit: int) -> bytes:
        """The whole body; see `Response`."""
        self.limit = limit
        self.whole = True
        self._resume()
        while not self.complete and self.failure is None and self.unread <= limit:
            await self._arrival()
        if self.unread > limit:
            self.close()
            raise TooLargeError(f"the answer is longer than {limit} bytes")
        if self.failure is not None:
            raise self.failure
        return self._take()

    async def chunk(self) -> bytes | None:
        """What has arrived; see `Response`."""
        while not self.parts:
            if self.failure is not None:
                raise self.failure
            if self.complete:
                return None
            await self._arrival()
        data = self._take()
        self._resume()
        return data

    async def relay(self, take: Callable[[bytes], bool]) -> None:
        """Bytes go to `take` inside the read; see `Response`."""
        self._relay = take
        self._resume()
        try:
            self._give()
            while self._relay is not None and not self.complete and self.failure is None:
                await self._arrival()
        finally:
            enough, self._relay = self._relay is None, None
        if self._taken_badly is not None:
            raise self._taken_badly
        if not enough and self.failure is not None:
            raise self.failure

    def _give(self) -> None:
        """What has arrived, to whoever relays it; a taker that has enough or fails is not asked again."""
        take = self._relay
        if take is None or not self.parts:
            return
        try:
            if take(self._take()):
                self._relay = None
        except Exception as error:  # noqa: BLE001 - raised again where the taker waits
            self._taken_badly = error
            self._relay = None

    def close(self) -> None:
        """Give it up; see `Response`."""
        if self._connection is not None and not self._finishing:
            self._connection.fail(ClosedEarlyError(silent=self.silent))

    def finish(self) -> None:
        """Let it end by itself; see `Response`."""
        if self._connection is not None:
            self._finishing = True
            self._take()
            self._resume()
            self._total_at = min(self._total_at, self._loop.time() + FINISH_S)
            self.arm()

    def sent(self) -> None:
        """The request has left: the first-byte deadline begins."""
        self._first_byte_at = self._loop.time() + self._deadlines.first_byte_s
        self.arm()

    def sending(self) -> None:
        """A piece of a large request has left."""
        self._active_at = self._loop.time()

    def arrived(self) -> None:
        """Bytes have come; called before they are parsed."""
        self.silent = False
        now = self._loop.time()
        self._quick = now - self._active_at < QUICK_S
        self._active_at = now

    def add(self, pieces: list[bytes]) -> None:
        """Pieces of the body; `progress` or `ended` follows."""
        self.parts += pieces
        self.unread += sum(map(len, pieces))

    def progress(self) -> None:
        """Bytes have been parsed: hold the reader's buffer in bounds, wake whoever waits."""
        if self._finishing and self.unread > FINISH_BYTES_MAX and self._connection is not None:
            self._connection.fail(TooLargeError("more came after the end of the answer"))
        elif self.unread > UNREAD_BYTES_MAX and not self.whole and not self._paused and self._connection is not None:
            self._paused = True
            self._connection.pause_reading()
        if self._relay is not None:
            self._give()
            if self._relay is None:
                self._wake()
            elif self._quick and self._connection is not None:
                self._connection.rest()
        elif self.head_here and (not self.whole or self.unread > self.limit):
            self._wake()

    def ended(self, failure: UpstreamError | None) -> None:
        """Nothing more will come."""
        self._give()
        if failure is None:
            self.complete = True
        else:
            self.failure = failure
        self._connection = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()

    def arm(self) -> None:
        """Have the one timer fire no later than the earliest deadline."""
        due, _ = self._due()
        if due < self._armed_at:
            if self._timer is not None:
                self._timer.cancel()
            self._armed_at = due
            self._timer = self._loop.call_at(due, self._check)

    def _due(self) -> tuple[float, Phase]:
        if self._paused:
            due, phase = math.inf, Phase.IDLE
        elif self.head_here:
            due, phase = self._active_at + self._deadlines.idle_s, Phase.IDLE
        elif self._first_byte_at < math.inf:
            due, phase = self._first_byte_at, Phase.FIRST_BYTE
        else:
            due, phase = self._active_at + self._deadlines.idle_s, Phase.SEND
        return (self._total_at, Phase.TOTAL) if self._total_at < due else (due, phase)

    def _check(self) -> None:
        self._timer = None
        self._armed_at = math.inf
        due, phase = self._due()
        if self._loop.time() < due:
            self.arm()
        elif self._connection is not None:
            self._connection.fail(TimedOutError(phase))

    def _take(self) -> bytes:
        data = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
        self.parts = []
        self.unread = 0
        return data

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._active_at = self._loop.time()
            if self._connection is not None:
                self._connection.resume_reading()
                self.arm()

    async def _arrival(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
