import time

import pytest

from contracts.errors import ErrorCode
from provider_router.adapters import errors

JSON = {"content-type": "application/json; charset=utf-8"}


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-Ab3dEf6hIj9kLmNo",
        "sk-ant-api03-xyz_123-abc",
        "sk-svcacct-*****************abcd",
        "sk-abc***************wxyz",
        "AIzaSyA1234567890abcdefghijk",
        "AKIAIOSFODNN7EXAMPLE",
        "gsk_abcdef1234567890",
        "0123456789abcdef0123456789abcdef",
        "Bearer eyJhbGciOi.abc.def",
    ],
)
def test_nothing_that_looks_like_a_key_is_repeated(secret: str) -> None:
    body = b'{"error":{"message":"Incorrect API key provided: %b."}}' % secret.encode()
    for status in (400, 401, 403, 429, 500):
        message = errors.answer_error(status, JSON, body).message
        assert secret not in message
        assert secret.rsplit(maxsplit=1)[-1] not in message


def test_ordinary_words_are_kept() -> None:
    text = "This model's maximum context length is 128000 tokens (gpt-4o-2024-08-06); see task-force or max_tokens."
    assert errors.scrub(text) == text


def test_scrubbing_takes_no_longer_for_a_hostile_text() -> None:
    begun = time.perf_counter()
    errors.scrub("-" * 5_000_000 + "a1" * 1_000_000)
    errors.scrub("sk-" + "*" * 5_000_000)
    assert time.perf_counter() - begun < 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "99999999"}, errors.RETRY_AFTER_S_MAX),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1" * 500}, None),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT", "date": "Wed, 21 Oct 2026 07:28:30 GMT"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00"}, None),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_and_bounded(headers: dict[str, str], seconds: float | None) -> None:
    assert errors.answer_error(429, {**JSON, **headers}, b"{}").retry_after_s == seconds


@pytest.mark.parametrize(
    ("status", "headers", "body", "code"),
    [
        (404, {"content-type": "text/html"}, b"<html>secret</html>", ErrorCode.UPSTREAM_BROKEN),
        (502, {"content-type": "text/html"}, b"<html>secret</html>", ErrorCode.UPSTREAM_UNAVAILABLE),
        (429, {"content-type": "text/html"}, b"<html>secret</html>", ErrorCode.UPSTREAM_RATE_LIMITED),
        (400, JSON, b"secret", ErrorCode.UPSTREAM_BROKEN),
        (400, JSON, b"", ErrorCode.UPSTREAM_BROKEN),
        (400, {}, b'{"error":{}}', ErrorCode.UPSTREAM_REJECTED),
        (301, JSON, b"{}", ErrorCode.UPSTREAM_BROKEN),
    ],
)
def test_a_page_instead_of_an_error_is_not_repeated(
    status: int, headers: dict[str, str], body: bytes, code: ErrorCode
) -> None:
    error = errors.answer_error(status, headers, body)
    assert error.code is code
    assert "secret" not in error.message


@pytest.mark.parametrize(
    ("body", "message", "code", "type_", "param"),
    [
        (
            b'{"error":{"message":"m","type":"t","code":"c","param":"messages"}}',
            "m", "c", "t", "messages",
        ),
        (b'{"error":{"message":"m","code":42}}', "m", "42", None, None),
        (b'[{"error":{"code":400,"message":"m","status":"INVALID_ARGUMENT"}}]', "m", "400", "INVALID_ARGUMENT", None),
        (b'{"error":"m"}', "m", None, None, None),
        (b'{"message":"m","type":"t"}', "m", None, "t", None),
        (b'{"detail":"m"}', "m", None, None, None),
        (b'{"error":{"message":["x"],"code":true}}', "The provider refused the request with status 400.",
         None, None, None),
    ],
)  # fmt: skip
def test_the_providers_words_survive(
    body: bytes, message: str, code: str | None, type_: str | None, param: str | None
) -> None:
    error = errors.answer_error(400, JSON, body)
    assert (error.message, error.provider_code, error.provider_type, error.param) == (message, code, type_, param)


def test_an_empty_account_at_the_provider_is_told_apart() -> None:
    body = b'{"error":{"message":"Over quota","type":"insufficient_quota","code":"insufficient_quota"}}'
    error = errors.answer_error(429, JSON, body)
    assert (error.code, error.provider_code) == (ErrorCode.UPSTREAM_RATE_LIMITED, "insufficient_quota")
