"""Accounts and grants: the built-in ledger's other side."""

from decimal import Decimal
from typing import Final
from uuid import UUID

import asyncpg

from contracts.errors import ErrorCode, HubError
from contracts.money import ZERO, rounded
from contracts.rpc.metering import AccountsOpen, AccountsOpened, Balance, BalanceGet, Grant
from runtime.postgres import Pool

ACCOUNT_CHARS_MAX: Final = 200
_BALANCE: Final = "select granted, spent, held from metering.account where id = $1"
_NEW_GRANT: Final = (
    "insert into metering.credit_grant (id, account, amount, category, reason, granted_by)"
    " values ($1, $2, $3, $4, $5, $6) on conflict do nothing returning 1"
)
_SAME_GRANT: Final = "select account = $2 and amount = $3 from metering.credit_grant where id = $1"
_ADD: Final = (
    "insert into metering.account (id, granted) values ($1, $2)"
    " on conflict (id) do update set granted = account.granted + excluded.granted"
)
_OPEN: Final = """
with opened as (
    insert into metering.account (id, granted)
    select a, $2 from (select distinct unnest($1::text[]) as a) n order by a
    on conflict do nothing
    returning id
), welcomed as (
    insert into metering.credit_grant (id, account, amount, category, granted_by)
    select gen_random_uuid(), o.id, $2, 'welcome', $3 from opened o where $2 > 0
)
select count(*) from opened
"""


async def balance(pool: Pool, request: BalanceGet) -> Balance:
    """Balance of an account; one that was never opened has nothing."""
    _check(request.account)
    row = await pool.fetchrow(_BALANCE, request.account)
    if row is None:
        return Balance(account=request.account, granted=ZERO, spent=ZERO, held=ZERO, available=ZERO)
    return _balance(request.account, row)


async def grant(pool: Pool, request: Grant) -> Balance:
    """Give credits, once per `grant_id`; opens the account.

    Returns:
        The balance afterwards, also for a repeat.

    Raises:
        HubError: `invalid_request`, or `conflict` when the id was used for another grant.
    """
    _check(request.account)
    if "\x00" in request.reason or "\x00" in request.granted_by:
        raise HubError(ErrorCode.INVALID_REQUEST, "NUL cannot be stored.", param="reason")
    try:
        grant_id = UUID(request.grant_id)
    except ValueError as error:
        raise HubError(ErrorCode.INVALID_REQUEST, "`grant_id` is a UUID.", param="grant_id") from error
    amount = rounded(request.amount)
    async with pool.acquire() as connection, connection.transaction():
        try:
            is_new = await connection.fetchval(
                _NEW_GRANT, grant_id, request.account, amount, request.category, request.reason, request.granted_by
            )
            if is_new:
                await connection.execute(_ADD, request.account, amount)
            elif not await connection.fetchval(_SAME_GRANT, grant_id, request.account, amount):
                raise HubError(ErrorCode.CONFLICT, "This grant id was used for another grant.", param="grant_id")
        except (asyncpg.CheckViolationError, asyncpg.NumericValueOutOfRangeError) as error:
            raise HubError(ErrorCode.INVALID_REQUEST, "An account holds less than 1e18 credits.", param="amount") from (
                error
            )
        row = await connection.fetchrow(_BALANCE, request.account)
    assert row is not None  # noqa: S101 - made above
    return _balance(request.account, row)


async def open_many(pool: Pool, request: AccountsOpen) -> AccountsOpened:
    """Make many accounts at once, each with the same welcome grant; known ones are left alone.

    Raises:
        HubError: `invalid_request`.
    """
    for account in request.accounts:
        _check(account)
    opened: int = await pool.fetchval(_OPEN, list(request.accounts), rounded(request.amount), request.granted_by)
    return AccountsOpened(opened=opened)


def _check(account: str) -> None:
    if not 0 < len(account) <= ACCOUNT_CHARS_MAX or "\x00" in account:
        raise HubError(ErrorCode.INVALID_REQUEST, "An account has 1 to 200 characters.", param="account")


def _balance(account: str, row: asyncpg.Record) -> Balance:
    granted, spent, held = Decimal(row["granted"]), Decimal(row["spent"]), Decimal(row["held"])
    return Balance(account=account, granted=granted, spent=spent, held=held, available=granted - spent - held)
