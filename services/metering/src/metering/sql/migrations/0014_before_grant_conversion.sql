-- Converting the unit of credits while Payment Kit holds the grants: runs, what became of each grant, and the unit since.

create table metering.grant_conversion (
    id uuid primary key,
    price numeric not null check (price > 0),
    dry_run boolean not null,
    from_unit text not null,
    state text not null check (state in ('running', 'moved', 'finished', 'failed')),
    wait_s double precision not null,
    started_at timestamptz not null default now(),
    finished_at timestamptz,
    error text not null default '',
    total int not null default 0,
    migrated int not null default 0,
    skipped int not null default 0,
    errors int not null default 0,
    before numeric not null default 0,
    after numeric not null default 0,
    problems jsonb not null default '[]'
);
create unique index grant_conversion_open on metering.grant_conversion ((true))
    where state in ('running', 'moved') and not dry_run;
create index grant_conversion_running on metering.grant_conversion (started_at) where state = 'running';
comment on column metering.grant_conversion.price is 'New credits for one old credit.';
comment on column metering.grant_conversion.from_unit is
    'What the hub counted in at the start: with the old unit it is moved, then restarted in the new one, then finished.';
comment on column metering.grant_conversion.wait_s is 'Longest wait for running calls, unsent reports and Payment Kit.';

create table metering.moved_grant (
    livemode boolean not null,
    grant_id text not null,
    conversion uuid not null references metering.grant_conversion (id),
    customer_id text not null,
    before numeric not null,
    after metering.credit not null,
    tried_at timestamptz,
    new_grant_id text,
    ended_at timestamptz,
    primary key (livemode, grant_id)
);
create index moved_grant_conversion on metering.moved_grant (conversion);
comment on column metering.moved_grant.tried_at is
    'Payment Kit was asked to make the new grant, and may still work on it: nobody asks again before that is over.';

alter table metering.payment_control add column unit text, add column unit_since timestamptz;
comment on column metering.payment_control.unit is
    'What charges are in since a conversion; processes with another setting neither reserve nor report. Null = any.';
comment on column metering.payment_control.unit_since is
    'Calls of before are in the unit of before: they belong to its meter, whenever they are reported.';

-- The calls that were made before the unit changed; no call when it never did.
create function metering.unit_bound() returns uuid language sql stable
return coalesce((select metering.id_bound(c.unit_since) from metering.payment_control c),
    '00000000-0000-0000-0000-000000000000'::uuid);

-- From now on charges are in another unit. Balances of before count no more: each is read again before it is spent.
create function metering.change_unit(wanted text) returns void language plpgsql as $$
begin
    perform 1 from metering.account a join metering.payment_account p on p.account = a.id order by a.id
    for no key update of a;
    update metering.account a set granted = a.spent + a.held from metering.payment_account p
    where p.account = a.id and a.granted <> a.spent + a.held;
    update metering.payment_account p
    set target = (select a.spent from metering.account a where a.id = p.account), balance = null, pending = null,
        reading = nextval('metering.payment_reading'), refreshed_at = null, refresh_at = now(), idle_s = 0;
    update metering.payment_control set unit = wanted, unit_since = now();
end $$;

revoke all on function metering.unit_bound, metering.change_unit from public;
grant execute on function metering.unit_bound, metering.change_unit to metering;
grant select, insert on metering.grant_conversion, metering.moved_grant to metering;
grant update (state, wait_s, finished_at, error, total, migrated, skipped, errors, before, after, problems)
    on metering.grant_conversion to metering;
grant update (conversion, before, after, tried_at, new_grant_id, ended_at) on metering.moved_grant to metering;
