-- Notices of credits that were given or have ended, booked with the entry that did it.

create table metering.grant_notice (
    id uuid primary key,
    number bigint generated always as identity,
    account text not null,
    level text not null check (level in ('granted', 'expired')),
    amount metering.credit not null,
    balance numeric(38, 10) check (balance > -1e18 and balance < 1e18),
    grant_id text not null default '',
    category text not null default '',
    name text not null default '',
    expires_at timestamptz,
    at timestamptz not null default now(),
    sent_at timestamptz
);
create index grant_notice_unsent on metering.grant_notice (number) where sent_at is null;
comment on column metering.grant_notice.id is 'Of the entry, or made of Payment Kit''s grant: one notice for each.';
comment on column metering.grant_notice.balance is 'Directly after it; null = Payment Kit''s, and not read at that moment.';

create function metering.tell_of_entries() returns trigger language plpgsql as $$
begin
    insert into metering.grant_notice (id, account, level, amount, balance, grant_id, category, name, expires_at, at)
    select e.id, e.account, case when e.amount > 0 then 'granted' else 'expired' end, abs(e.amount),
        e.granted - e.spent, coalesce(e.grant_id::text, ''), coalesce(g.category, ''), coalesce(g.name, ''),
        g.expires_at, e.at
    from added e left join metering.credit_grant g on g.id = e.grant_id
    where e.amount > 0 or (e.kind = 'expired' and e.amount < 0)
    order by e.account, e.number;
    return null;
end $$;
create trigger tell after insert on metering.credit_entry referencing new table as added
    for each statement execute function metering.tell_of_entries();

revoke all on function metering.tell_of_entries from public;
grant execute on function metering.tell_of_entries to metering;
grant select, insert, update on metering.grant_notice to metering;
