-- What was clamped or lost in silence is refused in words or taken as it was meant: leases that cannot be, results beside an
-- error, deferrals of more than an hour.

-- as before; a lease that bus.claim would not give is refused: taken for the shortest, it ended under work that went on
create or replace function bus.extend(ids uuid[], attempts smallint[], holder text, lease_ms bigint)
returns table (id uuid)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  until timestamptz;
  kept record;
  one bus.claims;
  part record;
  to_do uuid[];
begin
  if (extend.lease_ms between 100 and 86400000) is not true then
    raise exception 'A lease lasts 100 ms to 24 h' using errcode = 'invalid_parameter_value';
  end if;
  if coalesce(cardinality(extend.attempts), 0) <> coalesce(cardinality(extend.ids), 0) then
    perform bus.refuse_uneven('ids', coalesce(cardinality(extend.ids), 0), array['attempts'],
                              array[coalesce(cardinality(extend.attempts), 0)]);
  end if;
  until := clock_timestamp() + extend.lease_ms * interval '1 millisecond';
  -- who locks many rows locks them in the order of their ids, so that no two can wait for each other
  with given as materialized (
    select h.claim, g.id, g.attempt, h.claimed_at
      from unnest(extend.ids, extend.attempts) as g (id, attempt)
      join bus.held(extend.holder) h on h.id = g.id and h.attempt = g.attempt
  ), mine as materialized (
    select given.claim, m.id, given.attempt, given.claimed_at
      from given join public.agent_messages m on m.id = given.id
     where (m.status = 'queued' and m.attempts = given.attempt - 1)
        or (m.status = 'claimed' and m.attempts = given.attempt and m.claimed_by = extend.holder)
     order by m.id for update of m
  ), marked as (
    update public.agent_messages m
       set status = 'claimed', attempts = mine.attempt, claimed_by = extend.holder, claimed_at = mine.claimed_at,
           lease_until = until, retry_at = null
      from mine where m.id = mine.id and m.id = any (array(select one.id from mine as one))
    returning m.id, m.attempts, mine.claim
  )
  select array_agg(k.id) as ids, array_agg(k.attempts) as attempts, array_agg(distinct k.claim) as claims
    into kept from marked k;
  to_do := kept.ids;
  -- a second look finds what another extension has just moved to a claim of its own
  for look in 1..2 loop
    exit when coalesce(cardinality(to_do), 0) = 0;
    for one in
      select c.* from bus.claims c
       where c.holder = extend.holder and (c.claim = any (kept.claims) or (look = 2 and c.ids && to_do))
       order by c.claim for update skip locked
    loop
      select array_agg(h.id) filter (where k.id is not null) as ids,
             array_agg(h.attempt) filter (where k.id is not null) as attempts,
             array_agg(h.id) filter (where k.id is null and m.id is not null) as other_ids,
             array_agg(h.attempt) filter (where k.id is null and m.id is not null) as other_attempts
        into part
        from unnest(one.ids, one.attempts) as h (id, attempt)
        left join unnest(kept.ids, kept.attempts) as k (id, attempt) on k.id = h.id and k.attempt = h.attempt
        left join public.agent_messages m
          on m.id = h.id and ((m.status = 'queued' and m.attempts = h.attempt - 1)
                              or (m.status = 'claimed' and m.attempts = h.attempt and m.claimed_by = extend.holder));
      continue when part.ids is null;
      if part.other_ids is null then
        update bus.claims c set lease_until = until where c.holder = extend.holder and c.claim = one.claim;
      else
        -- a claim of which only a part is extended is split
        insert into bus.claims (holder, lane, route, tenant, limit_key, limited, claimed_at, lease_until, remaining, ids, attempts)
        values (extend.holder, one.lane, one.route, one.tenant, one.limit_key, one.limited, one.claimed_at, one.lease_until,
                cardinality(part.other_ids), part.other_ids, part.other_attempts);
        update bus.claims c
           set lease_until = until, remaining = cardinality(part.ids), version = c.version + 1, ids = part.ids,
               attempts = part.attempts
         where c.holder = extend.holder and c.claim = one.claim;
      end if;
      to_do := array(select k from unnest(to_do) as k except select k from unnest(part.ids) as k);
    end loop;
  end loop;
  if cardinality(to_do) > 0 then
    -- the claim is locked, as by a completion inside a long transaction: the others of it get a lease of their own, and
    -- bus.take_back leaves them alone when the old one ends. Limits count them in the old one.
    insert into bus.claims (holder, lane, route, claimed_at, lease_until, remaining, ids, attempts)
    select extend.holder, c.lane, c.route, c.claimed_at, until, count(*), array_agg(h.id), array_agg(h.attempt)
      from bus.claims c, unnest(c.ids, c.attempts) as h (id, attempt)
      join unnest(kept.ids, kept.attempts) as k (id, attempt) on k.id = h.id and k.attempt = h.attempt
     where c.holder = extend.holder and h.id = any (to_do)
     group by c.claim, c.lane, c.route, c.claimed_at;
  end if;
  return query select unnest(kept.ids);
end
$$;

-- as before; what is left of a lease is never more than one lasts, whatever the clock does
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
  lease_left bigint := least(86400000, greatest(30000, (
    select ceil(date_part('epoch', max(c.lease_until) - clock_timestamp()) * 1000) from bus.claims c
     where c.holder = emit.holder and emit.id = any (c.ids))));
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

-- as before; a lease that cannot be is refused
create or replace function bus.renew(holder text, held jsonb, lease_ms bigint) returns jsonb
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
  -- what is not due yet is not extended: a lease that cannot be would end before anybody said so
  if (renew.lease_ms between 100 and 86400000) is not true then
    raise exception 'A lease lasts 100 ms to 24 h' using errcode = 'invalid_parameter_value';
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

-- as before; waits for as long as it is told, up to a year, as a failure does
create or replace function bus.defer(ids uuid[], attempts smallint[], holder text, delay_ms bigint, reason text) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  why constant text := left(coalesce(nullif(defer.reason, ''), 'no reason given'), 3900);
  worn record;
  freed record;
begin
  if coalesce(cardinality(defer.attempts), 0) <> coalesce(cardinality(defer.ids), 0) then
    perform bus.refuse_uneven('ids', coalesce(cardinality(defer.ids), 0), array['attempts'],
                              array[coalesce(cardinality(defer.attempts), 0)]);
  end if;
  -- as for bus.release: a message that nobody may work on must not go round for ever
  for worn in
    select m.id, h.attempt, h.claim, h.version, h.claimed_at
      from unnest(defer.ids, defer.attempts) as g (id, attempt)
      join bus.held(defer.holder, true) h on h.id = g.id and h.attempt = g.attempt
      join public.agent_messages m on m.id = g.id
     where m.released >= 1000 order by m.id
  loop
    if bus.settle_failure(worn.id, worn.attempt, 'released', defer.holder, 'handed back 1000 times, at last: ' || why, false,
                          null, defer.holder, worn.claimed_at) is not null then
      perform bus.let_go(defer.holder, array[worn.claim], array[worn.version], array[worn.id], array[worn.attempt]);
    end if;
  end loop;
  with mine as materialized (
    select m.id, h.attempt, h.claim, h.version, h.claimed_at
      from unnest(defer.ids, defer.attempts) as g (id, attempt)
      join bus.held(defer.holder, true) h on h.id = g.id and h.attempt = g.attempt
      join public.agent_messages m on m.id = g.id
     where (m.status = 'queued' and m.attempts = h.attempt - 1)
        or (m.status = 'claimed' and m.attempts = h.attempt and m.claimed_by = defer.holder)
     order by m.id for update of m
  ), given_back as (
    update public.agent_messages as t
       set status = 'queued', attempts = mine.attempt, lease_until = null, released = t.released + 1,
           claimed_by = defer.holder, claimed_at = mine.claimed_at, error = why, last_error_at = clock_timestamp(),
           -- each time a second more at least, up to 5 min: 1000 times take three days; a year is for ever
           retry_at = clock_timestamp()
             + least(greatest(defer.delay_ms, 1000 * least(t.released, 300), 0), 31536000000) * interval '1 millisecond'
      from mine where t.id = mine.id and t.id = any (array(select one.id from mine as one))
    returning t.id, t.root_id, mine.claim, mine.version, mine.attempt, mine.claimed_at
  ), told as (
    insert into bus.attempts (id, attempt, holder, started_at, outcome, error)
    select f.id, f.attempt, defer.holder, f.claimed_at, 'released', why from given_back f
    on conflict do nothing
  )
  select array_agg(f.id) as ids, array_agg(f.attempt) as attempts, array_agg(f.claim) as claims,
         array_agg(f.version) as versions, array_agg(distinct f.root_id) as tasks
    into freed from given_back f;
  if freed.ids is null then
    return 0;
  end if;
  perform bus.let_go(defer.holder, freed.claims, freed.versions, freed.ids, freed.attempts);
  perform bus.place(freed.ids);
  perform bus.announce_tasks(freed.tasks);
  return cardinality(freed.ids);
end
$$;
comment on function bus.defer(uuid[], smallint[], text, bigint, text)
  is 'Hands messages back unworked, to be claimed again after delay_ms (a second for each time before at least, a year at most); does not count against max_attempts. One that was handed back 1000 times is a dead letter; one whose time to live passes meanwhile is one then. Answers how many wait.';

-- as before; an error that is null is none, and what a failure would lose is refused
create or replace function bus.read_endings(ended jsonb)
returns table (id uuid, attempt smallint, ending jsonb, outcome text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  unknown text;
  beside text;
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
    outcome := case when ending ->> 'defer_ms' is not null then 'deferred'
                    when ending ->> 'error' is not null then 'failed' else 'done' end;
    if outcome <> 'done' then
      select k into beside
        from unnest(array['result', 'snippet', 'url', 'follow_ups']) as k where ending -> k not in ('null', '[]') limit 1;
      if found then
        raise exception 'An ending has % or %, not both%', case outcome when 'failed' then 'an error' else 'defer_ms' end, beside,
          coalesce('; the error: ' || left(ending ->> 'error', 1000), '') using errcode = 'invalid_parameter_value';
      end if;
    end if;
    return next;
  end loop;
end
$$;
comment on function bus.read_endings(jsonb) is 'Endings of many messages ({"<id>": {"attempt", "ending"}}), each with what it comes to: done, failed or deferred; what is null in one is not said. Raises for one that is none.';
