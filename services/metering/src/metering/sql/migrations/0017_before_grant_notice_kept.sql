-- Notices of grants are dropped some time after they were told. Payment Kit may speak of a grant again as long as it
-- has not ended, and each is to be told once: its notices stay until then, those of a grant without an end for ever.

create index grant_notice_sent on metering.grant_notice (sent_at) where sent_at is not null;

create function metering.drop_grant_notices(keep interval, most int) returns int
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    dropped int;
begin
    if keep < interval '1 day' then
        raise invalid_parameter_value using message = 'notices are kept for a day at least';
    end if;
    delete from metering.grant_notice n where n.id = any (array(
        select o.id from metering.grant_notice o
        where o.sent_at < now() - keep
            and (not starts_with(o.grant_id, 'crdg_') or o.expires_at < now() - keep)
        order by o.sent_at limit most for update skip locked
    ));
    get diagnostics dropped = row_count;
    return dropped;
end $$;

revoke all on function metering.drop_grant_notices from public;
grant execute on function metering.drop_grant_notices to metering;
