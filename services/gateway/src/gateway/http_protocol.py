"""uvicorn's HTTP/1.1 protocol with bounds: size and number of headers, length of the URL, time until they are there.

A refused request gets a complete answer in OpenAI's error shape and then the connection closes, after a moment in
which what the client still sends is read and thrown away; closing at once would reset the connection, and the client
might never see the answer.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from contracts.errors import ErrorCode, HubError
from gateway.api import errors
from gateway.api.chat import Chat
from gateway.api.dialects import Dialects
from gateway.api.exchange import ChatExchange

_LINGER_S: Final = 1.0
_HEADER_OVERHEAD: Final = 4
"""Colon, blank and line end of a header line."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a request's head."""

    headers: int = 100
    header_bytes: int = 32_768
    """Names and values of all headers together."""
    url_bytes: int = 8192
    head_timeout_s: float = 10.0
    """From the connection, or the first byte of a later request, to the end of the headers."""


class _RefusedError(Exception):
    """Raised inside the parser's callbacks, to stop it."""


def limited(limits: Limits, chat: Chat | None = None, mount_path: str = "") -> type["LimitedProtocol"]:
    """The protocol class for `uvicorn.Config(http=…)`: chat requests go to exchanges, all else to the application."""
    return type("Limited", (LimitedProtocol,), {"limits": limits, "chat": chat, "dialects": Dialects(mount_path)})


class LimitedProtocol(HttpToolsProtocol):
    """HTTP/1.1 over httptools, bounded; serves chat by exchanges and the rest by the ASGI application."""

    limits: ClassVar[Limits] = Limits()
    chat: ClassVar[Chat | None] = None
    dialects: ClassVar[Dialects] = Dialects("")

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._in_head = True
        self._head_read = 0
        self._head_size = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._refusal: HubError | None = None
        self._serving: RequestResponseCycle | ChatExchange | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        serving = self._serving
        super().connection_lost(exc)
        if serving is None or serving.response_complete:
            return
        if isinstance(serving, ChatExchange):
            serving.client_left()
        else:
            serving.disconnected = True
            serving.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._linger_timer is not None:
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # no protocol but HTTP is spoken here; the request is answered as if it had not asked
        except httptools.HttpParserError:
            bad = HubError(ErrorCode.INVALID_REQUEST, "This is not a valid HTTP/1.1 request.")
            self._refuse(self._refusal or bad)
            return
        if not self._in_head:
            if isinstance(self.cycle, ChatExchange) and self.cycle.more_body:
                self.cycle.await_body()
            return
        # A name or value that never ends reaches no callback; the bytes read so far bound it.
        self._head_read += len(data)
        if self._head_read > self.limits.header_bytes + self.limits.url_bytes:
            self._refuse(_too_large(self.limits))
        elif self._head_read:
            self._arm()

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._in_head = True
        self._head_read = self._head_size = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.limits.url_bytes:
            self._refusal = HubError(
                ErrorCode.HEADERS_TOO_LARGE, f"The URL is longer than {self.limits.url_bytes} bytes.", status=414
            )
            raise _RefusedError

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._head_size += len(name) + len(value) + _HEADER_OVERHEAD
        if len(self.headers) > self.limits.headers or self._head_size > self.limits.header_bytes:
            self._refusal = _too_large(self.limits)
            raise _RefusedError

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_read = 0
        self._disarm()
        if self.chat is not None and self.dialects.choose(self.parser.get_method(), self.url.partition(b"?")[0]):
            self._begin_chat(self.chat)
            return
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()  # makes the ASGI scope, which chat does without
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()

    def _begin_chat(self, chat: Chat) -> None:
        version = self.parser.get_http_version()
        exchange = ChatExchange(
            chat,
            self,
            self.headers,
            http_version=version,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            expect_continue=self.expect_100_continue,
        )
        earlier = self.cycle
        self.cycle = exchange  # type: ignore[assignment]
        if earlier is None or earlier.response_complete:
            self._serving = exchange
            exchange.start()
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]

    def on_body(self, body: bytes) -> None:
        exchange = self.cycle
        if not isinstance(exchange, ChatExchange):
            super().on_body(body)
        elif not exchange.response_complete:
            exchange.take_body(body)

    def on_message_complete(self) -> None:
        exchange = self.cycle
        if not isinstance(exchange, ChatExchange):
            super().on_message_complete()
        elif not exchange.response_complete:
            exchange.body_complete(started=exchange is self._serving)

    def pause_writing(self) -> None:
        super().pause_writing()
        if isinstance(self._serving, ChatExchange):
            self._serving.paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        if isinstance(self._serving, ChatExchange):
            self._serving.resumed()

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of every answer, such as `date`."""
        return self.server_state.default_headers

    @property
    def writing_paused(self) -> bool:
        """Whether the client takes less than we send."""
        return self.flow.write_paused

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body and not self.transport.is_closing():
            self._linger()  # answered before the body was read: the rest of it is not waited for

    def _should_upgrade(self) -> bool:
        return False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._serving = cycle
        if isinstance(cycle, ChatExchange):  # one that was pipelined
            cycle.start()
        else:
            super()._start_asgi_task(cycle, app)

    def _arm(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.head_timeout_s, self._head_late)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        if self._in_head:
            self._refuse(HubError(ErrorCode.REQUEST_TIMEOUT, "The request's headers did not arrive in time."))

    def _refuse(self, error: HubError) -> None:
        if self.transport.is_closing():
            return
        serving = self._serving
        if serving is not None and not serving.response_complete:
            # A pipelined request is refused while an answer is under way: that one ends, and with it the connection.
            serving.keep_alive = False
            self.pipeline.clear()
            self.flow.pause_reading()
            return
        body = errors.body(error)
        head = [STATUS_LINE[error.status]]
        head.extend(b"%b: %b\r\n" % header for header in errors.headers(error, ""))
        head.append(b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body))
        self.transport.write(b"".join((*head, body)))
        self._linger()

    def _linger(self) -> None:
        self._disarm()
        self._unset_keepalive_if_required()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._linger_timer = self.loop.call_later(_LINGER_S, self.transport.close)


def _too_large(limits: Limits) -> HubError:
    return HubError(
        ErrorCode.HEADERS_TOO_LARGE,
        f"Send at most {limits.headers} headers with {limits.header_bytes} bytes in all.",
    )
