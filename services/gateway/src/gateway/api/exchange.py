"""One chat request and its answer on one HTTP/1.1 connection, below ASGI.

An ASGI callable costs a task, a scope, two futures and four messages per request: half of the gateway's CPU. Here the
HTTP protocol's callbacks drive the call, and the bus' callbacks write the answer; a task runs only for a key that is
not cached. To uvicorn's protocol an exchange is what its `RequestResponseCycle` is: the attributes in its first block
are those that the protocol reads and sets. Limits of heads, pipelining, keep-alive and draining stay uvicorn's and
`http_protocol`'s.
"""

import asyncio
import time
from typing import Any, Final

import structlog
from opentelemetry.trace import SpanKind

from contracts.errors import ErrorCode, HubError
from gateway.admission.admit import RequestContext, admit
from gateway.admission.peek import check_content_type, peek
from gateway.api import edge
from gateway.api.answering import Answering, Connection
from gateway.api.chat import Chat
from gateway.api.chat_headers import idempotency_key, resumable
from gateway.auth import credential
from gateway.auth.principals import Principal
from gateway.event_ids import EventIds
from runtime.telemetry import read_traceparent

_log = structlog.get_logger("chat")
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class _Unwatched:
    """An exchange needs no waking: uvicorn's event without a waiter."""

    def set(self) -> None:
        """Nobody waits."""


class ChatExchange(Answering):
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
        self._ids = None
        self._call = None
        self._task: asyncio.Task[None] | None = None
        self._body_timer: asyncio.TimerHandle | None = None
        self._request_id = edge.request_id(self._named.get(b"x-request-id"))
        self._span = chat.tracing.start(
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
            idempotency_key=idempotency_key(self._named.get(b"idempotency-key")),
            resumable=resumable(self._named.get(b"x-hub-resumable")),
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

    def _body_late(self) -> None:
        if self.more_body:
            text = "The request body did not arrive in time; send it again."
            self._refuse(HubError(ErrorCode.REQUEST_TIMEOUT, text))

    def _too_large(self) -> HubError:
        limit = self._chat.settings.body_bytes_max
        return HubError(ErrorCode.PAYLOAD_TOO_LARGE, f"The body is above the limit of {limit} bytes; send less.")
