"""What a request's headers say about who calls, and for which project."""

import contextlib
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote

_BEARER: Final = b"bearer "
_CREDENTIAL_BYTES_MAX: Final = 8192
_PROJECT_CHARS_MAX: Final = 200
PROJECT_HEADER: Final = b"x-aigne-hub-client-did"

Headers = Iterable[tuple[bytes, bytes]]
"""Request headers as ASGI has them: names in lower case."""


def bearer(headers: Headers) -> bytes | None:
    """The token of `Authorization: Bearer …`; None when there is none, or when two differ."""
    found: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            token = bearer_token(value)
            if token is None or (found is not None and token != found):
                return None
            found = token
    return found


def bearer_token(value: bytes) -> bytes | None:
    """The token in the value of one `Authorization` header; None for another scheme or an empty token."""
    if value[:7].lower() != _BEARER:
        return None
    token = value[7:].strip()
    return token if 0 < len(token) <= _CREDENTIAL_BYTES_MAX else None


def project(value: bytes) -> str:
    """The project named by an `x-aigne-hub-client-did` header: trimmed, percent-decoded, at most 200 characters.

    Text that does not decode stays as it came.
    """
    text = value.decode(errors="replace").strip()
    if "%" in text:
        with contextlib.suppress(UnicodeDecodeError):
            text = unquote(text, errors="strict")
    return "".join(c for c in text if c.isprintable())[:_PROJECT_CHARS_MAX]
