# ruff: noqa: S608 - our own words only
"""Checks of grants against what they are made of, and of the outbox to Payment Kit against the ledger."""

from typing import Final

from metering.reconcile.check import DIFFERENCES_MAX, Connection, Difference, Found, Window, one_row, text

_OURS: Final = "not exists (select 1 from metering.payment_account p where p.account = {})"
"""Where Payment Kit keeps the balance, `granted` mirrors that and is no sum of entries."""
_GRANTED: Final = (
    "select e.entries, e.amount, a.accounts, a.granted from"
    " (select count(*) as entries, coalesce(sum(e.amount), 0) as amount from metering.credit_entry e"
    f" where {_OURS.format('e.account')}) e,"
    " (select count(*) filter (where a.granted > 0) as accounts, coalesce(sum(a.granted), 0) as granted"
    f" from metering.account a where {_OURS.format('a.id')}) a"
)
_GRANTS_WRONG: Final = (
    f"select d.* from metering.credit_differences(null) d where {_OURS.format('d.account')} order by d.account, d.what"
)
REPORT: Final = """
insert into metering.outbox (id, kind, identifier, account, user_did, project, value, event_at, tokens)
select c.id, 'meter', 'mc_' || c.id, l.account, c.user_did, c.project, l.amount,
    floor(extract(epoch from l.at))::bigint,
    coalesce(c.input_tokens, 0)::numeric + coalesce(c.output_tokens, 0) + coalesce(c.cache_read_tokens, 0)
        + coalesce(c.cache_write_tokens, 0)
from metering.ledger l join metering.model_call c on c.id = l.call_id where l.call_id = $1 and l.amount > 0
on conflict do nothing returning identifier
"""
"""A missing row of the outbox as it was: its identifier is constant, so Payment Kit counts it once."""
AGAIN: Final = """
with again as (
    update metering.outbox set state = $2, next_at = now(), sent_at = null, reason = $3
    where identifier = $1 and id = $4 and state = 'sent' and batch is null returning members, identifier
), members as (
    update metering.outbox m set state = 'pending', sent_at = null
    from (select unnest(a.members) as id from again a) u where m.id = u.id
)
select identifier from again
"""
"""What was sent waits again, or is parked; its identifier, value and time are what they were."""
_REPORTED_FROM: Final = "select min(created_at) from metering.outbox"
_OUTBOX: Final = f"""
with reported as (
    -- What was settled before Payment Kit was there was never to be reported.
    select l.account, l.call_id, l.amount from metering.ledger l
    where l.at >= $1 and l.amount > 0 and ($2::timestamptz is null or l.at >= $2)
        and exists (select 1 from metering.payment_account p where p.account = l.account)
), rows as (
    select o.* from metering.outbox o where o.kind = 'meter' and ($2::timestamptz is null or o.created_at >= $2)
), compared as (
    select coalesce(r.account, o.account) as account, coalesce(r.call_id, o.id) as call_id, r.amount, o.value,
        o.identifier, o.state, o.reason, o.created_at
    from reported r full join rows o on o.id = r.call_id
), sums as (
    select count(amount) as calls, coalesce(sum(amount), 0) as amounts, count(value) as metered,
        coalesce(sum(value), 0) as value_sum from compared
)
select s.*, w.* from sums s left join (
    select * from compared where amount is distinct from value order by account, call_id limit {DIFFERENCES_MAX}
) w on true
"""
_BATCHES: Final = f"""
select b.account, b.identifier, b.value, coalesce(sum(o.value), 0) as members, count(o.id) as calls,
    cardinality(b.members) as named
from metering.outbox b left join metering.outbox o on o.batch = b.id and o.id = any (b.members)
where b.kind = 'meter_batch' and ($1::timestamptz is null or b.created_at >= $1)
group by b.id, b.account, b.identifier, b.value, b.members
having b.value <> coalesce(sum(o.value), 0) or count(o.id) <> cardinality(b.members)
order by b.account limit {DIFFERENCES_MAX}
"""
_STUCK: Final = (
    "select account, identifier, state, value, reason, created_at from metering.outbox"
    " where state = 'parked' or (state = 'pending' and batch is null and created_at < now() - interval '1 hour')"
    f" order by created_at limit {DIFFERENCES_MAX}"
)


async def grants(connection: Connection, _window: Window) -> Found:
    """What an account was granted is the sum of its entries, and what is left of its grants follows from them."""
    totals = await one_row(connection, _GRANTED)
    found = Found(
        "grants", "credit entries", "accounts with grants",
        totals["entries"], totals["amount"], totals["accounts"], totals["granted"],
    )  # fmt: skip
    for row in await connection.fetch(_GRANTS_WRONG):
        found.add(Difference("grants", row["account"], None, text(row["expected"]), text(row["found"]), row["what"]))
    return found


async def outbox(connection: Connection, window: Window) -> Found:
    """Each charge has its row in the outbox with its amount, each batch is the sum of its calls, and none is stuck."""
    found = Found("outbox", "charges", "meter events")
    first = await connection.fetchval(_REPORTED_FROM)
    if first is None:
        return found  # Payment Kit is not used
    for row in await connection.fetch(_OUTBOX, first, window.since):
        found.left_count, found.left_sum = row["calls"], row["amounts"]
        found.right_count, found.right_sum = row["metered"], row["value_sum"]
        if row["call_id"] is not None:
            name = (
                "outbox_missing"
                if row["value"] is None
                else "outbox_orphan"
                if row["amount"] is None
                else "outbox_amount"
            )
            what = "the charge and its row in the outbox are not the same"
            amount, value = text(row["amount"]), text(row["value"])
            found.add(Difference(name, row["account"], str(row["call_id"]), amount, value, what))
    for row in await connection.fetch(_BATCHES, window.since):
        what = f"{row['identifier']} names {row['named']} calls, {row['calls']} are there"
        found.add(Difference("outbox_batch", row["account"], None, text(row["members"]), text(row["value"]), what))
    for row in await connection.fetch(_STUCK):
        since, why = f"{row['created_at']:%Y-%m-%d %H:%M}Z", row["reason"][:150]
        what = f"{text(row['value'])} credits, {row['state']} since {since}: {why}"
        found.add(Difference(f"outbox_{row['state']}", row["account"], None, "sent", row["identifier"], what))
    return found
