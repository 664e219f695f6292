"""Identifiers: calls are UUIDv7, so that an id carries its time and partitions follow from it."""

import os
import re
import secrets
import time
import uuid
from typing import Final

CALL_ID_LENGTH: Final = 36
_POOL_BYTES: Final = 4096
_WELCOME: Final = uuid.UUID("6f3d3c3e-0c1b-5b0e-9a55-0d9a3c2f7a11")
"""Namespace of welcome grants."""
_pool = b""
_pool_at = 0


def _random(size: int) -> int:
    """Random bits from the system, read in blocks: one system call serves a hundred ids."""
    global _pool, _pool_at  # noqa: PLW0603 - a buffer, no state that anybody can see
    if _pool_at + size > len(_pool):
        _pool, _pool_at = os.urandom(_POOL_BYTES), 0
    value = int.from_bytes(_pool[_pool_at : _pool_at + size], "big")
    _pool_at += size
    return value


_CALL_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def new_call_id(now_ms: int | None = None) -> str:
    """A UUIDv7 as text (RFC 9562 §5.7): 48 bits of Unix milliseconds, then random bits.

    Args:
        now_ms: Unix time in milliseconds; the clock's when absent.
    """
    stamp = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    bits = _random(10)
    return _text(stamp << 80 | 0x7 << 76 | (bits >> 62 & 0xFFF) << 64 | 0b10 << 62 | bits & (1 << 62) - 1)


def first_call_id_at(unix_ms: int) -> str:
    """The smallest UUIDv7 of a millisecond: the lower bound of an id range by time."""
    return _text(unix_ms << 80 | 0x7 << 76 | 0b10 << 62)


def call_time_ms(call_id: str) -> int:
    """Unix milliseconds at which a call id was made.

    Raises:
        ValueError: the text is no UUID.
    """
    return int(call_id.replace("-", "")[:12], 16)


def is_call_id(text: str) -> bool:
    """Whether a text is a lower-case UUIDv7, the only form that call ids have here."""
    return _CALL_ID.fullmatch(text) is not None


def welcome_grant_id(account: str) -> str:
    """The id of an account's welcome grant: constant, so that it is given once however often it is asked for."""
    return str(uuid.uuid5(_WELCOME, f"{account}:welcome"))


def new_process_id(service: str) -> str:
    """The id of one running process, e.g. `gateway-3f9c21d0a4b7`: part of its inbox subject, never reused."""
    return f"{service}-{secrets.token_hex(6)}"


def new_trace_id() -> str:
    """A W3C trace id: 32 hex digits, not all zero."""
    return f"{_random(16) or 1:032x}"


def new_span_id() -> str:
    """A W3C span id: 16 hex digits, not all zero."""
    return f"{_random(8) or 1:016x}"


def _text(value: int) -> str:
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
