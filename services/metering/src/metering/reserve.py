"""Reserves in: batches of calls to admit → rows ready for the turn; those out of their domain refused one by one."""

import math
import re
from typing import Final, TypeAlias

import msgspec

from contracts.ids import call_time_ms, is_call_id
from contracts.money import CreditsError, checked, parse, rounded
from contracts.rpc.metering import ReserveBatch, ReserveCall, ReserveReply, ReserveResult, ReserveStatus

ADMISSION_TTL_MAX_S: Final = 86_400.0
_TEXT_MAX: Final = 500
_ACCOUNT_MAX: Final = 200
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_CANDIDATES_MAX: Final = 64
_BATCH: Final = msgspec.json.Decoder(ReserveBatch)
_ENCODE: Final = msgspec.json.Encoder().encode
_INVALID: Final = ReserveResult(ReserveStatus.INVALID)

AdmissionRow: TypeAlias = tuple[object, ...]
"""`metering.admission`, in the order of its attributes."""


class ReserveRequest:
    """One batch of a gateway; replied to once all its calls are answered, in their order."""

    __slots__ = ("arrived", "missing", "reply", "results")

    def __init__(self, reply: bytes, size: int, arrived: float) -> None:
        self.reply = reply
        self.arrived = arrived
        """Of the event loop's clock."""
        self.results: list[ReserveResult | None] = [None] * size
        self.missing = size

    def answer(self, place: int, result: ReserveResult) -> bool:
        """Note one result; True when it was the last that was missing."""
        if self.results[place] is not None:
            return False
        self.results[place] = result
        self.missing -= 1
        return self.missing == 0

    def answer_rest(self, result: ReserveResult) -> None:
        """Give all that are still open the same result."""
        self.results = [known or result for known in self.results]
        self.missing = 0

    def encoded(self) -> bytes:
        """The reply, once nothing is missing."""
        return _ENCODE(ReserveReply(tuple(result for result in self.results if result is not None)))


class Asked(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One call that waits to be admitted."""

    call_id: str
    account: str
    free_of_charge: bool
    """Its hold is 0: the account is opened if need be."""
    digest: str | None
    made_ms: int
    row: AdmissionRow
    request: ReserveRequest
    place: int


def read(payload: bytes, reply: bytes, now: float) -> tuple[ReserveRequest, list[Asked]]:
    """The calls of a batch that can be asked for; the others are answered `invalid` in the request.

    Raises:
        msgspec.DecodeError: no batch at all.
    """
    batch = _BATCH.decode(payload)
    request = ReserveRequest(reply, len(batch.calls), now)
    asked: list[Asked] = []
    for place, call in enumerate(batch.calls):
        row = _row(call)
        if row is None:
            request.answer(place, _INVALID)
            continue
        asked.append(
            Asked(
                call.call_id,
                call.account,
                not row[2],
                call.idempotency_key,
                call_time_ms(call.call_id),
                row,
                request,
                place,
            )
        )
    return request, asked


def _row(call: ReserveCall) -> AdmissionRow | None:
    """The row of a call, or None when a value lies outside its domain."""
    try:
        hold = checked(rounded(parse(call.hold)))
    except CreditsError:
        return None
    texts = (call.kind, call.dialect, call.model, call.user, call.project, call.key_id, call.trace_id, call.request_id)
    if not (
        is_call_id(call.call_id)
        and 0 < len(call.account) <= _ACCOUNT_MAX
        and "\x00" not in call.account
        and math.isfinite(call.ttl_s)
        and 0 < call.ttl_s <= ADMISSION_TTL_MAX_S
        and len(call.candidates) <= _CANDIDATES_MAX
        and max(map(len, texts)) <= _TEXT_MAX
        and "\x00" not in "".join(texts)
        and (call.idempotency_key is None or _DIGEST.fullmatch(call.idempotency_key) is not None)
        and (not call.body_digest or _DIGEST.fullmatch(call.body_digest) is not None)
    ):
        return None
    candidates = _ENCODE(call.candidates).decode()
    if "\\u0000" in candidates:
        return None
    return (
        call.call_id,
        call.account,
        hold,
        call.kind,
        call.dialect,
        call.model,
        call.stream,
        candidates,
        call.ttl_s,
        call.user,
        call.project,
        call.key_id,
        call.trace_id,
        call.request_id,
        None if call.idempotency_key is None else call.idempotency_key + call.body_digest,
    )
