-- Schema of the money. One writer: the service metering, through its role of the same name.
--
-- Everything that grows with calls is partitioned by month of the call's id (UUIDv7), and no index lies on a column
-- that settling changes: settling is then a HOT update in the page of its row, and costs the same at any size.

create schema metering;
grant usage on schema metering to metering;

-- NaN sorts above every number, so the upper bound refuses it.
create domain metering.credit as numeric(38, 10) check (value >= 0 and value < 1e18);

create table metering.account (
    id text primary key check (length(id) between 1 and 200),
    granted metering.credit not null default 0,
    held metering.credit not null default 0,
    spent metering.credit not null default 0,
    seq bigint not null default 0,
    created_at timestamptz not null default now(),
    check (held + spent <= granted)
) with (fillfactor = 30);
comment on column metering.account.seq is 'Number of settled calls: sequence of the account''s ledger and usage events.';

create table metering.credit_grant (
    id uuid primary key,
    account text not null,
    amount metering.credit not null,
    category text not null check (category in ('welcome', 'top_up', 'adjustment', 'promotional')),
    reason text not null default '',
    granted_by text not null default '',
    priority int not null default 50,
    expires_at timestamptz,
    created_at timestamptz not null default now()
);
create index credit_grant_account on metering.credit_grant (account, created_at);

create table metering.model_call (
    id uuid not null,
    account text not null,
    user_did text not null,
    project text not null,
    key_id text not null,
    kind text not null,
    dialect text not null,
    model text not null,
    provider text,
    provider_model text,
    credential text,
    stream boolean not null,
    state text not null default 'processing' check (state in ('processing', 'success', 'failed')),
    outcome text,
    epoch int not null default 1,
    router text,
    lease_until timestamptz not null,
    deadline timestamptz not null,
    hold metering.credit not null,
    credits metering.credit,
    overrun metering.credit not null default 0,
    written_off metering.credit not null default 0,
    input_tokens bigint,
    output_tokens bigint,
    cache_read_tokens bigint,
    cache_write_tokens bigint,
    reasoning_tokens bigint,
    usage_source text check (usage_source in ('reported', 'counted', 'estimated')),
    candidates jsonb not null,
    rates jsonb,
    attempts int not null default 0,
    error_code text,
    error_reason text check (length(error_reason) <= 1000),
    duration_s numeric(12, 3),
    first_byte_ms int,
    provider_first_byte_ms int,
    trace_id text not null default '',
    request_id text not null default '',
    created_at timestamptz not null default now(),
    settled_at timestamptz,
    settled_by text,
    check ((state = 'processing') = (credits is null)),
    primary key (id)
) partition by range (id);
-- Fill factor 45: a row grows by half when it is settled, and its new version shall find room in its own page.
create index model_call_account on metering.model_call (account, id);
comment on column metering.model_call.candidates is 'Who could serve the call, with the rates frozen at admission.';
comment on column metering.model_call.rates is 'The frozen rates that priced the call: those of the candidate that answered.';
comment on column metering.model_call.overrun is 'Cost above the hold: not charged.';
comment on column metering.model_call.written_off is 'What a provider may bill for a call that was charged nothing.';

create table metering.attempt (
    call_id uuid not null,
    number int not null,
    provider text not null,
    model text not null,
    credential text not null default '',
    status int not null default 0,
    error text not null default '',
    started_ms int not null default 0,
    duration_ms int not null default 0,
    first_byte_ms int not null default 0,
    primary key (call_id, number)
) partition by range (call_id);

create table metering.ledger (
    call_id uuid not null,
    account text not null,
    acct_seq bigint not null,
    amount metering.credit not null,
    at timestamptz not null default now(),
    primary key (call_id)
) partition by range (call_id);
create index ledger_account on metering.ledger (account, acct_seq);

create table metering.usage_sent (
    account text primary key,
    seq bigint not null default 0
) with (fillfactor = 30);
comment on table metering.usage_sent is 'Up to which sequence an account''s usage events are stored on the bus.';

create table metering.idempotency (
    digest text primary key,
    call_id uuid not null,
    expires_at timestamptz not null
);
create index idempotency_expires on metering.idempotency (expires_at);

create table metering.late_completion (
    call_id uuid not null,
    epoch int not null,
    account text not null,
    cost metering.credit not null,
    provider text,
    usage jsonb not null,
    at timestamptz not null default now(),
    primary key (call_id, epoch)
);
comment on table metering.late_completion is 'Success that came for a call already closed otherwise; never charged.';

create table metering.parked (
    digest bytea primary key,
    reason text not null,
    subject text not null,
    payload bytea not null,
    call_id uuid,
    at timestamptz not null default now()
);
comment on table metering.parked is 'Facts that could not be settled, and why. Facts hold no prompt and no answer.';

create table metering.skewed_call (
    call_id uuid primary key
);
comment on table metering.skewed_call is
    'Open calls whose id names another time than their reserve: a search by the time of the id would miss them.';

create table metering.open_mark (
    single boolean primary key default true check (single),
    below_ms bigint not null default 0
);
comment on table metering.open_mark is 'Every call made before this Unix millisecond is terminal (skewed ones apart).';
insert into metering.open_mark default values;

-- Partitions ---------------------------------------------------------------------------------------------------------

create function metering.id_bound(at timestamptz) returns uuid language sql immutable
return (regexp_replace(lpad(to_hex(floor(extract(epoch from at) * 1000)::bigint), 12, '0'), '(.{8})(.{4})', '\1-\2')
        || '-0000-0000-000000000000')::uuid;

-- Runs as its owner, because only an owner may attach a partition. Attaching, unlike `create … partition of`, lets
-- reserves and settles go on. Rows that clocks far ahead have put into the default partition move to their month.
create function metering.make_partitions(first_month date, months int) returns text[]
language plpgsql security definer set search_path = pg_catalog, pg_temp set timezone = 'UTC' set lock_timeout = '2s' as $$
declare
    made text[] := '{}';
    parent text;
    key text;
    part text;
    lo uuid;
    hi uuid;
    month timestamptz;
begin
    if months not between 1 and 36 then
        raise exception 'months must be between 1 and 36' using errcode = '22023';
    end if;
    perform pg_advisory_xact_lock(7201190511343);
    for i in 0 .. months - 1 loop
        month := date_trunc('month', first_month::timestamptz) + make_interval(months => i);
        lo := metering.id_bound(month);
        hi := metering.id_bound(month + interval '1 month');
        foreach parent in array array['model_call', 'attempt', 'ledger'] loop
            part := parent || to_char(month, '_YYYY_MM');
            continue when to_regclass('metering.' || part) is not null;
            key := case parent when 'model_call' then 'id' else 'call_id' end;
            execute format('create table metering.%I (like metering.%I including defaults including constraints)%s',
                part, parent, case parent when 'model_call' then ' with (fillfactor = 45)' else '' end);
            execute format('with moved as (delete from metering.%I where %I >= %L and %I < %L returning *)'
                ' insert into metering.%I select * from moved', parent || '_default', key, lo, key, hi, part);
            execute format('alter table metering.%I attach partition metering.%I for values from (%L) to (%L)',
                parent, part, lo, hi);
            made := made || part;
        end loop;
    end loop;
    return made;
end $$;
revoke all on function metering.make_partitions from public;
grant execute on function metering.make_partitions to metering;
grant execute on function metering.id_bound to metering;

create table metering.model_call_default partition of metering.model_call default with (fillfactor = 45);
create table metering.attempt_default partition of metering.attempt default;
create table metering.ledger_default partition of metering.ledger default;
select metering.make_partitions((now() at time zone 'UTC')::date, 3);

-- The turn -----------------------------------------------------------------------------------------------------------

create type metering.tried as (
    number int, provider text, model text, credential text, status int, error text,
    started_ms int, duration_ms int, first_byte_ms int
);

create type metering.fact as (
    call_id uuid, epoch int, account text, state text, cost numeric, outcome text,
    provider text, provider_model text, credential text,
    input_tokens bigint, output_tokens bigint, cache_read_tokens bigint, cache_write_tokens bigint,
    reasoning_tokens bigint, usage_source text, rates jsonb,
    error_code text, error_reason text, duration_ms bigint, first_byte_ms int, provider_first_byte_ms int,
    router text, settled_by text, tries metering.tried[]
);

create type metering.admission as (
    call_id uuid, account text, hold numeric, kind text, dialect text, model text, stream boolean, candidates jsonb,
    ttl_s double precision, user_did text, project text, key_id text, trace_id text, request_id text, digest text
);

create type metering.settled as (
    ord int, acct_seq bigint, credits text, overrun text, written_off text,
    model text, user_did text, project text, key_id text, trace_id text
);

-- A fact that changed nothing: state and credits of the row that is there; state null = no such call.
create type metering.standing as (ord int, state text, credits text, account text);

create type metering.refusal as (ord int, status text, other uuid);

-- One turn: settle first (it frees credit), reserve second, in one transaction.
--
-- `accounts` are the accounts of all facts and admissions, each once: locked in the order of their ids before anything
-- else, so that turns of several processes cannot deadlock. Calls and digests occur at most once in a turn. Tables are
-- joined to the arrays by index only, never one CTE to another: the session forbids hash joins, because a plan made
-- while the tables were empty would otherwise read them whole, for ever.
create function metering.turn(
    accounts text[], facts metering.fact[], asked metering.admission[], has_digests boolean,
    oldest_ms bigint, newest_ms bigint, lease interval, claim interval,
    out settled metering.settled[], out standing metering.standing[], out refused metering.refusal[], out at timestamptz
) language plpgsql as $$
declare
    taken int[] := '{}';
    reserved uuid[];
    fact record;
    call record;
    free numeric;
    paying text;
    now_ms bigint := floor(extract(epoch from now()) * 1000);
begin
    at := now();
    perform 1 from metering.account a where a.id = any (accounts) order by a.id for no key update;

    if cardinality(facts) > 0 then
        with done as (
            update metering.model_call c set
                state = f.state,
                outcome = f.outcome,
                credits = case f.state when 'success' then least(f.cost, c.hold) else 0 end,
                overrun = case f.state when 'success' then greatest(f.cost - c.hold, 0) else 0 end,
                written_off = case f.state when 'success' then 0 else f.cost end,
                provider = f.provider, provider_model = f.provider_model, credential = f.credential,
                input_tokens = f.input_tokens, output_tokens = f.output_tokens,
                cache_read_tokens = f.cache_read_tokens, cache_write_tokens = f.cache_write_tokens,
                reasoning_tokens = f.reasoning_tokens, usage_source = f.usage_source, rates = f.rates,
                attempts = coalesce(cardinality(f.tries), 0),
                error_code = f.error_code, error_reason = f.error_reason,
                duration_s = f.duration_ms / 1000.0,
                first_byte_ms = f.first_byte_ms, provider_first_byte_ms = f.provider_first_byte_ms,
                router = coalesce(f.router, c.router), settled_at = now(), settled_by = f.settled_by
            from unnest(facts) with ordinality f
            where c.id = f.call_id and c.state = 'processing' and c.epoch = f.epoch
                and (c.account = f.account) is true  -- no condition for an index: the primary key is the cheaper one
            returning f.ordinality as ord, c.id, c.account, c.hold, c.credits, c.overrun, c.written_off,
                c.model, c.user_did, c.project, c.key_id, c.trace_id, f.tries
        ), numbered as materialized (
            -- The rows of `account` are locked and read as before this statement: `seq` is the last one given out.
            select d.*, a.seq + row_number() over (partition by d.account order by d.ord) as acct_seq
            from done d join metering.account a on a.id = d.account
        ), booked as (
            insert into metering.ledger (call_id, account, acct_seq, amount, at)
            select n.id, n.account, n.acct_seq, n.credits, now() from numbered n
        ), tried as (
            insert into metering.attempt
                (call_id, number, provider, model, credential, status, error, started_ms, duration_ms, first_byte_ms)
            select n.id, t.number, t.provider, t.model, t.credential, t.status, t.error,
                t.started_ms, t.duration_ms, t.first_byte_ms
            from numbered n, unnest(n.tries) t
            on conflict do nothing
        ), moved as (
            update metering.account a
            set held = a.held - g.hold, spent = a.spent + g.credits, seq = a.seq + g.calls
            from (
                select n.account, sum(n.hold) as hold, sum(n.credits) as credits, count(*) as calls
                from numbered n group by n.account
            ) g
            where a.id = g.account
        )
        select array_agg((n.ord, n.acct_seq, n.credits, n.overrun, n.written_off,
            n.model, n.user_did, n.project, n.key_id, n.trace_id)::metering.settled)
        into settled from numbered n;

        if cardinality(facts) > coalesce(cardinality(settled), 0) then
            for fact in
                select f.*, c.id is not null as known, c.state as call_state, c.credits as call_credits,
                    c.account as call_account
                from unnest(facts) with ordinality f left join metering.model_call c on c.id = f.call_id
                where f.ordinality not in (select (unnest(settled)).ord)
                order by f.ordinality
            loop
                standing := standing || (fact.ordinality, fact.call_state, fact.call_credits,
                    fact.call_account)::metering.standing;
                continue when not fact.known or fact.call_account <> fact.account
                    or fact.state <> 'success' or fact.call_state = 'success';
                insert into metering.late_completion (call_id, epoch, account, cost, provider, usage)
                values (fact.call_id, fact.epoch, fact.account, fact.cost, fact.provider, jsonb_build_object(
                    'input_tokens', fact.input_tokens, 'output_tokens', fact.output_tokens,
                    'cache_read_tokens', fact.cache_read_tokens, 'cache_write_tokens', fact.cache_write_tokens,
                    'reasoning_tokens', fact.reasoning_tokens, 'source', fact.usage_source))
                on conflict do nothing;
                if found then
                    update metering.model_call c set written_off = c.written_off + fact.cost where c.id = fact.call_id;
                end if;
            end loop;
        end if;
    end if;

    if cardinality(asked) > 0 then
        if has_digests then
            select array_agg(r.ord), array_agg((r.ord, 'key_taken', r.other)::metering.refusal) into taken, refused
            from (
                select a.ordinality::int as ord, k.call_id as other
                from unnest(asked) with ordinality a join metering.idempotency k on k.digest = a.digest
                where k.expires_at > now() and k.call_id <> a.call_id
            ) r;
            taken := coalesce(taken, '{}');
        end if;

        with fitting as (
            select a.*, p.granted - p.spent - p.held as free,
                sum(a.hold) over (partition by a.account order by a.ordinality) as running
            from unnest(asked) with ordinality a join metering.account p on p.id = a.account
            where a.ordinality <> all (taken)
        ), made as (
            insert into metering.model_call (id, account, user_did, project, key_id, kind, dialect, model, stream,
                lease_until, deadline, hold, candidates, trace_id, request_id)
            select f.call_id, f.account, f.user_did, f.project, f.key_id, f.kind, f.dialect, f.model, f.stream,
                now() + lease, now() + make_interval(secs => f.ttl_s), f.hold, f.candidates, f.trace_id, f.request_id
            from fitting f where f.running <= f.free
            on conflict do nothing
            returning id, account, hold
        ), held as (
            update metering.account a set held = a.held + g.hold
            from (select m.account, sum(m.hold) as hold from made m group by m.account) g
            where a.id = g.account and g.hold > 0
        )
        select array_agg(m.id) into reserved from made m;

        -- What was refused is told apart here, once for the whole turn. A hold too large for its account also counted
        -- against those behind it, so they are looked at again, one after the other.
        if cardinality(asked) > coalesce(cardinality(reserved), 0) + cardinality(taken) then
            for call in
                select a.*, c.id is not null as known, p.granted - p.spent - p.held as free
                from unnest(asked) with ordinality a
                    left join metering.account p on p.id = a.account
                    left join metering.model_call c on c.id = a.call_id
                where a.call_id <> all (coalesce(reserved, '{}')) and a.ordinality <> all (taken)
                order by a.account, a.ordinality
            loop
                if paying is distinct from call.account then
                    paying := call.account;
                    free := call.free;
                end if;
                if call.known then
                    refused := refused || (call.ordinality, 'exists', null)::metering.refusal;
                    continue;
                end if;
                if free is null or call.hold > free then
                    refused := refused || (call.ordinality, 'not_enough', null)::metering.refusal;
                    continue;
                end if;
                insert into metering.model_call (id, account, user_did, project, key_id, kind, dialect, model, stream,
                    lease_until, deadline, hold, candidates, trace_id, request_id)
                values (call.call_id, call.account, call.user_did, call.project, call.key_id, call.kind, call.dialect,
                    call.model, call.stream, now() + lease, now() + make_interval(secs => call.ttl_s), call.hold,
                    call.candidates, call.trace_id, call.request_id);
                update metering.account a set held = a.held + call.hold where a.id = call.account;
                free := free - call.hold;
                reserved := reserved || call.call_id;
            end loop;
        end if;

        if has_digests then
            insert into metering.idempotency (digest, call_id, expires_at)
            select a.digest, a.call_id, now() + claim from unnest(asked) a
            where a.digest is not null and a.call_id = any (reserved)
            order by a.digest
            on conflict (digest) do update set call_id = excluded.call_id, expires_at = excluded.expires_at;
        end if;

        if oldest_ms < now_ms - 10000 or newest_ms > now_ms + 10000 then
            insert into metering.skewed_call (call_id)
            select a.call_id from unnest(asked) a where a.call_id = any (reserved)
                and (a.call_id < metering.id_bound(now() - interval '10 s')
                    or a.call_id > metering.id_bound(now() + interval '10 s'))
            order by a.call_id
            on conflict do nothing;
        end if;
    end if;
end $$;

-- Raise the hold of a running call; the account is locked before the call, as in a turn.
create function metering.extend(call_id uuid, call_epoch int, payer text, amount numeric) returns text
language plpgsql as $$
declare
    free numeric;
begin
    select a.granted - a.spent - a.held into free from metering.account a where a.id = payer for no key update;
    perform 1 from metering.model_call c
    where c.id = extend.call_id and c.state = 'processing' and c.epoch = call_epoch and c.account = payer
    for no key update;
    if not found then
        return 'ended';
    end if;
    if free is null or free < amount then
        return 'not_enough';
    end if;
    update metering.account a set held = a.held + amount where a.id = payer;
    update metering.model_call c set hold = c.hold + amount where c.id = extend.call_id;
    return 'granted';
end $$;

-- Move "sent up to" forward, never over a gap. Rows are taken in the order of their accounts, so that several
-- processes cannot deadlock.
create function metering.forward_usage_sent(accounts text[], firsts bigint[], lasts bigint[])
returns table (account text, seq bigint) language plpgsql as $$
begin
    insert into metering.usage_sent (account) select a from unnest(accounts) a order by a on conflict do nothing;
    perform 1 from metering.usage_sent s where s.account = any (accounts) order by s.account for update;
    update metering.usage_sent s set seq = u.last
    from unnest(accounts, firsts, lasts) as u(account, first, last)
    where s.account = u.account and s.seq >= u.first - 1 and s.seq < u.last;
    return query select s.account, s.seq from metering.usage_sent s where s.account = any (accounts);
end $$;

-- Rights -------------------------------------------------------------------------------------------------------------

revoke all on function metering.turn, metering.extend, metering.forward_usage_sent, metering.id_bound from public;
grant execute on function metering.turn, metering.extend, metering.forward_usage_sent, metering.id_bound to metering;
grant select, insert, update on metering.account, metering.model_call, metering.usage_sent, metering.open_mark to metering;
grant select, insert on metering.credit_grant, metering.attempt, metering.ledger, metering.late_completion,
    metering.parked to metering;
grant select, insert, update, delete on metering.idempotency to metering;
grant select, insert, delete on metering.skewed_call to metering;
