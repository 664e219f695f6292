-- Rates of all kinds of calls, what is said about a model beside its price, and rates that are taken away.

alter table catalog.rate
    add column type text not null default 'chatCompletion' check (type in ('chatCompletion', 'imageGeneration',
        'embedding', 'video')),
    add column about jsonb,
    add column removed boolean not null default false;
comment on column catalog.rate.removed is 'From here on there are no rates, whatever was planned before; those beside '
    'it are the last ones.';

-- The versions of a rate are those of one pattern and type.
drop index catalog.rate_in_force;
create index rate_in_force on catalog.rate (pattern, type, effective_at desc, revision desc);
create index rate_versions on catalog.rate (pattern, type, revision desc);
