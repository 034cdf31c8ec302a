-- Handing back for later: what its worker may not try at the moment, as while the circuit of a dependency is open, waits
-- without an attempt of it being used up.

create function bus.defer(ids uuid[], attempts smallint[], holder text, delay_ms bigint, reason text) returns integer
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
           -- each time a second more at least, up to 5 min: 1000 times take three days
           retry_at = clock_timestamp()
             + least(greatest(defer.delay_ms, 1000 * least(t.released, 300), 0), 3600000) * interval '1 millisecond'
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
  is 'Hands messages back unworked, to be claimed again after delay_ms (a second for each time before at least, an hour at most); does not count against max_attempts. One that was handed back 1000 times is a dead letter; one whose time to live passes meanwhile is one then. Answers how many wait.';
revoke all on function bus.defer(uuid[], smallint[], text, bigint, text) from public, anon, authenticated;
grant execute on function bus.defer(uuid[], smallint[], text, bigint, text) to service_role;
