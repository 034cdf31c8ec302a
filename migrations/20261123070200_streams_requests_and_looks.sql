-- Streams that are kept and shown as they count, requests that end with their caller, and looks that are neither idle nor late.

-- as before; parts of a message that has not ended are kept, and all of one that has for as long after its end
create or replace function bus.retain_partials(keep interval, max_rows integer default 5000) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  cutoff constant timestamptz := clock_timestamp() - keep;
  removed integer;
begin
  with old as (
    select p.message_id, p.attempt, p.seq from bus.partials p
     where p.at < cutoff
       -- those of a message go together; offset 0: each is looked up by its id, whatever the planner takes for cheaper
       and not exists (select from public.agent_messages m
                        where m.id = p.message_id and (m.done_at is null or m.done_at >= cutoff) offset 0)
     order by p.at limit max_rows for update of p skip locked)
  delete from bus.partials p using old
   where p.message_id = old.message_id and p.attempt = old.attempt and p.seq = old.seq;
  get diagnostics removed = row_count;
  return removed;
end
$$;
comment on function bus.retain_partials(interval, integer)
  is 'Removes partials of messages that ended before the interval, or are gone; answers how many went. The result of the message stands without them.';

-- as before; what an earlier attempt had is void once another begins, though that has no part yet
create or replace function bus.partials_after(ids uuid[], attempts smallint[], seqs integer[], max_rows integer default 1000)
returns table (message_id uuid, attempt smallint, seq integer, at timestamptz, content jsonb)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
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
comment on function bus.partials_after(uuid[], smallint[], integer[], integer)
  is 'Parts of the last attempt of these messages after the given attempt and number of each, in order; 0 and 0 stand for the start.';

-- as before; what somebody has locked is not asked for 200 times a second
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
  -- what is due and cannot be had, as under a limit, is not asked for without a pause; what is due already is locked, and
  -- its transaction may take long
  return jsonb_build_object('messages', '[]'::jsonb, 'next_ms', case when due is null then pause
                                                                  when due = 0 then least(pause, 100)
                                                                  else least(pause, greatest(due, 5)) end);
end
$$;

-- as before; who had work or was woken looks again soon, as hints of a busy route are thinned out
create or replace function bus.work(worker jsonb, held jsonb) returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  service constant text := work.worker ->> 'agent_service';
  role constant text := work.worker ->> 'agent_role';
  shard constant integer := coalesce((work.worker ->> 'agent_shard')::integer, 0);
  instance constant text := coalesce(work.worker ->> 'holder_id', 'worker/0');
  lease_ms constant bigint := coalesce((work.worker ->> 'lease_ms')::bigint, 30000);
  grace_ms constant bigint := coalesce((work.worker ->> 'grace_ms')::bigint, 10000);
  poll_ms constant bigint := coalesce((work.worker ->> 'bus_poll_ms')::bigint, 15000);
  -- what is not to come with the next call is not kept: run and holder, and until when to stop
  next jsonb := jsonb_build_object('holder_id', instance, 'route', service || '/' || role || '/' || shard, 'lease_ms', lease_ms,
                                   'grace_ms', grace_ms, 'next_ms', 0);
  unknown text;
  stopping constant boolean := coalesce((work.worker ->> 'stopping')::boolean, false);
  seat record;
  ended jsonb;
  mine jsonb;
  looked jsonb;
  until timestamptz;
  -- looks since it had work or was woken, that is asked before it was to: timers may be a moment early
  looks constant integer := case when (work.worker ->> 'look_at')::timestamptz > clock_timestamp() + interval '2 ms' then 0
                                 else least(greatest((work.worker ->> 'looks')::integer, 0), 15) end;
  hands integer;
  look_ms bigint;
  wait_ms bigint;
begin
  if jsonb_typeof(work.worker) is distinct from 'object' or jsonb_typeof(work.held) is distinct from 'object'
    or service is null or role is null then
    raise exception 'A worker needs agent_service and agent_role, and says what it holds as an object of ids'
      using errcode = 'invalid_parameter_value';
  end if;
  select k into unknown from jsonb_object_keys(work.worker - array[
    'agent_service', 'agent_role', 'agent_shard', 'agent_domain', 'agent_version', 'holder_id', 'concurrency', 'lease_ms',
    'grace_ms', 'bus_poll_ms', 'beat_ms', 'key_proof', 'run', 'holder', 'route', 'stopping', 'stop_by', 'next_ms', 'looks',
    'look_at']) as k limit 1;
  if found then
    raise exception 'Unknown field % of a worker', unknown using errcode = 'invalid_parameter_value';
  end if;
  if work.worker ->> 'run' is null then
    -- a run has its name before it gets anything, or a lost answer would leave messages with nobody
    return jsonb_build_object('worker', next || jsonb_build_object('run', gen_random_uuid()), 'over', '[]'::jsonb,
                              'messages', '[]'::jsonb);
  end if;

  if work.worker ->> 'agent_domain' is null then
    select (work.worker ->> 'run')::uuid as run, instance || '#' || (work.worker ->> 'run') as holder, 'active' as state,
           false as changed
      into seat;
  else
    select a.* into seat
      from registry.attend(work.worker || jsonb_build_object('holder_id', instance),
                           (select count(*)::integer from jsonb_object_keys(work.held))) as a;
  end if;
  next := next || jsonb_build_object('run', seat.run, 'holder', seat.holder);
  if seat.state = 'terminated' or seat.holder <> work.worker ->> 'holder' then
    -- others have its work by now; unless it has left, it joins again with the next call
    return jsonb_build_object('worker', next || jsonb_build_object(
             'next_ms', case when seat.changed or seat.state <> 'terminated' then 0 end),
             'messages', '[]'::jsonb,
             'over', (select coalesce(jsonb_agg(k), '[]') from jsonb_object_keys(work.held) as k));
  end if;
  if stopping or seat.state = 'draining' then
    until := coalesce((work.worker ->> 'stop_by')::timestamptz, clock_timestamp() + grace_ms * interval '1 millisecond');
    next := next || jsonb_build_object('stopping', true, 'stop_by', until);
  end if;
  if seat.changed then
    -- whoever holds the clock of the registry waits for no message: all that is held stays so until the next call
    return jsonb_build_object('worker', next, 'over', '[]'::jsonb, 'messages', '[]'::jsonb);
  end if;
  if work.worker ->> 'agent_domain' is not null and stopping and work.held = '{}' and not exists (
       -- what a lost answer claimed is handed back below, and costs no attempt
       select from bus.claims c, unnest(c.ids, c.attempts) as h (id, attempt) join public.agent_messages m on m.id = h.id
        where c.holder = seat.holder and c.route = next ->> 'route' and c.lease_until > clock_timestamp()
          and ((m.status = 'queued' and m.attempts = h.attempt - 1)
               or (m.status = 'claimed' and m.attempts = h.attempt and m.claimed_by = seat.holder))) then
    perform registry.deregister(seat.run, null, 'stopped');
    return jsonb_build_object('worker', next || '{"next_ms": null}', 'over', '[]'::jsonb, 'messages', '[]'::jsonb);
  end if;

  -- whose time to live has passed ends here, by the clock of the database
  select coalesce(jsonb_object_agg(h.key, jsonb_build_object('attempt', h.value -> 'attempt', 'ending', coalesce(
           nullif(h.value -> 'ending', 'null'), '{"error": "Timeout: its time to live passed while it was worked on"}')))
           filter (where h.over), '{}'),
         coalesce(jsonb_object_agg(h.key, h.value -> 'attempt') filter (where not h.over), '{}'),
         (date_part('epoch', min(h.expires_at) filter (where not h.over) - clock_timestamp()) * 1000)::bigint + 1
    into ended, mine, wait_ms
    from (select e.key, e.value, m.expires_at,
                 e.value ->> 'ending' is not null or coalesce(m.expires_at <= clock_timestamp(), false) as over
            from jsonb_each(work.held) as e
            left join lateral (
              select t.expires_at from public.agent_messages t where t.id = e.key::uuid offset 0) as m on true) as h;
  perform bus.settle_many(seat.holder, ended);
  mine := case when until <= clock_timestamp() then '{}'
               else mine - array(select jsonb_array_elements_text(bus.renew(seat.holder, mine, lease_ms))) end;
  hands := case when until is not null or seat.state not in ('active', 'suspect') then 0
                else coalesce((work.worker ->> 'concurrency')::integer, 8) - (select count(*)::integer from jsonb_object_keys(mine)) end;
  looked := bus.look(service, role, shard, seat.holder, instance, mine, hands, lease_ms, poll_ms);
  look_ms := (looked ->> 'next_ms')::bigint;
  next := next || '{"looks": 0}';
  if hands > 0 and look_ms > 0 then
    -- hints of a busy route are thinned out: after work, or woken, it looks again soon, and then ever later
    look_ms := least(look_ms, (10 * 4 ^ looks)::bigint);
    next := next || jsonb_build_object('looks', looks + 1);
  end if;
  wait_ms := greatest(0, least(
    look_ms, wait_ms,
    case when work.worker ->> 'agent_domain' is not null then coalesce((work.worker ->> 'beat_ms')::bigint, 5000) end,
    (date_part('epoch', until - clock_timestamp()) * 1000)::bigint + 1));
  if until is not null and mine = '{}' then
    -- a member leaves with the next call, which says that it knows: this answer may be lost
    wait_ms := case when work.worker ->> 'agent_domain' is not null then 0 end;
  end if;
  return jsonb_build_object(
    'worker', next || jsonb_build_object('next_ms', wait_ms, 'look_at',
                                         clock_timestamp() + least(wait_ms, 86400000) * interval '1 millisecond'),
    'messages', (select coalesce(jsonb_agg(m || jsonb_build_object('lease_ms', lease_ms)), '[]')
                   from jsonb_array_elements(looked -> 'messages') as m),
    'over', (select coalesce(jsonb_agg(k), '[]') from jsonb_object_keys(work.held) as k where not mine ? k));
end
$$;

-- as before; who watches the task hears of it
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

-- as before; it never outlives its caller, however long it waits for its key
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
  latest timestamptz;
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
    select m.tenant, m.expires_at, floor(date_part('epoch', m.expires_at - clock_timestamp()) * 1000)::bigint as remaining_ms into asker
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
    latest := asker.expires_at;
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
    if latest is not null then
      -- the time left counts from when it was stored, which may have waited for its key; its caller's does not
      update bus.expiring as e set at = latest
        from public.agent_messages m where m.id = sent.id and m.expires_at > latest and e.at = m.expires_at and e.id = m.id;
      update public.agent_messages as m set expires_at = latest where m.id = sent.id and m.expires_at > latest;
    end if;
    perform bus.watch_new(task, request.watcher, allowed + 60000, ends_only => true);
  end if;
  return query select sent.id, task, sent.duplicate;
end
$$;
