"""What a client gets of a call on its HTTP/1.1 connection: the answer, whole or as a stream, or a refusal."""

import asyncio
from typing import Final, Protocol

import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from contracts.errors import ErrorCode, HubError
from gateway import metrics
from gateway.api import errors
from gateway.api.chat import Chat
from gateway.event_ids import EventIds
from gateway.open_call import OpenCall
from gateway.relay import with_credits
from runtime import failpoints
from runtime.telemetry import CallSpan

_log = structlog.get_logger("chat")

_CORS: Final = b"access-control-allow-origin: *\r\naccess-control-expose-headers: *\r\n"
_JSON_HEAD: Final = b"content-type: application/json\r\ncontent-length: %d\r\n"
_STREAM_HEAD: Final = (
    b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
)


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


class Answering:
    """The writing half of an exchange, which sets the attributes: another constructor would be a call per request."""

    keep_alive: bool
    response_complete: bool
    disconnected: bool
    _chat: Chat
    _named: dict[bytes, bytes]
    """Headers of the request."""
    _connection: Connection
    _request_id: str
    _span: CallSpan
    _chunked: bool
    _head_sent: bool
    _ids: EventIds | None
    """Numbers the events of a stream that its client wants to resume."""
    _call: OpenCall | None

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
