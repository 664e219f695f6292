"""The dispatch message: one call from a gateway to one provider-router, and its cancellation.

Payload = header length (u32, big-endian), the header as JSON, then the client's body, raw. The header travels in
the payload because nats-py reads NATS headers with the e-mail parser, which costs more than all else in the message.
"""

import struct
from typing import Final

import msgspec

from contracts.errors import ErrorCode
from contracts.ids import CALL_ID_LENGTH
from contracts.usage import Candidate

_LENGTH: Final = struct.Struct(">I")


class DispatchHeader(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a router must know beside the body."""

    call_id: str
    epoch: int
    number: int
    """The gateway's own number of the call; frames carry it."""
    gateway: str
    """Process id of the gateway; frames go to its inbox."""
    account: str
    kind: str
    dialect: str
    """The form the client speaks and reads: `openai`."""
    stream: bool
    deadline_ms: int
    """Unix milliseconds, by the gateway's clock, after which nobody waits for the answer."""
    candidates: tuple[Candidate, ...]
    """In order of preference; rates frozen at admission."""
    hold: str
    """Credits held for the call."""
    hold_input_tokens: int = 0
    """Input tokens that the hold covers."""
    hold_output_tokens: int = 0
    """Output tokens that the hold covers, over all choices; a longer answer asks for more."""
    choices: int = 1
    """`n` of the request."""
    traceparent: str = ""
    trace_id: str = ""
    include_usage: bool = True
    """Whether the client asked for the usage chunk of a stream."""
    more_parts: int = 0
    """Numbered parts of the body that follow to the router that accepts; 0 = the body is whole."""
    kept: bool = False
    """The frames go to the stream FRAMES too, so that others can join, replay and resume the answer: the call goes on
    when its client has left or its gateway is gone."""
    ttl_ms: int = 0
    """How long from the dispatch on somebody waits: two hosts' clocks need not agree. 0 = see `deadline_ms`."""


class Cancel(msgspec.Struct, frozen=True, omit_defaults=True):
    """Nobody waits for these calls any more; the router closes upstream within a second."""

    gateway: str
    call_ids: tuple[str, ...]
    reason: str = ErrorCode.CLIENT_CANCELLED
    """`client_cancelled`: what was delivered is charged; any other error code: the calls have failed."""


PART_BYTES: Final = 4 * 2**20
"""Bodies above this go in parts, so that a message stays well below the server's `max_payload` of 8 MB."""


class DispatchError(ValueError):
    """The bytes are no dispatch message."""


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(DispatchHeader)


def pack(header: DispatchHeader, body: bytes) -> bytes:
    """The message of one call."""
    encoded = _ENCODER.encode(header)
    return b"".join((_LENGTH.pack(len(encoded)), encoded, body))


def pack_part(call_id: str, number: int, part: bytes) -> bytes:
    """One further part of a body; numbers begin with 1, the dispatch message carried part 0."""
    return b"".join((call_id.encode(), _LENGTH.pack(number), part))


def unpack_part(message: bytes) -> tuple[str, int, bytes]:
    """Call id, number and bytes of a part.

    Raises:
        DispatchError: cut off.
    """
    end = CALL_ID_LENGTH + _LENGTH.size
    if len(message) < end:
        raise DispatchError("a part begins with its call id and number")
    (number,) = _LENGTH.unpack_from(message, CALL_ID_LENGTH)
    return message[:CALL_ID_LENGTH].decode(errors="replace"), number, message[end:]


def unpack(message: bytes) -> tuple[DispatchHeader, bytes]:
    """Header and body of a dispatch message.

    Raises:
        DispatchError: cut off, or a header that does not decode.
    """
    if len(message) < _LENGTH.size:
        raise DispatchError("a dispatch message begins with its header's length")
    (length,) = _LENGTH.unpack_from(message)
    end = _LENGTH.size + length
    if len(message) < end:
        raise DispatchError("the dispatch header is cut off")
    try:
        return _DECODER.decode(message[_LENGTH.size : end]), message[end:]
    except msgspec.DecodeError as error:
        raise DispatchError(str(error)) from error
