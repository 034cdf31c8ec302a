-- One message at a time for less: a plain one is placed after one look, many small claims are deleted at once, and a
-- message for later is only told of when it is due before all others of its route.

-- ---------------------------------------------------------------- sending

create or replace function bus.after_insert() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_sort = off
set enable_seqscan = off
as $$
declare
  batch record;
  one record;
  closed text;
begin
  -- a plain message alone needs few looks
  select n.id, n.service || '/' || n.role || '/' || n.shard as route, n.target_instance, n.tenant, n.limit_key, n.priority,
         n.created_at, n.expires_at, count(*) over () as size,
         n.retry_at is null and n.group_key is null and not n.awaiting and n.root_id = n.id and n.parent_id is null
           and n.replay_of is null and jsonb_typeof(n.payload) = 'object' and pg_column_size(n.payload) <= 1048576
           and jsonb_typeof(n.headers) = 'object' and pg_column_size(n.headers) <= 16384 and n.priority between 0 and 1000
           and n.max_attempts between 1 and 1000 and n.shard between 0 and 65535
           and coalesce(length(n.reply_to) <= 200, true) and coalesce(length(n.idempotency_key) between 1 and 200, true)
           and coalesce(length(n.limit_key) between 1 and 200, true) and coalesce(length(n.target_instance) <= 200, true)
           and coalesce(isfinite(n.expires_at), true) and r.draining is not true as plain,
         r.keyed, r.aging_ms
    into one
    from (select * from new_rows limit 2) as n
    left join bus.routes r on r.lane = hashtextextended(n.service || '/' || n.role || '/' || n.shard, 0);
  if one.size = 1 and one.plain then
    insert into bus.ready (lane, share, due, attempt, route, tenant, limit_key, ids)
    values (hashtextextended(one.route || coalesce('>' || one.target_instance, ''), 0),
            hashtext(one.tenant || case when one.keyed then coalesce('/' || one.limit_key, '') else '' end),
            (date_part('epoch', one.created_at) * 1000000)::bigint + one.priority * 1000::bigint * coalesce(one.aging_ms, 10000),
            1, one.route, one.tenant, one.limit_key, array[one.id]);
    if one.expires_at is not null then
      insert into bus.expiring (at, id) values (one.expires_at, one.id);
    end if;
    return null;
  end if;

  select count(*) as size, count(n.retry_at) > 0 as delayed, count(n.expires_at) > 0 as expiring,
         count(n.group_key) > 0 as grouped, bool_or(n.awaiting) as awaiting, bool_or(n.root_id <> n.id) as steps,
         exists (select from bus.routes r where r.draining) as draining,
         min(case
           when jsonb_typeof(n.payload) <> 'object' then 'payload_is_an_object'
           when pg_column_size(n.payload) > 1048576 + case when n.parent_id is null then 0 else 65536 end then 'payload_at_most_1_mib'
           when jsonb_typeof(n.headers) <> 'object' then 'headers_are_an_object'
           when pg_column_size(n.headers) > 16384 then 'headers_at_most_16_kib'
           when n.priority not between 0 and 1000 then 'priority_between_0_and_1000'
           when n.max_attempts not between 1 and 1000 then 'max_attempts_between_1_and_1000'
           when n.shard not between 0 and 65535 then 'shard_between_0_and_65535'
           when n.reply_to is null and n.group_key is null and n.idempotency_key is null and n.limit_key is null
             and n.target_instance is null and n.expires_at is null and n.retry_at is null then null
           when length(n.reply_to) > 200 then 'reply_to_at_most_200_characters'
           when length(n.group_key) not between 1 and 200 then 'group_key_between_1_and_200_characters'
           when length(n.idempotency_key) not between 1 and 200 then 'idempotency_key_between_1_and_200_characters'
           when length(n.limit_key) not between 1 and 200 then 'limit_key_between_1_and_200_characters'
           when length(n.target_instance) > 200 then 'target_instance_at_most_200_characters'
           when not isfinite(n.expires_at) or not isfinite(n.retry_at) then 'times_are_finite'
         end) as broken
    into batch from new_rows n;
  if batch.size = 0 then
    return null;
  end if;
  if batch.broken is not null then
    raise exception 'A message breaks the rule "%"', replace(batch.broken, '_', ' ')
      using errcode = 'check_violation', constraint = batch.broken, table = 'agent_messages', schema = 'public';
  end if;

  with block as (
    select n.service || '/' || n.role || '/' || n.shard as route, n.target_instance, n.tenant, n.limit_key, n.priority,
           min(n.created_at) as created_at, array_agg(n.id) as ids
      from new_rows n
     where n.retry_at is null and n.group_key is null and not n.awaiting
     group by n.service, n.role, n.shard, n.target_instance, n.tenant, n.limit_key, n.priority
  )
  insert into bus.ready (lane, share, due, attempt, route, tenant, limit_key, ids)
  select hashtextextended(b.route || coalesce('>' || b.target_instance, ''), 0),
         hashtext(b.tenant || case when r.keyed then coalesce('/' || b.limit_key, '') else '' end),
         (date_part('epoch', b.created_at) * 1000000)::bigint + b.priority * 1000::bigint * coalesce(r.aging_ms, 10000),
         1, b.route, b.tenant, b.limit_key, b.ids[first:first + 99]
    from block b
    left join bus.routes r on r.lane = hashtextextended(b.route, 0)
   cross join lateral generate_series(1, cardinality(b.ids), 100) as first;

  if batch.delayed or batch.grouped or batch.awaiting then
    if exists (
      select from (select distinct n.service, n.role, n.shard, n.tenant from new_rows n) as d
       where (d.service || '/' || d.role || '/' || d.shard ~ '^[a-z][a-z0-9-]{0,62}/[a-z][a-z0-9-]{0,62}/[0-9]+$'
              and d.tenant ~ '^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}$') is not true) then
      raise exception 'Service, role and tenant of a message must be names'
        using errcode = 'check_violation', constraint = 'service_role_and_tenant_are_names';
    end if;
    if batch.delayed then
      insert into bus.delayed (lane, due, id)
      select bus.lane(n.service || '/' || n.role || '/' || n.shard, n.target_instance), n.retry_at, n.id
        from new_rows n where n.retry_at is not null and n.group_key is null and not n.awaiting;
    end if;
  end if;
  if batch.expiring then
    insert into bus.expiring (at, id) select n.expires_at, n.id from new_rows n where n.expires_at is not null;
  end if;
  if batch.grouped then
    perform bus.join_groups(array(select g.id from (
      select n.id, n.created_at from new_rows n where n.group_key is not null order by n.created_at, n.id) as g));
  end if;
  if batch.draining then
    select r.service || '/' || r.role || '/' || r.shard into closed
      from bus.routes r join new_rows n on n.service = r.service and n.role = r.role and n.shard = r.shard
     where r.draining and n.parent_id is null and n.replay_of is null limit 1;
    if closed is not null then
      raise exception 'Route % is being drained and accepts nothing new', closed
        using errcode = 'object_not_in_prerequisite_state';
    end if;
  end if;
  -- a task that begins is not watched yet
  if batch.steps and exists (select from bus.watchers) then
    perform bus.announce_tasks(array(select distinct n.root_id from new_rows n where n.root_id <> n.id));
  end if;
  return null;
end
$$;

create function bus.tell_of_sooner() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
begin
  -- A worker sleeps until the next one is due, and must hear of one that is due sooner; of others it need not, since who
  -- wakes looks again. One that is due in this very moment may be gone, and its worker asleep, before this commits.
  perform pg_notify('bus_ready', sooner.route) from (
    select distinct m.service || '/' || m.role || '/' || m.shard as route
      from (select n.lane, min(n.due) as due from new_rows n group by n.lane) as first
      join new_rows n on n.lane = first.lane and n.due = first.due
      join public.agent_messages m on m.id = n.id
     where not exists (
       select from bus.delayed d
        where d.lane = first.lane and d.due < first.due and d.due > (select clock_timestamp() + interval '5 s'))) as sooner;
  return null;
end
$$;
comment on function bus.tell_of_sooner() is 'Wakes the workers of a route when something is delayed that is due before all others there.';
revoke all on function bus.tell_of_sooner() from public, anon, authenticated;
create trigger tell_of_sooner after insert on bus.delayed referencing new table as new_rows
  for each statement execute function bus.tell_of_sooner();

-- ---------------------------------------------------------------- claiming

create or replace function bus.take_share(
  lane bigint, share integer, want integer, inout ids uuid[], inout attempts smallint[],
  of_tenant text default null, of_key text default null)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  chunk record;
  first_due bigint;
  last_due bigint;
  chunks bigint[];
  missing integer := want;
  -- most chunks are full; where they are not, the next round takes as many as the last one showed to be needed
  rows_wanted integer := greatest(1, (want + 99) / 100);
  got integer;
  seen integer;
begin
  loop
    got := 0;
    seen := 0;
    first_due := null;
    chunks := '{}';
    for chunk in
      select r.due, r.chunk, r.attempt, r.ids, cardinality(r.ids) as size from bus.ready r
       where r.lane = take_share.lane and r.share = take_share.share
         and (of_tenant is null or (r.tenant = of_tenant and r.limit_key is not distinct from of_key))
       order by r.due, r.chunk limit rows_wanted for update skip locked
    loop
      seen := seen + 1;
      if chunk.size <= missing then
        first_due := coalesce(first_due, chunk.due);
        last_due := chunk.due;
        chunks := chunks || chunk.chunk;
      else
        update bus.ready r set ids = chunk.ids[missing + 1:]
         where r.lane = take_share.lane and r.share = take_share.share and r.due = chunk.due and r.chunk = chunk.chunk;
        chunk.ids := chunk.ids[:missing];
        chunk.size := missing;
      end if;
      ids := ids || chunk.ids;
      attempts := attempts || array_fill(chunk.attempt, array[chunk.size]);
      missing := missing - chunk.size;
      got := got + chunk.size;
      exit when missing = 0;
    end loop;
    if cardinality(chunks) > 0 then
      delete from bus.ready r
       where r.lane = take_share.lane and r.share = take_share.share and r.due between first_due and last_due
         and r.chunk = any (chunks);
    end if;
    exit when missing = 0 or seen < rows_wanted;
    rows_wanted := greatest(1, (missing * seen + got - 1) / got);
  end loop;
end
$$;

create or replace function bus.claim(
  service text, role text, shard integer, holder text, max_messages integer default 1,
  lease_ms bigint default 30000, instance text default null)
returns table (
  id uuid, attempt smallint, max_attempts smallint, tenant text, payload jsonb, headers jsonb,
  root_id uuid, parent_id uuid, reply_to text, priority smallint, created_at timestamptz, waited_ms bigint,
  remaining_ms bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  its_route constant text := claim.service || '/' || claim.role || '/' || claim.shard;
  its_lane constant bigint := hashtextextended(its_route, 0);
  direct constant bigint := hashtextextended(its_route || coalesce('>' || claim.instance, ''), 0);
  route record;
  settings bus.routes;
  taken uuid[] := '{}';
  taken_attempts smallint[] := '{}';
  in_order uuid[];
  lowest uuid;
  highest uuid;
  claims bigint[];
  moment timestamptz;
  shown integer := 0;
  unmarked integer := 0;
begin
  if (length(claim.holder) between 1 and 200 and claim.max_messages between 1 and 1000
      and claim.lease_ms between 100 and 86400000) is not true then
    raise exception '%', case when (length(claim.holder) between 1 and 200) is not true
                                then 'A claim needs a holder, of at most 200 characters'
                              when (claim.max_messages between 1 and 1000) is not true then 'A claim takes 1 to 1000 messages'
                              else 'A lease lasts 100 ms to 24 h' end
      using errcode = 'invalid_parameter_value';
  end if;
  -- one look at all that may stand in the way
  select registry.may_claim(claim.holder) as allowed, r.paused, exists (select from bus.limits l where l.lane = r.lane) as limited,
         exists (select from bus.expiring e where e.at <= now.now) as expiring,
         exists (select from bus.delayed d where d.lane = its_lane and d.due <= now.now) as due,
         claim.instance is not null and exists (select from bus.delayed d where d.lane = direct and d.due <= now.now) as direct_due,
         claim.instance is not null and exists (select from bus.ready d where d.lane = direct) as direct_ready,
         first.share as first_share,
         exists (select from bus.ready d where d.lane = its_lane and d.share > first.share) as many_shares
    into route
    from (select clock_timestamp() as now) as now
    left join bus.routes r on r.lane = its_lane
    left join lateral (select d.share from bus.ready d where d.lane = its_lane order by d.share limit 1) as first on true;
  -- a holder that the registry knows must be active; one that it does not know, such as a psql session, may claim
  if not route.allowed then
    raise exception 'Holder % is not active in the registry', claim.holder
      using errcode = 'object_not_in_prerequisite_state';
  end if;
  if route.paused then
    return;
  end if;
  if route.expiring then
    perform bus.expire();
  end if;
  if route.due or route.direct_due then
    perform bus.promote(its_lane), bus.promote(direct);
  elsif route.first_share is null and not route.direct_ready then
    return;
  end if;

  if route.limited then
    select r.* into settings from bus.routes r where r.lane = its_lane;
    select t.ids, t.attempts, t.claims into taken, taken_attempts, claims
      from bus.take_limited(settings, direct, claim.holder, claim.max_messages, claim.lease_ms) as t;
    if cardinality(taken) = 0 then
      return;
    end if;
  else
    -- what others are just taking is passed over; when that is all, wait for one of them and look again
    for look in 1..2 loop
      if look = 1 and not (route.many_shares or route.direct_ready or route.due or route.direct_due) then
        -- one tenant has it all
        select t.ids, t.attempts into taken, taken_attempts
          from bus.take_share(its_lane, route.first_share, claim.max_messages, taken, taken_attempts) as t;
      else
        if claim.instance is not null then
          select t.ids, t.attempts into taken, taken_attempts from bus.take(direct, claim.max_messages, taken, taken_attempts) as t;
        end if;
        if cardinality(taken) < claim.max_messages then
          select t.ids, t.attempts into taken, taken_attempts
            from bus.take(its_lane, claim.max_messages - cardinality(taken), taken, taken_attempts) as t;
        end if;
      end if;
      exit when look = 2 or cardinality(taken) > 0;
      perform from bus.ready r where r.lane in (its_lane, direct) order by r.lane, r.share, r.due, r.chunk limit 1 for update;
      exit when not found;
    end loop;
    if cardinality(taken) = 0 then
      return;
    end if;
    insert into bus.claims as c (holder, lane, route, lease_until, remaining, ids, attempts)
    values (claim.holder, its_lane, its_route, clock_timestamp() + claim.lease_ms * interval '1 millisecond', cardinality(taken),
            taken, taken_attempts)
    returning array[c.claim] into claims;
  end if;

  -- it may have been suspended after the first look, and before what was taken was sent
  if not registry.may_claim(claim.holder) then
    raise exception 'Holder % is not active in the registry', claim.holder
      using errcode = 'object_not_in_prerequisite_state';
  end if;
  moment := clock_timestamp();
  if cardinality(taken) > 64 then
    -- the claim alone tells whose they are; the rows are marked when the first heartbeat finds them unfinished
    return query
    select m.id, e.attempt, m.max_attempts, m.tenant, m.payload, m.headers, m.root_id, m.parent_id, m.reply_to, m.priority,
           m.created_at, (date_part('epoch', moment - m.created_at) * 1000)::bigint,
           (date_part('epoch', m.expires_at - moment) * 1000)::bigint
      from unnest(taken, taken_attempts) as e (id, attempt)
      -- offset 0: each is looked up by its id, whatever the planner takes for cheaper
     cross join lateral (
       select i.* from public.agent_messages i
        where i.id = e.id and i.status = 'queued' and i.attempts = e.attempt - 1
          and (i.expires_at is null or i.expires_at > clock_timestamp())
       offset 0) as m;
    get diagnostics shown = row_count;
  elsif cardinality(taken) = 1 then
    -- as below, for less
    perform from public.agent_messages m where m.id = taken[1] for update skip locked;
    if found then
      return query
      update public.agent_messages as m
         set status = 'claimed', attempts = m.attempts + 1, claimed_by = claim.holder, claimed_at = clock_timestamp(),
             lease_until = clock_timestamp() + claim.lease_ms * interval '1 millisecond', retry_at = null
       where m.id = taken[1] and m.status = 'queued' and m.attempts + 1 = taken_attempts[1]
         and (m.expires_at is null or m.expires_at > clock_timestamp())
      returning m.id, m.attempts, m.max_attempts, m.tenant, m.payload, m.headers, m.root_id, m.parent_id, m.reply_to,
                m.priority, m.created_at, (date_part('epoch', moment - m.created_at) * 1000)::bigint,
                (date_part('epoch', m.expires_at - moment) * 1000)::bigint;
      get diagnostics shown = row_count;
    end if;
  else
    in_order := array(select t from unnest(taken) as t order by t);
    lowest := in_order[1];
    highest := in_order[cardinality(in_order)];
    -- a row that somebody has locked, such as one who is about to send what awaits it, is not waited for
    return query
    update public.agent_messages as m
       set status = 'claimed', attempts = m.attempts + 1, claimed_by = claim.holder, claimed_at = clock_timestamp(),
           lease_until = clock_timestamp() + claim.lease_ms * interval '1 millisecond', retry_at = null
     where m.id between lowest and highest
       and m.id = any (array(
         select f.id from public.agent_messages f
          where f.id = any (in_order) and f.id between lowest and highest
          order by f.id for update of f skip locked))
       and m.status = 'queued' and m.attempts + 1 = taken_attempts[array_position(taken, m.id)]
       -- one whose time passed in this very moment is not started; its lease ends, and then it is a dead letter
       and (m.expires_at is null or m.expires_at > clock_timestamp())
    returning m.id, m.attempts, m.max_attempts, m.tenant, m.payload, m.headers, m.root_id, m.parent_id, m.reply_to,
              m.priority, m.created_at, (date_part('epoch', moment - m.created_at) * 1000)::bigint,
              (date_part('epoch', m.expires_at - moment) * 1000)::bigint;
    get diagnostics shown = row_count;
  end if;
  if shown < cardinality(taken) and cardinality(taken) <= 64 then
    return query
    select m.id, e.attempt, m.max_attempts, m.tenant, m.payload, m.headers, m.root_id, m.parent_id, m.reply_to, m.priority,
           m.created_at, (date_part('epoch', moment - m.created_at) * 1000)::bigint,
           (date_part('epoch', m.expires_at - moment) * 1000)::bigint
      from unnest(taken, taken_attempts) as e (id, attempt)
      join public.agent_messages m on m.id = e.id
     where m.status = 'queued' and m.attempts = e.attempt - 1
       and (m.expires_at is null or m.expires_at > clock_timestamp());
    get diagnostics unmarked = row_count;
  end if;
  if shown + unmarked < cardinality(taken) then
    perform bus.drop_unclaimable(claim.holder, claims, moment);
  end if;
  if exists (select from bus.watchers) then
    perform bus.watched(taken);
  end if;
end
$$;

-- ---------------------------------------------------------------- ending

create or replace function bus.mark_done(
  ids uuid[], attempts smallint[], holder text, results jsonb[], result_snippets text[], result_urls text[],
  out done uuid[], out claim bigint, out last_claim bigint, out version integer, out last_version integer,
  out grouped boolean, out assigned boolean, out steps boolean, out awaited boolean, out watched boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
-- the rows are found by their ids and then matched by a hash: without statistics of the whole table the planner may take
-- each of a thousand for a match of each
set enable_nestloop = off
as $$
#variable_conflict use_column
declare
  lowest uuid;
  highest uuid;
  its_claim record;
begin
  if cardinality(mark_done.ids) = 1 then
    -- as below, for less
    select c.claim, c.version, c.claimed_at into its_claim from bus.claims c
     where c.holder = mark_done.holder and c.lease_until > (select clock_timestamp())
       and c.attempts[array_position(c.ids, mark_done.ids[1])] = mark_done.attempts[1] limit 1;
    if not found then
      return;
    end if;
    update public.agent_messages as m
       set status = 'done', attempts = mark_done.attempts[1], claimed_by = mark_done.holder, claimed_at = its_claim.claimed_at,
           done_at = clock_timestamp(), lease_until = null, retry_at = null, error = null,
           result = mark_done.results[1], result_snippet = left(mark_done.result_snippets[1], 400),
           result_url = mark_done.result_urls[1]
     where m.id = mark_done.ids[1]
       and ((m.status = 'queued' and m.attempts = mark_done.attempts[1] - 1)
            or (m.status = 'claimed' and m.attempts = mark_done.attempts[1] and m.claimed_by = mark_done.holder))
    returning array[m.id], its_claim.claim, its_claim.claim, its_claim.version, its_claim.version, m.group_key is not null,
              m.payload ? '__assignment', m.root_id <> m.id, exists (select from bus.awaited), exists (select from bus.watchers)
      into done, claim, last_claim, version, last_version, grouped, assigned, steps, awaited, watched;
    return;
  end if;
  -- whose days these are is known before the statement begins: other parts are left out of it
  lowest := (select i from unnest(mark_done.ids) as i order by i limit 1);
  highest := (select i from unnest(mark_done.ids) as i order by i desc limit 1);
  -- the lease is read first; should it pass and be reclaimed meanwhile, the row is of another attempt by then
  with given as materialized (
    select h.claim, h.version, h.claimed_at, g.id, g.attempt, g.result, g.snippet, g.url
      from unnest(mark_done.ids, mark_done.attempts, mark_done.results, mark_done.result_snippets,
                  mark_done.result_urls) as g (id, attempt, result, snippet, url)
      join (select c.claim, c.version, h.id, h.attempt, c.claimed_at
              from bus.claims c, unnest(c.ids, c.attempts) as h (id, attempt)
             where c.holder = mark_done.holder and c.lease_until > (select clock_timestamp())) as h
        on h.id = g.id and h.attempt = g.attempt
     order by g.id
  ), marked as (
    update public.agent_messages as m
       set status = 'done', attempts = g.attempt, claimed_by = mark_done.holder, claimed_at = g.claimed_at,
           done_at = clock_timestamp(), lease_until = null, retry_at = null, error = null,
           result = g.result, result_snippet = left(g.snippet, 400), result_url = g.url
      from given g
     where m.id = any (mark_done.ids) and m.id between lowest and highest and m.id = g.id
       and ((m.status = 'queued' and m.attempts = g.attempt - 1)
            or (m.status = 'claimed' and m.attempts = g.attempt and m.claimed_by = mark_done.holder))
    returning m.id, g.claim, g.version, m.root_id <> m.id as step, m.group_key is not null as grouped,
              m.payload ? '__assignment' as assigned
  )
  select array_agg(d.id), min(d.claim), max(d.claim), min(d.version), max(d.version), bool_or(d.grouped),
         bool_or(d.assigned), bool_or(d.step), exists (select from bus.awaited), exists (select from bus.watchers)
    into done, claim, last_claim, version, last_version, grouped, assigned, steps, awaited, watched
    from marked d;
end
$$;
