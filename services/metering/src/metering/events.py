"""Facts in: messages of CALLS → facts ready to settle, or the reason why one cannot be read."""

from decimal import Decimal
from typing import Any, Final, TypeAlias

import msgspec

from contracts import subjects
from contracts.errors import REASON_CHARS_MAX
from contracts.events import Attempt, CallCompleted, CallFailed, CallState, Outcome
from contracts.ids import is_call_id
from contracts.usage import Candidate, Usage
from metering.pricing import PricingError, bounded, cost
from metering.stored import units_text

ATTEMPTS_MAX: Final = 64
_TEXT_MAX: Final = 500
_COMPLETED: Final = msgspec.json.Decoder(CallCompleted)
_FAILED: Final = msgspec.json.Decoder(CallFailed)
_ENCODE: Final = msgspec.json.Encoder().encode
_NO_USAGE: Final = Usage()
_OUTCOMES: Final = frozenset(str(outcome) for outcome in Outcome)
_NOTHING: Final = Decimal("0E-10")

TriedRow: TypeAlias = tuple[int, str, str, str, int, str, int, int, int]
"""`metering.tried`."""
FactRow: TypeAlias = tuple[object, ...]
"""`metering.fact`, in the order of its attributes."""


class UnreadableFactError(ValueError):
    """A message that can never be settled: it is parked."""


class Fact(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One outcome of one call."""

    call_id: str
    account: str
    state: CallState
    outcome: str
    kind: str
    candidate: Candidate | None
    usage: Usage
    """Bounded."""
    duration_ms: int
    first_byte_ms: int
    gateway: str
    router: str
    row: FactRow

    @property
    def epoch(self) -> Any:
        """Of whoever reports it."""
        return self.row[1]

    @property
    def cost(self) -> Any:
        """Usage by rates, whatever the hold: a Decimal, ten places."""
        return self.row[4]


class Arrival(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A fact and the message that brought it."""

    fact: Fact
    subject: str
    ack: bytes
    payload: bytes


def read(subject: str, payload: bytes) -> Fact:
    """The fact of a message, priced.

    Raises:
        UnreadableFactError: not JSON, not of its schema, no call id, or rates that are no numbers.
    """
    try:
        if subject.startswith(subjects.CALLS_COMPLETED):
            return _completed(_COMPLETED.decode(payload))
        return _failed(_FAILED.decode(payload))
    except (msgspec.DecodeError, PricingError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableFactError(str(error)) from error


def _completed(event: CallCompleted) -> Fact:
    usage = bounded(event.usage)
    outcome = event.outcome if event.outcome in _OUTCOMES else Outcome.OTHER
    return _fact(
        event,
        CallState.SUCCESS,
        outcome,
        event.candidate,
        usage,
        cost(usage, event.candidate.rates),
        first_byte_ms=event.first_byte_ms,
        provider_first_byte_ms=event.provider_first_byte_ms,
    )


def _failed(event: CallFailed) -> Fact:
    """A failure is charged nothing; its cost is what the provider that was answering may bill."""
    usage = None if event.usage is None else bounded(event.usage)
    price = _NOTHING if usage is None or event.candidate is None else cost(usage, event.candidate.rates)
    return _fact(
        event,
        CallState.FAILED,
        "",
        event.candidate,
        usage,
        price,
        error_code=_text(event.code),
        error_reason=_text(event.reason, REASON_CHARS_MAX),
    )


def _fact(
    event: CallCompleted | CallFailed,
    state: CallState,
    outcome: str,
    candidate: Candidate | None,
    usage: Usage | None,
    price: Decimal,
    *,
    first_byte_ms: int = 0,
    provider_first_byte_ms: int = 0,
    error_code: str | None = None,
    error_reason: str | None = None,
) -> Fact:
    if not is_call_id(event.call_id):
        raise UnreadableFactError("call_id is no UUIDv7")
    attempts = event.attempts[:ATTEMPTS_MAX]
    credential = _text(attempts[-1].credential) if attempts else None
    counts = usage if usage is not None else _NO_USAGE
    known = usage is not None
    row = (
        event.call_id,
        event.epoch,
        _text(event.account),
        str(state),
        price,
        outcome or None,
        None if candidate is None else _text(candidate.provider),
        None if candidate is None else _text(candidate.model),
        credential,
        counts.input_tokens if known else None,
        counts.output_tokens if known else None,
        counts.cache_read_tokens if known else None,
        counts.cache_write_tokens if known else None,
        counts.reasoning_tokens if known else None,
        str(counts.source) if known else None,
        None if candidate is None else _ENCODE(candidate.rates).decode(),
        error_code,
        error_reason,
        event.duration_ms,
        first_byte_ms,
        provider_first_byte_ms,
        _text(event.router) or None,
        _text(event.router) or _text(event.gateway) or error_code,
        [_tried(attempt) for attempt in attempts],
        units_text(counts) if known else None,
    )
    return Fact(
        event.call_id,
        event.account,
        state,
        outcome,
        event.kind,
        candidate,
        counts,
        event.duration_ms,
        first_byte_ms,
        event.gateway,
        event.router,
        row,
    )


def _tried(attempt: Attempt) -> TriedRow:
    return (
        attempt.number,
        _text(attempt.provider),
        _text(attempt.model),
        _text(attempt.credential),
        attempt.status,
        _text(attempt.error),
        attempt.started_ms,
        attempt.duration_ms,
        attempt.first_byte_ms,
    )


def _text(text: str, most: int = _TEXT_MAX) -> str:
    """Bounded, and without NUL, which PostgreSQL cannot store: what a provider sent must not cost a settlement."""
    if len(text) > most:
        text = text[:most]
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}") if "\x00" in text else text
