import json

import pytest

from contracts.errors import ERRORS, ErrorCode, HubError, Retry
from gateway.api import errors


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_has_openais_body_and_says_whether_to_retry(code: ErrorCode) -> None:
    error = HubError(code, "Do something else.", param="model")
    body = json.loads(errors.body(error))
    row = ERRORS[code]
    assert body == {"error": {"message": "Do something else.", "type": row.type, "param": "model", "code": str(code)}}
    headers = dict(errors.headers(error, "req-1"))
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"x-request-id"] == b"req-1"
    assert (headers.get(b"x-should-retry") == b"false") is (row.retry is not Retry.YES)
    repeatable = dict(errors.headers(error, "req-1", is_repeatable=True))
    assert (repeatable.get(b"x-should-retry") == b"false") is (row.retry is Retry.NO)
    assert (b"retry-after" in headers) is (row.status in {429, 503})


def test_not_enough_credit_has_the_originals_type() -> None:
    error = HubError(ErrorCode.NOT_ENOUGH_CREDIT, "Top up.")
    assert (error.status, json.loads(errors.body(error))["error"]["type"]) == (402, "NOT_ENOUGH")


@pytest.mark.parity(27)
def test_the_providers_code_type_status_and_patience_survive() -> None:
    error = HubError(
        ErrorCode.UPSTREAM_REJECTED,
        "context too long",
        param="messages",
        status=422,
        retry_after_s=2.2,
        call_id="0197-call",
        provider_code="context_length_exceeded",
        provider_type="invalid_request_error",
    )
    assert json.loads(errors.body(error))["error"] == {
        "message": "context too long",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
        "call_id": "0197-call",
    }
    headers = dict(errors.headers(error, "r"))
    assert (error.status, headers[b"retry-after"], headers[b"x-call-id"]) == (422, b"3", b"0197-call")


def test_an_error_event_is_one_frame_and_never_done() -> None:
    event = errors.event(HubError(ErrorCode.ROUTER_LOST, 'broken\n\n"pipe"', call_id="c"))
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n\n") == 1
    assert b"[DONE]" not in event
    assert json.loads(event[6:])["error"]["code"] == "router_lost"


def test_admin_refusals_read_as_the_originals() -> None:
    def body(code: ErrorCode) -> object:
        return json.loads(errors.admin_body(HubError(code, "No such thing.")))

    assert body(ErrorCode.INVALID_API_KEY) == {"code": "forbidden", "error": "not authorized"}
    assert body(ErrorCode.FORBIDDEN) == {"code": "forbidden", "error": "no permission"}
    assert body(ErrorCode.NOT_FOUND) == {"code": "not_found", "error": "No such thing."}


def test_a_refused_key_names_the_scheme() -> None:
    headers = dict(errors.headers(HubError(ErrorCode.INVALID_API_KEY, "no"), "r"))
    assert headers[b"www-authenticate"] == b"Bearer"
