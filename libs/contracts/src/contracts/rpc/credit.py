"""Questions to metering about credit, asked by people: pydantic.

Whatever changes money has an id given by the caller, a UUID: the same id again changes nothing and answers the same,
with another amount or target it is a `conflict`. Times are ISO 8601; credits are plain decimal strings.
"""

from typing import Final, Literal

from pydantic import AwareDatetime, Field

from contracts.money import Credits, CreditsChange
from contracts.rpc.envelope import Message
from contracts.rpc.metering import Balance

ADJUST: Final = "adjust"
REFUND_CALL: Final = "refund_call"
REFUND_GRANT: Final = "refund_grant"
GRANT_EXPIRE: Final = "grant_expire"
GRANTS_DUE: Final = "grants_due"
GRANTS_LIST: Final = "grants_list"
TRANSACTIONS: Final = "transactions"
STATEMENT: Final = "statement"
ACCOUNTS_LIST: Final = "accounts_list"

PAGE_MAX: Final = 1000
"""Highest page that can be asked for; narrow the time range to see more."""

EntryKind = Literal["granted", "expired", "adjusted", "refunded", "withdrawn"]
TransactionKind = Literal["charged", "granted", "expired", "adjusted", "refunded", "withdrawn"]
GrantStatus = Literal["pending", "granted", "depleted", "expired", "voided"]


class Adjust(Message):
    """Give or take credits; what is taken comes out of the grants in their order, and no more than is free."""

    adjustment_id: str
    account: str
    amount: CreditsChange
    reason: str = Field("", max_length=500)
    made_by: str = Field("", max_length=200)
    expires_at: AwareDatetime | None = None
    """Of credits that are given."""


class RefundCall(Message):
    """Give the charge of a settled call back, as a grant of its own; None = all that was not given back yet."""

    refund_id: str
    call_id: str
    amount: Credits | None = None
    reason: str = Field("", max_length=500)
    made_by: str = Field("", max_length=200)
    expires_at: AwareDatetime | None = None


class RefundGrant(Message):
    """Take unused credits of a grant back, e.g. because its price was paid back; None = all of it that is free."""

    refund_id: str
    grant_id: str
    amount: Credits | None = None
    reason: str = Field("", max_length=500)
    made_by: str = Field("", max_length=200)


class GrantExpire(Message):
    """End a grant now: what of it is free is gone, what running calls hold when they leave it."""

    expiry_id: str
    grant_id: str
    reason: str = Field("", max_length=500)
    made_by: str = Field("", max_length=200)


class EntryView(Message):
    """One change of what an account was given; entries are never changed or removed."""

    entry_id: str
    number: int
    """Per account, contiguous from 1."""
    account: str
    kind: EntryKind
    amount: CreditsChange
    grant_id: str | None
    call_id: str | None
    reason: str
    made_by: str
    at: str


class CreditChanged(Message):
    """The entry that was made, now or when this id was used first, and the balance as it is now."""

    entry: EntryView
    balance: Balance


class GrantsDue(Message):
    """Begin and end the grants whose time has come."""

    limit: int = Field(1000, gt=0, le=10_000)
    """Most accounts of one run."""


class GrantsDone(Message):
    """What a run did; `more` when accounts were left for the next one."""

    accounts: int
    started: int
    ended: int
    more: bool


class Page(Message):
    """A page of something an account has, newest first; `start` ≤ time < `end`."""

    account: str
    page: int = Field(1, ge=1, le=PAGE_MAX)
    page_size: int = Field(20, ge=1, le=100)
    start: AwareDatetime | None = None
    end: AwareDatetime | None = None


class GrantsList(Page):
    """The grants of an account, by when they were made."""

    status: GrantStatus | None = None


class GrantView(Message):
    """A grant; `remaining` is exact at this moment, whoever spends meanwhile."""

    grant_id: str
    account: str
    amount: Credits
    remaining: Credits
    status: GrantStatus
    category: str
    name: str
    reason: str
    granted_by: str
    priority: int
    effective_at: str
    expires_at: str | None
    created_at: str
    call_id: str | None


class GrantsPage(Message):
    """`count` is that of all pages."""

    grants: tuple[GrantView, ...]
    count: int


class TransactionsList(Page):
    """The transactions of an account; calls that cost nothing are none."""

    kind: TransactionKind | None = None


class Transaction(Message):
    """A charge, an entry, or an adjustment of a charge, and the balance (granted minus spent) directly after it."""

    transaction_id: str
    """The call's id of a charge, else the id of the entry or of the adjustment."""
    kind: TransactionKind
    amount: CreditsChange
    balance: CreditsChange
    at: str
    call_id: str | None
    grant_id: str | None
    model: str | None
    project: str | None
    reason: str
    made_by: str


class TransactionsPage(Message):
    """`count` is that of all pages."""

    transactions: tuple[Transaction, ...]
    count: int


class StatementGet(Message):
    """The statement of one month, UTC."""

    account: str
    month: str = Field(pattern=r"^(20\d\d)-(0[1-9]|1[0-2])$")


class Statement(Message):
    """opening + granted + adjusted + refunded + expired + withdrawn + charged = closing; signs are part of the sums.

    `adjusted` has adjustments of charges too, as when a period was priced again. `opening` and `closing` are counted
    back from the account's balance, the sums from the rows of the month, all in one snapshot; `difference` is what they
    lack of each other, and 0 as long as the books are right.
    """

    account: str
    month: str
    opening: CreditsChange
    granted: CreditsChange
    adjusted: CreditsChange
    refunded: CreditsChange
    expired: CreditsChange
    withdrawn: CreditsChange
    charged: CreditsChange
    closing: CreditsChange
    difference: CreditsChange
    charges: int
    """Calls that cost something."""
    entries: int
    """All other rows."""


class AccountsList(Message):
    """Accounts with their balances, by id."""

    after: str = ""
    """An account id: those behind it."""
    limit: int = Field(100, ge=1, le=1000)
    contains: str = Field("", max_length=200)
    """Only accounts whose id has this text."""
    balance_below: Credits | None = None
    """Only accounts that have less than this left."""


class AccountsPage(Message):
    """`next_after` is None on the last page."""

    accounts: tuple[Balance, ...]
    next_after: str | None
