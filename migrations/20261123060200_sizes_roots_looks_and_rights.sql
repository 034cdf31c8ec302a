-- What is taken from senders and shown to others: sizes as they are read, roots, readable payloads, quick looks, and rights.

-- as before; a value that comes from a table may be compressed there, and counts as if it were not; a replay is as large as what it repeats
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
         n.created_at, n.expires_at, exists (select from new_rows offset 1) as several,
         n.retry_at is null and n.group_key is null and not n.awaiting and n.root_id = n.id and n.parent_id is null
           and n.replay_of is null and jsonb_typeof(n.payload) = 'object' and pg_column_size(n.payload) <= 1048576
           and pg_column_compression(n.payload) is null and pg_column_compression(n.headers) is null
           and jsonb_typeof(n.headers) = 'object' and pg_column_size(n.headers) <= 16384 and n.priority between 0 and 1000
           and n.max_attempts between 1 and 1000 and n.shard between 0 and 65535
           and coalesce(length(n.reply_to) <= 200, true) and coalesce(length(n.idempotency_key) between 1 and 200, true)
           and coalesce(length(n.limit_key) between 1 and 200, true) and coalesce(length(n.target_instance) <= 200, true)
           and coalesce(isfinite(n.expires_at), true) and r.draining is not true and n.status = 'queued' and n.attempts = 0
           and n.released = 0 and num_nonnulls(n.claimed_by, n.claimed_at, n.lease_until, n.done_at, n.error, n.last_error_at,
                                               n.result, n.result_snippet, n.result_url) = 0 as plain,
         r.keyed, r.aging_ms
    into one
    from (select * from new_rows limit 1) as n
    left join bus.routes r on r.lane = hashtextextended(n.service || '/' || n.role || '/' || n.shard, 0);
  if one.plain and not one.several then
    insert into bus.ready (lane, share, due, attempt, route, tenant, limit_key, ids)
    values (hashtextextended(one.route || coalesce('>' || one.target_instance, ''), 0),
            hashtext(one.tenant || case when one.keyed then coalesce('/' || one.limit_key, '') else '' end),
            (date_part('epoch', one.created_at) * 1000000)::bigint + one.priority * 1000::bigint * coalesce(one.aging_ms, 10000),
            1, one.route::bus.route_name, one.tenant::bus.tenant_name, one.limit_key, array[one.id]);
    if one.expires_at is not null then
      insert into bus.expiring (at, id) values (one.expires_at, one.id);
    end if;
    return null;
  end if;

  select count(*) as size, count(n.retry_at) > 0 as delayed, count(n.expires_at) > 0 as expiring,
         count(n.group_key) > 0 as grouped, bool_or(n.awaiting) as awaiting, bool_or(n.root_id <> n.id) as steps,
         exists (select from bus.routes r where r.draining) as draining,
         min(case
           when n.status <> 'queued' or n.attempts <> 0 or n.released <> 0
             or num_nonnulls(n.claimed_by, n.claimed_at, n.lease_until, n.done_at, n.error, n.last_error_at,
                             n.result, n.result_snippet, n.result_url) > 0
             then 'new_message_is_queued_unclaimed_and_without_result'
           when jsonb_typeof(n.payload) <> 'object' then 'payload_is_an_object'
           when case when pg_column_compression(n.payload) is null then pg_column_size(n.payload) else pg_column_size(n.payload || '{}') end
                > 1048576 + case when n.parent_id is null and n.replay_of is null then 0 else 65536 end then 'payload_at_most_1_mib'
           when jsonb_typeof(n.headers) <> 'object' then 'headers_are_an_object'
           when case when pg_column_compression(n.headers) is null then pg_column_size(n.headers) else pg_column_size(n.headers || '{}') end
                > 16384 then 'headers_at_most_16_kib'
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
         1, b.route::bus.route_name, b.tenant::bus.tenant_name, b.limit_key, b.ids[first:first + 99]
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

-- as before; who names a step as the task means the task of that step
create or replace function bus.before_insert() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  parent record;
  first uuid;
begin
  if new.awaiting and not exists (select from bus.joins j where j.id = new.id) then
    raise exception 'A message awaits others by its "awaits" in bus.enqueue'
      using errcode = 'check_violation';
  end if;
  -- by the database's clock, whatever the sender says
  new.created_at := clock_timestamp();
  if new.replay_of is not null and not exists (
    select from public.agent_messages d
     where d.id = new.replay_of and d.status = 'failed' and d.tenant = new.tenant and d.root_id = new.root_id) then
    raise exception 'Message % is no dead letter of this task', new.replay_of
      using errcode = 'foreign_key_violation';
  end if;
  if new.parent_id is not null then
    select m.root_id, m.tenant, m.expires_at, m.status into parent
      from public.agent_messages m where m.id = new.parent_id;
    if not found then
      raise exception 'Parent message % does not exist', new.parent_id
        using errcode = 'foreign_key_violation';
    end if;
    if parent.status = 'cancelled' then
      raise exception 'Parent message % was cancelled', new.parent_id using errcode = 'check_violation';
    end if;
    if parent.tenant <> new.tenant then
      raise exception 'A message of tenant % cannot have a parent of another tenant', new.tenant
        using errcode = 'check_violation';
    end if;
    new.root_id := parent.root_id;
    -- a child never outlives the deadline of the task; least() ignores nulls
    new.expires_at := least(new.expires_at, parent.expires_at);
  elsif new.root_id is not null and new.root_id <> new.id then
    -- a step that is named for the task stands for the task it is of
    select r.root_id into first from public.agent_messages r where r.id = new.root_id and r.tenant = new.tenant;
    if not found then
      raise exception 'Task % of tenant % does not exist', new.root_id, new.tenant
        using errcode = 'foreign_key_violation';
    end if;
    -- but a replay is looked for where its dead letter stands
    new.root_id := case when new.replay_of is null then first else new.root_id end;
  end if;
  new.root_id := coalesce(new.root_id, new.id);
  if new.idempotency_key is not null then
    first := bus.take_key(new.tenant, new.idempotency_key, new.id, null);
    if first <> new.id then
      raise exception 'Tenant % has used the idempotency key of this message for %', new.tenant, first
        using errcode = 'unique_violation', constraint = 'agent_messages_idempotency';
    end if;
  end if;
  return new;
end
$$;

create function bus.is_hard_to_read(document jsonb) returns boolean
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
  -- the longer look only where digits stand that such a number has
  select document @? '$.**{120}'
    or document::text ~ '[0-9]{250}' and document @? '$.** ? (@.type() == "number" && (@ > 1e300 || @ < -1e300))'
$$;
comment on function bus.is_hard_to_read(jsonb)
  is 'Whether common readers of JSON refuse what Postgres takes: 120 levels (some end at 128), numbers beyond what a double holds.';
revoke all on function bus.is_hard_to_read(jsonb) from public, anon, authenticated;

-- as before; what the readers of many languages cannot read is a dead letter and not an answer
create or replace function bus.look(
  service text, role text, shard integer, holder text, instance text, held jsonb, max_messages integer, lease_ms bigint,
  poll_ms bigint)
returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  -- who holds something comes back in time to renew it
  pause constant bigint := case when look.held = '{}' then look.poll_ms else least(look.poll_ms, look.lease_ms / 3) end;
  claimed record;
  due bigint;
begin
  if jsonb_typeof(look.held) is distinct from 'object' or (look.poll_ms >= 0) is not true then
    raise exception 'A look needs an object of what is held, and the milliseconds of the poll'
      using errcode = 'invalid_parameter_value';
  end if;
  perform bus.hand_back_unheld(look.holder, look.service || '/' || look.role || '/' || look.shard,
                               array(select k::uuid from jsonb_object_keys(look.held) as k));
  if (look.max_messages > 0) is not true then
    return jsonb_build_object('messages', '[]'::jsonb, 'next_ms', pause);
  end if;
  begin
    select jsonb_agg(to_jsonb(c) - 'is_hard' || jsonb_build_object('holder', look.holder)) filter (where not c.is_hard) as messages,
           array_agg(c.id) filter (where c.is_hard) as refused, array_agg(c.attempt) filter (where c.is_hard) as attempts
      into claimed
      from (select k.*, bus.is_hard_to_read(k.payload) or bus.is_hard_to_read(k.headers) as is_hard
              from bus.claim(look.service, look.role, look.shard, look.holder, least(look.max_messages, 1000), look.lease_ms,
                             look.instance) as k
            offset 0) as c;
  exception when object_not_in_prerequisite_state then
    -- suspended or draining in the registry: what it has in hand it may finish
    return jsonb_build_object('messages', '[]'::jsonb, 'next_ms', least(pause, 1000));
  end;
  if claimed.refused is not null then
    -- a worker that reads the whole answer at once would fall over one, and take those that came with it along
    perform bus.fail_many(claimed.refused, claimed.attempts, look.holder,
                          array_fill('payload cannot be read: nested too deeply, or a number beyond 1e300'::text,
                                     array[cardinality(claimed.refused)]),
                          array_fill(false, array[cardinality(claimed.refused)]));
  end if;
  if claimed.messages is not null or claimed.refused is not null then
    return jsonb_build_object('messages', coalesce(claimed.messages, '[]'), 'next_ms', 0);
  end if;
  due := bus.next_due(look.service, look.role, look.shard, look.instance);
  -- what is due and cannot be had, as under a limit, is not asked for without a pause
  return jsonb_build_object('messages', '[]'::jsonb,
                            'next_ms', case when due is null then pause else least(pause, greatest(due, 5)) end);
end
$$;

-- as before, by the last of the topic: whether any stands there was asked of all
create or replace function bus.broadcasts_held_back(topic text) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  current_epoch constant integer := bus.broadcast_epoch();
begin
  return coalesce((
    select (b.epoch, b.xid) >= (current_epoch, pg_snapshot_xmin(pg_current_snapshot()))
      from bus.broadcasts b
     where b.topic = broadcasts_held_back.topic
     order by b.epoch desc, b.xid desc, b.seq desc limit 1), false);
end
$$;

-- as before, for tasks of many steps beside many claims
create or replace function bus.task(task uuid) returns jsonb
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  several constant boolean := exists (
    select from public.agent_messages m where m.root_id = task.task and m.root_id <> m.id offset 3);
begin
  return (
  with message as (
    select m.* from public.agent_messages m where m.id = task and m.root_id = task
    union all
    select m.* from public.agent_messages m where m.root_id = task and m.root_id <> m.id
  ), step as (
    select m.*,
           m.status = 'claimed' or m.status = 'queued' and case
             -- claims are read once for many steps, and searched for few
             when several then (m.id, m.attempts + 1) in (select unnest(c.ids), unnest(c.attempts)::integer from bus.claims c)
             else exists (
               select from bus.claims c where m.id = any (c.ids) and c.attempts[array_position(c.ids, m.id)] = m.attempts + 1)
             end as held,
           not exists (select from message c where c.parent_id = m.id)
             and not exists (select from message r where r.replay_of = m.id) as leaf
      from message m
  ), last_leaf as (
    select s.* from step s where s.leaf and s.done_at is not null order by s.done_at desc, s.id desc limit 1
  )
  select jsonb_build_object(
    'id', task,
    'tenant', min(s.tenant),
    'status', case
      when bool_or(s.held) or (bool_or(s.status = 'queued') and (count(*) > 1 or max(s.attempts) > 0)) then 'running'
      when bool_or(s.status = 'queued') then 'queued'
      when bool_or(s.leaf and s.status = 'failed') then 'failed'
      when bool_or(s.leaf and s.status = 'cancelled') then 'cancelled'
      else 'done' end,
    'created_at', min(s.created_at),
    'finished_at', case when bool_and(s.done_at is not null) then max(s.done_at) end,
    'error', (select l.error from last_leaf l),
    'result', (select l.result from last_leaf l),
    'result_url', (select l.result_url from last_leaf l),
    'steps', jsonb_agg(jsonb_build_object(
      'id', s.id, 'parent_id', s.parent_id, 'replay_of', s.replay_of,
      'service', s.service, 'role', s.role, 'shard', s.shard, 'status', case when s.held then 'claimed' else s.status end,
      'attempts', s.attempts, 'claimed_by', s.claimed_by, 'created_at', s.created_at,
      'claimed_at', s.claimed_at, 'retry_at', s.retry_at, 'done_at', s.done_at, 'error', s.error,
      'result_snippet', s.result_snippet) order by s.created_at, s.id))
    from step s
  having count(*) > 0);
end
$$;

-- as before; a task of which a step is open is not put together to say so
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
  if asked.of_steps and (
       exists (select from public.agent_messages s where s.id = asked.root_id and s.done_at is null)
       or exists (select from public.agent_messages s
                   where s.root_id = asked.root_id and s.root_id <> s.id and s.done_at is null)) then
    -- it is asked at each end of a step, and the whole is put together once
    asked.done_at := null;
  elsif asked.of_steps then
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

-- A Supabase project gives whatever is made in public to its browser roles.
do $$
declare
  it record;
begin
  for it in
    select c.oid::regclass as name from pg_class c
     where c.relnamespace = 'public'::regnamespace and c.relkind = 'S' and pg_has_role(c.relowner, 'usage')
       and exists (select from pg_depend d join pg_class t on t.oid = d.refobjid
                    where d.objid = c.oid and d.deptype in ('a', 'i') and t.relnamespace = 'public'::regnamespace)
  loop
    execute format('revoke all on sequence %s from public, anon, authenticated', it.name);
  end loop;
end
$$;
do $$
begin
  if to_regclass('public._sqlx_migrations') is not null then
    revoke all on public._sqlx_migrations from public, anon, authenticated, service_role;
    grant select (version, success) on public._sqlx_migrations to service_role;
  end if;
end
$$;
revoke all on sequence public.rag_chunk_id from public, anon, authenticated;
-- the audit grows by what the processes of a fleet say, and nobody of them changes it
revoke all on public.bus_events from service_role;
grant select, insert on public.bus_events to service_role;
