"""Questions to metering about calls, asked by people, by routers and gateways in doubt, and by the janitor."""

from typing import Final, Literal

from pydantic import Field

from contracts.money import Credits
from contracts.rpc.envelope import Message

CALL_GET: Final = "call_get"
CALL_LIST: Final = "call_list"
CALL_OUTCOMES: Final = "call_outcomes"
STALE: Final = "stale"


class CallGet(Message):
    """One call; `account` restricts it to that account's (a foreign id is not found)."""

    call_id: str
    account: str | None = None


class AttemptView(Message):
    """One upstream try."""

    number: int
    provider: str
    model: str
    credential: str
    status: int
    error: str
    started_ms: int
    duration_ms: int
    first_byte_ms: int


class CallView(Message):
    """A ModelCall as users and operators see it."""

    call_id: str
    state: Literal["processing", "success", "failed"]
    outcome: str | None
    account: str
    user: str
    project: str
    key_id: str
    kind: str
    dialect: str
    model: str
    provider: str | None
    provider_model: str | None
    credential: str | None
    stream: bool
    hold: Credits
    credits: Credits | None
    overrun: Credits
    written_off: Credits
    usage: dict[str, int | str] | None
    error_code: str | None
    error_reason: str | None
    duration_s: str | None
    """Seconds, one decimal."""
    first_byte_ms: int | None
    provider_first_byte_ms: int | None
    trace_id: str
    request_id: str
    created_at: str
    settled_at: str | None
    attempts: tuple[AttemptView, ...]


class CallList(Message):
    """Calls of an account (None = of all), newest first."""

    account: str | None = None
    limit: int = Field(50, gt=0, le=500)
    before: str | None = None
    """A call id: older ones only."""


class CallPage(Message):
    """`next_before` is None on the last page."""

    calls: tuple[CallView, ...]
    next_before: str | None


class CallOutcomes(Message):
    """What became of these calls? Asked by a router or gateway whose `settled` notice went missing or never comes."""

    call_ids: tuple[str, ...] = Field(max_length=1000)


class CallOutcome(Message):
    """`state` as in the books; calls that are unknown are left out of the reply."""

    call_id: str
    state: str
    credits: str


class CallOutcomesReply(Message):
    """Known calls only."""

    calls: tuple[CallOutcome, ...]


class StaleCalls(Message):
    """Calls whose lease ended by Postgres' clock."""

    limit: int = Field(500, gt=0, le=5000)


class StaleCall(Message):
    """A call to close."""

    call_id: str
    epoch: int
    account: str
    kind: str
    trace_id: str


class StaleReply(Message):
    """`oldest_open_at` is the age of the oldest call still processing, ISO 8601, for alerts."""

    calls: tuple[StaleCall, ...]
    oldest_open_at: str | None = None
