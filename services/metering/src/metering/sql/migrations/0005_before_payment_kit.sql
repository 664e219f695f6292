-- Payment Kit: what is to be reported, and what accounts have there. Rows exist only while the adapter is on.

create table metering.outbox (
    id uuid not null,
    kind text not null check (kind in ('meter', 'meter_batch')),
    identifier text not null,
    account text not null,
    user_did text not null,
    project text not null,
    value metering.credit not null check (value > 0),
    event_at bigint not null,
    calls int not null default 1,
    tokens numeric not null default 0,
    members uuid[],
    batch uuid,
    lane smallint not null default 0,
    state text not null default 'pending' check (state in ('pending', 'sent', 'parked')),
    tries int not null default 0,
    fence bigint not null default 0,
    next_at timestamptz not null default now(),
    first_try_at timestamptz,
    reason text not null default '',
    event_id text not null default '',
    created_at timestamptz not null default now(),
    sent_at timestamptz,
    check (identifier = case kind when 'meter' then 'mc_' else 'mb_' end || id),
    check ((kind = 'meter_batch') = (members is not null)),
    check (kind = 'meter' or batch is null),
    primary key (id)
) partition by range (id);
create index outbox_due on metering.outbox (lane desc, next_at) where state = 'pending' and batch is null;
create index outbox_open on metering.outbox (account) where state <> 'sent';
create index outbox_parked on metering.outbox (id) where state = 'parked';
comment on column metering.outbox.lane is '0: never tried, may go into a batch; 1: is sent as it is.';
comment on column metering.outbox.batch is 'The meter_batch that reports this call; its members name it.';
comment on column metering.outbox.event_at is 'Unix seconds, part of what is sent: constant.';

-- The partitions of the outbox; as `metering.make_partitions` makes those of calls.
create function metering.make_outbox_partitions(first_month date, months int) returns text[]
language plpgsql security definer set search_path = pg_catalog, pg_temp set timezone = 'UTC' set lock_timeout = '2s' as $$
declare
    made text[] := '{}';
    part text;
    lo uuid;
    hi uuid;
    month timestamptz;
begin
    if months not between 1 and 36 then
        raise exception 'months must be between 1 and 36' using errcode = '22023';
    end if;
    perform pg_advisory_xact_lock(7201190511344);
    for i in 0 .. months - 1 loop
        month := date_trunc('month', first_month::timestamptz) + make_interval(months => i);
        part := 'outbox' || to_char(month, '_YYYY_MM');
        continue when to_regclass('metering.' || part) is not null;
        lo := metering.id_bound(month);
        hi := metering.id_bound(month + interval '1 month');
        execute format('create table metering.%I (like metering.outbox including defaults including constraints)', part);
        execute format('with moved as (delete from metering.outbox_default where id >= %L and id < %L returning *)'
            ' insert into metering.%I select * from moved', lo, hi, part);
        execute format('alter table metering.outbox attach partition metering.%I for values from (%L) to (%L)',
            part, lo, hi);
        made := made || part;
    end loop;
    return made;
end $$;
revoke all on function metering.make_outbox_partitions from public;
grant execute on function metering.make_outbox_partitions to metering;
create table metering.outbox_default partition of metering.outbox default;
select metering.make_outbox_partitions((now() at time zone 'UTC')::date, 3);

create table metering.payment_account (
    account text primary key,
    did text not null,
    customer_id text,
    target numeric(38, 10),
    balance metering.credit,
    pending metering.credit,
    grants int not null default 0,
    seq bigint not null default -1,
    reading bigint not null default 0,
    refreshed_at timestamptz,
    refresh_at timestamptz not null default now(),
    idle_s int not null default 0,
    problem text not null default '',
    check (target > -1e18 and target < 1e18)
) with (fillfactor = 70);
create index payment_account_due on metering.payment_account (refresh_at);
create index payment_account_customer on metering.payment_account (customer_id);
create index payment_account_did on metering.payment_account (did);
comment on table metering.payment_account is 'What accounts have at Payment Kit, as last read.';
comment on column metering.payment_account.target is
    'What `account.granted` shall be: reported + balance - pending, as read together. Below zero = owes.';
comment on column metering.payment_account.seq is 'account.seq at the last reading: tells whether anything was spent since.';

create sequence metering.payment_reading;
comment on sequence metering.payment_reading is 'Numbers readings, so that a slow one does not undo a later one.';

create table metering.payment_control (
    single boolean primary key default true check (single),
    paused boolean not null default false
);
insert into metering.payment_control default values;

-- A turn whose charges are also to be reported. An account that has less there than is spent and held here must not
-- spend what a settle frees: then the turn settles, the grant is cut back to what it may be, and it reserves.
create function metering.turn_with_outbox(
    accounts text[], facts metering.fact[], asked metering.admission[], has_digests boolean,
    oldest_ms bigint, newest_ms bigint, lease interval, claim interval,
    out settled metering.settled[], out standing metering.standing[], out refused metering.refusal[], out at timestamptz
) language plpgsql as $$
declare
    is_short boolean := false;
begin
    if cardinality(facts) > 0 then
        perform 1 from metering.account a where a.id = any (accounts) order by a.id for no key update;
        is_short := exists (
            select 1 from metering.payment_account p join metering.account a on a.id = p.account
            where p.account = any (accounts) and p.target < a.granted);
    end if;
    if not is_short then
        select t.settled, t.standing, t.refused, t.at into settled, standing, refused, at
        from metering.turn(accounts, facts, asked, has_digests, oldest_ms, newest_ms, lease, claim) t;
    else
        select t.settled, t.standing, t.at into settled, standing, at
        from metering.turn(accounts, facts, '{}', false, 0, 0, lease, claim) t;
        update metering.account a set granted = greatest(p.target, a.spent + a.held)
        from metering.payment_account p
        where p.account = any (accounts) and a.id = p.account and p.target < a.granted;
        if cardinality(asked) > 0 then
            select t.refused into refused
            from metering.turn(accounts, '{}', asked, has_digests, oldest_ms, newest_ms, lease, claim) t;
        end if;
    end if;
    if cardinality(settled) > 0 then
        insert into metering.outbox (id, kind, identifier, account, user_did, project, value, event_at, tokens)
        select (x.fact).call_id, 'meter', 'mc_' || (x.fact).call_id, (x.fact).account, s.user_did, s.project,
            s.credits::numeric, floor(extract(epoch from now()))::bigint,
            coalesce((x.fact).input_tokens, 0)::numeric + coalesce((x.fact).output_tokens, 0)
                + coalesce((x.fact).cache_read_tokens, 0) + coalesce((x.fact).cache_write_tokens, 0)
        from unnest(settled) s cross join lateral (select facts[s.ord] as fact offset 0) x
        where s.credits::numeric > 0;
    end if;
end $$;

-- Take over what was read at Payment Kit. `reported` is what had been spent and marked as sent before the reading, so
-- nothing that is not yet there is forgotten, and nothing counts twice.
create function metering.mirror(payer text, read_balance numeric, read_pending numeric, reported numeric, read_grants int,
    read_seq bigint, next_refresh interval, idle int, read_number bigint) returns numeric language plpgsql as $$
declare
    wanted numeric := reported + read_balance - read_pending;
    free numeric;
begin
    insert into metering.account (id) values (payer) on conflict do nothing;
    perform 1 from metering.account a where a.id = payer for no key update;
    update metering.account a set granted = greatest(wanted, a.spent + a.held)
    from metering.payment_account p
    where a.id = payer and p.account = payer and p.reading < read_number
        and a.granted <> greatest(wanted, a.spent + a.held);
    update metering.payment_account p set reading = read_number, target = wanted, balance = read_balance, pending = read_pending,
        grants = read_grants, seq = read_seq, refreshed_at = now(), refresh_at = now() + next_refresh, idle_s = idle,
        problem = ''
    where p.account = payer and p.reading < read_number;
    select a.granted - a.spent - a.held into free from metering.account a where a.id = payer;
    return free;
end $$;

-- Payment Kit tops this account up by itself: let one call through that the balance does not cover.
create function metering.advance(payer text, amount numeric) returns void language plpgsql as $$
begin
    perform 1 from metering.account a where a.id = payer for no key update;
    update metering.account a set granted = a.spent + a.held + amount
    where a.id = payer and a.granted < a.spent + a.held + amount;
    update metering.payment_account p set target = a.granted from metering.account a
    where p.account = payer and a.id = payer and p.target < a.granted;
end $$;

-- Accounts that were here before Payment Kit was: what they had been granted does not count there. Returns how many.
create function metering.adopt_accounts(most int) returns int language plpgsql as $$
declare
    strangers text[];
begin
    select array_agg(s.id) into strangers from (
        select a.id from metering.account a
        where not exists (select 1 from metering.payment_account p where p.account = a.id)
        order by a.id limit most for no key update of a skip locked
    ) s;
    if strangers is null then
        return 0;
    end if;
    insert into metering.payment_account (account, did, target)
    select a.id, regexp_replace(a.id, '^did:[a-z]+:', ''), a.spent
    from metering.account a where a.id = any (strangers)
    on conflict do nothing;
    update metering.account a set granted = a.spent + a.held
    where a.id = any (strangers) and a.granted <> a.spent + a.held;
    return cardinality(strangers);
end $$;

revoke all on function metering.turn_with_outbox, metering.mirror, metering.advance, metering.adopt_accounts from public;
grant execute on function metering.turn_with_outbox, metering.mirror, metering.advance, metering.adopt_accounts to metering;
grant select, insert on metering.outbox to metering;
grant update (batch, lane, state, tries, fence, next_at, first_try_at, reason, event_id, sent_at) on metering.outbox to metering;
grant select, insert, update on metering.payment_account to metering;
grant select, update on metering.payment_control to metering;
grant usage on sequence metering.payment_reading to metering;
