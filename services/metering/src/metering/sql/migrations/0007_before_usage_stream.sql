-- Which stream "sent up to" speaks of, so that a bus that lost its store is filled again from the ledger.

create table metering.usage_stream (
    single boolean primary key default true check (single),
    made_at text not null default ''
);
comment on table metering.usage_stream is
    'When the bus made the stream that has the usage events up to `usage_sent`; empty = nobody has looked yet.';
insert into metering.usage_stream default values;

-- As `forward_usage_sent`, for events of this stream only: no row comes back once the books know another one.
create function metering.usage_stored(stream text, accounts text[], firsts bigint[], lasts bigint[])
returns table (account text, seq bigint) language plpgsql as $$
begin
    perform 1 from metering.usage_stream u where u.made_at = stream for share;
    if found then
        return query select f.account, f.seq from metering.forward_usage_sent(accounts, firsts, lasts) f;
    end if;
end $$;

-- A process has found this stream. If the books know another, what that one had is gone: "sent up to" goes back to
-- before everything that subscribers may still expect. True for the one process that did it.
create function metering.refill_usage(stream text, keep interval) returns boolean language plpgsql as $$
declare
    known text;
begin
    select u.made_at into known from metering.usage_stream u for update;
    if known = stream then
        return false;
    end if;
    update metering.usage_stream set made_at = stream;
    if known = '' then
        return false;
    end if;
    perform 1 from metering.usage_sent s order by s.account for update;
    update metering.usage_sent s set seq = least(s.seq, coalesce((
        select l.acct_seq from metering.ledger l
        where l.account = s.account and l.call_id < metering.id_bound(now() - keep)
        order by l.acct_seq desc limit 1
    ), 0));
    return true;
end $$;

revoke all on function metering.usage_stored, metering.refill_usage from public;
grant execute on function metering.usage_stored, metering.refill_usage to metering;
grant select, update on metering.usage_stream to metering;
