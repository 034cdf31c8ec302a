-- Who asks waits for the reply alone: the claim of a request notifies nobody, so that its commit is not queued behind other
-- notifications and the asker does not look for a reply that cannot be there yet.

alter table bus.watchers add column ends_only boolean not null default false;
comment on column bus.watchers.ends_only is 'Waits for ends alone; a claim tells it nothing.';
create index bus_watchers_of_steps on bus.watchers (root_id) where not ends_only;

drop function bus.watch_new(uuid, text, bigint);
create function bus.watch_new(task uuid, watcher text, for_ms bigint, ends_only boolean default false) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  -- those who stopped waiting are forgotten by those who start
  delete from bus.watchers
   where ctid = any (array(select w.ctid from bus.watchers w where w.until < (select clock_timestamp()) limit 10
                              for update skip locked));
  insert into bus.watchers (root_id, watcher, until, ends_only)
  values (watch_new.task, watch_new.watcher, clock_timestamp() + watch_new.for_ms * interval '1 millisecond',
          watch_new.ends_only)
  on conflict (root_id, watcher) do update
    set until = greatest(bus.watchers.until, excluded.until), ends_only = bus.watchers.ends_only and excluded.ends_only;
end
$$;
comment on function bus.watch_new(uuid, text, bigint, boolean) is 'Watches a task that nobody else can have seen yet.';
revoke all on function bus.watch_new(uuid, text, bigint, boolean) from public, anon, authenticated;

create or replace function bus.watched(ids uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  lowest uuid;
  highest uuid;
begin
  if not exists (select from bus.watchers w where not w.ends_only) then
    return;
  end if;
  lowest := (select i from unnest(watched.ids) as i order by i limit 1);
  highest := (select i from unnest(watched.ids) as i order by i desc limit 1);
  perform pg_notify('bus_task', m.root_id::text)
     from public.agent_messages m
    where m.id = any (watched.ids) and m.id between lowest and highest
      and exists (select from bus.watchers w
                   where w.root_id = m.root_id and not w.ends_only and w.until > (select clock_timestamp()));
end
$$;
comment on function bus.watched(uuid[]) is 'Tells those who watch the steps of the tasks of these messages that one changed.';

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
    select m.tenant, floor(date_part('epoch', m.expires_at - clock_timestamp()) * 1000)::bigint as remaining_ms into asker
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
    perform bus.watch_new(task, request.watcher, allowed + 60000, ends_only => true);
  end if;
  return query select sent.id, task, sent.duplicate;
end
$$;

-- ---------------------------------------------------------------- claiming

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
  if exists (select from bus.watchers) then
    perform bus.watched(taken);
  end if;
end
$$;
