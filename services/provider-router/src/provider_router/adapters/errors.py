"""A provider's error, made into ours: its code, type and words, without anything that looks like a secret."""

import re
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple

import msgspec

from contracts.errors import ErrorCode as Code
from contracts.errors import HubError

RETRY_AFTER_S_MAX: Final = 3600.0
_WORDS_MAX: Final = 2000
_NAME_MAX: Final = 100
_HTTP_OK, _HTTP_REDIRECT, _HTTP_CLIENT, _HTTP_SERVER = 200, 300, 400, 500
_SECRET: Final = re.compile(
    r"(?i:bearer)\s+\S+"
    r"|\b(?:sk|pk|rk|xai|gsk|key|api)[-_][\w*\-]{6,}(?:\.[\w*\-]+)*"
    r"|\bAIza[\w\-]{10,}"
    r"|\bAKIA[A-Z0-9]{8,}"
    r"|\b[\w\-]*\*{3,}[\w\-]*"
    r"|\b(?=[\w\-]*\d)(?=[\w\-]*[A-Za-z])[\w\-]{32,}"
)


class ProviderWords(NamedTuple):
    """What a provider says about an error, scrubbed and bounded."""

    message: str
    code: str | None = None
    type: str | None = None
    param: str | None = None


def scrub(text: str) -> str:
    """Text without anything that looks like a key."""
    return _SECRET.sub("[redacted]", text[:_WORDS_MAX])


def provider_words(error: object) -> ProviderWords:
    """Code, type and message of an error object, or of a bare text."""
    if isinstance(error, str):
        return ProviderWords(scrub(error))
    if not isinstance(error, dict):
        return ProviderWords("")
    message = error.get("message") or error.get("detail") or ""
    return ProviderWords(
        scrub(message) if isinstance(message, str) else "",
        _name(error.get("code")),
        _name(error.get("type") or error.get("status")),
        _name(error.get("param")),
    )


def body_words(headers: dict[str, str], body: bytes) -> ProviderWords | None:
    """The words in an error answer; None = it is no JSON object, so nothing of it is repeated."""
    if "json" not in headers.get("content-type", "json").lower():
        return None
    try:
        decoded: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    if isinstance(decoded, list) and decoded:  # Gemini's compatible endpoint wraps errors in a list
        decoded = decoded[0]
    if not isinstance(decoded, dict):
        return None
    return provider_words(decoded.get("error", decoded))


def retry_after(headers: dict[str, str]) -> float | None:
    """Seconds from `Retry-After` (seconds, or a date relative to the answer's own `Date`), 0 to one hour."""
    text = headers.get("retry-after-ms", "")
    if re.fullmatch(r"\d{1,12}(\.\d{1,6})?", text):
        return min(float(text) / 1000, RETRY_AFTER_S_MAX)
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,12}(\.\d{1,6})?", text):
        return min(float(text), RETRY_AFTER_S_MAX)
    try:
        wait = parsedate_to_datetime(text) - parsedate_to_datetime(headers.get("date", ""))
    except (ValueError, TypeError):  # TypeError: one with, one without a time zone
        return None
    return min(max(wait.total_seconds(), 0.0), RETRY_AFTER_S_MAX)


def answer_error(status: int, headers: dict[str, str], body: bytes) -> HubError:  # noqa: PLR0911 - a table
    """The error that an answer with an error status stands for."""
    words = body_words(headers, body)
    code, type_ = (words.code, words.type) if words else (None, None)
    if status in {401, 403}:
        # Providers quote the key here, so nothing of the text is repeated.
        return HubError(Code.UPSTREAM_AUTHENTICATION, "The provider refused the hub's credential.", provider_type=type_)
    if status == 429:  # noqa: PLR2004
        return HubError(
            Code.UPSTREAM_RATE_LIMITED,
            _said("The provider limits the hub", words),
            retry_after_s=retry_after(headers),
            provider_code=code,
            provider_type=type_,
        )
    if status == 408:  # noqa: PLR2004
        return HubError(Code.UPSTREAM_TIMEOUT, "The provider did not answer in time.", provider_code=code)
    if status == 402 or status >= _HTTP_SERVER:  # noqa: PLR2004 - 402: the hub's own account there is empty
        return HubError(
            Code.UPSTREAM_UNAVAILABLE,
            _said(f"The provider failed with status {status}", words),
            retry_after_s=retry_after(headers),
            provider_code=code,
            provider_type=type_,
        )
    if status < _HTTP_CLIENT:
        kind = "a redirect, which is not followed" if status >= _HTTP_REDIRECT else f"status {status}"
        return HubError(Code.UPSTREAM_BROKEN, f"The provider answered with {kind}.")
    if words is None:
        return HubError(Code.UPSTREAM_BROKEN, f"The provider answered with status {status} and no JSON error.")
    message = words.message or f"The provider refused the request with status {status}."
    return HubError(
        Code.UPSTREAM_REJECTED, message, param=words.param, status=status, provider_code=code, provider_type=type_
    )


def broken(what: str, words: ProviderWords | None = None) -> HubError:
    """`upstream_broken`, with the provider's words if it had some."""
    code, type_ = (words.code, words.type) if words else (None, None)
    return HubError(Code.UPSTREAM_BROKEN, _said(what, words), provider_code=code, provider_type=type_)


def _said(what: str, words: ProviderWords | None) -> str:
    return f"{what}: {words.message}" if words and words.message else f"{what}."


def _name(value: object) -> str | None:
    if isinstance(value, str) and value:
        return scrub(value)[:_NAME_MAX]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**9 else None
