-- The same promises for less: a claim's plan can no longer read a whole part, functions that run at every step are planned
-- once instead of at every call, one look replaces several, and a row is held to nine checks instead of twenty-seven.

-- ---------------------------------------------------------------- what every row is held to

alter table public.agent_messages
  drop constraint a_claim_has_holder_and_lease, drop constraint a_failure_says_why, drop constraint an_end_has_a_time,
  drop constraint only_a_queued_message_waits, drop constraint agent_messages_status_check,
  drop constraint agent_messages_attempts_check, drop constraint agent_messages_check,
  drop constraint agent_messages_claimed_by_check, drop constraint agent_messages_error_check,
  drop constraint agent_messages_expires_at_check, drop constraint agent_messages_retry_at_check,
  drop constraint agent_messages_group_key_check, drop constraint agent_messages_idempotency_key_check,
  drop constraint agent_messages_limit_key_check, drop constraint agent_messages_reply_to_check,
  drop constraint agent_messages_result_snippet_check, drop constraint agent_messages_result_url_check,
  drop constraint agent_messages_target_instance_check, drop constraint agent_messages_max_attempts_check,
  drop constraint agent_messages_priority_check, drop constraint agent_messages_shard_check;
-- What a sender writes never changes, and only the functions below may change the rest: the former is looked at once, by
-- after_insert, instead of at each change; this is what a change must leave behind. All that is there fits it already.
alter table public.agent_messages
  drop constraint payload_is_an_object, drop constraint payload_at_most_1_mib, drop constraint headers_are_an_object,
  drop constraint headers_at_most_16_kib;
alter table public.agent_messages
  add constraint status_fits_holder_lease_and_times check (
    case status
      when 'queued' then lease_until is null and done_at is null
      when 'done' then lease_until is null and retry_at is null and done_at is not null
      when 'claimed' then lease_until is not null and claimed_by is not null and retry_at is null and done_at is null
      when 'failed' then error is not null and lease_until is null and retry_at is null and done_at is not null
      when 'cancelled' then lease_until is null and retry_at is null and done_at is not null
      else false
    end and released between 0 and attempts) not valid,
  add constraint result_url_at_most_2000_characters check (length(result_url) <= 2000) not valid;

-- while an old snapshot keeps what was removed, a holder's live claims are found by their time, not among all of his
create index bus_claims_held on bus.claims (holder, lease_until);
create index bus_routes_draining on bus.routes (lane) where draining;

create or replace function bus.held(holder text, with_expired boolean default false)
returns table (claim bigint, version integer, id uuid, attempt smallint, claimed_at timestamptz)
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select c.claim, c.version, h.id, h.attempt, c.claimed_at
    from bus.claims c, unnest(c.ids, c.attempts) as h (id, attempt)
   where c.holder = held.holder and c.lease_until > (select case when with_expired then '-infinity' else clock_timestamp() end)
$$;

-- ---------------------------------------------------------------- small functions, planned once

create or replace function bus.uuid_v7() returns uuid
language plpgsql volatile parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
  -- 48 bits of milliseconds, the version and 12 random bits; then the variant and 62 random bits of a version 4
  return encode(
    int8send((date_part('epoch', clock_timestamp()) * 1000)::bigint << 16 | 28672 | (random() * 4095)::bigint)
    || substring(uuid_send(gen_random_uuid()) from 9), 'hex')::uuid;
end
$$;

create or replace function bus.lane(route text, target_instance text default null) returns bigint
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
  return hashtextextended(lane.route || coalesce('>' || lane.target_instance, ''), 0);
end
$$;

create or replace function bus.announce_tasks(roots uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_notify('bus_task', watched.root_id::text)
     from (select distinct w.root_id from bus.watchers w
            where w.root_id = any (roots) and w.until > clock_timestamp()) as watched;
end
$$;

create or replace function bus.announce(routes text[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_notify('bus_ready', route) from (select distinct unnest(routes) as route) as distinct_routes;
end
$$;

create or replace function bus.turn(lane bigint) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  -- each session goes its own rounds, and begins them anywhere
  return coalesce(nullif(current_setting('bus.turn_' || (turn.lane & 9223372036854775807), true), '')::integer,
                  (random() * 4294967295 - 2147483648)::integer);
end
$$;

create or replace function bus.remember_turn(lane bigint, share integer) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  perform set_config('bus.turn_' || (remember_turn.lane & 9223372036854775807), remember_turn.share::text, false);
end
$$;

create or replace function bus.watched(ids uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  lowest constant uuid := (select i from unnest(watched.ids) as i order by i limit 1);
  highest constant uuid := (select i from unnest(watched.ids) as i order by i desc limit 1);
begin
  perform pg_notify('bus_task', m.root_id::text)
     from public.agent_messages m
    where m.id = any (watched.ids) and m.id between lowest and highest
      and exists (select from bus.watchers w where w.root_id = m.root_id and w.until > (select clock_timestamp()));
end
$$;

-- ---------------------------------------------------------------- wake-ups

create or replace function bus.wake() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  slot constant regclass := ('bus.woken_' || (new.lane & 15))::regclass;
  -- 18 bits of the lane over 45 bits of tenths of a millisecond
  lane_bits constant bigint := (new.lane & 262143) << 45;
  at constant bigint := (extract(epoch from clock_timestamp() - timestamptz '2026-01-01 00:00:00Z') * 10000)::bigint;
  last constant bigint := coalesce(pg_sequence_last_value(slot), 0);
  allowed_at bigint := case when last & ~35184372088831 = lane_bits then last & 35184372088831 else 0 end;
begin
  -- A commit with a notification waits for every other such commit, through its write to the disk. So a route notifies 200
  -- times a second at most, five times in a row (a leaky bucket: the time of the next regular one), remembered in a
  -- sequence, which nobody waits for; and not while another commit is about to. Who was woken looks again for some time
  -- (adaptive polling). A time far ahead is of a clock that was set back.
  if allowed_at - at between 251 and 10000 or not pg_try_advisory_xact_lock(1651864175, (new.lane & 2147483647)::integer) then
    return null;
  end if;
  perform setval(slot, lane_bits | (case when allowed_at > at and allowed_at - at <= 250 then allowed_at else at end + 50));
  perform pg_notify('bus_ready', new.route);
  return null;
end
$$;

-- ---------------------------------------------------------------- sending, asking and waiting

create or replace function bus.after_insert() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_sort = off
set enable_seqscan = off
as $$
declare
  batch record;
  closed text;
begin
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
      -- a worker that sleeps until the next one is due must hear of one that is due sooner
      perform pg_notify('bus_ready', d.route)
         from (select distinct n.service || '/' || n.role || '/' || n.shard as route from new_rows n
                where n.retry_at is not null and n.group_key is null and not n.awaiting) as d;
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

drop trigger before_insert on public.agent_messages;
create trigger before_insert before insert on public.agent_messages
  for each row when (
    new.root_id is distinct from new.id
    or num_nonnulls(new.parent_id, new.replay_of, new.idempotency_key, new.claimed_by, new.claimed_at, new.lease_until,
                    new.done_at, new.error, new.last_error_at, new.result, new.result_snippet, new.result_url) > 0
    or new.awaiting or new.status <> 'queued' or new.attempts <> 0 or new.released <> 0
    -- the default is after the transaction's beginning
    or new.created_at < now() or new.created_at > clock_timestamp())
  execute function bus.before_insert();

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
         coalesce(bool_or(e.m -> 'awaits' is not null), false) as awaiting
    into batch
    from jsonb_array_elements(messages) with ordinality as e (m, o);
  if batch.unknown is not null then
    raise exception 'Unknown message field %', batch.unknown using errcode = 'invalid_parameter_value';
  end if;
  owners := batch.ids;

  if batch.keyed then
    -- keys in one order, so that two senders cannot wait for each other
    for one in
      select e.o, e.m ->> 'tenant' as tenant, e.m ->> 'idempotency_key' as key, (e.m ->> 'idempotency_ms')::bigint as window_ms
        from jsonb_array_elements(messages) with ordinality as e (m, o)
       where e.m ->> 'idempotency_key' is not null and e.m ->> 'tenant' is not null
       order by 2, 3, 1
    loop
      owners[one.o] := bus.take_key(one.tenant, one.key, batch.ids[one.o], one.window_ms);
    end loop;
  end if;
  if batch.awaiting then
    for one in
      select batch.ids[e.o] as id, e.m ->> 'tenant' as tenant, e.m -> 'awaits' as awaits, e.o::integer as place
        from jsonb_array_elements(messages) with ordinality as e (m, o)
       where e.m -> 'awaits' is not null and owners[e.o] = batch.ids[e.o]
       order by 1
    loop
      -- of the batch only what stands before it, so that no two wait for each other
      perform bus.await(one.id, one.tenant, array(
        select coalesce((select owners[p] from generate_subscripts(batch.ids, 1) as p where batch.ids[p] = a::uuid limit 1), a::uuid)
          from jsonb_array_elements_text(one.awaits) as a), owners[:one.place - 1]);
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
         clock_timestamp() + (e.m ->> 'ttl_ms')::bigint * interval '1 millisecond',
         coalesce((e.m ->> 'root_id')::uuid, batch.ids[e.o]), (e.m ->> 'parent_id')::uuid, e.m ->> 'reply_to',
         e.m ->> 'idempotency_key', e.m ->> 'group_key', e.m ->> 'limit_key', e.m ->> 'target_instance',
         coalesce(e.m -> 'headers', '{}'),
         batch.awaiting and e.m -> 'awaits' is not null and exists (select from bus.joins j where j.id = batch.ids[e.o])
    from jsonb_array_elements(messages) with ordinality as e (m, o)
   where owners[e.o] = batch.ids[e.o]
   order by e.o;

  return query select o, owners[o], owners[o] <> batch.ids[o] from generate_series(1, cardinality(owners)::bigint) as o;
end
$$;

create or replace function bus.reply(request uuid)
returns jsonb
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  asked record;
  answer jsonb;
begin
  select m.root_id, m.expires_at, m.status, m.done_at, m.result, m.result_url, m.error,
         m.root_id <> m.id or exists (select from public.agent_messages s where s.root_id = m.id and s.root_id <> s.id) as of_steps
    into asked from public.agent_messages m where m.id = request;
  if not found then
    return null;
  end if;
  if asked.of_steps then
    answer := bus.task(asked.root_id);
    asked.done_at := case when answer ->> 'status' in ('done', 'failed', 'cancelled') then (answer ->> 'finished_at')::timestamptz end;
  end if;
  -- one clock says which replies are late
  if asked.done_at <= coalesce(asked.expires_at, 'infinity') then
    return case when asked.of_steps
      then jsonb_build_object('status', answer -> 'status', 'result', answer -> 'result', 'result_url', answer -> 'result_url',
                              'error', answer -> 'error')
      else jsonb_build_object('status', asked.status, 'result', asked.result, 'result_url', asked.result_url,
                              'error', asked.error) end;
  end if;
  if asked.expires_at <= clock_timestamp() then
    return jsonb_build_object('status', 'timed_out');
  end if;
  return jsonb_build_object('status', 'pending', 'remaining_ms',
    ceil(date_part('epoch', asked.expires_at - clock_timestamp()) * 1000)::bigint);
end
$$;

create function bus.watch_new(task uuid, watcher text, for_ms bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  -- those who stopped waiting are forgotten by those who start
  delete from bus.watchers
   where ctid = any (array(select w.ctid from bus.watchers w where w.until < (select clock_timestamp()) limit 10
                              for update skip locked));
  insert into bus.watchers (root_id, watcher, until)
  values (watch_new.task, watch_new.watcher, clock_timestamp() + watch_new.for_ms * interval '1 millisecond')
  on conflict (root_id, watcher) do update set until = greatest(bus.watchers.until, excluded.until);
end
$$;
comment on function bus.watch_new(uuid, text, bigint) is 'Watches a task that nobody else can have seen yet.';
revoke all on function bus.watch_new(uuid, text, bigint) from public, anon, authenticated;

create or replace function bus.watch(task uuid, watcher text, for_ms bigint) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
begin
  perform bus.watch_new(watch.task, watch.watcher, watch.for_ms);
  -- waits for changes that are under way, so that the caller's next read sees them; those that start later wait for this
  -- commit and then see the watcher
  perform from public.agent_messages m
    where (m.id = watch.task or (m.root_id = watch.task and m.root_id <> m.id)) and m.done_at is null
    order by m.id for share;
end
$$;

create or replace function bus.request(message jsonb, deadline_ms bigint, watcher text, caller uuid default null)
returns table (id uuid, root_id uuid, duplicate boolean)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  allowed bigint := request.deadline_ms;
  asker record;
  sent record;
  task uuid;
begin
  if jsonb_typeof(request.message) is distinct from 'object' or request.message ?| array['parent_id', 'root_id'] then
    raise exception 'A request is one message that starts a task of its own; name the message on whose behalf it is as caller'
      using errcode = 'invalid_parameter_value';
  end if;
  if (allowed between 1 and 86400000) is not true then
    raise exception 'A request waits 1 ms to 24 h' using errcode = 'invalid_parameter_value';
  end if;
  if request.caller is not null then
    select m.tenant, floor(date_part('epoch', m.expires_at - clock_timestamp()) * 1000)::bigint as remaining_ms into asker
      from public.agent_messages m where m.id = request.caller;
    if not found then
      raise exception 'Message % does not exist', request.caller using errcode = 'no_data_found';
    end if;
    if asker.tenant <> coalesce(request.message ->> 'tenant', asker.tenant) then
      raise exception 'A message of tenant % cannot ask for another tenant', asker.tenant using errcode = 'check_violation';
    end if;
    if asker.remaining_ms < 1 then
      raise exception 'The time of message % has passed', request.caller
        using errcode = 'object_not_in_prerequisite_state';
    end if;
    -- least() ignores nulls
    allowed := least(allowed, asker.remaining_ms);
    message := jsonb_build_object('tenant', asker.tenant) || request.message;
  end if;
  select e.id, e.duplicate into sent
    from bus.enqueue_many(jsonb_build_array(
      jsonb_build_object('reply_to', request.watcher) || message
      || jsonb_build_object('ttl_ms', least((message ->> 'ttl_ms')::bigint, allowed)))) as e;
  if sent.duplicate then
    -- under a known key the first message may be a step of another task
    select m.root_id into task from public.agent_messages m where m.id = sent.id;
    perform bus.watch(task, request.watcher, allowed + 60000);
  else
    task := sent.id;
    perform bus.watch_new(task, request.watcher, allowed + 60000);
  end if;
  return query select sent.id, task, sent.duplicate;
end
$$;

-- ---------------------------------------------------------------- claiming

create or replace function registry.may_claim(holder text) returns boolean
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  active boolean;
begin
  select a.state = 'active' and (a.carrier is null or c.state = 'active') into active
    from registry.agents a left join registry.agents c on c.instance_id = a.carrier
   where a.holder = may_claim.holder;
  -- a name of the form that the registry makes must stand in it, or a run that it has forgotten could come back
  return coalesce(active, may_claim.holder !~ '^[a-z][a-z0-9-]*/[0-9]+#[0-9a-f]{32}$');
end
$$;

create or replace function bus.take(lane bigint, want integer, inout ids uuid[], inout attempts smallint[])
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  head record;
  turn integer;
  shares integer[];
  before integer;
  target constant integer := cardinality(ids) + want;
begin
  select first.share, exists (select from bus.ready r where r.lane = take.lane and r.share > first.share) as more into head
    from (select r.share from bus.ready r where r.lane = take.lane order by r.share limit 1) as first;
  if not head.more then
    -- one tenant has it all
    select t.ids, t.attempts into ids, attempts from bus.take_share(take.lane, head.share, want, ids, attempts) as t;
  elsif head.more then
    turn := bus.turn(take.lane);
    loop
      shares := bus.shares_after(take.lane, turn, least(want, 64));
      exit when cardinality(shares) = 0;
      before := cardinality(ids);
      for i in 1..cardinality(shares) loop
        select t.ids, t.attempts into ids, attempts
          from bus.take_share(take.lane, shares[i],
                              ceil((target - cardinality(ids))::numeric / (cardinality(shares) - i + 1))::integer, ids, attempts) as t;
        turn := shares[i];
        exit when cardinality(ids) = target;
      end loop;
      exit when cardinality(ids) = target or cardinality(ids) = before;
    end loop;
    perform bus.remember_turn(take.lane, turn);
  end if;
end
$$;

create or replace function bus.take_share(
  lane bigint, share integer, want integer, inout ids uuid[], inout attempts smallint[],
  of_tenant text default null, of_key text default null)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  chunk record;
  missing integer := want;
  -- most chunks are full; where they are not, the next round takes as many as the last one showed to be needed
  rows_wanted integer := greatest(1, (want + 99) / 100);
  got integer;
  seen integer;
begin
  loop
    got := 0;
    seen := 0;
    for chunk in
      select r.due, r.chunk, r.attempt, r.ids, cardinality(r.ids) as size from bus.ready r
       where r.lane = take_share.lane and r.share = take_share.share
         and (of_tenant is null or (r.tenant = of_tenant and r.limit_key is not distinct from of_key))
       order by r.due, r.chunk limit rows_wanted for update skip locked
    loop
      seen := seen + 1;
      if chunk.size <= missing then
        delete from bus.ready r
         where r.lane = take_share.lane and r.share = take_share.share and r.due = chunk.due and r.chunk = chunk.chunk;
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
  shown integer;
  unmarked integer := 0;
begin
  if (claim.holder <> '' and claim.max_messages between 1 and 1000 and claim.lease_ms between 100 and 86400000) is not true then
    raise exception '%', case when (claim.holder <> '') is not true then 'A claim needs a holder'
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
  else
    in_order := case cardinality(taken) when 1 then taken else array(select t from unnest(taken) as t order by t) end;
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
    if shown < cardinality(taken) then
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

create function bus.let_go_of(holder text, claim bigint, version integer, ids uuid[], attempts smallint[] default null) returns text[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  c record;
  counted integer := cardinality(let_go_of.ids);
  freed text[];
begin
  -- somebody may have its lock for long, by a completion inside a transaction of his own; then this end is not counted
  -- off, which is safe: the lease ends. Too many counted off would lose messages. Limits are counted exactly, and wait.
  select k.version, k.remaining, k.limited, k.route into c from bus.claims k
   where k.holder = let_go_of.holder and k.claim = let_go_of.claim for update skip locked;
  if not found then
    select k.version, k.remaining, k.limited, k.route into c from bus.claims k
     where k.holder = let_go_of.holder and k.claim = let_go_of.claim and k.limited for update;
  end if;
  if c.version = let_go_of.version then
    if c.remaining <= counted then
      delete from bus.claims k where k.holder = let_go_of.holder and k.claim = let_go_of.claim;
    else
      update bus.claims k set remaining = k.remaining - counted
       where k.holder = let_go_of.holder and k.claim = let_go_of.claim;
    end if;
    return case when c.limited then array[c.route] end;
  end if;
  -- an extension split the claim meanwhile: each is counted off where it is now
  if let_go_of.attempts is null then
    let_go_of.attempts := array(select m.attempts from unnest(let_go_of.ids) with ordinality as e (id, o)
                                  join public.agent_messages m on m.id = e.id order by e.o);
  end if;
  for c in
    select k.claim, k.remaining, k.limited, k.route, k.ids, k.attempts from bus.claims k
     where k.holder = let_go_of.holder and k.ids && let_go_of.ids order by k.claim for update skip locked
  loop
    select count(*) into counted
      from unnest(c.ids, c.attempts) as i (id, attempt)
      join unnest(let_go_of.ids, let_go_of.attempts) as e (id, attempt) on e.id = i.id and e.attempt = i.attempt;
    continue when counted = 0;
    if c.remaining <= counted then
      delete from bus.claims k where k.holder = let_go_of.holder and k.claim = c.claim;
    else
      update bus.claims k set remaining = k.remaining - counted where k.holder = let_go_of.holder and k.claim = c.claim;
    end if;
    freed := case when c.limited then freed || c.route else freed end;
  end loop;
  return freed;
end
$$;
comment on function bus.let_go_of(text, bigint, integer, uuid[], smallint[])
  is 'Counts ended messages off the one claim they were in; answers the routes whose limits may let others start. Without attempts: of the attempts that their rows tell.';
revoke all on function bus.let_go_of(text, bigint, integer, uuid[], smallint[]) from public, anon, authenticated;

create or replace function bus.let_go(holder text, claims bigint[], versions integer[], ids uuid[], attempts smallint[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  one record;
  freed text[];
begin
  for one in
    select g.claim, g.version, array_agg(g.id) as ids, array_agg(g.attempt) as attempts
      from unnest(let_go.claims, let_go.versions, let_go.ids, let_go.attempts) as g (claim, version, id, attempt)
     group by g.claim, g.version order by g.claim
  loop
    freed := freed || bus.let_go_of(let_go.holder, one.claim, one.version, one.ids, one.attempts);
  end loop;
  -- what a limit held back may go on
  if freed is not null then
    perform bus.announce(freed);
  end if;
end
$$;

create function bus.mark_done(
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
  -- whose days these are is known before the statement begins: other parts are left out of it
  lowest constant uuid := (select i from unnest(mark_done.ids) as i order by i limit 1);
  highest constant uuid := (select i from unnest(mark_done.ids) as i order by i desc limit 1);
begin
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
comment on function bus.mark_done(uuid[], smallint[], text, jsonb[], text[], text[])
  is 'Writes the ends of messages into their rows, in the order of the ids; answers which, of which claims, and what else is to be told.';
revoke all on function bus.mark_done(uuid[], smallint[], text, jsonb[], text[], text[]) from public, anon, authenticated;

create or replace function bus.complete_many(
  ids uuid[], attempts smallint[], holder text, results jsonb[], result_snippets text[], result_urls text[])
returns table (id uuid)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  done record;
  freed text[];
begin
  select d.done as ids, d.claim, d.last_claim, d.version, d.last_version, d.grouped, d.assigned, d.steps, d.awaited, d.watched
    into done
    from bus.mark_done(complete_many.ids, complete_many.attempts, complete_many.holder, complete_many.results,
                       complete_many.result_snippets, complete_many.result_urls) as d;
  if done.ids is null then
    return;
  end if;
  if done.claim = done.last_claim and done.version = done.last_version then
    -- all of one claim, as a worker's batches are
    freed := bus.let_go_of(complete_many.holder, done.claim, done.version, done.ids);
    if freed is not null then
      perform bus.announce(freed);
    end if;
  else
    perform bus.let_go(complete_many.holder, array_agg(h.claim), array_agg(h.version), array_agg(h.id), array_agg(h.attempt))
       -- one that an extension gave a claim of its own stands in two, and is counted off once
       from (select distinct on (k.id) k.claim, k.version, k.id, k.attempt
               from bus.held(complete_many.holder, true) as k
               join unnest(complete_many.ids, complete_many.attempts) as g (id, attempt) on g.id = k.id and g.attempt = k.attempt
              where k.id = any (done.ids) order by k.id, k.claim) as h;
  end if;
  if done.awaited or done.grouped then
    perform bus.after_end(done.ids, (
      select array_agg(m.id) from public.agent_messages m where m.id = any (done.ids) and m.group_key is not null));
  end if;
  if done.assigned then
    insert into public.bus_events (kind, tenant, message_id, root_id, route, actor, detail)
    select 'execute_done', m.tenant, m.id, m.root_id, m.service || '/' || m.role || '/' || m.shard,
           complete_many.holder, bus.outcome_detail(m.*::public.agent_messages)
      from public.agent_messages m where m.id = any (done.ids) and m.payload ? '__assignment';
  end if;
  if done.watched then
    perform bus.announce_tasks(done.ids || case when done.steps then array(
      select m.root_id from public.agent_messages m where m.id = any (done.ids) and m.root_id <> m.id) end);
  end if;
  return query select unnest(done.ids);
end
$$;

-- ---------------------------------------------------------------- keeping and handing back

-- that the rows are found by their ids and not by reading a part is no longer left to an estimate
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

create or replace function bus.release(ids uuid[], attempts smallint[], holder text) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  worn record;
  freed record;
begin
  -- a message that nobody wants to work on must not go round for ever
  for worn in
    select m.id, h.attempt, h.claim, h.version
      from unnest(release.ids, release.attempts) as g (id, attempt)
      join bus.held(release.holder, true) h on h.id = g.id and h.attempt = g.attempt
      join public.agent_messages m on m.id = g.id
     where m.released >= 1000 order by m.id
  loop
    if bus.settle_failure(worn.id, worn.attempt, 'released', release.holder, 'handed back 1000 times', false, null,
                          release.holder) is not null then
      perform bus.let_go(release.holder, array[worn.claim], array[worn.version], array[worn.id], array[worn.attempt]);
    end if;
  end loop;
  with mine as materialized (
    select m.id, h.attempt, h.claim, h.version
      from unnest(release.ids, release.attempts) as g (id, attempt)
      join bus.held(release.holder, true) h on h.id = g.id and h.attempt = g.attempt
      join public.agent_messages m on m.id = g.id
     where (m.status = 'queued' and m.attempts = h.attempt - 1)
        or (m.status = 'claimed' and m.attempts = h.attempt and m.claimed_by = release.holder)
     order by m.id for update of m
  ), given_back as (
    update public.agent_messages as t
       set status = 'queued', attempts = mine.attempt, lease_until = null, retry_at = null, released = t.released + 1,
           claimed_by = release.holder
      from mine where t.id = mine.id and t.id = any (array(select one.id from mine as one))
    returning t.id, mine.claim, mine.version, mine.attempt
  )
  select array_agg(f.id) as ids, array_agg(f.attempt) as attempts, array_agg(f.claim) as claims, array_agg(f.version) as versions into freed from given_back f;
  if freed.ids is null then
    return 0;
  end if;
  perform bus.let_go(release.holder, freed.claims, freed.versions, freed.ids, freed.attempts);
  perform bus.make_ready(freed.ids);
  return cardinality(freed.ids);
end
$$;

-- ---------------------------------------------------------------- taking back

create or replace function bus.take_back(holder_of text, claim_of bigint, outcome text, reason text, actor text, max_rows integer,
                              out settled integer, out left_over boolean)
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
    perform bus.record_event(outcome, t, actor, jsonb_build_object('holder', holder_of, 'attempt', m.attempt))
       from public.agent_messages t where t.id = m.id and outcome = 'lease_expired';
    if bus.settle_failure(m.id, m.attempt, outcome, holder_of, reason, true, null, actor, m.claimed_at) is not null then
      settled := settled + 1;
    end if;
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
  if not left_over then
    delete from bus.claims c where c.holder = holder_of and c.claim = claim_of;
  end if;
end
$$;

create function bus.hand_back_unheld(holder text, route text, held uuid[]) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  rest record;
begin
  select array_agg(h.id) as ids, array_agg(h.attempt) as attempts into rest
    from bus.claims c, unnest(c.ids, c.attempts) as h (id, attempt)
   where c.holder = hand_back_unheld.holder and c.route = hand_back_unheld.route
     and c.lease_until > (select clock_timestamp()) and h.id <> all (held);
  return case when rest.ids is null then 0 else bus.release(rest.ids, rest.attempts, hand_back_unheld.holder) end;
end
$$;
comment on function bus.hand_back_unheld(text, text, uuid[])
  is 'Hands back what a holder has claimed of a route (service/role/shard) and does not know of, as after a claim whose answer was lost; answers how many.';
revoke all on function bus.hand_back_unheld(text, text, uuid[]) from public, anon, authenticated;
grant execute on function bus.hand_back_unheld(text, text, uuid[]) to service_role;
