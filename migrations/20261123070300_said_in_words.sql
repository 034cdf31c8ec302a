-- What cannot be meant is refused in words that name it: arrays of different lengths, fields, names, times to live. A batch whose
-- messages await each other costs by its length, and a key holds its message after retention has removed it.

create function bus.refuse_uneven(what text, size integer, names text[], sizes integer[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception '%', (
    select format('There are %s %s and %s %s: one for each', refuse_uneven.size, refuse_uneven.what, g.size, g.name)
      from unnest(refuse_uneven.names, refuse_uneven.sizes) with ordinality as g (name, size, place)
     where g.size <> refuse_uneven.size order by g.place limit 1)
    using errcode = 'invalid_parameter_value';
end
$$;
comment on function bus.refuse_uneven(text, integer, text[], integer[])
  is 'Says which of the arrays that belong together is longer or shorter than the first.';
revoke all on function bus.refuse_uneven(text, integer, text[], integer[]) from public, anon, authenticated, service_role;

-- as before; arrays of other lengths are refused, since what is missing of them was taken for null; null and an empty one are none
create or replace function bus.complete_batch(
  ids uuid[], attempts smallint[], holder text, results jsonb[], result_snippets text[], result_urls text[])
returns uuid[]
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  size constant integer := coalesce(cardinality(complete_batch.ids), 0);
  done record;
  grouped uuid[];
  roots uuid[];
  assigned boolean;
  freed text[];
begin
  -- they are read by place: what does not begin at 1, or has rows and columns, is none of theirs
  if size <> any (array[
    coalesce(cardinality(complete_batch.attempts), 0), array_upper(complete_batch.results, 1),
    array_upper(complete_batch.result_snippets, 1), array_upper(complete_batch.result_urls, 1)]) then
    perform bus.refuse_uneven('ids', size, array['attempts', 'results', 'result_snippets', 'result_urls'], array[
      coalesce(cardinality(complete_batch.attempts), 0), array_upper(complete_batch.results, 1),
      array_upper(complete_batch.result_snippets, 1), array_upper(complete_batch.result_urls, 1)]);
  end if;
  if exists (select from bus.awaited) and exists (select from bus.awaited a where a.on_id = any (complete_batch.ids)) then
    -- whoever ends or cancels those that wait takes all rows in one order as well
    perform bus.lock_rows(complete_batch.ids);
  end if;
  select d.done as ids, d.claim, d.last_claim, d.version, d.special, d.awaited, d.watched
    into done
    from bus.record_done(complete_batch.ids, complete_batch.attempts, complete_batch.holder, complete_batch.results,
                         complete_batch.result_snippets, complete_batch.result_urls) as d;
  if done.ids is null then
    return null;
  end if;
  if done.special then
    select array_agg(m.id) filter (where m.group_key is not null), array_agg(m.root_id) filter (where m.root_id <> m.id),
           bool_or(m.payload ? '__assignment')
      into grouped, roots, assigned
      from public.agent_messages m where m.id = any (done.ids);
  end if;
  -- groups before claims, of which limits may have to wait for one
  if done.awaited or grouped is not null then
    perform bus.after_end(done.ids, grouped);
  end if;
  if done.claim = done.last_claim then
    -- all of one claim, as a worker's batches are
    freed := bus.let_go_of(complete_batch.holder, done.claim, done.version, done.ids);
    if freed is not null then
      perform bus.announce(freed);
    end if;
  else
    perform bus.let_go(complete_batch.holder, array_agg(h.claim), array_agg(h.version), array_agg(h.id), array_agg(h.attempt))
       -- one that an extension gave a claim of its own stands in two, and is counted off once; of its attempts only the last
       -- can have been recorded, an earlier one given with it is stale
       from (select distinct on (k.id) k.claim, k.version, k.id, k.attempt
               from bus.held(complete_batch.holder, true) as k
               join unnest(complete_batch.ids, complete_batch.attempts) as g (id, attempt)
                 on g.id = k.id and g.attempt = k.attempt
              where k.id = any (done.ids) order by k.id, k.attempt desc, k.claim) as h;
  end if;
  if assigned then
    insert into public.bus_events (kind, tenant, message_id, root_id, route, actor, detail)
    select 'execute_done', m.tenant, m.id, m.root_id, m.service || '/' || m.role || '/' || m.shard,
           complete_batch.holder, bus.outcome_detail(m.*::public.agent_messages)
      from public.agent_messages m where m.id = any (done.ids) and m.payload ? '__assignment';
  end if;
  if done.watched then
    perform bus.announce_tasks(done.ids || roots);
  end if;
  return done.ids;
end
$$;

-- as before, and as in a completion
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
  size constant integer := coalesce(cardinality(fail_many.ids), 0);
  -- whose days these are is known before the statement begins: other parts are left out of it
  lowest constant uuid := (select i from unnest(fail_many.ids) as i order by i limit 1);
  highest constant uuid := (select i from unnest(fail_many.ids) as i order by i desc nulls last limit 1);
  ended record;
begin
  if size <> any (array[
    coalesce(cardinality(fail_many.attempts), 0), nullif(cardinality(fail_many.reasons), 0),
    nullif(cardinality(fail_many.retriable), 0), nullif(cardinality(fail_many.retry_ms), 0)]) then
    perform bus.refuse_uneven('ids', size, array['attempts', 'reasons', 'retriable', 'retry_ms'], array[
      coalesce(cardinality(fail_many.attempts), 0), nullif(cardinality(fail_many.reasons), 0),
      nullif(cardinality(fail_many.retriable), 0), nullif(cardinality(fail_many.retry_ms), 0)]);
  end if;
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

-- as before, and as in a completion
create or replace function bus.extend(ids uuid[], attempts smallint[], holder text, lease_ms bigint)
returns table (id uuid)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  until constant timestamptz := clock_timestamp() + least(greatest(extend.lease_ms, 100), 86400000) * interval '1 millisecond';
  kept record;
  one bus.claims;
  part record;
  to_do uuid[];
begin
  if coalesce(cardinality(extend.attempts), 0) <> coalesce(cardinality(extend.ids), 0) then
    perform bus.refuse_uneven('ids', coalesce(cardinality(extend.ids), 0), array['attempts'],
                              array[coalesce(cardinality(extend.attempts), 0)]);
  end if;
  -- who locks many rows locks them in the order of their ids, so that no two can wait for each other
  with given as materialized (
    select h.claim, g.id, g.attempt, h.claimed_at
      from unnest(extend.ids, extend.attempts) as g (id, attempt)
      join bus.held(extend.holder) h on h.id = g.id and h.attempt = g.attempt
  ), mine as materialized (
    select given.claim, m.id, given.attempt, given.claimed_at
      from given join public.agent_messages m on m.id = given.id
     where (m.status = 'queued' and m.attempts = given.attempt - 1)
        or (m.status = 'claimed' and m.attempts = given.attempt and m.claimed_by = extend.holder)
     order by m.id for update of m
  ), marked as (
    update public.agent_messages m
       set status = 'claimed', attempts = mine.attempt, claimed_by = extend.holder, claimed_at = mine.claimed_at,
           lease_until = until, retry_at = null
      from mine where m.id = mine.id and m.id = any (array(select one.id from mine as one))
    returning m.id, m.attempts, mine.claim
  )
  select array_agg(k.id) as ids, array_agg(k.attempts) as attempts, array_agg(distinct k.claim) as claims
    into kept from marked k;
  to_do := kept.ids;
  -- a second look finds what another extension has just moved to a claim of its own
  for look in 1..2 loop
    exit when coalesce(cardinality(to_do), 0) = 0;
    for one in
      select c.* from bus.claims c
       where c.holder = extend.holder and (c.claim = any (kept.claims) or (look = 2 and c.ids && to_do))
       order by c.claim for update skip locked
    loop
      select array_agg(h.id) filter (where k.id is not null) as ids,
             array_agg(h.attempt) filter (where k.id is not null) as attempts,
             array_agg(h.id) filter (where k.id is null and m.id is not null) as other_ids,
             array_agg(h.attempt) filter (where k.id is null and m.id is not null) as other_attempts
        into part
        from unnest(one.ids, one.attempts) as h (id, attempt)
        left join unnest(kept.ids, kept.attempts) as k (id, attempt) on k.id = h.id and k.attempt = h.attempt
        left join public.agent_messages m
          on m.id = h.id and ((m.status = 'queued' and m.attempts = h.attempt - 1)
                              or (m.status = 'claimed' and m.attempts = h.attempt and m.claimed_by = extend.holder));
      continue when part.ids is null;
      if part.other_ids is null then
        update bus.claims c set lease_until = until where c.holder = extend.holder and c.claim = one.claim;
      else
        -- a claim of which only a part is extended is split
        insert into bus.claims (holder, lane, route, tenant, limit_key, limited, claimed_at, lease_until, remaining, ids, attempts)
        values (extend.holder, one.lane, one.route, one.tenant, one.limit_key, one.limited, one.claimed_at, one.lease_until,
                cardinality(part.other_ids), part.other_ids, part.other_attempts);
        update bus.claims c
           set lease_until = until, remaining = cardinality(part.ids), version = c.version + 1, ids = part.ids,
               attempts = part.attempts
         where c.holder = extend.holder and c.claim = one.claim;
      end if;
      to_do := array(select k from unnest(to_do) as k except select k from unnest(part.ids) as k);
    end loop;
  end loop;
  if cardinality(to_do) > 0 then
    -- the claim is locked, as by a completion inside a long transaction: the others of it get a lease of their own, and
    -- bus.take_back leaves them alone when the old one ends. Limits count them in the old one.
    insert into bus.claims (holder, lane, route, claimed_at, lease_until, remaining, ids, attempts)
    select extend.holder, c.lane, c.route, c.claimed_at, until, count(*), array_agg(h.id), array_agg(h.attempt)
      from bus.claims c, unnest(c.ids, c.attempts) as h (id, attempt)
      join unnest(kept.ids, kept.attempts) as k (id, attempt) on k.id = h.id and k.attempt = h.attempt
     where c.holder = extend.holder and h.id = any (to_do)
     group by c.claim, c.lane, c.route, c.claimed_at;
  end if;
  return query select unnest(kept.ids);
end
$$;

-- as before, and as in a completion
create or replace function bus.defer(ids uuid[], attempts smallint[], holder text, delay_ms bigint, reason text) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  why constant text := left(coalesce(nullif(defer.reason, ''), 'no reason given'), 3900);
  worn record;
  freed record;
begin
  if coalesce(cardinality(defer.attempts), 0) <> coalesce(cardinality(defer.ids), 0) then
    perform bus.refuse_uneven('ids', coalesce(cardinality(defer.ids), 0), array['attempts'],
                              array[coalesce(cardinality(defer.attempts), 0)]);
  end if;
  -- as for bus.release: a message that nobody may work on must not go round for ever
  for worn in
    select m.id, h.attempt, h.claim, h.version, h.claimed_at
      from unnest(defer.ids, defer.attempts) as g (id, attempt)
      join bus.held(defer.holder, true) h on h.id = g.id and h.attempt = g.attempt
      join public.agent_messages m on m.id = g.id
     where m.released >= 1000 order by m.id
  loop
    if bus.settle_failure(worn.id, worn.attempt, 'released', defer.holder, 'handed back 1000 times, at last: ' || why, false,
                          null, defer.holder, worn.claimed_at) is not null then
      perform bus.let_go(defer.holder, array[worn.claim], array[worn.version], array[worn.id], array[worn.attempt]);
    end if;
  end loop;
  with mine as materialized (
    select m.id, h.attempt, h.claim, h.version, h.claimed_at
      from unnest(defer.ids, defer.attempts) as g (id, attempt)
      join bus.held(defer.holder, true) h on h.id = g.id and h.attempt = g.attempt
      join public.agent_messages m on m.id = g.id
     where (m.status = 'queued' and m.attempts = h.attempt - 1)
        or (m.status = 'claimed' and m.attempts = h.attempt and m.claimed_by = defer.holder)
     order by m.id for update of m
  ), given_back as (
    update public.agent_messages as t
       set status = 'queued', attempts = mine.attempt, lease_until = null, released = t.released + 1,
           claimed_by = defer.holder, claimed_at = mine.claimed_at, error = why, last_error_at = clock_timestamp(),
           -- each time a second more at least, up to 5 min: 1000 times take three days
           retry_at = clock_timestamp()
             + least(greatest(defer.delay_ms, 1000 * least(t.released, 300), 0), 3600000) * interval '1 millisecond'
      from mine where t.id = mine.id and t.id = any (array(select one.id from mine as one))
    returning t.id, t.root_id, mine.claim, mine.version, mine.attempt, mine.claimed_at
  ), told as (
    insert into bus.attempts (id, attempt, holder, started_at, outcome, error)
    select f.id, f.attempt, defer.holder, f.claimed_at, 'released', why from given_back f
    on conflict do nothing
  )
  select array_agg(f.id) as ids, array_agg(f.attempt) as attempts, array_agg(f.claim) as claims,
         array_agg(f.version) as versions, array_agg(distinct f.root_id) as tasks
    into freed from given_back f;
  if freed.ids is null then
    return 0;
  end if;
  perform bus.let_go(defer.holder, freed.claims, freed.versions, freed.ids, freed.attempts);
  perform bus.place(freed.ids);
  perform bus.announce_tasks(freed.tasks);
  return cardinality(freed.ids);
end
$$;

-- as before, and as in a completion
create or replace function bus.enqueue_payloads(
  service text, role text, tenant text, payloads jsonb[], headers jsonb[] default null, shard integer default 0,
  ids uuid[] default null)
returns uuid[]
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_variable
declare
  size constant integer := coalesce(cardinality(enqueue_payloads.payloads), 0);
  its_route constant text := service || '/' || role || '/' || shard;
  moment constant timestamptz := clock_timestamp();
  today constant date := (moment at time zone 'UTC')::date;
  part constant text := 'messages_' || to_char(today, 'YYYYMMDD');
  its_table constant regclass := to_regclass('bus.' || part);
  made uuid[];
  placed uuid[] := '{}';
  settings record;
begin
  if size <> any (array[
    nullif(cardinality(enqueue_payloads.headers), 0), cardinality(enqueue_payloads.ids)]) then
    perform bus.refuse_uneven('payloads', size, array['headers', 'ids'], array[
      nullif(cardinality(enqueue_payloads.headers), 0), cardinality(enqueue_payloads.ids)]);
  end if;
  if ids is null then
    made := array(select bus.uuid_v7() from generate_series(1, cardinality(payloads)));
    ids := made;
  elsif array_ndims(ids) <> 1 or array_lower(ids, 1) <> 1 then
    -- pieces are cut from it by place
    ids := array(select unnest(ids));
  end if;
  select r.aging_ms, r.draining is not true and shard between 0 and 65535
         and exists (select from pg_inherits i where i.inhrelid = its_table and i.inhparent = 'public.agent_messages'::regclass)
         and not exists (select from pg_class c
                          where c.oid in ('public.agent_messages'::regclass, its_table) and c.relhasrules)
         -- a trigger that somebody put there (4: upon insert) sees the statements, and what it makes of a row counts
         and not exists (select from pg_trigger t
                          where t.tgrelid in ('public.agent_messages'::regclass, its_table) and t.tgtype & 4 = 4
                            and t.tgname not in ('before_insert', 'after_insert')) as plain
    into settings
    from (select) as one
    left join bus.routes r on r.lane = hashtextextended(its_route, 0);
  if settings.plain then
    placed := bus.insert_plain(
      part, service, role, shard, tenant, ids, payloads, headers,
      -- as bus.first_id, of which two calls take as long as twenty messages
      (lpad(to_hex((today - date '1970-01-01') * 86400000::bigint), 12, '0') || repeat('0', 20))::uuid,
      (lpad(to_hex((today + 1 - date '1970-01-01') * 86400000::bigint), 12, '0') || repeat('0', 20))::uuid);
  else
    insert into public.agent_messages (id, root_id, service, role, shard, tenant, payload, headers)
    select g.id, g.id, service, role, shard, tenant, g.payload, coalesce(g.headers, '{}')
      from (select unnest(ids) as id, unnest(payloads) as payload, unnest(headers) as headers) as g;
  end if;
  insert into bus.ready (lane, share, due, attempt, route, tenant, ids)
  select hashtextextended(its_route, 0), hashtext(tenant),
         (date_part('epoch', moment) * 1000000)::bigint + 100 * 1000::bigint * coalesce(settings.aging_ms, 10000),
         1, its_route::bus.route_name, tenant::bus.tenant_name, placed[place:place + 99]
    from generate_series(1, cardinality(placed), 100) as place;
  return made;
end
$$;

-- as before; those sent with it are looked up once, not for each that it awaits
create or replace function bus.await(waiting uuid, its_tenant text, on_ids uuid[], with_it uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  open uuid[];
  stranger uuid;
begin
  -- waits for ends that are under way; those that begin later find the row in bus.awaited
  perform from public.agent_messages m where m.id = any (on_ids) order by m.id for share;
  select i into stranger from (select unnest(on_ids) except select unnest(with_it)) as given (i)
   where i is not null and not exists (select from public.agent_messages m where m.id = i and m.tenant = its_tenant) limit 1;
  if stranger is not null or waiting = any (on_ids) then
    raise exception 'Message % cannot be awaited: its tenant has none before this one', coalesce(stranger, waiting)
      using errcode = 'foreign_key_violation';
  end if;
  open := array(
    select distinct i from unnest(on_ids) as i
     where not exists (select from public.agent_messages m where m.id = i and m.done_at is not null));
  if cardinality(open) > 0 then
    insert into bus.joins (id, missing) values (waiting, cardinality(open));
    insert into bus.awaited (on_id, id) select i, waiting from unnest(open) as i;
  end if;
end
$$;

-- as before; one that bus.hold_keys has held for this message becomes its own here
create or replace function bus.take_key(tenant text, idempotency_key text, id uuid, window_ms bigint) returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  owner uuid;
begin
  if take_key.window_ms not between 1 and 315576000000 then
    raise exception 'An idempotency key is kept for 1 ms to 10 years' using errcode = 'invalid_parameter_value';
  end if;
  loop
    -- waits for a concurrent sender of the same key
    insert into bus.keys as k (tenant, idempotency_key, id, until)
    values (take_key.tenant, take_key.idempotency_key, take_key.id,
            clock_timestamp() + coalesce(take_key.window_ms, 2592000000) * interval '1 millisecond')
    on conflict (tenant, idempotency_key) do update set id = excluded.id, until = excluded.until
     where k.until <= clock_timestamp() and (k.id <> excluded.id or k.until = '-infinity')
    returning k.id into owner;
    if owner is null then
      select k.id into owner from bus.keys k
       where k.tenant = take_key.tenant and k.idempotency_key = take_key.idempotency_key;
    end if;
    -- none: retention has just removed it
    exit when owner is not null;
  end loop;
  return owner;
end
$$;

-- as before; what is held is told from what was sent, so that whoever holds it sends, and another message under the same key may
-- where this one does not come to be sent
create or replace function bus.hold_keys(
  messages uuid[], inout follow_ups jsonb[], out senders uuid[], out tenants text[], out keys text[], out ids uuid[])
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_variable
declare
  one record;
  last_tenant text;
  last_key text;
begin
  follow_ups := array(
    select (select jsonb_agg(case when f ->> 'idempotency_key' is null then f
                                  else f || jsonb_build_object('id', coalesce(f ->> 'id', bus.uuid_v7()::text)) end order by o)
              from jsonb_array_elements(e.sent) with ordinality as t (f, o))
      from unnest(follow_ups) with ordinality as e (sent, place) order by e.place);
  for one in
    select m.id as sender, coalesce(f ->> 'tenant', m.tenant) as tenant, f ->> 'idempotency_key' as key, (f ->> 'id')::uuid as id
      from unnest(messages, follow_ups) as e (id, sent)
      join public.agent_messages m on m.id = e.id
     cross join lateral jsonb_array_elements(e.sent) with ordinality as t (f, o)
     where f ->> 'idempotency_key' is not null
     order by 2, 3, m.id, o
  loop
    continue when (one.tenant, one.key) = (last_tenant, last_key);
    last_tenant := one.tenant;
    last_key := one.key;
    -- one that has had it before keeps it
    continue when exists (select from bus.keys k
                           where k.tenant = one.tenant and k.idempotency_key = one.key and k.id = one.id);
    -- waits for a concurrent sender of the same key
    insert into bus.keys as k (tenant, idempotency_key, id, until)
    values (one.tenant, one.key, one.id, '-infinity')
    on conflict (tenant, idempotency_key) do update set id = excluded.id, until = excluded.until
     where k.until <= clock_timestamp();
    if found then
      senders := senders || one.sender;
      tenants := tenants || one.tenant;
      keys := keys || one.key;
      ids := ids || one.id;
    end if;
  end loop;
end
$$;

-- Strict, so that it costs nothing where there is no ttl.
create function bus.expiry(ttl_ms bigint, message jsonb) returns timestamptz
language plpgsql strict
set search_path = pg_catalog, pg_temp
as $$
begin
  -- what is left of a parent's time may be nothing
  if ttl_ms <= 0 and message ->> 'parent_id' is null then
    raise exception 'ttl_ms is %: the time to live of a message is 1 ms at least, and without one it waits for ever', ttl_ms
      using errcode = 'invalid_parameter_value';
  end if;
  return clock_timestamp() + ttl_ms * interval '1 millisecond';
end
$$;
comment on function bus.expiry(bigint, jsonb) is 'Until when a message that is sent now may be started.';
revoke all on function bus.expiry(bigint, jsonb) from public, anon, authenticated, service_role;

-- as before; what a batch awaits of itself is looked up once for all, what was sent within the window of its key is a duplicate
-- though retention has removed it, a message that has no time to live is refused, and an unknown field with those there are
create or replace function bus.enqueue_many(messages jsonb)
returns table (ord bigint, id uuid, duplicate boolean)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  batch record;
  owners uuid[];
  one record;
  owner uuid;
  last_tenant text;
  last_key text;
  sent_before boolean;
  known constant text[] := array[
    'id', 'service', 'role', 'shard', 'tenant', 'payload', 'priority', 'max_attempts', 'delay_ms', 'ttl_ms', 'root_id',
    'parent_id', 'reply_to', 'idempotency_key', 'idempotency_ms', 'group_key', 'limit_key', 'target_instance', 'headers',
    'awaits'];
begin
  if jsonb_typeof(messages) <> 'array' then
    raise exception 'Messages must be a JSON array' using errcode = 'invalid_parameter_value';
  end if;
  select array_agg(coalesce((e.m ->> 'id')::uuid, bus.uuid_v7()) order by e.o) as ids,
         max((select k from jsonb_object_keys(e.m - known) as k limit 1)) as unknown,
         coalesce(bool_or(e.m ->> 'idempotency_key' is not null), false) as keyed,
         coalesce(bool_or(nullif(e.m -> 'awaits', 'null') is not null), false) as awaiting
    into batch
    from jsonb_array_elements(messages) with ordinality as e (m, o);
  if batch.unknown is not null then
    raise exception 'Unknown message field %: a message has %', batch.unknown, array_to_string(known, ', ')
      using errcode = 'invalid_parameter_value';
  end if;
  owners := batch.ids;

  if batch.keyed then
    -- keys in one order, so that two senders cannot wait for each other
    for one in
      select e.o, e.m ->> 'tenant' as tenant, e.m ->> 'idempotency_key' as key, (e.m ->> 'idempotency_ms')::bigint as window_ms,
             e.m ->> 'id' is not null as named
        from jsonb_array_elements(messages) with ordinality as e (m, o)
       where e.m ->> 'idempotency_key' is not null and e.m ->> 'tenant' is not null
       order by 2, 3, 1
    loop
      if (one.tenant, one.key) = (last_tenant, last_key) then
        -- twice in one batch is once, however short its window, and under one id as well
        owners[one.o] := owner;
        batch.ids[one.o] := nullif(batch.ids[one.o], owner);
      else
        -- retention may have removed it since
        sent_before := one.named and exists (
          select from bus.keys k
           where k.tenant = one.tenant and k.idempotency_key = one.key and k.id = batch.ids[one.o] and k.until > clock_timestamp());
        owner := bus.take_key(one.tenant, one.key, batch.ids[one.o], one.window_ms);
        owners[one.o] := owner;
        if sent_before or one.named and owner = batch.ids[one.o]
          and exists (select from public.agent_messages m where m.id = owner) then
          -- sent again under its own id
          batch.ids[one.o] := null;
        elsif one.named and owner = batch.ids[one.o] then
          -- its window had passed, and begins anew
          update bus.keys k set until = clock_timestamp() + coalesce(one.window_ms, 2592000000) * interval '1 millisecond'
           where k.tenant = one.tenant and k.idempotency_key = one.key and k.until <= clock_timestamp();
        end if;
        last_tenant := one.tenant;
        last_key := one.key;
      end if;
    end loop;
  end if;
  if batch.awaiting then
    -- as bus.await locks them for each
    perform from public.agent_messages m
      where m.id = any (array(select a::uuid from jsonb_array_elements(messages) as e (m), jsonb_array_elements_text(nullif(e.m -> 'awaits', 'null')) as a)
                        || owners)
      order by m.id for share;
    for one in
      with given as materialized (
        select coalesce(s.id, s.owner) as id, s.owner, s.place, s.id = s.owner as is_new
          from unnest(batch.ids, owners) with ordinality as s (id, owner, place)
      ), wanted as materialized (
        select e.o as place, e.m ->> 'tenant' as tenant, a::uuid as on_id
          from jsonb_array_elements(messages) with ordinality as e (m, o)
         cross join lateral jsonb_array_elements_text(nullif(e.m -> 'awaits', 'null')) as a
         where owners[e.o] = batch.ids[e.o]
      )
      select batch.ids[w.place] as id, w.tenant, array_agg(coalesce(known.owner, w.on_id)) as on_ids,
             -- of the batch only what stands before it, so that no two wait for each other
             coalesce(array_agg(fresh.id) filter (where fresh.place < w.place), '{}') as with_it
        from wanted w
        left join (select distinct on (g.id) g.id, g.owner from given g order by g.id, g.place) as known on known.id = w.on_id
        left join (select g.id, g.place from given g where g.is_new) as fresh on fresh.id = coalesce(known.owner, w.on_id)
       -- a key may outlive its message, which has ended then
       where known.id is null or fresh.id is not null
          or (select true from public.agent_messages m where m.id = known.owner)
       group by w.place, w.tenant
       order by 1
    loop
      perform bus.await(one.id, one.tenant, one.on_ids, one.with_it);
    end loop;
  end if;

  insert into public.agent_messages
         (id, service, role, shard, tenant, payload, priority, max_attempts, retry_at, expires_at,
          root_id, parent_id, reply_to, idempotency_key, group_key, limit_key, target_instance, headers, awaiting)
  select batch.ids[e.o], e.m ->> 'service', e.m ->> 'role', coalesce((e.m ->> 'shard')::integer, 0),
         e.m ->> 'tenant', coalesce(e.m -> 'payload', '{}'),
         coalesce((e.m ->> 'priority')::smallint, 100::smallint),
         coalesce((e.m ->> 'max_attempts')::smallint, 5::smallint),
         clock_timestamp() + nullif((e.m ->> 'delay_ms')::bigint, 0) * interval '1 millisecond',
         bus.expiry((e.m ->> 'ttl_ms')::bigint, e.m),
         coalesce((e.m ->> 'root_id')::uuid, batch.ids[e.o]), (e.m ->> 'parent_id')::uuid, e.m ->> 'reply_to',
         e.m ->> 'idempotency_key', e.m ->> 'group_key', e.m ->> 'limit_key', e.m ->> 'target_instance',
         coalesce(e.m -> 'headers', '{}'),
         batch.awaiting and nullif(e.m -> 'awaits', 'null') is not null and exists (select from bus.joins j where j.id = batch.ids[e.o])
    from jsonb_array_elements(messages) with ordinality as e (m, o)
   where owners[e.o] = batch.ids[e.o]
   order by e.o;

  return query select o, owners[o], owners[o] is distinct from batch.ids[o] from generate_series(1, cardinality(owners)::bigint) as o;
end
$$;

-- The names of the rules say them: a domain has no other words.
alter domain bus.route_name rename constraint service_role_and_tenant_are_names to "service_and_role_match_[a-z][a-z0-9-]{0,62}";
alter domain bus.tenant_name rename constraint service_role_and_tenant_are_names
  to "tenant_has_letters_digits_then_.:@-_underscore_at_most_128";
alter table bus.schedules rename constraint schedules_service_check to "service_matches_[a-z][a-z0-9-]{0,62}";
alter table bus.schedules rename constraint schedules_role_check to "role_matches_[a-z][a-z0-9-]{0,62}";
alter table bus.schedules rename constraint schedules_tenant_check to "tenant_has_letters_digits_then_.:@-_underscore_at_most_128";
alter table bus.schedules rename constraint schedules_shard_check to shard_between_0_and_65535;
alter table bus.schedules rename constraint schedules_priority_check to priority_between_0_and_1000;
alter table bus.schedules rename constraint schedules_max_attempts_check to max_attempts_between_1_and_1000;
alter table bus.schedules rename constraint schedules_ttl_ms_check to ttl_ms_between_1_and_31536000000;
alter table bus.schedules rename constraint schedules_catch_up_cap_check to catch_up_cap_between_1_and_1000;

-- as before; run-once is said for run_once at the command line, and what else is wrong is named
create or replace function bus.upsert_schedule(
  name text, cron text, service text, role text, tenant text, payload jsonb default '{}', time_zone text default 'UTC',
  shard integer default 0, priority integer default 100, max_attempts integer default 5, ttl_ms bigint default null,
  missed text default 'run_once', catch_up_cap integer default 100)
returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  expression text := btrim(regexp_replace(upsert_schedule.cron, '\s+', ' ', 'g'));
  policy constant text := replace(upsert_schedule.missed, '-', '_');
  created boolean;
begin
  if (upsert_schedule.name ~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$') is not true then
    raise exception 'The name of a schedule is a letter or digit and up to 99 more or "_", "." and "-", not %',
      coalesce(quote_literal(upsert_schedule.name), 'null') using errcode = 'invalid_parameter_value';
  end if;
  if (policy in ('skip', 'run_once', 'run_all')) is not true then
    raise exception 'missed can be skip, run_once or run_all, not %', coalesce(quote_literal(upsert_schedule.missed), 'null')
      using errcode = 'invalid_parameter_value';
  end if;
  if not exists (select from pg_timezone_names z where z.name = upsert_schedule.time_zone) then
    raise exception 'Time zone % is not known', upsert_schedule.time_zone using errcode = 'invalid_parameter_value';
  end if;
  insert into bus.schedules as s
         (tenant, name, cron, time_zone, service, role, shard, payload, priority, max_attempts, ttl_ms, missed, catch_up_cap)
  values (upsert_schedule.tenant, upsert_schedule.name, expression, upsert_schedule.time_zone, upsert_schedule.service,
          upsert_schedule.role, upsert_schedule.shard, upsert_schedule.payload, upsert_schedule.priority::smallint,
          upsert_schedule.max_attempts::smallint, upsert_schedule.ttl_ms, policy,
          upsert_schedule.catch_up_cap::smallint)
  on conflict (tenant, name) do update
     set cron = excluded.cron, time_zone = excluded.time_zone, service = excluded.service, role = excluded.role,
         shard = excluded.shard, payload = excluded.payload, priority = excluded.priority,
         max_attempts = excluded.max_attempts, ttl_ms = excluded.ttl_ms, missed = excluded.missed,
         catch_up_cap = excluded.catch_up_cap, revision = s.revision + 1, updated_at = excluded.updated_at,
         -- the same times said again, as every deployment does, must not lose an occurrence that is due
         next_at = case when (s.cron, s.time_zone) = (excluded.cron, excluded.time_zone) then s.next_at end,
         since = case when (s.cron, s.time_zone) = (excluded.cron, excluded.time_zone) then s.since else excluded.since end,
         -- what was broken gets another chance, what people paused stays paused
         paused = s.paused and s.last_error is null, last_error = null
  -- nobody has updated what was just inserted
  returning s.xmax = 0 into created;
  return created;
end
$$;

-- as before; a route without its shard is that of shard 0
create or replace function bus.replay_many(
  route text default null, error_like text default null, per_second double precision default 50,
  max_messages integer default 1000)
returns table (dead_letter uuid, id uuid)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  its_route constant text := replay_many.route || case when replay_many.route ~ '^[^/]+/[^/]+$' then '/0' else '' end;
  dead uuid[];
  one record;
begin
  if (replay_many.per_second > 0 and replay_many.per_second < 'infinity') is not true then
    raise exception 'A rate must be positive' using errcode = 'invalid_parameter_value';
  end if;
  dead := array(
    select d.id
      from bus.dead_letters d
      join public.agent_messages m on m.id = d.id and m.status = 'failed'
     where (its_route is null or d.route = its_route)
       and (replay_many.error_like is null or m.error like replay_many.error_like)
       and not exists (select from public.agent_messages r
                        where r.root_id = m.root_id and r.root_id <> r.id and r.replay_of = m.id
                          and r.status <> 'cancelled')
       -- of a task whose beginning somebody has removed nothing can be sent
       and exists (select from public.agent_messages t where t.id = m.root_id)
     order by d.failed_at, d.id limit replay_many.max_messages);
  -- what bus.replay_after locks, all rows in the order of their ids and then all groups
  for one in
    select r.id, bool_or(r.is_dead) as is_dead
      from (select m.id, true from public.agent_messages m where m.id = any (dead)
            union all
            select m.root_id, false from public.agent_messages m where m.id = any (dead)) as r (id, is_dead)
     group by r.id order by r.id
  loop
    if one.is_dead then
      perform from public.agent_messages m where m.id = one.id for update;
    else
      perform from public.agent_messages m where m.id = one.id for key share;
    end if;
  end loop;
  -- some may have been replayed or removed by those who had them before
  dead := array(
    select o.id from unnest(dead) with ordinality as o (id, place)
      join public.agent_messages m on m.id = o.id and m.status = 'failed'
     where not exists (select from public.agent_messages r
                        where r.root_id = m.root_id and r.root_id <> r.id and r.replay_of = m.id
                          and r.status <> 'cancelled')
     order by o.place);
  perform bus.lock_group(g.lane, g.tenant, g.group_key)
     from (select distinct bus.lane(m.service || '/' || m.role || '/' || m.shard, null), m.tenant, m.group_key
             from public.agent_messages m where m.id = any (dead) and m.group_key is not null
            order by 1, 2, 3) as g (lane, tenant, group_key);
  return query
  select o.id, bus.replay_after(o.id, ((o.place - 1) * 1000 / replay_many.per_second)::bigint)
    from unnest(dead) with ordinality as o (id, place);
end
$$;

-- as before; an attempt beyond all numbers of attempts is lost like any other that is not the holder's
create or replace function bus.held_by(holder text, held jsonb) returns table (id uuid, attempt smallint, until timestamptz)
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select g.id, g.attempt, m.until
    from (select e.key::uuid as id, least(e.value::bigint, 32767)::smallint as attempt from jsonb_each_text(held_by.held) as e) as g
    left join lateral (
      select max(c.lease_until) as until
        from public.agent_messages m
        join bus.claims c on c.holder = held_by.holder and c.lease_until > clock_timestamp() and g.id = any (c.ids)
       where m.id = g.id and c.attempts[array_position(c.ids, g.id)] = g.attempt
         and ((m.status = 'queued' and m.attempts = g.attempt - 1)
              or (m.status = 'claimed' and m.attempts = g.attempt and m.claimed_by = held_by.holder))) as m on true
$$;

-- as before; to do nothing is no action
create or replace function bus.steer(service text, role text, shard integer, action text, changed_by text default null) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  its_lane bigint;
begin
  if (action in ('pause', 'resume', 'drain', 'open')) is not true then
    raise exception 'A route can be paused, resumed, drained or opened: action is pause, resume, drain or open, not %',
      coalesce(action, 'null') using errcode = 'invalid_parameter_value';
  end if;
  its_lane := bus.route_settings(steer.service, steer.role, steer.shard, steer.changed_by);
  update bus.routes r
     set paused = case action when 'pause' then true when 'resume' then false else r.paused end,
         draining = case action when 'drain' then true when 'open' then false else r.draining end
   where r.lane = its_lane;
  insert into public.bus_events (kind, tenant, route, actor, detail)
  values ('route_' || action, 'system', steer.service || '/' || steer.role || '/' || steer.shard,
          coalesce(changed_by, session_user), '{}');
  perform bus.announce(array[steer.service || '/' || steer.role || '/' || steer.shard]) where action = 'resume';
end
$$;

-- as before; says what is missing
create or replace function bus.watch_new(task uuid, watcher text, for_ms bigint, ends_only boolean default false) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if watch_new.watcher is null or watch_new.for_ms is null then
    raise exception 'A watch needs a watcher and for_ms, and % is null',
      case when watch_new.watcher is null then 'watcher' else 'for_ms' end using errcode = 'invalid_parameter_value';
  end if;
  -- those who stopped waiting are forgotten by those who start
  delete from bus.watchers
   where ctid = any (array(select w.ctid from bus.watchers w where w.until < (select clock_timestamp()) limit 10
                              for update skip locked));
  insert into bus.watchers (root_id, watcher, until, ends_only)
  values (watch_new.task, watch_new.watcher, clock_timestamp() + watch_new.for_ms * interval '1 millisecond',
          watch_new.ends_only)
  on conflict (root_id, watcher) do update
    set until = greatest(bus.watchers.until, excluded.until), ends_only = bus.watchers.ends_only and excluded.ends_only;
end
$$;

-- as before; says what is missing
create or replace function bus.put_artifact(tenant text, media_type text, content bytea, expected_digest text default null)
returns table (digest text, known_media_type text, size integer, created boolean)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  computed constant text := encode(sha256(put_artifact.content), 'hex');
begin
  if num_nulls(put_artifact.tenant, put_artifact.media_type, put_artifact.content) > 0 then
    raise exception 'An artifact needs tenant, media_type and content, and % is null',
      case when put_artifact.tenant is null then 'tenant' when put_artifact.media_type is null then 'media_type' else 'content' end
      using errcode = 'invalid_parameter_value';
  end if;
  if expected_digest <> computed then
    raise exception 'The bytes have the digest %, not %', computed, left(expected_digest, 64)
      using errcode = 'invalid_parameter_value';
  end if;
  -- until it stands: retention may remove a known one between the two looks
  loop
    insert into bus.artifacts (digest, tenant, media_type, size)
    values (computed, put_artifact.tenant, put_artifact.media_type, octet_length(put_artifact.content))
    on conflict do nothing;
    if found then
      insert into bus.artifact_contents (digest, tenant, content)
      values (computed, put_artifact.tenant, put_artifact.content);
      return query select computed, put_artifact.media_type, octet_length(put_artifact.content), true;
      return;
    end if;
    return query
    update bus.artifacts as a set last_used_at = clock_timestamp()
     where a.digest = computed and a.tenant = put_artifact.tenant
    returning a.digest, a.media_type, a.size, false;
    exit when found;
  end loop;
end
$$;

-- as before; says what is missing
create or replace function bus.emit(
  id uuid, holder text, attempt smallint, first_seq integer, contents jsonb[], lease_ms bigint default null)
returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  last_attempt smallint;
  last_seq integer;
  bytes bigint;
  -- a lease that is longer than the usual one stays as it is, unless the caller says what it shall be
  lease_left bigint := greatest(30000, (
    select ceil(date_part('epoch', max(c.lease_until) - clock_timestamp()) * 1000) from bus.claims c
     where c.holder = emit.holder and emit.id = any (c.ids)));
begin
  if (emit.first_seq >= 1) is not true then
    raise exception 'Partials are numbered from 1' using errcode = 'invalid_parameter_value';
  end if;
  if emit.contents is null or array_position(emit.contents, null) is not null then
    raise exception 'A partial needs its content, and % is null: that of JSON is ''null''::jsonb',
      coalesce('contents[' || array_position(emit.contents, null) || ']', 'contents') using errcode = 'invalid_parameter_value';
  end if;
  -- the fence is that of a heartbeat, and it keeps the claim in its state until this commits
  if not exists (select from bus.extend(array[emit.id], array[emit.attempt], emit.holder,
                                       coalesce(emit.lease_ms, lease_left))) then
    return null;
  end if;
  select p.attempt, p.seq, p.total_bytes into last_attempt, last_seq, bytes
    from bus.partials p where p.message_id = emit.id order by p.attempt desc, p.seq desc limit 1;
  if last_attempt < emit.attempt then
    delete from bus.partials p where p.message_id = emit.id and p.attempt < emit.attempt;
    last_seq := null;
    bytes := null;
  end if;
  -- a reader goes by the last number it has, so one that came later would never be seen
  if emit.first_seq > last_seq + 1 then
    raise exception 'Partial % would leave a gap after %', emit.first_seq, last_seq
      using errcode = 'invalid_parameter_value';
  end if;
  insert into bus.partials (message_id, attempt, seq, content, total_bytes)
  select emit.id, emit.attempt, emit.first_seq + e.place - 1, e.content,
         coalesce(bytes, 0) + sum(pg_column_size(e.content)) over (order by e.place)
    from unnest(emit.contents) with ordinality as e (content, place)
   where emit.first_seq + e.place - 1 > coalesce(last_seq, 0)
   order by e.place
  on conflict do nothing;
  if found then
    perform bus.announce_tasks(array(select m.root_id from public.agent_messages m where m.id = emit.id));
  end if;
  return greatest(last_seq, emit.first_seq + coalesce(cardinality(emit.contents), 0) - 1);
end
$$;
