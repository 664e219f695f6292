"""What a gateway and a router say to metering about a call, put together from templates: cheap enough to measure by."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

import msgspec

from contracts import events
from contracts.rpc.metering import ReserveBatch, ReserveCall
from contracts.usage import Candidate, Rates, Usage

INPUT_RATE: Final = Decimal("0.001")
OUTPUT_RATE: Final = Decimal("0.002")
OUTPUT_TOKENS: Final = 50
HOLD: Final = "0.5"
"""Above what any of these calls costs."""
_INPUT_TOKENS: Final = range(100, 200)
_ID: Final = "%I%"
_ACCOUNT: Final = "%A%"
_TOKENS: Final = 987_654_321
_CANDIDATE: Final = Candidate("bench", "bench-json", Rates(input=str(INPUT_RATE), output=str(OUTPUT_RATE)), "r1")
_TRACE: Final = "0af7651916cd43dd8448eb211c80319c"


def input_tokens(number: int) -> int:
    """Used by the call of a number: they differ, so that a mixed-up charge shows in the sums."""
    return _INPUT_TOKENS[number % len(_INPUT_TOKENS)]


def cost(calls: int, tokens: int) -> Decimal:
    """Credits of so many calls with so many input tokens together."""
    return INPUT_RATE * tokens + OUTPUT_RATE * OUTPUT_TOKENS * calls


class Messages:
    """The messages of one gateway and one router.

    Args:
        gateway: process id that settled notices go to.
        router: process id of the router that reports the calls.
    """

    def __init__(self, gateway: str, router: str) -> None:
        reserve = ReserveCall(
            call_id=_ID,
            account=_ACCOUNT,
            hold=HOLD,
            kind="chat",
            dialect="openai",
            model="bench/bench-json",
            stream=False,
            candidates=(_CANDIDATE,),
            ttl_s=600.0,
            user="did:abt:z1user",
            project="did:abt:z1project",
            key_id="did:abt:z1key",
            trace_id=_TRACE,
            request_id="req-1",
        )
        completed = events.CallCompleted(
            call_id=_ID,
            epoch=1,
            account=_ACCOUNT,
            kind="chat",
            outcome="stop",
            candidate=_CANDIDATE,
            usage=Usage(input_tokens=_TOKENS, output_tokens=OUTPUT_TOKENS),
            attempts=(events.Attempt(1, "bench", "bench-json", "main", 200, "", 0, 120, 30),),
            duration_ms=1234,
            first_byte_ms=40,
            completed_at="2026-01-01T00:00:00.000Z",
            gateway=gateway,
            router=router,
            finish_reason="stop",
            provider_first_byte_ms=30,
            trace_id=_TRACE,
        )
        empty = msgspec.json.encode(ReserveBatch(()))
        self._open, self._close = empty[: empty.index(b"[") + 1], empty[empty.index(b"]") :]
        self._reserve = _format(msgspec.json.encode(reserve))
        self._completed = _format(msgspec.json.encode(completed))

    def reserve_batch(self, calls: Sequence[tuple[str, str]]) -> bytes:
        """One message of a gateway: (call id, account) of each call."""
        return self._open + b",".join([(self._reserve % call).encode() for call in calls]) + self._close

    def completed(self, call_id: str, account: str, tokens: int) -> bytes:
        """The fact of a router."""
        return (self._completed % (call_id, account, tokens)).encode()


def _format(message: bytes) -> str:
    """A `%` format of a message: id, account and, where there are any, input tokens; in this order."""
    text = message.decode().replace("%I%", "\0I").replace("%A%", "\0A").replace("%", "%%")
    if not text.index("\0I") < text.index("\0A") < (text.find(str(_TOKENS)) % (len(text) + 1)):
        raise ValueError(f"the fields of a message come in another order: {text}")
    return text.replace("\0I", "%s").replace("\0A", "%s").replace(str(_TOKENS), "%d")
