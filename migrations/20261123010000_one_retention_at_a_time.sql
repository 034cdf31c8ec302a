-- Retention and new parts by one session at a time, and no part of a day that retention has dropped.

-- as before, for all parts that there are
create or replace function bus.make_insert_plain() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $make$
declare
  given constant text := '(select unnest(ids) as id, unnest(payloads) as payload, unnest(headers) as headers) as g';
  -- All that bus.after_insert asks of such a message, and the bounds of the part. What does not fit is inserted into the table as
  -- ever, so that only a rule which becomes stricter there must become so here.
  fits constant text :=
    'g.id >= first and g.id < past and jsonb_typeof(g.payload) = ''object''
         and (small or pg_column_size(g.payload) <= 1048576)
         and (g.headers is null or jsonb_typeof(g.headers) = ''object'' and pg_column_size(g.headers) <= 16384)';
  parts text;
begin
  select string_agg(format($part$
    when %1$L then
      insert into bus.%1$I (id, root_id, service, role, shard, tenant, payload, headers)
      select g.id, g.id, service, role, shard, tenant, g.payload, coalesce(g.headers, '{}')
        from %2$s
       where %3$s;$part$, c.relname, given, fits), '' order by c.relname desc)
    into parts
    -- not pg_inherits: a transaction that reads by an old snapshot would leave out what others have made since
    from (select split_part(t.relid::regclass::text, '.', 2) as relname
            from pg_partition_tree('public.agent_messages') as t) as c
   where c.relname ~ '^messages_[0-9]{8}$'
     and to_date(right(c.relname, 8), 'YYYYMMDD') >= (clock_timestamp() at time zone 'UTC')::date - 1;
  execute format($body$
create or replace function bus.insert_plain(
  part text, service text, role text, shard integer, tenant text, ids uuid[], payloads jsonb[], headers jsonb[], first uuid,
  past uuid)
returns uuid[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  -- none is larger than all together
  small constant boolean := pg_column_size(payloads) <= 1048576;
  stored bigint := 0;
begin
  case part
    -- one there must be
    when '' then null;%1$s
    else null;
  end case;
  get diagnostics stored = row_count;
  if stored = greatest(cardinality(ids), cardinality(payloads), cardinality(headers)) then
    return ids;
  end if;
  insert into public.agent_messages (id, root_id, service, role, shard, tenant, payload, headers)
  select g.id, g.id, service, role, shard, tenant, g.payload, coalesce(g.headers, '{}')
    from %2$s
   where stored = 0 or (%3$s) is not true;
  return array(
    select g.id from %2$s
     where stored > 0 and %3$s);
end
$$ $body$, parts, given, fits);
end
$make$;

-- as before, one session after the other; retention of less than a day does not make a part only to drop it
create or replace function bus.ensure_partitions(days_ahead integer default 3) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
set lock_timeout = '2s'
as $$
declare
  today constant date := (clock_timestamp() at time zone 'UTC')::date;
  day date;
  part text;
  made integer := 0;
begin
  for day in select generate_series(today - 1, today + days_ahead, interval '1 day')::date loop
    part := 'messages_' || to_char(day, 'YYYYMMDD');
    continue when to_regclass('bus.' || part) is not null;
    -- of a bus that stands, yesterday's part has been dropped by retention
    continue when day < today and to_regclass('bus.messages_' || to_char(today, 'YYYYMMDD')) is not null;
    -- senders do not wait for this lock; whoever has waited for it sees what was made meanwhile
    lock table only public.agent_messages in share update exclusive mode;
    continue when to_regclass('bus.' || part) is not null;
    -- what came before the day had its part stays where it is, and the day with it
    continue when exists (
      select from bus.messages_other o
       where o.id >= bus.first_id(day::timestamp at time zone 'UTC')
         and o.id < bus.first_id((day + 1)::timestamp at time zone 'UTC'));
    begin
      execute format(
        'create table bus.%I partition of public.agent_messages for values from (%L) to (%L)
           with (fillfactor = 45, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0)', part,
        bus.first_id(day::timestamp at time zone 'UTC'), bus.first_id((day + 1)::timestamp at time zone 'UTC'));
    exception when check_violation then
      -- somebody has sent for this day just now
      continue;
    end;
    execute format('alter table bus.%I enable row level security', part);
    execute format('revoke all on bus.%I from public, anon, authenticated, service_role', part);
    execute format('comment on table bus.%I is %L', part, 'Messages of one day by their ids; dropped as a whole by bus.retain.');
    made := made + 1;
  end loop;
  if made > 0 then
    begin
      perform bus.make_insert_plain();
    exception when lock_not_available or internal_error then
      -- somebody is just changing that function; the day has its statement before it comes, by the part that is made tomorrow
      null;
    end;
  end if;
  return made;
end
$$;

comment on function bus.ensure_partitions(integer)
  is 'Makes the parts for today to days_ahead that are missing, in a new bus that of yesterday as well; answers how many. Without a part messages go to bus.messages_other.';

-- as before; while another session is at it there is nothing to do
create or replace function bus.retain(keep interval, max_tasks integer default 1000) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  cutoff timestamptz := clock_timestamp() - keep;
  removed integer;
  rest integer;
  old uuid[];
begin
  if not pg_try_advisory_xact_lock(1651864175, -2) then
    return 0;
  end if;
  begin
    perform bus.ensure_partitions();
  exception when lock_not_available then
    null;
  end;
  removed := bus.drop_old_partitions(cutoff);
  -- what is left of parts that cannot go yet, and of ids that are not time-ordered
  old := array(
    select r.id from public.agent_messages r
     where (r.id < bus.first_id(cutoff) or r.tableoid = 'bus.messages_other'::regclass)
       and r.root_id = r.id and r.done_at < cutoff
       and not exists (select from public.agent_messages s
                        where s.root_id = r.id and s.root_id <> s.id and (s.done_at is null or s.done_at >= cutoff))
     order by r.id limit max_tasks for update skip locked);
  -- looked at once more, since a replay may have been committed before its task was locked
  with gone as (
    delete from public.agent_messages t using unnest(old) as o (id)
     where (t.id = o.id or (t.root_id = o.id and t.root_id <> t.id)) and t.done_at < cutoff
       and not exists (select from public.agent_messages s
                        where s.root_id = o.id and s.root_id <> s.id and (s.done_at is null or s.done_at >= cutoff))
    returning t.id)
  select count(*) into rest from gone;
  delete from bus.keys k where k.until < (select clock_timestamp());
  delete from bus.dead_letters d
   where d.failed_at < cutoff and not exists (select from public.agent_messages m where m.id = d.id);
  delete from bus.attempts a where a.ended_at < cutoff and not exists (select from public.agent_messages m where m.id = a.id);
  delete from bus.watchers w where w.until < (select clock_timestamp());
  delete from bus.buckets b where b.at < (select clock_timestamp() - interval '7 days');
  return removed + rest;
end
$$;

comment on function bus.retain(interval, integer)
  is 'Removes finished tasks that ended before the interval: whole days at once, the rest task by task; answers how many messages went, 0 while another session does it.';
