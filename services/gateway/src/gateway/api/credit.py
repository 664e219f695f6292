"""`/api/credit/…`: credit of any account, for owners and administrators.

Whatever changes money names an `id` of its own, a UUID: sent again it changes nothing and answers the same, with
another amount it is a 409.
"""

from typing import Annotated, Literal, TypeVar
from uuid import UUID

from fastapi import Depends, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from contracts.errors import ErrorCode, HubError
from contracts.money import Credits, CreditsChange
from contracts.rpc import credit, metering
from gateway.api.bodies import reads
from gateway.api.services import Caller, Used
from gateway.api.user_credit import End, Month, PageNumber, PageSize, Start

Q = TypeVar("Q", bound=BaseModel)
Account = Annotated[str, Query(min_length=1, max_length=200, description="Usually the user's DID.")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: UUID = Field(description="Of this change, by the caller.")
    reason: str = Field("", max_length=500)


class GrantBody(_Body):
    """Credits to give; lower priorities are spent first, among equals those that end sooner, then the older ones."""

    account: str = Field(min_length=1, max_length=200)
    amount: Credits = Field(description="Above 0.")
    category: Literal["top_up", "promotional"] = "top_up"
    name: str = Field("", max_length=200)
    priority: int = Field(50, ge=0, le=100)
    effective_at: AwareDatetime | None = None
    expires_at: AwareDatetime | None = None


class AdjustmentBody(_Body):
    """Credits to give or, below 0, to take."""

    account: str = Field(min_length=1, max_length=200)
    amount: CreditsChange
    expires_at: AwareDatetime | None = None


class RefundBody(_Body):
    """A charge to give back, or unused credits of a grant to take back; without an amount, all that is left of it."""

    call_id: str | None = None
    grant_id: UUID | None = None
    amount: Credits | None = None
    expires_at: AwareDatetime | None = Field(None, description="Of the credits of a charge.")

    @model_validator(mode="after")
    def _one_target(self) -> "RefundBody":
        if (self.call_id is None) == (self.grant_id is None):
            raise ValueError("give call_id or grant_id, one of them")
        if self.grant_id is not None and self.expires_at is not None:
            raise ValueError("only credits of a charge can expire")
        return self


class ExpiryBody(_Body):
    """A grant to end now."""

    grant_id: UUID


async def grant(
    used: Used, principal: Caller, body: Annotated[GrantBody, Depends(reads(GrantBody))]
) -> metering.Balance:
    """Give credits to an account; answers its balance."""
    if not body.amount:
        raise HubError(ErrorCode.INVALID_REQUEST, "A grant has more than 0 credits.", param="amount")
    asked = _asked(metering.Grant, body, grant_id=str(body.id), granted_by=principal.user)
    return await used.peers.credit(metering.GRANT, asked, metering.Balance)


async def adjust(
    used: Used, principal: Caller, body: Annotated[AdjustmentBody, Depends(reads(AdjustmentBody))]
) -> credit.CreditChanged:
    """Give or take credits; no more is taken than is free."""
    asked = _asked(credit.Adjust, body, adjustment_id=str(body.id), made_by=principal.user)
    return await used.peers.credit(credit.ADJUST, asked, credit.CreditChanged)


async def refund(
    used: Used, principal: Caller, body: Annotated[RefundBody, Depends(reads(RefundBody))]
) -> credit.CreditChanged:
    """Give a charge back, or take unused credits of a grant back."""
    names = {"refund_id": str(body.id), "made_by": principal.user}
    if body.call_id is not None:
        return await used.peers.credit(
            credit.REFUND_CALL, _asked(credit.RefundCall, body, **names), credit.CreditChanged
        )
    return await used.peers.credit(credit.REFUND_GRANT, _asked(credit.RefundGrant, body, **names), credit.CreditChanged)


async def expire(
    used: Used, principal: Caller, body: Annotated[ExpiryBody, Depends(reads(ExpiryBody))]
) -> credit.CreditChanged:
    """End a grant now."""
    asked = _asked(credit.GrantExpire, body, expiry_id=str(body.id), made_by=principal.user)
    return await used.peers.credit(credit.GRANT_EXPIRE, asked, credit.CreditChanged)


async def balance(used: Used, _principal: Caller, account: Account) -> metering.Balance:
    """What an account has."""
    return await used.peers.balance(account)


async def grants(
    used: Used,
    _principal: Caller,
    account: Account,
    page: PageNumber = 1,
    size: PageSize = 20,
    start: Start = None,
    end: End = None,
    status: credit.GrantStatus | None = None,
) -> credit.GrantsPage:
    """Grants of an account, newest first."""
    asked = credit.GrantsList(account=account, page=page, page_size=size, start=start, end=end, status=status)
    return await used.peers.credit(credit.GRANTS_LIST, asked, credit.GrantsPage)


async def transactions(
    used: Used,
    _principal: Caller,
    account: Account,
    page: PageNumber = 1,
    size: PageSize = 20,
    start: Start = None,
    end: End = None,
    kind: credit.TransactionKind | None = None,
) -> credit.TransactionsPage:
    """Charges and entries of an account in one order, newest first, with the balance after each."""
    asked = credit.TransactionsList(account=account, page=page, page_size=size, start=start, end=end, kind=kind)
    return await used.peers.credit(credit.TRANSACTIONS, asked, credit.TransactionsPage)


async def statement(used: Used, _principal: Caller, account: Account, month: Month) -> credit.Statement:
    """An account's month."""
    asked = credit.StatementGet(account=account, month=month)
    return await used.peers.credit(credit.STATEMENT, asked, credit.Statement)


async def accounts(
    used: Used,
    _principal: Caller,
    after: Annotated[str, Query(max_length=200)] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    contains: Annotated[str, Query(max_length=200)] = "",
    balance_below: Annotated[Credits | None, Query()] = None,
) -> credit.AccountsPage:
    """Accounts and their balances, by id; `next_after` leads to the next page."""
    asked = credit.AccountsList(after=after, limit=limit, contains=contains, balance_below=balance_below)
    return await used.peers.credit(credit.ACCOUNTS_LIST, asked, credit.AccountsPage)


def _asked(question: type[Q], body: _Body, **names: str) -> Q:
    """The question that a body asks, with what the two call by other names."""
    return question.model_validate(body.model_dump(mode="json", exclude={"id"}, exclude_none=True) | names)
