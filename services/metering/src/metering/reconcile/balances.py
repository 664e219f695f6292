# ruff: noqa: S608 - our own words only
"""Checks of an account's totals against the rows that they are made of."""

from typing import Final

import asyncpg

from contracts.money import ZERO
from metering.reconcile.check import DIFFERENCES_MAX, Connection, Difference, Found, Window, one_row, text

_CLOSED: Final = """
cross join lateral (
    select coalesce(max(k.calls_total), 0) as calls, coalesce(max(k.amount_total), 0) as amount from (
        select k.calls_total, k.amount_total from metering.closing_account k
        where k.account = a.id and k.day < ($1::timestamptz at time zone 'UTC')::date order by k.day desc limit 1
    ) k
) k
"""
"""What the closed days before `$1` come to; nothing when all rows are looked at."""
_SPENT: Final = f"""
with booked as (
    select l.account, count(*) as calls, sum(l.amount) as amount from metering.ledger l
    where $1::timestamptz is null or l.at >= $1 group by l.account
), adjusted as (
    select j.account, sum(j.amount) as amount from metering.adjustment j where j.target in ('charge', 'ledger')
    group by j.account
), total as (
    select a.id as account, a.spent, a.seq, k.calls + coalesce(b.calls, 0) as calls,
        k.amount + coalesce(b.amount, 0) + coalesce(j.amount, 0) as amount
    from metering.account a
        {_CLOSED}
        left join booked b on b.account = a.id
        left join adjusted j on j.account = a.id
    union all
    select b.account, 0, 0, b.calls, b.amount + coalesce(j.amount, 0)
    from booked b left join adjusted j on j.account = b.account
    where not exists (select 1 from metering.account a where a.id = b.account)
), sums as (
    select coalesce(sum(calls), 0)::bigint as all_calls, coalesce(sum(amount), 0) as all_amount,
        coalesce(sum(seq), 0)::bigint as all_seq, coalesce(sum(spent), 0) as all_spent from total
)
select s.*, w.*, count(w.account) over () as total from sums s
left join (select * from total where spent <> amount order by account) w on true
limit {DIFFERENCES_MAX}
"""
_NUMBERS: Final = f"""
with booked as (
    select l.account, count(*) as calls, count(distinct l.acct_seq) as numbers, max(l.acct_seq) as last
    from metering.ledger l where $1::timestamptz is null or l.at >= $1 group by l.account
), total as (
    select coalesce(a.id, b.account) as account, coalesce(a.seq, 0) as seq,
        coalesce(a.closed, 0) + coalesce(b.calls, 0) as calls,
        coalesce(b.calls, 0) - coalesce(b.numbers, 0) as repeats, coalesce(b.last, 0) as last
    from booked b full join (
        select a.id, a.seq, k.calls as closed from metering.account a {_CLOSED}
    ) a on a.id = b.account
), sums as (
    select coalesce(sum(calls), 0)::bigint as all_calls, coalesce(sum(seq), 0)::bigint as all_seq from total
)
select s.*, w.* from sums s left join (
    select * from total where seq <> calls or repeats <> 0 or last > seq order by account limit {DIFFERENCES_MAX}
) w on true
"""
_GAPS: Final = """
select n.previous + 1 as first, n.acct_seq - 1 as last from (
    select s.acct_seq, lag(s.acct_seq, 1, 0::bigint) over (order by s.acct_seq) as previous from (
        select l.acct_seq from metering.ledger l where l.account = $1 union select $2::bigint + 1
    ) s
) n where n.acct_seq > n.previous + 1 order by 1 limit 100
"""
_REPEATS: Final = """
select l.acct_seq as first, l.acct_seq as last, count(*) as rows from metering.ledger l where l.account = $1
group by l.acct_seq having count(*) > 1 or l.acct_seq > $2 order by 1 limit 100
"""
_HELD: Final = f"""
with open as (
    select c.account, c.hold from metering.model_call c where c.state = 'processing' and c.id >= $1
    union all
    select c.account, c.hold from metering.skewed_call s join metering.model_call c on c.id = s.call_id
    where c.state = 'processing' and c.id < $1
), held as (
    select o.account, sum(o.hold) as hold, count(*) as calls from open o group by o.account
), sums as (
    select (select count(*) from open) as all_calls, (select coalesce(sum(hold), 0) from open) as all_holds,
        (select count(*) from metering.account where held > 0) as all_accounts,
        (select coalesce(sum(held), 0) from metering.account) as all_held
)
select s.*, w.*, count(w.account) over () as total from sums s left join (
    select coalesce(a.id, h.account) as account, coalesce(a.held, 0) as held, coalesce(h.hold, 0) as hold,
        coalesce(h.calls, 0) as calls
    from metering.account a full join held h on h.account = a.id
    where coalesce(a.held, 0) <> coalesce(h.hold, 0) order by 1
) w on true limit {DIFFERENCES_MAX}
"""
_SENT: Final = f"""
select a.id as account, a.seq, coalesce(s.seq, 0) as sent, l.at, count(*) over () as total
from metering.account a
    left join metering.usage_sent s on s.account = a.id
    left join metering.ledger l on l.account = a.id and l.acct_seq = coalesce(s.seq, 0) + 1
where coalesce(s.seq, 0) > a.seq or (coalesce(s.seq, 0) < a.seq and l.at < now() - interval '10 minutes')
order by a.id limit {DIFFERENCES_MAX}
"""
_SENT_TOTALS: Final = (
    "select (select coalesce(sum(seq), 0)::bigint from metering.account) as seq,"
    " (select coalesce(sum(seq), 0)::bigint from metering.usage_sent) as sent"
)


async def held(connection: Connection, window: Window) -> Found:
    """What an account holds is the sum of its open calls' holds."""
    rows = await connection.fetch(_HELD, window.open_from)
    all_, names = rows[0], ("open calls", "accounts that hold")
    found = Found("held", *names, all_["all_calls"], all_["all_holds"], all_["all_accounts"], all_["all_held"])
    for row in rows:
        if row["account"] is not None:
            what = f"{row['calls']} open calls hold {text(row['hold'])}"
            found.add(Difference("held", row["account"], None, text(row["hold"]), text(row["held"]), what))
    found.total = all_["total"]
    return found


async def spent(connection: Connection, window: Window) -> Found:
    """What an account has spent is the sum of its ledger, adjustments included."""
    rows = await connection.fetch(_SPENT, window.since)
    all_, names = rows[0], ("ledger rows", "accounts' totals")
    found = Found("spent", *names, all_["all_calls"], all_["all_amount"], all_["all_seq"], all_["all_spent"])
    for row in rows:
        if row["account"] is not None:
            what = f"{row['calls']} ledger rows come to {text(row['amount'])}"
            found.add(Difference("spent", row["account"], None, text(row["amount"]), text(row["spent"]), what))
    found.total = all_["total"]
    return found


async def sequence(connection: Connection, window: Window) -> Found:
    """An account's ledger is numbered from 1 to its last number, each once."""
    rows = await connection.fetch(_NUMBERS, window.since)
    all_, names = rows[0], ("numbers given out", "ledger rows")
    found = Found("sequence", *names, all_["all_seq"], ZERO, all_["all_calls"])
    for row in rows:
        account, last = row["account"], row["seq"]
        if account is None:
            continue
        for gap in await connection.fetch(_GAPS, account, last):
            what = "no ledger row has this number"
            found.add(Difference("sequence_gap", account, None, _span(gap), "none", what))
        for repeat in await connection.fetch(_REPEATS, account, last):
            what = f"{repeat['rows']} ledger rows have this number; the last one given out is {last}"
            found.add(Difference("sequence_repeat", account, None, str(last), _span(repeat), what))
    return found


async def usage_sent(connection: Connection, _window: Window) -> Found:
    """Usage events are stored up to the last number, except what was settled in the last ten minutes."""
    totals = await one_row(connection, _SENT_TOTALS)
    found = Found("usage_sent", "settled calls", "usage events sent", totals["seq"], ZERO, totals["sent"])
    rows = await connection.fetch(_SENT)
    for row in rows:
        if row["sent"] > row["seq"]:
            what = "more events are marked as sent than calls were settled"
        else:
            what = f"events wait since {row['at']:%Y-%m-%d %H:%M:%S}Z; metering sends them once the bus takes them"
        found.add(Difference("usage_sent", row["account"], None, str(row["seq"]), str(row["sent"]), what))
    found.total = rows[0]["total"] if rows else 0
    return found


def _span(row: asyncpg.Record) -> str:
    return str(row["first"]) if row["first"] == row["last"] else f"{row['first']}-{row['last']}"
