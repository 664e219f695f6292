-- What became of rows of the outbox, unless somebody else has taken them meanwhile (the fence). As `metering.renew`:
-- the rows are locked first, in the order of ids, then changed by key. No row changes under a statement that changes
-- it, and no join meets a partitioned table in one.

create function metering.mark_outbox(
    ids uuid[], fences bigint[], states text[], reasons text[], event_ids text[], delays_ms bigint[], untried int[]
) returns void language plpgsql set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
declare
    payers text[];
    of_batches uuid[];
begin
    perform 1 from metering.outbox o where o.id = any (ids) order by o.id for no key update;
    with marked as (
        update metering.outbox o set state = states[array_position(ids, o.id)],
            reason = reasons[array_position(ids, o.id)], event_id = event_ids[array_position(ids, o.id)],
            next_at = now() + make_interval(secs => delays_ms[array_position(ids, o.id)] / 1000.0),
            tries = o.tries - untried[array_position(ids, o.id)],
            sent_at = case states[array_position(ids, o.id)] when 'sent' then now() end
        where o.id = any (ids) and o.fence = fences[array_position(ids, o.id)] and o.state = 'pending'
        returning o.account, o.state, o.members
    ), reported as (
        select account, members from marked where state = 'sent'
    )
    select array(select account from reported), array(select unnest(members) from reported) into payers, of_batches;
    if of_batches <> '{}' then
        perform 1 from metering.outbox o where o.id = any (of_batches) order by o.id for no key update;
        update metering.outbox o set state = 'sent', sent_at = now() where o.id = any (of_batches) and o.state <> 'sent';
    end if;
    if payers <> '{}' then
        -- What was reported changes the balance there: look soon. Only a hint, so rows in use are passed over.
        update metering.payment_account p set refresh_at = now() + interval '2 s'
        from (
            select a.account from metering.payment_account a
            where a.account = any (payers) and a.refresh_at > now() + interval '2 s'
            order by a.account for update skip locked
        ) h
        where p.account = h.account;
    end if;
end $$;

revoke all on function metering.mark_outbox from public;
grant execute on function metering.mark_outbox to metering;
