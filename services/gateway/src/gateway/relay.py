"""What the gateway adds to an answer: credits and call id, inside its usage object."""

from decimal import Decimal
from typing import Final

import msgspec

from contracts.rpc.metering import SettledCall

_ENCODER: Final = msgspec.json.Encoder()
_LOOK_BACK: Final = 64
"""Bytes before the splice in which white space after an opening brace is looked for."""


def with_credits(held: bytes, splice_at: int | None, settled: SettledCall, answered_by: str = "") -> bytes:
    """The held bytes with credits and call id inside their usage object; all other bytes are untouched.

    `credits` is a decimal string; `aigneHubCredits` is the same as a JSON number, as AIGNE's clients read it.
    `answered_by` is `provider/model`.
    """
    if splice_at is None:
        return held
    number = format(Decimal(settled.credits).normalize(), "f")
    members = (
        f'"credits":"{settled.credits}","call_id":"{settled.call_id}",'
        f'"aigneHubCredits":{number},"modelCallId":"{settled.call_id}","creditPrefix":"",'
        f'"modelWithProvider":{_ENCODER.encode(answered_by).decode()}'
    ).encode()
    before = held[max(0, splice_at - _LOOK_BACK) : splice_at].rstrip()
    comma = b"" if before.endswith(b"{") else b","
    return b"".join((held[:splice_at], comma, members, held[splice_at:]))
