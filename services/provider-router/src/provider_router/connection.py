"""One HTTP/1.1 connection to a provider, and the answer that arrives on it. Opened and pooled by `upstream.py`.

Written over asyncio.Protocol and httptools because a general client costs seven times the CPU of a JSON call: no
task, no queue and no time-out object per chunk; one wake-up per read that somebody waits for.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, cast

import httptools

HEADERS_MAX: Final = 128
HEADER_BYTES_MAX: Final = 65_536
UNREAD_BYTES_MAX: Final = 262_144
"""Above this the connection stops reading until somebody takes the bytes."""
FINISH_S: Final = 1.0
FINISH_BYTES_MAX: Final = 16_384
WRITE_BYTES: Final = 65_536
"""Bodies up to this length go out in one write with the head, larger ones in pieces under flow control."""
_INTERIM_BELOW: Final = 200


class Phase(StrEnum):
    """What took too long."""

    CONNECT = "connect"
    SEND = "send"
    FIRST_BYTE = "first_byte"
    IDLE = "idle"
    TOTAL = "total"


class UpstreamError(Exception):
    """What can go wrong between us and a provider; the subclasses are all there is."""


class ConnectError(UpstreamError):
    """No connection: name, address, refusal or certificate."""


class TimedOutError(UpstreamError):
    """A deadline has passed; `phase` tells which."""

    def __init__(self, phase: Phase) -> None:
        super().__init__(f"timed out: {phase}")
        self.phase = phase


class ClosedEarlyError(UpstreamError):
    """The provider closed the connection before its answer was complete; `silent` = without a byte of it."""

    def __init__(self, *, silent: bool) -> None:
        super().__init__("closed before the answer" if silent else "the answer was cut off")
        self.silent = silent


class MalformedError(UpstreamError):
    """The answer is not HTTP/1.1 as we read it, or is encoded in a way that was not asked for."""


class TooLargeError(UpstreamError):
    """Headers or body beyond their bound."""


class InvalidRequestError(UpstreamError):
    """The request cannot be sent as HTTP: a line break in a header, a bad path, an address that is no http(s) URL."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds; each must be above zero."""

    connect_s: float
    first_byte_s: float
    """From the end of the request to the end of the response head."""
    idle_s: float
    """Between two reads of the answer, while somebody reads it; and between two writes of a large request."""
    total_s: float
    """From `open` to the last byte."""


class Response(Protocol):
    """An answer whose head is here; the body may still be on its way."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> dict[str, str]:
        """Names in lower case; repeated ones joined by `, `."""
        ...

    async def read(self, limit: int) -> bytes:
        """The whole body, at most `limit` bytes.

        Raises:
            UpstreamError: it is larger, or did not arrive whole.
        """
        ...

    async def chunk(self) -> bytes | None:
        """Everything that has arrived since the last call, joined; None at the proper end.

        Raises:
            UpstreamError: the answer did not arrive whole; bytes that came before are returned first.
        """
        ...

    def finish(self) -> None:
        """All that matters has been read: the connection may take a moment to end the answer, to be used again.

        Only the end of the body may still come, within a second; otherwise the connection is dropped. Never waits.
        """
        ...

    def close(self) -> None:
        """Give the answer up: aborts the connection unless the answer is complete or finishing. Safe to repeat."""
        ...


class HttpResponse:
    """The answer on a real connection."""

    def __init__(self, connection: "Connection", deadlines: Deadlines, total_at: float) -> None:
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
        self._connection: Connection | None = connection
        self._deadlines = deadlines
        self._total_at = total_at
        self._loop = connection.loop
        self._first_byte_at = math.inf
        self._paused = False
        self._finishing = False
        self._active_at = connection.loop.time()
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._armed_at = math.inf

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
        self._active_at = self._loop.time()

    def progress(self) -> None:
        """Bytes have been parsed: hold the reader's buffer in bounds, wake whoever waits."""
        if self._finishing and self.unread > FINISH_BYTES_MAX and self._connection is not None:
            self._connection.fail(TooLargeError("more came after the end of the answer"))
        elif self.unread > UNREAD_BYTES_MAX and not self.whole and not self._paused and self._connection is not None:
            self._paused = True
            self._connection.pause_reading()
        if self.head_here and (not self.whole or self.unread > self.limit):
            self._wake()

    def ended(self, failure: UpstreamError | None) -> None:
        """Nothing more will come."""
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


class Connection(asyncio.Protocol):
    """A connection that carries one call at a time, and the parser of its answers.

    Args:
        loop: the running loop.
        origin: the pool's key, kept for the pool.
        released: called when an answer is complete and nothing speaks against using the connection again.
        lost: called once when the connection is gone.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        origin: object,
        released: Callable[["Connection"], None],
        lost: Callable[["Connection"], None],
    ) -> None:
        self.loop = loop
        self.origin = origin
        self.idle_since = 0.0
        self.closed = False
        self._released = released
        self._lost = lost
        self._parser = httptools.HttpResponseParser(self)
        self._response: HttpResponse | None = None
        self._transport: asyncio.Transport | None = None
        self._drained: asyncio.Future[None] | None = None
        self._request_left = True
        self._begin()

    def _begin(self) -> None:
        self._headers: dict[str, str] = {}
        self._header_count = 0
        self._header_bytes = 0
        self._interim = False
        self._message_over = False
        self._reusable = False
        self._framed = False
        self._violation: UpstreamError | None = None
        self._barren_bytes = 0
        """Bytes read since the last byte of a body: heads, trailers and chunk extensions are bounded by it."""

    async def exchange(self, head: bytes, body: bytes, deadlines: Deadlines, total_at: float) -> HttpResponse:
        """Send a request and wait for the answer's head.

        Raises:
            UpstreamError: the connection is closed then, as it is when the caller is cancelled.
        """
        response = HttpResponse(self, deadlines, total_at)
        self._response = response
        self._begin()
        try:
            if len(body) <= WRITE_BYTES:
                self._write(head + body)
                response.sent()
            else:
                await self._send_large(response, head, body)
            await response.head()
        finally:
            if not response.head_here:
                response.close()
        return response

    def fail(self, failure: UpstreamError) -> None:
        """End the answer with a failure and drop the connection."""
        response, self._response = self._response, None
        self.abort()
        if response is not None:
            response.ended(failure)

    def abort(self) -> None:
        """Close at once."""
        self.closed = True
        self._writable()
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        """Let the provider wait."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if self._transport is not None and not self.closed:
            self._transport.resume_reading()

    def _write(self, data: bytes | memoryview) -> None:
        if self._transport is not None:
            self._transport.write(data)

    async def _send_large(self, response: HttpResponse, head: bytes, body: bytes) -> None:
        self._request_left = False
        response.arm()
        self._write(head)
        view = memoryview(body)
        for at in range(0, len(body), WRITE_BYTES):
            if self._drained is not None:
                await self._drained
            if self._response is not response or response.head_here:
                return
            self._write(view[at : at + WRITE_BYTES])
            response.sending()
        self._request_left = True
        response.sent()

    def _writable(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass of it

    def pause_writing(self) -> None:
        """The send buffer is full."""
        if self._drained is None:
            self._drained = self.loop.create_future()

    def resume_writing(self) -> None:
        """The send buffer has room again."""
        self._writable()

    def data_received(self, data: bytes) -> None:
        """Parse what came; bytes that nobody asked for end the connection."""
        response = self._response
        if response is None:
            self.abort()
            return
        response.arrived()
        had_head = response.head_here
        self._barren_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._reusable = False
            if not self._message_over:
                self.fail(MalformedError(str(error)))
                return
        if self._violation is not None:
            self.fail(self._violation)
        elif self._message_over:
            self._finish(response)
        elif self._barren_bytes > HEADER_BYTES_MAX:
            self.fail(TooLargeError("headers, trailers or chunk extensions are too large"))
        else:
            if response.head_here and not had_head:
                self._writable()
                response.arm()
            response.progress()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of the connection is the end of an answer only if its head gave no other."""
        self.closed = True
        self._writable()
        response, self._response = self._response, None
        if response is not None:
            whole = response.head_here and not self._framed and exc is None
            response.ended(None if whole else ClosedEarlyError(silent=response.silent))
        self._lost(self)

    def _finish(self, response: HttpResponse) -> None:
        self._response = None
        if self._reusable and self._request_left:
            # Two turns of the loop, so that a stray second answer that is already in the socket is seen before the
            # connection serves somebody else.
            self.loop.call_soon(self.loop.call_soon, self._release)
        else:
            self.abort()
        response.ended(None)

    def _release(self) -> None:
        if not self.closed:
            self._released(self)

    # httptools

    def on_message_begin(self) -> None:
        """A message begins; a second final one makes the connection unusable."""
        if self._message_over:
            self._reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header or trailer, bounded."""
        self._header_count += 1
        self._header_bytes += len(name) + len(value)
        if self._header_count > HEADERS_MAX or self._header_bytes > HEADER_BYTES_MAX:
            self._violation = TooLargeError("too many headers, or too large ones")
        elif self._response is not None and not self._response.head_here:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        """Interim answers (1xx) are passed over."""
        response, status = self._response, self._parser.get_status_code()
        if response is None or self._message_over:
            return
        if status < _INTERIM_BELOW:
            self._interim = True
            return
        headers = self._headers
        if headers.get("content-encoding", "identity").lower() not in {"", "identity"}:
            self._violation = MalformedError("the answer is compressed, which was not asked for")
        if headers.get("transfer-encoding", "chunked").lower() != "chunked":
            self._violation = MalformedError("a transfer encoding other than chunked")
        self._framed = "content-length" in headers or "transfer-encoding" in headers
        self._reusable = self._parser.should_keep_alive()
        response.status = status
        response.headers = headers
        response.head_here = True

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        response = self._response
        if response is not None and not self._message_over:
            response.parts.append(data)
            response.unread += len(data)
            self._barren_bytes = 0

    def on_message_complete(self) -> None:
        """The end of an interim answer or of the answer."""
        if self._interim:
            self._interim = False
            self._headers = {}
        else:
            self._message_over = True
