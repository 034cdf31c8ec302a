-- Who ends a message looks once more for those who wait for it, since he may have waited for them himself; and whoever locks
-- several groups does so in one order, or does not wait for them.

drop function bus.mark_done(uuid[], smallint[], text, jsonb[], text[], text[]);

-- as before, and who waits for the messages is looked for by a statement of its own
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

-- messages that end, and those that await them, in the order of their ids
create function bus.lock_rows(messages uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
begin
  perform from public.agent_messages m
    where m.id = any (lock_rows.messages
                      || array(select a.id from bus.awaited a where a.on_id = any (lock_rows.messages)))
    order by m.id for no key update;
end
$$;

-- the groups that are left or gone on in when these end, in the order in which senders lock them; rows come first
create function bus.lock_groups(messages uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
begin
  perform bus.lock_group(g.lane, g.tenant, g.group_key)
     from (select distinct g.lane, g.tenant, g.group_key from bus.groups g
            where g.id = any (lock_groups.messages
                              || array(select a.id from bus.awaited a where a.on_id = any (lock_groups.messages)))
            order by 1, 2, 3) as g;
end
$$;

-- all that one message's end needs (groups as bus.lock_group locks them), without waiting: for those who do not know
-- beforehand which will end
create function bus.try_end(message uuid) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  waiting constant uuid[] := array(select a.id from bus.awaited a where a.on_id = try_end.message);
  free boolean;
begin
  if cardinality(waiting) > 0 and (
    select count(*) < (select count(*) from public.agent_messages w where w.id = any (waiting))
      from (select from public.agent_messages m where m.id = any (waiting) for no key update skip locked) as locked) then
    return false;
  end if;
  select bool_and(pg_try_advisory_xact_lock(hashtextextended(g.tenant || chr(10) || g.group_key, g.lane))) into free
    from bus.groups g where g.id = any (waiting || try_end.message);
  return free is not false;
end
$$;

-- the rows of messages that end, then the groups of these and of what is sent with their ends, then claims that limits count
create function bus.lock_ends(ids uuid[], follow_ups jsonb[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
begin
  -- what follow-ups await is locked once more when they are sent
  perform bus.lock_rows(lock_ends.ids || array(
    select a::uuid
      from unnest(lock_ends.follow_ups) as e, jsonb_array_elements(e) as f, jsonb_array_elements_text(nullif(f -> 'awaits', 'null')) as a));
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

-- as before
create or replace function bus.after_end(ids uuid[], grouped uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  one uuid;
  awaited constant boolean := exists (select from bus.awaited);
begin
  if awaited or grouped is not null then
    if awaited then
      perform bus.lock_rows(after_end.ids);
    end if;
    perform bus.lock_groups(after_end.ids);
  end if;
  if awaited then
    perform bus.count_down(after_end.ids);
  end if;
  foreach one in array coalesce(after_end.grouped, '{}') loop
    perform bus.leave_group(one);
  end loop;
end
$$;

-- what may be committed by those who were under way while it was decided, and did not see it
create table bus.unsettled (
  id    bigint generated always as identity primary key,
  task  uuid,
  lane  bigint,
  at    timestamptz not null default clock_timestamp(),
  seen  timestamptz,
  ahead xid8,
  constraint unsettled_of_one check (num_nonnulls(task, lane) = 1)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
comment on table bus.unsettled is 'Decisions that somebody who was under way may have missed; bus.reclaim applies them to what he commits, until none is left.';
comment on column bus.unsettled.id is 'Numbers them.';
comment on column bus.unsettled.task is 'A task that was cancelled: what its messages send ends as well.';
comment on column bus.unsettled.lane is 'A route that was limited: what is claimed counts.';
comment on column bus.unsettled.at is 'When it was decided, by the database clock.';
comment on column bus.unsettled.seen is 'When it was last applied.';
comment on column bus.unsettled.ahead is 'Transactions from this one on have seen it; null before the first look.';
alter table bus.unsettled enable row level security;
revoke all on bus.unsettled from public, anon, authenticated, service_role;

-- as bus.unplace, of many together: a chunk that loses a hundred is written once
create function bus.unplace_many(messages uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  chunk record;
begin
  delete from bus.delayed d using public.agent_messages m
   where m.id = any (messages) and m.retry_at is not null and d.id = m.id and d.due = m.retry_at
     and d.lane = bus.lane(m.service || '/' || m.role || '/' || m.shard, m.target_instance);
  for chunk in
    select r.lane, r.share, r.due, r.chunk,
           array(select i from unnest(r.ids) with ordinality as t (i, place)
                  where (i in (select unnest(messages))) is not true order by place) as rest
      from (select distinct bus.lane(m.service || '/' || m.role || '/' || m.shard, m.target_instance) as lane, m.tenant
              from public.agent_messages m where m.id = any (messages) and m.status = 'queued') as l
      join bus.ready r on r.lane = l.lane and r.tenant = l.tenant
     where exists (select from unnest(r.ids) as i where i in (select unnest(messages)))
     for update of r skip locked
  loop
    if cardinality(chunk.rest) = 0 then
      delete from bus.ready r
       where r.lane = chunk.lane and r.share = chunk.share and r.due = chunk.due and r.chunk = chunk.chunk;
    else
      update bus.ready r set ids = chunk.rest
       where r.lane = chunk.lane and r.share = chunk.share and r.due = chunk.due and r.chunk = chunk.chunk;
    end if;
  end loop;
end
$$;

-- ends what of these is unfinished as bus.cancel did before, but with all rows first, then all groups, then claims
create function bus.cancel_open(open uuid[]) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  m public.agent_messages;
  held record;
  ended uuid[] := '{}';
  grouped uuid[];
begin
  perform bus.lock_rows(open), bus.lock_groups(open);
  -- and then the claims that limits count
  perform from bus.claims c where c.limited and c.ids && open order by c.holder, c.claim for update;
  perform bus.unplace_many(open) where cardinality(open) > 1;
  for m in
    select t.* from public.agent_messages t where t.id = any (open) and t.status in ('queued', 'claimed') order by t.id
  loop
    select c.holder, c.claim, c.version, c.claimed_at, c.attempts[array_position(c.ids, m.id)] as attempt into held
      from bus.claims c
     where m.id = any (c.ids)
       and c.attempts[array_position(c.ids, m.id)] = m.attempts + (m.status = 'queued')::integer
       and (m.status = 'queued' or c.holder = m.claimed_by);
    if held.claim is null and cardinality(open) = 1 then
      perform bus.unplace(m);
    end if;
    update public.agent_messages as t
       set status = 'cancelled', done_at = clock_timestamp(), lease_until = null, retry_at = null,
           attempts = coalesce(held.attempt, t.attempts), claimed_by = coalesce(held.holder, t.claimed_by),
           claimed_at = coalesce(held.claimed_at, t.claimed_at)
     where t.id = m.id;
    if held.claim is not null then
      perform bus.let_go(held.holder, array[held.claim], array[held.version], array[m.id], array[held.attempt]);
      insert into bus.attempts (id, attempt, holder, started_at, outcome)
      values (m.id, held.attempt, held.holder, held.claimed_at, 'cancelled') on conflict do nothing;
    end if;
    perform bus.record_event('message_cancelled', m, 'bus.cancel', jsonb_build_object('was', case when held.claim is null then m.status else 'claimed' end));
    perform pg_notify('bus_cancel', m.id::text);
    ended := ended || m.id;
    grouped := case when m.group_key is not null then grouped || m.id else grouped end;
  end loop;
  delete from bus.joins j where j.id = any (ended);
  -- none of a group is placed that ends here as well
  perform bus.after_end(ended, grouped);
  return cardinality(ended);
end
$$;

create or replace function bus.cancel(task uuid) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  cancelled integer := 0;
  before integer;
begin
  loop
    before := cancelled;
    cancelled := cancelled + bus.cancel_open(array(
      select t.id from public.agent_messages t
       where (t.id = task or (t.root_id = task and t.root_id <> t.id)) and t.status in ('queued', 'claimed')));
    -- a completion that was under way may have sent children meanwhile; the next look sees them
    exit when before = cancelled and not exists (
      select from public.agent_messages t
       where (t.id = task or (t.root_id = task and t.root_id <> t.id)) and t.status in ('queued', 'claimed'));
  end loop;
  -- and somebody who has not committed yet may have sent some
  insert into bus.unsettled (task) select t.id from public.agent_messages t where t.id = cancel.task and t.root_id = t.id;
  perform bus.announce_tasks(array[task]);
  return cancelled;
end
$$;

-- limits of the route count what of it is claimed
create function bus.count_claims(its_lane bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  c record;
begin
  for c in
    select k.holder, k.claim, k.ids from bus.claims k
     where k.lane = its_lane
       and (not k.limited
            or (k.limit_key is null and exists (select from bus.limits l where l.lane = its_lane and l.counted_by = 'key')))
     order by k.holder, k.claim for update skip locked
  loop
    -- an end that is under way took the claim for one that nobody counts, and may not count itself off
    continue when (select count(*) from (select from public.agent_messages m where m.id = any (c.ids)
                                            for no key update skip locked) as locked)
                < (select count(*) from public.agent_messages m where m.id = any (c.ids));
    update bus.claims k set limited = true, tenant = one.tenant, limit_key = one.limit_key
      -- of several tenants it counts for the route alone
      from (select case when min(m.tenant) = max(m.tenant) then min(m.tenant) end as tenant,
                   case when min(m.tenant) = max(m.tenant) and count(m.limit_key) = count(*)
                          and min(m.limit_key) = max(m.limit_key) then min(m.limit_key) end as limit_key
              from public.agent_messages m where m.id = any (c.ids)) as one
     where k.holder = c.holder and k.claim = c.claim;
  end loop;
end
$$;

-- applies what is unsettled, and waits for nobody: what somebody has locked is for the next time
create function bus.settle_unsettled(max_rows integer) returns void
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
  for u in select t.* from bus.unsettled t order by coalesce(t.seen, t.at), t.id limit max_rows for update skip locked loop
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
        perform bus.cancel_open(array[late]), bus.announce_tasks(array[u.task]) where bus.try_end(late);
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

create or replace function bus.reclaim(max_rows integer default 500) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c record;
  back record;
  reclaimed integer := 0;
begin
  for c in
    select k.holder, k.claim from bus.claims k where k.lease_until <= (select clock_timestamp())
     order by k.lease_until limit max_rows for update skip locked
  loop
    back := bus.take_back(c.holder, c.claim, 'lease_expired', 'lease of ' || c.holder || ' expired', 'bus.reclaim',
                          max_rows - reclaimed);
    reclaimed := reclaimed + back.settled;
    exit when reclaimed >= max_rows;
  end loop;
  perform bus.settle_unsettled(max_rows);
  return reclaimed;
end
$$;

-- as before; it waits for no group, and an extension beside a locked claim keeps its place in the limits
create or replace function bus.take_back(
  holder_of text, claim_of bigint, outcome text, reason text, actor text, max_rows integer, out settled integer,
  out left_over boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  m record;
begin
  settled := 0;
  left_over := false;
  for m in
    -- one that is just being completed is left for the next time, with its claim
    select t.id, h.attempt, c.claimed_at, c.route
      from bus.claims c, unnest(c.ids, c.attempts) as h (id, attempt)
      join public.agent_messages t on t.id = h.id
     where c.holder = holder_of and c.claim = claim_of
       and ((t.status = 'queued' and t.attempts = h.attempt - 1)
            or (t.status = 'claimed' and t.attempts = h.attempt and t.claimed_by = holder_of))
       -- an extension that could not wait for this claim gave it a later lease
       and not exists (select from bus.claims l
                        where outcome = 'lease_expired' and l.holder = holder_of and l.claim <> claim_of
                          and l.lease_until > clock_timestamp() and h.id = any (l.ids)
                          and l.attempts[array_position(l.ids, h.id)] = h.attempt)
     order by t.id limit max_rows for update of t skip locked
  loop
    -- the same by what is true now that the row is locked: an extension may have come through while it was waited for
    continue when outcome = 'lease_expired' and exists (
      select from bus.claims l
       where l.holder = holder_of and l.claim <> claim_of and l.lease_until > clock_timestamp() and m.id = any (l.ids)
         and l.attempts[array_position(l.ids, m.id)] = m.attempt);
    -- one whose group, or who awaits it, somebody has just locked as well
    continue when not bus.try_end(m.id);
    perform bus.record_event(outcome, t, actor, jsonb_build_object('holder', holder_of, 'attempt', m.attempt))
       from public.agent_messages t where t.id = m.id and outcome = 'lease_expired';
    if bus.settle_failure(m.id, m.attempt, outcome, holder_of, reason, true, null, actor, m.claimed_at) is not null then
      settled := settled + 1;
    end if;
  end loop;
  left_over := exists (
    select from bus.claims c, unnest(c.ids, c.attempts) as h (id, attempt)
      join public.agent_messages t on t.id = h.id
     where c.holder = holder_of and c.claim = claim_of
       and ((t.status = 'queued' and t.attempts = h.attempt - 1)
            or (t.status = 'claimed' and t.attempts = h.attempt and t.claimed_by = holder_of))
       -- an extension that could not wait for this claim gave it a later lease
       and not exists (select from bus.claims l
                        where outcome = 'lease_expired' and l.holder = holder_of and l.claim <> claim_of
                          and l.lease_until > clock_timestamp() and h.id = any (l.ids)
                          and l.attempts[array_position(l.ids, h.id)] = h.attempt));
  -- limits go on counting what has a later lease; where that claim is locked, this one stays
  with later as materialized (
    select l.claim, c.tenant, c.limit_key
      from bus.claims c
      join bus.claims l on l.holder = c.holder and l.claim <> c.claim and not l.limited and l.ids && c.ids
     where c.holder = holder_of and c.claim = claim_of and c.limited and not left_over
       for update of l skip locked
  )
  update bus.claims l set limited = true, tenant = later.tenant, limit_key = later.limit_key
    from later where l.holder = holder_of and l.claim = later.claim;
  left_over := left_over or exists (
    select from bus.claims c
      join bus.claims l on l.holder = c.holder and l.claim <> c.claim and not l.limited and l.ids && c.ids
     where c.holder = holder_of and c.claim = claim_of and c.limited);
  if not left_over then
    delete from bus.claims c where c.holder = holder_of and c.claim = claim_of;
  end if;
end
$$;

create or replace function bus.expire(max_rows integer default 200) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  m public.agent_messages;
  over uuid[];
  ended uuid[] := '{}';
begin
  with over as (
    delete from bus.expiring e
     using (select x.at, x.id from bus.expiring x where x.at <= (select clock_timestamp())
             order by x.at, x.id limit max_rows for update skip locked) as o
     where e.at = o.at and e.id = o.id
    returning e.id)
  select array_agg(o.id) into over from over o;
  if over is null then
    return 0;
  end if;
  -- what somebody holds goes on; should it fail, there is no other attempt
  for m in
    select t.* from public.agent_messages t
     where t.id = any (over) and t.status = 'queued'
       and not exists (select from bus.claims c where t.id = any (c.ids) and c.attempts[array_position(c.ids, t.id)] = t.attempts + 1)
     order by t.id for update of t skip locked
  loop
    continue when not bus.try_end(m.id);
    perform bus.unplace(m);
    delete from bus.joins j where j.id = m.id;
    if bus.settle_failure(m.id, m.attempts, 'failed', null,
         'time to live passed ' || coalesce('before another attempt, last error: ' || m.error, 'before it was started'),
         false, null, 'bus.expire') is not null then
      ended := ended || m.id;
    end if;
  end loop;
  -- every claim may come by here, so it waits for nobody: what somebody has locked is looked at a little later, after others,
  -- and what somebody holds when his lease ends, as he may hand it back
  insert into bus.expiring (at, id)
  select greatest((select max(c.lease_until) from bus.claims c where t.id = any (c.ids)),
                  clock_timestamp() + interval '100 ms'), t.id
    from public.agent_messages t
   where t.id = any (over) and t.id <> all (ended) and t.done_at is null;
  return cardinality(ended);
end
$$;

create or replace function bus.complete_many(
  ids uuid[], attempts smallint[], holder text, results jsonb[], result_snippets text[], result_urls text[])
returns table (id uuid)
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
  if exists (select from bus.awaited) and exists (select from bus.awaited a where a.on_id = any (complete_many.ids)) then
    -- whoever ends or cancels those that wait takes all rows in one order as well
    perform bus.lock_rows(complete_many.ids);
  end if;
  select d.done as ids, d.claim, d.last_claim, d.version, d.special, d.awaited, d.watched
    into done
    from bus.record_done(complete_many.ids, complete_many.attempts, complete_many.holder, complete_many.results,
                         complete_many.result_snippets, complete_many.result_urls) as d;
  if done.ids is null then
    return;
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
    freed := bus.let_go_of(complete_many.holder, done.claim, done.version, done.ids);
    if freed is not null then
      perform bus.announce(freed);
    end if;
  else
    perform bus.let_go(complete_many.holder, array_agg(h.claim), array_agg(h.version), array_agg(h.id), array_agg(h.attempt))
       -- one that an extension gave a claim of its own stands in two, and is counted off once; of its attempts only the last
       -- can have been recorded, an earlier one given with it is stale
       from (select distinct on (k.id) k.claim, k.version, k.id, k.attempt
               from bus.held(complete_many.holder, true) as k
               join unnest(complete_many.ids, complete_many.attempts) as g (id, attempt)
                 on g.id = k.id and g.attempt = k.attempt
              where k.id = any (done.ids) order by k.id, k.attempt desc, k.claim) as h;
  end if;
  if assigned then
    insert into public.bus_events (kind, tenant, message_id, root_id, route, actor, detail)
    select 'execute_done', m.tenant, m.id, m.root_id, m.service || '/' || m.role || '/' || m.shard,
           complete_many.holder, bus.outcome_detail(m.*::public.agent_messages)
      from public.agent_messages m where m.id = any (done.ids) and m.payload ? '__assignment';
  end if;
  if done.watched then
    perform bus.announce_tasks(done.ids || roots);
  end if;
  return query select unnest(done.ids);
end
$$;

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
  -- whose days these are is known before the statement begins: other parts are left out of it
  lowest constant uuid := (select i from unnest(fail_many.ids) as i order by i limit 1);
  highest constant uuid := (select i from unnest(fail_many.ids) as i order by i desc limit 1);
  ended record;
begin
  if exists (select from bus.awaited) and exists (select from bus.awaited a where a.on_id = any (fail_many.ids)) then
    -- whoever ends or cancels those that wait takes all rows in one order as well
    perform bus.lock_rows(fail_many.ids);
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

-- Who sends has the keys of idempotency first, and so has who ends a message by sending: the follow-ups get the ids under which
-- bus.enqueue_many finds them taken. What is not sent in the end gives them back.
create function bus.hold_keys(
  messages uuid[], inout follow_ups jsonb[], out senders uuid[], out tenants text[], out keys text[], out ids uuid[])
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_variable
declare
  one record;
  last_tenant text;
  last_key text;
begin
  follow_ups := array(
    select (select jsonb_agg(case when f ->> 'idempotency_key' is null then f
                                  else f || jsonb_build_object('id', coalesce(f ->> 'id', bus.uuid_v7()::text)) end order by o)
              from jsonb_array_elements(e.sent) with ordinality as t (f, o))
      from unnest(follow_ups) with ordinality as e (sent, place) order by e.place);
  for one in
    select m.id as sender, coalesce(f ->> 'tenant', m.tenant) as tenant, f ->> 'idempotency_key' as key, (f ->> 'id')::uuid as id,
           (f ->> 'idempotency_ms')::bigint as window_ms
      from unnest(messages, follow_ups) as e (id, sent)
      join public.agent_messages m on m.id = e.id
     cross join lateral jsonb_array_elements(e.sent) with ordinality as t (f, o)
     where f ->> 'idempotency_key' is not null
     order by 2, 3, m.id, o
  loop
    continue when (one.tenant, one.key) = (last_tenant, last_key);
    last_tenant := one.tenant;
    last_key := one.key;
    -- one that has had it before keeps it
    continue when exists (select from bus.keys k
                           where k.tenant = one.tenant and k.idempotency_key = one.key and k.id = one.id);
    if bus.take_key(one.tenant, one.key, one.id, one.window_ms) = one.id then
      senders := senders || one.sender;
      tenants := tenants || one.tenant;
      keys := keys || one.key;
      ids := ids || one.id;
    end if;
  end loop;
end
$$;

create function bus.give_keys_back(tenants text[], keys text[], ids uuid[]) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  delete from bus.keys k using unnest(tenants, keys, ids) as h (tenant, key, id)
   where k.tenant = h.tenant and k.idempotency_key = h.key and k.id = h.id
$$;

-- as before, with all keys and groups first
create or replace function bus.complete(
  id uuid, holder text, attempt smallint, result jsonb default null, result_snippet text default null,
  result_url text default null, follow_ups jsonb default '[]')
returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  held record;
  keyed constant boolean := complete.follow_ups @? '$[*] ? (exists (@.idempotency_key))';
begin
  if keyed then
    held := bus.hold_keys(array[complete.id], array[complete.follow_ups]);
    follow_ups := held.follow_ups[1];
  end if;
  if complete.follow_ups @? '$[*] ? (exists (@.group_key) || exists (@.awaits))' then
    perform bus.lock_ends(array[complete.id], array[complete.follow_ups]);
  end if;
  perform from bus.complete_many(array[complete.id], array[complete.attempt], complete.holder, array[complete.result],
                                 array[complete.result_snippet], array[complete.result_url]);
  if not found then
    if keyed then
      perform bus.give_keys_back(held.tenants, held.keys, held.ids);
    end if;
    return false;
  end if;
  if jsonb_array_length(complete.follow_ups) > 0 then
    perform bus.enqueue_many((
      select jsonb_agg(jsonb_build_object('tenant', m.tenant) || f || jsonb_build_object('parent_id', m.id))
        from public.agent_messages m, jsonb_array_elements(complete.follow_ups) as f
       where m.id = complete.id));
  end if;
  return true;
end
$$;

create or replace function bus.settle_together(holder text, ended jsonb)
returns table (id uuid, status text)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  kind record;
  done uuid[] := '{}';
  held record;
  keyed boolean;
begin
  select h.*, g.messages into held
    from (select array_agg(r.id order by r.id) as messages, array_agg(r.ending -> 'follow_ups' order by r.id) as follow_ups
            from bus.read_endings(settle_together.ended) as r
           where r.outcome = 'done' and r.ending @? '$.follow_ups[*].idempotency_key') as g
   cross join lateral bus.hold_keys(g.messages, g.follow_ups) as h
   where g.messages is not null;
  keyed := found;
  if keyed then
    ended := (
      select jsonb_object_agg(r.id, jsonb_build_object('attempt', r.attempt, 'ending', r.ending
               || case when h.sent is null then '{}' else jsonb_build_object('follow_ups', h.sent) end))
        from bus.read_endings(settle_together.ended) as r
        left join unnest(held.messages, held.follow_ups) as h (id, sent) on h.id = r.id);
  end if;
  perform bus.lock_ends(array_agg(r.id), array_agg(coalesce(nullif(r.ending -> 'follow_ups', 'null'), '[]')))
     from bus.read_endings(settle_together.ended) as r
   having count(*) > 1 or bool_or(r.ending @? '$.follow_ups[*] ? (exists (@.group_key) || exists (@.awaits))');
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
  if keyed then
    perform bus.give_keys_back(array_agg(h.tenant), array_agg(h.key), array_agg(h.id))
       from unnest(held.senders, held.tenants, held.keys, held.ids) as h (sender, tenant, key, id)
      where h.sender <> all (done);
  end if;
end
$$;

-- as before, but for triggers of rows
create or replace function bus.enqueue_payloads(
  service text, role text, tenant text, payloads jsonb[], headers jsonb[] default null, shard integer default 0,
  ids uuid[] default null)
returns uuid[]
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_variable
declare
  its_route constant text := service || '/' || role || '/' || shard;
  moment constant timestamptz := clock_timestamp();
  today constant date := (moment at time zone 'UTC')::date;
  part constant regclass := to_regclass('bus.messages_' || to_char(today, 'YYYYMMDD'));
  -- as bus.first_id, of which two calls take as long as twenty messages
  first constant uuid := (lpad(to_hex((today - date '1970-01-01') * 86400000::bigint), 12, '0') || repeat('0', 20))::uuid;
  past constant uuid := (lpad(to_hex((today + 1 - date '1970-01-01') * 86400000::bigint), 12, '0') || repeat('0', 20))::uuid;
  given constant text := '(select unnest($5) as id, unnest($6) as payload, unnest($7) as headers) as g';
  -- all that bus.after_insert asks of such a message, and the bounds of the part. What does not fit is inserted below as
  -- ever, so that only a rule which becomes stricter there must become so here.
  fits constant text :=
    'g.id >= $8 and g.id < $9 and jsonb_typeof(g.payload) = ''object'' and pg_column_size(g.payload) <= 1048576
     and (g.headers is null or jsonb_typeof(g.headers) = ''object'' and pg_column_size(g.headers) <= 16384)';
  made uuid[];
  settings record;
  stored bigint := 0;
begin
  if ids is null then
    made := array(select bus.uuid_v7() from generate_series(1, cardinality(payloads)));
    ids := made;
  elsif array_ndims(ids) <> 1 or array_lower(ids, 1) <> 1 then
    -- pieces are cut from it by place
    ids := array(select unnest(ids));
  end if;
  select r.aging_ms, r.draining is not true and shard between 0 and 65535 and part is not null
         -- a trigger that somebody put there (4: upon insert) sees the statements, and what it makes of a row counts
         and not exists (select from pg_trigger t
                          where t.tgrelid in ('public.agent_messages'::regclass, part) and t.tgtype & 4 = 4
                            and t.tgname not in ('before_insert', 'after_insert')) as plain
    into settings
    from (select) as one
    left join bus.routes r on r.lane = hashtextextended(its_route, 0);
  if settings.plain then
    execute format(
      'insert into %s (id, root_id, service, role, shard, tenant, payload, headers)
       select g.id, g.id, $1, $2, $3, $4, g.payload, coalesce(g.headers, ''{}'') from %s where %s', part, given, fits)
      using service, role, shard, tenant, ids, payloads, headers, first, past;
    get diagnostics stored = row_count;
  end if;
  if stored < greatest(cardinality(ids), cardinality(payloads), cardinality(headers)) then
    -- the rest goes the way of every insert, which knows all rules and days
    execute format(
      'insert into public.agent_messages (id, root_id, service, role, shard, tenant, payload, headers)
       select g.id, g.id, $1, $2, $3, $4, g.payload, coalesce(g.headers, ''{}'') from %s where (%s) is not true or $10 = 0',
      given, fits)
      using service, role, shard, tenant, ids, payloads, headers, first, past, stored;
    execute format('select case when $10 > 0 then array(select g.id from %s where %s) end', given, fits)
       into ids using service, role, shard, tenant, ids, payloads, headers, first, past, stored;
  end if;
  insert into bus.ready (lane, share, due, attempt, route, tenant, ids)
  select hashtextextended(its_route, 0), hashtext(tenant),
         (date_part('epoch', moment) * 1000000)::bigint + 100 * 1000::bigint * coalesce(settings.aging_ms, 10000),
         1, its_route, tenant, ids[place:place + 99]
    from generate_series(1, cardinality(ids), 100) as place;
  return made;
end
$$;

-- as before, and with an empty key of any key: two tenants can have one share, and a limit is one tenant's
create or replace function bus.take_share(
  lane bigint, share integer, want integer, inout ids uuid[], inout attempts smallint[], of_tenant text default null,
  of_key text default null)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  chunk record;
  first_due bigint;
  last_due bigint;
  chunks bigint[];
  missing integer := want;
  -- most chunks are full; where they are not, the next round takes as many as the last one showed to be needed
  rows_wanted integer := greatest(1, (want + 99) / 100);
  got integer;
  seen integer;
begin
  loop
    got := 0;
    seen := 0;
    first_due := null;
    chunks := '{}';
    for chunk in
      select r.due, r.chunk, r.attempt, r.ids, cardinality(r.ids) as size from bus.ready r
       where r.lane = take_share.lane and r.share = take_share.share
         and (of_tenant is null or (r.tenant = of_tenant and (of_key = '' or r.limit_key is not distinct from of_key)))
       order by r.due, r.chunk limit rows_wanted for update skip locked
    loop
      seen := seen + 1;
      if chunk.size <= missing then
        first_due := coalesce(first_due, chunk.due);
        last_due := chunk.due;
        chunks := chunks || chunk.chunk;
      else
        update bus.ready r set ids = chunk.ids[missing + 1:]
         where r.lane = take_share.lane and r.share = take_share.share and r.due = chunk.due and r.chunk = chunk.chunk;
        chunk.ids := chunk.ids[:missing];
        chunk.size := missing;
      end if;
      ids := ids || chunk.ids;
      attempts := attempts || array_fill(chunk.attempt, array[chunk.size]);
      missing := missing - chunk.size;
      got := got + chunk.size;
      exit when missing = 0;
    end loop;
    if cardinality(chunks) > 0 then
      delete from bus.ready r
       where r.lane = take_share.lane and r.share = take_share.share and r.due between first_due and last_due
         and r.chunk = any (chunks);
    end if;
    exit when missing = 0 or seen < rows_wanted;
    rows_wanted := greatest(1, (missing * seen + got - 1) / got);
  end loop;
end
$$;

create or replace function bus.take_limited(
  settings bus.routes, direct bigint, holder text, want integer, lease_ms bigint, out ids uuid[], out attempts smallint[],
  out claims bigint[])
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  its_route constant text := settings.service || '/' || settings.role || '/' || settings.shard;
  turn integer := bus.turn(settings.lane);
  -- whoever was looked at and given nothing keeps his turn: else the same tenants would always be first
  served integer := turn;
  shares integer[];
  from_lane bigint;
  part integer;
  head record;
  allowed integer;
  got record;
  one_claim bigint;
  before integer;
  round integer := 0;
begin
  ids := '{}';
  attempts := '{}';
  claims := '{}';
  -- who counts and takes on a limited route does so alone until the commit
  perform pg_advisory_xact_lock(settings.lane);
  foreach from_lane in array case when direct = settings.lane then array[direct] else array[direct, settings.lane] end loop
    loop
      before := cardinality(ids);
      -- more shares than are wanted, as limits may close some of them
      shares := bus.shares_after(from_lane, turn, 256);
      for i in 1..cardinality(shares) loop
        exit when cardinality(ids) >= want;
        part := ceil((want - cardinality(ids))::numeric / (cardinality(shares) - i + 1));
        turn := shares[i];
        -- one tenant, and one key where keys are limited; more only of what was sent before the limit was set
        for head in
          select distinct r.tenant, case when settings.keyed then r.limit_key end as limit_key
            from bus.ready r where r.lane = from_lane and r.share = shares[i] order by 1, 2 limit 64
        loop
          allowed := bus.allowance(settings.lane, head.tenant, head.limit_key, part);
          continue when allowed <= 0;
          select t.ids, t.attempts into got
            from bus.take_share(from_lane, shares[i], allowed, '{}', '{}',
                                head.tenant,
                                case when settings.keyed then head.limit_key else '' end) as t;
          continue when cardinality(got.ids) = 0;
          insert into bus.claims as c (holder, lane, route, tenant, limit_key, limited, lease_until, remaining, ids, attempts)
          values (take_limited.holder, settings.lane, its_route, head.tenant, head.limit_key, true,
                  clock_timestamp() + take_limited.lease_ms * interval '1 millisecond', cardinality(got.ids), got.ids,
                  got.attempts)
          returning c.claim into one_claim;
          update bus.buckets b set tokens = b.tokens - cardinality(got.ids)
           where b.lane = settings.lane
             and exists (select from bus.limits l
                          where l.lane = b.lane and l.counted_by = b.counted_by and l.per_second is not null)
             and (b.counted_by = 'route' or (b.counted_by = 'tenant' and b.subject = head.tenant)
                  or (b.counted_by = 'key' and b.subject = head.tenant || '/' || head.limit_key));
          ids := ids || got.ids;
          attempts := attempts || got.attempts;
          claims := claims || one_claim;
          served := shares[i];
          part := part - cardinality(got.ids);
          exit when part <= 0;
        end loop;
      end loop;
      round := case when cardinality(ids) = before then round + 1 else 0 end;
      exit when cardinality(ids) >= want or cardinality(shares) < 256 and round > 0 or round = 8;
    end loop;
  end loop;
  -- where all who were looked at may have nothing, the others come next
  perform bus.remember_turn(settings.lane, case when cardinality(ids) = 0 then turn else served end);
end
$$;

create or replace function bus.drop_unclaimable(holder text, claims bigint[], moment timestamptz) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  h record;
begin
  for h in
    select c.claim, c.version, u.id, u.attempt, m.status, m.attempts, m.expires_at
      from bus.claims c, unnest(c.ids, c.attempts) as u (id, attempt)
      left join public.agent_messages m on m.id = u.id
     where c.holder = drop_unclaimable.holder and c.claim = any (claims)
       and ((m.status = 'claimed' and m.attempts = u.attempt)
            or (m.status = 'queued' and m.attempts = u.attempt - 1 and (m.expires_at is null or m.expires_at > moment))) is not true
     order by u.id
  loop
    if h.status = 'queued' and h.attempts = h.attempt - 1 then
      -- who has it locked may wait for what this claim has; its lease ends, and then it is a dead letter
      perform from public.agent_messages m where m.id = h.id for update skip locked;
      continue when not found or not bus.try_end(h.id);
    end if;
    perform bus.settle_failure(h.id, h.attempts, 'failed', null, 'time to live passed before it was started', false, null, 'bus.claim')
      where h.status = 'queued' and h.attempts = h.attempt - 1;
    perform bus.let_go(drop_unclaimable.holder, array[h.claim], array[h.version], array[h.id], array[h.attempt]);
  end loop;
end
$$;

-- as before, also while somebody sends for a day that has no part yet
create or replace function bus.ensure_partitions(days_ahead integer default 3) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
set lock_timeout = '2s'
as $$
declare
  day date;
  part text;
  made integer := 0;
begin
  for day in select generate_series((clock_timestamp() at time zone 'UTC')::date - 1,
                                    (clock_timestamp() at time zone 'UTC')::date + days_ahead, interval '1 day')::date loop
    part := 'messages_' || to_char(day, 'YYYYMMDD');
    continue when to_regclass('bus.' || part) is not null;
    -- what came before the day had its part stays where it is, and the day with it
    continue when exists (
      select from bus.messages_other o
       where o.id >= bus.first_id(day::timestamp at time zone 'UTC')
         and o.id < bus.first_id((day + 1)::timestamp at time zone 'UTC'));
    begin
      execute format(
        'create table bus.%I partition of public.agent_messages for values from (%L) to (%L)
           with (fillfactor = 45, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0)', part,
        bus.first_id(day::timestamp at time zone 'UTC'), bus.first_id((day + 1)::timestamp at time zone 'UTC'));
    exception when check_violation then
      -- somebody has sent for this day just now
      continue;
    end;
    execute format('alter table bus.%I enable row level security', part);
    execute format('revoke all on bus.%I from public, anon, authenticated, service_role', part);
    execute format('comment on table bus.%I is %L', part, 'Messages of one day by their ids; dropped as a whole by bus.retain.');
    made := made + 1;
  end loop;
  return made;
end
$$;

create or replace function bus.replay_after(dead_letter uuid, delay_ms bigint) returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  m public.agent_messages;
  fresh uuid := bus.uuid_v7();
begin
  -- a task that is just being removed is gone, and one of which something is replayed is not removed
  perform from public.agent_messages r
    where r.id = (select t.root_id from public.agent_messages t where t.id = dead_letter) and r.id <> dead_letter for key share;
  select t.* into m from public.agent_messages t where t.id = dead_letter for update;
  if not found then
    raise exception 'Message % does not exist', dead_letter using errcode = 'no_data_found';
  end if;
  if m.status <> 'failed' then
    raise exception 'Message % is %, only a failed one can be replayed', dead_letter, m.status
      using errcode = 'object_not_in_prerequisite_state';
  end if;
  if exists (select from public.agent_messages r
              where r.root_id = m.root_id and r.root_id <> r.id and r.replay_of = dead_letter
                and r.status in ('queued', 'claimed', 'done')) then
    raise exception 'Message % has been replayed already', dead_letter
      using errcode = 'object_not_in_prerequisite_state';
  end if;
  -- no parent: the deadline of the task may long be over, and a replay starts afresh
  insert into public.agent_messages
         (id, service, role, shard, tenant, payload, priority, max_attempts, retry_at, root_id, replay_of, reply_to,
          group_key, limit_key, target_instance, headers)
  values (fresh, m.service, m.role, m.shard, m.tenant, m.payload, m.priority, m.max_attempts,
          clock_timestamp() + nullif(delay_ms, 0) * interval '1 millisecond', m.root_id, m.id,
          m.reply_to, m.group_key, m.limit_key, m.target_instance, m.headers);
  perform bus.record_event('message_replayed', m, 'bus.replay', jsonb_build_object('replay', fresh));
  return fresh;
end
$$;

create or replace function bus.retain(keep interval, max_tasks integer default 1000) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  cutoff timestamptz := clock_timestamp() - keep;
  removed integer;
  rest integer;
  old uuid[];
begin
  begin
    perform bus.ensure_partitions();
  exception when lock_not_available then
    null;
  end;
  removed := bus.drop_old_partitions(cutoff);
  -- what is left of parts that cannot go yet, and of ids that are not time-ordered
  old := array(
    select r.id from public.agent_messages r
     where (r.id < bus.first_id(cutoff) or r.tableoid = 'bus.messages_other'::regclass)
       and r.root_id = r.id and r.done_at < cutoff
       and not exists (select from public.agent_messages s
                        where s.root_id = r.id and s.root_id <> s.id and (s.done_at is null or s.done_at >= cutoff))
     order by r.id limit max_tasks for update skip locked);
  -- looked at once more, since a replay may have been committed before its task was locked
  with gone as (
    delete from public.agent_messages t using unnest(old) as o (id)
     where (t.id = o.id or (t.root_id = o.id and t.root_id <> t.id)) and t.done_at < cutoff
       and not exists (select from public.agent_messages s
                        where s.root_id = o.id and s.root_id <> s.id and (s.done_at is null or s.done_at >= cutoff))
    returning t.id)
  select count(*) into rest from gone;
  delete from bus.keys k where k.until < (select clock_timestamp());
  delete from bus.dead_letters d
   where d.failed_at < cutoff and not exists (select from public.agent_messages m where m.id = d.id);
  delete from bus.attempts a where a.ended_at < cutoff and not exists (select from public.agent_messages m where m.id = a.id);
  delete from bus.watchers w where w.until < (select clock_timestamp());
  delete from bus.buckets b where b.at < (select clock_timestamp() - interval '7 days');
  return removed + rest;
end
$$;

create or replace function bus.replay_many(
  route text default null, error_like text default null, per_second double precision default 50,
  max_messages integer default 1000)
returns table (dead_letter uuid, id uuid)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  dead uuid[];
  one record;
begin
  if (replay_many.per_second > 0 and replay_many.per_second < 'infinity') is not true then
    raise exception 'A rate must be positive' using errcode = 'invalid_parameter_value';
  end if;
  dead := array(
    select d.id
      from bus.dead_letters d
      join public.agent_messages m on m.id = d.id and m.status = 'failed'
     where (replay_many.route is null or d.route = replay_many.route)
       and (replay_many.error_like is null or m.error like replay_many.error_like)
       and not exists (select from public.agent_messages r
                        where r.root_id = m.root_id and r.root_id <> r.id and r.replay_of = m.id
                          and r.status in ('queued', 'claimed', 'done'))
     order by d.failed_at, d.id limit replay_many.max_messages);
  -- what bus.replay_after locks, all rows in the order of their ids and then all groups
  for one in
    select r.id, bool_or(r.is_dead) as is_dead
      from (select m.id, true from public.agent_messages m where m.id = any (dead)
            union all
            select m.root_id, false from public.agent_messages m where m.id = any (dead)) as r (id, is_dead)
     group by r.id order by r.id
  loop
    if one.is_dead then
      perform from public.agent_messages m where m.id = one.id for update;
    else
      perform from public.agent_messages m where m.id = one.id for key share;
    end if;
  end loop;
  -- some may have been replayed or removed by those who had them before
  dead := array(
    select o.id from unnest(dead) with ordinality as o (id, place)
      join public.agent_messages m on m.id = o.id and m.status = 'failed'
     where not exists (select from public.agent_messages r
                        where r.root_id = m.root_id and r.root_id <> r.id and r.replay_of = m.id
                          and r.status in ('queued', 'claimed', 'done'))
     order by o.place);
  perform bus.lock_group(g.lane, g.tenant, g.group_key)
     from (select distinct bus.lane(m.service || '/' || m.role || '/' || m.shard, null), m.tenant, m.group_key
             from public.agent_messages m where m.id = any (dead) and m.group_key is not null
            order by 1, 2, 3) as g (lane, tenant, group_key);
  return query
  select o.id, bus.replay_after(o.id, ((o.place - 1) * 1000 / replay_many.per_second)::bigint)
    from unnest(dead) with ordinality as o (id, place);
end
$$;

create or replace function bus.enqueue_many(messages jsonb)
returns table (ord bigint, id uuid, duplicate boolean)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  batch record;
  owners uuid[];
  one record;
  owner uuid;
  last_tenant text;
  last_key text;
  known constant text[] := array[
    'id', 'service', 'role', 'shard', 'tenant', 'payload', 'priority', 'max_attempts', 'delay_ms', 'ttl_ms', 'root_id',
    'parent_id', 'reply_to', 'idempotency_key', 'idempotency_ms', 'group_key', 'limit_key', 'target_instance', 'headers',
    'awaits'];
begin
  if jsonb_typeof(messages) <> 'array' then
    raise exception 'Messages must be a JSON array' using errcode = 'invalid_parameter_value';
  end if;
  select array_agg(coalesce((e.m ->> 'id')::uuid, bus.uuid_v7()) order by e.o) as ids,
         max((select k from jsonb_object_keys(e.m - known) as k limit 1)) as unknown,
         coalesce(bool_or(e.m ->> 'idempotency_key' is not null), false) as keyed,
         coalesce(bool_or(nullif(e.m -> 'awaits', 'null') is not null), false) as awaiting
    into batch
    from jsonb_array_elements(messages) with ordinality as e (m, o);
  if batch.unknown is not null then
    raise exception 'Unknown message field %', batch.unknown using errcode = 'invalid_parameter_value';
  end if;
  owners := batch.ids;

  if batch.keyed then
    -- keys in one order, so that two senders cannot wait for each other
    for one in
      select e.o, e.m ->> 'tenant' as tenant, e.m ->> 'idempotency_key' as key, (e.m ->> 'idempotency_ms')::bigint as window_ms
        from jsonb_array_elements(messages) with ordinality as e (m, o)
       where e.m ->> 'idempotency_key' is not null and e.m ->> 'tenant' is not null
       order by 2, 3, 1
    loop
      if (one.tenant, one.key) = (last_tenant, last_key) then
        -- twice in one batch is once, however short its window, and under one id as well
        owners[one.o] := owner;
        batch.ids[one.o] := nullif(batch.ids[one.o], owner);
      else
        owner := bus.take_key(one.tenant, one.key, batch.ids[one.o], one.window_ms);
        owners[one.o] := owner;
        if owner = batch.ids[one.o] and exists (select from public.agent_messages m where m.id = owner) then
          -- sent again under its own id
          batch.ids[one.o] := null;
        end if;
        last_tenant := one.tenant;
        last_key := one.key;
      end if;
    end loop;
  end if;
  if batch.awaiting then
    -- as bus.await locks them for each
    perform from public.agent_messages m
      where m.id = any (array(select a::uuid from jsonb_array_elements(messages) as e (m), jsonb_array_elements_text(nullif(e.m -> 'awaits', 'null')) as a)
                        || owners)
      order by m.id for share;
    for one in
      select batch.ids[e.o] as id, e.m ->> 'tenant' as tenant, e.m -> 'awaits' as awaits, e.o::integer as place
        from jsonb_array_elements(messages) with ordinality as e (m, o)
       where nullif(e.m -> 'awaits', 'null') is not null and owners[e.o] = batch.ids[e.o]
       order by 1
    loop
      -- of the batch only what stands before it, so that no two wait for each other
      perform bus.await(one.id, one.tenant, array(
        select coalesce(known.id, a::uuid)
          from jsonb_array_elements_text(one.awaits) as a
          left join lateral (select owners[p] as id, owners[p] = any (batch.ids) as is_new
                               from generate_subscripts(batch.ids, 1) as p where batch.ids[p] = a::uuid limit 1) as known on true
         -- a key may outlive its message, which has ended then
         where known.id is null or known.is_new or exists (select from public.agent_messages m where m.id = known.id)),
        array(select owners[p] from generate_series(1, one.place - 1) as p where owners[p] = batch.ids[p]));
    end loop;
  end if;

  insert into public.agent_messages
         (id, service, role, shard, tenant, payload, priority, max_attempts, retry_at, expires_at,
          root_id, parent_id, reply_to, idempotency_key, group_key, limit_key, target_instance, headers, awaiting)
  select batch.ids[e.o], e.m ->> 'service', e.m ->> 'role', coalesce((e.m ->> 'shard')::integer, 0),
         e.m ->> 'tenant', coalesce(e.m -> 'payload', '{}'),
         coalesce((e.m ->> 'priority')::smallint, 100::smallint),
         coalesce((e.m ->> 'max_attempts')::smallint, 5::smallint),
         clock_timestamp() + nullif((e.m ->> 'delay_ms')::bigint, 0) * interval '1 millisecond',
         clock_timestamp() + (e.m ->> 'ttl_ms')::bigint * interval '1 millisecond',
         coalesce((e.m ->> 'root_id')::uuid, batch.ids[e.o]), (e.m ->> 'parent_id')::uuid, e.m ->> 'reply_to',
         e.m ->> 'idempotency_key', e.m ->> 'group_key', e.m ->> 'limit_key', e.m ->> 'target_instance',
         coalesce(e.m -> 'headers', '{}'),
         batch.awaiting and nullif(e.m -> 'awaits', 'null') is not null and exists (select from bus.joins j where j.id = batch.ids[e.o])
    from jsonb_array_elements(messages) with ordinality as e (m, o)
   where owners[e.o] = batch.ids[e.o]
   order by e.o;

  return query select o, owners[o], owners[o] is distinct from batch.ids[o] from generate_series(1, cardinality(owners)::bigint) as o;
end
$$;

-- as before; those of a drained route wait until it is opened
create or replace function bus.due_schedules(max_rows integer default 100)
returns table (tenant text, name text, revision bigint, cron text, time_zone text, missed text, catch_up_cap smallint,
               since timestamptz, next_at timestamptz, now timestamptz)
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  select s.tenant, s.name, s.revision, s.cron, s.time_zone, s.missed, s.catch_up_cap, s.since, s.next_at, t.now
    from (select clock_timestamp() as now) as t, bus.schedules s
   where not s.paused and not exists (select from bus.routes r
                      where r.lane = bus.lane(s.service || '/' || s.role || '/' || s.shard, null) and r.draining) and coalesce(s.next_at, '-infinity'::timestamptz) <= t.now
   order by coalesce(s.next_at, '-infinity'::timestamptz) limit max_rows
$$;

create or replace function bus.next_schedule_due() returns bigint
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  select case when d.due is not null
           then greatest(0, ceil(extract(epoch from greatest(d.due, '1970-01-01') - clock_timestamp()) * 1000))::bigint end
    from (select min(coalesce(s.next_at, '-infinity'::timestamptz)) as due from bus.schedules s where not s.paused and not exists (select from bus.routes r
                      where r.lane = bus.lane(s.service || '/' || s.role || '/' || s.shard, null) and r.draining)) as d
$$;

-- as before, but for the schedules of drained routes and what is unsettled
create or replace function bus.overdue(out leases boolean, out outlived boolean, out schedule_ms bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  moment constant timestamptz := clock_timestamp();
begin
  select exists (select from bus.claims c where c.lease_until <= moment) or exists (select from bus.unsettled),
         exists (select from bus.expiring e where e.at <= moment), bus.next_schedule_due()
    into leases, outlived, schedule_ms;
end
$$;

-- as before; what is ready and could not be had, such as behind messages that have ended, is looked for again at once
create or replace function bus.next_due(service text, role text, shard integer, instance text default null) returns bigint
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  with recursive lane as (
    select l.lane from (select hashtextextended(next_due.service || '/' || next_due.role || '/' || next_due.shard, 0)) as l (lane)
     where not exists (select from bus.routes r where r.lane = l.lane and r.paused)
  ), rated as (
    select r.lane, r.keyed from bus.routes r, lane
     where r.lane = lane.lane
       and exists (select from bus.limits l where l.lane = r.lane and l.per_second is not null)
  ), head as (
    select f.share, f.tenant, f.limit_key, 1 as n
      from rated
      cross join lateral (select r.share, r.tenant, r.limit_key from bus.ready r where r.lane = rated.lane
                           order by r.share, r.due, r.chunk limit 1) as f
    union all
    select f.share, f.tenant, f.limit_key, h.n + 1
      from head h cross join rated
      cross join lateral (select r.share, r.tenant, r.limit_key from bus.ready r where r.lane = rated.lane and r.share > h.share
                           order by r.share, r.due, r.chunk limit 1) as f
     where h.n < 64
  )
  -- least() and min() ignore nulls, greatest() must not meet one
  select least(
    (select greatest(0, ceil(extract(epoch from d.due - clock_timestamp()) * 1000))::bigint
       from bus.delayed d join lane on d.lane = lane.lane order by d.due limit 1),
    (select greatest(0, ceil(extract(epoch from d.due - clock_timestamp()) * 1000))::bigint
       from bus.delayed d, lane
      where next_due.instance is not null
        and d.lane = bus.lane(next_due.service || '/' || next_due.role || '/' || next_due.shard, next_due.instance)
      order by d.due limit 1),
    (select min(bus.token_wait(rated.lane, h.tenant, case when rated.keyed then h.limit_key end)) from head h, rated),
    (select min(bus.token_wait(rated.lane, h.tenant, case when rated.keyed then h.limit_key end))
       from rated
      cross join lateral (
        select distinct r.tenant, r.limit_key from bus.ready r
         where next_due.instance is not null
           and r.lane = bus.lane(next_due.service || '/' || next_due.role || '/' || next_due.shard, next_due.instance) limit 64) as h),
    (select 0 from lane
      where not exists (select from bus.limits l where l.lane = lane.lane)
        and (exists (select from bus.ready r where r.lane = lane.lane)
             or exists (select from bus.ready r where next_due.instance is not null
                           and r.lane = bus.lane(next_due.service || '/' || next_due.role || '/' || next_due.shard, next_due.instance)))))
$$;

comment on function bus.next_due(text, text, integer, text)
  is 'Milliseconds until the next delayed message of a route is due, or a rate lets one start; 0 if something is ready and the route has no limit, null if nothing waits for time or the route is paused.';

-- as before; who has the key already keeps it
create or replace function bus.take_key(tenant text, idempotency_key text, id uuid, window_ms bigint) returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  owner uuid;
begin
  if take_key.window_ms not between 1 and 315576000000 then
    raise exception 'An idempotency key is kept for 1 ms to 10 years' using errcode = 'invalid_parameter_value';
  end if;
  loop
    -- waits for a concurrent sender of the same key
    insert into bus.keys as k (tenant, idempotency_key, id, until)
    values (take_key.tenant, take_key.idempotency_key, take_key.id,
            clock_timestamp() + coalesce(take_key.window_ms, 2592000000) * interval '1 millisecond')
    on conflict (tenant, idempotency_key) do update set id = excluded.id, until = excluded.until
     where k.until <= clock_timestamp() and k.id <> excluded.id
    returning k.id into owner;
    if owner is null then
      select k.id into owner from bus.keys k
       where k.tenant = take_key.tenant and k.idempotency_key = take_key.idempotency_key;
    end if;
    -- none: retention has just removed it
    exit when owner is not null;
  end loop;
  return owner;
end
$$;

-- as before; a key may outlive the task that it was used for
create or replace function bus.watch(task uuid, watcher text, for_ms bigint) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
begin
  if watch.task is null then
    raise exception 'The task is gone, and its answer with it' using errcode = 'no_data_found';
  end if;
  perform bus.watch_new(watch.task, watch.watcher, watch.for_ms);
  -- waits for changes that are under way, so that the caller's next read sees them; those that start later wait for this
  -- commit and then see the watcher
  perform from public.agent_messages m
    where (m.id = watch.task or (m.root_id = watch.task and m.root_id <> m.id)) and m.done_at is null
    order by m.id for share;
end
$$;
-- as before, within the window of the key and while there is a message to answer
create or replace function bus.ask(id uuid, holder text, attempt smallint, question jsonb, deadline_ms bigint) returns jsonb
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
  select k.id into sent from bus.keys k join public.agent_messages m on m.id = k.id
   where k.tenant = caller.tenant and k.idempotency_key = key and k.until > clock_timestamp();
  if not found then
    select r.id into sent
      from bus.request(
        jsonb_build_object('headers', caller.headers) || ask.question || jsonb_build_object('idempotency_key', key),
        ask.deadline_ms, ask.holder, ask.id) as r;
  end if;
  return bus.reply(sent);
end
$$;

alter table bus.routes add constraint service_and_role_are_names check (
  service ~ '^[a-z][a-z0-9-]*$' and length(service) <= 63 and role ~ '^[a-z][a-z0-9-]*$' and length(role) <= 63
  and shard between 0 and 65535) not valid;

-- names of files in the time zone database that are no places
update bus.schedules s
   set time_zone = regexp_replace(s.time_zone, '^(posix|right)/', ''), next_at = null, revision = s.revision + 1
 where s.time_zone ~ '^(posix|right)/';
update bus.schedules s
   set time_zone = 'UTC', paused = true, last_error = 'Time zone ' || s.time_zone || ' is no place', revision = s.revision + 1
 where s.time_zone in ('posixrules', 'Factory', 'localtime');
alter table bus.schedules add constraint schedule_time_zone_is_a_place
  check (time_zone !~ '^(posix|right)/' and time_zone not in ('posixrules', 'Factory', 'localtime'));

-- whoever was claiming when the route was limited did not see it
create function bus.limited_later() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform bus.count_claims(n.lane) from (select distinct n.lane from new_rows n) as n;
  insert into bus.unsettled (lane) select distinct n.lane from new_rows n;
  return null;
end
$$;
create trigger limited_later after insert on bus.limits
  referencing new table as new_rows for each statement execute function bus.limited_later();

revoke all on function bus.lock_rows(uuid[]) from public, anon, authenticated;
revoke all on function bus.lock_groups(uuid[]) from public, anon, authenticated;
revoke all on function bus.try_end(uuid) from public, anon, authenticated;
revoke all on function bus.lock_ends(uuid[], jsonb[]) from public, anon, authenticated;
revoke all on function bus.unplace_many(uuid[]) from public, anon, authenticated;
revoke all on function bus.cancel_open(uuid[]) from public, anon, authenticated;
revoke all on function bus.count_claims(bigint) from public, anon, authenticated;
revoke all on function bus.settle_unsettled(integer) from public, anon, authenticated;
revoke all on function bus.limited_later() from public, anon, authenticated;
revoke all on function bus.hold_keys(uuid[], jsonb[]) from public, anon, authenticated;
revoke all on function bus.give_keys_back(text[], text[], uuid[]) from public, anon, authenticated;
