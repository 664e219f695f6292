"""`/api/user/credit/…`: the caller's grants, transactions and balance, as the original's clients read them.

Amounts without a point are strings of whole smallest units (`currency.decimal` places), as Payment Kit has them; those
with one are credits.
"""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Final, Literal

from fastapi import Query
from pydantic import AwareDatetime, BaseModel, Field

from contracts.money import PLACES, to_text
from contracts.rpc import credit
from contracts.rpc.metering import Balance
from gateway.api.services import Caller, Used
from gateway.api.user import Currency

_PAID: Final = frozenset(("top_up", "adjustment", "refund"))

PageNumber = Annotated[int, Query(ge=1, le=credit.PAGE_MAX)]
PageSize = Annotated[int, Query(ge=1, le=100, alias="pageSize")]
Start = Annotated[AwareDatetime | None, Query(description="Unix seconds or ISO 8601; from this time on.")]
End = Annotated[AwareDatetime | None, Query(description="Unix seconds or ISO 8601; before this time.")]
Month = Annotated[str, Query(pattern=r"^(20\d\d)-(0[1-9]|1[0-2])$", description="As in 2026-11, UTC.")]


class Paging(BaseModel):
    """Which page this is."""

    page: int
    pageSize: int  # noqa: N815 - the original's name


class CreditStanding(BaseModel):
    """Balance, granted, spent, held and pending in one answer."""

    balance: str = Field(description="What can be spent now, in smallest units.")
    total: str = Field(description="All that was ever granted, less what ended unused, in smallest units.")
    pendingCredit: str = Field(description="Held for running calls, or not yet reported, in smallest units.")  # noqa: N815 - the original's name
    grantCount: int = Field(description="Grants of which something is left.")  # noqa: N815 - the original's name
    currency: Currency
    granted: str
    spent: str
    held: str
    pending: str
    available: str = Field(description="granted - spent - held.")
    upcoming: str = Field(description="Of grants that have not begun.")
    nextExpiryAt: str | None  # noqa: N815 - as its neighbours


class CreditGrant(BaseModel):
    """A grant in Payment Kit's shape; `source` is the ledger's own category."""

    id: str
    object: Literal["credit_grant"] = "credit_grant"
    customer_id: str
    name: str
    category: Literal["paid", "promotional"]
    source: str
    amount: str
    remaining_amount: str
    status: credit.GrantStatus
    priority: int
    effective_at: int
    expires_at: int | None
    created_at: str
    paymentCurrency: Currency  # noqa: N815 - the original's name


class CreditGrants(BaseModel):
    """`count` is that of all pages."""

    list: list[CreditGrant]
    count: int
    paging: Paging


class CreditTransaction(BaseModel):
    """A charge, or what was given or taken; `credit_amount` has no sign, `direction` tells it."""

    id: str
    object: Literal["credit_transaction"] = "credit_transaction"
    customer_id: str
    type: credit.TransactionKind
    direction: Literal["debit", "credit"]
    credit_amount: str
    quantity: str
    remaining_balance: str
    amount: str = Field(description="Credits, with a sign.")
    balance: str = Field(description="Credits, directly after it.")
    credit_grant_id: str | None
    call_id: str | None
    model: str | None
    project: str | None
    reason: str
    created_at: str
    paymentCurrency: Currency  # noqa: N815 - the original's name


class CreditTransactions(BaseModel):
    """`count` is that of all pages."""

    list: list[CreditTransaction]
    count: int
    paging: Paging


async def balance(used: Used, principal: Caller) -> CreditStanding:
    """What the caller has."""
    books: Balance = await used.peers.balance(principal.account)
    return CreditStanding(
        balance=_units(books.available),
        total=_units(books.granted),
        pendingCredit=_units(books.held + books.pending),
        grantCount=books.grants,
        currency=Currency(),
        granted=to_text(books.granted),
        spent=to_text(books.spent),
        held=to_text(books.held),
        pending=to_text(books.pending),
        available=to_text(books.available),
        upcoming=to_text(books.upcoming),
        nextExpiryAt=books.next_expiry_at,
    )


async def grants(
    used: Used, principal: Caller, page: PageNumber = 1, size: PageSize = 20, start: Start = None, end: End = None
) -> CreditGrants:
    """The caller's grants, newest first."""
    asked = credit.GrantsList(account=principal.account, page=page, page_size=size, start=start, end=end)
    found = await used.peers.credit(credit.GRANTS_LIST, asked, credit.GrantsPage)
    return CreditGrants(
        list=[_grant(grant) for grant in found.grants], count=found.count, paging=Paging(page=page, pageSize=size)
    )


async def transactions(
    used: Used, principal: Caller, page: PageNumber = 1, size: PageSize = 20, start: Start = None, end: End = None
) -> CreditTransactions:
    """The caller's charges and what was given or taken, newest first, with the balance after each."""
    asked = credit.TransactionsList(account=principal.account, page=page, page_size=size, start=start, end=end)
    found = await used.peers.credit(credit.TRANSACTIONS, asked, credit.TransactionsPage)
    return CreditTransactions(
        list=[_transaction(principal.account, one) for one in found.transactions],
        count=found.count,
        paging=Paging(page=page, pageSize=size),
    )


async def statement(used: Used, principal: Caller, month: Month) -> credit.Statement:
    """The caller's month."""
    asked = credit.StatementGet(account=principal.account, month=month)
    return await used.peers.credit(credit.STATEMENT, asked, credit.Statement)


async def payment_link(used: Used, _principal: Caller) -> str | None:
    """Where credits can be bought; null where there is no such page."""
    return used.payment_link()


def _grant(grant: credit.GrantView) -> CreditGrant:
    return CreditGrant(
        id=grant.grant_id,
        customer_id=grant.account,
        name=grant.name or grant.reason,
        category="paid" if grant.category in _PAID else "promotional",
        source=grant.category,
        amount=_units(grant.amount),
        remaining_amount=_units(grant.remaining),
        status=grant.status,
        priority=grant.priority,
        effective_at=_unix(grant.effective_at),
        expires_at=None if grant.expires_at is None else _unix(grant.expires_at),
        created_at=grant.created_at,
        paymentCurrency=Currency(),
    )


def _transaction(account: str, one: credit.Transaction) -> CreditTransaction:
    return CreditTransaction(
        id=one.transaction_id,
        customer_id=account,
        type=one.kind,
        direction="debit" if one.amount < 0 else "credit",
        credit_amount=_units(abs(one.amount)),
        quantity=to_text(abs(one.amount)),
        remaining_balance=_units(one.balance),
        amount=to_text(one.amount),
        balance=to_text(one.balance),
        credit_grant_id=one.grant_id,
        call_id=one.call_id,
        model=one.model,
        project=one.project,
        reason=one.reason,
        created_at=one.at,
        paymentCurrency=Currency(),
    )


def _units(amount: Decimal) -> str:
    """Whole smallest units: ten places and no point."""
    return str(int(amount / PLACES))


def _unix(iso: str) -> int:
    return int(datetime.fromisoformat(iso).timestamp())
