-- Schema catalog: which providers are configured, what models cost, and how often that changed.
create schema catalog;

do $$
begin
    if not exists (select from pg_roles where rolname = 'provider_router') then
        create role provider_router nologin;
    end if;
end
$$;

-- A mirror of the routers' configuration, for people and reports: no secret in it, routing never reads it.
create table catalog.provider (
    name text primary key check (name ~ '^[a-z0-9][a-z0-9_-]{0,39}$'),
    kind text not null check (kind in ('openai', 'anthropic', 'demo')),
    base_url text not null,
    models text[],
    weight integer not null check (weight >= 0),
    active boolean not null,
    configured_at timestamptz not null default now()
);

-- One row: every change of providers or rates takes the next number here first, so changes have one order.
create table catalog.revision (
    one boolean primary key default true check (one),
    revision bigint not null,
    configuration text not null default '',
    changed_at timestamptz not null default now()
);
insert into catalog.revision (revision) values (1);

-- Rates that operators set. Rows are only added: of a pattern's rows the one with the highest revision is in force.
create table catalog.rate (
    id uuid primary key default gen_random_uuid(),
    revision bigint not null unique,
    pattern text not null check (length(pattern) between 1 and 200),
    input numeric not null check (input >= 0 and input < 1e18),
    output numeric not null check (output >= 0 and output < 1e18),
    cache_read numeric check (cache_read >= 0 and cache_read < 1e18),
    cache_write numeric check (cache_write >= 0 and cache_write < 1e18),
    reasoning numeric check (reasoning >= 0 and reasoning < 1e18),
    request numeric not null default 0 check (request >= 0 and request < 1e18),
    source text not null default 'operator',
    effective_at timestamptz not null default now(),
    changed_by text not null default ''
);
create index rate_in_force on catalog.rate (pattern, revision desc);

create function catalog.rates_are_only_added() returns trigger language plpgsql as $$
begin
    raise exception 'catalog.rate keeps its history: rows are only added';
end
$$;
create trigger rates_are_only_added before update or delete on catalog.rate
    for each row execute function catalog.rates_are_only_added();

grant usage on schema catalog to provider_router;
grant select, insert, update on catalog.provider to provider_router;
grant select, update on catalog.revision to provider_router;
grant select, insert on catalog.rate to provider_router;
