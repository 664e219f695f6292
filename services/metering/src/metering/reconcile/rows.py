# ruff: noqa: S608 - our own words only
"""Checks of one row against another: calls, their ledger rows, their attempts, parked facts."""

from typing import Final

import asyncpg

from contracts.money import ZERO
from metering.reconcile.check import DIFFERENCES_MAX, Connection, Difference, Found, Window, one_row, text

ADJUSTED: Final = """
adjusted as (
    select j.call_id, sum(j.amount) filter (where j.target in ('charge', 'call')) as call,
        sum(j.amount) filter (where j.target in ('charge', 'ledger')) as ledger
    from metering.adjustment j where j.call_id is not null group by j.call_id
)
"""
"""What adjustments add to a call and to its ledger row."""
_BOTH: Final = f"""
with {ADJUSTED}, booked as (
    select l.account, l.call_id, l.amount, l.amount + coalesce(j.ledger, 0) as counts, c.id, c.state,
        c.account as call_account, c.credits + coalesce(j.call, 0) as credits
    from metering.ledger l
        left join metering.model_call c on c.id = l.call_id
        left join adjusted j on j.call_id = l.call_id
    where $1::timestamptz is null or l.at >= $1
)
"""
_LEDGER_TOTALS: Final = (
    _BOTH + "select count(*) as rows, coalesce(sum(counts), 0) as amount, count(id) as calls,"
    " coalesce(sum(credits), 0) as credits from booked"
)
_LEDGER_WRONG: Final = (
    _BOTH + "select *, count(*) over () as total from booked where (id is null and counts <> 0)"
    " or (id is not null and (call_account <> account or (state = 'processing' and counts <> 0)"
    f" or (state <> 'processing' and credits <> counts))) order by account, call_id limit {DIFFERENCES_MAX}"
)
_UNBOOKED: Final = f"""
select c.account, c.id, c.credits, c.state, count(*) over () as total, sum(c.credits) over () as credits_total
from metering.model_call c
where c.state <> 'processing' and c.id >= $1 and not exists (select 1 from metering.ledger l where l.call_id = c.id)
order by c.account, c.id limit {DIFFERENCES_MAX}
"""
_TRIED: Final = f"""
with tried as (
    select a.call_id, count(*) as rows from metering.attempt a where a.call_id >= $1 group by a.call_id
), compared as (
    select coalesce(c.id, t.call_id) as call_id, c.account, c.state, c.attempts, coalesce(t.rows, 0) as rows
    from tried t full join (select * from metering.model_call where id >= $1) c on c.id = t.call_id
)
select *, count(*) over () as total from compared
where attempts is distinct from rows order by account nulls first, call_id limit {DIFFERENCES_MAX}
"""
_TRIED_TOTALS: Final = (
    "select (select coalesce(sum(attempts), 0) from metering.model_call where id >= $1) as expected,"
    " (select count(*) from metering.attempt where call_id >= $1) as rows"
)
PARKED: Final = """
select p.*, d.id as difference_id from metering.parked p
cross join lateral (
    select left(encode(sha256(convert_to(concat_ws(E'\\n', 'parked', '', coalesce(p.call_id::text, ''),
        'settled', 'parked ' || encode(p.digest, 'hex')), 'UTF8')), 'hex'), 12) as id
) d
where not exists (select 1 from metering.difference_accepted a where a.id = d.id)
"""
"""Parked facts that nobody has accepted, under the id that `Difference.id` gives them."""


async def ledger(connection: Connection, window: Window) -> Found:
    """Each ledger row is its call's charge, and each settled call has one."""
    totals = await one_row(connection, _LEDGER_TOTALS, window.since)
    found = Found(
        "ledger", "settled calls", "ledger rows", totals["calls"], totals["credits"], totals["rows"], totals["amount"]
    )
    wrong = await connection.fetch(_LEDGER_WRONG, window.since)
    for row in wrong:
        found.add(_wrong(row))
    missing = await connection.fetch(_UNBOOKED, window.first_id)
    if missing:
        found.left_count += missing[0]["total"]
        found.left_sum += missing[0]["credits_total"]
    for row in missing:
        what = f"a call that is {row['state']} has no ledger row"
        found.add(Difference("ledger_missing", row["account"], str(row["id"]), text(row["credits"]), "none", what))
    found.total = sum(rows[0]["total"] for rows in (wrong, missing) if rows)
    return found


def _wrong(row: asyncpg.Record) -> Difference:
    call_id, counts = str(row["call_id"]), text(row["counts"])
    if row["id"] is None:
        return Difference("ledger_orphan", row["account"], call_id, "none", counts, "no such call")
    if row["call_account"] != row["account"]:
        what = f"the call belongs to {row['call_account']}"
        return Difference("ledger_account", row["account"], call_id, row["call_account"], row["account"], what)
    if row["state"] == "processing":
        return Difference("ledger_orphan", row["account"], call_id, "none", counts, "the call is not settled")
    what = f"the call is {row['state']}, charged {text(row['credits'])}"
    return Difference("ledger_amount", row["account"], call_id, text(row["credits"]), counts, what)


async def attempts(connection: Connection, window: Window) -> Found:
    """As many attempts as their call says, and none without a call."""
    totals = await one_row(connection, _TRIED_TOTALS, window.first_id)
    found = Found("attempts", "attempts by calls", "attempts", totals["expected"], ZERO, totals["rows"])
    wrong = await connection.fetch(_TRIED, window.first_id)
    for row in wrong:
        call_id = str(row["call_id"])
        if row["state"] is None:
            found.add(Difference("attempt_orphan", "", call_id, "0", str(row["rows"]), "attempts without a call"))
        else:
            what = "the call says another number of attempts than there are"
            difference = Difference(
                "attempt_count", row["account"], call_id, str(row["attempts"]), str(row["rows"]), what
            )
            found.add(difference)
    found.total = wrong[0]["total"] if wrong else 0
    return found


async def parked(connection: Connection, _window: Window) -> Found:
    """Nothing is parked that nobody has looked at."""
    found = Found("parked", "parked and accepted", "parked")
    rows = await connection.fetch(f"{PARKED} order by p.at")
    found.left_count = await connection.fetchval("select count(*) from metering.parked") - len(rows)
    found.right_count = found.left_count + len(rows)
    for row in rows:
        call_id = None if row["call_id"] is None else str(row["call_id"])
        digest = bytes(row["digest"]).hex()
        what = f"{row['subject']} of {row['at']:%Y-%m-%d %H:%M:%S}Z: {row['reason'][:200]}"
        found.add(Difference("parked", "", call_id, "settled", f"parked {digest}", what))
    return found
