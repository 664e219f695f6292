-- Leases are renewed as everything else is changed: the accounts of the calls are locked first, in the order of ids.
--
-- A renewal that met rows just being settled, or the reverse, made PostgreSQL look at a changed row a second time in the
-- midst of a statement. When that statement also finds its partitions while it runs, as a join by call id does, the
-- backend of PostgreSQL 18 can die of it and take all others along. With the accounts locked before the statement
-- begins, no row of theirs changes under it. No join here meets a partitioned table in a statement that changes one.

create function metering.renew(
    calls uuid[], call_epoch int, lease interval, by_router text, out renewed int, out ended uuid[]
) language plpgsql set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
declare
    payers text[];
begin
    payers := array(
        select distinct c.account from metering.model_call c
        where c.id = any (calls) and c.state = 'processing' and c.epoch = call_epoch
    );
    perform 1 from metering.account a where a.id = any (payers) order by a.id for no key update;
    update metering.model_call c set lease_until = now() + lease, router = by_router
    where c.id = any (calls) and c.state = 'processing' and c.epoch = call_epoch;
    get diagnostics renewed = row_count;
    if renewed < cardinality(calls) then
        ended := array(
            select u.id from unnest(calls) u(id)
                left join metering.model_call c on c.id = u.id
            where c.id is null or c.state <> 'processing' or c.epoch <> call_epoch
        );
    end if;
end $$;

revoke all on function metering.renew from public;
grant execute on function metering.renew to metering;
