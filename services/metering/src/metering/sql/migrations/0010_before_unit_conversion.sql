-- Converting the unit of credits: which accounts are done, and what rounding took or gave.

create table metering.conversion (
    id uuid primary key,
    price numeric not null check (price > 0),
    started_at timestamptz not null default now(),
    finished_at timestamptz
);
create unique index conversion_open on metering.conversion ((true)) where finished_at is null;
comment on column metering.conversion.price is 'New credits for one old credit.';

create table metering.conversion_account (
    conversion uuid not null references metering.conversion (id),
    account text not null,
    grants int not null,
    before metering.credit not null,
    after metering.credit not null,
    rounding numeric not null,
    at timestamptz not null default now(),
    primary key (conversion, account)
);
comment on column metering.conversion_account.rounding is 'after - before * price, exact.';

-- As before, but grants that only change their unit are no news to their owners.
create or replace function metering.tell_of_entries() returns trigger language plpgsql as $$
begin
    if current_setting('metering.converting', true) = 'on' then
        return null;
    end if;
    insert into metering.grant_notice (id, account, level, amount, balance, grant_id, category, name, expires_at, at)
    select e.id, e.account, case when e.amount > 0 then 'granted' else 'expired' end, abs(e.amount),
        e.granted - e.spent, coalesce(e.grant_id::text, ''), coalesce(g.category, ''), coalesce(g.name, ''),
        g.expires_at, e.at
    from added e left join metering.credit_grant g on g.id = e.grant_id
    where e.amount > 0 or (e.kind = 'expired' and e.amount < 0)
    order by e.account, e.number;
    return null;
end $$;

grant select, insert, update on metering.conversion to metering;
grant select, insert on metering.conversion_account to metering;
