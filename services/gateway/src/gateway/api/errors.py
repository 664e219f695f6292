"""`HubError` → what a client reads: OpenAI's error body, the error event of a stream, the admin API's shape."""

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from contracts.errors import ERRORS, ErrorCode, HubError, Retry

_JSON: Final = b"application/json"
_ENCODER: Final = msgspec.json.Encoder()


class ErrorObject(msgspec.Struct):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None
    call_id: str | msgspec.UnsetType = msgspec.UNSET
    """Of the call that the error belongs to, when there is one."""
    link: str | msgspec.UnsetType = msgspec.UNSET
    """Where the caller can pay, of a refusal for want of credit."""


class ErrorBody(msgspec.Struct):
    """Body of an answer with an error status."""

    error: ErrorObject


class RowProblem(msgspec.Struct):
    """What is wrong with one row of many."""

    index: int
    """From 0."""
    code: str
    error: str
    param: str | None


class AdminError(msgspec.Struct):
    """The admin API's refusals, as the original's role check writes them."""

    code: str
    error: str
    errors: list[RowProblem] | msgspec.UnsetType = msgspec.UNSET
    """All that is wrong, of a change of many rows."""


class RowsRefusedError(HubError):
    """Nothing of a change of many rows was done.

    Args:
        rows: what is wrong with which, at least one; the answer has their code, or `invalid_request` for several.
    """

    def __init__(self, rows: Sequence[RowProblem]) -> None:
        codes = {row.code for row in rows}
        code = ErrorCode(codes.pop()) if len(codes) == 1 else ErrorCode.INVALID_REQUEST
        first = rows[0]
        super().__init__(code, f"Nothing was changed: {len(rows)} rows are wrong; row {first.index}: {first.error}")
        self.rows = list(rows)


def body(error: HubError) -> bytes:
    """OpenAI's error body."""
    return _ENCODER.encode(ErrorBody(_object(error)))


def event(error: HubError) -> bytes:
    """The error event of a stream that has begun; no `[DONE]` follows it, since SDKs take that for success."""
    return b"data: " + body(error) + b"\n\n"


def headers(error: HubError, request_id: str, *, is_repeatable: bool = False) -> list[tuple[bytes, bytes]]:
    """Headers of an error answer, without its length: type, request id, whether and when to try again.

    Args:
        error: the refusal.
        request_id: of the request.
        is_repeatable: whether the same request again is never charged twice: it has a key, or only reads.
    """
    result = [(b"content-type", _JSON), (b"x-request-id", request_id.encode("ascii", "ignore"))]
    if not _may_be_repeated(error.code, is_repeatable=is_repeatable):
        result.append((b"x-should-retry", b"false"))
    if error.retry_after_s is not None:
        result.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
    elif error.status in {429, 503}:
        result.append((b"retry-after", b"1"))
    if error.status == ERRORS[ErrorCode.INVALID_API_KEY].status:
        result.append((b"www-authenticate", b"Bearer"))
    if error.call_id is not None:
        result.append((b"x-call-id", error.call_id.encode("ascii", "ignore")))
    return result


def _may_be_repeated(code: ErrorCode, *, is_repeatable: bool) -> bool:
    match ERRORS[code].retry:
        case Retry.YES:
            return True
        case Retry.WITH_KEY:
            return is_repeatable
        case Retry.NO:
            return False


def admin_body(error: HubError) -> bytes:
    """The admin API's body: 401 and 403 in the original's words, all else code and message."""
    if error.code is ErrorCode.INVALID_API_KEY:
        return _ENCODER.encode(AdminError("forbidden", "not authorized"))
    if error.code is ErrorCode.FORBIDDEN:
        return _ENCODER.encode(AdminError("forbidden", "no permission"))
    rows = error.rows if isinstance(error, RowsRefusedError) else msgspec.UNSET
    return _ENCODER.encode(AdminError(error.code, error.message, rows))


def _object(error: HubError) -> ErrorObject:
    kind = error.provider_type or ERRORS[error.code].type
    code = error.provider_code or str(error.code)
    call_id = msgspec.UNSET if error.call_id is None else error.call_id
    link = msgspec.UNSET if error.link is None else error.link
    return ErrorObject(error.message, kind, error.param, code, call_id, link)
