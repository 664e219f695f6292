"""Converts what accounts have into another unit of credits, by added rows only.

Each open grant is taken back and given again in the new unit, with the same name, priority, start and end; charges stay
as they were. One transaction per account with ids that follow from the conversion: whatever dies, doing it again goes
on where it ended, and an account is converted once. While a conversion is open every metering refuses reserves.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID, uuid5

import asyncpg
import structlog

from contracts.errors import ErrorCode, HubError
from contracts.money import LIMIT, ZERO, parse
from contracts.rpc.conversion import (
    Conversion,
    ConversionAccounts,
    ConversionFinish,
    ConversionPage,
    ConversionStart,
    ConvertedAccount,
    conversion_id,
)
from metering.ledger.converted import converted, exact_text, rounding
from metering.times import iso_ms
from runtime import failpoints
from runtime.postgres import UNKNOWN_OUTCOME, Pool

_log = structlog.get_logger("conversion")
LOOK_S: Final = 1.0
"""How often a metering looks whether a conversion is open."""
KNOWN_S: Final = 5.0
"""After this long every metering knows."""
_IS_OPEN: Final = """
select exists (select from metering.conversion where finished_at is null)
    or exists (select from metering.grant_conversion where state in ('running', 'moved') and not dry_run)
    or exists (select from metering.payment_control where unit <> $1)
"""
_START: Final = "insert into metering.conversion (id, price) values ($1, $2) on conflict do nothing"
_STANDING: Final = f"""
select c.started_at, c.finished_at, clock_timestamp() - c.started_at > interval '{KNOWN_S} s' as is_known,
    (select count(*) from metering.account a where a.held > 0) as running,
    (select count(*) from metering.model_call m
        where m.id >= metering.id_bound(c.started_at + interval '{KNOWN_S} s')
            and m.id < metering.id_bound(coalesce(c.finished_at, now() + interval '1 day'))) as late,
    (select count(*) from metering.account a where c.finished_at is null and not exists (
        select from metering.conversion_account d where d.conversion = $1 and d.account = a.id)) as waiting,
    s.converted, s.before, s.after, s.rounding
from (select 1) one left join metering.conversion c on c.id = $1 cross join lateral (
    select count(*) as converted, coalesce(sum(d.before), 0) as before, coalesce(sum(d.after), 0) as after,
        coalesce(sum(d.rounding), 0) as rounding
    from metering.conversion_account d where d.conversion = $1
) s
"""  # noqa: S608 - our own numbers
_FINISH: Final = "update metering.conversion set finished_at = now() where id = $1 and finished_at is null"
_PAGE: Final = """
select a.id, d.grants, d.before, d.after, d.rounding
from metering.account a left join metering.conversion_account d on d.conversion = $1 and d.account = a.id
where a.id > $2 order by a.id limit $3
"""
_QUIET: Final = "set local metering.converting = 'on'"
_ADVANCE: Final = "select metering.credit_advance($1, $2)"
_HELD: Final = "select held from metering.account where id = $1"
_LOTS: Final = """
select l.grant_id, l.rest, l.state, g.category, g.name, l.priority, g.effective_at, l.expires_at
from metering.credit_lot l join metering.credit_grant g on g.id = l.grant_id
where l.account = $1 and l.state <> 'closed'
order by l.state = 'waiting', l.priority, l.expires_at nulls last, l.created_at, l.grant_id
"""
_LOOK: Final = """
select a.held, l.rest - case when l.state = 'waiting' then 0
    else greatest(0, least(l.rest, a.spent - coalesce(b.drawn, 0) - o.ahead)) end as rest
from metering.credit_lot l join metering.account a on a.id = l.account
    left join metering.credit_book b on b.account = l.account
    left join metering.credit_open o on o.grant_id = l.grant_id
where l.account = $1 and l.state <> 'closed' and (l.expires_at is null or l.expires_at > now())
order by l.state = 'waiting', l.priority, l.expires_at nulls last, l.created_at, l.grant_id
"""
_BACK: Final = "select metering.credit_end($1, $2, 'withdrawn', null, $3, 'conversion', $4)"
_GIVE: Final = "select metering.credit_give($1, $2, $3, $4, $5, $6, 'conversion', $7, $8, $9, null, $10)"
_DONE: Final = """
insert into metering.conversion_account (conversion, account, grants, before, after, rounding)
values ($1, $2, $3, $4, $5, $6)
"""


@dataclass(frozen=True, slots=True)
class Conversions:
    """Answers the questions about conversions."""

    pool: Pool

    async def start(self, request: ConversionStart) -> Conversion:
        """Open it, and tell how it stands.

        Raises:
            HubError: `conflict` while another one is open.
        """
        wanted = UUID(conversion_id(request.price))
        if not request.dry_run:
            await self.pool.execute(_START, wanted, parse(request.price))
            standing = await self._standing(wanted, request.price)
            if standing.started_at is None:
                raise HubError(ErrorCode.CONFLICT, "Another conversion is open; finish that one first.", param="price")
            return standing
        return await self._standing(wanted, request.price)

    async def accounts(self, request: ConversionAccounts) -> ConversionPage:
        """Convert a page of accounts, or tell what that would be.

        Raises:
            HubError: `conflict` when it was not started, is finished, or not every metering knows of it yet.
        """
        wanted, price = UUID(conversion_id(request.price)), parse(request.price)
        if not request.dry_run:
            row = await self.pool.fetchrow(_STANDING, wanted)
            if row is None or row["started_at"] is None or row["finished_at"] is not None or not row["is_known"]:
                raise HubError(ErrorCode.CONFLICT, "Start the conversion first, and wait until all know of it.")
        rows = await self.pool.fetch(_PAGE, wanted, request.after, request.limit + 1)
        page = []
        for row in rows[: request.limit]:
            if row["before"] is not None:
                page.append(_told(row["id"], row["grants"], row["before"], row["after"], row["rounding"]))
            elif request.dry_run:
                page.append(await self._look(row["id"], price))
            else:
                page.append(await self._convert(wanted, row["id"], price))
        return ConversionPage(accounts=tuple(page), next_after=page[-1].account if len(rows) > request.limit else None)

    async def finish(self, request: ConversionFinish) -> Conversion:
        """Close it: calls are admitted again.

        Raises:
            HubError: `not_found`; `conflict` while accounts wait.
        """
        wanted = UUID(conversion_id(request.price))
        standing = await self._standing(wanted, request.price)
        if standing.started_at is None:
            raise HubError(ErrorCode.NOT_FOUND, "No conversion at this price was started.", param="price")
        if standing.waiting:
            raise HubError(ErrorCode.CONFLICT, f"{standing.waiting} accounts are not converted yet.")
        await self.pool.execute(_FINISH, wanted)
        return await self._standing(wanted, request.price)

    async def _standing(self, wanted: UUID, price: str) -> Conversion:
        row = await self.pool.fetchrow(_STANDING, wanted)
        assert row is not None  # noqa: S101 - joined to one row
        return Conversion(
            conversion_id=str(wanted),
            price=price,
            started_at=None if row["started_at"] is None else iso_ms(row["started_at"]),
            finished_at=None if row["finished_at"] is None else iso_ms(row["finished_at"]),
            is_known=bool(row["is_known"]),
            running=row["running"],
            late=row["late"],
            waiting=row["waiting"],
            converted=row["converted"],
            before=exact_text(row["before"]),
            after=exact_text(row["after"]),
            rounding=exact_text(row["rounding"]),
        )

    async def _look(self, account: str, price: Decimal) -> ConvertedAccount:
        """What a conversion would do now."""
        rows = await self.pool.fetch(_LOOK, account)
        rests = [row["rest"] for row in rows]
        before, after = sum(rests, ZERO), sum(converted(rests, price), ZERO)
        problem = "busy" if any(row["held"] for row in rows) else "too_much" if after >= LIMIT else ""
        return _told(account, len(rows), before, min(after, LIMIT - 1), rounding(before, after, price), problem)

    async def _convert(self, wanted: UUID, account: str, price: Decimal) -> ConvertedAccount:
        async with self.pool.acquire() as connection:
            try:
                async with connection.transaction():
                    done = await _convert(connection, wanted, account, price)
            except _NotNowError as error:
                return _told(account, 0, ZERO, ZERO, ZERO, str(error))
        failpoints.hit("metering.after_conversion")
        return done


async def is_open(pool: Pool, unit: str | None = None) -> bool | None:
    """Whether a conversion is open, or left charges in another unit than ours; None while the books do not answer.

    Args:
        pool: of the books.
        unit: what this process counts in; None without Payment Kit.
    """
    try:
        return bool(await pool.fetchval(_IS_OPEN, unit))
    except (*UNKNOWN_OUTCOME, asyncpg.PostgresError) as error:
        _log.info("conversions not looked for", error=type(error).__name__)
        return None


async def watch(pool: Pool, unit: str | None, close: Callable[[bool], None]) -> None:
    """Tell whether a conversion is open, every second, until cancelled; while the books are away it is as it was."""
    while True:
        await asyncio.sleep(LOOK_S)
        found = await is_open(pool, unit)
        if found is not None:
            close(found)


class _NotNowError(Exception):
    """The account is left as it is."""


async def _convert(
    connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]", wanted: UUID, account: str, price: Decimal
) -> ConvertedAccount:
    moment: datetime = await connection.fetchval("select now()")
    await connection.execute(_QUIET)
    await connection.execute(_ADVANCE, account, moment)  # locks the account
    if await connection.fetchval(_HELD, account):
        raise _NotNowError("busy")
    lots = await connection.fetch(_LOTS, account)
    rests = [lot["rest"] for lot in lots]
    parts = converted(rests, price)
    before, after = sum(rests, ZERO), sum(parts, ZERO)
    if after >= LIMIT:
        raise _NotNowError("too_much")
    reason = f"unit conversion at {exact_text(price)}"
    for lot in lots:
        await _said(
            connection.fetchval(_BACK, uuid5(wanted, f"out:{lot['grant_id']}"), lot["grant_id"], reason, moment)
        )
    for place, (lot, part) in enumerate(zip(lots, parts, strict=True)):
        if part:
            await _said(
                connection.fetchval(
                    _GIVE,
                    uuid5(wanted, f"in:{lot['grant_id']}"),
                    account,
                    part,
                    "adjustment" if lot["category"] == "refund" else lot["category"],
                    lot["name"],
                    reason,
                    lot["priority"],
                    lot["effective_at"] if lot["state"] == "waiting" else None,
                    lot["expires_at"],
                    moment + timedelta(microseconds=place),  # equals are spent in the order in which they were
                )
            )
    exact = rounding(before, after, price)
    await connection.execute(_DONE, wanted, account, len(lots), before, after, exact)
    return _told(account, len(lots), before, after, exact)


async def _said(word: Awaitable[str]) -> None:
    """What a function of the schema answers here is `done`: ids are new, and the account is locked."""
    said = await word
    if said != "done":
        raise _NotNowError(said)


def _told(
    account: str, grants: int, before: Decimal, after: Decimal, exact: Decimal, problem: str = ""
) -> ConvertedAccount:
    return ConvertedAccount(
        account=account, grants=grants, before=before, after=after, rounding=exact_text(exact), problem=problem
    )
