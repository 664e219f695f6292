-- The built-in ledger as a product: grants that begin and end, adjustments, refunds, notices of low balances.
--
-- What happened is in rows that are only added: `credit_grant` (what was promised), `credit_entry` (each change of
-- `account.granted`) and `credit_draw` (which grant paid), beside `ledger` (each charge). `account.granted` is the sum
-- of the account's entries at every commit, so `held + spent <= granted` and the reserve stay what they were, and no
-- turn ever looks at grants.
--
-- Spending only raises `account.spent`. Which grant paid for it is decided later, under the account's lock, and always
-- before a grant changes its state or another joins: all that was spent since the last time is drawn from the grants
-- that were open meanwhile, in their order. So what is left of a grant that ends is exact. Only what is free ends:
-- credit that a running call holds stays, and what of it comes back ends at the next run.
--
-- Lock order: the account, then its grants; every function here touches one account.

alter table metering.credit_grant
    add column name text not null default '',
    add column effective_at timestamptz,
    add column call_id uuid,
    drop constraint credit_grant_category_check,
    add constraint credit_grant_category_check
        check (category in ('welcome', 'top_up', 'adjustment', 'promotional', 'refund'));
comment on column metering.credit_grant.effective_at is 'When it begins; null = when it was made.';
comment on column metering.credit_grant.call_id is 'The call whose charge it gives back.';

create table metering.credit_entry (
    account text not null,
    number bigint not null,
    id uuid not null,
    kind text not null check (kind in ('granted', 'expired', 'adjusted', 'refunded', 'withdrawn')),
    amount numeric(38, 10) not null check (amount > -1e18 and amount < 1e18),
    grant_id uuid,
    call_id uuid,
    granted metering.credit not null,
    spent metering.credit not null,
    acct_seq bigint not null,
    reason text not null default '',
    made_by text not null default '',
    at timestamptz not null,
    primary key (account, number),
    check (kind = 'adjusted' or (kind in ('granted', 'refunded')) = (amount > 0) or amount = 0)
);
create unique index credit_entry_id on metering.credit_entry (id);
create index credit_entry_call on metering.credit_entry (call_id) where call_id is not null;
comment on table metering.credit_entry is 'Every change of account.granted; numbers are contiguous from 1.';
comment on column metering.credit_entry.granted is 'The account''s, after this entry; so is spent.';
comment on column metering.credit_entry.acct_seq is 'Charges up to this sequence came before it, all others after it.';

create table metering.credit_draw (
    number bigint generated always as identity primary key,
    account text not null,
    grant_id uuid not null,
    entry_id uuid,
    amount metering.credit not null,
    at timestamptz not null
);
create index credit_draw_grant on metering.credit_draw (grant_id);
create index credit_draw_account on metering.credit_draw (account);
comment on table metering.credit_draw is 'Which grant paid: for charges, or for the adjustment `entry_id`.';

-- Derived, and the only rows here that change: what is left of each grant, and how far an account has been drawn.
create table metering.credit_lot (
    grant_id uuid primary key,
    account text not null,
    priority int not null,
    effective_at timestamptz not null,
    expires_at timestamptz,
    created_at timestamptz not null,
    rest metering.credit not null,
    state text not null check (state in ('waiting', 'active', 'lapsed', 'closed')),
    ended_by text check (ended_by in ('depleted', 'expired', 'withdrawn')),
    due_at timestamptz,
    check ((state = 'closed') = (ended_by is not null))
);
create index credit_lot_open on metering.credit_lot (account) where state <> 'closed';
create index credit_lot_due on metering.credit_lot (due_at) where due_at is not null;
comment on column metering.credit_lot.state is 'lapsed: has ended, and running calls still hold what is left of it.';
comment on column metering.credit_lot.due_at is 'When its state changes next by time; null = never.';

-- The open grants of each account in the order in which they are spent: lapsed ones last, then by priority, soonest end,
-- age. `ahead` is what is left of those before; with what is spent and not drawn yet it tells what is left of each now.
create view metering.credit_open as
    select l.account, l.grant_id, l.state, l.expires_at, l.rest, sum(l.rest) over (
        partition by l.account
        order by l.state = 'lapsed', l.priority, l.expires_at nulls last, l.created_at, l.grant_id
    ) - l.rest as ahead
    from metering.credit_lot l where l.state in ('active', 'lapsed');

create table metering.credit_book (
    account text primary key,
    entries bigint not null default 0,
    drawn metering.credit not null default 0
);
comment on column metering.credit_book.drawn is 'How much of account.spent has been drawn from grants.';

create table metering.credit_notice (
    account text not null,
    number bigint not null,
    level text not null check (level in ('enough', 'low', 'depleted')),
    balance metering.credit not null,
    threshold metering.credit not null,
    at timestamptz not null default now(),
    sent_at timestamptz,
    primary key (account, number)
);
create index credit_notice_unsent on metering.credit_notice (at) where sent_at is null;
comment on table metering.credit_notice is
    'Each crossing of the threshold, once; `enough` arms it again and is not told.';

-- Parts of the functions below; the account is locked ----------------------------------------------------------------

create function metering.credit_lock(payer text) returns void language plpgsql as $$
begin
    insert into metering.account (id) values (payer) on conflict do nothing;
    perform 1 from metering.account a where a.id = payer for no key update;
    insert into metering.credit_book (account) values (payer) on conflict do nothing;
end $$;

create function metering.credit_enter(
    payer text, entry uuid, what text, delta numeric, of_grant uuid, of_call uuid, why text, who text,
    moment timestamptz
) returns void language plpgsql as $$
declare
    place bigint;
begin
    update metering.credit_book b set entries = b.entries + 1 where b.account = payer returning b.entries into place;
    with moved as (
        update metering.account a set granted = a.granted + delta where a.id = payer returning a.granted, a.spent, a.seq
    )
    insert into metering.credit_entry
        (account, number, id, kind, amount, grant_id, call_id, granted, spent, acct_seq, reason, made_by, at)
    select payer, place, entry, what, delta, of_grant, of_call, m.granted, m.spent, m.seq, why, who, moment
    from moved m;
end $$;

-- Take credits from the open grants in their order; returns how much there was to take.
create function metering.credit_take(payer text, wanted numeric, entry uuid, moment timestamptz) returns numeric
language plpgsql as $$
declare
    taken numeric;
begin
    with paid as (
        select o.grant_id, least(o.rest, wanted - o.ahead) as amount
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
        select payer, p.grant_id, entry, p.amount, moment from paid p
    )
    select coalesce(sum(p.amount), 0) into taken from paid p;
    return taken;
end $$;

-- Lock an account, draw what was spent since the last time, begin and end the grants whose time has come.
create function metering.credit_advance(payer text, moment timestamptz, out started int, out ended int)
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

-- The identifier of the entry with which a grant ends by time.
create function metering.credit_end_id(payer text, of_grant uuid) returns uuid language sql stable
return (select md5(of_grant::text || ':ended:' || (b.entries + 1)::text)::uuid
        from metering.credit_book b where b.account = payer);

-- What people do; each answers with a word, and changes nothing unless the word says so ------------------------------

-- done · repeat · conflict · past (it would have ended) · begun (it would begin in the past)
-- · window (it ends before it begins) · too_much
create function metering.credit_give(
    given uuid, payer text, credits numeric, sort text, label text, why text, who text, prio int,
    starts timestamptz, ends timestamptz, of_call uuid, moment timestamptz
) returns text language plpgsql as $$
declare
    known metering.credit_grant;
    promised numeric;
begin
    perform metering.credit_advance(payer, moment);
    select * into known from metering.credit_grant g where g.id = given;
    if found then
        return case when (known.account, known.amount, known.category, known.priority, known.effective_at,
                known.expires_at, known.call_id)
            is not distinct from (payer, credits, sort, prio, starts, ends, of_call) then 'repeat' else 'conflict' end;
    end if;
    if exists (select from metering.credit_entry e where e.id = given) then
        return 'conflict';
    end if;
    if ends <= moment then
        return 'past';
    end if;
    if starts < moment - interval '1 minute' then
        return 'begun';
    end if;
    if ends <= starts then
        return 'window';
    end if;
    select a.granted + coalesce(
            (select sum(l.rest) from metering.credit_lot l where l.account = payer and l.state = 'waiting'), 0)
        into promised
    from metering.account a where a.id = payer;
    if promised + credits >= 1e18 then
        return 'too_much';
    end if;
    insert into metering.credit_grant (id, account, amount, category, name, reason, granted_by, priority,
        effective_at, expires_at, call_id, created_at)
    values (given, payer, credits, sort, label, why, who, prio, starts, ends, of_call, moment);
    if credits > 0 then
        insert into metering.credit_lot (grant_id, account, priority, effective_at, expires_at, created_at, rest, state,
            due_at)
        values (given, payer, prio, coalesce(starts, moment), ends, moment, credits, 'waiting',
            coalesce(starts, moment));
        perform metering.credit_advance(payer, moment);
    end if;
    return 'done';
end $$;

-- Take credits away, from the grants in their order. done · repeat · conflict · not_enough (less is free)
create function metering.credit_reduce(
    given uuid, payer text, credits numeric, why text, who text, moment timestamptz
) returns text language plpgsql as $$
declare
    known metering.credit_entry;
begin
    perform metering.credit_advance(payer, moment);
    select * into known from metering.credit_entry e where e.id = given;
    if found then
        return case when known.account = payer and known.kind = 'adjusted' and known.amount = -credits
            then 'repeat' else 'conflict' end;
    end if;
    if exists (select from metering.credit_grant g where g.id = given) then
        return 'conflict';
    end if;
    if (select a.granted - a.spent - a.held from metering.account a where a.id = payer) < credits then
        return 'not_enough';
    end if;
    perform metering.credit_take(payer, credits, given, moment);
    perform metering.credit_enter(payer, given, 'adjusted', -credits, null, null, why, who, moment);
    return 'done';
end $$;

-- End a grant now (`expired`), or take unused credits of it back (`withdrawn`; null = all that is free).
-- done · repeat · conflict · unknown · nothing (none of it is left, or free) · not_enough
-- · waiting (it has not begun, and can only end whole)
create function metering.credit_end(
    given uuid, of_grant uuid, what text, credits numeric, why text, who text, moment timestamptz
) returns text language plpgsql as $$
declare
    payer text;
    known metering.credit_entry;
    lot metering.credit_lot;
    part numeric;
begin
    select g.account into payer from metering.credit_grant g where g.id = of_grant;
    if not found then
        return 'unknown';
    end if;
    perform metering.credit_advance(payer, moment);
    select * into known from metering.credit_entry e where e.id = given;
    if found then
        return case when known.grant_id = of_grant and known.kind = what
            and (credits is null or known.amount in (0, -credits)) then 'repeat' else 'conflict' end;
    end if;
    if exists (select from metering.credit_grant g where g.id = given) then
        return 'conflict';
    end if;
    select * into lot from metering.credit_lot l where l.grant_id = of_grant;
    if not found or lot.state = 'closed' then
        return 'nothing';
    end if;
    if lot.state = 'waiting' then
        if credits <> lot.rest then
            return 'waiting';
        end if;
        update metering.credit_lot l set rest = 0, state = 'closed', ended_by = what, due_at = null
        where l.grant_id = of_grant;
        perform metering.credit_enter(payer, given, what, 0, of_grant, null, why, who, moment);
        return 'done';
    end if;
    select least(lot.rest, a.granted - a.spent - a.held) into part from metering.account a where a.id = payer;
    if what = 'withdrawn' then
        if part = 0 then
            return 'nothing';
        end if;
        if credits > part then
            return 'not_enough';
        end if;
        part := coalesce(credits, part);
    end if;
    perform metering.credit_enter(payer, given, what, -part, of_grant, null, why, who, moment);
    update metering.credit_lot l set
        rest = l.rest - part,
        state = case when l.rest = part then 'closed' when what = 'expired' then 'lapsed' else l.state end,
        ended_by = case when l.rest = part then what end,
        expires_at = case when what = 'expired' then moment else l.expires_at end,
        due_at = case when l.rest = part then null when what = 'expired' then moment + interval '1 s' else l.due_at end
    where l.grant_id = of_grant;
    return 'done';
end $$;

-- Give a charge back, or a part of it, as a grant of its own. As credit_give; also unknown (no such charge),
-- nothing (all of it was given back, or it was 0), too_much (more than is left of it)
create function metering.credit_refund(
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
    select charge.amount - coalesce(sum(e.amount), 0) into rest
    from metering.credit_entry e where e.call_id = of_call and e.kind = 'refunded';
    if rest = 0 then
        return 'nothing';
    end if;
    if credits > rest then
        return 'too_much';
    end if;
    return metering.credit_give(given, charge.account, coalesce(credits, rest), 'refund', '', why, who, 50, null, ends,
        of_call, moment);
end $$;

-- Open many accounts at once, each with a welcome grant; those that are there are left alone. Returns how many.
create function metering.credit_welcome(
    accounts text[], grants uuid[], credits numeric, who text, ends timestamptz, moment timestamptz
) returns bigint language sql as $$
    with opened as (
        insert into metering.account (id, granted)
        select u.account, credits from unnest(accounts) u(account) order by u.account
        on conflict do nothing
        returning id
    ), given as (
        select u.account, u.grant_id
        from unnest(accounts, grants) u(account, grant_id) join opened o on o.id = u.account
        where credits > 0
    ), promised as (
        insert into metering.credit_grant (id, account, amount, category, granted_by, expires_at, created_at)
        select g.grant_id, g.account, credits, 'welcome', who, ends, moment from given g
    ), lots as (
        insert into metering.credit_lot (grant_id, account, priority, effective_at, expires_at, created_at, rest, state,
            due_at)
        select g.grant_id, g.account, 50, moment, ends, moment, credits, 'active', ends from given g
    ), books as (
        insert into metering.credit_book (account, entries) select g.account, 1 from given g
    ), entries as (
        insert into metering.credit_entry
            (account, number, id, kind, amount, grant_id, granted, spent, acct_seq, made_by, at)
        select g.account, 1, g.grant_id, 'granted', credits, g.grant_id, credits, 0, 0, who, moment from given g
    )
    select count(*) from opened
$$;

-- Note which of these accounts have come to another level. Accounts that never had credit have none.
create function metering.credit_watch(accounts text[], refused boolean[], low numeric) returns bigint language sql as $$
    with standing as (
        select a.id, a.granted - a.spent as balance,
            coalesce(n.level, 'enough') as level, coalesce(n.number, 0) as number,
            case when a.granted - a.spent <= 0 or (u.refused and a.granted - a.spent <= low) then 'depleted'
                when a.granted - a.spent <= low then 'low' else 'enough' end as now
        from unnest(accounts, refused) u(account, refused) join metering.account a on a.id = u.account
            left join lateral (
                select k.level, k.number from metering.credit_notice k where k.account = a.id
                order by k.number desc limit 1
            ) n on true
        where a.granted > 0
    ), crossed as (
        insert into metering.credit_notice (account, number, level, balance, threshold, sent_at)
        select s.id, s.number + 1, s.now, s.balance, low, case s.now when 'enough' then now() end
        from standing s where s.now <> s.level and not (s.level = 'depleted' and s.now = 'low')
        order by s.id
        on conflict do nothing
        returning 1
    )
    select count(*) from crossed
$$;

-- What the books contradict themselves in; no row = nothing. One account, or all.
create function metering.credit_differences(of_account text default null)
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
        select coalesce(sum(l.amount), 0) as spent from metering.ledger l
        where l.account = e.account and l.acct_seq <= e.acct_seq
    ) s where s.spent <> e.spent
    union all
    select r.account, 'refunds of call ' || r.call_id, l.amount, r.amount
    from (
        select e.account, e.call_id, sum(e.amount) as amount from entries e where e.kind = 'refunded'
        group by e.account, e.call_id
    ) r left join metering.ledger l on l.call_id = r.call_id
    where (r.amount <= l.amount) is not true
$$;

-- What was there before ----------------------------------------------------------------------------------------------

-- Credit that no grant explains becomes one.
insert into metering.credit_grant (id, account, amount, category, reason, granted_by)
select md5(a.id || ':opening')::uuid, a.id, a.granted - coalesce(g.amount, 0), 'adjustment', 'opening balance',
    'migration'
from metering.account a left join (
    select account, sum(amount) as amount from metering.credit_grant group by account
) g on g.account = a.id
where a.granted > coalesce(g.amount, 0);

insert into metering.credit_lot (grant_id, account, priority, effective_at, expires_at, created_at, rest, state, due_at)
select g.id, g.account, g.priority, g.created_at, g.expires_at, g.created_at, g.amount, 'active', g.expires_at
from metering.credit_grant g where g.amount > 0;

insert into metering.credit_entry
    (account, number, id, kind, amount, grant_id, granted, spent, acct_seq, reason, made_by, at)
select g.account, row_number() over w, g.id, case g.category when 'adjustment' then 'adjusted' else 'granted' end,
    g.amount, g.id, sum(g.amount) over w, l.spent, l.seq, g.reason, g.granted_by, g.created_at
from metering.credit_grant g cross join lateral (
    select coalesce(sum(l.amount), 0) as spent, coalesce(max(l.acct_seq), 0) as seq
    from metering.ledger l where l.account = g.account and l.acct_seq <= (
        select coalesce(max(k.acct_seq), 0) from metering.ledger k where k.account = g.account and k.at <= g.created_at)
) l
where g.amount > 0
window w as (partition by g.account order by g.created_at, g.id);

insert into metering.credit_book (account, entries)
select e.account, count(*) from metering.credit_entry e group by e.account;

-- Rights -------------------------------------------------------------------------------------------------------------

revoke all on function metering.credit_lock, metering.credit_enter, metering.credit_take, metering.credit_advance,
    metering.credit_end_id, metering.credit_give, metering.credit_reduce, metering.credit_end, metering.credit_refund,
    metering.credit_welcome, metering.credit_watch, metering.credit_differences from public;
grant execute on function metering.credit_lock, metering.credit_enter, metering.credit_take, metering.credit_advance,
    metering.credit_end_id, metering.credit_give, metering.credit_reduce, metering.credit_end, metering.credit_refund,
    metering.credit_welcome, metering.credit_watch, metering.credit_differences to metering;
grant select on metering.credit_open to metering;
grant select, insert on metering.credit_entry, metering.credit_draw to metering;
grant select, insert, update on metering.credit_lot, metering.credit_book, metering.credit_notice to metering;
