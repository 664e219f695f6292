"""The chat route: a bare ASGI callable, since FastAPI alone would cost as much as all the rest of a call.

`POST …/chat/completions` on every OpenAI mount; the dialect is chosen by one function before anything else.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

import structlog
from opentelemetry.trace import SpanKind

from contracts.errors import ErrorCode, HubError
from gateway import metrics
from gateway.admission.admit import RequestContext, admit
from gateway.admission.peek import check_content_type, peek
from gateway.admission.prices import Prices
from gateway.admission.reserve import Reserver
from gateway.api import edge
from gateway.auth import credential
from gateway.auth.principals import Principals
from gateway.dispatch import Dispatcher
from gateway.http_protocol import ABORT, ON_DISCONNECT
from gateway.relay import Header, Send, relay_json, relay_stream, respond_error
from gateway.settings import Settings
from runtime.telemetry import CallSpan, Tracing, read_traceparent

_log = structlog.get_logger("openai")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_IDEMPOTENCY_KEY_MAX: Final = 255


@dataclass(frozen=True, slots=True)
class ChatRoute:
    """Everything that a chat request passes on its way."""

    settings: Settings
    process: str
    principals: Principals
    prices: Prices
    reserver: Reserver
    dispatcher: Dispatcher
    tracing: Tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        trace = read_traceparent(headers.get(b"traceparent", b"").decode("latin-1"))
        span = self.tracing.start("POST chat/completions", trace, SpanKind.SERVER, {"url.path": scope["path"]})
        request_id = edge.request_id(headers.get(b"x-request-id"))
        answer_headers: list[Header] = [
            (b"x-trace-id", span.context.trace_id.encode()),
            (b"access-control-allow-origin", b"*"),
            (b"access-control-expose-headers", b"*"),
        ]
        try:
            await self._serve(scope, receive, send, headers, request_id, span, answer_headers)
            span.end()
        except HubError as error:
            span.end(error=error.code)
            metrics.refused(error.code)
            await respond_error(send, error, request_id, answer_headers)
        except Exception:  # noqa: BLE001 - the edge: a bug becomes a 500 with a request id
            _log.exception("chat request failed", request_id=request_id)
            span.end(error=ErrorCode.INTERNAL_ERROR)
            metrics.refused(ErrorCode.INTERNAL_ERROR)
            bug = HubError(ErrorCode.INTERNAL_ERROR, f"The hub failed; tell its operator request id {request_id}.")
            await respond_error(send, bug, request_id, answer_headers)

    async def _serve(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: dict[bytes, bytes],
        request_id: str,
        span: CallSpan,
        answer_headers: list[Header],
    ) -> None:
        principal = await self.principals.authenticate(credential.bearer(scope["headers"]))
        check_content_type(headers.get(b"content-type"))
        body = await read_body(receive, headers, self.settings)
        asked = peek(body)
        if len(self.dispatcher) >= self.settings.calls_max:
            raise HubError(ErrorCode.OVERLOADED, "The hub takes no more calls right now; try again.", retry_after_s=1)
        context = RequestContext(
            request_id=request_id,
            project=credential.project(headers.get(b"x-aigne-hub-client-did", b"")),
            idempotency_key=_idempotency_key(headers.get(b"idempotency-key")),
            trace=span.context,
        )
        call = admit(
            asked,
            body,
            principal,
            context,
            self.prices,
            self.settings,
            number=self.dispatcher.next_number(),
            gateway=self.process,
        )
        scope[ON_DISCONNECT] = lambda: self.dispatcher.left(call)
        call.abort = scope.get(ABORT)
        self.dispatcher.open(call)
        try:
            self.reserver.reserve(call)
            success_headers = [
                (b"x-request-id", request_id.encode()),
                (b"x-call-id", call.call_id.encode()),
                *answer_headers,
            ]
            if asked.stream:
                await relay_stream(call, send, success_headers)
            else:
                await relay_json(call, send, success_headers)
            metrics.served(call)
        finally:
            self.dispatcher.close(call)


async def read_body(receive: Receive, headers: dict[bytes, bytes], settings: Settings) -> bytes:
    """The whole body, bounded in size and time.

    Raises:
        HubError: `payload_too_large`, `request_timeout`, or `invalid_request` when the client left in between.
    """
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > settings.body_bytes_max:
        raise _too_large(settings)
    message = await _next(receive, settings.body_timeout_s)
    if not message.get("more_body"):
        whole: bytes = message.get("body", b"")
        if len(whole) > settings.body_bytes_max:
            raise _too_large(settings)
        return whole
    parts = [message.get("body", b"")]
    size = len(parts[0])
    until = asyncio.get_running_loop().time() + settings.body_timeout_s
    while message.get("more_body"):
        message = await _next(receive, until - asyncio.get_running_loop().time())
        part = message.get("body", b"")
        size += len(part)
        if size > settings.body_bytes_max:
            raise _too_large(settings)
        parts.append(part)
    return b"".join(parts)


async def _next(receive: Receive, within_s: float) -> MutableMapping[str, Any]:
    try:
        async with asyncio.timeout(within_s):
            message = await receive()
    except TimeoutError as error:
        raise HubError(ErrorCode.REQUEST_TIMEOUT, "The request body did not arrive in time; send it again.") from error
    if message["type"] == "http.disconnect":
        raise HubError(ErrorCode.CLIENT_CANCELLED, "The client left before the request was complete.")
    return message


def _too_large(settings: Settings) -> HubError:
    return HubError(
        ErrorCode.PAYLOAD_TOO_LARGE, f"The body is above the limit of {settings.body_bytes_max} bytes; send less."
    )


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
