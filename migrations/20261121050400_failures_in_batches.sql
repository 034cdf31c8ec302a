-- Failures in batches, the history of hand-backs, dead letters by cause, and retention that waits for nobody.

-- ---------------------------------------------------------------- failing many

create function bus.next_try(
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
  again := retriable and counted < next_try.max_attempts
    and (next_try.expires_at is null or clock_timestamp() + delay < next_try.expires_at);
end
$$;
comment on function bus.next_try(integer, integer, timestamptz, text, boolean, bigint)
  is 'The rule for what a failure leads to: whether another attempt follows the counted one, and after which delay.';
revoke all on function bus.next_try(integer, integer, timestamptz, text, boolean, bigint) from public, anon, authenticated;

-- by that rule, and without telling of what a trigger tells of
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
    values (m.id, settled.done_at, m.service || '/' || m.role || '/' || m.shard, m.tenant);
    perform bus.after_end(array[m.id], case when m.group_key is not null then array[m.id] end);
  end if;
  perform bus.announce_tasks(array[settled.root_id]);
  return settled.status;
end
$$;

create function bus.fail_many(
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
  highest constant uuid := (select i from unnest(fail_many.ids) as i order by i desc limit 1);
  ended record;
begin
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
  perform bus.let_go(fail_many.holder, ended.claims, ended.versions, ended.ids, ended.attempts);
  -- whoever sleeps is told by what is placed, once for a route
  if ended.again is not null then
    perform bus.place(ended.again);
  end if;
  if ended.dead is not null then
    perform bus.after_end(ended.dead, ended.dead_of_groups);
  end if;
  perform bus.announce_tasks(ended.tasks);
  return query select s.id, s.status from unnest(ended.ids, ended.statuses) as s (id, status);
end
$$;
comment on function bus.fail_many(uuid[], smallint[], text, text[], boolean[], bigint[])
  is 'bus.fail for many at once: reasons, retriable (absent: true) and retry_ms (absent: exponential) stand in the order of the ids. Answers those that were still the holder''s, each with its new status: queued for another attempt, or failed.';
revoke all on function bus.fail_many(uuid[], smallint[], text, text[], boolean[], bigint[]) from public, anon, authenticated;
grant execute on function bus.fail_many(uuid[], smallint[], text, text[], boolean[], bigint[]) to service_role;

-- ---------------------------------------------------------------- the history of what was handed back

-- as before, and each hand-back stands in the history of its message
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
    returning t.id, mine.claim, mine.version, mine.attempt, mine.claimed_at
  ), told as (
    insert into bus.attempts (id, attempt, holder, started_at, outcome, error)
    select f.id, f.attempt, release.holder, f.claimed_at, 'released', 'handed back' from given_back f
    on conflict do nothing
  )
  select array_agg(f.id) as ids, array_agg(f.attempt) as attempts, array_agg(f.claim) as claims,
         array_agg(f.version) as versions into freed from given_back f;
  if freed.ids is null then
    return 0;
  end if;
  perform bus.let_go(release.holder, freed.claims, freed.versions, freed.ids, freed.attempts);
  perform bus.make_ready(freed.ids);
  return cardinality(freed.ids);
end
$$;

-- ---------------------------------------------------------------- dead letters by cause

create function bus.failure_groups(max_groups integer default 50, newest integer default 10000)
returns table (service text, role text, shard integer, error text, count bigint, first_seen timestamptz,
               last_seen timestamptz, sample_id uuid, sample_root_id uuid, sample_error text)
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
  with dead as materialized (
    select d.id, m.root_id, m.service, m.role, m.shard, m.error, d.failed_at,
           -- ids first, as they hold numbers; a cause is told by its first line
           regexp_replace(regexp_replace(regexp_replace(
             left(split_part(m.error, E'\n', 1), 300),
             '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}', '<id>', 'gi'),
             '\m(0x)?(?=[a-f]*[0-9])[0-9a-f]{12,}\M', '<hex>', 'gi'),
             '[0-9]+', '<n>', 'g') as cause
      from (select l.id, l.failed_at from bus.dead_letters l order by l.failed_at desc limit failure_groups.newest) as d
     -- the limit keeps the planner from reading the whole table for a join
     cross join lateral (
        select o.root_id, o.service, o.role, o.shard, o.error from public.agent_messages o
         where o.id = d.id limit 1) as m
  )
  select d.service, d.role, d.shard, d.cause, count(*), min(d.failed_at), max(d.failed_at),
         (array_agg(d.id order by d.failed_at desc, d.id desc))[1],
         (array_agg(d.root_id order by d.failed_at desc, d.id desc))[1],
         (array_agg(d.error order by d.failed_at desc, d.id desc))[1]
    from dead d
   group by d.service, d.role, d.shard, d.cause
   order by max(d.failed_at) desc, count(*) desc, d.service, d.role, d.shard, d.cause
   limit failure_groups.max_groups
$$;
comment on function bus.failure_groups(integer, integer)
  is 'The newest dead letters by route and cause (the first line of the error, ids and numbers taken out), the group that failed last first: how many, since when, until when, and the newest one as an example.';
revoke all on function bus.failure_groups(integer, integer) from public, anon, authenticated;
grant execute on function bus.failure_groups(integer, integer) to service_role;

-- ---------------------------------------------------------------- retention

create function bus.long_users(parts oid[]) returns oid[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  here constant oid := (select d.oid from pg_database d where d.datname = current_database());
  users text[];
begin
  select array_agg(distinct l.virtualtransaction) into users
    from pg_locks l
   where l.database = here and l.relation = any (long_users.parts) and l.granted and l.pid <> pg_backend_pid();
  if users is null then
    return '{}';
  end if;
  -- whoever is still there after a tenth of a second may be there for an hour
  perform pg_sleep(0.1);
  return array(
    select distinct l.relation from pg_locks l
     where l.database = here and l.relation = any (long_users.parts) and l.granted and l.virtualtransaction = any (users));
end
$$;
comment on function bus.long_users(oid[]) is 'Which of these tables transactions have in use that do not end within a tenth of a second.';
revoke all on function bus.long_users(oid[]) from public, anon, authenticated;

create function bus.rows_of_past(part regclass, day date, cutoff timestamptz) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  rows_there bigint;
  open boolean;
begin
  execute format('select count(*), coalesce(bool_or(m.done_at is null or m.done_at >= $1), false) from %s m', part)
     into rows_there, open using cutoff;
  -- a task goes as a whole: not while one of its messages, here or in a later part, is unfinished or young
  return case when not open and not exists (
    select from public.agent_messages m
     where m.root_id >= bus.first_id(rows_of_past.day::timestamp at time zone 'UTC')
       and m.root_id < bus.first_id((rows_of_past.day + 1)::timestamp at time zone 'UTC')
       and m.root_id <> m.id and (m.done_at is null or m.done_at >= cutoff)) then rows_there end;
end
$$;
comment on function bus.rows_of_past(regclass, date, timestamptz)
  is 'How many messages a day''s part has if all tasks that began on the day ended before the cutoff; null if one did not.';
revoke all on function bus.rows_of_past(regclass, date, timestamptz) from public, anon, authenticated;

-- as before, and who asks for the table never stands before it with all others behind him while somebody reads for long;
-- whether all has ended is looked at as a whole once nobody can send any more, so that no replay is overlooked
create or replace function bus.drop_old_partitions(cutoff timestamptz) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
declare
  part record;
  removed bigint := 0;
  rows_there bigint;
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
      -- a sender whose id is old may not have committed: nobody may be there when it is looked at for the last time
      execute format('lock table only public.agent_messages, %s in access exclusive mode', part.name);
      rows_there := bus.rows_of_past(part.name, part.day, cutoff);
      if rows_there is null then
        raise lock_not_available;
      end if;
      execute format('drop table %s', part.name);
      removed := removed + rows_there;
    exception when lock_not_available or deadlock_detected then
      -- somebody came meanwhile, or has just sent something: the next time will do
      continue;
    end;
  end loop;
  return removed;
end
$$;
