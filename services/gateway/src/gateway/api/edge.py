"""What every answer of the FastAPI application has: request and trace id, CORS, security headers, an error body."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import structlog

from contracts.errors import ErrorCode, HubError
from contracts.ids import new_trace_id
from gateway.api import errors
from runtime.telemetry import new_trace, read_traceparent

_log = structlog.get_logger("api")
_REQUEST_ID_MAX: Final = 128
_BLANK: Final = 0x20
_VISIBLE: Final = frozenset(range(0x21, 0x7F))
"""Bytes of visible ASCII signs."""
REQUEST_ID: Final = "request_id"
"""Key in the scope's state."""
READS: Final = frozenset({"GET", "HEAD"})
"""Methods of requests that change nothing."""

CORS: Final = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"*"),
)
_PREFLIGHT: Final = (
    *CORS,
    (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
    (b"access-control-max-age", b"86400"),
)
SECURITY: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


def request_id(value: bytes | None) -> str:
    """The client's request id if it is one of 1 to 128 visible ASCII signs, else a new one."""
    if value and len(value) <= _REQUEST_ID_MAX and _VISIBLE.issuperset(value):
        return value.decode("ascii")
    return f"req_{new_trace_id()}"


class Edge:
    """ASGI middleware around the application."""

    def __init__(self, app: Asgi) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; what the application raises becomes a 500 whose cause is only in the log."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if scope["method"] == "OPTIONS":
            await _preflight(send, headers.get(b"access-control-request-headers", b"*"))
            return
        own_id = request_id(headers.get(b"x-request-id"))
        trace = read_traceparent(headers.get(b"traceparent", b"").decode("latin-1")) or new_trace()
        scope.setdefault("state", {})[REQUEST_ID] = own_id
        added = [(b"x-request-id", own_id.encode()), (b"x-trace-id", trace.trace_id.encode()), *CORS, *SECURITY]
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(pair for pair in added if pair[0] not in present)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:  # the edge: a bug becomes a 500 with a request id
            _log.exception("request failed", request_id=own_id, path=scope["path"])
            if started:
                raise
            error = HubError(ErrorCode.INTERNAL_ERROR, f"The hub failed; tell its operator request id {own_id}.")
            await respond(
                send_with_headers,
                error.status,
                errors.headers(error, own_id, is_repeatable=scope["method"] in READS),
                errors.body(error),
            )


async def respond(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Send a whole answer."""
    whole = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": whole})
    await send({"type": "http.response.body", "body": body})


async def _preflight(send: Send, asked: bytes) -> None:
    """Any origin may send any header: keys travel in `Authorization`, no cookie counts."""
    visible = bytes(byte for byte in asked if byte in _VISIBLE or byte == _BLANK)
    headers = [*_PREFLIGHT, (b"access-control-allow-headers", visible), (b"vary", b"access-control-request-headers")]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
