-- Retention that stops nobody and removes whole tasks; replays that repeat nothing.

-- as before; a task with a message here goes as a whole, wherever it began
create or replace function bus.rows_of_past(part regclass, day date, cutoff timestamptz) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  rows_there bigint;
  open boolean;
  guests_are_open boolean := false;
begin
  execute format('select count(*), coalesce(bool_or(m.done_at is null or m.done_at >= $1), false) from %s m', part)
     into rows_there, open using cutoff;
  if not open then
    execute format(
      'select exists (
         select from (select distinct m.root_id from %s m where m.root_id < $2 or m.root_id >= $3) as t
          where exists (select from public.agent_messages s where s.id = t.root_id and (s.done_at is null or s.done_at >= $1))
             or exists (select from public.agent_messages s
                         where s.root_id = t.root_id and s.root_id <> s.id and (s.done_at is null or s.done_at >= $1)))', part)
       into guests_are_open
      using cutoff, bus.first_id(rows_of_past.day::timestamp at time zone 'UTC'),
            bus.first_id((rows_of_past.day + 1)::timestamp at time zone 'UTC');
  end if;
  -- a task goes as a whole: not while one of its messages, here or in a later part, is unfinished or young
  return case when not open and not exists (
    select from public.agent_messages m
     where m.root_id >= bus.first_id(rows_of_past.day::timestamp at time zone 'UTC')
       and m.root_id < bus.first_id((rows_of_past.day + 1)::timestamp at time zone 'UTC')
       and m.root_id <> m.id and (m.done_at is null or m.done_at >= cutoff)) and not guests_are_open then rows_there end;
end
$$;

-- as before; with a day goes what its tasks have left in others
create or replace function bus.drop_old_partitions(cutoff timestamptz) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
declare
  part record;
  rows_there bigint;
  elsewhere bigint;
begin
  for part in
    select c.oid, c.oid::regclass as name, to_date(right(c.relname, 8), 'YYYYMMDD') as day
      from pg_inherits i join pg_class c on c.oid = i.inhrelid
     where i.inhparent = 'public.agent_messages'::regclass and c.relname ~ '^messages_[0-9]{8}$'
     order by c.relname
  loop
    exit when (part.day + 1)::timestamp at time zone 'UTC' > cutoff;
    continue when bus.rows_of_past(part.name, part.day, cutoff) is null;
    -- somebody has a transaction open for long: the next time will do
    continue when cardinality(bus.long_users(array['public.agent_messages'::regclass, part.oid])) > 0;
    begin
      delete from public.agent_messages m
       where m.root_id >= bus.first_id(part.day::timestamp at time zone 'UTC')
         and m.root_id < bus.first_id((part.day + 1)::timestamp at time zone 'UTC') and m.root_id <> m.id
         and (m.id < bus.first_id(part.day::timestamp at time zone 'UTC')
              or m.id >= bus.first_id((part.day + 1)::timestamp at time zone 'UTC'))
         -- somebody may have sent something for one of them just now, and then the day stays
         and m.done_at < cutoff;
      get diagnostics elsewhere = row_count;
      -- a sender whose id is old may not have committed: nobody may be there when it is looked at for the last time
      execute format('lock table only public.agent_messages, %s in access exclusive mode', part.name);
      rows_there := bus.rows_of_past(part.name, part.day, cutoff);
      if rows_there is null then
        raise lock_not_available;
      end if;
      execute format('drop table %s', part.name);
      -- nobody sends or claims from here to the commit: the next call drops the next
      return rows_there + elsewhere;
    exception when lock_not_available or deadlock_detected then
      -- somebody came meanwhile, or has just sent something: the next time will do
      continue;
    end;
  end loop;
  return 0;
end
$$;

-- as before; what stops others comes last, and what others have locked is left for the next time
create or replace function bus.retain(keep interval, max_tasks integer default 1000) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  cutoff constant timestamptz := clock_timestamp() - keep;
  today constant date := (clock_timestamp() at time zone 'UTC')::date;
  removed integer;
  rest integer;
  old uuid[];
begin
  if (retain.keep >= interval '0') is not true then
    raise exception 'Retention keeps what ended for an interval of zero or more' using errcode = 'invalid_parameter_value';
  end if;
  if not pg_try_advisory_xact_lock(1651864175, -2) then
    return 0;
  end if;
  -- what is left of parts that cannot go yet, and of ids that are not time-ordered
  old := array(
    select r.id from public.agent_messages r
     where (r.id < bus.first_id(cutoff) or r.tableoid = 'bus.messages_other'::regclass)
       and r.root_id = r.id and r.done_at < cutoff
       and not exists (select from public.agent_messages s
                        where s.root_id = r.id and s.root_id <> s.id and (s.done_at is null or s.done_at >= cutoff))
     order by r.id limit max_tasks for update skip locked)
    -- and of tasks whose beginning is gone
    || array(
    select distinct r.root_id from bus.messages_other r
     where r.root_id <> r.id and r.done_at < cutoff
       and not exists (select from public.agent_messages t where t.id = r.root_id)
       and not exists (select from public.agent_messages s
                        where s.root_id = r.root_id and s.root_id <> s.id and (s.done_at is null or s.done_at >= cutoff))
     limit max_tasks);
  -- looked at once more, since a replay may have been committed before its task was locked
  with gone as (
    delete from public.agent_messages t using unnest(old) as o (id)
     where (t.id = o.id or (t.root_id = o.id and t.root_id <> t.id)) and t.done_at < cutoff
       and not exists (select from public.agent_messages s
                        where s.root_id = o.id and s.root_id <> s.id and (s.done_at is null or s.done_at >= cutoff))
    returning t.id)
  select count(*) into rest from gone;
  -- senders come by these: what one of them has locked is left for the next time
  delete from bus.keys k where k.ctid = any (array(
    select o.ctid from bus.keys o where o.until < (select clock_timestamp()) for update skip locked));
  delete from bus.dead_letters d
   where d.failed_at < cutoff and not exists (select from public.agent_messages m where m.id = d.id);
  delete from bus.attempts a where a.ended_at < cutoff and not exists (select from public.agent_messages m where m.id = a.id);
  delete from bus.watchers w where w.ctid = any (array(
    select o.ctid from bus.watchers o where o.until < (select clock_timestamp()) for update skip locked));
  -- one that is full by now says no more than none
  delete from bus.buckets b where b.ctid = any (array(
    select o.ctid from bus.buckets o
     where o.at < (select clock_timestamp() - interval '7 days')
       and not exists (select from bus.limits l
                        where l.lane = o.lane and l.counted_by = o.counted_by and l.per_second is not null
                          and o.tokens + date_part('epoch', clock_timestamp() - o.at) * l.per_second < l.burst)
       for update skip locked));
  perform bus.mend_lines();
  -- last, since nobody sends or claims from the first of these until the commit
  begin
    -- whoever has the part open that takes what no other does, as a dump, would be waited for, and this by all who send or claim:
    -- as long as tomorrow has its part, that can be put off
    perform bus.ensure_partitions()
      where to_regclass('bus.messages_' || to_char(today + 1, 'YYYYMMDD')) is null
         or (to_regclass('bus.messages_' || to_char(today + 3, 'YYYYMMDD')) is null
             and cardinality(bus.long_users(array['bus.messages_other'::regclass::oid])) = 0);
  exception when lock_not_available then
    null;
  end;
  removed := bus.drop_old_partitions(cutoff);
  return removed + rest;
end
$$;

-- as before; of a line of replays only the last is replayed
create or replace function bus.replay_after(dead_letter uuid, delay_ms bigint) returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  m public.agent_messages;
  fresh uuid := bus.uuid_v7();
  earlier record;
begin
  -- a task that is just being removed is gone, and one of which something is replayed is not removed
  perform from public.agent_messages r
    where r.id = (select t.root_id from public.agent_messages t where t.id = dead_letter) and r.id <> dead_letter for key share;
  select t.* into m from public.agent_messages t where t.id = dead_letter for update;
  if not found then
    raise exception 'Message % does not exist', dead_letter using errcode = 'no_data_found';
  end if;
  if m.status <> 'failed' then
    raise exception 'Message % is %, only a failed one can be replayed', dead_letter, m.status
      using errcode = 'object_not_in_prerequisite_state';
  end if;
  -- one that failed again is a dead letter of its own, and the last of a line is the one to replay
  select r.id, r.status into earlier from public.agent_messages r
   where r.root_id = m.root_id and r.root_id <> r.id and r.replay_of = dead_letter and r.status <> 'cancelled' limit 1;
  if found then
    raise exception 'Message % has been replayed already, as %, which is %', dead_letter, earlier.id, earlier.status
      using errcode = 'object_not_in_prerequisite_state';
  end if;
  -- no parent: the deadline of the task may long be over, and a replay starts afresh
  insert into public.agent_messages
         (id, service, role, shard, tenant, payload, priority, max_attempts, retry_at, root_id, replay_of, reply_to,
          group_key, limit_key, target_instance, headers)
  values (fresh, m.service, m.role, m.shard, m.tenant, m.payload, m.priority, m.max_attempts,
          clock_timestamp() + nullif(delay_ms, 0) * interval '1 millisecond', m.root_id, m.id,
          m.reply_to, m.group_key, m.limit_key, m.target_instance, m.headers);
  perform bus.record_event('message_replayed', m, 'bus.replay', jsonb_build_object('replay', fresh));
  return fresh;
end
$$;

-- as before, and likewise
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
     where (replay_many.route is null or d.route = replay_many.route)
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
