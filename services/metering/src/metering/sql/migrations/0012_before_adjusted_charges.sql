-- A charge that is adjusted downwards gives back to the grants that had paid for it, and adjustments have a place among
-- the rows of their account.
--
-- `account.spent` may then fall below what was drawn from grants. What was drawn too much goes back to those drawn last,
-- as draws below zero: as if the charge had been right from the beginning. What goes back to a grant that has ended
-- meanwhile ends too.

alter table metering.credit_draw
    alter column amount type numeric(38, 10),
    add constraint credit_draw_amount_check
        check (amount > -1e18 and amount < 1e18 and (amount >= 0 or entry_id is null)) not valid;
comment on column metering.credit_draw.amount is 'Below zero: given back, because charges came to less.';

-- Where an adjustment stands: behind so many charges and entries of its account. Null in rows from before this file,
-- which stand where their time says; closed days protect those rows as they are.
alter table metering.adjustment
    add column acct_seq bigint,
    add column entries bigint;
comment on column metering.adjustment.acct_seq is 'Charges up to this sequence came before it, all others after it.';
comment on column metering.adjustment.entries is 'Entries up to this number came before it, all others after it.';

-- The adjustments that an account paid or got back, each with its place. They belong to the sum that `spent` is.
create view metering.charge_adjustment as
    select j.id, j.account, j.call_id, j.target, j.amount, j.reason, j.made_by, j.at,
        coalesce(j.acct_seq, (
            select max(l.acct_seq) from metering.ledger l where l.account = j.account and l.at <= j.at), 0) as acct_seq,
        coalesce(j.entries, (
            select max(e.number) from metering.credit_entry e where e.account = j.account and e.at <= j.at), 0)
            as entries
    from metering.adjustment j where j.target in ('charge', 'ledger');

-- Give back what was drawn above what is spent. The account is locked.
create function metering.credit_return(payer text, moment timestamptz) returns numeric language plpgsql as $$
declare
    excess numeric;
    back numeric := 0;
begin
    select b.drawn - a.spent into excess
    from metering.account a join metering.credit_book b on b.account = a.id where a.id = payer;
    if excess > 0 then
        with paid as (
            select d.grant_id, sum(d.amount) as amount, max(d.number) filter (where d.amount > 0) as last
            from metering.credit_draw d where d.account = payer and d.entry_id is null
            group by d.grant_id having sum(d.amount) > 0
        ), placed as (
            select p.grant_id, p.amount, sum(p.amount) over (order by p.last desc) - p.amount as ahead from paid p
        ), given as (
            select p.grant_id, p.ahead, least(p.amount, excess - p.ahead) as amount
            from placed p where p.ahead < excess
        ), moved as (
            update metering.credit_lot l set
                rest = l.rest + g.amount,
                state = case when l.expires_at <= moment then 'lapsed' else 'active' end,
                ended_by = null,
                due_at = case when l.expires_at <= moment then moment else l.expires_at end
            from given g where l.grant_id = g.grant_id
        ), noted as (
            insert into metering.credit_draw (account, grant_id, amount, at)
            select payer, g.grant_id, -g.amount, moment from given g order by g.ahead
        )
        select coalesce(sum(g.amount), 0) into back from given g;
        update metering.credit_book b set drawn = b.drawn - back where b.account = payer;
    end if;
    return back;
end $$;

-- A charge comes to so much more, or less; the caller notes the adjustment. Before it all is drawn in the order that held
-- until now, after it what has come back to a grant that is over ends.
create function metering.credit_charge(payer text, delta numeric, moment timestamptz) returns void
language plpgsql as $$
begin
    perform metering.credit_advance(payer, moment);
    update metering.account a set spent = a.spent + delta where a.id = payer;
    perform metering.credit_advance(payer, moment);
end $$;

-- As in 0004; draws are numbered in the order in which grants pay.
create or replace function metering.credit_take(payer text, wanted numeric, entry uuid, moment timestamptz) returns numeric
language plpgsql as $$
declare
    taken numeric;
begin
    with paid as (
        select o.grant_id, o.ahead, least(o.rest, wanted - o.ahead) as amount
        from metering.credit_open o where o.account = payer and o.ahead < wanted and o.rest > 0
    ), moved as (
        update metering.credit_lot l set
            rest = l.rest - p.amount,
            state = case when l.rest > p.amount then l.state else 'closed' end,
            ended_by = case when l.rest > p.amount then null else 'depleted' end,
            due_at = case when l.rest > p.amount then l.due_at end
        from paid p where l.grant_id = p.grant_id
    ), noted as (
        insert into metering.credit_draw (account, grant_id, entry_id, amount, at)
        select payer, p.grant_id, entry, p.amount, moment from paid p order by p.ahead
    )
    select coalesce(sum(p.amount), 0) into taken from paid p;
    return taken;
end $$;

-- As in 0004; what was drawn too much goes back first.
create or replace function metering.credit_advance(payer text, moment timestamptz, out started int, out ended int)
language plpgsql as $$
declare
    undrawn numeric;
    free numeric;
    lot record;
    part numeric;
begin
    started := 0;
    ended := 0;
    perform metering.credit_lock(payer);
    perform metering.credit_return(payer, moment);
    select a.spent - b.drawn into undrawn
    from metering.account a join metering.credit_book b on b.account = a.id where a.id = payer;
    if undrawn > 0 then
        part := metering.credit_take(payer, undrawn, null, moment);
        update metering.credit_book b set drawn = b.drawn + part where b.account = payer;
    end if;

    for lot in
        select l.grant_id, l.rest, l.expires_at, g.category, g.call_id, g.reason, g.granted_by
        from metering.credit_lot l join metering.credit_grant g on g.id = l.grant_id
        where l.account = payer and l.state = 'waiting' and l.effective_at <= moment
        order by l.effective_at, l.created_at, l.grant_id
    loop
        perform metering.credit_enter(payer, lot.grant_id,
            case lot.category when 'adjustment' then 'adjusted' when 'refund' then 'refunded' else 'granted' end,
            lot.rest, lot.grant_id, lot.call_id, lot.reason, lot.granted_by, moment);
        update metering.credit_lot l set state = 'active', due_at = l.expires_at where l.grant_id = lot.grant_id;
        started := started + 1;
    end loop;

    select a.granted - a.spent - a.held into free from metering.account a where a.id = payer;
    for lot in
        select l.grant_id, l.rest from metering.credit_lot l
        where l.account = payer and l.state in ('active', 'lapsed') and l.expires_at <= moment
        order by l.expires_at, l.created_at, l.grant_id
    loop
        part := least(lot.rest, free);
        if part > 0 then
            perform metering.credit_enter(payer, metering.credit_end_id(payer, lot.grant_id), 'expired', -part,
                lot.grant_id, null, '', 'metering', moment);
            free := free - part;
            ended := ended + 1;
        end if;
        update metering.credit_lot l set
            rest = l.rest - part,
            state = case when l.rest > part then 'lapsed' else 'closed' end,
            ended_by = case when l.rest > part then null else 'expired' end,
            due_at = case when l.rest > part then moment + interval '1 s' end
        where l.grant_id = lot.grant_id;
    end loop;
end $$;

-- As in 0004; a call gives back no more than its charge comes to, adjustments included.
create or replace function metering.credit_refund(
    given uuid, of_call uuid, credits numeric, ends timestamptz, why text, who text, moment timestamptz
) returns text language plpgsql as $$
declare
    charge metering.ledger;
    known metering.credit_grant;
    rest numeric;
begin
    select * into charge from metering.ledger l where l.call_id = of_call;
    if not found then
        return 'unknown';
    end if;
    perform metering.credit_lock(charge.account);
    select * into known from metering.credit_grant g where g.id = given;
    if found then
        return case when known.call_id = of_call and (credits is null or known.amount = credits)
                and known.expires_at is not distinct from ends
            then 'repeat' else 'conflict' end;
    end if;
    select charge.amount + coalesce((
            select sum(j.amount) from metering.adjustment j
            where j.call_id = of_call and j.target in ('charge', 'ledger')), 0)
        - coalesce((
            select sum(e.amount) from metering.credit_entry e where e.call_id = of_call and e.kind = 'refunded'), 0)
        into rest;
    if rest <= 0 then
        return 'nothing';
    end if;
    if credits > rest then
        return 'too_much';
    end if;
    return metering.credit_give(given, charge.account, coalesce(credits, rest), 'refund', '', why, who, 50, null, ends,
        of_call, moment);
end $$;

-- As in 0004; charges with their adjustments, and nothing drawn that is not spent.
create or replace function metering.credit_differences(of_account text default null)
returns table (account text, what text, expected numeric, found numeric) language sql stable as $$
    with accounts as (
        select a.id, a.granted, a.spent, coalesce(b.entries, 0) as entries, coalesce(b.drawn, 0) as drawn
        from metering.account a left join metering.credit_book b on b.account = a.id
        where of_account is null or a.id = of_account
    ), entries as (
        select e.*, sum(e.amount) over (partition by e.account order by e.number) as running,
            row_number() over (partition by e.account order by e.number) as place
        from metering.credit_entry e where of_account is null or e.account = of_account
    ), sums as (
        select e.account, sum(e.amount) as amount, count(*) as number from entries e group by e.account
    ), draws as (
        select d.account, sum(d.amount) filter (where d.entry_id is null) as spent
        from metering.credit_draw d where of_account is null or d.account = of_account group by d.account
    ), lots as (
        select l.grant_id, l.account, l.state, l.rest, g.amount
            - coalesce((select sum(d.amount) from metering.credit_draw d where d.grant_id = l.grant_id), 0)
            + coalesce((select sum(e.amount) from entries e where e.grant_id = l.grant_id and e.id <> l.grant_id), 0)
            as left_of
        from metering.credit_lot l join metering.credit_grant g on g.id = l.grant_id
        where of_account is null or l.account = of_account
    )
    select a.id, 'granted', coalesce(s.amount, 0), a.granted
    from accounts a left join sums s on s.account = a.id where a.granted <> coalesce(s.amount, 0)
    union all
    select a.id, 'entries', coalesce(s.number, 0), a.entries
    from accounts a left join sums s on s.account = a.id where a.entries <> coalesce(s.number, 0)
    union all
    select a.id, 'drawn', coalesce(d.spent, 0), a.drawn
    from accounts a left join draws d on d.account = a.id where a.drawn <> coalesce(d.spent, 0)
    union all
    select a.id, 'drawn above what is spent', a.spent, a.drawn from accounts a where a.drawn > a.spent
    union all
    select a.id, 'left of grants', a.granted - a.drawn, coalesce(o.rest, 0)
    from accounts a left join lateral (
        select sum(l.rest) as rest from lots l where l.account = a.id and l.state in ('active', 'lapsed')
    ) o on true
    where a.granted - a.drawn <> coalesce(o.rest, 0)
    union all
    select l.account, 'grant ' || l.grant_id, l.left_of, l.rest from lots l
    where l.rest <> l.left_of and not (l.rest = 0 and l.state = 'closed' and exists (
        select from entries e where e.grant_id = l.grant_id and e.id <> l.grant_id and e.amount = 0))
    union all
    select e.account, 'granted after entry ' || e.number, e.running, e.granted from entries e
    where e.granted <> e.running or e.number <> e.place
    union all
    select e.account, 'spent before entry ' || e.number, s.spent, e.spent
    from entries e cross join lateral (
        select coalesce((
                select sum(l.amount) from metering.ledger l
                where l.account = e.account and l.acct_seq <= e.acct_seq), 0)
            + coalesce((
                select sum(j.amount) from metering.charge_adjustment j
                where j.account = e.account and case j.target
                    when 'charge' then j.entries < e.number
                    else exists (select from metering.ledger l
                        where l.call_id = j.call_id and l.acct_seq <= e.acct_seq) end), 0) as spent
    ) s where s.spent <> e.spent
    union all
    select r.account, 'refunds of call ' || r.call_id, l.amount + j.amount, r.amount
    from (
        select e.account, e.call_id, sum(e.amount) as amount from entries e where e.kind = 'refunded'
        group by e.account, e.call_id
    ) r left join metering.ledger l on l.call_id = r.call_id cross join lateral (
        select coalesce(sum(j.amount), 0) as amount from metering.adjustment j
        where j.call_id = r.call_id and j.target in ('charge', 'ledger')
    ) j
    where (r.amount <= l.amount + j.amount) is not true
$$;

-- What earlier releases have drawn too much.
select metering.credit_return(b.account, now())
from metering.credit_book b join metering.account a on a.id = b.account where b.drawn > a.spent;

revoke all on function metering.credit_return, metering.credit_charge from public;
grant execute on function metering.credit_return, metering.credit_charge to metering;
grant select on metering.charge_adjustment to metering;
