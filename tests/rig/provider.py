"""A fake provider on a real socket, with a journal of everything that it was asked and said.

    provider = await FakeProvider().start()
    hub = await start_hub(env=provider.env("fake"))      # model "fake/gpt-4o-mini"
    provider.replies(Reply(hold_at=3), refusal(429, retry_after="7"))
    …
    provider.journal[-1].gone_at

It speaks OpenAI on `…/chat/completions` and Anthropic on `…/messages`, and answers honestly unless told otherwise.
"""

import asyncio
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self

import httptools

from rig.provider_replies import BEFORE_HEAD, HONEST, Asked, Reply, content_type, is_streamed, pieces, read, refusal
from rig.waiting import until

__all__ = ["BEFORE_HEAD", "HONEST", "Asked", "FakeProvider", "Received", "Reply", "refusal"]

KEY: Final = "sk-fake-provider-key"
_REASONS: Final = {200: "OK", 302: "Found", 400: "Bad Request", 429: "Too Many Requests", 500: "Internal Server Error"}


@dataclass(slots=True)
class Received:
    """One request, and how far its answer came. Only ever grows."""

    number: int
    path: str
    headers: tuple[tuple[str, str], ...]
    """As they came, names in lower case."""
    body: bytes
    at: float = field(default_factory=time.monotonic)
    chunks_sent: int = 0
    """Pieces of the body that were written."""
    sent: bytearray = field(default_factory=bytearray)
    """The body as far as it was written, without HTTP's own framing."""
    finished: bool = False
    """The whole answer was written."""
    cut: bool = False
    """The script ended it early."""
    gone_at: float | None = None
    """Monotonic time at which the client closed before either."""

    def header(self, name: str) -> str | None:
        """Value of a header, or None."""
        return next((value for given, value in self.headers if given == name), None)

    @property
    def request_id(self) -> tuple[str, int]:
        """Call id and attempt, as they stand in `x-request-id`; attempt 0 when there is none."""
        call_id, _, attempt = (self.header("x-request-id") or "").partition(":")
        return call_id, int(attempt or 0)

    @property
    def call_id(self) -> str:
        """The call that it was asked for."""
        return self.request_id[0]

    @property
    def attempt(self) -> int:
        """Number of the try."""
        return self.request_id[1]


Script = Callable[[Received], Reply]


class FakeProvider:
    """Listens on loopback; `replies` and `always` say how it answers."""

    def __init__(self) -> None:
        self.journal: list[Received] = []
        """Every request, in order of arrival."""
        self.port = 0
        self.connections = 0
        """Made so far."""
        self._script: Script = lambda _received: Reply()
        self._next: deque[Reply] = deque()
        self._counted_from = 0
        self._server: asyncio.Server | None = None
        self.open: set[_Connection] = set()

    @property
    def url(self) -> str:
        """Base URL, as a provider's setting takes it."""
        return f"http://127.0.0.1:{self.port}/v1"

    def env(
        self, name: str = "fake", kind: str = "openai", models: str | None = None, key: str = KEY, **more: object
    ) -> dict[str, str]:
        """Settings under which the hub knows it; `models` lists the bare names that reach it."""
        group = {"BASE_URL": self.url, "API_KEY": key, "KIND": kind, "MODELS": models, **more}
        prefix = f"HUB_PROVIDERS__{name.upper()}__"
        return {f"{prefix}{key.upper()}": str(value) for key, value in group.items() if value is not None}

    async def start(self) -> Self:
        """Listen on a free port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def replies(self, *replies: Reply) -> None:
        """Answer the next requests so, one each; those after them as `always` says."""
        self._next.extend(replies)

    def always(self, reply: Reply | Script) -> None:
        """Answer every request so from now on; a function looks at each request. `asked` counts anew."""
        self._next.clear()
        self._counted_from = len(self.journal)
        self._script = reply if callable(reply) else lambda _received: reply

    def forget(self) -> None:
        """Empty the journal and answer honestly again, for the next test."""
        self.journal.clear()
        self.always(Reply())

    def of(self, call_id: str) -> list[Received]:
        """The requests of one call."""
        return [received for received in self.journal if received.call_id == call_id]

    async def asked(self, count: int = 1, within_s: float = 20.0) -> Received:
        """Wait until so many requests have come since the last `always` or `forget`; the last of them."""
        wanted = self._counted_from + count

        async def look() -> bool:
            return len(self.journal) >= wanted

        await until(look, within_s=within_s, what=f"{count} requests at the provider", every_s=0.005)
        return self.journal[wanted - 1]

    async def close(self) -> None:
        """Listen no more and break what is open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.open):
            connection.reset()
        await asyncio.gather(*(connection.ended for connection in list(self.open)), return_exceptions=True)

    def reply_to(self, received: Received) -> Reply:
        """The reply whose turn it is."""
        return self._next.popleft() if self._next else self._script(received)


class _Connection(asyncio.Protocol):
    """One client; requests one after the other."""

    def __init__(self, provider: FakeProvider) -> None:
        self._provider = provider
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._path = b""
        self._headers: list[tuple[str, str]] = []
        self._body: list[bytes] = []
        self._received: Received | None = None
        self._answering: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # ---- asyncio's callbacks ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._provider.open.add(self)
        self._provider.connections += 1

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, _error: Exception | None) -> None:
        received = self._received
        if received is not None and not (received.finished or received.cut):
            received.gone_at = time.monotonic()
        if self._answering is not None:
            self._answering.cancel()
        self._provider.open.discard(self)
        if not self.ended.done():
            self.ended.set_result(None)

    # ---- httptools' callbacks ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._path = b""
        self._headers = []
        self._body = []

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        number = len(self._provider.journal)
        path = self._path.decode("latin-1")
        received = Received(number, path, tuple(self._headers), b"".join(self._body))
        self._provider.journal.append(received)
        self._received = received
        self._answering = asyncio.get_running_loop().create_task(self._answer(received))

    # ---- the answer -------------------------------------------------------------------------------------------------

    async def _answer(self, received: Received) -> None:
        reply = self._provider.reply_to(received)
        if reply.http is not None:
            for piece in reply.http:
                await self._write(received, piece, piece)
            received.finished = True
            self._transport.close()
            return
        asked = read(received.path, received.body)
        body = pieces(reply, asked)
        streamed = is_streamed(reply, asked)
        await asyncio.sleep(reply.head_delay_s)
        if await self._stop(reply, BEFORE_HEAD, received, streamed=streamed):
            return
        length = None if streamed else sum(map(len, body))
        self._transport.write(_head(reply, content_type(reply, asked), length))
        for place, piece in enumerate(body):
            if reply.piece_delay_s:
                await asyncio.sleep(reply.piece_delay_s)
            if await self._stop(reply, place, received, streamed=streamed):
                return
            framed = b"%x\r\n%b\r\n" % (len(piece), piece) if streamed and piece else piece
            await self._write(received, framed, piece)
        if await self._stop(reply, len(body), received, streamed=streamed):
            return
        if streamed:
            self._transport.write(b"0\r\n\r\n")
        received.finished = True

    async def _stop(self, reply: Reply, place: int, received: Received, *, streamed: bool) -> bool:
        """What the script has at a place: silence, or the answer's end."""
        if reply.hold_at == place:
            await reply.released.wait()
        if reply.cut_at != place:
            return False
        received.cut = True
        if reply.cut == "reset":
            self.reset()
        elif reply.cut == "close" or not streamed:
            self._transport.close()
        else:
            self._transport.write(b"0\r\n\r\n")
        return True

    async def _write(self, received: Received, framed: bytes, piece: bytes) -> None:
        await self._writable.wait()
        self._transport.write(framed)
        received.sent += piece
        received.chunks_sent += 1

    def reset(self) -> None:
        """Break the connection with RST."""
        raw = self._transport.get_extra_info("socket")
        if raw is not None:
            with suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


def _head(reply: Reply, kind: str, length: int | None) -> bytes:
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    lines = [f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Status')}", f"content-type: {kind}", framing]
    lines += [f"{name}: {value}" for name, value in reply.headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
