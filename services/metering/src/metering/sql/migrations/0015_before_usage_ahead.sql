-- What is stored on the bus behind a gap. Several processes settle calls of one account in turn, so that each of them
-- knows of every other event only: what one has acknowledged waits here, in the books, for the other's.

alter table metering.usage_sent add column ahead int8multirange not null default '{}';
comment on column metering.usage_sent.ahead is 'Sequences behind the first gap whose events are stored on the bus.';

-- An account may stand in the arrays any number of times.
create or replace function metering.forward_usage_sent(accounts text[], firsts bigint[], lasts bigint[])
returns table (account text, seq bigint) language plpgsql as $$
begin
    insert into metering.usage_sent (account) select distinct a from unnest(accounts) a order by a on conflict do nothing;
    perform 1 from metering.usage_sent s where s.account = any (accounts) order by s.account for update;
    update metering.usage_sent s set seq = n.upto, ahead = n.stored - int8multirange(int8range(0, n.upto, '[]'))
    from (
        select k.account, k.stored,
            coalesce(lower(int8multirange(int8range(0, upper(k.stored))) - k.stored), upper(k.stored)) - 1 as upto
        from (
            select o.account, range_agg(int8range(u.first, u.last, '[]')) + o.ahead
                + int8multirange(int8range(0, o.seq, '[]')) as stored
            from unnest(accounts, firsts, lasts) u(account, first, last)
                join metering.usage_sent o on o.account = u.account
            group by o.account
        ) k
    ) n
    where s.account = n.account;
    return query select s.account, s.seq from metering.usage_sent s where s.account = any (accounts);
end $$;

create or replace function metering.refill_usage(stream text, keep interval) returns boolean language plpgsql as $$
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
    update metering.usage_sent s set ahead = '{}', seq = least(s.seq, coalesce((
        select l.acct_seq from metering.ledger l
        where l.account = s.account and l.call_id < metering.id_bound(now() - keep)
        order by l.acct_seq desc limit 1
    ), 0));
    return true;
end $$;
