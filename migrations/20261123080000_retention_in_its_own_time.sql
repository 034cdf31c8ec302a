-- Retention takes the time that it needs and makes the days to come whatever else fails; what is sent without its beginning, or
-- with arrays that do not match, is refused.

create function bus.ensure_days_ahead() returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  today constant date := (clock_timestamp() at time zone 'UTC')::date;
begin
  -- whoever has the part open that takes what no other does, as a dump, would be waited for, and this by all who send or claim:
  -- as long as tomorrow has its part, that can be put off
  if to_regclass('bus.messages_' || to_char(today + 1, 'YYYYMMDD')) is null
     or (to_regclass('bus.messages_' || to_char(today + 3, 'YYYYMMDD')) is null
         and cardinality(bus.long_users(array['bus.messages_other'::regclass::oid])) = 0) then
    return bus.ensure_partitions();
  end if;
  return 0;
exception when lock_not_available then
  if to_regclass('bus.messages_' || to_char(today + 1, 'YYYYMMDD')) is null then
    raise;
  end if;
  return 0;
end
$$;
comment on function bus.ensure_days_ahead()
  is 'Makes the parts that days to come lack, when nobody has to wait for that or tomorrow has none; answers how many.';
revoke all on function bus.ensure_days_ahead() from public, anon, authenticated;
grant execute on function bus.ensure_days_ahead() to service_role;

-- as before; a day that can go is read once and not once more to count it
create or replace function bus.day_to_drop(
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
    begin
      -- one look tells whether all of it is old, up to the first that is not, and how much that is
      execute format('select count(1 / case when m.done_at < $1 then 1 else 0 end) from %s m', p.name)
         into rows_there using cutoff;
      open := false;
    exception when division_by_zero then
      open := true;
    end;
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
      return;
    end if;
    stuck := stuck || p.day;
  end loop;
end
$$;

-- as before; what goes one by one of the day that then goes as a whole is counted once
create or replace function bus.retain(keep interval, max_tasks integer default 1000) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  cutoff constant timestamptz := clock_timestamp() - keep;
  whole record;
  day date;
  rest integer;
  of_whole integer;
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
  -- what somebody keeps open and is emptied may go as a whole in the end, and has been counted for that
  select count(*), count(*) filter (where g.id >= bus.first_id(whole.day::timestamp at time zone 'UTC')
                                      and g.id < bus.first_id((whole.day + 1)::timestamp at time zone 'UTC'))
    into rest, of_whole from gone as g;
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
  removed := bus.drop_day(whole.part, whole.day, whole.rows_there - of_whole, whole.guests, cutoff);
  begin
    perform bus.ensure_days_ahead();
  exception when lock_not_available then
    null;
  end;
  perform bus.note_changes_of_days(cutoff);
  return rest + removed;
end
$$;

-- as before; an attempt begins with 1, since what comes before its first part would be taken for stored
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
  if emit.first_seq > coalesce(last_seq, 0) + 1 then
    raise exception 'Partial % would leave a gap after %', emit.first_seq, coalesce(last_seq, 0)
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

-- as before; arrays of other lengths are refused
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
  if coalesce(cardinality(release.attempts), 0) <> coalesce(cardinality(release.ids), 0) then
    perform bus.refuse_uneven('ids', coalesce(cardinality(release.ids), 0), array['attempts'],
                              array[coalesce(cardinality(release.attempts), 0)]);
  end if;
  -- a message that nobody wants to work on must not go round for ever
  for worn in
    select m.id, h.attempt, h.claim, h.version, h.claimed_at
      from unnest(release.ids, release.attempts) as g (id, attempt)
      join bus.held(release.holder, true) h on h.id = g.id and h.attempt = g.attempt
      join public.agent_messages m on m.id = g.id
     where m.released >= 1000 order by m.id
  loop
    if bus.settle_failure(worn.id, worn.attempt, 'released', release.holder, 'handed back 1000 times', false, null,
                          release.holder, worn.claimed_at) is not null then
      perform bus.let_go(release.holder, array[worn.claim], array[worn.version], array[worn.id], array[worn.attempt]);
    end if;
  end loop;
  with mine as materialized (
    select m.id, h.attempt, h.claim, h.version, h.claimed_at
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
    returning t.id, t.root_id, mine.claim, mine.version, mine.attempt, mine.claimed_at
  ), told as (
    insert into bus.attempts (id, attempt, holder, started_at, outcome, error)
    select f.id, f.attempt, release.holder, f.claimed_at, 'released', 'handed back' from given_back f
    on conflict do nothing
  )
  select array_agg(f.id) as ids, array_agg(f.attempt) as attempts, array_agg(f.claim) as claims,
         array_agg(f.version) as versions, array_agg(distinct f.root_id) as tasks
    into freed from given_back f;
  if freed.ids is null then
    return 0;
  end if;
  perform bus.let_go(release.holder, freed.claims, freed.versions, freed.ids, freed.attempts);
  perform bus.make_ready(freed.ids);
  perform bus.announce_tasks(freed.tasks);
  return cardinality(freed.ids);
end
$$;

-- as before; arrays of other lengths are refused
create or replace function bus.partials_after(ids uuid[], attempts smallint[], seqs integer[], max_rows integer default 1000)
returns table (message_id uuid, attempt smallint, seq integer, at timestamptz, content jsonb)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
  if coalesce(cardinality(partials_after.ids), 0) <> any (array[
    coalesce(cardinality(partials_after.attempts), 0), coalesce(cardinality(partials_after.seqs), 0)]) then
    perform bus.refuse_uneven('ids', coalesce(cardinality(partials_after.ids), 0), array['attempts', 'seqs'], array[
      coalesce(cardinality(partials_after.attempts), 0), coalesce(cardinality(partials_after.seqs), 0)]);
  end if;
  -- planned once for a session, as it looks through the parts of all days
  return query
  select p.message_id, p.attempt, p.seq, p.at, p.content
    from unnest(partials_after.ids, partials_after.attempts, partials_after.seqs)
         with ordinality as given (id, attempt, seq, place)
   cross join lateral (
     select q.message_id, q.attempt, q.seq, q.at, q.content from bus.partials q
      where q.message_id = given.id and (q.attempt, q.seq) > (given.attempt, given.seq)
        -- the row tells the last attempt that began, of a large claim once it is heard of, as by its first part; where
        -- the row is gone, the last one has ended
        and q.attempt >= coalesce((select m.attempts from public.agent_messages m where m.id = given.id), 0)
      order by q.attempt, q.seq limit partials_after.max_rows) p
   order by given.place, p.attempt, p.seq limit partials_after.max_rows;
end
$$;

-- as before; null, beside which nothing could be told apart, is refused
create or replace function bus.hand_back_unheld(holder text, route text, held uuid[]) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  rest record;
begin
  if held is null or array_position(held, null) is not null then
    raise exception 'What is held is named by its ids, and % is null: nothing is an empty array',
      coalesce('held[' || array_position(held, null) || ']', 'held') using errcode = 'invalid_parameter_value';
  end if;
  select array_agg(h.id) as ids, array_agg(h.attempt) as attempts into rest
    from bus.claims c, unnest(c.ids, c.attempts) as h (id, attempt)
   where c.holder = hand_back_unheld.holder and c.route = hand_back_unheld.route
     and c.lease_until > (select clock_timestamp()) and h.id <> all (held);
  return case when rest.ids is null then 0 else bus.release(rest.ids, rest.attempts, hand_back_unheld.holder) end;
end
$$;
