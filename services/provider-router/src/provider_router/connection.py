"""One HTTP/1.1 connection to a provider. Opened and pooled by `upstream.py`.

Written over asyncio.Protocol and httptools because a general client costs seven times the CPU of a JSON call: no
task, no queue and no time-out object per chunk; one wake-up per read that somebody waits for.
"""

import asyncio
import sys
from collections.abc import Callable
from typing import Final, cast

import httptools

from provider_router.response import HttpResponse
from provider_router.transport import (
    ClosedEarlyError,
    Deadlines,
    MalformedError,
    TooLargeError,
    UpstreamError,
)

HEADERS_MAX: Final = 128
HEADER_BYTES_MAX: Final = 65_536
WRITE_BYTES: Final = 65_536
"""Bodies up to this length go out in one write with the head, larger ones in pieces under flow control."""
REST_S: Final = 0.002
_INTERIM_BELOW: Final = 200


class Rests:
    """Connections that do not read for a moment: what a fast provider writes then comes as one piece.

    Args:
        loop: the running loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._resting: list[Connection] = []

    def add(self, connection: "Connection") -> None:
        """Let it read again at the end of the common rest."""
        if not self._resting:
            self._loop.call_later(REST_S, self._over)
        self._resting.append(connection)

    def _over(self) -> None:
        resting, self._resting = self._resting, []
        for connection in resting:
            connection.resume_reading()


class Connection(asyncio.Protocol):
    """A connection that carries one call at a time, and the parser of its answers.

    Args:
        loop: the running loop.
        origin: the pool's key, kept for the pool.
        rests: shared by all connections of the loop.
        released: called when an answer is complete and nothing speaks against using the connection again.
        lost: called once when the connection is gone.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        origin: object,
        rests: "Rests",
        released: Callable[["Connection"], None],
        lost: Callable[["Connection"], None],
    ) -> None:
        self.loop = loop
        self._rests = rests
        self.origin = origin
        self.idle_since = 0.0
        self.closed = False
        self._released = released
        self._lost = lost
        self._pieces: list[bytes] = []
        """Of the body, from the bytes that are parsed now."""
        self.on_body = self._pieces.append  # a provider sends a hundred in one read: no function of ours for each
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
        self._pieces_max = sys.maxsize
        """What follows the answer's last piece is no part of it."""
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
        except BaseException:  # also when the caller is cancelled in the turn in which the head came
            response.close()
            raise
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

    def rest(self) -> None:
        """Read on in a moment, together with the others that rest."""
        self.pause_reading()
        self._rests.add(self)

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
        failure: UpstreamError | None = None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._reusable = False
            failure = None if self._message_over else MalformedError(str(error))
        if self._pieces:
            self._barren_bytes = 0
            response.add(self._pieces[: self._pieces_max])
            self._pieces.clear()
        failure = failure or self._violation
        if failure is not None:
            self.fail(failure)
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

    def on_message_complete(self) -> None:
        """The end of an interim answer or of the answer."""
        if self._interim:
            self._interim = False
            self._headers = {}
        elif not self._message_over:
            self._message_over = True
            self._pieces_max = len(self._pieces)
