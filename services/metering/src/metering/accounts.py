"""Accounts: what they have, opening many at once, listing them."""

from decimal import Decimal
from typing import Final

import asyncpg

from contracts.errors import ErrorCode, HubError
from contracts.ids import welcome_grant_id
from contracts.money import ZERO, rounded
from contracts.rpc.credit import AccountsList, AccountsPage
from contracts.rpc.metering import AccountsOpen, AccountsOpened, Balance, BalanceGet
from metering.times import iso_ms
from runtime.postgres import Pool

ACCOUNT_CHARS_MAX: Final = 200
_STANDING: Final = """
select a.id, a.granted, a.spent, a.held, o.grants, o.next_expiry_at, w.upcoming
from {accounts} a
left join metering.credit_book b on b.account = a.id
cross join lateral (
    select count(*) as grants, min(c.expires_at) as next_expiry_at
    from metering.credit_open c
    where c.account = a.id and c.rest + c.ahead > a.spent - coalesce(b.drawn, 0)
) o
cross join lateral (
    select coalesce(sum(l.rest), 0) as upcoming from metering.credit_lot l
    where l.account = a.id and l.state = 'waiting'
) w
"""
_BALANCE: Final = _STANDING.format(accounts="metering.account") + "where a.id = $1"
_CHOSEN: Final = """(
    select * from metering.account n
    where n.id > $1 and (strpos(n.id, $2) > 0 or $2 = '') and ($3::numeric is null or n.granted - n.spent < $3)
    order by n.id limit $4
)"""
_LISTED: Final = _STANDING.format(accounts=_CHOSEN) + "order by a.id"
_OPEN: Final = "select metering.credit_welcome($1, $2, $3, $4, $5, now())"


async def balance(pool: Pool, request: BalanceGet) -> Balance:
    """Balance of an account; one that was never opened has nothing."""
    check_name(request.account)
    async with pool.acquire() as connection:
        return await standing(connection, request.account)


async def standing(connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]", account: str) -> Balance:
    """The same inside a transaction."""
    row = await connection.fetchrow(_BALANCE, account)
    if row is None:
        return Balance(account=account, granted=ZERO, spent=ZERO, held=ZERO, available=ZERO)
    return _balance(row)


async def open_many(pool: Pool, request: AccountsOpen) -> AccountsOpened:
    """Make many accounts at once, each with the same welcome grant; known ones are left alone.

    Raises:
        HubError: `invalid_request`.
    """
    names = list(dict.fromkeys(request.accounts))
    for name in names:
        check_name(name)
    check_text("granted_by", request.granted_by)
    ids = [welcome_grant_id(name) for name in names]
    opened: int = await pool.fetchval(
        _OPEN, names, ids, rounded(request.amount), request.granted_by, request.expires_at
    )
    return AccountsOpened(opened=opened)


async def listed(pool: Pool, request: AccountsList) -> AccountsPage:
    """Accounts by id, a page at a time."""
    check_text("after", request.after)
    check_text("contains", request.contains)
    rows = await pool.fetch(_LISTED, request.after, request.contains, request.balance_below, request.limit + 1)
    accounts = tuple(_balance(row) for row in rows[: request.limit])
    return AccountsPage(accounts=accounts, next_after=accounts[-1].account if len(rows) > request.limit else None)


def check_name(account: str) -> None:
    """Refuse a text that names no account.

    Raises:
        HubError: `invalid_request`.
    """
    if not 0 < len(account) <= ACCOUNT_CHARS_MAX or "\x00" in account:
        raise HubError(ErrorCode.INVALID_REQUEST, "An account has 1 to 200 characters.", param="account")


def check_text(param: str, text: str) -> None:
    """Refuse a text that PostgreSQL cannot store.

    Raises:
        HubError: `invalid_request`.
    """
    if "\x00" in text:
        raise HubError(ErrorCode.INVALID_REQUEST, "NUL cannot be stored.", param=param)


def _balance(row: asyncpg.Record) -> Balance:
    granted, spent, held = Decimal(row["granted"]), Decimal(row["spent"]), Decimal(row["held"])
    return Balance(
        account=row["id"],
        granted=granted,
        spent=spent,
        held=held,
        available=granted - spent - held,
        grants=row["grants"],
        next_expiry_at=None if row["next_expiry_at"] is None else iso_ms(row["next_expiry_at"]),
        upcoming=row["upcoming"],
    )
