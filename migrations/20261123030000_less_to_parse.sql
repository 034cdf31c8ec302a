-- Less for Postgres to parse in each statement: it reads the text of every check of a table, and of the condition of every
-- trigger, anew for each statement that writes to it. Those of domains, and statements of functions, are kept by the session.

-- The names of what is sent, by the same rules and under the same name as before. The columns of bus.ready stay as they are:
-- sessions that are open keep statements that know their types.
create domain bus.route_name as text constraint service_role_and_tenant_are_names check (
  value ~ '^[a-z][a-z0-9-]*/[a-z][a-z0-9-]*/[0-9]+$'
  and length(split_part(value, '/', 1)) <= 63 and length(split_part(value, '/', 2)) <= 63);
comment on domain bus.route_name is 'A route as service/role/shard.';
create domain bus.tenant_name as text constraint service_role_and_tenant_are_names check (
  value ~ '^[A-Za-z0-9][A-Za-z0-9_.:@-]*$' and length(value) <= 128);
comment on domain bus.tenant_name is 'The tenant of a message.';

-- as before, and that each is sent fresh, under its names
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

-- as before, under their names
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
  its_route constant text := service || '/' || role || '/' || shard;
  moment constant timestamptz := clock_timestamp();
  today constant date := (moment at time zone 'UTC')::date;
  part constant text := 'messages_' || to_char(today, 'YYYYMMDD');
  its_table constant regclass := to_regclass('bus.' || part);
  made uuid[];
  placed uuid[] := '{}';
  settings record;
begin
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

-- what is made ready again was judged when it was sent
alter table bus.ready drop constraint service_role_and_tenant_are_names;

-- as before, without numerics
create or replace function bus.wake() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  slot constant regclass := ('bus.woken_' || (new.lane & 15))::regclass;
  -- 18 bits of the lane over 45 bits of tenths of a millisecond
  lane_bits constant bigint := (new.lane & 262143) << 45;
  at constant bigint := (date_part('epoch', clock_timestamp() - timestamptz '2026-01-01 00:00:00Z') * 10000)::bigint;
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

-- as before, by the array that is made anyway
create or replace function bus.complete(
  id uuid, holder text, attempt smallint, result jsonb default null, result_snippet text default null,
  result_url text default null, follow_ups jsonb default '[]')
returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  held record;
  keyed constant boolean := complete.follow_ups @? '$[*] ? (exists (@.idempotency_key))';
begin
  if keyed then
    held := bus.hold_keys(array[complete.id], array[complete.follow_ups]);
    follow_ups := held.follow_ups[1];
  end if;
  if complete.follow_ups @? '$[*] ? (exists (@.group_key) || exists (@.awaits))' then
    perform bus.lock_ends(array[complete.id], array[complete.follow_ups]);
  end if;
  if bus.complete_batch(array[complete.id], array[complete.attempt], complete.holder, array[complete.result],
                        array[complete.result_snippet], array[complete.result_url]) is null then
    if keyed then
      perform bus.give_keys_back(held.tenants, held.keys, held.ids);
    end if;
    return false;
  end if;
  if jsonb_array_length(complete.follow_ups) > 0 then
    perform bus.enqueue_many((
      select jsonb_agg(jsonb_build_object('tenant', m.tenant) || f || jsonb_build_object('parent_id', m.id))
        from public.agent_messages m, jsonb_array_elements(complete.follow_ups) as f
       where m.id = complete.id));
  end if;
  return true;
end
$$;
