-- Completions of many for less: the ids of what was recorded come as one array, and a whole claim of one attempt is ended without
-- reading the attempts.

-- as before; a claim whose messages are of several attempts goes the long way
create or replace function bus.record_done(
  ids uuid[], attempts smallint[], holder text, results jsonb[], result_snippets text[], result_urls text[],
  out done uuid[], out claim bigint, out last_claim bigint, out version integer, out special boolean, out awaited boolean,
  out watched boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_nestloop = off
set enable_mergejoin = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
  its_attempt constant smallint := record_done.attempts[1];
  in_order uuid[];
  lowest uuid;
  highest uuid;
  its_claim record;
begin
  if cardinality(record_done.ids) = 1 then
    -- as below, for less
    select c.claim, c.version, c.claimed_at into its_claim from bus.claims c
     where c.holder = record_done.holder and c.lease_until > (select clock_timestamp())
       and c.attempts[array_position(c.ids, record_done.ids[1])] = record_done.attempts[1] limit 1;
    if not found then
      return;
    end if;
    update public.agent_messages as m
       set status = 'done', attempts = record_done.attempts[1], claimed_by = record_done.holder,
           claimed_at = its_claim.claimed_at, done_at = clock_timestamp(), lease_until = null, retry_at = null, error = null,
           result = record_done.results[1], result_snippet = left(record_done.result_snippets[1], 400),
           result_url = record_done.result_urls[1]
     where m.id = record_done.ids[1]
       and ((m.status = 'queued' and m.attempts = record_done.attempts[1] - 1)
            or (m.status = 'claimed' and m.attempts = record_done.attempts[1] and m.claimed_by = record_done.holder))
    returning array[m.id], its_claim.claim, its_claim.claim, its_claim.version,
              m.root_id <> m.id or m.group_key is not null or m.payload ? '__assignment'
      into done, claim, last_claim, version, special;
    -- Who began to await or to watch it had its row until he committed, and the statement above may have begun before.
    select exists (select from bus.awaited), exists (select from bus.watchers) into awaited, watched;
    return;
  end if;
  -- whose days these are is known before the statement begins: other parts are left out of it
  in_order := array(select i from unnest(record_done.ids) as i order by i);
  lowest := in_order[1];
  highest := in_order[cardinality(in_order)];
  -- A whole claim, named as it stands there, needs no join with it. Where the holder has another of the same moment, an
  -- extension has split one or given a part a second lease, and a message is counted off the older of the two.
  if in_order = record_done.ids and its_attempt = all (record_done.attempts)
    and bus.stand_close(lowest, highest, cardinality(in_order)) then
    select c.claim, c.version, c.claimed_at into its_claim from bus.claims c
     where c.holder = record_done.holder and c.lease_until > (select clock_timestamp())
       and c.ids = record_done.ids and c.attempts = record_done.attempts
       and not exists (select from bus.claims o
                        where o.holder = record_done.holder and o.claimed_at = c.claimed_at and o.claim <> c.claim)
     limit 1;
    if found then
      with marked as (
        update public.agent_messages as m
           set status = 'done', attempts = its_attempt, claimed_by = record_done.holder, claimed_at = its_claim.claimed_at,
               done_at = clock_timestamp(), lease_until = null, retry_at = null, error = null,
               result = record_done.results[g.place], result_snippet = left(record_done.result_snippets[g.place], 400),
               result_url = record_done.result_urls[g.place]
          from unnest(record_done.ids) with ordinality as g (id, place)
         -- one look from the lowest to the highest
         where m.id between lowest and highest and m.id = g.id
           and ((m.status = 'queued' and m.attempts = its_attempt - 1)
                or (m.status = 'claimed' and m.attempts = its_attempt and m.claimed_by = record_done.holder))
        returning m.id, m.root_id <> m.id or m.group_key is not null or m.payload ? '__assignment' as special
      )
      select array_agg(d.id), its_claim.claim, its_claim.claim, its_claim.version, bool_or(d.special)
        into done, claim, last_claim, version, special
        from marked d;
      select exists (select from bus.awaited), exists (select from bus.watchers) into awaited, watched;
      return;
    end if;
  end if;
  -- the lease is read first; should it pass and be reclaimed meanwhile, the row is of another attempt by then. Results do
  -- not go through the joins: they are taken from their arrays by place.
  with given as materialized (
    select h.claim, h.version, h.claimed_at, g.id, g.attempt, g.place
      from unnest(record_done.ids, record_done.attempts) with ordinality as g (id, attempt, place)
      join (select c.claim, c.version, c.claimed_at, unnest(c.ids) as id, unnest(c.attempts) as attempt
              from bus.claims c
             where c.holder = record_done.holder and c.lease_until > (select clock_timestamp())) as h
        on h.id = g.id and h.attempt = g.attempt
     -- whichever side of the next join is hashed: two who end the same ones must not wait for each other
     order by g.id
  ), marked as (
    update public.agent_messages as m
       set status = 'done', attempts = g.attempt, claimed_by = record_done.holder, claimed_at = g.claimed_at,
           done_at = clock_timestamp(), lease_until = null, retry_at = null, error = null,
           result = record_done.results[g.place], result_snippet = left(record_done.result_snippets[g.place], 400),
           result_url = record_done.result_urls[g.place]
      from given g
     where m.id = any (record_done.ids) and m.id between lowest and highest and m.id = g.id
       and ((m.status = 'queued' and m.attempts = g.attempt - 1)
            or (m.status = 'claimed' and m.attempts = g.attempt and m.claimed_by = record_done.holder))
    returning m.id, g.claim, g.version, m.root_id <> m.id or m.group_key is not null or m.payload ? '__assignment' as special
  )
  select array_agg(d.id), min(d.claim), max(d.claim), max(d.version), bool_or(d.special)
    into done, claim, last_claim, version, special
    from marked d;
  select exists (select from bus.awaited), exists (select from bus.watchers) into awaited, watched;
end
$$;

-- bus.complete_many as it was, for a client that reads arrays
create function bus.complete_batch(
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
  done record;
  grouped uuid[];
  roots uuid[];
  assigned boolean;
  freed text[];
begin
  if exists (select from bus.awaited) and exists (select from bus.awaited a where a.on_id = any (complete_batch.ids)) then
    -- whoever ends or cancels those that wait takes all rows in one order as well
    perform bus.lock_rows(complete_batch.ids);
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
comment on function bus.complete_batch(uuid[], smallint[], text, jsonb[], text[], text[])
  is 'Records completions of one holder, all or none; answers the ids that were still his, null if none was.';
revoke all on function bus.complete_batch(uuid[], smallint[], text, jsonb[], text[], text[]) from public, anon, authenticated;
grant execute on function bus.complete_batch(uuid[], smallint[], text, jsonb[], text[], text[]) to service_role;

create or replace function bus.complete_many(
  ids uuid[], attempts smallint[], holder text, results jsonb[], result_snippets text[], result_urls text[])
returns table (id uuid)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select unnest(bus.complete_batch(complete_many.ids, complete_many.attempts, complete_many.holder, complete_many.results,
                                   complete_many.result_snippets, complete_many.result_urls));
end
$$;
