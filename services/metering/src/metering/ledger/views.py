"""What people look at: the grants of an account, and its transactions with the balance after each."""

from decimal import Decimal
from typing import Final

import asyncpg

from contracts.rpc.credit import (
    GrantsList,
    GrantsPage,
    GrantView,
    Page,
    Transaction,
    TransactionsList,
    TransactionsPage,
)
from metering.accounts import check_name
from metering.times import iso_ms
from runtime.postgres import Pool

_GRANTS: Final = """
with seen as (
    select g.*, coalesce(l.effective_at, g.effective_at, g.created_at) as begins_at,
        coalesce(l.expires_at, g.expires_at) as ends_at,
        case when l.state = 'waiting' then l.rest when o.grant_id is null then 0
            else o.rest - least(o.rest, greatest(a.spent - coalesce(b.drawn, 0) - o.ahead, 0)) end as remaining,
        l.state, l.ended_by
    from metering.credit_grant g
        join metering.account a on a.id = g.account
        left join metering.credit_book b on b.account = g.account
        left join metering.credit_lot l on l.grant_id = g.id
        left join metering.credit_open o on o.account = $1 and o.grant_id = g.id
    where g.account = $1 and ($2::timestamptz is null or g.created_at >= $2)
        and ($3::timestamptz is null or g.created_at < $3)
), told as (
    select s.*, case
        when s.state = 'waiting' then 'pending'
        when s.ended_by = 'withdrawn' then 'voided'
        when s.ended_by = 'expired' or s.state = 'lapsed' then 'expired'
        when s.remaining > 0 then 'granted'
        else 'depleted' end as status
    from seen s
)
select t.*, count(*) over () as total from told t where $4::text is null or t.status = $4
order by t.created_at desc, t.id desc limit $5 offset $6
"""
_COUNT_GRANTS: Final = """
select count(*) from metering.credit_grant g
where g.account = $1 and ($2::timestamptz is null or g.created_at >= $2)
    and ($3::timestamptz is null or g.created_at < $3)
"""

_IN_RANGE: Final = "($2::timestamptz is null or {row}.at >= $2) and ($3::timestamptz is null or {row}.at < $3)"
_CHARGES: Final = (
    "from metering.ledger l where l.account = $1 and l.amount > 0 and coalesce($4, 'charged') = 'charged' and "
    + _IN_RANGE.format(row="l")
)
_ENTRIES: Final = (
    "from metering.credit_entry e where e.account = $1 and coalesce($4, e.kind) = e.kind and "
    + _IN_RANGE.format(row="e")
)
_ADJUSTED: Final = (
    "from metering.charge_adjustment j where j.account = $1 and coalesce($4, 'adjusted') = 'adjusted' and "
    + _IN_RANGE.format(row="j")
)
_COUNT: Final = f"select (select count(*) {_CHARGES}) + (select count(*) {_ENTRIES}) + (select count(*) {_ADJUSTED})"
_PLACES: Final = f"""
select p.acct_seq, p.number, p.id, p.sort from (
    (select l.acct_seq, 0::bigint as number, 'charge' as sort, l.at, l.call_id as id {_CHARGES}
        order by l.acct_seq desc limit $5::int + $6::int)
    union all
    (select e.acct_seq, e.number, 'entry', e.at, e.id {_ENTRIES} order by e.number desc limit $5::int + $6::int)
    union all
    (select j.acct_seq, j.entries, 'repriced', j.at, j.id {_ADJUSTED}
        order by j.acct_seq desc, j.entries desc, j.at desc, j.id desc limit $5::int + $6::int)
) p order by p.acct_seq desc, p.number desc, p.sort = 'repriced' desc, p.at desc, p.id desc limit $5 offset $6
"""  # noqa: S608 - constants
"""All in one order: an entry stands behind the charge that was the last one before it, an adjustment of charges behind
both."""
_ROWS: Final = """
with spans as (
    select a.spent - coalesce((
        select sum(l.amount) from metering.ledger l where l.account = $1 and l.acct_seq > $3), 0) as spent
    from metering.account a where a.id = $1
), charges as (
    select l.*, s.spent - sum(l.amount) over (order by l.acct_seq desc) + l.amount as spent_after
    from metering.ledger l, spans s where l.account = $1 and l.acct_seq between $2 and $3
)
select c.call_id as id, 'charged' as kind, -c.amount as amount, c.at, c.call_id, null::uuid as grant_id,
    m.model, m.project, '' as reason, '' as made_by, coalesce((
        select e.granted from metering.credit_entry e where e.account = $1 and e.acct_seq < c.acct_seq
        order by e.number desc limit 1), 0) - c.spent_after + coalesce((
        select sum(j.amount) from metering.charge_adjustment j
        where j.account = $1 and j.acct_seq >= c.acct_seq), 0) as balance
from charges c join metering.model_call m on m.id = c.call_id where c.call_id = any ($4)
union all
select e.id, e.kind, e.amount, e.at, e.call_id, e.grant_id, null, null, e.reason, e.made_by, e.granted - e.spent
from metering.credit_entry e where e.account = $1 and e.id = any ($4)
union all
select j.id, 'adjusted', -j.amount, j.at, j.call_id, null, m.model, m.project, j.reason, j.made_by, coalesce((
        select e.granted from metering.credit_entry e where e.account = $1 and e.number <= j.entries
        order by e.number desc limit 1), 0)
    - a.spent + coalesce((
        select sum(l.amount) from metering.ledger l where l.account = $1 and l.acct_seq > j.acct_seq), 0)
    + coalesce((
        select sum(k.amount) from metering.charge_adjustment k where k.account = $1
            and (k.acct_seq, k.entries, k.at, k.id) > (j.acct_seq, j.entries, j.at, j.id)), 0)
from metering.charge_adjustment j join metering.account a on a.id = j.account
    left join metering.model_call m on m.id = j.call_id
where j.account = $1 and j.id = any ($4)
"""


async def grants(pool: Pool, request: GrantsList) -> GrantsPage:
    """The grants of an account, newest first, and what is left of each at this moment.

    Raises:
        HubError: `invalid_request`.
    """
    check_name(request.account)
    rows = await pool.fetch(_GRANTS, request.account, request.start, request.end, request.status, *_window(request))
    if rows:
        count = rows[0]["total"]
    elif request.page == 1 or request.status is not None:
        count = 0
    else:
        count = await pool.fetchval(_COUNT_GRANTS, request.account, request.start, request.end)
    return GrantsPage(grants=tuple(_grant(row) for row in rows), count=count)


async def transactions(pool: Pool, request: TransactionsList) -> TransactionsPage:
    """Charges, their adjustments and entries in one order, newest first, each with the balance directly after it.

    The balance is counted back from the account's own, in one snapshot; so it is right whatever the range leaves out.

    Raises:
        HubError: `invalid_request`.
    """
    check_name(request.account)
    chosen = (request.account, request.start, request.end, request.kind)
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        count: int = await connection.fetchval(_COUNT, *chosen)
        places = await connection.fetch(_PLACES, *chosen, *_window(request))
        if not places:
            return TransactionsPage(transactions=(), count=count)
        ids = [place["id"] for place in places]
        charges = [place["acct_seq"] for place in places if place["sort"] == "charge"]
        rows = await connection.fetch(_ROWS, request.account, min(charges, default=1), max(charges, default=0), ids)
    found = {(row["kind"] == "charged", row["id"]): row for row in rows}
    return TransactionsPage(
        transactions=tuple(_transaction(found[place["sort"] == "charge", place["id"]]) for place in places),
        count=count,
    )


def _window(page: Page) -> tuple[int, int]:
    """Limit and offset."""
    return page.page_size, (page.page - 1) * page.page_size


def _grant(row: asyncpg.Record) -> GrantView:
    return GrantView(
        grant_id=str(row["id"]),
        account=row["account"],
        amount=row["amount"],
        remaining=Decimal(row["remaining"]),
        status=row["status"],
        category=row["category"],
        name=row["name"],
        reason=row["reason"],
        granted_by=row["granted_by"],
        priority=row["priority"],
        effective_at=iso_ms(row["begins_at"]),
        expires_at=None if row["ends_at"] is None else iso_ms(row["ends_at"]),
        created_at=iso_ms(row["created_at"]),
        call_id=None if row["call_id"] is None else str(row["call_id"]),
    )


def _transaction(row: asyncpg.Record) -> Transaction:
    return Transaction(
        transaction_id=str(row["id"]),
        kind=row["kind"],
        amount=row["amount"],
        balance=row["balance"],
        at=iso_ms(row["at"]),
        call_id=None if row["call_id"] is None else str(row["call_id"]),
        grant_id=None if row["grant_id"] is None else str(row["grant_id"]),
        model=row["model"],
        project=row["project"],
        reason=row["reason"],
        made_by=row["made_by"],
    )
