"""The statement of a month: what was there, what came, what went, what is left; the sums prove themselves."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from contracts.money import ZERO
from contracts.rpc.credit import Statement, StatementGet
from metering.accounts import check_name
from runtime.postgres import Pool

_KINDS: Final = ("granted", "adjusted", "refunded", "expired", "withdrawn")
_STATEMENT: Final = """
with charges as (
    select count(*) filter (where l.amount > 0 and l.at < $3) as number,
        coalesce(sum(l.amount) filter (where l.at < $3), 0) as within,
        coalesce(sum(l.amount) filter (where l.at >= $3), 0) as later
    from metering.ledger l where l.account = $1 and l.at >= $2
), changes as (
    select e.kind, e.amount, e.at from metering.credit_entry e where e.account = $1 and e.at >= $2
    union all
    select 'adjusted', -j.amount, j.at from metering.charge_adjustment j where j.account = $1 and j.at >= $2
), entries as (
    select c.kind, count(*) filter (where c.at < $3) as number,
        coalesce(sum(c.amount) filter (where c.at < $3), 0) as within,
        coalesce(sum(c.amount) filter (where c.at >= $3), 0) as later
    from changes c group by c.kind
), before as (
    select coalesce((select sum(e.amount) from metering.credit_entry e where e.account = $1 and e.at < $2), 0)
        - coalesce((select sum(l.amount) from metering.ledger l where l.account = $1 and l.at < $2), 0)
        - coalesce((
            select sum(j.amount) from metering.charge_adjustment j where j.account = $1 and j.at < $2), 0) as balance
)
select 'balance' as kind, 0 as number, coalesce((
    select a.granted - a.spent from metering.account a where a.id = $1), 0) as within, 0 as later
union all select 'before', 0, b.balance, 0 from before b
union all select 'charged', c.number, -c.within, -c.later from charges c
union all select e.kind, e.number, e.within, e.later from entries e
"""


async def statement(pool: Pool, request: StatementGet) -> Statement:
    """The statement of one month, UTC; of an account that was never opened, zeros.

    `opening` is the sum of all rows before the month, `closing` is counted back from today's balance: two ways that
    meet only in books that are right.

    Raises:
        HubError: `invalid_request`.
    """
    check_name(request.account)
    start = datetime.strptime(request.month, "%Y-%m").replace(tzinfo=UTC)
    end = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    rows = {row["kind"]: row for row in await pool.fetch(_STATEMENT, request.account, start, end)}
    moved = {kind: Decimal(rows[kind]["within"]) if kind in rows else ZERO for kind in (*_KINDS, "charged")}
    opening = Decimal(rows["before"]["within"])
    closing = Decimal(rows["balance"]["within"]) - sum((Decimal(row["later"]) for row in rows.values()), ZERO)
    return Statement(
        account=request.account,
        month=request.month,
        opening=opening,
        closing=closing,
        difference=closing - opening - sum(moved.values(), ZERO),
        charges=rows["charged"]["number"],
        entries=sum(rows[kind]["number"] for kind in _KINDS if kind in rows),
        **moved,
    )
