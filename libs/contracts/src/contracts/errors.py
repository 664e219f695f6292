"""The closed set of error codes, as data. A code is API, its wording is not."""

from enum import StrEnum
from typing import Final, NamedTuple


class ErrorCode(StrEnum):
    """Every code that a caller can see in an error body, an error event or a ModelCall."""

    INVALID_REQUEST = "invalid_request"
    INVALID_JSON = "invalid_json"
    INVALID_API_KEY = "invalid_api_key"
    NOT_ENOUGH_CREDIT = "not_enough_credit"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_UNPRICED = "model_unpriced"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TIMEOUT = "request_timeout"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    IDEMPOTENCY_MISMATCH = "idempotency_mismatch"
    CONFLICT = "conflict"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    HEADERS_TOO_LARGE = "headers_too_large"
    RATE_LIMITED = "rate_limited"
    INTERNAL_ERROR = "internal_error"
    UNSUPPORTED_FEATURE = "unsupported_feature"
    UPSTREAM_REJECTED = "upstream_rejected"
    UPSTREAM_AUTHENTICATION = "upstream_authentication"
    UPSTREAM_RATE_LIMITED = "upstream_rate_limited"
    UPSTREAM_UNAVAILABLE = "upstream_unavailable"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_BROKEN = "upstream_broken"
    ANSWER_LOST = "answer_lost"
    CREDIT_EXHAUSTED = "credit_exhausted"
    CLIENT_CANCELLED = "client_cancelled"
    ROUTER_UNAVAILABLE = "router_unavailable"
    ROUTER_LOST = "router_lost"
    GATEWAY_LOST = "gateway_lost"
    STALE = "stale"
    SETTLEMENT_TIMEOUT = "settlement_timeout"
    SERVICE_UNAVAILABLE = "service_unavailable"
    OVERLOADED = "overloaded"


class Retry(StrEnum):
    """Whether sending the same request again can help."""

    YES = "yes"
    """It can, and nothing was charged: a failed call never is."""
    NO = "no"
    """It fails again."""
    WITH_KEY = "with_key"
    """It may be charged twice, since what became of the first one is not known here; under the same
    `Idempotency-Key`, or when it only reads, it is safe."""


class ErrorRow(NamedTuple):
    """What a code means on the wire."""

    status: int
    """HTTP status."""
    type: str
    """`error.type` in OpenAI's error body."""
    retry: Retry
    """SDKs repeat what has a status of 408, 409, 429 or 500 and above by themselves; `x-should-retry` forbids it."""
    meaning: str


_YES, _NO, _WITH_KEY = Retry
_REQUEST, _AUTH, _SERVER, _UPSTREAM = "invalid_request_error", "authentication_error", "server_error", "upstream_error"

ERRORS: Final[dict[ErrorCode, ErrorRow]] = {
    ErrorCode.INVALID_REQUEST: ErrorRow(400, _REQUEST, _NO, "A field is missing, of the wrong type or out of range."),
    ErrorCode.INVALID_JSON: ErrorRow(400, _REQUEST, _NO, "The body is not the JSON that this endpoint reads."),
    ErrorCode.INVALID_API_KEY: ErrorRow(401, _AUTH, _NO, "The access key is missing, unknown or revoked."),
    ErrorCode.NOT_ENOUGH_CREDIT: ErrorRow(402, "NOT_ENOUGH", _NO, "The account's free credit is below the hold."),
    ErrorCode.FORBIDDEN: ErrorRow(403, "permission_error", _NO, "The key's role does not allow this."),
    ErrorCode.NOT_FOUND: ErrorRow(404, _REQUEST, _NO, "There is no such path, call or object."),
    ErrorCode.MODEL_NOT_FOUND: ErrorRow(404, _REQUEST, _NO, "No configured provider serves this model."),
    ErrorCode.MODEL_UNPRICED: ErrorRow(400, _REQUEST, _NO, "The model has no price and billing is on."),
    ErrorCode.METHOD_NOT_ALLOWED: ErrorRow(405, _REQUEST, _NO, "The path does not take this method."),
    ErrorCode.REQUEST_TIMEOUT: ErrorRow(408, _REQUEST, _YES, "The request did not arrive in time."),
    ErrorCode.IDEMPOTENCY_CONFLICT: ErrorRow(409, _REQUEST, _NO, "The key's call is known, its answer not kept."),
    ErrorCode.IDEMPOTENCY_MISMATCH: ErrorRow(409, _REQUEST, _NO, "The key belongs to a request with another body."),
    ErrorCode.CONFLICT: ErrorRow(409, _REQUEST, _NO, "The object changed meanwhile or exists already."),
    ErrorCode.PAYLOAD_TOO_LARGE: ErrorRow(413, _REQUEST, _NO, "The body is above the limit."),
    ErrorCode.HEADERS_TOO_LARGE: ErrorRow(431, _REQUEST, _NO, "There are too many headers, or they are too large."),
    ErrorCode.RATE_LIMITED: ErrorRow(429, "rate_limit_error", _YES, "Too many requests."),
    ErrorCode.INTERNAL_ERROR: ErrorRow(500, _SERVER, _WITH_KEY, "A bug on our side; the log has it by the request id."),
    ErrorCode.UNSUPPORTED_FEATURE: ErrorRow(400, _REQUEST, _NO, "The chosen provider cannot express this field."),
    ErrorCode.UPSTREAM_REJECTED: ErrorRow(400, _REQUEST, _NO, "The provider refused the request; its words follow."),
    ErrorCode.UPSTREAM_AUTHENTICATION: ErrorRow(502, _UPSTREAM, _NO, "The provider refused the hub's credential."),
    ErrorCode.UPSTREAM_RATE_LIMITED: ErrorRow(429, "rate_limit_error", _YES, "The provider limits the hub."),
    ErrorCode.UPSTREAM_UNAVAILABLE: ErrorRow(502, _UPSTREAM, _YES, "The provider failed or could not be reached."),
    ErrorCode.UPSTREAM_TIMEOUT: ErrorRow(504, _UPSTREAM, _YES, "The provider did not answer in time."),
    ErrorCode.UPSTREAM_BROKEN: ErrorRow(502, _UPSTREAM, _YES, "The provider's answer ended early or was malformed."),
    ErrorCode.ANSWER_LOST: ErrorRow(502, _SERVER, _WITH_KEY, "Lost inside the hub; ask GET /api/v2/calls/{id}."),
    ErrorCode.CREDIT_EXHAUSTED: ErrorRow(402, "NOT_ENOUGH", _NO, "Credit ran out while the answer was running."),
    ErrorCode.CLIENT_CANCELLED: ErrorRow(499, _REQUEST, _NO, "The client left before the answer was complete."),
    ErrorCode.ROUTER_UNAVAILABLE: ErrorRow(503, _SERVER, _YES, "No provider-router accepted the call in time."),
    ErrorCode.ROUTER_LOST: ErrorRow(502, _SERVER, _YES, "The provider-router of the call is gone."),
    ErrorCode.GATEWAY_LOST: ErrorRow(502, _SERVER, _YES, "The gateway of the call is gone."),
    ErrorCode.STALE: ErrorRow(502, _SERVER, _YES, "The call's lease ended without an outcome."),
    ErrorCode.SETTLEMENT_TIMEOUT: ErrorRow(504, _SERVER, _WITH_KEY, "Not yet booked; ask GET /api/v2/calls/{id}."),
    ErrorCode.SERVICE_UNAVAILABLE: ErrorRow(503, _SERVER, _YES, "A part of the hub is away; nothing was charged."),
    ErrorCode.OVERLOADED: ErrorRow(503, _SERVER, _YES, "The hub takes no more calls right now."),
}

REASON_CHARS_MAX: Final = 1000
"""Longest error reason that is stored or shown."""


class HubError(Exception):
    """A refusal that the caller may read. The message says what to do; causes go to the log only.

    Args:
        code: one of the closed set.
        message: what the caller can do about it, without secrets.
        param: the field of the request that is wrong.
        status: only for answers that keep the provider's own status.
        retry_after_s: seconds after which trying again makes sense.
        call_id: the call it belongs to, when one exists.
        provider_code: the provider's own `error.code`.
        provider_type: the provider's own `error.type`.
        link: where the caller can do something about it, e.g. pay.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        param: str | None = None,
        status: int | None = None,
        retry_after_s: float | None = None,
        call_id: str | None = None,
        provider_code: str | None = None,
        provider_type: str | None = None,
        link: str | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message[:REASON_CHARS_MAX]
        self.param = param
        self.status = ERRORS[code].status if status is None else status
        self.retry_after_s = retry_after_s
        self.call_id = call_id
        self.provider_code = provider_code
        self.provider_type = provider_type
        self.link = link
