-- Days of messages go as a whole, and nobody waits while one of them is looked through.

create table bus.touched (part oid not null);
comment on table bus.touched is 'Changes of day parts that may go soon: one that has been changed since it was looked through stays.';
comment on column bus.touched.part is 'The part, as pg_class names it.';
alter table bus.touched enable row level security;
revoke all on bus.touched from public, anon, authenticated, service_role;

create function bus.note_touch() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into bus.touched (part) values (tg_relid);
  return null;
end
$$;
comment on function bus.note_touch() is 'Notes that the part has been changed.';

create function bus.note_changes_of_days(cutoff timestamptz) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
declare
  part record;
begin
  for part in
    select d.part as name from bus.days_of_messages() as d
     -- a day before they may go, so that they can go as soon as they may
     where d.day <= (cutoff at time zone 'UTC')::date and d.day < (clock_timestamp() at time zone 'UTC')::date
       and not exists (select from pg_trigger t where t.tgrelid = d.part and t.tgname = 'note_touch')
     order by d.day
  loop
    continue when cardinality(bus.long_users(array[part.name::oid])) > 0;
    begin
      execute format('create trigger note_touch after insert or update on %s for each row execute function bus.note_touch()', part.name);
    exception when lock_not_available or deadlock_detected then
      -- somebody came meanwhile: the next time will do
      continue;
    end;
  end loop;
end
$$;
comment on function bus.note_changes_of_days(timestamptz) is 'Lets the changes of parts be noted that may go within a day.';

create function bus.days_of_messages(since date default '-infinity') returns table (part regclass, day date)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select c.oid::regclass, d.day
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
   cross join lateral (select case when c.relname ~ '^messages_[0-9]{8}$' then to_date(right(c.relname, 8), 'YYYYMMDD') end) as d (day)
   where i.inhparent = 'public.agent_messages'::regclass and (d.day >= since or d.day is null)
   order by d.day
$$;
comment on function bus.days_of_messages(date) is 'The parts of the table with their days since one; that of no day comes last.';

-- Part by part and by the one index that fits, whatever the planner makes of old statistics.
create function bus.tasks_go_on(parts regclass[], first uuid, next uuid, cutoff timestamptz) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  part regclass;
  open boolean;
begin
  foreach part in array parts loop
    execute format('select exists (select from %s m where m.root_id >= $1 and m.root_id < $2 and m.root_id <> m.id
                                      and (m.done_at is null or m.done_at >= $3))', part)
       into open using first, next, cutoff;
    if open then
      return true;
    end if;
  end loop;
  return false;
end
$$;
comment on function bus.tasks_go_on(regclass[], uuid, uuid, timestamptz) is
  'Whether tasks with ids from first up to next have steps in these parts that are unfinished, or ended since the cutoff.';

create function bus.any_goes_on(parts regclass[], tasks uuid[], cutoff timestamptz) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  part regclass;
  open boolean;
begin
  foreach part in array case when cardinality(tasks) > 0 then parts else '{}' end loop
    execute format('select exists (select from unnest($1) as t (id)
                                     join %s m on m.root_id = t.id and m.root_id <> m.id
                                    where m.done_at is null or m.done_at >= $2)', part)
       into open using tasks, cutoff;
    if open then
      return true;
    end if;
  end loop;
  return false;
end
$$;
comment on function bus.any_goes_on(regclass[], uuid[], timestamptz) is
  'Whether one of these tasks has steps in these parts that are unfinished, or ended since the cutoff.';

-- A task goes as a whole: not while one of its messages, in this part or another, is unfinished or young.
create function bus.day_to_drop(
  cutoff timestamptz, out part regclass, out day date, out rows_there bigint, out guests uuid[], out stuck date[])
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
  p record;
  first uuid;
  next uuid;
  parts regclass[];
  open boolean;
begin
  stuck := '{}';
  for p in
    select d.part as name, d.day from bus.days_of_messages() as d
     where (d.day + 1)::timestamp at time zone 'UTC' <= cutoff
       and exists (select from pg_trigger t where t.tgrelid = d.part and t.tgname = 'note_touch')
     order by d.day
  loop
    first := bus.first_id(p.day::timestamp at time zone 'UTC');
    next := bus.first_id((p.day + 1)::timestamp at time zone 'UTC');
    -- what is noted from here on may be what the looks below do not see
    delete from bus.touched t where t.part = p.name;
    execute format('select exists (select from %s m where m.done_at is null or m.done_at >= $1)', p.name)
       into open using cutoff;
    if not open then
      execute format('select array(select distinct m.root_id from %s m where m.root_id <> m.id and (m.root_id < $1 or m.root_id >= $2))', p.name)
         into guests using first, next;
      parts := array(select d.part from bus.days_of_messages() as d where d.part <> p.name);
      open := bus.tasks_go_on(parts, first, next, cutoff) or bus.any_goes_on(parts, guests, cutoff)
              or exists (select from unnest(guests) as t (id) join public.agent_messages m on m.id = t.id
                          where m.done_at is null or m.done_at >= cutoff);
    end if;
    if not open then
      part := p.name;
      day := p.day;
      execute format('select count(*) from %s', p.name) into rows_there;
      return;
    end if;
    stuck := stuck || p.day;
  end loop;
end
$$;
comment on function bus.day_to_drop(timestamptz) is
  'The first day whose tasks have all ended before the cutoff, how many messages it has and which tasks of other days have some there; and the days before it, which must stay.';

create function bus.drop_day(part regclass, day date, rows_there bigint, guests uuid[], cutoff timestamptz) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
set lock_timeout = '300ms'
as $$
declare
  first constant uuid := bus.first_id(drop_day.day::timestamp at time zone 'UTC');
  next constant uuid := bus.first_id((drop_day.day + 1)::timestamp at time zone 'UTC');
  others constant regclass[] := array(select d.part from bus.days_of_messages() as d where d.part <> drop_day.part);
  -- what has come of other tasks since the day was looked through is there, unless its sender chose another id
  recent constant regclass[] := array(
    select d.part from bus.days_of_messages((clock_timestamp() at time zone 'UTC')::date - 1) as d where d.part <> drop_day.part);
  other regclass;
  steps bigint;
begin
  -- somebody has a transaction open for long: the next time will do
  if part is null or cardinality(bus.long_users(array['public.agent_messages'::regclass::oid, part])) > 0 then
    return 0;
  end if;
  -- with a day goes what its tasks have left in others; somebody may have sent something for one of them just now, and
  -- then the day stays
  foreach other in array others loop
    execute format('delete from %s m where m.root_id >= $1 and m.root_id < $2 and m.root_id <> m.id and m.done_at < $3', other)
      using first, next, cutoff;
    get diagnostics steps = row_count;
    rows_there := rows_there + steps;
  end loop;
  -- nobody sends or claims from here to the commit: what is looked at under these locks is what is new
  execute format('lock table only public.agent_messages, %s in access exclusive mode', part);
  if exists (select from bus.touched t where t.part = drop_day.part)
     -- a step may have come, or been put back, wherever its id belongs; those that had ended have just been removed
     or bus.tasks_go_on(others, first, next, cutoff)
     or ((cardinality(guests) < 1000
          or bus.tasks_go_on(recent, '00000000-0000-0000-0000-000000000000', bus.first_id(cutoff), cutoff))
         and bus.any_goes_on(recent, guests, cutoff)) then
    raise lock_not_available;
  end if;
  execute format('drop table %s', part);
  return rows_there;
exception when lock_not_available or deadlock_detected then
  -- somebody came meanwhile, or has just sent something: the next time will do
  return 0;
end
$$;
comment on function bus.drop_day(regclass, date, bigint, uuid[], timestamptz) is
  'Drops a day as bus.day_to_drop found it, unless it has changed since; answers how many messages went.';

-- as before; messages of days that can go as a whole are not removed one by one, and a day is looked through before anything is locked
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
  whole record;
  day date;
  rest integer;
  removed bigint;
  old uuid[] := '{}';
begin
  if (retain.keep >= interval '0') is not true then
    raise exception 'Retention keeps what ended for an interval of zero or more' using errcode = 'invalid_parameter_value';
  end if;
  if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
    -- it would not see what was sent since its snapshot, and a table that is dropped asks for none
    raise exception 'Retention needs the isolation READ COMMITTED' using errcode = 'invalid_transaction_state';
  end if;
  if not pg_try_advisory_xact_lock(1651864175, -2) then
    return 0;
  end if;
  whole := bus.day_to_drop(cutoff);
  -- of days that must stay what has ended, and of those that should have gone a day ago: somebody may always be in the way;
  -- of the day that is not over only for who keeps less than one
  foreach day in array whole.stuck
    || array(select d.day from bus.days_of_messages() as d
              where (d.day + 2)::timestamp at time zone 'UTC' <= cutoff and d.day <> all (whole.stuck) order by d.day)
    || case when keep < interval '1 day' then array[(cutoff at time zone 'UTC')::date] end
  loop
    exit when cardinality(old) >= max_tasks;
    old := old || array(
      select r.id from public.agent_messages r
       where r.id >= bus.first_id(day::timestamp at time zone 'UTC')
         and r.id < least(bus.first_id((day + 1)::timestamp at time zone 'UTC'), bus.first_id(cutoff))
         and r.root_id = r.id and r.done_at < cutoff
         and not exists (select from public.agent_messages s
                          where s.root_id = r.id and s.root_id <> s.id and (s.done_at is null or s.done_at >= cutoff))
       order by r.id limit max_tasks - cardinality(old) for update skip locked);
  end loop;
  -- what is in no day's part, and what is left there of tasks whose beginning is gone
  old := old || array(
    select r.id from bus.messages_other r
     where r.root_id = r.id and r.done_at < cutoff
       and not exists (select from public.agent_messages s
                        where s.root_id = r.id and s.root_id <> s.id and (s.done_at is null or s.done_at >= cutoff))
     order by r.id limit max_tasks for update skip locked)
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
  removed := bus.drop_day(whole.part, whole.day, whole.rows_there, whole.guests, cutoff);
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
  perform bus.note_changes_of_days(cutoff);
  return rest + removed;
end
$$;

drop function bus.drop_old_partitions(timestamptz);
drop function bus.rows_of_past(regclass, date, timestamptz);

revoke all on function bus.note_touch() from public, anon, authenticated;
revoke all on function bus.note_changes_of_days(timestamptz) from public, anon, authenticated;
revoke all on function bus.days_of_messages(date) from public, anon, authenticated;
revoke all on function bus.tasks_go_on(regclass[], uuid, uuid, timestamptz) from public, anon, authenticated;
revoke all on function bus.any_goes_on(regclass[], uuid[], timestamptz) from public, anon, authenticated;
revoke all on function bus.day_to_drop(timestamptz) from public, anon, authenticated;
revoke all on function bus.drop_day(regclass, date, bigint, uuid[], timestamptz) from public, anon, authenticated;
