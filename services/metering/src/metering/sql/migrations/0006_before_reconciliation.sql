-- Books that prove themselves: comparisons with their differences, adjustments, and closed days.

-- Rows come in the order of their time: a few bytes per hundred pages find those of a day.
create index ledger_at on metering.ledger using brin (at) with (pages_per_range = 32, autosummarize = on);

create table metering.adjustment (
    id uuid primary key default gen_random_uuid(),
    account text not null,
    call_id uuid,
    target text not null check (target in ('charge', 'call', 'ledger', 'held', 'spent')),
    amount numeric(38, 10) not null check (amount > -1e18 and amount < 1e18 and amount <> 0),
    difference text not null default '',
    reason text not null default '' check (length(reason) <= 500),
    made_by text not null default '' check (length(made_by) <= 200),
    at timestamptz not null default now(),
    check ((call_id is null) = (target in ('held', 'spent')))
);
create index adjustment_call on metering.adjustment (call_id);
create index adjustment_account on metering.adjustment (account, at);
create index adjustment_at on metering.adjustment (at);
comment on table metering.adjustment is
    'What was put right by an added row. charge: the call costs so much more, and its account has paid it. call,'
    ' ledger: that row says too little by so much. held, spent: the total of the account was moved by so much.';

create table metering.reconciliation (
    id uuid primary key,
    scope text not null check (scope in ('all', 'recent', 'closings')),
    state text not null default 'running' check (state in ('running', 'done', 'failed', 'lost')),
    started_by text not null default '',
    bus_from timestamptz,
    progress text not null default '',
    error text not null default '',
    comparisons jsonb not null default '[]',
    differences int not null default 0,
    accepted int not null default 0,
    started_at timestamptz not null default now(),
    finished_at timestamptz
);
create index reconciliation_started on metering.reconciliation (started_at);
comment on column metering.reconciliation.bus_from is 'The bus was read from here on; null = from its beginning.';

create table metering.difference (
    run_id uuid not null,
    number int not null,
    id text not null,
    name text not null,
    account text not null,
    call_id uuid,
    expected text not null,
    found text not null,
    detail text not null,
    is_repairable boolean not null,
    primary key (run_id, number)
);
create index difference_id on metering.difference (id);

create table metering.difference_accepted (
    id text primary key,
    reason text not null check (length(reason) between 1 and 500),
    accepted_by text not null default '',
    at timestamptz not null default now()
);

-- A day that is closed: never written again, each chained to the one before.
create table metering.closing (
    day date primary key,
    form smallint not null,
    accounts int not null,
    calls bigint not null,
    amount metering.credit not null,
    digest bytea not null check (length(digest) = 32),
    chain bytea not null check (length(chain) = 32),
    closed_at timestamptz not null default now()
);

create table metering.closing_account (
    account text not null,
    day date not null,
    calls bigint not null,
    amount metering.credit not null,
    calls_total bigint not null,
    amount_total metering.credit not null,
    digest bytea not null check (length(digest) = 32),
    primary key (account, day)
);
create index closing_account_day on metering.closing_account (day);
comment on column metering.closing_account.amount_total is 'Ledger of the account from its first row to the end of day.';

-- Form 1 of the digests. Per row SHA-256 of a JSON array as PostgreSQL's jsonb writes it, with the row's own columns, so
-- that those of later migrations are protected too: null ones are left out, and a new column that is not null for old
-- rows needs another form. `written_off` is the one column that a settled call changes. Per account SHA-256 of its rows'
-- digests, one after the other: calls by sequence, then adjustments by id.
create function metering.day_digests_1(of_day date)
returns table (account text, calls bigint, amount numeric, digest bytea)
language sql stable set timezone = 'UTC' as $$
    with row as (
        select l.account, 1 as kind, l.acct_seq as place, l.call_id as id, l.amount,
            sha256(convert_to(jsonb_build_array('call', jsonb_strip_nulls(to_jsonb(l)),
                jsonb_strip_nulls(to_jsonb(c) - 'written_off'))::text, 'UTF8')) as digest
        from metering.ledger l left join metering.model_call c on c.id = l.call_id
        where l.at >= of_day::timestamptz and l.at < (of_day + 1)::timestamptz
        union all
        select j.account, 2, 0, j.id, 0,
            sha256(convert_to(jsonb_build_array('adjustment', jsonb_strip_nulls(to_jsonb(j)))::text, 'UTF8'))
        from metering.adjustment j
        where j.at >= of_day::timestamptz and j.at < (of_day + 1)::timestamptz
    )
    select r.account, count(*) filter (where r.kind = 1), sum(r.amount),
        sha256(string_agg(r.digest, ''::bytea order by r.kind, r.place, r.id))
    from row r group by r.account
$$;

revoke all on function metering.day_digests_1 from public;
grant execute on function metering.day_digests_1 to metering;
grant select, insert on metering.adjustment, metering.difference, metering.difference_accepted, metering.closing,
    metering.closing_account to metering;
grant select, insert, update on metering.reconciliation to metering;
