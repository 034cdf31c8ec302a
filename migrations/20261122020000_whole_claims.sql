-- Who ends all that one claim took names the claim as it stands, and the join with it is left out.

-- as before, with a short way for a whole claim
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
              m.root_id <> m.id or m.group_key is not null or m.payload ? '__assignment',
              exists (select from bus.awaited), exists (select from bus.watchers)
      into done, claim, last_claim, version, special, awaited, watched;
    return;
  end if;
  -- whose days these are is known before the statement begins: other parts are left out of it
  in_order := array(select i from unnest(record_done.ids) as i order by i);
  lowest := in_order[1];
  highest := in_order[cardinality(in_order)];
  -- A whole claim, named as it stands there, needs no join with it. Where the holder has another of the same moment, an
  -- extension has split one or given a part a second lease, and a message is counted off the older of the two.
  if in_order = record_done.ids and bus.stand_close(lowest, highest, cardinality(in_order)) then
    select c.claim, c.version, c.claimed_at into its_claim from bus.claims c
     where c.holder = record_done.holder and c.lease_until > (select clock_timestamp())
       and c.ids = record_done.ids and c.attempts = record_done.attempts
       and not exists (select from bus.claims o
                        where o.holder = record_done.holder and o.claimed_at = c.claimed_at and o.claim <> c.claim)
     limit 1;
    if found then
      with marked as (
        update public.agent_messages as m
           set status = 'done', attempts = g.attempt, claimed_by = record_done.holder, claimed_at = its_claim.claimed_at,
               done_at = clock_timestamp(), lease_until = null, retry_at = null, error = null,
               result = record_done.results[g.place], result_snippet = left(record_done.result_snippets[g.place], 400),
               result_url = record_done.result_urls[g.place]
          from unnest(record_done.ids, record_done.attempts) with ordinality as g (id, attempt, place)
         -- one look from the lowest to the highest
         where m.id between lowest and highest and m.id = g.id
           and ((m.status = 'queued' and m.attempts = g.attempt - 1)
                or (m.status = 'claimed' and m.attempts = g.attempt and m.claimed_by = record_done.holder))
        returning m.id, m.root_id <> m.id or m.group_key is not null or m.payload ? '__assignment' as special
      )
      select array_agg(d.id), its_claim.claim, its_claim.claim, its_claim.version, bool_or(d.special),
             exists (select from bus.awaited), exists (select from bus.watchers)
        into done, claim, last_claim, version, special, awaited, watched
        from marked d;
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
  select array_agg(d.id), min(d.claim), max(d.claim), max(d.version), bool_or(d.special),
         exists (select from bus.awaited), exists (select from bus.watchers)
    into done, claim, last_claim, version, special, awaited, watched
    from marked d;
end
$$;

-- as before; what stands in a large claim stands there in the order of the ids
create or replace function bus.claim(
  service text, role text, shard integer, holder text, max_messages integer default 1,
  lease_ms bigint default 30000, instance text default null)
returns table (
  id uuid, attempt smallint, max_attempts smallint, tenant text, payload jsonb, headers jsonb,
  root_id uuid, parent_id uuid, reply_to text, priority smallint, created_at timestamptz, waited_ms bigint,
  remaining_ms bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  its_route constant text := claim.service || '/' || claim.role || '/' || claim.shard;
  its_lane constant bigint := hashtextextended(its_route, 0);
  direct constant bigint := hashtextextended(its_route || coalesce('>' || claim.instance, ''), 0);
  route record;
  settings bus.routes;
  taken uuid[] := '{}';
  taken_attempts smallint[] := '{}';
  in_order uuid[];
  lowest uuid;
  highest uuid;
  claims bigint[];
  moment timestamptz;
  shown integer := 0;
  unmarked integer := 0;
begin
  if (length(claim.holder) between 1 and 200 and claim.max_messages between 1 and 1000
      and claim.lease_ms between 100 and 86400000) is not true then
    raise exception '%', case when (length(claim.holder) between 1 and 200) is not true
                                then 'A claim needs a holder, of at most 200 characters'
                              when (claim.max_messages between 1 and 1000) is not true then 'A claim takes 1 to 1000 messages'
                              else 'A lease lasts 100 ms to 24 h' end
      using errcode = 'invalid_parameter_value';
  end if;
  -- one look at all that may stand in the way
  select registry.may_claim(claim.holder) as allowed, r.paused, exists (select from bus.limits l where l.lane = r.lane) as limited,
         exists (select from bus.expiring e where e.at <= now.now) as expiring,
         exists (select from bus.delayed d where d.lane = its_lane and d.due <= now.now) as due,
         claim.instance is not null and exists (select from bus.delayed d where d.lane = direct and d.due <= now.now) as direct_due,
         claim.instance is not null and exists (select from bus.ready d where d.lane = direct) as direct_ready,
         first.share as first_share,
         exists (select from bus.ready d where d.lane = its_lane and d.share > first.share) as many_shares,
         exists (select from bus.ready d where d.lane = its_lane and d.share = first.share
                                           and (d.due, d.chunk) > (first.due, first.chunk)) as many_chunks
    into route
    from (select clock_timestamp() as now) as now
    left join bus.routes r on r.lane = its_lane
    left join lateral (
      select d.share, d.due, d.chunk from bus.ready d where d.lane = its_lane order by d.share, d.due, d.chunk limit 1
    ) as first on true;
  -- a holder that the registry knows must be active; one that it does not know, such as a psql session, may claim
  if not route.allowed then
    raise exception 'Holder % is not active in the registry', claim.holder
      using errcode = 'object_not_in_prerequisite_state';
  end if;
  if route.paused then
    return;
  end if;
  if route.expiring then
    perform bus.expire();
  end if;
  if route.due or route.direct_due then
    perform bus.promote(its_lane), bus.promote(direct);
  elsif route.first_share is null and not route.direct_ready then
    return;
  end if;

  if route.limited then
    select r.* into settings from bus.routes r where r.lane = its_lane;
    select t.ids, t.attempts, t.claims into taken, taken_attempts, claims
      from bus.take_limited(settings, direct, claim.holder, claim.max_messages, claim.lease_ms) as t;
    if cardinality(taken) = 0 then
      return;
    end if;
  else
    if not (route.many_shares or route.many_chunks or route.direct_ready or route.due or route.direct_due) then
      -- all that is there, for less than below
      delete from bus.ready r
       where r.ctid = (select f.ctid from bus.ready f where f.lane = its_lane and f.share = route.first_share
                        order by f.due, f.chunk limit 1 for update skip locked)
         and cardinality(r.ids) <= claim.max_messages
      returning r.ids, array_fill(r.attempt, array[cardinality(r.ids)]) into taken, taken_attempts;
      taken := coalesce(taken, '{}');
      taken_attempts := coalesce(taken_attempts, '{}');
    end if;
    -- what others are just taking is passed over; when that is all, wait for one of them and look again
    for look in 1..2 loop
      exit when cardinality(taken) > 0;
      if look = 1 and not (route.many_shares or route.direct_ready or route.due or route.direct_due) then
        -- one tenant has it all
        select t.ids, t.attempts into taken, taken_attempts
          from bus.take_share(its_lane, route.first_share, claim.max_messages, taken, taken_attempts) as t;
      else
        if claim.instance is not null then
          select t.ids, t.attempts into taken, taken_attempts from bus.take(direct, claim.max_messages, taken, taken_attempts) as t;
        end if;
        if cardinality(taken) < claim.max_messages then
          select t.ids, t.attempts into taken, taken_attempts
            from bus.take(its_lane, claim.max_messages - cardinality(taken), taken, taken_attempts) as t;
        end if;
      end if;
      exit when look = 2 or cardinality(taken) > 0;
      perform from bus.ready r where r.lane in (its_lane, direct) order by r.lane, r.share, r.due, r.chunk limit 1 for update;
      exit when not found;
    end loop;
    if cardinality(taken) = 0 then
      return;
    end if;
    if cardinality(taken) > 64 and taken_attempts[1] = all (taken_attempts) then
      -- so a completion of all of them names them as they stand here
      taken := array(select t from unnest(taken) as t order by t);
      in_order := taken;
    end if;
    insert into bus.claims as c (holder, lane, route, lease_until, remaining, ids, attempts)
    values (claim.holder, its_lane, its_route, clock_timestamp() + claim.lease_ms * interval '1 millisecond', cardinality(taken),
            taken, taken_attempts)
    returning array[c.claim] into claims;
  end if;

  -- it may have been suspended after the first look, and before what was taken was sent
  if not registry.may_claim(claim.holder) then
    raise exception 'Holder % is not active in the registry', claim.holder
      using errcode = 'object_not_in_prerequisite_state';
  end if;
  moment := clock_timestamp();
  if cardinality(taken) > 64 then
    -- the claim alone tells whose they are; the rows are marked when the first heartbeat finds them unfinished
    in_order := coalesce(in_order, array(select t from unnest(taken) as t order by t));
    lowest := in_order[1];
    highest := in_order[cardinality(in_order)];
    if taken_attempts[1] = all (taken_attempts) and bus.stand_close(lowest, highest, cardinality(taken)) then
      -- one look from the lowest to the highest; "is true" keeps the planner from making a join of it, and what a claim
      -- answers has no order
      return query
      select m.id, taken_attempts[1], m.max_attempts, m.tenant, m.payload, m.headers, m.root_id, m.parent_id, m.reply_to,
             m.priority, m.created_at, (date_part('epoch', moment - m.created_at) * 1000)::bigint,
             (date_part('epoch', m.expires_at - moment) * 1000)::bigint
        from public.agent_messages m
       where m.id between lowest and highest and (m.id in (select unnest(in_order))) is true
         and m.status = 'queued' and m.attempts = taken_attempts[1] - 1
         and (m.expires_at is null or m.expires_at > clock_timestamp());
    elsif taken_attempts[1] = all (taken_attempts) then
      -- as below, in one scan
      return query
      select m.id, taken_attempts[1], m.max_attempts, m.tenant, m.payload, m.headers, m.root_id, m.parent_id, m.reply_to,
             m.priority, m.created_at, (date_part('epoch', moment - m.created_at) * 1000)::bigint,
             (date_part('epoch', m.expires_at - moment) * 1000)::bigint
        from public.agent_messages m
       where m.id = any (in_order) and m.id between lowest and highest
         and m.status = 'queued' and m.attempts = taken_attempts[1] - 1
         and (m.expires_at is null or m.expires_at > clock_timestamp());
    else
      return query
      select m.id, e.attempt, m.max_attempts, m.tenant, m.payload, m.headers, m.root_id, m.parent_id, m.reply_to, m.priority,
             m.created_at, (date_part('epoch', moment - m.created_at) * 1000)::bigint,
             (date_part('epoch', m.expires_at - moment) * 1000)::bigint
        from unnest(taken, taken_attempts) as e (id, attempt)
        -- offset 0: each is looked up by its id, whatever the planner takes for cheaper
       cross join lateral (
         select i.* from public.agent_messages i
          where i.id = e.id and i.status = 'queued' and i.attempts = e.attempt - 1
            and (i.expires_at is null or i.expires_at > clock_timestamp())
         offset 0) as m;
    end if;
    get diagnostics shown = row_count;
  elsif cardinality(taken) = 1 then
    -- as below, for less
    perform from public.agent_messages m where m.id = taken[1] for update skip locked;
    if found then
      return query
      update public.agent_messages as m
         set status = 'claimed', attempts = m.attempts + 1, claimed_by = claim.holder, claimed_at = clock_timestamp(),
             lease_until = clock_timestamp() + claim.lease_ms * interval '1 millisecond', retry_at = null
       where m.id = taken[1] and m.status = 'queued' and m.attempts + 1 = taken_attempts[1]
         and (m.expires_at is null or m.expires_at > clock_timestamp())
      returning m.id, m.attempts, m.max_attempts, m.tenant, m.payload, m.headers, m.root_id, m.parent_id, m.reply_to,
                m.priority, m.created_at, (date_part('epoch', moment - m.created_at) * 1000)::bigint,
                (date_part('epoch', m.expires_at - moment) * 1000)::bigint;
      get diagnostics shown = row_count;
    end if;
  else
    in_order := array(select t from unnest(taken) as t order by t);
    lowest := in_order[1];
    highest := in_order[cardinality(in_order)];
    -- a row that somebody has locked, such as one who is about to send what awaits it, is not waited for
    return query
    update public.agent_messages as m
       set status = 'claimed', attempts = m.attempts + 1, claimed_by = claim.holder, claimed_at = clock_timestamp(),
           lease_until = clock_timestamp() + claim.lease_ms * interval '1 millisecond', retry_at = null
     where m.id between lowest and highest
       and m.id = any (array(
         select f.id from public.agent_messages f
          where f.id = any (in_order) and f.id between lowest and highest
          order by f.id for update of f skip locked))
       and m.status = 'queued' and m.attempts + 1 = taken_attempts[array_position(taken, m.id)]
       -- one whose time passed in this very moment is not started; its lease ends, and then it is a dead letter
       and (m.expires_at is null or m.expires_at > clock_timestamp())
    returning m.id, m.attempts, m.max_attempts, m.tenant, m.payload, m.headers, m.root_id, m.parent_id, m.reply_to,
              m.priority, m.created_at, (date_part('epoch', moment - m.created_at) * 1000)::bigint,
              (date_part('epoch', m.expires_at - moment) * 1000)::bigint;
    get diagnostics shown = row_count;
  end if;
  if shown < cardinality(taken) and cardinality(taken) <= 64 then
    return query
    select m.id, e.attempt, m.max_attempts, m.tenant, m.payload, m.headers, m.root_id, m.parent_id, m.reply_to, m.priority,
           m.created_at, (date_part('epoch', moment - m.created_at) * 1000)::bigint,
           (date_part('epoch', m.expires_at - moment) * 1000)::bigint
      from unnest(taken, taken_attempts) as e (id, attempt)
      join public.agent_messages m on m.id = e.id
     where m.status = 'queued' and m.attempts = e.attempt - 1
       and (m.expires_at is null or m.expires_at > clock_timestamp());
    get diagnostics unmarked = row_count;
  end if;
  if shown + unmarked < cardinality(taken) then
    perform bus.drop_unclaimable(claim.holder, claims, moment);
  end if;
  if exists (select from bus.watchers w where not w.ends_only) then
    perform bus.watched(taken);
  end if;
end
$$;
