"""Whatever people do to credit: grants, adjustments, refunds, early ends. One transaction each, once per id.

The rules are functions of the schema (`sql/migrations/0004_before_ledger.sql`); each answers with a word, and all but
two of the words are refusals, after which nothing has changed.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import Final
from uuid import UUID

import asyncpg

from contracts.errors import ErrorCode, HubError
from contracts.ids import is_call_id
from contracts.money import LIMIT, rounded, to_text
from contracts.rpc.credit import Adjust, CreditChanged, EntryView, GrantExpire, RefundCall, RefundGrant
from contracts.rpc.metering import Balance, Grant
from metering.accounts import check_name, check_text, standing
from metering.ledger.units import check_unit
from metering.times import iso_ms
from runtime.postgres import Pool

_GIVE: Final = "select metering.credit_give($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, null, now())"
_REDUCE: Final = "select metering.credit_reduce($1, $2, $3, $4, $5, now())"
_END: Final = "select metering.credit_end($1, $2, $3, $4, $5, $6, now())"
_REFUND: Final = "select metering.credit_refund($1, $2, $3, $4, $5, $6, now())"
_ENTRY: Final = "select * from metering.credit_entry where id = $1"
_PRIORITY: Final = 50
_DONE: Final = frozenset(("done", "repeat"))

_REFUSALS: Final[dict[str, tuple[ErrorCode, str, str]]] = {
    "conflict": (ErrorCode.CONFLICT, "id", "This id was used for something else; take a new one."),
    "past": (ErrorCode.INVALID_REQUEST, "expires_at", "This time is over; give one that is to come."),
    "begun": (ErrorCode.INVALID_REQUEST, "effective_at", "This time is over; leave it out to begin at once."),
    "window": (ErrorCode.INVALID_REQUEST, "expires_at", "A grant ends after it begins."),
    "too_much": (ErrorCode.INVALID_REQUEST, "amount", "An account holds less than 1e18 credits."),
    "not_enough": (ErrorCode.INVALID_REQUEST, "amount", "Less than this is free; look at the balance first."),
    "nothing": (ErrorCode.INVALID_REQUEST, "amount", "Nothing of it is left that could be given or taken back."),
    "waiting": (ErrorCode.INVALID_REQUEST, "amount", "A grant that has not begun can only be taken back whole."),
    "unknown": (ErrorCode.NOT_FOUND, "target", "There is no such grant, or no such call was settled."),
}


async def grant(pool: Pool, request: Grant) -> Balance:
    """Give credits, once per `grant_id`; opens the account.

    Returns:
        The balance afterwards, also for a repeat.

    Raises:
        HubError: `invalid_request`, or `conflict` when the id was used for another grant.
    """
    check_name(request.account)
    _check_texts(name=request.name, reason=request.reason, granted_by=request.granted_by)
    arguments = (
        _uuid("grant_id", request.grant_id),
        request.account,
        rounded(request.amount),
        request.category,
        request.name,
        request.reason,
        request.granted_by,
        request.priority,
        request.effective_at,
        request.expires_at,
    )
    async with pool.acquire() as connection, connection.transaction():
        await _change(connection, "grant_id", _GIVE, arguments)
        return await standing(connection, request.account)


async def adjust(pool: Pool, request: Adjust) -> CreditChanged:
    """Give or take credits, once per `adjustment_id`.

    Raises:
        HubError: `invalid_request`, also when less than is to be taken is free; `conflict`.
    """
    check_name(request.account)
    _check_texts(reason=request.reason, made_by=request.made_by)
    given, amount = _uuid("adjustment_id", request.adjustment_id), _above_zero(abs(request.amount))
    if request.amount > 0:
        statement = _GIVE
        arguments: tuple[object, ...] = (
            given, request.account, amount, "adjustment", "", request.reason, request.made_by, _PRIORITY, None,
            request.expires_at,
        )  # fmt: skip
    elif request.expires_at is not None:
        raise HubError(ErrorCode.INVALID_REQUEST, "Only credits that are given can expire.", param="expires_at")
    else:
        statement = _REDUCE
        arguments = (given, request.account, amount, request.reason, request.made_by)
    async with pool.acquire() as connection, connection.transaction():
        await _change(connection, "adjustment_id", statement, arguments)
        return await _changed(connection, given)


async def refund_call(pool: Pool, request: RefundCall) -> CreditChanged:
    """Give a charge back, or a part of it, as a grant of its own; together never more than was charged.

    Raises:
        HubError: `not_found`, `invalid_request`, `conflict`.
    """
    _check_texts(reason=request.reason, made_by=request.made_by)
    given = _uuid("refund_id", request.refund_id)
    if not is_call_id(request.call_id):
        raise HubError(ErrorCode.NOT_FOUND, "There is no such call.", param="call_id")
    amount = None if request.amount is None else _above_zero(request.amount)
    arguments = (given, request.call_id, amount, request.expires_at, request.reason, request.made_by)
    async with pool.acquire() as connection, connection.transaction():
        await check_unit(connection, request.call_id)
        too_much = "More than is left of the charge; a call gives back no more than it cost."
        await _change(connection, "refund_id", _REFUND, arguments, target="call_id", too_much=too_much)
        return await _changed(connection, given)


async def refund_grant(pool: Pool, request: RefundGrant) -> CreditChanged:
    """Take unused credits of a grant back.

    Raises:
        HubError: `not_found`, `invalid_request`, `conflict`.
    """
    amount = None if request.amount is None else _above_zero(request.amount)
    return await _end(
        pool, "refund_id", request.refund_id, request.grant_id, "withdrawn", amount, request.reason, request.made_by
    )


async def expire(pool: Pool, request: GrantExpire) -> CreditChanged:
    """End a grant now; what running calls hold of it ends when they leave it.

    Raises:
        HubError: `not_found`, `invalid_request` when nothing of it is left, `conflict`.
    """
    return await _end(
        pool, "expiry_id", request.expiry_id, request.grant_id, "expired", None, request.reason, request.made_by
    )


async def _end(
    pool: Pool, param: str, given: str, grant_id: str, what: str, amount: Decimal | None, reason: str, made_by: str
) -> CreditChanged:
    _check_texts(reason=reason, made_by=made_by)
    entry_id = _uuid(param, given)
    arguments = (entry_id, _uuid("grant_id", grant_id), what, amount, reason, made_by)
    async with pool.acquire() as connection, connection.transaction():
        await _change(connection, param, _END, arguments)
        return await _changed(connection, entry_id)


async def _change(
    connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]",
    id_param: str,
    statement: str,
    arguments: Sequence[object],
    *,
    target: str = "grant_id",
    too_much: str = "",
) -> None:
    """Run one of the schema's functions; what it refuses undoes the transaction.

    Args:
        connection: within a transaction.
        id_param: name of the field with the change's own id.
        statement: what to run.
        arguments: its arguments.
        target: name of the field with what it is done to.
        too_much: what to say when the amount is above what can be.

    Raises:
        HubError: the refusal.
    """
    try:
        word: str = await connection.fetchval(statement, *arguments)
    except asyncpg.UniqueViolationError as error:  # the id is being used for another account at this moment
        raise _refusal("conflict", id_param) from error
    except (asyncpg.CheckViolationError, asyncpg.NumericValueOutOfRangeError) as error:
        raise _refusal("too_much", id_param) from error
    if word not in _DONE:
        code, param, message = _REFUSALS[word]
        named = {"id": id_param, "target": target}
        raise HubError(code, too_much if word == "too_much" and too_much else message, param=named.get(param, param))


def _refusal(word: str, id_param: str) -> HubError:
    code, param, message = _REFUSALS[word]
    return HubError(code, message, param=id_param if param == "id" else param)


async def _changed(connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]", entry_id: UUID) -> CreditChanged:
    row = await connection.fetchrow(_ENTRY, entry_id)
    assert row is not None  # noqa: S101 - made above, or by the first request with this id
    return CreditChanged(entry=_entry(row), balance=await standing(connection, row["account"]))


def _entry(row: asyncpg.Record) -> EntryView:
    return EntryView(
        entry_id=str(row["id"]),
        number=row["number"],
        account=row["account"],
        kind=row["kind"],
        amount=row["amount"],
        grant_id=None if row["grant_id"] is None else str(row["grant_id"]),
        call_id=None if row["call_id"] is None else str(row["call_id"]),
        reason=row["reason"],
        made_by=row["made_by"],
        at=iso_ms(row["at"]),
    )


def _above_zero(amount: Decimal) -> Decimal:
    exact = rounded(amount)
    if not 0 < exact < LIMIT:
        raise HubError(ErrorCode.INVALID_REQUEST, f"At least {to_text(Decimal('1e-10'))} credits.", param="amount")
    return exact


def _uuid(param: str, text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise HubError(ErrorCode.INVALID_REQUEST, f"`{param}` is a UUID.", param=param) from error


def _check_texts(**texts: str) -> None:
    for param, text in texts.items():
        check_text(param, text)
