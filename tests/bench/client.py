"""One kept-alive HTTP/1.1 connection of the load generator: asks, and times the answer.

Times are `time.monotonic()`: uvloop's own clock counts whole milliseconds.
"""

import asyncio
import time
from typing import Final, Protocol, cast
from urllib.parse import urlsplit

import httptools
import msgspec

from bench.figures import GapMeter


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where the requests go."""

    host: str
    port: int
    path: str
    """Of chat completions, with the base URL's path in front."""

    @classmethod
    def at(cls, base_url: str) -> "Target":
        """Read a base URL as the OpenAI SDKs take it; without a path, `/v1` is meant.

        Raises:
            ValueError: not a plain http URL.
        """
        parts = urlsplit(base_url)
        if parts.scheme != "http" or not parts.hostname:
            message = f"an http:// URL is needed, not {base_url!r}"
            raise ValueError(message)
        path = parts.path.rstrip("/") or "/v1"
        return cls(host=parts.hostname, port=parts.port or 80, path=f"{path}/chat/completions")


def render_request(target: Target, key: str, body: bytes) -> bytes:
    """Render a whole chat request."""
    head = (
        f"POST {target.path} HTTP/1.1\r\nhost: {target.host}:{target.port}\r\n"
        f"authorization: Bearer {key}\r\ncontent-type: application/json\r\n"
        f"accept: */*\r\nuser-agent: hub-bench\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


class Owner(Protocol):
    """Who is told what happens on a connection; each call may ask the next thing at once."""

    def opened(self, connection: "Connection") -> None:
        """Be told that a connection is ready for its first request."""

    def answered(self, connection: "Connection") -> None:
        """Be told that the whole answer is there."""

    def lost(self, connection: "Connection", fault: str | None) -> None:
        """Be told of the connection's end; `fault` if a request was waiting for its answer."""


class Connection(asyncio.Protocol):
    """A connection and the request that is on it, if any.

    Attributes:
        due_at: when the request was to be sent; equals `sent_at` in a closed loop.
        first_at: when the first event of a stream, or the first byte of a body, arrived; 0 if not.
        ended_at: when the last byte of the answer arrived.
        gaps: the silences of a stream, measured only if asked for.
    """

    def __init__(self, owner: Owner, *, measures_gaps: bool) -> None:
        self._owner = owner
        self._measures_gaps = measures_gaps
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._parts: list[bytes] = []
        self._now = 0.0
        self._whole = False
        self._keep_alive = True
        self._fault: str | None = None
        self.busy = False
        self.is_stream = False
        self.status = 0
        self.due_at = 0.0
        self.sent_at = 0.0
        self.first_at = 0.0
        self.ended_at = 0.0
        self.gaps = GapMeter()

    @property
    def body(self) -> bytes:
        """The body of the last answer."""
        return b"".join(self._parts)

    @property
    def is_open(self) -> bool:
        """Whether another request may be sent here."""
        return not self._transport.is_closing()

    def ask(self, request: bytes, due_at: float | None = None) -> None:
        """Send a request; only when none is waiting here."""
        self.busy = True
        self.status = 0
        self.first_at = 0.0
        self._parts = []
        if self._measures_gaps:
            self.gaps = GapMeter()
        self.sent_at = time.monotonic()
        self.due_at = self.sent_at if due_at is None else due_at
        self._transport.write(request)

    def abandon(self, fault: str) -> None:
        """Give the waiting request up and close."""
        self._fault = fault
        self._transport.abort()

    def close(self) -> None:
        """Close an idle connection."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Tell the owner."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derives from nothing.
        self._owner.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner; a request without its whole answer is a fault, whatever the reason."""
        fault = self._fault
        if fault is None and self.busy:
            fault = "cut" if self.status else "no answer"
            if exc is not None:
                fault = f"{fault} ({type(exc).__name__})"
        self.busy = False
        self._owner.lost(self, fault)

    def data_received(self, data: bytes) -> None:
        """Read on; bytes that nobody asked for end the connection."""
        self._now = time.monotonic()
        if not self.busy:
            self.abandon("stray bytes")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abandon("bad HTTP")
            return
        if self._whole and self._fault is None:
            self._whole = False
            self.busy = False
            self.ended_at = self._now
            if not self._keep_alive:
                self._transport.close()
            self._owner.answered(self)

    def on_message_begin(self) -> None:
        """Refuse a second answer in the same read."""
        if self._whole:
            self.abandon("stray bytes")

    def on_headers_complete(self) -> None:
        """Note the status."""
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Collect, and note the times that count."""
        self._parts.append(body)
        if self.first_at and not self._measures_gaps:
            return
        if not self.is_stream or _EVENT in body:
            if not self.first_at:
                self.first_at = self._now
            if self._measures_gaps:
                self.gaps.arrived(self._now)

    def on_message_complete(self) -> None:
        """Note the end, unless it was an interim answer."""
        self._whole = self.status >= 200  # HTTP: 1xx is not the answer.
        self._keep_alive = self._parser.should_keep_alive()


_EVENT: Final = b"data:"
