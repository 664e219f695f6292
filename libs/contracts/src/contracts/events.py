"""Facts on CALLS, and the data of a usage event on USAGE. No prompt, no answer, no key in any of them.

Inside v1 fields are only added, always optional. Readers ignore unknown fields. Times are ISO 8601 in UTC with
milliseconds; durations are milliseconds; credits are plain decimal strings.
"""

import time
import uuid
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Final

import msgspec

from contracts.usage import Candidate, Usage

_NOTICES: Final = uuid.UUID("0b0f7a52-6a0e-5d53-9a55-4c3b8d5f0c21")


class Outcome(StrEnum):
    """How a successful call ended."""

    STOP = "stop"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"
    TOOL_CALLS = "tool_calls"
    CREDIT_EXHAUSTED = "credit_exhausted"
    CANCELLED = "cancelled"
    OTHER = "other"


class CallState(StrEnum):
    """States of a ModelCall; the last two are terminal."""

    PROCESSING = "processing"
    SUCCESS = "success"
    FAILED = "failed"


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """One try at one provider; tries before the first byte may be several."""

    number: int
    provider: str
    model: str
    credential: str = ""
    """The credential's name, never its secret."""
    status: int = 0
    """HTTP status of the provider; 0 = none came."""
    error: str = ""
    """An `ErrorCode`, empty for the try that answered."""
    started_ms: int = 0
    """After the call's acceptance by the router."""
    duration_ms: int = 0
    first_byte_ms: int = 0


class CallRequested(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call was admitted: its row exists and its hold is reserved. Published by gateway, once per call."""

    call_id: str
    account: str
    user: str
    project: str
    key_id: str
    kind: str
    dialect: str
    model: str
    stream: bool
    hold: str
    requested_at: str
    trace_id: str = ""
    request_id: str = ""


class CallCompleted(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call delivered an answer, whole or cut short. Published by provider-router, settled by metering, once each."""

    call_id: str
    epoch: int
    """Raised only by whoever takes a call over: a late message of the one before is recognised by it."""
    account: str
    kind: str
    outcome: str
    """An `Outcome`; readers map unknown values to `other`."""
    candidate: Candidate
    """Who answered, with the rates frozen at admission: credits can be computed again from this event."""
    usage: Usage
    attempts: tuple[Attempt, ...]
    duration_ms: int
    first_byte_ms: int
    completed_at: str
    gateway: str = ""
    router: str = ""
    finish_reason: str = ""
    """The provider's own word."""
    provider_first_byte_ms: int = 0
    trace_id: str = ""


class CallFailed(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call ended without an answer that may be charged. Published by provider-router, gateway or janitor."""

    call_id: str
    epoch: int
    account: str
    kind: str
    code: str
    """An `ErrorCode`."""
    reason: str
    """At most 1,000 characters, without secrets."""
    failed_at: str
    attempts: tuple[Attempt, ...] = ()
    candidate: Candidate | None = None
    """The provider that was answering, if one was: what it may bill is booked as written off."""
    usage: Usage | None = None
    duration_ms: int = 0
    gateway: str = ""
    router: str = ""
    trace_id: str = ""


class UsageRecorded(msgspec.Struct, frozen=True, omit_defaults=True):
    """Data of a usage event: a call was settled. Sequence per account, contiguous from 1, uncharged calls too."""

    call_id: str
    account: str
    sequence: int
    state: str
    """`success` or `failed`."""
    outcome: str
    credits: str
    """Charged; 0 for a failed call."""
    kind: str
    model: str
    provider: str
    usage: Usage
    rates: dict[str, str]
    """The frozen rates: credits can be computed again."""
    user: str = ""
    project: str = ""
    key_id: str = ""
    overrun: str = "0.0000000000"
    written_off: str = "0.0000000000"
    duration_ms: int = 0
    first_byte_ms: int = 0
    settled_at: str = ""
    trace_id: str = ""


class NoticeText(msgspec.Struct, frozen=True):
    """What a notice says to the account's owner, in one language."""

    title: str
    body: str


class CreditNotice(msgspec.Struct, frozen=True, omit_defaults=True):
    """Data of a credit event, once each: a balance crossed the threshold downwards, or credits were given or ended."""

    account: str
    number: int
    """Of the account's notices about its balance, or about what was given and ended; not contiguous."""
    level: str
    """A `CreditLevel`. `depleted`: nothing is left, or a call was refused while the balance was low."""
    balance: str
    """Granted minus spent; what running calls hold is part of it. Empty = Payment Kit's, not known at that moment."""
    threshold: str
    """At and below which a balance is low."""
    noticed_at: str
    amount: str = ""
    """Credits that were given or have ended; no sign."""
    grant_id: str = ""
    category: str = ""
    """Of the grant: `welcome`, `top_up`, `promotional`, `adjustment`, `refund`; Payment Kit's `paid`."""
    name: str = ""
    """Of the grant."""
    expires_at: str = ""
    """When what was given ends unless it is used; empty = never."""
    link: str = ""
    """Where to buy credits, if that is known."""
    texts: dict[str, NoticeText] = {}
    """By language: `en`, `zh`."""


def now_text() -> str:
    """The clock's time as facts carry it: ISO 8601, UTC, milliseconds."""
    return _text(time.time_ns() // 1_000_000)


@lru_cache(8)
def _text(unix_ms: int) -> str:
    """Facts of one millisecond share their text."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def completed_message_id(call_id: str, epoch: int) -> str:
    """`Nats-Msg-Id` of a completion or failure by its router: constant, so that a repeat is recognised."""
    return f"{call_id}:{epoch}:done"


def stale_message_id(call_id: str, epoch: int) -> str:
    """`Nats-Msg-Id` of a failure published by the janitor."""
    return f"{call_id}:{epoch}:stale"


def undispatched_message_id(call_id: str, epoch: int) -> str:
    """`Nats-Msg-Id` of a failure published by the gateway, for a call that no router accepted."""
    return f"{call_id}:{epoch}:undispatched"


def requested_message_id(call_id: str) -> str:
    """`Nats-Msg-Id` of a `CallRequested`."""
    return f"{call_id}:requested"


def credit_event_id(account: str, number: int) -> str:
    """Id of the CloudEvent and `Nats-Msg-Id` of a notice: constant, and without the account's text."""
    return f"cn_{uuid.uuid5(_NOTICES, f'{account}:{number}')}"


def grant_event_id(notice_id: str) -> str:
    """Id of the CloudEvent and `Nats-Msg-Id` of a notice about credits that were given or ended: constant."""
    return f"gn_{notice_id}"


def usage_event_id(call_id: str) -> str:
    """Id of the CloudEvent and `Nats-Msg-Id` of a usage event: no clock, no random part."""
    return f"ue_{call_id}"
