-- Rates as versions: when they begin, who changed them and why, what they are computed from, and all units.

alter table catalog.rate
    add column cache_write_1h numeric check (cache_write_1h >= 0 and cache_write_1h < 1e18),
    add column tiers jsonb not null default '[]',
    add column pieces jsonb not null default '[]',
    add column deprecated boolean not null default false,
    add column change_type text not null default 'manual_update' check (change_type in ('manual_update', 'bulk_update',
        'bulk_create', 'bulk_sync', 'auto_update', 'source_drift', 'deprecation')),
    add column changed_at timestamptz,
    add column costs jsonb,
    add column cost_source text not null default '',
    add column cost_at timestamptz,
    add column margin numeric check (margin >= 0 and margin < 1e18);

-- Rows from before were in force from the moment of their change.
alter table catalog.rate disable trigger rates_are_only_added;
update catalog.rate set changed_at = effective_at;
alter table catalog.rate enable trigger rates_are_only_added;
alter table catalog.rate alter column changed_at set not null, alter column changed_at set default now();

-- Of a pattern's rows that have begun, the one that began last counts; of several, the one with the highest revision.
drop index catalog.rate_in_force;
create index rate_in_force on catalog.rate (pattern, effective_at desc, revision desc);
comment on column catalog.rate.costs is 'Unit costs in US dollars; rate = cost × (1 + margin %) ÷ credit price.';

alter table catalog.revision add column begun_at timestamptz not null default now();
comment on column catalog.revision.begun_at is 'Versions that begin up to here are part of this revision.';

-- What a check found, what it proposes, and what was decided. Rows are only added.
create table catalog.rate_check (
    id uuid primary key default gen_random_uuid(),
    at timestamptz not null default now(),
    checked_by text not null default '',
    source text not null,
    counts jsonb not null,
    found jsonb not null
);
create table catalog.rate_proposal (
    id uuid primary key default gen_random_uuid(),
    pattern text not null,
    version bigint not null,
    reason text not null check (reason in ('drift', 'below_cost')),
    drift numeric not null,
    new_rates jsonb not null,
    new_costs jsonb not null,
    cost_source text not null,
    digest text not null,
    proposed_at timestamptz not null default now(),
    unique (version, digest)
);
comment on column catalog.rate_proposal.digest is 'Of the new rates and costs: the same proposal is made once.';
create table catalog.rate_decision (
    proposal uuid primary key references catalog.rate_proposal (id),
    decision text not null check (decision in ('approved', 'refused')),
    decided_by text not null default '',
    decided_at timestamptz not null default now()
);

create function catalog.rows_are_only_added() returns trigger language plpgsql as $$
begin
    raise exception 'catalog.% keeps its history: rows are only added', tg_table_name;
end
$$;
create trigger rows_are_only_added before update or delete on catalog.rate_check
    for each row execute function catalog.rows_are_only_added();
create trigger rows_are_only_added before update or delete on catalog.rate_proposal
    for each row execute function catalog.rows_are_only_added();
create trigger rows_are_only_added before update or delete on catalog.rate_decision
    for each row execute function catalog.rows_are_only_added();

grant select, insert on catalog.rate_check, catalog.rate_proposal, catalog.rate_decision to provider_router;
