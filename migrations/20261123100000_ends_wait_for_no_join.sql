-- An end waits for nobody who keeps what awaits it: who counts down for a join is settled later where somebody has it.

alter table bus.unsettled
  add column ended uuid,
  drop constraint unsettled_of_one,
  add constraint unsettled_of_one check (num_nonnulls(task, lane, ended) = 1);
comment on column bus.unsettled.ended is 'A message that ended while somebody kept what awaits it: that is counted down.';

-- Locks these and what awaits them; false when somebody keeps one of them.
create function bus.lock_rows_soon(messages uuid[]) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
set lock_timeout = '1s'
as $$
begin
  perform bus.lock_rows(lock_rows_soon.messages);
  return true;
exception when lock_not_available then
  return false;
end
$$;
revoke all on function bus.lock_rows_soon(uuid[]) from public, anon, authenticated;

-- Locks these, and what awaits them unless somebody keeps that for a second; answers those of which something that awaits them is
-- not locked.
create function bus.lock_ended(messages uuid[]) returns uuid[]
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  waiting uuid[];
  locked uuid[];
begin
  -- all who end at the same moment are through soon; who keeps a transaction open would hold up many ends
  if current_setting('bus.has_waited', true) is distinct from 'on' then
    if bus.lock_rows_soon(lock_ended.messages) then
      return '{}';
    end if;
    -- once in a transaction is enough
    perform set_config('bus.has_waited', 'on', true);
  end if;
  perform from public.agent_messages m where m.id = any (lock_ended.messages) order by m.id for no key update;
  -- whoever comes to await them now has to wait
  waiting := array(select a.id from bus.awaited a where a.on_id = any (lock_ended.messages));
  locked := array(select m.id from public.agent_messages m where m.id = any (waiting) order by m.id for no key update skip locked);
  return array(
    select distinct a.on_id from bus.awaited a join public.agent_messages m on m.id = a.id
     where a.on_id = any (lock_ended.messages) and a.id <> all (locked));
end
$$;
revoke all on function bus.lock_ended(uuid[]) from public, anon, authenticated;

-- as before; of what somebody keeps the join is counted down later
create or replace function bus.after_end(ids uuid[], grouped uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  one uuid;
  awaited constant boolean := exists (select from bus.awaited);
  late uuid[] := '{}';
begin
  if awaited or grouped is not null then
    if awaited then
      late := bus.lock_ended(after_end.ids);
    end if;
    perform bus.lock_groups(after_end.ids);
  end if;
  if awaited then
    if cardinality(late) > 0 then
      insert into bus.unsettled (ended) select unnest(late);
    end if;
    perform bus.count_down(array(select unnest(after_end.ids) except select unnest(late)));
  end if;
  foreach one in array coalesce(after_end.grouped, '{}') loop
    perform bus.leave_group(one);
  end loop;
end
$$;

-- as before; waits for nobody who keeps what awaits one of them
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
    perform bus.lock_ended(complete_batch.ids);
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

-- as before; waits for nobody who keeps what awaits one of them
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
    perform bus.lock_ended(fail_many.ids);
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

-- as before; waits for nobody who keeps what awaits one of them
create or replace function bus.lock_ends(ids uuid[], follow_ups jsonb[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
begin
  -- what follow-ups await is locked once more when they are sent
  perform bus.lock_ended(lock_ends.ids || array(
    select a::uuid
      from unnest(lock_ends.follow_ups) as e, jsonb_array_elements(e) as f, jsonb_array_elements_text(nullif(f -> 'awaits', 'null')) as a)
    || array(
    select k.id
      from unnest(lock_ends.ids, lock_ends.follow_ups) as e (id, follow_ups)
      join public.agent_messages m on m.id = e.id
     cross join lateral jsonb_array_elements(e.follow_ups) as f
      join bus.keys k on k.tenant = coalesce(f ->> 'tenant', m.tenant) and k.idempotency_key = f ->> 'idempotency_key'));
  perform bus.lock_group(g.lane, g.tenant, g.group_key)
     from (select g.lane, g.tenant, g.group_key from bus.groups g
            where g.id = any (lock_ends.ids || array(select a.id from bus.awaited a where a.on_id = any (lock_ends.ids)))
           union
           select hashtextextended((f ->> 'service') || '/' || (f ->> 'role') || '/' || coalesce(f ->> 'shard', '0'), 0),
                  coalesce(f ->> 'tenant', m.tenant), f ->> 'group_key'
             from unnest(lock_ends.ids, lock_ends.follow_ups) as e (id, follow_ups)
             join public.agent_messages m on m.id = e.id
            cross join lateral jsonb_array_elements(e.follow_ups) as f
            where f ->> 'group_key' is not null
            order by 1, 2, 3) as g;
  perform from bus.claims c where c.limited and c.ids && lock_ends.ids order by c.holder, c.claim for update;
end
$$;

-- as before; what ended while somebody kept what awaits it is counted down
create or replace function bus.settle_unsettled(max_rows integer) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  u bus.unsettled;
  late uuid;
  seen integer := 0;
begin
  delete from bus.unsettled d where d.id = any (array(
    select o.id from bus.unsettled o
     where o.id in (select n.id from (select t.id, max(t.id) over (partition by t.task) as last
                                        from bus.unsettled t where t.task is not null) as n
                     where n.id < n.last)
     for update skip locked));
  for u in select t.* from bus.unsettled t order by t.seen nulls first, t.id limit max_rows for update skip locked loop
    if u.ended is not null then
      -- what somebody has is left for the next time
      update bus.unsettled t set seen = clock_timestamp() where t.id = u.id;
      begin
        if bus.try_end(u.ended) then
          perform bus.count_down(array[u.ended]);
          delete from bus.unsettled t where t.id = u.id;
        end if;
      exception when others then
        raise warning 'What awaits message % cannot go on: %', u.ended, sqlerrm;
      end;
      continue;
    end if;
    if u.at < clock_timestamp() - interval '1 hour' then
      delete from bus.unsettled t where t.id = u.id;
      continue;
    end if;
    if u.lane is not null then
      perform bus.count_claims(u.lane) where exists (select from bus.limits l where l.lane = u.lane);
    else
      for late in
        select t.id from public.agent_messages t
         where t.root_id = u.task and t.root_id <> t.id and t.status in ('queued', 'claimed') and t.replay_of is null
           and (t.created_at <= u.at or exists (
             with recursive sender as (
               select p.parent_id, p.status from public.agent_messages p where p.id = t.parent_id
               union all
               select p.parent_id, p.status from sender s join public.agent_messages p on p.id = s.parent_id
             )
             select from sender s where s.status = 'cancelled'))
         order by t.id limit max_rows - seen for update of t skip locked
      loop
        seen := seen + 1;
        continue when (select count(*) from (select from bus.claims c where late = any (c.ids) for update skip locked) as locked)
                    < (select count(*) from bus.claims c where late = any (c.ids));
        begin
          perform bus.cancel_open(array[late]), bus.announce_tasks(array[u.task]) where bus.try_end(late);
        exception when others then
          raise warning 'Message % of a cancelled task cannot be cancelled: %', late, sqlerrm;
        end;
      end loop;
      exit when seen >= max_rows;
    end if;
    -- somebody may have looked before his transaction had a number, but hardly a minute before
    if u.at < clock_timestamp() - interval '1 minute' and u.ahead <= pg_snapshot_xmin(pg_current_snapshot())
      and not exists (select from public.agent_messages t where t.root_id = u.task and t.root_id <> t.id
                         and t.status in ('queued', 'claimed') and t.replay_of is null and t.created_at <= u.at) then
      delete from bus.unsettled t where t.id = u.id;
    else
      update bus.unsettled t
         set seen = clock_timestamp(), ahead = coalesce(t.ahead, pg_snapshot_xmax(pg_current_snapshot())) where t.id = u.id;
    end if;
  end loop;
end
$$;
