-- Users, access keys, projects and the audit log. Owned by the migrating role; the gateway reads and writes rows.
create schema identity;
grant usage on schema identity to gateway;

create table identity."user" (
    did text primary key,
    account text not null,                      -- who pays for this user's calls; the user's own by default
    full_name text not null default '',
    role text not null check (role in ('owner', 'admin', 'member', 'guest')),
    created_at timestamptz not null default now()
);
create index user_by_role on identity."user" (role) where role = 'owner';

create table identity.access_key (
    id text primary key,                        -- wallet address of the key's public key
    digest bytea not null unique check (octet_length(digest) = 32),
    user_did text not null references identity."user" (did),
    role text not null check (role in ('owner', 'admin', 'member', 'guest')),
    name text not null default '',
    created_at timestamptz not null default now(),
    created_by text not null default '',
    revoked_at timestamptz,
    last_used_at timestamptz
);
create index access_key_by_user on identity.access_key (user_did, created_at desc);
create index access_key_by_time on identity.access_key (created_at desc);

create table identity.project (
    did text primary key,
    name text not null default '',
    url text not null default '',
    logo text not null default '',
    created_at timestamptz not null default now(),
    refreshed_at timestamptz
);

create table identity.audit_log (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    who text not null,
    what text not null,
    object text not null,
    details jsonb not null default '{}'         -- never a key, digest or other secret
);
create index audit_log_by_time on identity.audit_log (at desc);
create index audit_log_by_object on identity.audit_log (object, at desc);

-- One row: raised by every change of a key or a role, in the change's own transaction.
create table identity.revision (
    only_row boolean primary key default true check (only_row),
    revision bigint not null
);
insert into identity.revision (revision) values (0);

grant select, insert, update on identity."user", identity.access_key, identity.project to gateway;
grant select, insert on identity.audit_log to gateway;
grant select, update on identity.revision to gateway;
