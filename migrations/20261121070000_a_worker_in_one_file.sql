-- A whole worker in one file of any language: one call joins the registry and beats, ends what is done, renews, says what
-- is over, hands back what is not known of and claims. All of it may be said again after an answer was lost.

-- ---------------------------------------------------------------- ending

-- what each ending is to be; one that came as text is read here, so that what is no JSON spoils nothing but its own ending
create function bus.read_endings(ended jsonb)
returns table (id uuid, attempt smallint, ending jsonb, outcome text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  unknown text;
begin
  if jsonb_typeof(read_endings.ended) is distinct from 'object' then
    raise exception 'What ended must be an object of ids' using errcode = 'invalid_parameter_value';
  end if;
  for id, attempt, ending in
    select e.key::uuid, (e.value ->> 'attempt')::smallint,
           case when jsonb_typeof(e.value -> 'ending') = 'string' then (e.value ->> 'ending')::jsonb
                else e.value -> 'ending' end
      from jsonb_each(read_endings.ended) as e order by e.key
  loop
    if jsonb_typeof(ending) is distinct from 'object' then
      raise exception 'An ending must be a JSON object' using errcode = 'invalid_parameter_value';
    end if;
    select k into unknown
      from jsonb_object_keys(ending - array[
             'result', 'snippet', 'url', 'follow_ups', 'error', 'code', 'retriable', 'retry_ms', 'defer_ms']) as k limit 1;
    if found then
      raise exception 'Unknown field % of an ending', unknown using errcode = 'invalid_parameter_value';
    end if;
    outcome := case when ending ->> 'defer_ms' is not null then 'deferred' when ending ? 'error' then 'failed' else 'done' end;
    return next;
  end loop;
end
$$;
comment on function bus.read_endings(jsonb) is 'Endings of many messages ({"<id>": {"attempt", "ending"}}), each with what it comes to: done, failed or deferred. Raises for one that is none.';

create function bus.send_follow_ups(ids uuid[], endings jsonb[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  batch jsonb;
begin
  -- least() ignores nulls
  select jsonb_agg(m.inherited || f.next || jsonb_build_object('parent_id', e.id,
                                                               'ttl_ms', least((f.next ->> 'ttl_ms')::bigint, m.left_ms))
                   order by e.id, f.o)
    into batch
    from unnest(send_follow_ups.ids, send_follow_ups.endings) as e (id, ending)
   cross join lateral jsonb_array_elements(coalesce(nullif(e.ending -> 'follow_ups', 'null'), '[]'))
                      with ordinality as f (next, o)
   cross join lateral (
     select jsonb_build_object('tenant', t.tenant, 'headers', jsonb_strip_nulls(jsonb_build_object(
              'traceparent', t.headers -> 'traceparent', 'tracestate', t.headers -> 'tracestate'))) as inherited,
            case when t.expires_at is not null
              then greatest(1, floor(date_part('epoch', t.expires_at - clock_timestamp()) * 1000))::bigint end as left_ms
       from public.agent_messages t where t.id = e.id offset 0) as m;
  if batch is not null then
    perform bus.enqueue_many(batch);
  end if;
end
$$;
comment on function bus.send_follow_ups(uuid[], jsonb[])
  is 'Sends what the endings of completed messages name as follow_ups, with the tenant, the trace and the time left of each unless they bring their own.';

create function bus.settle_together(holder text, ended jsonb) returns table (id uuid, status text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  kind record;
  done uuid[];
begin
  for kind in
    select r.outcome, array_agg(r.id) as ids, array_agg(r.attempt) as attempts, array_agg(r.ending) as endings
      from bus.read_endings(settle_together.ended) as r group by r.outcome order by r.outcome
  loop
    case kind.outcome
      when 'done' then
        -- without a snippet of its own, lists show how the result begins
        done := array(select c.id from bus.complete_many(
          kind.ids, kind.attempts, settle_together.holder, array(select e -> 'result' from unnest(kind.endings) as e),
          array(select coalesce(e ->> 'snippet', left((e -> 'result')::text, 400)) from unnest(kind.endings) as e),
          array(select e ->> 'url' from unnest(kind.endings) as e)) as c);
        perform bus.send_follow_ups(array_agg(e.id), array_agg(e.ending))
           from unnest(kind.ids, kind.endings) as e (id, ending) where e.id = any (done) having count(*) > 0;
        return query select d, 'done' from unnest(done) as d;
      when 'failed' then
        -- what the database refused as it stands, no other attempt could do better
        return query
        select f.id, f.status from bus.fail_many(
          kind.ids, kind.attempts, settle_together.holder, array(select e ->> 'error' from unnest(kind.endings) as e),
          array(select coalesce((e ->> 'retriable')::boolean, e ->> 'code' !~ '^(22|23514)', true)
                  from unnest(kind.endings) as e),
          array(select (e ->> 'retry_ms')::bigint from unnest(kind.endings) as e)) as f;
      else
        return query
        select e.id, 'queued' from unnest(kind.ids, kind.attempts, kind.endings) as e (id, attempt, ending)
         where bus.defer(array[e.id], array[e.attempt], settle_together.holder, (e.ending ->> 'defer_ms')::bigint,
                         e.ending ->> 'error') = 1;
    end case;
  end loop;
end
$$;
comment on function bus.settle_together(text, jsonb)
  is 'Ends many attempts at once, or none: answers those that were still the holder''s, each with its new status. Raises if one ending is refused.';

create or replace function bus.settle(id uuid, holder text, attempt smallint, ending jsonb) returns text
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select s.status
    from bus.settle_together(settle.holder, jsonb_build_object(
           settle.id, jsonb_build_object('attempt', settle.attempt, 'ending', settle.ending))) as s
$$;
comment on function bus.settle(uuid, text, smallint, jsonb)
  is 'Ends an attempt: {"result", "snippet", "url", "follow_ups"} completes it, with follow-ups that have no more time to live than is left of it and its trace unless they bring their own; {"error", "code", "retriable", "retry_ms"} fails it, for good if the code is an SQLSTATE that no other attempt could mend; {"error", "defer_ms"} hands it back for later without an attempt being used up. Answers done, queued or failed; null if the claim is not the holder''s any more.';

create function bus.settle_or_raise(id uuid, holder text, attempt smallint, ending jsonb) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  status constant text := bus.settle(settle_or_raise.id, settle_or_raise.holder, settle_or_raise.attempt,
                                     settle_or_raise.ending);
begin
  if status is null then
    raise exception 'Message % is not %''s any more', settle_or_raise.id, settle_or_raise.holder
      using errcode = 'object_not_in_prerequisite_state';
  end if;
  return status;
end
$$;
comment on function bus.settle_or_raise(uuid, text, smallint, jsonb)
  is 'As bus.settle, but raises if the claim is not the holder''s any more, so that what else its transaction wrote falls with it.';

create function bus.settle_many(holder text, ended jsonb) returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  -- what was said cannot be, or is too much; all else goes by, or ails more than this, and the same call may succeed later
  refusals constant text := '^(22|23|54|P0|55000)';
  one record;
  this uuid;
  nth smallint;
  why text;
  code text;
  statuses jsonb := '{}';
begin
  if settle_many.ended = '{}' then
    return statuses;
  end if;
  begin
    select coalesce(jsonb_object_agg(s.id, s.status), '{}') into statuses
      from bus.settle_together(settle_many.holder, settle_many.ended) as s;
    return statuses;
  exception when others then
    if sqlstate !~ refusals then
      raise;
    end if;
  end;
  for one in select e.key, e.value from jsonb_each(settle_many.ended) as e order by e.key loop
    this := null;
    begin
      nth := one.value ->> 'attempt';
      this := one.key;
      statuses := statuses || (
        select coalesce(jsonb_object_agg(s.id, s.status), '{}')
          from bus.settle_together(settle_many.holder, jsonb_build_object(one.key, one.value)) as s);
    exception when others then
      if sqlstate !~ refusals then
        raise;
      end if;
      why := sqlerrm;
      code := sqlstate;
      -- what names no attempt leaves none to fail
      if this is not null then
        statuses := statuses || jsonb_strip_nulls(jsonb_build_object(one.key, bus.settle(
          this, settle_many.holder, nth, jsonb_build_object('error', why, 'code', code))));
      end if;
    end;
  end loop;
  return statuses;
end
$$;
comment on function bus.settle_many(text, jsonb)
  is 'bus.settle for many ({"<id>": {"attempt", "ending"}}), each ending an object or the text of one. One that is refused fails its attempt with the reason, and leaves the others alone. Answers {"<id>": "done", "queued" or "failed"}; an id that is missing was not the holder''s any more, or came without an attempt. Raises for all if the database could not just then, and has written nothing.';

-- ---------------------------------------------------------------- asking

create function bus.ask(id uuid, holder text, attempt smallint, question jsonb, deadline_ms bigint) returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  caller record;
  key text;
  sent uuid;
begin
  if jsonb_typeof(ask.question) is distinct from 'object' then
    raise exception 'A question must be a JSON object' using errcode = 'invalid_parameter_value';
  end if;
  if (select h.until from bus.held_by(ask.holder, jsonb_build_object(ask.id, ask.attempt)) as h) is null then
    raise exception 'Message % is not %''s any more', ask.id, ask.holder using errcode = 'object_not_in_prerequisite_state';
  end if;
  select m.tenant, m.headers into caller from public.agent_messages m where m.id = ask.id;
  key := coalesce(ask.question ->> 'idempotency_key', ask.id || '/' || ask.attempt || '/' || md5(ask.question::text));
  -- whoever asks again waits for the answer
  select k.id into sent from bus.keys k where k.tenant = caller.tenant and k.idempotency_key = key;
  if not found then
    select r.id into sent
      from bus.request(
        jsonb_build_object('headers', caller.headers) || ask.question || jsonb_build_object('idempotency_key', key),
        ask.deadline_ms, ask.holder, ask.id) as r;
  end if;
  return bus.reply(sent);
end
$$;
comment on function bus.ask(uuid, text, smallint, jsonb, bigint)
  is 'Asks on behalf of a message that is worked on: sends the question as a request once in an attempt, with the headers of the message unless it brings its own, and answers how it stands: {"status": "pending"} until there is a reply, then as bus.reply. To ask the same thing anew, give it another idempotency_key. Raises if the claim is not the holder''s any more.';

-- ---------------------------------------------------------------- membership

create function registry.attend(
  worker jsonb, in_flight integer, out run uuid, out holder text, out state text, out changed boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  name constant text := substring(attend.worker ->> 'holder_id' from '^(.*)/[0-9]+$');
  leaves constant boolean := coalesce((attend.worker ->> 'stopping')::boolean, false);
  mine registry.agents;
  former uuid;
  place record;
  last record;
  since timestamptz;
begin
  run := attend.worker ->> 'run';
  changed := false;
  -- what follows a run that ended is the same however often it is asked for, since an answer may be lost
  loop
    select a.* into mine from registry.agents a where a.instance_id = run;
    exit when case when found then mine.state <> 'terminated' or mine.end_reason = 'stopped'
                   else former is not null or attend.worker ->> 'holder' is null end;
    former := run;
    run := md5(run::text)::uuid;
  end loop;
  if mine.state = 'terminated' or (mine.instance_id is null and leaves) then
    -- it left in good order, or is about to
    run := attend.worker ->> 'run';
    holder := attend.worker ->> 'holder';
    state := 'terminated';
    return;
  end if;
  since := mine.state_since;
  if mine.instance_id is null then
    select r.* into place
      from registry.register(
        run, attend.worker ->> 'agent_domain', name, substring(attend.worker ->> 'holder_id' from '[0-9]+$')::integer,
        coalesce(attend.worker ->> 'agent_version', '1.0.0'), previous => former,
        key_proof => decode(attend.worker ->> 'key_proof', 'hex')) as r;
    if place.outcome = 'occupied' then
      raise exception '% belongs to % now', attend.worker ->> 'holder_id', place.holder using errcode = 'object_in_use';
    elsif place.outcome not in ('registered', 'known') then
      raise exception '% was ended while it joined', attend.worker ->> 'holder_id' using errcode = 'serialization_failure';
    end if;
    select a.* into mine from registry.agents a where a.instance_id = run;
  end if;
  if mine.state = 'registered' then
    perform registry.activate(run);
  end if;
  if leaves and mine.state <> 'draining' then
    perform registry.drain(run, 'stopping');
  end if;
  select b.seq, b.beat_at into last from registry.beats b where b.instance_id = run;
  if leaves and attend.in_flight = 0 then
    -- its last step takes the clock, before which nobody has a beat in hand
    null;
  elsif last.seq = 0 or mine.state = 'suspect'
    or last.beat_at < clock_timestamp() - coalesce((attend.worker ->> 'beat_ms')::bigint, 5000) * interval '0.5 milliseconds' then
    perform registry.beat(run, mine.epoch, last.seq + 1, true, attend.in_flight);
  end if;
  select a.holder, a.state, mine.state = 'suspect' or a.state_since is distinct from since
    into holder, state, changed from registry.agents a where a.instance_id = run;
end
$$;
comment on function registry.attend(jsonb, integer)
  is 'Membership in one call, to be said again and again: joins {"run", "holder_id": "name/slot", "agent_domain", "agent_version", "key_proof"} as an active run, beats twice within beat_ms at most, and joins as another run, whose id follows from the former, when that was ended and nobody took the slot; raises if somebody did. With "stopping" it drains, and neither then nor after it was ended as stopped it comes back. "holder" is what the last call answered. Answers the run, its holder, its state, and whether the membership changed: then the caller commits before it locks anything else, for it holds the clock of the registry.';

-- ---------------------------------------------------------------- working

create function bus.work(worker jsonb, held jsonb) returns jsonb
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
  wait_ms bigint;
begin
  if jsonb_typeof(work.worker) is distinct from 'object' or jsonb_typeof(work.held) is distinct from 'object'
    or service is null or role is null then
    raise exception 'A worker needs agent_service and agent_role, and says what it holds as an object of ids'
      using errcode = 'invalid_parameter_value';
  end if;
  select k into unknown from jsonb_object_keys(work.worker - array[
    'agent_service', 'agent_role', 'agent_shard', 'agent_domain', 'agent_version', 'holder_id', 'concurrency', 'lease_ms',
    'grace_ms', 'bus_poll_ms', 'beat_ms', 'key_proof', 'run', 'holder', 'route', 'stopping', 'stop_by', 'next_ms']) as k limit 1;
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
  looked := bus.look(
    service, role, shard, seat.holder, instance, mine,
    case when until is not null or seat.state not in ('active', 'suspect') then 0
         else coalesce((work.worker ->> 'concurrency')::integer, 8) - (select count(*)::integer from jsonb_object_keys(mine)) end,
    lease_ms, poll_ms);
  wait_ms := greatest(0, least(
    (looked ->> 'next_ms')::bigint, wait_ms,
    case when work.worker ->> 'agent_domain' is not null then coalesce((work.worker ->> 'beat_ms')::bigint, 5000) end,
    (date_part('epoch', until - clock_timestamp()) * 1000)::bigint + 1));
  if until is not null and mine = '{}' then
    -- a member leaves with the next call, which says that it knows: this answer may be lost
    wait_ms := case when work.worker ->> 'agent_domain' is not null then 0 end;
  end if;
  return jsonb_build_object(
    'worker', next || jsonb_build_object('next_ms', wait_ms),
    'messages', (select coalesce(jsonb_agg(m || jsonb_build_object('lease_ms', lease_ms)), '[]')
                   from jsonb_array_elements(looked -> 'messages') as m),
    'over', (select coalesce(jsonb_agg(k), '[]') from jsonb_object_keys(work.held) as k where not mine ? k));
end
$$;
comment on function bus.work(jsonb, jsonb)
  is 'All that a worker says to the bus, in one call that may be said again. worker: its settings, named as the variables of the environment in small letters (agent_service, agent_role, agent_shard, holder_id, concurrency, lease_ms, grace_ms, bus_poll_ms; with agent_domain it is a member of the registry, and beats), what the last answer named under "worker", and "stopping" once it shall end. held: what it works on ({"<id>": {"attempt", "ending"}}), with the ending of each that has one, as for bus.settle_many. Joins and beats, ends, renews, hands back what it does not know of, claims; answers {"worker", "over", "messages"}: what to say next time, and after how many milliseconds (worker.next_ms, null: it has left); the ids that are not its any more, ended or lost; and what bus.look tells of new messages, with the length of their leases.';

revoke all on function
  bus.read_endings(jsonb), bus.send_follow_ups(uuid[], jsonb[]), bus.settle_together(text, jsonb),
  bus.settle_or_raise(uuid, text, smallint, jsonb), bus.settle_many(text, jsonb),
  bus.ask(uuid, text, smallint, jsonb, bigint), bus.work(jsonb, jsonb), registry.attend(jsonb, integer)
  from public, anon, authenticated;
grant execute on function
  bus.settle_or_raise(uuid, text, smallint, jsonb), bus.settle_many(text, jsonb),
  bus.ask(uuid, text, smallint, jsonb, bigint), bus.work(jsonb, jsonb), registry.attend(jsonb, integer)
  to service_role;
