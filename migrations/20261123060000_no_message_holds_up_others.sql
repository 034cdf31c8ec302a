-- What goes wrong with one message, or has been changed by hand, holds up no other.

-- as before; one that was a dead letter before, and was requeued by hand since, is one again
create or replace function bus.settle_failure(
  message uuid, attempt smallint, outcome text, holder text, reason text, retriable boolean, retry_ms bigint, actor text,
  started_at timestamptz default null)
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  m public.agent_messages;
  delay interval;
  again boolean;
  settled public.agent_messages;
begin
  select t.* into m from public.agent_messages t where t.id = message and t.status in ('queued', 'claimed') for update;
  -- without a holder it has only waited, and its attempts are those of before
  if not found or m.attempts + (m.status = 'queued' and holder is not null)::integer <> settle_failure.attempt
    or (holder is null and m.status <> 'queued') then
    return null;
  end if;
  -- a retry that could only come after the time to live is none; the reason stays the handler's
  select n.again, n.delay into again, delay
    from bus.next_try(settle_failure.attempt - m.released, m.max_attempts, m.expires_at, outcome, retriable, retry_ms) as n;
  update public.agent_messages as t
     set status        = case when again then 'queued' else 'failed' end,
         attempts      = settle_failure.attempt,
         claimed_by    = coalesce(settle_failure.holder, t.claimed_by),
         claimed_at    = coalesce(settle_failure.started_at, t.claimed_at),
         retry_at      = case when again and delay > interval '0' then clock_timestamp() + delay end,
         lease_until   = null,
         error         = left(coalesce(nullif(reason, ''), 'no reason given'), 4000),
         last_error_at = clock_timestamp(),
         done_at       = case when again then null else clock_timestamp() end
   where t.id = m.id
  returning t.* into settled;
  if holder is not null then
    insert into bus.attempts (id, attempt, holder, started_at, outcome, error)
    values (m.id, settle_failure.attempt, holder, settled.claimed_at, outcome, settled.error)
    on conflict do nothing;
  end if;
  if again then
    if m.payload ? '__assignment' then
      perform bus.record_event('execute_retry', settled, actor,
        bus.outcome_detail(settled) || jsonb_build_object('error', settled.error, 'retry_at', settled.retry_at));
    end if;
    perform bus.place(array[m.id]);
  else
    perform bus.record_event(case when m.payload ? '__assignment' then 'execute_failed' else 'message_failed' end, settled,
      actor, bus.outcome_detail(settled) || jsonb_build_object('error', settled.error));
    insert into bus.dead_letters (id, failed_at, route, tenant)
    values (m.id, settled.done_at, m.service || '/' || m.role || '/' || m.shard, m.tenant)
    on conflict (id) do update set failed_at = excluded.failed_at, route = excluded.route, tenant = excluded.tenant;
    perform bus.after_end(array[m.id], case when m.group_key is not null then array[m.id] end);
  end if;
  perform bus.announce_tasks(array[settled.root_id]);
  return settled.status;
end
$$;

-- as before, of dead letters as above; a null among the ids is no message
create or replace function bus.fail_many(
  ids uuid[], attempts smallint[], holder text, reasons text[] default null, retriable boolean[] default null,
  retry_ms bigint[] default null)
returns table (id uuid, status text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  -- whose days these are is known before the statement begins: other parts are left out of it
  lowest constant uuid := (select i from unnest(fail_many.ids) as i order by i limit 1);
  highest constant uuid := (select i from unnest(fail_many.ids) as i order by i desc nulls last limit 1);
  ended record;
begin
  if exists (select from bus.awaited) and exists (select from bus.awaited a where a.on_id = any (fail_many.ids)) then
    -- whoever ends or cancels those that wait takes all rows in one order as well
    perform bus.lock_rows(fail_many.ids);
  end if;
  with given as materialized (
    -- one that an extension gave a claim of its own stands in two, and is counted off once; of its attempts only the last
    -- can still be the holder's, an earlier one given with it is stale
    select distinct on (g.id) g.id, g.attempt, g.reason, coalesce(g.retriable, true) as retriable, g.retry_ms, h.claim,
           h.version, h.claimed_at
      from unnest(fail_many.ids, fail_many.attempts, fail_many.reasons, fail_many.retriable, fail_many.retry_ms)
           as g (id, attempt, reason, retriable, retry_ms)
      join bus.held(fail_many.holder) h on h.id = g.id and h.attempt = g.attempt
     order by g.id, g.attempt desc, h.claim
  ), mine as materialized (
    -- the lease is read first; should it pass and be reclaimed meanwhile, the row is of another attempt by then
    select g.id, g.attempt, g.reason, g.retriable, g.retry_ms, g.claim, g.version, g.claimed_at, m.released,
           m.max_attempts, m.expires_at
      from given g join public.agent_messages m on m.id = g.id
     where m.id = any (fail_many.ids) and m.id between lowest and highest
       and ((m.status = 'queued' and m.attempts = g.attempt - 1)
            or (m.status = 'claimed' and m.attempts = g.attempt and m.claimed_by = fail_many.holder))
     order by m.id for update of m
  ), judged as materialized (
    select mine.id, mine.attempt, mine.reason, mine.claim, mine.version, mine.claimed_at, n.again, n.delay
      from mine
     cross join lateral bus.next_try(mine.attempt - mine.released, mine.max_attempts, mine.expires_at, 'failed',
                                     mine.retriable, mine.retry_ms) as n
  ), settled as (
    update public.agent_messages as t
       set status        = case when j.again then 'queued' else 'failed' end,
           attempts      = j.attempt,
           claimed_by    = fail_many.holder,
           claimed_at    = j.claimed_at,
           retry_at      = case when j.again and j.delay > interval '0' then clock_timestamp() + j.delay end,
           lease_until   = null,
           error         = left(coalesce(nullif(j.reason, ''), 'no reason given'), 4000),
           last_error_at = clock_timestamp(),
           done_at       = case when j.again then null else clock_timestamp() end
      from judged j
     where t.id = j.id and t.id = any (array(select one.id from judged as one)) and t.id between lowest and highest
    returning t.id, t.status, t.root_id, t.tenant, t.service || '/' || t.role || '/' || t.shard as route, t.error, t.done_at,
              t.group_key is not null as grouped, t.payload ? '__assignment' as assigned, j.claim, j.version, j.attempt,
              j.claimed_at
  ), told as (
    insert into bus.attempts (id, attempt, holder, started_at, outcome, error)
    select s.id, s.attempt, fail_many.holder, s.claimed_at, 'failed', s.error from settled s
    on conflict do nothing
  ), given_up as (
    insert into bus.dead_letters (id, failed_at, route, tenant)
    select s.id, s.done_at, s.route, s.tenant from settled s where s.status = 'failed'
    on conflict on constraint dead_letters_pkey
    do update set failed_at = excluded.failed_at, route = excluded.route, tenant = excluded.tenant
  )
  select array_agg(s.id order by s.id) as ids, array_agg(s.status order by s.id) as statuses,
         array_agg(s.attempt order by s.id) as attempts, array_agg(s.claim order by s.id) as claims,
         array_agg(s.version order by s.id) as versions, array_agg(distinct s.root_id) as tasks,
         array_agg(s.id order by s.id) filter (where s.status = 'queued') as again,
         array_agg(s.id order by s.id) filter (where s.status = 'failed') as dead,
         array_agg(s.id order by s.id) filter (where s.status = 'failed' and s.grouped) as dead_of_groups,
         coalesce(bool_or(s.assigned or s.status = 'failed'), false) as eventful
    into ended from settled s;
  if ended.ids is null then
    return;
  end if;
  if ended.eventful then
    insert into public.bus_events (kind, tenant, message_id, root_id, route, actor, detail)
    select case when m.status = 'queued' then 'execute_retry'
                when m.payload ? '__assignment' then 'execute_failed'
                else 'message_failed' end,
           m.tenant, m.id, m.root_id, m.service || '/' || m.role || '/' || m.shard, fail_many.holder,
           bus.outcome_detail(m.*::public.agent_messages) || jsonb_build_object('error', m.error)
             || case when m.status = 'queued' then jsonb_build_object('retry_at', m.retry_at) else '{}' end
      from public.agent_messages m
     where m.id = any (ended.ids) and m.id between lowest and highest
       and (m.status = 'failed' or m.payload ? '__assignment')
     order by m.id;
  end if;
  -- groups before claims, as in a completion
  if ended.dead is not null then
    perform bus.after_end(ended.dead, ended.dead_of_groups);
  end if;
  perform bus.let_go(fail_many.holder, ended.claims, ended.versions, ended.ids, ended.attempts);
  -- whoever sleeps is told by what is placed, once for a route
  if ended.again is not null then
    perform bus.place(ended.again);
  end if;
  perform bus.announce_tasks(ended.tasks);
  return query select s.id, s.status from unnest(ended.ids, ended.statuses) as s (id, status);
end
$$;

-- as before; null for retriable is what is left out, as in bus.fail_many
create or replace function bus.next_try(
  counted integer, max_attempts integer, expires_at timestamptz, outcome text, retriable boolean, retry_ms bigint,
  out again boolean, out delay interval)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  delay := coalesce(
    -- a year is for ever
    (case when retry_ms > 31536000000 then 31536000000 else retry_ms end) * interval '1 millisecond',
    -- exponential from 1 s, at most 5 min, the upper half jittered so that a herd spreads; a worker that vanished gives
    -- its first time back at once
    case when outcome in ('lease_expired', 'holder_gone') and counted <= 1 then interval '0' else
    least(300.0, power(2.0, least(greatest(counted, 1), 20) - 1)) * (0.5 + random() / 2) * interval '1 second' end);
  -- a retry that could only come after the time to live is no retry
  again := coalesce(retriable, true) and counted < next_try.max_attempts
    and (next_try.expires_at is null or clock_timestamp() + delay < next_try.expires_at);
end
$$;

-- as before; a null among the ids is no message
create or replace function bus.record_done(
  ids uuid[], attempts smallint[], holder text, results jsonb[], result_snippets text[], result_urls text[],
  out done uuid[], out claim bigint, out last_claim bigint, out version integer, out special boolean, out awaited boolean,
  out watched boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_nestloop = off
set enable_mergejoin = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
  its_attempt constant smallint := record_done.attempts[1];
  in_order uuid[];
  lowest uuid;
  highest uuid;
  its_claim record;
begin
  if cardinality(record_done.ids) = 1 then
    -- as below, for less
    select c.claim, c.version, c.claimed_at into its_claim from bus.claims c
     where c.holder = record_done.holder and c.lease_until > (select clock_timestamp())
       and c.attempts[array_position(c.ids, record_done.ids[1])] = record_done.attempts[1] limit 1;
    if not found then
      return;
    end if;
    update public.agent_messages as m
       set status = 'done', attempts = record_done.attempts[1], claimed_by = record_done.holder,
           claimed_at = its_claim.claimed_at, done_at = clock_timestamp(), lease_until = null, retry_at = null, error = null,
           result = record_done.results[1], result_snippet = left(record_done.result_snippets[1], 400),
           result_url = record_done.result_urls[1]
     where m.id = record_done.ids[1]
       and ((m.status = 'queued' and m.attempts = record_done.attempts[1] - 1)
            or (m.status = 'claimed' and m.attempts = record_done.attempts[1] and m.claimed_by = record_done.holder))
    returning array[m.id], its_claim.claim, its_claim.claim, its_claim.version,
              m.root_id <> m.id or m.group_key is not null or m.payload ? '__assignment'
      into done, claim, last_claim, version, special;
    -- Who began to await or to watch it had its row until he committed, and the statement above may have begun before.
    select exists (select from bus.awaited), exists (select from bus.watchers) into awaited, watched;
    return;
  end if;
  -- whose days these are is known before the statement begins: other parts are left out of it
  in_order := array(select i from unnest(record_done.ids) as i where i is not null order by i);
  lowest := in_order[1];
  highest := in_order[cardinality(in_order)];
  -- A whole claim, named as it stands there, needs no join with it. Where the holder has another of the same moment, an
  -- extension has split one or given a part a second lease, and a message is counted off the older of the two.
  if in_order = record_done.ids and its_attempt = all (record_done.attempts)
    and bus.stand_close(lowest, highest, cardinality(in_order)) then
    select c.claim, c.version, c.claimed_at into its_claim from bus.claims c
     where c.holder = record_done.holder and c.lease_until > (select clock_timestamp())
       and c.ids = record_done.ids and c.attempts = record_done.attempts
       and not exists (select from bus.claims o
                        where o.holder = record_done.holder and o.claimed_at = c.claimed_at and o.claim <> c.claim)
     limit 1;
    if found then
      with marked as (
        update public.agent_messages as m
           set status = 'done', attempts = its_attempt, claimed_by = record_done.holder, claimed_at = its_claim.claimed_at,
               done_at = clock_timestamp(), lease_until = null, retry_at = null, error = null,
               result = record_done.results[g.place], result_snippet = left(record_done.result_snippets[g.place], 400),
               result_url = record_done.result_urls[g.place]
          from unnest(record_done.ids) with ordinality as g (id, place)
         -- one look from the lowest to the highest
         where m.id between lowest and highest and m.id = g.id
           and ((m.status = 'queued' and m.attempts = its_attempt - 1)
                or (m.status = 'claimed' and m.attempts = its_attempt and m.claimed_by = record_done.holder))
        returning m.id, m.root_id <> m.id or m.group_key is not null or m.payload ? '__assignment' as special
      )
      select array_agg(d.id), its_claim.claim, its_claim.claim, its_claim.version, bool_or(d.special)
        into done, claim, last_claim, version, special
        from marked d;
      select exists (select from bus.awaited), exists (select from bus.watchers) into awaited, watched;
      return;
    end if;
  end if;
  -- the lease is read first; should it pass and be reclaimed meanwhile, the row is of another attempt by then. Results do
  -- not go through the joins: they are taken from their arrays by place.
  with given as materialized (
    select h.claim, h.version, h.claimed_at, g.id, g.attempt, g.place
      from unnest(record_done.ids, record_done.attempts) with ordinality as g (id, attempt, place)
      join (select c.claim, c.version, c.claimed_at, unnest(c.ids) as id, unnest(c.attempts) as attempt
              from bus.claims c
             where c.holder = record_done.holder and c.lease_until > (select clock_timestamp())) as h
        on h.id = g.id and h.attempt = g.attempt
     -- whichever side of the next join is hashed: two who end the same ones must not wait for each other
     order by g.id
  ), marked as (
    update public.agent_messages as m
       set status = 'done', attempts = g.attempt, claimed_by = record_done.holder, claimed_at = g.claimed_at,
           done_at = clock_timestamp(), lease_until = null, retry_at = null, error = null,
           result = record_done.results[g.place], result_snippet = left(record_done.result_snippets[g.place], 400),
           result_url = record_done.result_urls[g.place]
      from given g
     where m.id = any (record_done.ids) and m.id between lowest and highest and m.id = g.id
       and ((m.status = 'queued' and m.attempts = g.attempt - 1)
            or (m.status = 'claimed' and m.attempts = g.attempt and m.claimed_by = record_done.holder))
    returning m.id, g.claim, g.version, m.root_id <> m.id or m.group_key is not null or m.payload ? '__assignment' as special
  )
  select array_agg(d.id), min(d.claim), max(d.claim), max(d.version), bool_or(d.special)
    into done, claim, last_claim, version, special
    from marked d;
  select exists (select from bus.awaited), exists (select from bus.watchers) into awaited, watched;
end
$$;

-- as before, each by itself
create or replace function bus.take_back(
  holder_of text, claim_of bigint, outcome text, reason text, actor text, max_rows integer, out settled integer,
  out left_over boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  m record;
begin
  settled := 0;
  left_over := false;
  for m in
    -- one that is just being completed is left for the next time, with its claim
    select t.id, h.attempt, c.claimed_at, c.route
      from bus.claims c, unnest(c.ids, c.attempts) as h (id, attempt)
      join public.agent_messages t on t.id = h.id
     where c.holder = holder_of and c.claim = claim_of
       and ((t.status = 'queued' and t.attempts = h.attempt - 1)
            or (t.status = 'claimed' and t.attempts = h.attempt and t.claimed_by = holder_of))
       -- an extension that could not wait for this claim gave it a later lease
       and not exists (select from bus.claims l
                        where outcome = 'lease_expired' and l.holder = holder_of and l.claim <> claim_of
                          and l.lease_until > clock_timestamp() and h.id = any (l.ids)
                          and l.attempts[array_position(l.ids, h.id)] = h.attempt)
     order by t.id limit max_rows for update of t skip locked
  loop
    -- the same by what is true now that the row is locked: an extension may have come through while it was waited for
    continue when outcome = 'lease_expired' and exists (
      select from bus.claims l
       where l.holder = holder_of and l.claim <> claim_of and l.lease_until > clock_timestamp() and m.id = any (l.ids)
         and l.attempts[array_position(l.ids, m.id)] = m.attempt);
    -- one whose group, or who awaits it, somebody has just locked as well
    continue when not bus.try_end(m.id);
    begin
      perform bus.record_event(outcome, t, actor, jsonb_build_object('holder', holder_of, 'attempt', m.attempt))
         from public.agent_messages t where t.id = m.id and outcome = 'lease_expired';
      if bus.settle_failure(m.id, m.attempt, outcome, holder_of, reason, true, null, actor, m.claimed_at) is not null then
        settled := settled + 1;
      end if;
    exception when others then
      -- it stays with its claim, and is tried again
      raise warning 'Message % cannot be taken back from %: %', m.id, holder_of, sqlerrm;
    end;
  end loop;
  left_over := exists (
    select from bus.claims c, unnest(c.ids, c.attempts) as h (id, attempt)
      join public.agent_messages t on t.id = h.id
     where c.holder = holder_of and c.claim = claim_of
       and ((t.status = 'queued' and t.attempts = h.attempt - 1)
            or (t.status = 'claimed' and t.attempts = h.attempt and t.claimed_by = holder_of))
       -- an extension that could not wait for this claim gave it a later lease
       and not exists (select from bus.claims l
                        where outcome = 'lease_expired' and l.holder = holder_of and l.claim <> claim_of
                          and l.lease_until > clock_timestamp() and h.id = any (l.ids)
                          and l.attempts[array_position(l.ids, h.id)] = h.attempt));
  -- limits go on counting what has a later lease; where that claim is locked, this one stays
  with later as materialized (
    select l.claim, c.tenant, c.limit_key
      from bus.claims c
      join bus.claims l on l.holder = c.holder and l.claim <> c.claim and not l.limited and l.ids && c.ids
     where c.holder = holder_of and c.claim = claim_of and c.limited and not left_over
       for update of l skip locked
  )
  update bus.claims l set limited = true, tenant = later.tenant, limit_key = later.limit_key
    from later where l.holder = holder_of and l.claim = later.claim;
  left_over := left_over or exists (
    select from bus.claims c
      join bus.claims l on l.holder = c.holder and l.claim <> c.claim and not l.limited and l.ids && c.ids
     where c.holder = holder_of and c.claim = claim_of and c.limited);
  if not left_over then
    delete from bus.claims c where c.holder = holder_of and c.claim = claim_of;
  end if;
end
$$;

-- as before; what a cancellation stumbles over keeps no lease
create or replace function bus.reclaim(max_rows integer default 500) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c record;
  back record;
  reclaimed integer := 0;
begin
  for c in
    select k.holder, k.claim from bus.claims k where k.lease_until <= (select clock_timestamp())
     order by k.lease_until limit max_rows for update skip locked
  loop
    back := bus.take_back(c.holder, c.claim, 'lease_expired', 'lease of ' || c.holder || ' expired', 'bus.reclaim',
                          max_rows - reclaimed);
    reclaimed := reclaimed + back.settled;
    exit when reclaimed >= max_rows;
  end loop;
  begin
    perform bus.settle_unsettled(max_rows);
  exception when others then
    raise warning 'What was cancelled cannot be followed up: %', sqlerrm;
  end;
  return reclaimed;
end
$$;

-- as before, each by itself and by the time that stands in the row, should that have been changed by hand
create or replace function bus.expire(max_rows integer default 200) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  m public.agent_messages;
  over uuid[];
  ended uuid[] := '{}';
  troubled uuid[] := '{}';
begin
  with over as (
    delete from bus.expiring e
     using (select x.at, x.id from bus.expiring x where x.at <= (select clock_timestamp())
             order by x.at, x.id limit max_rows for update skip locked) as o
     where e.at = o.at and e.id = o.id
    returning e.id)
  select array_agg(o.id) into over from over o;
  if over is null then
    return 0;
  end if;
  -- what somebody holds goes on; should it fail, there is no other attempt
  for m in
    select t.* from public.agent_messages t
     where t.id = any (over) and t.status = 'queued' and t.expires_at <= clock_timestamp()
       and not exists (select from bus.claims c where t.id = any (c.ids) and c.attempts[array_position(c.ids, t.id)] = t.attempts + 1)
     order by t.id for update of t skip locked
  loop
    continue when not bus.try_end(m.id);
    begin
      perform bus.unplace(m);
      delete from bus.joins j where j.id = m.id;
      if bus.settle_failure(m.id, m.attempts, 'failed', null,
           'time to live passed ' || coalesce('before another attempt, last error: ' || m.error, 'before it was started'),
           false, null, 'bus.expire') is not null then
        ended := ended || m.id;
      end if;
    exception when others then
      raise warning 'Message %, whose time to live has passed, cannot be ended: %', m.id, sqlerrm;
      troubled := troubled || m.id;
    end;
  end loop;
  -- every claim may come by here, so it waits for nobody: what somebody has locked is looked at a little later, after others,
  -- and what somebody holds when his lease ends, as he may hand it back
  insert into bus.expiring (at, id)
  select greatest((select max(c.lease_until) from bus.claims c where t.id = any (c.ids)), t.expires_at,
                  clock_timestamp() + case when t.id = any (troubled) then interval '1 minute' else interval '100 ms' end), t.id
    from public.agent_messages t
   where t.id = any (over) and t.id <> all (ended) and t.done_at is null and t.expires_at is not null;
  return cardinality(ended);
end
$$;

-- as before, each by itself
create or replace function bus.drop_unclaimable(holder text, claims bigint[], moment timestamptz) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  h record;
begin
  for h in
    select c.claim, c.version, u.id, u.attempt, m.status, m.attempts, m.expires_at
      from bus.claims c, unnest(c.ids, c.attempts) as u (id, attempt)
      left join public.agent_messages m on m.id = u.id
     where c.holder = drop_unclaimable.holder and c.claim = any (claims)
       and ((m.status = 'claimed' and m.attempts = u.attempt)
            or (m.status = 'queued' and m.attempts = u.attempt - 1 and (m.expires_at is null or m.expires_at > moment))) is not true
     order by u.id
  loop
    if h.status = 'queued' and h.attempts = h.attempt - 1 then
      -- who has it locked may wait for what this claim has; its lease ends, and then it is a dead letter
      perform from public.agent_messages m where m.id = h.id for update skip locked;
      continue when not found or not bus.try_end(h.id);
    end if;
    begin
      perform bus.settle_failure(h.id, h.attempts, 'failed', null, 'time to live passed before it was started', false, null, 'bus.claim')
        where h.status = 'queued' and h.attempts = h.attempt - 1;
    exception when others then
      -- whoever claims gets the others; it stays with the claim until the lease ends
      raise warning 'Message %, whose time to live has passed, cannot be ended: %', h.id, sqlerrm;
      continue;
    end;
    perform bus.let_go(drop_unclaimable.holder, array[h.claim], array[h.version], array[h.id], array[h.attempt]);
  end loop;
end
$$;

-- Groups and what awaits others are looked at again once they are locked, and a transaction that sees nothing of what others commit
-- meanwhile would leave them standing for ever.
create function bus.expect_to_see_commits() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
    raise exception 'Messages of groups, and those that await others, need the isolation READ COMMITTED'
      using errcode = 'invalid_transaction_state';
  end if;
end
$$;
comment on function bus.expect_to_see_commits() is 'Refuses a transaction in which a second look sees no more than the first.';
revoke all on function bus.expect_to_see_commits() from public, anon, authenticated;


-- as before, but for that
create or replace function bus.lock_group(lane bigint, tenant text, group_key text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform bus.expect_to_see_commits();
  perform pg_advisory_xact_lock(hashtextextended(lock_group.tenant || chr(10) || lock_group.group_key, lock_group.lane));
end
$$;


-- as before; who began to await one of them while it was waited for is locked with them, in the order of ids, and not after groups
create or replace function bus.lock_rows(messages uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  wanted uuid[];
begin
  perform bus.expect_to_see_commits()
    where exists (select from bus.awaited a where a.on_id = any (lock_rows.messages) or a.id = any (lock_rows.messages));
  loop
    wanted := lock_rows.messages || array(select a.id from bus.awaited a where a.on_id = any (lock_rows.messages));
    begin
      perform from public.agent_messages m where m.id = any (wanted) order by m.id for no key update;
      exit when not exists (select from bus.awaited a where a.on_id = any (lock_rows.messages) and a.id <> all (wanted));
      -- the locks of this look are given back with it
      raise exception using errcode = 'CG001', message = 'others have come to await them';
    exception when sqlstate 'CG001' then
      null;
    end;
  end loop;
end
$$;


-- as before; and whoever sent under a key that a follow-up names, since sending it locks that message
create or replace function bus.lock_ends(ids uuid[], follow_ups jsonb[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
begin
  -- what follow-ups await is locked once more when they are sent
  perform bus.lock_rows(lock_ends.ids || array(
    select a::uuid
      from unnest(lock_ends.follow_ups) as e, jsonb_array_elements(e) as f, jsonb_array_elements_text(nullif(f -> 'awaits', 'null')) as a)
    || array(
    select k.id
      from unnest(lock_ends.ids, lock_ends.follow_ups) as e (id, follow_ups)
      join public.agent_messages m on m.id = e.id
     cross join lateral jsonb_array_elements(e.follow_ups) as f
      join bus.keys k on k.tenant = coalesce(f ->> 'tenant', m.tenant) and k.idempotency_key = f ->> 'idempotency_key'));
  perform bus.lock_group(g.lane, g.tenant, g.group_key)
     from (select g.lane, g.tenant, g.group_key from bus.groups g
            where g.id = any (lock_ends.ids || array(select a.id from bus.awaited a where a.on_id = any (lock_ends.ids)))
           union
           select hashtextextended((f ->> 'service') || '/' || (f ->> 'role') || '/' || coalesce(f ->> 'shard', '0'), 0),
                  coalesce(f ->> 'tenant', m.tenant), f ->> 'group_key'
             from unnest(lock_ends.ids, lock_ends.follow_ups) as e (id, follow_ups)
             join public.agent_messages m on m.id = e.id
            cross join lateral jsonb_array_elements(e.follow_ups) as f
            where f ->> 'group_key' is not null
            order by 1, 2, 3) as g;
  perform from bus.claims c where c.limited and c.ids && lock_ends.ids order by c.holder, c.claim for update;
end
$$;

-- as before; claims are rewritten once, and not for each of their messages
create or replace function bus.cancel_open(open uuid[]) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  m public.agent_messages;
  held record;
  ended uuid[] := '{}';
  freed jsonb[] := '{}';
  grouped uuid[];
begin
  perform bus.lock_rows(open), bus.lock_groups(open);
  -- and then the claims that limits count
  perform from bus.claims c where c.limited and c.ids && open order by c.holder, c.claim for update;
  perform bus.unplace_many(open) where cardinality(open) > 1;
  for m in
    select t.* from public.agent_messages t where t.id = any (open) and t.status in ('queued', 'claimed') order by t.id
  loop
    select c.holder, c.claim, c.version, c.claimed_at, c.attempts[array_position(c.ids, m.id)] as attempt into held
      from bus.claims c
     where m.id = any (c.ids)
       and c.attempts[array_position(c.ids, m.id)] = m.attempts + (m.status = 'queued')::integer
       and (m.status = 'queued' or c.holder = m.claimed_by);
    if held.claim is null and cardinality(open) = 1 then
      perform bus.unplace(m);
    end if;
    update public.agent_messages as t
       set status = 'cancelled', done_at = clock_timestamp(), lease_until = null, retry_at = null,
           attempts = coalesce(held.attempt, t.attempts), claimed_by = coalesce(held.holder, t.claimed_by),
           claimed_at = coalesce(held.claimed_at, t.claimed_at)
     where t.id = m.id;
    if held.claim is not null then
      freed := freed || jsonb_build_object('holder', held.holder, 'claim', held.claim, 'version', held.version, 'id', m.id,
                                           'attempt', held.attempt);
      insert into bus.attempts (id, attempt, holder, started_at, outcome)
      values (m.id, held.attempt, held.holder, held.claimed_at, 'cancelled') on conflict do nothing;
    end if;
    perform bus.record_event('message_cancelled', m, 'bus.cancel', jsonb_build_object('was', case when held.claim is null then m.status else 'claimed' end));
    perform pg_notify('bus_cancel', m.id::text);
    ended := ended || m.id;
    grouped := case when m.group_key is not null then grouped || m.id else grouped end;
  end loop;
  perform bus.let_go(f.holder, array_agg(f.claim), array_agg(f.version), array_agg(f.id), array_agg(f.attempt))
     from unnest(freed) as e,
          jsonb_to_record(e) as f (holder text, claim bigint, version integer, id uuid, attempt smallint)
    group by f.holder order by f.holder;
  delete from bus.joins j where j.id = any (ended);
  -- none of a group is placed that ends here as well
  perform bus.after_end(ended, grouped);
  return cardinality(ended);
end
$$;

-- as before; what nobody has looked at yet comes first, a task is followed up once, by its last cancellation, and each of its messages by itself
create or replace function bus.settle_unsettled(max_rows integer) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  u bus.unsettled;
  late uuid;
  seen integer := 0;
begin
  delete from bus.unsettled d where d.id = any (array(
    select o.id from bus.unsettled o
     where o.id in (select n.id from (select t.id, max(t.id) over (partition by t.task) as last
                                        from bus.unsettled t where t.task is not null) as n
                     where n.id < n.last)
     for update skip locked));
  for u in select t.* from bus.unsettled t order by t.seen nulls first, t.id limit max_rows for update skip locked loop
    if u.at < clock_timestamp() - interval '1 hour' then
      delete from bus.unsettled t where t.id = u.id;
      continue;
    end if;
    if u.lane is not null then
      perform bus.count_claims(u.lane) where exists (select from bus.limits l where l.lane = u.lane);
    else
      for late in
        select t.id from public.agent_messages t
         where t.root_id = u.task and t.root_id <> t.id and t.status in ('queued', 'claimed') and t.replay_of is null
           and (t.created_at <= u.at or exists (
             with recursive sender as (
               select p.parent_id, p.status from public.agent_messages p where p.id = t.parent_id
               union all
               select p.parent_id, p.status from sender s join public.agent_messages p on p.id = s.parent_id
             )
             select from sender s where s.status = 'cancelled'))
         order by t.id limit max_rows - seen for update of t skip locked
      loop
        seen := seen + 1;
        continue when (select count(*) from (select from bus.claims c where late = any (c.ids) for update skip locked) as locked)
                    < (select count(*) from bus.claims c where late = any (c.ids));
        begin
          perform bus.cancel_open(array[late]), bus.announce_tasks(array[u.task]) where bus.try_end(late);
        exception when others then
          raise warning 'Message % of a cancelled task cannot be cancelled: %', late, sqlerrm;
        end;
      end loop;
      exit when seen >= max_rows;
    end if;
    -- somebody may have looked before his transaction had a number, but hardly a minute before
    if u.at < clock_timestamp() - interval '1 minute' and u.ahead <= pg_snapshot_xmin(pg_current_snapshot())
      and not exists (select from public.agent_messages t where t.root_id = u.task and t.root_id <> t.id
                         and t.status in ('queued', 'claimed') and t.replay_of is null and t.created_at <= u.at) then
      delete from bus.unsettled t where t.id = u.id;
    else
      update bus.unsettled t
         set seen = clock_timestamp(), ahead = coalesce(t.ahead, pg_snapshot_xmax(pg_current_snapshot())) where t.id = u.id;
    end if;
  end loop;
end
$$;

-- as before; to stand behind one that is gone or has ended is no place, and to wait for such is none
create or replace function bus.whereabouts() returns table (place text, id uuid)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select 'ready', unnest(r.ids) from bus.ready r
  union all select 'delayed', d.id from bus.delayed d
  union all
  select distinct 'claimed', m.id
    from bus.claims c, unnest(c.ids, c.attempts) as h (id, attempt)
    join public.agent_messages m on m.id = h.id
   where (m.status = 'queued' and m.attempts = h.attempt - 1)
      or (m.status = 'claimed' and m.attempts = h.attempt and m.claimed_by = c.holder)
  union all
  select 'joins', j.id from bus.joins j
   where exists (select from bus.awaited a join public.agent_messages m on m.id = a.on_id where a.id = j.id and m.done_at is null)
  union all
  select 'behind', g.id from bus.groups g
   where exists (select from bus.groups e join public.agent_messages m on m.id = e.id
                  where e.lane = g.lane and e.tenant = g.tenant and e.group_key = g.group_key and e.position < g.position
                    and m.done_at is null)
$$;


create function bus.mend_lines(max_rows integer default 1000) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  one uuid;
  mended integer := 0;
begin
  for one in
    select l.id
      from (select g.id from bus.groups g union select a.on_id from bus.awaited a) as l
      left join public.agent_messages m on m.id = l.id
     where m.id is null or m.done_at < clock_timestamp() - interval '1 minute'
     order by l.id limit max_rows
  loop
    -- for what somebody has locked there is a next time
    continue when not bus.try_end(one);
    begin
      perform bus.count_down(array[one]);
      perform bus.leave_group(one);
      mended := mended + 1;
    exception when others then
      raise warning 'Whoever stands behind or awaits message % cannot go on: %', one, sqlerrm;
    end;
  end loop;
  return mended;
end
$$;
comment on function bus.mend_lines(integer)
  is 'Lets those go on that stand behind, or await, messages which were removed or ended by hand; answers how many these were.';
revoke all on function bus.mend_lines(integer) from public, anon, authenticated;


-- as before; first those who stand behind what is gone or has ended
create or replace function bus.heal(max_rows integer default 1000) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  lost record;
  healed integer := 0;
begin
  healed := bus.mend_lines(max_rows);
  for lost in
    select w.id, w.status, m.attempts, m.claimed_by, m.group_key, m.awaiting
      from bus.misplaced() w join public.agent_messages m on m.id = w.id
     where w.places is null and m.created_at < clock_timestamp() - interval '1 minute'
     order by w.id limit max_rows for update of m skip locked
  loop
    if lost.awaiting then
      -- nothing is left that it awaits
      delete from bus.joins j where j.id = lost.id;
      update public.agent_messages m set awaiting = false where m.id = lost.id;
    end if;
    if lost.group_key is not null and not exists (select from bus.groups g where g.id = lost.id) then
      perform bus.settle_failure(lost.id, lost.attempts, 'lease_expired', lost.claimed_by, 'claim was lost', true, null, 'bus.heal')
        where lost.status = 'claimed';
      perform bus.join_groups(array[lost.id]);
    elsif lost.status = 'claimed' then
      perform bus.settle_failure(lost.id, lost.attempts, 'lease_expired', lost.claimed_by, 'claim was lost', true, null, 'bus.heal');
    elsif not exists (select from bus.groups g join bus.groups e using (lane, tenant, group_key)
                       where g.id = lost.id and e.position < g.position) then
      perform bus.place(array[lost.id]);
    end if;
    healed := healed + 1;
  end loop;
  return healed;
end
$$;
