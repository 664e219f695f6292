"""Frames → JSON or SSE: what a client sees of a call, written through ASGI."""

import contextlib
import time
from collections.abc import Awaitable, Callable, MutableMapping
from decimal import Decimal
from typing import Any, Final

from contracts.errors import ErrorCode, HubError
from contracts.rpc.metering import SettledCall
from gateway.api import errors
from gateway.open_call import OpenCall
from runtime import failpoints

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]
_STREAM_HEADERS: Final[list[Header]] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def with_credits(held: bytes, splice_at: int | None, settled: SettledCall) -> bytes:
    """The held bytes with credits and call id inside their usage object; all other bytes are untouched.

    `credits` is a decimal string; `aigneHubCredits` is the same as a JSON number, as AIGNE's clients read it.
    """
    if splice_at is None:
        return held
    number = format(Decimal(settled.credits).normalize(), "f")
    members = (
        f'"credits":"{settled.credits}","call_id":"{settled.call_id}",'
        f'"aigneHubCredits":{number},"modelCallId":"{settled.call_id}","creditPrefix":""'
    ).encode()
    comma = b"" if held[:splice_at].rstrip().endswith(b"{") else b","
    return b"".join((held[:splice_at], comma, members, held[splice_at:]))


async def relay_json(call: OpenCall, send: Send, headers: list[Header]) -> None:
    """Answer with one JSON body once the call is settled.

    Raises:
        HubError: the call failed; nothing has been sent.
    """
    while not call.ready:
        if call.error is not None:
            raise call.error
        if call.gone:
            return
        await call.changed()
    if call.error is not None:
        raise call.error
    if call.held is None or call.settled is None:
        raise HubError(ErrorCode.INTERNAL_ERROR, "The hub lost this call's answer.")
    call.chunks.append(call.held)
    body = with_credits(call.take(), call.splice_at, call.settled)
    failpoints.hit("gateway.before_final_frame")
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def relay_stream(call: OpenCall, send: Send, headers: list[Header]) -> None:
    """Relay a stream; its tail goes out when the call is settled, an error event instead when it failed.

    Raises:
        HubError: the call failed before the first byte; nothing has been sent.
    """
    started = False
    while not call.gone:
        if call.error is not None and not call.chunks:
            if not started:
                raise call.error
            await _write(call, send, errors.event(call.error), more=False)
            return
        if call.chunks or call.ready:
            if not started:
                started = True
                await send({"type": "http.response.start", "status": 200, "headers": [*_STREAM_HEADERS, *headers]})
            if call.ready:
                await _finish(call, send)
                return
            await _write(call, send, call.take(), more=True)
            continue
        await call.changed()


async def _finish(call: OpenCall, send: Send) -> None:
    if call.held is None or call.settled is None:
        raise HubError(ErrorCode.INTERNAL_ERROR, "The hub lost this call's tail.")
    call_tail = with_credits(call.held, call.splice_at, call.settled)
    failpoints.hit("gateway.before_final_frame")
    call.chunks.append(call_tail)
    await _write(call, send, call.take(), more=False)


async def _write(call: OpenCall, send: Send, body: bytes, *, more: bool) -> None:
    """Write to the client. The dispatcher's sweep drops one that blocks for too long: no timer per chunk."""
    call.writing_since = time.monotonic()
    await send({"type": "http.response.body", "body": body, "more_body": more})
    call.writing_since = None


async def respond_error(send: Send, error: HubError, request_id: str, headers: list[Header]) -> None:
    """Answer with an error body in OpenAI's shape."""
    body = errors.body(error)
    length = (b"content-length", str(len(body)).encode())
    start = {
        "type": "http.response.start",
        "status": error.status,
        "headers": [*errors.headers(error, request_id), length, *headers],
    }
    with contextlib.suppress(OSError):  # the client may be gone
        await send(start)
        await send({"type": "http.response.body", "body": body})
