-- What a call used beside plain tokens: what lies in a provider's cache for an hour, images, seconds, characters.

alter table metering.model_call add column units jsonb;
comment on column metering.model_call.units is
    'Used beside the token columns: cache_write_1h_tokens, pieces. Null = nothing.';
alter type metering.fact add attribute units jsonb;

-- The turn with what idempotent answers and units ask of it.
--
-- One turn: settle first (it frees credit), reserve second, in one transaction.
--
-- `accounts` are the accounts of all facts and admissions, each once: locked in the order of their ids before anything
-- else, so that turns of several processes cannot deadlock. Calls and digests occur at most once in a turn. Tables are
-- joined to the arrays by index only, never one CTE to another: the session forbids hash joins, because a plan made
-- while the tables were empty would otherwise read them whole, for ever.
--
-- `digest` of an admission is that of the key, 64 hex digits, and behind it that of the body, if there is one: so the
-- type stays what processes of the last release send.
create or replace function metering.turn(
    accounts text[], facts metering.fact[], asked metering.admission[], has_digests boolean,
    oldest_ms bigint, newest_ms bigint, lease interval, claim interval,
    out settled metering.settled[], out standing metering.standing[], out refused metering.refusal[], out at timestamptz
) language plpgsql as $$
declare
    taken int[] := '{}';
    reserved uuid[];
    fact record;
    call record;
    free numeric;
    paying text;
    now_ms bigint := floor(extract(epoch from now()) * 1000);
begin
    at := now();
    perform 1 from metering.account a where a.id = any (accounts) order by a.id for no key update;

    if cardinality(facts) > 0 then
        with done as (
            update metering.model_call c set
                state = f.state,
                outcome = f.outcome,
                credits = case f.state when 'success' then least(f.cost, c.hold) else 0 end,
                overrun = case f.state when 'success' then greatest(f.cost - c.hold, 0) else 0 end,
                written_off = case f.state when 'success' then 0 else f.cost end,
                provider = f.provider, provider_model = f.provider_model, credential = f.credential,
                input_tokens = f.input_tokens, output_tokens = f.output_tokens,
                cache_read_tokens = f.cache_read_tokens, cache_write_tokens = f.cache_write_tokens,
                reasoning_tokens = f.reasoning_tokens, usage_source = f.usage_source, rates = f.rates,
                units = f.units,
                attempts = coalesce(cardinality(f.tries), 0),
                error_code = f.error_code, error_reason = f.error_reason,
                duration_s = f.duration_ms / 1000.0,
                first_byte_ms = f.first_byte_ms, provider_first_byte_ms = f.provider_first_byte_ms,
                router = coalesce(f.router, c.router), settled_at = now(), settled_by = f.settled_by
            from unnest(facts) with ordinality f
            where c.id = f.call_id and c.state = 'processing' and c.epoch = f.epoch
                and (c.account = f.account) is true  -- no condition for an index: the primary key is the cheaper one
            returning f.ordinality as ord, c.id, c.account, c.hold, c.credits, c.overrun, c.written_off,
                c.model, c.user_did, c.project, c.key_id, c.trace_id, f.tries
        ), numbered as materialized (
            -- The rows of `account` are locked and read as before this statement: `seq` is the last one given out.
            select d.*, a.seq + row_number() over (partition by d.account order by d.ord) as acct_seq
            from done d join metering.account a on a.id = d.account
        ), booked as (
            insert into metering.ledger (call_id, account, acct_seq, amount, at)
            select n.id, n.account, n.acct_seq, n.credits, now() from numbered n
        ), tried as (
            insert into metering.attempt
                (call_id, number, provider, model, credential, status, error, started_ms, duration_ms, first_byte_ms)
            select n.id, t.number, t.provider, t.model, t.credential, t.status, t.error,
                t.started_ms, t.duration_ms, t.first_byte_ms
            from numbered n, unnest(n.tries) t
            on conflict do nothing
        ), moved as (
            update metering.account a
            set held = a.held - g.hold, spent = a.spent + g.credits, seq = a.seq + g.calls
            from (
                select n.account, sum(n.hold) as hold, sum(n.credits) as credits, count(*) as calls
                from numbered n group by n.account
            ) g
            where a.id = g.account
        )
        select array_agg((n.ord, n.acct_seq, n.credits, n.overrun, n.written_off,
            n.model, n.user_did, n.project, n.key_id, n.trace_id)::metering.settled)
        into settled from numbered n;

        if cardinality(facts) > coalesce(cardinality(settled), 0) then
            for fact in
                select f.*, c.id is not null as known, c.state as call_state, c.credits as call_credits,
                    c.account as call_account
                from unnest(facts) with ordinality f left join metering.model_call c on c.id = f.call_id
                where f.ordinality not in (select (unnest(settled)).ord)
                order by f.ordinality
            loop
                standing := standing || (fact.ordinality, fact.call_state, fact.call_credits,
                    fact.call_account)::metering.standing;
                continue when not fact.known or fact.call_account <> fact.account
                    or fact.state <> 'success' or fact.call_state = 'success';
                insert into metering.late_completion (call_id, epoch, account, cost, provider, usage)
                values (fact.call_id, fact.epoch, fact.account, fact.cost, fact.provider, jsonb_build_object(
                    'input_tokens', fact.input_tokens, 'output_tokens', fact.output_tokens,
                    'cache_read_tokens', fact.cache_read_tokens, 'cache_write_tokens', fact.cache_write_tokens,
                    'reasoning_tokens', fact.reasoning_tokens, 'source', fact.usage_source)
                    || coalesce(fact.units, '{}'))
                on conflict do nothing;
                if found then
                    update metering.model_call c set written_off = c.written_off + fact.cost where c.id = fact.call_id;
                end if;
            end loop;
        end if;
    end if;

    if cardinality(asked) > 0 then
        if has_digests then
            -- A key is its call's until that has failed: then nothing was charged, and whoever comes next calls anew.
            select array_agg(r.ord), array_agg((r.ord, r.status, r.other)::metering.refusal) into taken, refused
            from (
                select a.ordinality::int as ord, k.call_id as other,
                    case when k.body = '' or substr(a.digest, 65) in ('', k.body) then 'key_taken' else 'key_reused' end
                        as status
                from unnest(asked) with ordinality a
                    join metering.idempotency k on k.digest = left(a.digest, 64)
                    left join metering.model_call c on c.id = k.call_id
                where k.expires_at > now() and k.call_id <> a.call_id and c.state is distinct from 'failed'
            ) r;
            taken := coalesce(taken, '{}');
        end if;

        with fitting as (
            select a.*, p.granted - p.spent - p.held as free,
                sum(a.hold) over (partition by a.account order by a.ordinality) as running
            from unnest(asked) with ordinality a join metering.account p on p.id = a.account
            where a.ordinality <> all (taken)
        ), made as (
            insert into metering.model_call (id, account, user_did, project, key_id, kind, dialect, model, stream,
                lease_until, deadline, hold, candidates, trace_id, request_id)
            select f.call_id, f.account, f.user_did, f.project, f.key_id, f.kind, f.dialect, f.model, f.stream,
                now() + lease, now() + make_interval(secs => f.ttl_s), f.hold, f.candidates, f.trace_id, f.request_id
            from fitting f where f.running <= f.free
            on conflict do nothing
            returning id, account, hold
        ), held as (
            update metering.account a set held = a.held + g.hold
            from (select m.account, sum(m.hold) as hold from made m group by m.account) g
            where a.id = g.account and g.hold > 0
        )
        select array_agg(m.id) into reserved from made m;

        -- What was refused is told apart here, once for the whole turn. A hold too large for its account also counted
        -- against those behind it, so they are looked at again, one after the other.
        if cardinality(asked) > coalesce(cardinality(reserved), 0) + cardinality(taken) then
            for call in
                select a.*, c.id is not null as known, p.granted - p.spent - p.held as free
                from unnest(asked) with ordinality a
                    left join metering.account p on p.id = a.account
                    left join metering.model_call c on c.id = a.call_id
                where a.call_id <> all (coalesce(reserved, '{}')) and a.ordinality <> all (taken)
                order by a.account, a.ordinality
            loop
                if paying is distinct from call.account then
                    paying := call.account;
                    free := call.free;
                end if;
                if call.known then
                    refused := refused || (call.ordinality, 'exists', null)::metering.refusal;
                    continue;
                end if;
                if free is null or call.hold > free then
                    refused := refused || (call.ordinality, 'not_enough', null)::metering.refusal;
                    continue;
                end if;
                insert into metering.model_call (id, account, user_did, project, key_id, kind, dialect, model, stream,
                    lease_until, deadline, hold, candidates, trace_id, request_id)
                values (call.call_id, call.account, call.user_did, call.project, call.key_id, call.kind, call.dialect,
                    call.model, call.stream, now() + lease, now() + make_interval(secs => call.ttl_s), call.hold,
                    call.candidates, call.trace_id, call.request_id);
                update metering.account a set held = a.held + call.hold where a.id = call.account;
                free := free - call.hold;
                reserved := reserved || call.call_id;
            end loop;
        end if;

        if has_digests then
            insert into metering.idempotency (digest, call_id, body, expires_at)
            select left(a.digest, 64), a.call_id, substr(a.digest, 65), now() + claim from unnest(asked) a
            where a.digest is not null and a.call_id = any (reserved)
            order by a.digest
            on conflict (digest) do update
                set call_id = excluded.call_id, body = excluded.body, expires_at = excluded.expires_at;
        end if;

        if oldest_ms < now_ms - 10000 or newest_ms > now_ms + 10000 then
            insert into metering.skewed_call (call_id)
            select a.call_id from unnest(asked) a where a.call_id = any (reserved)
                and (a.call_id < metering.id_bound(now() - interval '10 s')
                    or a.call_id > metering.id_bound(now() + interval '10 s'))
            order by a.call_id
            on conflict do nothing;
        end if;
    end if;
end $$;
