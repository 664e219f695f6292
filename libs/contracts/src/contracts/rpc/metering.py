"""Questions to metering: admission, holds and leases, and the accounts that they are taken from.

The first half is the bytes path: msgspec, JSON, batched. The second half is asked by people: pydantic.
"""

from typing import Final, Literal

import msgspec
from pydantic import AwareDatetime, Field

from contracts.money import ZERO, Credits
from contracts.rpc.envelope import Message
from contracts.usage import Candidate

SERVICE: Final = "metering"

RESERVE: Final = "reserve"
EXTEND: Final = "extend"
RENEW: Final = "renew"


class ReserveCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """One call to admit: becomes a `processing` row with its hold."""

    call_id: str
    account: str
    hold: str
    """Credits, plain decimal string; 0 while billing is off."""
    kind: str
    dialect: str
    model: str
    """As the client named it."""
    stream: bool
    candidates: tuple[Candidate, ...]
    ttl_s: float
    """Seconds after which nobody waits for the call."""
    user: str
    project: str
    key_id: str
    trace_id: str = ""
    request_id: str = ""
    idempotency_key: str | None = None
    """Digest of account, user and Idempotency-Key, 64 hex digits."""
    body_digest: str = ""
    """Digest of what was asked under the Idempotency-Key, 64 hex digits; empty = any body will do."""


class ReserveBatch(msgspec.Struct, frozen=True):
    """All calls that one gateway admitted in one turn of its event loop."""

    calls: tuple[ReserveCall, ...]


class ReserveStatus:
    """What became of a reserve; `ReserveResult.status`."""

    RESERVED: Final = "reserved"
    EXISTS: Final = "exists"
    """The id is known: a repeat. Money is unchanged."""
    NOT_ENOUGH: Final = "not_enough"
    ASK_AGAIN: Final = "ask_again"
    """Not decided: ask for this call alone, at once and with the same id; nothing was written."""
    KEY_TAKEN: Final = "key_taken"
    """The Idempotency-Key belongs to `other_call_id`, which asked the same and has not failed."""
    KEY_REUSED: Final = "key_reused"
    """The Idempotency-Key belongs to `other_call_id`, which asked something else."""
    INVALID: Final = "invalid"
    """The hold or another value lies outside its domain; nothing was written."""
    UNAVAILABLE: Final = "unavailable"
    """The database did not answer; nothing is known, ask again with the same id or refuse with 503."""


class ReserveResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """Answer for one call, in the batch's order."""

    status: str
    other_call_id: str = ""


class ReserveReply(msgspec.Struct, frozen=True):
    """Answer to a batch, same order."""

    results: tuple[ReserveResult, ...]


class ExtendHold(msgspec.Struct, frozen=True):
    """Raise the hold of a running call by `amount` credits."""

    call_id: str
    epoch: int
    account: str
    amount: str


class ExtendReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """`granted`, or why not: `not_enough`, `ended` (no longer processing under this epoch), `unavailable`."""

    granted: bool
    reason: str = ""


class RenewLeases(msgspec.Struct, frozen=True):
    """A router still works on these calls."""

    router: str
    calls: tuple[tuple[str, int], ...]
    """(call id, epoch)."""


class RenewReply(msgspec.Struct, frozen=True):
    """`ended`: calls that are terminal or taken over; the router stops working on them."""

    renewed: int
    ended: tuple[str, ...]


class SettledCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call is terminal and committed."""

    call_id: str
    state: str
    """`success` or `failed`: what the books say, whoever settled it."""
    credits: str
    """Charged, plain decimal string."""
    parked: bool = False
    """The fact could not be read; it lies in `parked` and nothing more will come of it."""


class SettledBatch(msgspec.Struct, frozen=True):
    """Sent to the inbox of a gateway or router, all calls of one turn."""

    calls: tuple[SettledCall, ...]


# ---- asked by people ---------------------------------------------------------------------------------------------

BALANCE: Final = "balance"
GRANT: Final = "grant"
ACCOUNTS_OPEN: Final = "accounts_open"


class BalanceGet(Message):
    """Balance of one account."""

    account: str


class Balance(Message):
    """`available` = granted - spent - held."""

    account: str
    granted: Credits
    """All credit that was ever given, less what has ended unused."""
    spent: Credits
    held: Credits
    """For calls that are running."""
    available: Credits
    pending: Credits = ZERO
    """Part of `spent` that Payment Kit has not been told of yet; 0 with the built-in ledger."""
    grants: int = 0
    """Grants of which something is left."""
    next_expiry_at: str | None = None
    """When the next of them ends, ISO 8601."""
    upcoming: Credits = ZERO
    """Of grants that have not begun; not part of `granted`."""


class Grant(Message):
    """Give credits to an account; the same `grant_id` again changes nothing."""

    grant_id: str
    """A UUID."""
    account: str
    amount: Credits
    category: Literal["welcome", "top_up", "adjustment", "promotional"] = "top_up"
    reason: str = Field("", max_length=500)
    granted_by: str = ""
    name: str = Field("", max_length=200)
    priority: int = Field(50, ge=0, le=100)
    """Lower ones are spent first; among equals those that end sooner, then the older ones."""
    effective_at: AwareDatetime | None = None
    """Until then it cannot be spent; at once when absent."""
    expires_at: AwareDatetime | None = None
    """What is unused then is gone; never when absent."""


class AccountsOpen(Message):
    """Make many accounts at once, each with the same welcome grant; known accounts are left alone."""

    accounts: tuple[str, ...] = Field(max_length=10_000)
    amount: Credits
    granted_by: str = ""
    expires_at: AwareDatetime | None = None


class AccountsOpened(Message):
    """How many were new."""

    opened: int
