"""Pricing a period again from its rows, as a dry run or as adjustments; and what a provider served on a day."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID

import asyncpg

from contracts.errors import ErrorCode, HubError
from contracts.ids import first_call_id_at, is_call_id
from contracts.money import ZERO
from contracts.rpc.reconcile import (
    ProviderSum,
    ProviderSums,
    ProviderSumsReply,
    Recompute,
    RecomputedCall,
    RecomputePage,
)
from metering.reconcile.adjustments import Note, put_right
from metering.reconcile.charges import priced
from metering.reconcile.check import Connection, text
from metering.reconcile.session import BY_INDEX, connected

_APART: Final = timedelta(days=1)
"""By how much a call's id may be older or younger than its settling; `hub reconcile` looks at the others too."""
_PAGE: Final = """
select c.*, c.credits + coalesce(j.call, 0) as charged, l.amount + coalesce(j.ledger, 0) as booked
from metering.ledger l join metering.model_call c on c.id = l.call_id
    left join lateral (
        select sum(a.amount) filter (where a.target in ('charge', 'call')) as call,
            sum(a.amount) filter (where a.target in ('charge', 'ledger')) as ledger
        from metering.adjustment a where a.call_id = l.call_id
    ) j on true
where l.call_id > $1 and l.call_id < $2 and l.at >= $3 and l.at < $4 and ($5::text is null or l.account = $5)
    and c.state <> 'processing'
order by l.call_id limit $6
"""
_LOCK_ACCOUNT: Final = "select 1 from metering.account where id = $1 for no key update"
_SUMS: Final = """
select coalesce(c.provider_model, '') as model, count(*) as requests,
    coalesce(sum(coalesce(c.input_tokens, 0) + coalesce(c.cache_read_tokens, 0) + coalesce(c.cache_write_tokens, 0)), 0)
        ::bigint as input_tokens,
    coalesce(sum(c.cache_read_tokens), 0)::bigint as cached_tokens,
    coalesce(sum(coalesce(c.output_tokens, 0) + coalesce(c.reasoning_tokens, 0)), 0)::bigint as output_tokens,
    coalesce(sum(c.credits), 0) as credits, coalesce(sum(c.written_off), 0) as written_off
from metering.ledger l join metering.model_call c on c.id = l.call_id
where l.at >= $2 and l.at < $3 and c.provider = $1 and c.usage_source is not null
group by 1 order by 1
"""


async def recompute(dsn: str, request: Recompute) -> RecomputePage:
    """Price one page of calls again.

    Raises:
        HubError: `invalid_request`.
        asyncpg.PostgresError, OSError, TimeoutError: calls adjusted before stay so; ask for the page again.
    """
    since, until = _time(request.since, "since"), _time(request.until, "until")
    if until <= since:
        raise HubError(ErrorCode.INVALID_REQUEST, "`until` is later than `since`.", param="until")
    if request.after is not None and not is_call_id(request.after):
        raise HubError(ErrorCode.INVALID_REQUEST, "`after` is the id of a call.", param="after")
    after = UUID(request.after) if request.after is not None else _id_at(since - _APART)
    async with connected(dsn) as connection:
        async with connection.transaction(readonly=True):
            await connection.execute(BY_INDEX)
            rows = await connection.fetch(
                _PAGE, after, _id_at(until + _APART), since, until, request.account, request.limit + 1
            )
        shown = rows[: request.limit]
        differences = []
        charged = total = ZERO
        for row in shown:
            price = priced(row).charge
            charged, total = charged + row["charged"], total + price
            if price != row["charged"] or price != row["booked"]:
                differences.append(await _difference(connection, row, price, request))
    return RecomputePage(
        calls=len(shown),
        charged=text(charged),
        priced=text(total),
        differences=tuple(differences),
        next_after=str(shown[-1]["id"]) if len(rows) > len(shown) else None,
    )


async def provider_sums(dsn: str, request: ProviderSums) -> ProviderSumsReply:
    """What one provider served on one UTC day.

    Raises:
        HubError: `invalid_request`.
    """
    try:
        day = date.fromisoformat(request.day)
    except ValueError as error:
        raise HubError(ErrorCode.INVALID_REQUEST, "`day` is a date.", param="day") from error
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    if "\x00" in request.provider:
        raise HubError(ErrorCode.INVALID_REQUEST, "No provider has this name.", param="provider")
    async with connected(dsn) as connection:
        rows = await connection.fetch(_SUMS, request.provider, start, start + timedelta(days=1))
    return ProviderSumsReply(sums=tuple(ProviderSum(**row) for row in rows))


async def _difference(
    connection: Connection, row: asyncpg.Record, price: Decimal, request: Recompute
) -> RecomputedCall:
    applied, note = False, ""
    if row["charged"] != row["booked"]:
        note = f"the ledger says {text(row['booked'])}: see `hub reconcile`"
    elif request.apply:
        try:
            async with connection.transaction():
                await connection.fetchval(_LOCK_ACCOUNT, row["account"])
                await put_right(connection, row["id"], Note("", "recomputed", request.applied_by))
            applied = True
        except HubError as error:
            note = error.message
    return RecomputedCall(
        call_id=str(row["id"]),
        account=row["account"],
        charged=text(row["charged"]),
        priced=text(price),
        applied=applied,
        note=note,
    )


def _time(words: str, param: str) -> datetime:
    try:
        at = datetime.fromisoformat(words)
    except ValueError as error:
        raise HubError(ErrorCode.INVALID_REQUEST, f"`{param}` is an ISO 8601 time.", param=param) from error
    if at.tzinfo is None or not 2000 <= at.year < 9000:  # noqa: PLR2004 - ids carry no other years
        raise HubError(
            ErrorCode.INVALID_REQUEST, f"`{param}` has an offset or a Z, and a year from 2000 on.", param=param
        )
    return at.astimezone(UTC)


def _id_at(at: datetime) -> UUID:
    return UUID(first_call_id_at(int(at.timestamp()) * 1000))
