"""A fast mock of an OpenAI-compatible provider, its own process.

The model's name says how a stream is written, so it works through any gateway:

- `bench-json`, `bench-burst` all at once, `bench-chunks` one write a chunk and one turn of the
  event loop between two, `bench-paced-50` so many chunks a second; `bench-burst-500` and so on
  for another number of chunks than 100. Without `stream`, all of them answer with JSON.

It counts what it was asked: `GET /counts`, and on standard output when it ends.
"""

import argparse
import asyncio
import gc
import os
import signal
import sys
from collections import deque
from dataclasses import dataclass
from typing import Final, cast

import httptools
import msgspec
import uvloop

from bench.replies import error, json_response, models, plan_of, response, stream_writes

_BODY_BYTES_MAX: Final = 32 * 1024 * 1024


class Counts(msgspec.Struct):
    """What the upstream was asked and how it went, since it started."""

    requests: int = 0
    """Chat requests of any kind, the refused included."""
    json: int = 0
    streams: int = 0
    streams_finished: int = 0
    streams_cut: int = 0
    """The other side went before the end."""
    refused: int = 0
    connections: int = 0


@dataclass(frozen=True)
class Request:
    """One request, read to its end."""

    method: bytes
    path: bytes
    body: bytes
    keep_alive: bool


class StreamOptions(msgspec.Struct):
    """The part of `stream_options` that changes the answer."""

    include_usage: bool = False


class Ask(msgspec.Struct):
    """The fields of a chat request that change the answer."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None


class Connection(asyncio.Protocol):
    """One connection of a client: requests in order, one answer at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, counts: Counts, open_now: set["Connection"]) -> None:
        self._loop = loop
        self._counts = counts
        self._open_now = open_now
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._fd = -1
        self._waiting: deque[Request] = deque()
        self._url = b""
        self._parts: list[bytes] = []
        self._body_bytes = 0
        self._expects_continue = False
        self._too_large = False
        self._busy = False
        self._paused = False
        self._keep_alive = True
        self._writes: tuple[bytes, ...] = ()
        self._written = 0
        self._pace_per_s = 0
        self._started_at = 0.0
        self._next: asyncio.Handle | None = None

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to listen to a client."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derives from nothing.
        self._fd = transport.get_extra_info("socket").fileno()
        self._counts.connections += 1
        self._open_now.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop whatever was being written."""
        del exc
        self._open_now.discard(self)
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._writes:
            self._counts.streams_cut += 1
            self._writes = ()
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        """Read on; broken HTTP ends the connection with a 400."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as fault:
            self._transport.write(error(b"400 Bad Request", str(fault), keep_alive=False))
            self._transport.close()

    def pause_writing(self) -> None:
        """Hold the stream: the other side reads more slowly than it is written."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on with a held stream."""
        self._paused = False
        if self._writes and self._next is None:
            self._next = self._loop.call_soon(self._write_next)

    def hang_up(self) -> None:
        """Close at once, when the upstream ends."""
        self._transport.abort()

    # What the parser calls

    def on_message_begin(self) -> None:
        """Forget the request before."""
        self._url = b""
        self._parts.clear()
        self._body_bytes = 0
        self._expects_continue = False
        self._too_large = False

    def on_url(self, url: bytes) -> None:
        """Collect the target, which may come in parts."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Look for the one header that asks for something."""
        if len(name) == 6 and name.lower() == b"expect":
            self._expects_continue = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        """Let a client that asks first send its body, unless an answer is under way."""
        if self._expects_continue and not self._busy:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Collect the body, bounded."""
        self._body_bytes += len(body)
        if self._body_bytes > _BODY_BYTES_MAX:
            self._too_large = True
            self._parts.clear()
        else:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        """Answer, or queue behind the answer that is being written."""
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        request = Request(self._parser.get_method(), self._url, body, self._parser.should_keep_alive())
        if self._too_large:
            self._refuse(b"413 Content Too Large", "body too large", keep_alive=False)
        elif self._parser.get_http_version() != "1.1":
            self._refuse(b"505 HTTP Version Not Supported", "HTTP/1.1 only", keep_alive=False)
        elif self._busy:
            self._waiting.append(request)
        else:
            self._answer(request)

    # Answers

    def _answer(self, request: Request) -> None:
        path = request.path.partition(b"?")[0]
        if request.method == b"POST" and path == b"/v1/chat/completions":
            self._chat(request)
        elif request.method == b"GET" and path == b"/v1/models":
            self._reply(response(b"200 OK", models(), keep_alive=request.keep_alive), request)
        elif request.method == b"GET" and path == b"/counts":
            body = msgspec.json.encode(self._counts)
            self._reply(response(b"200 OK", body, keep_alive=request.keep_alive), request)
        else:
            self._reply(error(b"404 Not Found", "no such path", keep_alive=request.keep_alive), request)

    def _chat(self, request: Request) -> None:
        self._counts.requests += 1
        try:
            ask = _ASK.decode(request.body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as fault:
            self._refuse(b"400 Bad Request", str(fault), keep_alive=request.keep_alive)
            return
        plan = plan_of(ask.model)
        if plan is None:
            self._refuse(b"404 Not Found", "no such model", keep_alive=request.keep_alive)
        elif not ask.stream:
            self._counts.json += 1
            self._reply(json_response(ask.model, request.keep_alive), request)
        else:
            self._counts.streams += 1
            include_usage = ask.stream_options is not None and ask.stream_options.include_usage
            self._keep_alive = request.keep_alive
            self._writes = stream_writes(ask.model, plan, include_usage, request.keep_alive)
            self._written = 0
            self._pace_per_s = plan.pace_per_s
            self._started_at = self._loop.time()
            self._busy = True
            self._write_next()

    def _write_next(self) -> None:
        """Write one part of the stream and arrange for the next."""
        self._next = None
        if self._paused or self._transport.is_closing():
            return
        self._send(self._writes[self._written])
        if self._transport.is_closing():
            return  # `connection_lost` counts the stream as cut.
        self._written += 1
        if self._written == len(self._writes):
            self._end_stream()
        elif self._pace_per_s:
            due = self._started_at + self._written / self._pace_per_s
            self._next = self._loop.call_at(due, self._write_next)
        else:
            self._next = self._loop.call_soon(self._write_next)

    def _send(self, data: bytes) -> None:
        """Write straight to the socket: half of what the transport's own way costs for a chunk."""
        sent = 0
        if not self._transport.get_write_buffer_size():
            try:
                sent = os.write(self._fd, data)
            except BlockingIOError:
                sent = 0  # The socket is full: the transport keeps the rest and says when to pause.
            except ConnectionError:
                self._transport.abort()
                return
        if sent < len(data):
            self._transport.write(data[sent:])

    def _end_stream(self) -> None:
        self._counts.streams_finished += 1
        self._writes = ()
        self._busy = False
        if not self._keep_alive:
            self._transport.close()
            return
        while self._waiting and not self._busy and not self._transport.is_closing():
            self._answer(self._waiting.popleft())

    def _reply(self, response: bytes, request: Request) -> None:
        self._transport.write(response)
        if not request.keep_alive:
            self._transport.close()

    def _refuse(self, status: bytes, message: str, *, keep_alive: bool) -> None:
        self._counts.refused += 1
        self._transport.write(error(status, message, keep_alive=keep_alive))
        if not keep_alive:
            self._transport.close()


_ASK: Final = msgspec.json.Decoder(Ask)


async def serve(host: str, port: int) -> Counts:
    """Serve until SIGTERM or SIGINT; the first line of output tells the port."""
    loop = asyncio.get_running_loop()
    counts = Counts()
    open_now: set[Connection] = set()
    server = await loop.create_server(lambda: Connection(loop, counts, open_now), host, port, backlog=4096)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _print_line(msgspec.json.encode({"port": server.sockets[0].getsockname()[1]}))
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    await stop.wait()
    server.close()
    for connection in tuple(open_now):
        connection.hang_up()
    return counts


def main() -> None:
    """Run from the command line; prints the counts at the end."""
    parser = argparse.ArgumentParser(prog="bench.upstream", description="A fast mock provider.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    arguments = parser.parse_args()
    counts = uvloop.run(serve(arguments.host, arguments.port))
    _print_line(msgspec.json.encode(counts))


def _print_line(line: bytes) -> None:
    sys.stdout.write(line.decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
