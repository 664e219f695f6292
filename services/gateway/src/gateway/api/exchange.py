"""One chat request and its answer on one HTTP/1.1 connection, below ASGI.

An ASGI callable costs a task, a scope, two futures and four messages per request: half of the gateway's CPU. Here the
HTTP protocol's callbacks drive the call, and the bus' callbacks write the answer; a task runs only for a key that is
not cached. To uvicorn's protocol an exchange is what its `RequestResponseCycle` is: the attributes in its first block
are those that the protocol reads and sets. Limits of heads, pipelining, keep-alive and draining stay uvicorn's and
`http_protocol`'s.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog
from opentelemetry.trace import SpanKind
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from contracts.errors import ErrorCode, HubError
from gateway import metrics
from gateway.admission.admit import RequestContext, admit
from gateway.admission.peek import check_content_type, peek
from gateway.admission.prices import Prices
from gateway.admission.reserve import Reserver
from gateway.api import edge, errors
from gateway.auth import credential
from gateway.auth.principals import Principal, Principals
from gateway.dispatch import Dispatcher
from gateway.event_ids import EventIds
from gateway.open_call import OpenCall
from gateway.relay import with_credits
from gateway.settings import Settings
from runtime import failpoints
from runtime.telemetry import CallSpan, Tracing, read_traceparent

_log = structlog.get_logger("chat")
_IDEMPOTENCY_KEY_MAX: Final = 255
_SWITCH: Final = {b"true": True, b"1": True, b"false": False, b"0": False}
_CORS: Final = b"access-control-allow-origin: *\r\naccess-control-expose-headers: *\r\n"
_STREAM_HEAD: Final = (
    b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
)
_JSON_HEAD: Final = b"content-type: application/json\r\ncontent-length: %d\r\n"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(Protocol):
    """What an exchange needs of the connection it is on."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of every answer, such as `date`."""
        ...

    @property
    def writing_paused(self) -> bool:
        """Whether the client takes less than we send."""
        ...

    def on_response_complete(self) -> None:
        """The answer is out: begin the next request, or wait for one."""
        ...


@dataclass(frozen=True, slots=True)
class Chat:
    """What every chat request passes on its way."""

    settings: Settings
    process: str
    principals: Principals
    prices: Prices
    reserver: Reserver
    dispatcher: Dispatcher
    tracing: Tracing


class _Unwatched:
    """An exchange needs no waking: uvicorn's event without a waiter."""

    def set(self) -> None:
        """Nobody waits."""


class ChatExchange:
    """From the end of the request's head to the last byte of its answer."""

    message_event: Final = _Unwatched()

    def __init__(
        self,
        chat: Chat,
        connection: Connection,
        headers: list[tuple[bytes, bytes]],
        *,
        http_version: str,
        keep_alive: bool,
        expect_continue: bool,
    ) -> None:
        self.scope: dict[str, Any] = {}
        self.body: Any = b""
        self.more_body = True
        self.response_complete = False
        self.disconnected = False
        self.keep_alive = keep_alive

        self._chat = chat
        self._connection = connection
        self._headers = headers
        self._expect_continue = expect_continue
        self._chunked = http_version != "1.0"
        self._named: dict[bytes, bytes] = dict(headers)
        self._parts: list[bytes] = []
        self._size = 0
        self._served = False
        self._head_sent = False
        self._due = False
        self._ids: EventIds | None = None
        """Numbers the events of a stream that its client wants to resume."""
        self._call: OpenCall | None = None
        self._task: asyncio.Task[None] | None = None
        self._body_timer: asyncio.TimerHandle | None = None
        self._request_id = edge.request_id(self._named.get(b"x-request-id"))
        self._span: CallSpan = chat.tracing.start(
            "POST chat/completions",
            read_traceparent(self._named.get(b"traceparent", b"").decode("latin-1")),
            SpanKind.SERVER,
            {},
        )

    # What the protocol calls.

    def start(self) -> None:
        """The head is read and no earlier answer is under way."""
        length = self._named.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._chat.settings.body_bytes_max:
            self._refuse(self._too_large())
        elif not self.more_body:
            self._serve()
        elif self._expect_continue:
            self._connection.transport.write(_CONTINUE)

    def take_body(self, part: bytes) -> None:
        """A part of the body has come."""
        self._size += len(part)
        if self._size > self._chat.settings.body_bytes_max:
            self._parts.clear()
            self._refuse(self._too_large())
        else:
            self._parts.append(part)

    def body_complete(self, *, started: bool) -> None:
        """The whole body is here; serve it unless an earlier answer is still under way."""
        self.more_body = False
        if self._body_timer is not None:
            self._body_timer.cancel()
        if started:
            self._serve()

    def await_body(self) -> None:
        """A read has ended inside the body: from now on it may take only so long."""
        if self._body_timer is None and not self.response_complete:
            self._body_timer = self._connection.loop.call_later(self._chat.settings.body_timeout_s, self._body_late)

    def client_left(self) -> None:
        """The connection is gone before the answer was complete."""
        self.disconnected = True
        if self._body_timer is not None:
            self._body_timer.cancel()
        if self._call is not None:
            self._chat.dispatcher.left(self._call)
            self._close_call(self._call)
        if not self.response_complete:
            self.response_complete = True
            self._span.end(error=ErrorCode.CLIENT_CANCELLED)

    def paused(self) -> None:
        """The client takes less than we send."""
        if self._call is not None:
            self._call.writing_since = time.monotonic()

    def resumed(self) -> None:
        """The client takes bytes again."""
        if self._call is not None:
            self._call.writing_since = None
            self._changed()

    # The way of a call.

    def _serve(self) -> None:
        if self._served or self.response_complete:
            return
        self._served = True
        principals = self._chat.principals
        try:
            token = credential.bearer(self._headers)
            principal = principals.lookup(principals.digest(token)) if token is not None else None
            if principal is not None:
                self._admit(principal)
                return
        except HubError as error:
            self._refuse(error)
            return
        self._task = self._connection.loop.create_task(self._identify(token))

    async def _identify(self, token: bytes | None) -> None:
        """The key is not cached: ask the database, then go on."""
        try:
            self._admit(await self._chat.principals.authenticate(token))
        except HubError as error:
            self._refuse(error)
        except Exception:  # noqa: BLE001 - the edge: a bug becomes a 500 with a request id
            self._bug()

    def _admit(self, principal: Principal) -> None:
        """Check the body, reserve, and from then on follow the call's changes.

        Raises:
            HubError: the request is refused; no row exists.
        """
        chat = self._chat
        check_content_type(self._named.get(b"content-type"))
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        asked = peek(body)
        if len(chat.dispatcher) >= chat.settings.calls_max:
            raise HubError(ErrorCode.OVERLOADED, "The hub takes no more calls right now; try again.", retry_after_s=1)
        context = RequestContext(
            request_id=self._request_id,
            project=credential.project(self._named.get(credential.PROJECT_HEADER, b"")),
            idempotency_key=_idempotency_key(self._named.get(b"idempotency-key")),
            resumable=_resumable(self._named.get(b"x-hub-resumable")),
            trace=self._span.context,
        )
        call = admit(
            asked,
            body,
            principal,
            context,
            chat.prices,
            chat.settings,
            number=chat.dispatcher.next_number(),
            gateway=chat.process,
        )
        if context.resumable and asked.stream:
            self._ids = EventIds()
        call.abort = self._connection.transport.abort
        call.on_change = self._changed
        self._call = call
        chat.dispatcher.open(call)
        if self.disconnected:
            self.client_left()
            return
        chat.reserver.reserve(call)

    def _changed(self) -> None:
        """Something of the call changed: look at it once at the end of this turn."""
        if not self._due:
            self._due = True
            self._connection.loop.call_soon(self._look)

    def _look(self) -> None:
        self._due = False
        call = self._call
        if call is None or self.response_complete or self._connection.writing_paused:
            return
        try:
            if call.header.stream:
                self._write_stream(call)
            elif call.error is not None:
                self._refuse(call.error)
            elif call.ready:
                self._write_json(call)
        except Exception:  # noqa: BLE001 - the edge: a bug becomes a 500 with a request id
            self._bug()

    def _write_json(self, call: OpenCall) -> None:
        call.chunks.append(call.held or b"")
        whole = call.take()
        body = whole if call.settled is None else with_credits(whole, call.splice_at, call.settled, call.answered_by)
        failpoints.hit("gateway.before_final_frame")
        self._write(self._head(200, _JSON_HEAD % len(body)), body)
        self._finish(call)

    def _write_stream(self, call: OpenCall) -> None:
        """What has come goes out in one write; the tail when the books are closed, an error event instead of it."""
        if call.ready and call.settled is not None:
            call.chunks.append(with_credits(call.held or b"", call.splice_at, call.settled, call.answered_by))
            failpoints.hit("gateway.before_final_frame")
            self._write(self._stream_head(), *self._events(call), b"0\r\n\r\n" if self._chunked else b"")
            self._finish(call)
            return
        if call.chunks:
            self._write(self._stream_head(), *self._events(call))
        if call.error is not None:
            self._end_broken(call, call.error)

    def _end_broken(self, call: OpenCall, error: HubError) -> None:
        """An error event if the stream has begun, an error status if not."""
        if not self._head_sent:
            self._refuse(error)
            return
        metrics.refused(error.code)
        self._write(*self._framed(errors.event(error)), b"0\r\n\r\n" if self._chunked else b"")
        self._finish(call, error.code)

    # Writing.

    def _stream_head(self) -> bytes:
        if self._head_sent:
            return b""
        encoding = b"transfer-encoding: chunked\r\n" if self._chunked else b""
        return self._head(200, _STREAM_HEAD + encoding)

    def _head(self, status: int, own: bytes) -> bytes:
        self._head_sent = True
        if not self._chunked:
            self.keep_alive = False  # HTTP/1.0: the end of the connection is the end of the answer
        lines = [STATUS_LINE[status]]
        lines.extend(b"%b: %b\r\n" % header for header in self._connection.default_headers)
        lines.append(own)
        lines.append(f"x-request-id: {self._request_id}\r\nx-trace-id: {self._span.context.trace_id}\r\n".encode())
        if self._call is not None and status < 400:  # noqa: PLR2004 - error answers name it themselves
            lines.append(f"x-call-id: {self._call.call_id}\r\n".encode())
            if self._call.joined_call_id:
                lines.append(b"idempotent-replayed: true\r\n")
        lines.append(_CORS)
        lines.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        return b"".join(lines)

    def _events(self, call: OpenCall) -> tuple[bytes, ...]:
        """What has come, numbered if the client asked for it; an empty piece would end the body."""
        data = call.take()
        if self._ids is not None:
            data = self._ids.feed(data)
        return self._framed(data) if data else ()

    def _framed(self, data: bytes) -> tuple[bytes, ...]:
        return (b"%x\r\n" % len(data), data, b"\r\n") if self._chunked else (data,)

    def _write(self, *parts: bytes) -> None:
        self._connection.transport.write(b"".join(parts))

    def _refuse(self, error: HubError) -> None:
        """Answer with an error status; nothing has been sent yet."""
        if self.response_complete or self.disconnected:
            return
        metrics.refused(error.code)
        body = errors.body(error)
        headers = errors.headers(error, "", is_repeatable=b"idempotency-key" in self._named)
        own = [b"%b: %b\r\n" % header for header in headers if header[0] != b"x-request-id"]
        own.append(b"content-length: %d\r\n" % len(body))
        self._write(self._head(error.status, b"".join(own)), body)
        self._finish(self._call, error.code)

    def _bug(self) -> None:
        _log.exception("chat request failed", request_id=self._request_id)
        if self._head_sent:
            self._connection.transport.abort()
            return
        text = f"The hub failed; tell its operator request id {self._request_id}."
        self._refuse(HubError(ErrorCode.INTERNAL_ERROR, text))

    def _finish(self, call: OpenCall | None, error: str = "") -> None:
        self.response_complete = True
        self._span.end(error=error)
        if call is not None:
            if not error:
                metrics.served(call)
            self._close_call(call)
        if not self.keep_alive:
            self._connection.transport.close()
        self._connection.on_response_complete()

    def _close_call(self, call: OpenCall) -> None:
        call.on_change = None
        call.abort = None
        self._call = None
        self._chat.dispatcher.close(call)

    def _body_late(self) -> None:
        if self.more_body:
            text = "The request body did not arrive in time; send it again."
            self._refuse(HubError(ErrorCode.REQUEST_TIMEOUT, text))

    def _too_large(self) -> HubError:
        limit = self._chat.settings.body_bytes_max
        return HubError(ErrorCode.PAYLOAD_TOO_LARGE, f"The body is above the limit of {limit} bytes; send less.")


def _resumable(given: bytes | None) -> bool:
    if given is None:
        return False
    text = given.strip().lower()
    if text not in _SWITCH:
        raise HubError(ErrorCode.INVALID_REQUEST, "`x-hub-resumable` is true or false.", param="x-hub-resumable")
    return _SWITCH[text]


def _idempotency_key(given: bytes | None) -> str | None:
    if given is None:
        return None
    text = given.decode("latin-1").strip()
    if not text or len(text) > _IDEMPOTENCY_KEY_MAX:
        raise HubError(
            ErrorCode.INVALID_REQUEST,
            f"An Idempotency-Key has 1 to {_IDEMPOTENCY_KEY_MAX} characters.",
            param="Idempotency-Key",
        )
    return text
