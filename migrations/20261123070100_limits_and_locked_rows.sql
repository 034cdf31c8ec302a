-- Limits that cost what they look at, and rows that somebody has locked.

-- as before; a claim is looked through by its ids, and where something of it is left it counts that alone
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
  rest uuid[];
  rest_attempts smallint[];
begin
  settled := 0;
  left_over := false;
  for m in
    -- one that is just being completed is left for the next time, with its claim
    select t.id, h.attempt, c.claimed_at, c.route
      from bus.claims c, unnest(c.ids, c.attempts) as h (id, attempt)
      join public.agent_messages t on t.id = h.id
     where c.holder = holder_of and c.claim = claim_of
       -- each is looked up by its id, whatever the planner takes for cheaper
       and t.id = any ((select k.ids from bus.claims k where k.holder = holder_of and k.claim = claim_of)::uuid[])
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
    begin
      perform bus.record_event(outcome, t, actor, jsonb_build_object('holder', holder_of, 'attempt', m.attempt))
         from public.agent_messages t where t.id = m.id and outcome = 'lease_expired';
      if bus.settle_failure(m.id, m.attempt, outcome, holder_of, reason, true, null, actor, m.claimed_at) is not null then
        settled := settled + 1;
      end if;
    exception when others then
      -- it stays with its claim, and is tried again
      raise warning 'Message % cannot be taken back from %: %', m.id, holder_of, sqlerrm;
    end;
  end loop;
  -- what is left stays with its claim, which counts no more than that
  select array_agg(t.id), array_agg(h.attempt) into rest, rest_attempts
    from bus.claims c, unnest(c.ids, c.attempts) as h (id, attempt)
    join public.agent_messages t on t.id = h.id
   where c.holder = holder_of and c.claim = claim_of
     and t.id = any ((select k.ids from bus.claims k where k.holder = holder_of and k.claim = claim_of)::uuid[])
     and ((t.status = 'queued' and t.attempts = h.attempt - 1)
          or (t.status = 'claimed' and t.attempts = h.attempt and t.claimed_by = holder_of))
     -- an extension that could not wait for this claim gave it a later lease
     and not exists (select from bus.claims l
                      where outcome = 'lease_expired' and l.holder = holder_of and l.claim <> claim_of
                        and l.lease_until > clock_timestamp() and h.id = any (l.ids)
                        and l.attempts[array_position(l.ids, h.id)] = h.attempt);
  left_over := rest is not null;
  -- what has a later lease is counted by that claim first
  if left_over and settled > 0
    and not exists (select from bus.claims c
                      join bus.claims l on l.holder = c.holder and l.claim <> c.claim and not l.limited and l.ids && c.ids
                     where c.holder = holder_of and c.claim = claim_of and c.limited) then
    update bus.claims c set ids = rest, attempts = rest_attempts, remaining = cardinality(rest), version = c.version + 1
     where c.holder = holder_of and c.claim = claim_of;
  end if;
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

-- as before; claims of which nothing can be taken back do not keep others from it
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
     -- some may have nothing that can be taken back just now
     order by k.lease_until limit 20 * max_rows::bigint for update skip locked
  loop
    back := bus.take_back(c.holder, c.claim, 'lease_expired', 'lease of ' || c.holder || ' expired', 'bus.reclaim',
                          max_rows - reclaimed);
    reclaimed := reclaimed + back.settled;
    exit when reclaimed >= max_rows;
  end loop;
  begin
    perform bus.settle_unsettled(max_rows);
  exception when others then
    raise warning 'What was cancelled cannot be followed up: %', sqlerrm;
  end;
  return reclaimed;
end
$$;

-- as before, in words for limits as well
create or replace function bus.expect_to_see_commits() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
    raise exception 'Messages of groups, those that await others and claims on routes with limits need the isolation READ COMMITTED'
      using errcode = 'invalid_transaction_state';
  end if;
end
$$;

-- as before, of the limits of the route where there is no tenant, else of those of tenant and key; three looks, as one for all would read every claim of the route
create or replace function bus.allowance(its_lane bigint, its_tenant text, its_key text, want integer) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  l record;
  its_subject text;
  running integer;
  free double precision;
  allowed integer := want;
begin
  for l in
    -- the row for this very subject goes before the one for every subject
    select distinct on (k.counted_by) k.counted_by, k.max_running, k.per_second, k.burst from bus.limits k
     where k.lane = its_lane
       and case k.counted_by when 'route' then its_tenant is null
                             when 'tenant' then k.subject in ('', its_tenant)
                             else k.subject in ('', its_tenant || '/' || its_key) end
       and (k.counted_by = 'route') = (its_tenant is null) and (k.counted_by <> 'key' or its_key is not null)
     order by k.counted_by, k.subject desc
  loop
    its_subject := case l.counted_by when 'route' then '' when 'tenant' then its_tenant else its_tenant || '/' || its_key end;
    if l.max_running is not null then
      if l.counted_by = 'route' then
        select coalesce(sum(c.remaining), 0) into running from bus.claims c where c.limited and c.lane = its_lane;
      elsif l.counted_by = 'tenant' then
        select coalesce(sum(c.remaining), 0) into running from bus.claims c
         where c.limited and c.lane = its_lane and c.tenant = its_tenant;
      else
        select coalesce(sum(c.remaining), 0) into running from bus.claims c
         where c.limited and c.lane = its_lane and c.tenant = its_tenant and c.limit_key = its_key;
      end if;
      allowed := least(allowed, greatest(0, l.max_running - running));
    end if;
    if l.per_second is not null then
      insert into bus.buckets as b (lane, counted_by, subject, tokens, at)
      values (its_lane, l.counted_by, its_subject, l.burst, clock_timestamp())
      on conflict (lane, counted_by, subject) do update
         -- a clock that was set back gives nothing and takes nothing
         set tokens = least(l.burst, greatest(0, b.tokens) + greatest(0, extract(epoch from clock_timestamp() - b.at)) * l.per_second),
             at = clock_timestamp()
      returning b.tokens into free;
      allowed := least(allowed, floor(free + 0.000001)::integer);
    end if;
  end loop;
  return allowed;
end
$$;

-- as before; three looks, as one for all would read every claim of the route
create or replace function bus.token_wait(its_lane bigint, its_tenant text, its_key text) returns bigint
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case when not bool_or(w.full) then max(w.ms) end
    from (
      select distinct on (l.counted_by)
             l.max_running <= case l.counted_by
               when 'route' then
                 (select coalesce(sum(c.remaining), 0) from bus.claims c where c.limited and c.lane = its_lane)
               when 'tenant' then
                 (select coalesce(sum(c.remaining), 0) from bus.claims c
                   where c.limited and c.lane = its_lane and c.tenant = its_tenant)
               else
                 (select coalesce(sum(c.remaining), 0) from bus.claims c
                   where c.limited and c.lane = its_lane and c.tenant = its_tenant and c.limit_key = its_key)
               end is true as full,
             case when b.tokens is null then 0 else
               greatest(0, ceil((1 - least(l.burst, greatest(0, b.tokens) + greatest(0, extract(epoch from clock_timestamp() - b.at))
                                                               * l.per_second)) / l.per_second * 1000))::bigint end as ms
        from bus.limits l
        left join bus.buckets b
          on l.per_second is not null and b.lane = l.lane and b.counted_by = l.counted_by
         and b.subject = case l.counted_by when 'route' then '' when 'tenant' then its_tenant else its_tenant || '/' || its_key end
       where l.lane = its_lane
         and (l.counted_by = 'route' or (l.counted_by = 'tenant' and l.subject in ('', its_tenant))
              or (l.counted_by = 'key' and its_key is not null and l.subject in ('', its_tenant || '/' || its_key)))
       order by l.counted_by, l.subject desc) as w
$$;

create function bus.share(tenant text, limit_key text) returns integer
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select case when share.limit_key is null then hashtext(share.tenant)
              else (hashtext(share.tenant) & -262144) | (hashtext(share.limit_key) & 262143) end
$$;
comment on function bus.share(text, text) is
  'Where messages of a tenant stand, on a route that has limits by key those of each key: 14 bits are of the tenant, so that all its keys have one turn.';

create function bus.shares_around(
  lane bigint, turn integer, keyed boolean, most integer, out shares integer[], out others integer[], out of_tenant integer[], out tenants integer,
  out is_all boolean)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  ends integer[] := '{}';
  last integer := shares_around.turn | 262143;
  each integer;
  its integer[];
  from_share integer;
begin
  if not keyed then
    shares := bus.shares_after(shares_around.lane, shares_around.turn, most);
    tenants := cardinality(shares);
    others := array_fill(1, array[tenants]);
    of_tenant := others;
    is_all := tenants < most;
    return;
  end if;
  loop
    select r.share | 262143 into last from bus.ready r
     where r.lane = shares_around.lane and r.share > last order by r.share limit 1;
    if not found then
      select r.share | 262143 into last from bus.ready r where r.lane = shares_around.lane order by r.share limit 1;
    end if;
    exit when last is null or last = any (ends) or cardinality(ends) >= most;
    ends := ends || last;
  end loop;
  tenants := cardinality(ends);
  is_all := tenants < most;
  each := 256 / greatest(tenants, 1);
  shares := '{}';
  others := '{}';
  of_tenant := '{}';
  foreach last in array ends loop
    -- its keys in turn as well, from anywhere
    from_share := last - (random() * 262142)::integer;
    its := bus.shares_between(shares_around.lane, from_share, last, each);
    if cardinality(its) < each then
      its := its || bus.shares_between(shares_around.lane, last - 262143, from_share - 1, each - cardinality(its));
    end if;
    is_all := is_all and cardinality(its) < each;
    -- else those behind a wide gap would come first most of the time
    its := array(select k from unnest(its) as k order by random());
    shares := shares || its;
    others := others || array(select n from generate_series(cardinality(its), 1, -1) as n);
    of_tenant := of_tenant || array_fill(cardinality(its), array[cardinality(its)]);
  end loop;
end
$$;
comment on function bus.shares_around(bigint, integer, boolean, integer) is
  'Whose turn it is after another, of so many tenants at most: shares, tenant by tenant, and for each how many are left of its tenant, with it, and how many that has; how many tenants, and whether there are no more.';

create function bus.shares_between(lane bigint, lowest integer, highest integer, most integer) returns integer[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  shares integer[] := '{}';
  next_share integer;
begin
  -- the first may be the least of all numbers, before which there is none
  select r.share into next_share from bus.ready r
   where r.lane = shares_between.lane and r.share >= lowest and r.share <= highest order by r.share limit 1;
  while next_share is not null and cardinality(shares) < most loop
    shares := shares || next_share;
    select r.share into next_share from bus.ready r
     where r.lane = shares_between.lane and r.share > next_share and r.share <= highest order by r.share limit 1;
  end loop;
  return shares;
end
$$;
comment on function bus.shares_between(bigint, integer, integer, integer) is 'The first shares of a lane in this range.';

revoke all on function bus.share(text, text) from public, anon, authenticated;
revoke all on function bus.shares_around(bigint, integer, boolean, integer) from public, anon, authenticated;
revoke all on function bus.shares_between(bigint, integer, integer, integer) from public, anon, authenticated;

-- as before; the keys of a tenant have one turn
create or replace function bus.after_insert() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_sort = off
set enable_seqscan = off
as $$
declare
  batch record;
  one record;
  closed text;
begin
  -- a plain message alone needs few looks
  select n.id, n.service || '/' || n.role || '/' || n.shard as route, n.target_instance, n.tenant, n.limit_key, n.priority,
         n.created_at, n.expires_at, exists (select from new_rows offset 1) as several,
         n.retry_at is null and n.group_key is null and not n.awaiting and n.root_id = n.id and n.parent_id is null
           and n.replay_of is null and jsonb_typeof(n.payload) = 'object' and pg_column_size(n.payload) <= 1048576
           and pg_column_compression(n.payload) is null and pg_column_compression(n.headers) is null
           and jsonb_typeof(n.headers) = 'object' and pg_column_size(n.headers) <= 16384 and n.priority between 0 and 1000
           and n.max_attempts between 1 and 1000 and n.shard between 0 and 65535
           and coalesce(length(n.reply_to) <= 200, true) and coalesce(length(n.idempotency_key) between 1 and 200, true)
           and coalesce(length(n.limit_key) between 1 and 200, true) and coalesce(length(n.target_instance) <= 200, true)
           and coalesce(isfinite(n.expires_at), true) and r.draining is not true and n.status = 'queued' and n.attempts = 0
           and n.released = 0 and num_nonnulls(n.claimed_by, n.claimed_at, n.lease_until, n.done_at, n.error, n.last_error_at,
                                               n.result, n.result_snippet, n.result_url) = 0 as plain,
         r.keyed, r.aging_ms
    into one
    from (select * from new_rows limit 1) as n
    left join bus.routes r on r.lane = hashtextextended(n.service || '/' || n.role || '/' || n.shard, 0);
  if one.plain and not one.several then
    insert into bus.ready (lane, share, due, attempt, route, tenant, limit_key, ids)
    values (hashtextextended(one.route || coalesce('>' || one.target_instance, ''), 0),
            case when one.keyed then bus.share(one.tenant, one.limit_key) else hashtext(one.tenant) end,
            (date_part('epoch', one.created_at) * 1000000)::bigint + one.priority * 1000::bigint * coalesce(one.aging_ms, 10000),
            1, one.route::bus.route_name, one.tenant::bus.tenant_name, one.limit_key, array[one.id]);
    if one.expires_at is not null then
      insert into bus.expiring (at, id) values (one.expires_at, one.id);
    end if;
    return null;
  end if;

  select count(*) as size, count(n.retry_at) > 0 as delayed, count(n.expires_at) > 0 as expiring,
         count(n.group_key) > 0 as grouped, bool_or(n.awaiting) as awaiting, bool_or(n.root_id <> n.id) as steps,
         exists (select from bus.routes r where r.draining) as draining,
         min(case
           when n.status <> 'queued' or n.attempts <> 0 or n.released <> 0
             or num_nonnulls(n.claimed_by, n.claimed_at, n.lease_until, n.done_at, n.error, n.last_error_at,
                             n.result, n.result_snippet, n.result_url) > 0
             then 'new_message_is_queued_unclaimed_and_without_result'
           when jsonb_typeof(n.payload) <> 'object' then 'payload_is_an_object'
           when case when pg_column_compression(n.payload) is null then pg_column_size(n.payload) else pg_column_size(n.payload || '{}') end
                > 1048576 + case when n.parent_id is null and n.replay_of is null then 0 else 65536 end then 'payload_at_most_1_mib'
           when jsonb_typeof(n.headers) <> 'object' then 'headers_are_an_object'
           when case when pg_column_compression(n.headers) is null then pg_column_size(n.headers) else pg_column_size(n.headers || '{}') end
                > 16384 then 'headers_at_most_16_kib'
           when n.priority not between 0 and 1000 then 'priority_between_0_and_1000'
           when n.max_attempts not between 1 and 1000 then 'max_attempts_between_1_and_1000'
           when n.shard not between 0 and 65535 then 'shard_between_0_and_65535'
           when n.reply_to is null and n.group_key is null and n.idempotency_key is null and n.limit_key is null
             and n.target_instance is null and n.expires_at is null and n.retry_at is null then null
           when length(n.reply_to) > 200 then 'reply_to_at_most_200_characters'
           when length(n.group_key) not between 1 and 200 then 'group_key_between_1_and_200_characters'
           when length(n.idempotency_key) not between 1 and 200 then 'idempotency_key_between_1_and_200_characters'
           when length(n.limit_key) not between 1 and 200 then 'limit_key_between_1_and_200_characters'
           when length(n.target_instance) > 200 then 'target_instance_at_most_200_characters'
           when not isfinite(n.expires_at) or not isfinite(n.retry_at) then 'times_are_finite'
         end) as broken
    into batch from new_rows n;
  if batch.size = 0 then
    return null;
  end if;
  if batch.broken is not null then
    raise exception 'A message breaks the rule "%"', replace(batch.broken, '_', ' ')
      using errcode = 'check_violation', constraint = batch.broken, table = 'agent_messages', schema = 'public';
  end if;

  with block as (
    select n.service || '/' || n.role || '/' || n.shard as route, n.target_instance, n.tenant, n.limit_key, n.priority,
           min(n.created_at) as created_at, array_agg(n.id) as ids
      from new_rows n
     where n.retry_at is null and n.group_key is null and not n.awaiting
     group by n.service, n.role, n.shard, n.target_instance, n.tenant, n.limit_key, n.priority
  )
  insert into bus.ready (lane, share, due, attempt, route, tenant, limit_key, ids)
  select hashtextextended(b.route || coalesce('>' || b.target_instance, ''), 0),
         bus.share(b.tenant, case when r.keyed then b.limit_key end),
         (date_part('epoch', b.created_at) * 1000000)::bigint + b.priority * 1000::bigint * coalesce(r.aging_ms, 10000),
         1, b.route::bus.route_name, b.tenant::bus.tenant_name, b.limit_key, b.ids[first:first + 99]
    from block b
    left join bus.routes r on r.lane = hashtextextended(b.route, 0)
   cross join lateral generate_series(1, cardinality(b.ids), 100) as first;

  if batch.delayed or batch.grouped or batch.awaiting then
    if exists (
      select from (select distinct n.service, n.role, n.shard, n.tenant from new_rows n) as d
       where (d.service || '/' || d.role || '/' || d.shard ~ '^[a-z][a-z0-9-]{0,62}/[a-z][a-z0-9-]{0,62}/[0-9]+$'
              and d.tenant ~ '^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}$') is not true) then
      raise exception 'Service, role and tenant of a message must be names'
        using errcode = 'check_violation', constraint = 'service_role_and_tenant_are_names';
    end if;
    if batch.delayed then
      insert into bus.delayed (lane, due, id)
      select bus.lane(n.service || '/' || n.role || '/' || n.shard, n.target_instance), n.retry_at, n.id
        from new_rows n where n.retry_at is not null and n.group_key is null and not n.awaiting;
    end if;
  end if;
  if batch.expiring then
    insert into bus.expiring (at, id) select n.expires_at, n.id from new_rows n where n.expires_at is not null;
  end if;
  if batch.grouped then
    perform bus.join_groups(array(select g.id from (
      select n.id, n.created_at from new_rows n where n.group_key is not null order by n.created_at, n.id) as g));
  end if;
  if batch.draining then
    select r.service || '/' || r.role || '/' || r.shard into closed
      from bus.routes r join new_rows n on n.service = r.service and n.role = r.role and n.shard = r.shard
     where r.draining and n.parent_id is null and n.replay_of is null limit 1;
    if closed is not null then
      raise exception 'Route % is being drained and accepts nothing new', closed
        using errcode = 'object_not_in_prerequisite_state';
    end if;
  end if;
  -- a task that begins is not watched yet
  if batch.steps and exists (select from bus.watchers) then
    perform bus.announce_tasks(array(select distinct n.root_id from new_rows n where n.root_id <> n.id));
  end if;
  return null;
end
$$;

-- as before; the keys of a tenant have one turn
create or replace function bus.make_ready(ids uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
begin
  with message as (
    select m.id, m.service || '/' || m.role || '/' || m.shard as route, m.target_instance, m.tenant, m.limit_key, m.priority,
           m.attempts, m.created_at, (row_number() over (order by m.created_at, m.id) - 1) / 100 as block
      from public.agent_messages m
     where m.id = any (make_ready.ids) and m.status = 'queued'
  ), block as (
    select g.route, g.target_instance, g.tenant, g.limit_key, g.priority, g.attempts, min(g.created_at) as created_at,
           array_agg(g.id order by g.created_at, g.id) as ids
      from message g
     group by g.route, g.target_instance, g.tenant, g.limit_key, g.priority, g.attempts, g.block
  )
  insert into bus.ready (lane, share, due, attempt, route, tenant, limit_key, ids)
  select hashtextextended(b.route || coalesce('>' || b.target_instance, ''), 0),
         bus.share(b.tenant, case when r.keyed then b.limit_key end),
         (extract(epoch from b.created_at) * 1000000)::bigint + b.priority * 1000::bigint * coalesce(r.aging_ms, 10000),
         b.attempts + 1, b.route, b.tenant, b.limit_key, b.ids
    from block b
    left join bus.routes r on r.lane = hashtextextended(b.route, 0);
end
$$;

-- as before; the limits of the route are looked at once and first, and of a share no more than its oldest chunks
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
  most integer;
  seen bigint;
  around record;
  tenants integer;
  its_part integer;
  before_share integer;
begin
  ids := '{}';
  attempts := '{}';
  claims := '{}';
  -- who counts and takes on a limited route does so alone until the commit
  perform bus.expect_to_see_commits();
  perform pg_advisory_xact_lock(settings.lane);
  -- what is true now that the others have committed
  if exists (select from bus.routes r where r.lane = settings.lane and r.paused) then
    return;
  end if;
  most := bus.allowance(settings.lane, null, null, want);
  if most <= 0 then
    return;
  end if;
  foreach from_lane in array case when direct = settings.lane then array[direct] else array[direct, settings.lane] end loop
    loop
      before := cardinality(ids);
      -- more than are wanted, as limits may close some of them
      around := bus.shares_around(from_lane, turn, settings.keyed, case when round = 0 then least(256, 4 * most) else 256 end);
      shares := around.shares;
      tenants := around.tenants;
      for i in 1..cardinality(shares) loop
        exit when cardinality(ids) >= most;
        if around.others[i] = around.of_tenant[i] then
          its_part := ceil((most - cardinality(ids))::numeric / tenants);
          tenants := tenants - 1;
        end if;
        part := ceil(its_part::numeric / around.others[i]);
        continue when part <= 0;
        turn := shares[i];
        -- one tenant, and one key where keys are limited; more only of what was sent before the limit was set
        for deep in 0..1 loop
          -- a tenant's backlog is not read for what hardly ever is behind it, except now and then
          exit when deep = 1 and (seen < 256 or cardinality(ids) > before_share or random() > 0.05);
          seen := 0;
          before_share := cardinality(ids);
          for head in
            select r.tenant, case when settings.keyed then r.limit_key end as limit_key, sum(r.n) as n
              from (select f.tenant, f.limit_key, 1 as n from bus.ready f
                     where f.lane = from_lane and f.share = shares[i]
                     order by f.due, f.chunk limit case deep when 0 then 256 end) as r
             group by 1, 2 order by 1, 2 limit 64
          loop
            seen := seen + head.n;
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
               -- by the limit that holds for it, as in bus.allowance
               and (select l.per_second from bus.limits l
                     where l.lane = b.lane and l.counted_by = b.counted_by and l.subject in ('', b.subject)
                     order by l.subject desc limit 1) is not null
               and (b.counted_by = 'route' or (b.counted_by = 'tenant' and b.subject = head.tenant)
                    or (b.counted_by = 'key' and b.subject = head.tenant || '/' || head.limit_key));
            ids := ids || got.ids;
            attempts := attempts || got.attempts;
            claims := claims || one_claim;
            served := shares[i];
            part := part - cardinality(got.ids);
            its_part := its_part - cardinality(got.ids);
            exit when part <= 0;
          end loop;
        end loop;
      end loop;
      round := case when cardinality(ids) = before then round + 1 else 0 end;
      exit when cardinality(ids) >= most or around.is_all and round > 0 or round = 8;
    end loop;
  end loop;
  -- where all who were looked at may have nothing, the others come next
  perform bus.remember_turn(settings.lane, case when cardinality(ids) = 0 then turn else served end);
end
$$;

-- as before; tenants that somebody has locked do not stand before those that are free
create or replace function bus.take(lane bigint, want integer, inout ids uuid[], inout attempts smallint[])
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  head record;
  turn integer;
  shares integer[];
  before integer;
  target constant integer := cardinality(ids) + want;
  most integer := least(want, 64);
begin
  select first.share, exists (select from bus.ready r where r.lane = take.lane and r.share > first.share) as more into head
    from (select r.share from bus.ready r where r.lane = take.lane order by r.share limit 1) as first;
  if not head.more then
    -- one tenant has it all
    select t.ids, t.attempts into ids, attempts from bus.take_share(take.lane, head.share, want, ids, attempts) as t;
  elsif head.more then
    turn := bus.turn(take.lane);
    loop
      shares := bus.shares_after(take.lane, turn, most);
      exit when cardinality(shares) = 0;
      before := cardinality(ids);
      for i in 1..cardinality(shares) loop
        select t.ids, t.attempts into ids, attempts
          from bus.take_share(take.lane, shares[i],
                              ceil((target - cardinality(ids))::numeric / (cardinality(shares) - i + 1))::integer, ids, attempts) as t;
        turn := shares[i];
        exit when cardinality(ids) = target;
      end loop;
      exit when cardinality(ids) = target or (cardinality(ids) = before and most = 64);
      -- where somebody has these locked, others may be free
      most := case when cardinality(ids) = before then 64 else most end;
    end loop;
    perform bus.remember_turn(take.lane, turn);
  end if;
end
$$;

create function bus.wait_for_ready(its_lane bigint, direct bigint) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
set lock_timeout = '50ms'
as $$
begin
  perform from bus.ready r where r.lane in (its_lane, direct) order by r.lane, r.share, r.due, r.chunk limit 1 for update;
  return found;
exception when lock_not_available then
  -- whoever has it may keep it for long, and others may send meanwhile
  return false;
end
$$;
comment on function bus.wait_for_ready(bigint, bigint) is
  'Waits for one who is just taking what is ready, for 50 ms at most; answers whether there is still something.';
revoke all on function bus.wait_for_ready(bigint, bigint) from public, anon, authenticated;

-- as before; what somebody has locked for long is not waited for
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
      exit when not bus.wait_for_ready(its_lane, direct);
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

-- as before; of many tenants with rates more than the first are waited for
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
    -- there may be others, whose tokens come sooner
    (select 1000 from head h where h.n = 64),
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

-- as before
create or replace function bus.wake() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  slot constant regclass := ('bus.woken_' || (new.lane & 15))::regclass;
  -- 18 bits of the lane over 45 bits of tenths of a millisecond
  lane_bits constant bigint := (new.lane & 262143) << 45;
  at constant bigint := (date_part('epoch', clock_timestamp() - timestamptz '2026-01-01 00:00:00Z') * 10000)::bigint;
  last constant bigint := coalesce(pg_sequence_last_value(slot), 0);
  allowed_at bigint := case when last & ~35184372088831 = lane_bits then last & 35184372088831 else 0 end;
begin
  -- A commit with a notification waits for every other such commit, through its write to the disk. So a route notifies 200
  -- times a second at most, five times in a row (a leaky bucket: the time of the next regular one), remembered in a
  -- sequence, which nobody waits for; and not while another commit is about to. Who was woken looks again for some time
  -- (adaptive polling). A time far ahead is of a clock that was set back. Who is about to commit for longer than 50 ms, as
  -- one whose constraints are immediate, keeps nobody from it.
  if allowed_at - at between 251 and 10000
     or (not pg_try_advisory_xact_lock(1651864175, (new.lane & 2147483647)::integer) and (allowed_at = 0 or at - allowed_at < 450)) then
    return null;
  end if;
  perform setval(slot, lane_bits | (case when allowed_at > at and allowed_at - at <= 250 then allowed_at else at end + 50));
  perform pg_notify('bus_ready', new.route);
  return null;
end
$$;

-- as before; what would never hold is refused in words
create or replace function bus.set_limit(
  service text, role text, shard integer, counted_by text, subject text default '', max_running integer default null,
  per_second double precision default null, burst double precision default null, changed_by text default null)
returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  its_lane bigint;
begin
  if burst is not null and per_second is null then
    raise exception 'A burst needs per_second, the rate at which it fills again'
      using errcode = 'invalid_parameter_value';
  end if;
  if (set_limit.counted_by in ('route', 'tenant', 'key')) is not true then
    raise exception 'A limit counts by route, tenant or key, not by %', coalesce(set_limit.counted_by, 'null')
      using errcode = 'invalid_parameter_value';
  end if;
  if (case set_limit.counted_by when 'route' then subject = ''
                                when 'tenant' then subject = '' or subject ~ '^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}$'
                                else subject = '' or subject ~ '^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}/.' end) is not true then
    raise exception '%', case set_limit.counted_by
        when 'route' then 'A limit of the whole route has no subject'
        when 'tenant' then 'The subject of a limit by tenant is a tenant, or empty for each'
        else 'The subject of a limit by key is tenant/key, or empty for each' end
      using errcode = 'invalid_parameter_value';
  end if;
  if max_running < 0 or per_second not between 0.000000001 and 1000000 or burst not between 1 and 1000000 then
    raise exception '%', case when max_running < 0 then 'At least 0 may run at once'
                              when per_second not between 0.000000001 and 1000000
                                then 'A rate is 0.000000001 to 1000000 per second; max_running of 0 lets nothing run'
                              else 'A burst is 1 to 1000000' end
      using errcode = 'invalid_parameter_value';
  end if;
  its_lane := bus.route_settings(set_limit.service, set_limit.role, set_limit.shard, set_limit.changed_by);
  if max_running is null and per_second is null then
    delete from bus.limits l where l.lane = its_lane and l.counted_by = set_limit.counted_by and l.subject = set_limit.subject;
  else
    insert into bus.limits (lane, counted_by, subject, max_running, per_second, burst)
    values (its_lane, set_limit.counted_by, set_limit.subject, set_limit.max_running, set_limit.per_second,
            case when set_limit.per_second is not null then coalesce(set_limit.burst, greatest(1, set_limit.per_second)) end)
    on conflict (lane, counted_by, subject) do update
       set max_running = excluded.max_running, per_second = excluded.per_second, burst = excluded.burst;
  end if;
  update bus.routes r set keyed = exists (select from bus.limits l where l.lane = its_lane and l.counted_by = 'key')
   where r.lane = its_lane;
  update bus.claims c set limited = true where c.lane = its_lane and not c.limited;
  -- what is ready already goes round by the same shares
  update bus.ready d
     set share = bus.share(d.tenant, case when r.keyed then d.limit_key end)
    from bus.routes r
   where r.lane = its_lane and d.lane = its_lane
     and d.share <> bus.share(d.tenant, case when r.keyed then d.limit_key end);
  perform bus.announce(array[set_limit.service || '/' || set_limit.role || '/' || set_limit.shard]);
end
$$;

-- what waits on routes that have limits by key has one turn for each tenant from now on
update bus.ready d set share = bus.share(d.tenant, d.limit_key)
  from bus.routes r
 where r.keyed and d.lane = r.lane and d.limit_key is not null;
