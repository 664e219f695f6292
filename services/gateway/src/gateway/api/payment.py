"""`POST /api/payment/callback`: webhooks of Payment Kit, handed to metering, which knows the application's key."""

from typing import Final

from fastapi import Request
from fastapi.responses import JSONResponse

from contracts.errors import ErrorCode, HubError
from contracts.rpc.payments import PaymentCallback
from gateway.api.services import Used

CALLBACK_PATH: Final = "/api/payment/callback"
BODY_BYTES_MAX: Final = 256 * 1024
_URL_CHARS_MAX: Final = 4000
_ANSWERS: Final = {
    "good": (200, {"received": True}),
    "unsigned": (400, {"error": "Bad Request"}),
    "wrong": (401, {"error": "verify sig failed"}),
}
"""Bodies as the original's receiver words them."""


async def callback(request: Request, used: Used) -> JSONResponse:
    """Take a webhook that the application's key signed: 200 makes Payment Kit stop sending it.

    Raises:
        HubError: `not_found` without Payment Kit, `payload_too_large`, or `service_unavailable`.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_BYTES_MAX:
            raise HubError(ErrorCode.PAYLOAD_TOO_LARGE, f"A webhook has at most {BODY_BYTES_MAX} bytes.")
    query = request.scope["query_string"].decode("latin-1")
    url = request.scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
    if len(url) > _URL_CHARS_MAX:
        raise HubError(ErrorCode.INVALID_REQUEST, "The query is too long.")
    reply = await used.peers.payment_callback(
        PaymentCallback(
            method=request.method,
            url=url,
            headers={name: value for name, value in request.headers.items() if name.startswith("x-component-")},
            body=body.decode("utf-8", "replace"),  # what is no text was never signed: it is refused as such
        )
    )
    status, answer = _ANSWERS[reply.verdict]
    return JSONResponse(answer, status)
