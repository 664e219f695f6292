"""Frames from provider-router to gateway: bytes in, bytes out.

One NATS message carries any number of frames, of one or of many calls of the same gateway. Each frame is a header
of 13 bytes (kind u8, call number u32, sequence u32, payload length u32, big-endian) and its payload. The number is
the gateway's own for the call (from the dispatch header); sequences start at 0 and have no gap, so that a message
which core NATS dropped is noticed and never spliced over.
"""

import struct
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Final, TypeAlias

import msgspec

_HEADER: Final = struct.Struct(">BIII")
HEADER_BYTES: Final = _HEADER.size
NO_SPLICE: Final = 0xFFFF_FFFF
_OFFSET: Final = struct.Struct(">I")


class FrameKind(IntEnum):
    """What a frame says."""

    ACCEPTED = 1
    """A router took the call; payload: `Accepted`."""
    HEAD = 2
    """The provider's answer has begun; payload: `Head`."""
    DATA = 3
    """Bytes ready for the client, in the dialect named at dispatch."""
    END = 4
    """The answer is whole. Payload: splice offset u32 (`NO_SPLICE` = none), then the held bytes: the whole JSON
    body (its last part, when DATA frames brought the others), or a stream's tail. At the offset the gateway inserts
    credits and call id into the usage object; it counts from the start of the JSON body or of the stream's tail."""
    ERROR = 5
    """The call failed; payload: `Failure`."""


Frame: TypeAlias = tuple[FrameKind, int, int, bytes]
"""One frame: kind, call number, sequence, and its payload copied out of the message."""


class FrameError(ValueError):
    """The bytes are no sequence of frames."""


class Accepted(msgspec.Struct, frozen=True):
    """Payload of ACCEPTED."""

    router: str


class Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """Payload of HEAD."""

    provider: str
    model: str
    content_type: str = "application/json"


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Payload of ERROR: a `HubError` on the wire."""

    code: str
    message: str
    status: int = 0
    """0 = the code's own status."""
    param: str | None = None
    retry_after_s: float | None = None
    provider_code: str | None = None
    provider_type: str | None = None


def pack(kind: FrameKind, number: int, sequence: int, payload: bytes) -> bytes:
    """One frame as bytes; concatenate frames to one message."""
    return _HEADER.pack(kind, number, sequence, len(payload)) + payload


header: Final[Callable[[FrameKind, int, int, int], bytes]] = _HEADER.pack
"""Only the header (kind, number, sequence, payload length), for joining with a payload that is at hand in pieces."""


def end_payload(held: bytes, splice_at: int | None) -> bytes:
    """Payload of END: `splice_at` is a position directly before the usage object's closing brace."""
    return _OFFSET.pack(NO_SPLICE if splice_at is None else splice_at) + held


def read_end(payload: bytes) -> tuple[bytes, int | None]:
    """The held bytes and the splice position of an END payload.

    Raises:
        FrameError: too short.
    """
    if len(payload) < _OFFSET.size:
        raise FrameError("an END frame carries a splice offset")
    (offset,) = _OFFSET.unpack_from(payload)
    held = payload[_OFFSET.size :]
    return held, None if offset == NO_SPLICE else offset


def unpack(message: bytes) -> Iterator[Frame]:
    """All frames of one message, in order.

    Raises:
        FrameError: unknown kind, or a frame that is cut off.
    """
    at, end = 0, len(message)
    while at < end:
        if end - at < HEADER_BYTES:
            raise FrameError("a frame header is cut off")
        kind, number, sequence, length = _HEADER.unpack_from(message, at)
        at += HEADER_BYTES
        if end - at < length:
            raise FrameError("a frame payload is cut off")
        try:
            known = _KINDS[kind]
        except KeyError as error:
            raise FrameError(f"unknown frame kind {kind}") from error
        after = at + length
        yield known, number, sequence, message[at:after]
        at = after


_KINDS: Final = {int(kind): kind for kind in FrameKind}
