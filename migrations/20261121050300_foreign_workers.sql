-- What makes a worker short in any language: one look for work, one renewal, one way to end an attempt, all of them safe to
-- be said again after an answer was lost, and all in types that every driver has.

create function bus.held_by(holder text, held jsonb) returns table (id uuid, attempt smallint, until timestamptz)
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select g.id, g.attempt, m.until
    from (select e.key::uuid as id, e.value::smallint as attempt from jsonb_each_text(held_by.held) as e) as g
    left join lateral (
      select max(c.lease_until) as until
        from public.agent_messages m
        join bus.claims c on c.holder = held_by.holder and c.lease_until > clock_timestamp() and g.id = any (c.ids)
       where m.id = g.id and c.attempts[array_position(c.ids, g.id)] = g.attempt
         and ((m.status = 'queued' and m.attempts = g.attempt - 1)
              or (m.status = 'claimed' and m.attempts = g.attempt and m.claimed_by = held_by.holder))) as m on true
$$;
comment on function bus.held_by(text, jsonb)
  is 'What a worker says that it holds ({"<id>": attempt}), each with the end of its lease; null for one that is not its any more.';

create function bus.renew(holder text, held jsonb, lease_ms bigint) returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  seen record;
  kept uuid[];
begin
  if jsonb_typeof(renew.held) is distinct from 'object' then
    raise exception 'What is held must be an object of ids and attempts' using errcode = 'invalid_parameter_value';
  end if;
  select array_agg(h.id) filter (where h.until is null) as lost,
         array_agg(h.id order by h.id) filter (where h.until < soon.soon) as due,
         array_agg(h.attempt order by h.id) filter (where h.until < soon.soon) as attempts
    into seen
    from bus.held_by(renew.holder, renew.held) as h,
         (select clock_timestamp() + renew.lease_ms * interval '1 millisecond' * 0.7 as soon) as soon;
  if seen.due is not null then
    kept := array(select e.id from bus.extend(seen.due, seen.attempts, renew.holder, renew.lease_ms) as e);
  end if;
  return to_jsonb(coalesce(seen.lost, '{}') || array(
    select d from unnest(seen.due) as d where d <> all (kept)));
end
$$;
comment on function bus.renew(text, jsonb, bigint)
  is 'Renews the leases of what a worker holds ({"<id>": attempt}) once three tenths of them have passed; answers the ids that are not its any more, whose work is to be dropped. Said often, it costs a look only.';

create function bus.look(
  service text, role text, shard integer, holder text, instance text, held jsonb, max_messages integer, lease_ms bigint,
  poll_ms bigint)
returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  -- who holds something comes back in time to renew it
  pause constant bigint := case when look.held = '{}' then look.poll_ms else least(look.poll_ms, look.lease_ms / 3) end;
  messages jsonb;
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
    select jsonb_agg(to_jsonb(c) || jsonb_build_object('holder', look.holder)) into messages
      from bus.claim(look.service, look.role, look.shard, look.holder, least(look.max_messages, 1000), look.lease_ms,
                     look.instance) as c;
  exception when object_not_in_prerequisite_state then
    -- suspended or draining in the registry: what it has in hand it may finish
    return jsonb_build_object('messages', '[]'::jsonb, 'next_ms', least(pause, 1000));
  end;
  if messages is not null then
    return jsonb_build_object('messages', messages, 'next_ms', 0);
  end if;
  due := bus.next_due(look.service, look.role, look.shard, look.instance);
  -- what is due and cannot be had, as under a limit, is not asked for without a pause
  return jsonb_build_object('messages', '[]'::jsonb,
                            'next_ms', case when due is null then pause else least(pause, greatest(due, 5)) end);
end
$$;
comment on function bus.look(text, text, integer, text, text, jsonb, integer, bigint, bigint)
  is 'A worker''s look for work: hands back what the holder has of the route beside what it says that it holds ({"<id>": attempt}), as after an answer that was lost; claims up to max_messages, none below 1 or while the registry does not let it; answers {"messages", "next_ms"}: what bus.claim tells of each, its holder too, and after how many milliseconds to look again unless a hint comes first.';

create function bus.settle(id uuid, holder text, attempt smallint, ending jsonb) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  unknown text;
  m record;
begin
  if jsonb_typeof(settle.ending) is distinct from 'object' then
    raise exception 'An ending must be a JSON object' using errcode = 'invalid_parameter_value';
  end if;
  select k into unknown
    from jsonb_object_keys(settle.ending - array[
           'result', 'snippet', 'url', 'follow_ups', 'error', 'retriable', 'retry_ms', 'defer_ms']) as k limit 1;
  if found then
    raise exception 'Unknown field % of an ending', unknown using errcode = 'invalid_parameter_value';
  end if;
  if settle.ending ->> 'defer_ms' is not null then
    return case bus.defer(array[settle.id], array[settle.attempt], settle.holder,
                          (settle.ending ->> 'defer_ms')::bigint, settle.ending ->> 'error') when 1 then 'queued' end;
  end if;
  if settle.ending ? 'error' then
    return bus.fail(settle.id, settle.holder, settle.attempt, settle.ending ->> 'error',
                    coalesce((settle.ending ->> 'retriable')::boolean, true), (settle.ending ->> 'retry_ms')::bigint);
  end if;
  -- without a snippet of its own, lists show how the result begins
  perform from bus.complete_many(array[settle.id], array[settle.attempt], settle.holder,
    array[settle.ending -> 'result'],
    array[coalesce(settle.ending ->> 'snippet', left((settle.ending -> 'result')::text, 400))],
    array[settle.ending ->> 'url']);
  if not found then
    return null;
  end if;
  if jsonb_array_length(coalesce(nullif(settle.ending -> 'follow_ups', 'null'), '[]')) > 0 then
    select jsonb_build_object('tenant', t.tenant, 'headers', jsonb_strip_nulls(jsonb_build_object(
             'traceparent', t.headers -> 'traceparent', 'tracestate', t.headers -> 'tracestate'))) as inherited,
           case when t.expires_at is not null
             then greatest(1, floor(date_part('epoch', t.expires_at - clock_timestamp()) * 1000))::bigint end as left_ms
      into m from public.agent_messages t where t.id = settle.id;
    -- least() ignores nulls
    perform bus.enqueue_many((
      select jsonb_agg(m.inherited || f || jsonb_build_object('parent_id', settle.id,
                                                              'ttl_ms', least((f ->> 'ttl_ms')::bigint, m.left_ms))
                       order by o)
        from jsonb_array_elements(settle.ending -> 'follow_ups') with ordinality as e (f, o)));
  end if;
  return 'done';
end
$$;
comment on function bus.settle(uuid, text, smallint, jsonb)
  is 'Ends an attempt: {"result", "snippet", "url", "follow_ups"} completes it, with follow-ups that have no more time to live than is left of it and its trace unless they bring their own; {"error", "retriable", "retry_ms"} fails it; {"error", "defer_ms"} hands it back for later without an attempt being used up. Answers done, queued or failed; null if the claim is not the holder''s any more.';

create function bus.emit_one(id uuid, holder text, attempt smallint, seq integer, part jsonb, lease_ms bigint)
returns integer
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select bus.emit(emit_one.id, emit_one.holder, emit_one.attempt, emit_one.seq, array[emit_one.part], emit_one.lease_ms)
$$;
comment on function bus.emit_one(uuid, text, smallint, integer, jsonb, bigint)
  is 'bus.emit of one part, for drivers that have no arrays of jsonb.';

revoke all on function
  bus.emit_one(uuid, text, smallint, integer, jsonb, bigint),
  bus.held_by(text, jsonb),
  bus.renew(text, jsonb, bigint),
  bus.look(text, text, integer, text, text, jsonb, integer, bigint, bigint),
  bus.settle(uuid, text, smallint, jsonb)
  from public, anon, authenticated;
grant execute on function
  bus.emit_one(uuid, text, smallint, integer, jsonb, bigint),
  bus.renew(text, jsonb, bigint),
  bus.look(text, text, integer, text, text, jsonb, integer, bigint, bigint),
  bus.settle(uuid, text, smallint, jsonb)
  to service_role;
