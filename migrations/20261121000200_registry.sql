-- The registry: who is in the fleet, how it is, and the one order in which that changed.
--
-- Locks are taken in this order by everything here: clock, beats, agents, messages. A beat that changes no membership
-- takes its own row of beats only.

create schema registry;
comment on schema registry is 'Who is in the fleet; changed by the functions of this schema alone.';

create table registry.clock (
  one     boolean primary key default true check (one),
  version bigint  not null default 0
) with (fillfactor = 50);
comment on table registry.clock is 'One row; every change of membership locks it first, so that versions are in commit order without gaps.';
comment on column registry.clock.one is 'Holds the table to one row.';
comment on column registry.clock.version is 'Version of the registry: that of the newest row of registry.log.';
insert into registry.clock default values;

create table registry.sweeper (
  one           boolean     primary key default true check (one),
  holding_since timestamptz
);
comment on table registry.sweeper is 'What the sweep remembers from one run to the next.';
comment on column registry.sweeper.one is 'Holds the table to one row.';
comment on column registry.sweeper.holding_since is 'Since when most of the fleet looks dead at once and nobody is declared dead; null in normal times.';
insert into registry.sweeper default values;

create table registry.epochs (
  name  text    not null,
  slot  integer not null,
  epoch bigint  not null check (epoch > 0),
  primary key (name, slot)
);
comment on table registry.epochs is 'The last epoch of each slot; never goes back, also when agents are forgotten.';
comment on column registry.epochs.name is 'Name of the process.';
comment on column registry.epochs.slot is 'Which replica.';
comment on column registry.epochs.epoch is 'How often the slot has changed its owner.';

create table registry.agents (
  instance_id   uuid        primary key,
  domain        text        not null check (domain ~ '^[a-z][a-z0-9-]{0,62}$'),
  name          text        not null check (name ~ '^[a-z][a-z0-9-]{0,62}$'),
  slot          integer     not null check (slot between 0 and 65535),
  epoch         bigint      not null check (epoch > 0),
  version       text        not null constraint version_is_semver check (
    version ~ '^(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})(-[0-9A-Za-z.-]{1,64})?(\+[0-9A-Za-z.-]{1,64})?$'),
  version_major integer     generated always as (substring(version from '^([0-9]{1,9})\.')::integer) stored,
  version_minor integer     generated always as (substring(version from '^[0-9]+\.([0-9]{1,9})\.')::integer) stored,
  version_patch integer     generated always as (substring(version from '^[0-9]+\.[0-9]+\.([0-9]{1,9})')::integer) stored,
  version_pre   text        generated always as (substring(version from '^[0-9.]+-([0-9A-Za-z.-]+)')) stored,
  state         text        not null default 'registered'
                check (state in ('registered', 'active', 'suspect', 'suspended', 'draining', 'terminated')),
  state_since   timestamptz not null default clock_timestamp(),
  holder        text        not null unique generated always as (
    name || '/' || slot::text || '#' || replace(instance_id::text, '-', '')) stored,
  capabilities  text[]      not null default '{}' check (cardinality(capabilities) <= 256),
  location      jsonb       not null default '{}'
                constraint location_is_an_object check (jsonb_typeof(location) = 'object')
                constraint location_at_most_16_kib check (pg_column_size(location) <= 16384),
  endpoints     jsonb       not null default '[]'
                constraint endpoints_are_an_array check (jsonb_typeof(endpoints) = 'array')
                constraint endpoints_at_most_16_kib check (pg_column_size(endpoints) <= 16384),
  level         smallint    not null default 2 check (level between 1 and 3),
  parent        text        check (length(parent) between 1 and 200),
  registered_at timestamptz not null default clock_timestamp(),
  ended_at      timestamptz,
  end_reason    text        check (length(end_reason) between 1 and 400),
  constraint an_end_has_time_and_reason
    check ((state = 'terminated') = (ended_at is not null) and (state = 'terminated') = (end_reason is not null))
);
comment on table registry.agents is 'One row per run of a process; a run that ended stays until registry.retain forgets it.';
comment on column registry.agents.instance_id is 'This run of the process, chosen by it; never used again after its end.';
comment on column registry.agents.domain is 'Domain of the process, such as rag.';
comment on column registry.agents.name is 'Name of the process, such as rag-embed.';
comment on column registry.agents.slot is 'Which replica, from 0; one living owner at a time.';
comment on column registry.agents.epoch is 'How many owners the slot has had, this one included; the higher one is right.';
comment on column registry.agents.version is 'Semantic version of the program.';
comment on column registry.agents.version_major is 'First number of version, to sort and to compare by.';
comment on column registry.agents.version_minor is 'Second number of version.';
comment on column registry.agents.version_patch is 'Third number of version.';
comment on column registry.agents.version_pre is 'Pre-release part of version; null for a release.';
comment on column registry.agents.state is 'registered, active (may claim), suspect (beats missing), suspended, draining or terminated.';
comment on column registry.agents.state_since is 'Since when it is in that state.';
comment on column registry.agents.holder is 'Name under which it claims messages: name/slot#instance.';
comment on column registry.agents.capabilities is 'What it can do, as word or word:qualifier.';
comment on column registry.agents.location is 'Where it runs: environment, host, region, cpus, memory_bytes, pid.';
comment on column registry.agents.endpoints is 'Addresses at which it answers: protocol and url each.';
comment on column registry.agents.level is '1 strategic, 2 operational, 3 external worker.';
comment on column registry.agents.parent is 'name/slot of the agent that answers for it, where there is one.';
comment on column registry.agents.registered_at is 'When this run registered.';
comment on column registry.agents.ended_at is 'When it left, was superseded or was declared dead.';
comment on column registry.agents.end_reason is 'Why it ended: superseded, dead, or the reason it gave.';

create unique index agents_one_owner on registry.agents (name, slot) where state <> 'terminated';
create index agents_capabilities on registry.agents using gin (capabilities) where state <> 'terminated';
create index agents_ended on registry.agents (ended_at) where state = 'terminated';

create table registry.beats (
  instance_id  uuid        primary key references registry.agents (instance_id) on delete cascade,
  beat_at      timestamptz not null default clock_timestamp(),
  seq          bigint      not null default 0,
  ready        boolean     not null default false,
  in_flight    integer     not null default 0 check (in_flight >= 0),
  cpu_cores    real,
  memory_bytes bigint
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.5);
comment on table registry.beats is 'Last beat of each living agent; no index but the key, so that every update stays in its page.';
comment on column registry.beats.instance_id is 'The run that beats.';
comment on column registry.beats.beat_at is 'When the last beat arrived, by the database clock.';
comment on column registry.beats.seq is 'Number of the last beat; an earlier one that arrives late changes nothing.';
comment on column registry.beats.ready is 'Whether it says that it can do its work.';
comment on column registry.beats.in_flight is 'Messages that it works on.';
comment on column registry.beats.cpu_cores is 'Processor use since the beat before, 1.0 being one core.';
comment on column registry.beats.memory_bytes is 'Resident memory.';

create table registry.log (
  version     bigint      primary key,
  at          timestamptz not null default clock_timestamp(),
  op          text        not null check (op in ('registered', 'activated', 'suspected', 'recovered',
                                                 'suspended', 'resumed', 'draining', 'terminated')),
  instance_id uuid        not null,
  epoch       bigint      not null,
  body        jsonb       not null
);
comment on table registry.log is 'Every change of membership in order; replayed from the start it gives the living agents.';
comment on column registry.log.version is 'Version of the registry that this change made.';
comment on column registry.log.at is 'When, by the database clock.';
comment on column registry.log.op is 'What happened to the agent.';
comment on column registry.log.instance_id is 'The run that it happened to.';
comment on column registry.log.epoch is 'Epoch of that run.';
comment on column registry.log.body is 'state: the state after the change; identity when registered; reason and requeued when terminated.';
create index log_instance on registry.log (instance_id);

-- ---------------------------------------------------------------- parts of every change

create function registry.lock_clock() returns bigint
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select c.version from registry.clock c for update
$$;
comment on function registry.lock_clock() is 'First step of every change of membership: one at a time, in commit order.';

create function registry.append(op text, agent registry.agents, body jsonb) returns bigint
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  with next as (
    update registry.clock as c set version = c.version + 1 returning c.version
  )
  insert into registry.log (version, op, instance_id, epoch, body)
  select next.version, append.op, (append.agent).instance_id, (append.agent).epoch,
         jsonb_build_object('state', (append.agent).state) || append.body
    from next
  returning version
$$;
comment on function registry.append(text, registry.agents, jsonb) is 'Writes one change to the log under the next version, which it answers.';

create function registry.record_event(kind text, agent registry.agents, detail jsonb default '{}') returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  insert into public.bus_events (kind, tenant, actor, detail)
  values (record_event.kind, '-', (record_event.agent).holder,
          jsonb_build_object('name', (record_event.agent).name, 'slot', (record_event.agent).slot,
                             'epoch', (record_event.agent).epoch, 'version', (record_event.agent).version)
            || record_event.detail)
$$;
comment on function registry.record_event(text, registry.agents, jsonb) is 'Writes one audit row about an agent; an agent belongs to no tenant, hence tenant -.';

create function registry.terminate(agent registry.agents, reason text, event text) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  ended registry.agents;
  requeued integer;
begin
  delete from registry.beats b where b.instance_id = agent.instance_id;
  update registry.agents as t
     set state = 'terminated', state_since = clock_timestamp(), ended_at = clock_timestamp(),
         end_reason = left(terminate.reason, 400)
   where t.instance_id = agent.instance_id and t.state <> 'terminated'
  returning t.* into ended;
  if not found then
    return null;
  end if;
  requeued := bus.requeue_held(ended.holder, 'holder ' || ended.holder || ' ended: ' || ended.end_reason);
  perform registry.append('terminated', ended, jsonb_build_object('reason', ended.end_reason, 'requeued', requeued));
  perform registry.record_event(event, ended, jsonb_build_object('reason', ended.end_reason, 'requeued', requeued));
  return requeued;
end
$$;
comment on function registry.terminate(registry.agents, text, text)
  is 'Ends a run and queues again what it held, in one transaction; the caller holds the clock. Null if it had ended before.';

create function registry.transition(instance_id uuid, from_states text[], to_state text, op text, event text) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  changed registry.agents;
begin
  perform registry.lock_clock();
  update registry.agents as t
     set state = transition.to_state, state_since = clock_timestamp()
   where t.instance_id = transition.instance_id and t.state = any (transition.from_states)
  returning t.* into changed;
  if found then
    perform registry.append(op, changed, '{}');
    perform registry.record_event(event, changed);
    return changed.state;
  end if;
  return (select t.state from registry.agents t where t.instance_id = transition.instance_id);
end
$$;
comment on function registry.transition(uuid, text[], text, text, text)
  is 'Compare and set of a state; answers the state afterwards, null for a run that is not known.';

-- ---------------------------------------------------------------- joining and leaving

create function registry.register(
  instance_id uuid, domain text, name text, slot integer, version text, capabilities text[] default '{}',
  location jsonb default '{}', endpoints jsonb default '[]', level integer default 2, parent text default null,
  previous uuid default null)
returns table (outcome text, epoch bigint, holder text, state text, registry_version bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  malformed text;
  known registry.agents;
  owner registry.agents;
  fresh registry.agents;
  granted bigint;
begin
  if register.capabilities is null then
    raise exception 'Capabilities must be an array, empty for none' using errcode = 'invalid_parameter_value';
  end if;
  select c into malformed from unnest(register.capabilities) as c
   where c is null or c !~ '^[a-z][a-z0-9-]{0,62}(:[A-Za-z0-9][A-Za-z0-9_.+/-]{0,126})?$' limit 1;
  if found then
    raise exception 'Malformed capability %', coalesce(malformed, 'null') using errcode = 'invalid_parameter_value';
  end if;

  perform registry.lock_clock();
  select t.* into known from registry.agents t where t.instance_id = register.instance_id;
  if found then
    if (known.domain, known.name, known.slot) is distinct from (register.domain, register.name, register.slot) then
      raise exception 'Instance % is registered as %/%', register.instance_id, known.name, known.slot
        using errcode = 'unique_violation';
    end if;
    return query
    select case when known.state = 'terminated' then 'ended' else 'known' end,
           known.epoch, known.holder, known.state, c.version from registry.clock c;
    return;
  end if;

  select t.* into owner from registry.agents t
   where t.name = register.name and t.slot = register.slot and t.state <> 'terminated';
  if found then
    -- one that lost its place comes back only if nobody else took it: two processes of one slot must not fight
    if register.previous is not null and owner.instance_id <> register.previous then
      return query
      select 'occupied', owner.epoch, owner.holder, owner.state, c.version from registry.clock c;
      return;
    end if;
    perform registry.terminate(owner, 'superseded', 'agent_superseded');
  end if;

  insert into registry.epochs as e (name, slot, epoch)
  values (register.name, register.slot, 1)
  on conflict (name, slot) do update set epoch = e.epoch + 1
  returning e.epoch into granted;

  insert into registry.agents as t
         (instance_id, domain, name, slot, epoch, version, capabilities, location, endpoints, level, parent)
  values (register.instance_id, register.domain, register.name, register.slot, granted, register.version,
          register.capabilities, register.location, register.endpoints, register.level, register.parent)
  returning t.* into fresh;
  insert into registry.beats (instance_id) values (fresh.instance_id);

  perform registry.append('registered', fresh, jsonb_build_object(
    'domain', fresh.domain, 'name', fresh.name, 'slot', fresh.slot, 'version', fresh.version,
    'holder', fresh.holder, 'capabilities', fresh.capabilities, 'location', fresh.location,
    'endpoints', fresh.endpoints, 'level', fresh.level, 'parent', fresh.parent));
  perform registry.record_event('agent_registered', fresh, jsonb_build_object('superseded', owner.holder));
  return query
  select 'registered', fresh.epoch, fresh.holder, fresh.state, c.version from registry.clock c;
end
$$;
comment on function registry.register(uuid, text, text, integer, text, text[], jsonb, jsonb, integer, text, uuid)
  is 'Joins the fleet and takes over the slot at once. Outcome: registered; known (asked twice); ended (take a new instance_id); occupied (with previous given: another run owns the slot).';

create function registry.activate(instance_id uuid) returns text
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select registry.transition(instance_id, array['registered'], 'active', 'activated', 'agent_active')
$$;
comment on function registry.activate(uuid) is 'From now on the run may claim; answers its state, null if it is not known.';

create function registry.suspend(instance_id uuid) returns text
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select registry.transition(instance_id, array['active', 'suspect'], 'suspended', 'suspended', 'agent_suspended')
$$;
comment on function registry.suspend(uuid) is 'Tells a run to claim nothing until it is resumed; answers its state, null if it is not known.';

create function registry.resume(instance_id uuid) returns text
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select registry.transition(instance_id, array['suspended'], 'active', 'resumed', 'agent_resumed')
$$;
comment on function registry.resume(uuid) is 'Lets a suspended run claim again; answers its state, null if it is not known.';

create function registry.drain(instance_id uuid) returns text
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select registry.transition(instance_id, array['registered', 'active', 'suspect', 'suspended'], 'draining',
                             'draining', 'agent_draining')
$$;
comment on function registry.drain(uuid) is 'The run claims nothing new and finishes what it has; answers its state, null if it is not known.';

create function registry.deregister(instance_id uuid, epoch bigint, reason text) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  leaving registry.agents;
begin
  perform registry.lock_clock();
  select t.* into leaving from registry.agents t
   where t.instance_id = deregister.instance_id and t.epoch = coalesce(deregister.epoch, t.epoch)
     and t.state <> 'terminated';
  if not found then
    return null;
  end if;
  return registry.terminate(leaving, coalesce(nullif(deregister.reason, ''), 'deregistered'), 'agent_drained');
end
$$;
comment on function registry.deregister(uuid, bigint, text)
  is 'Leaves the fleet; answers how many messages that it still held were queued again, null if it had ended before.';

-- ---------------------------------------------------------------- beating

create function registry.beat(
  instance_id uuid, epoch bigint, seq bigint, ready boolean default true, in_flight integer default 0,
  stats jsonb default '{}')
returns table (outcome text, state text, end_reason text, registry_version bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  before registry.agents;
  after registry.agents;
  accepted boolean := false;
begin
  select t.* into before from registry.agents t
   where t.instance_id = beat.instance_id and t.epoch = beat.epoch;
  if before.state = 'suspect' then
    -- coming back changes the membership, and the clock is locked before the beat
    perform registry.lock_clock();
  end if;
  update registry.beats as b
     set beat_at = clock_timestamp(), seq = beat.seq, ready = beat.ready, in_flight = beat.in_flight,
         cpu_cores = (beat.stats ->> 'cpu_cores')::real, memory_bytes = (beat.stats ->> 'memory_bytes')::bigint
   where b.instance_id = before.instance_id and b.seq < beat.seq;
  accepted := found;
  if accepted and before.state = 'suspect' then
    perform registry.transition(before.instance_id, array['suspect'], 'active', 'recovered', 'agent_recovered');
  end if;
  -- again, since a sweep may have ended it while the update waited
  select t.* into after from registry.agents t where t.instance_id = before.instance_id;
  return query
  select case when after.instance_id is null then 'unknown'
              when after.state = 'terminated' then 'ended'
              else 'alive' end,
         after.state, after.end_reason, c.version
    from registry.clock c;
end
$$;
comment on function registry.beat(uuid, bigint, bigint, boolean, integer, jsonb)
  is 'Sign of life. Outcome: alive; ended (superseded, dead or deregistered: stop claiming, register as a new instance); unknown. An old seq changes nothing.';

create function registry.may_claim(holder text) returns boolean
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  -- a name of the form that the registry makes must stand in it, or a run that it has forgotten could come back
  select coalesce((select a.state = 'active' from registry.agents a where a.holder = may_claim.holder),
                  may_claim.holder !~ '^[a-z][a-z0-9-]*/[0-9]+#[0-9a-f]{32}$')
$$;
comment on function registry.may_claim(text) is 'Whether a holder may claim: an agent only while active, any other name always.';

-- ---------------------------------------------------------------- declaring dead

create function registry.database_up_for() returns interval
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  -- the WAL writer starts anew after a crash of any backend and after a failover, when the postmaster does not;
  -- greatest() ignores the null that an owner without pg_read_all_stats sees
  select clock_timestamp() - greatest(
    pg_postmaster_start_time(),
    (select max(s.backend_start) from pg_stat_activity s where s.backend_type = 'walwriter'))
$$;
comment on function registry.database_up_for() is 'How long agents have been able to reach the database without a break of its own.';

create function registry.requeue_stragglers() returns integer
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  -- a claim that was under way while its holder ended commits after the requeue of that end; two minutes are far more
  -- than any claim takes
  select coalesce(sum(bus.requeue_held(gone.holder, 'holder ' || gone.holder || ' ended: ' || gone.end_reason)), 0)::integer
    from (select a.holder, a.end_reason from registry.agents a
           where a.state = 'terminated' and a.ended_at > clock_timestamp() - interval '2 minutes'
             and exists (select from public.agent_messages m where m.status = 'claimed' and m.claimed_by = a.holder)
           order by a.holder) as gone
$$;
comment on function registry.requeue_stragglers() is 'Takes claims that were committed just after the end of their holder; answers how many.';

create function registry.sweep(suspect_after interval default '15 s', dead_after interval default '30 s')
returns table (swept boolean, suspected integer, died integer, held_back integer, requeued integer)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  started timestamptz := clock_timestamp();
  up_for interval;
  living integer;
  expired integer;
  holding timestamptz;
  late registry.agents;
begin
  if suspect_after is null or dead_after is null or suspect_after < interval '0' or dead_after < suspect_after then
    raise exception 'suspect_after must be at least 0 and at most dead_after' using errcode = 'invalid_parameter_value';
  end if;
  swept := pg_try_advisory_xact_lock(hashtextextended('registry.sweep', 0));
  suspected := 0; died := 0; held_back := 0; requeued := 0;
  if not swept then
    return next;
    return;
  end if;
  -- before the clock is taken: these messages belong to holders that have ended, which nobody else looks at any more
  requeued := registry.requeue_stragglers();
  select s.holding_since into holding from registry.sweeper s;
  if holding is null and not exists (select from registry.beats b where b.beat_at < started - suspect_after) then
    return next;
    return;
  end if;

  perform registry.lock_clock();
  select count(*), count(*) filter (where b.beat_at < started - dead_after) into living, expired from registry.beats b;
  up_for := registry.database_up_for();

  if expired = 0 then
    holding := null;
  elsif holding is null and up_for >= dead_after and expired >= 3 and expired * 2 > living then
    -- more likely that the sweeper or the way to the database stood still than that most of the fleet died at once
    holding := started;
    insert into public.bus_events (kind, tenant, actor, detail)
    values ('agents_held_back', '-', 'registry.sweep', jsonb_build_object('living', living, 'expired', expired));
  end if;

  if up_for < dead_after or started - holding < dead_after then
    held_back := expired;
  else
    holding := null;
    for late in
      select a.* from registry.beats b join registry.agents a on a.instance_id = b.instance_id
       where b.beat_at < started - dead_after order by a.instance_id for update of b
    loop
      requeued := requeued + coalesce(registry.terminate(late, 'dead', 'agent_dead'), 0);
      died := died + 1;
    end loop;
  end if;
  update registry.sweeper as s set holding_since = holding where s.holding_since is distinct from holding;

  if up_for >= suspect_after then
    for late in
      select a.* from registry.beats b join registry.agents a on a.instance_id = b.instance_id
       where b.beat_at < started - suspect_after and a.state = 'active' order by a.instance_id for update of b
    loop
      perform registry.transition(late.instance_id, array['active'], 'suspect', 'suspected', 'agent_suspect');
      suspected := suspected + 1;
    end loop;
  end if;
  return next;
end
$$;
comment on function registry.sweep(interval, interval)
  is 'Marks agents suspect and declares them dead by the age of their last beat, queueing again what the dead held; one sweeper at a time, safe to run twice.';

create function registry.retain(keep interval, max_rows integer default 1000) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  forgotten uuid[];
begin
  forgotten := array(
    select a.instance_id from registry.agents a
     where a.state = 'terminated' and a.ended_at < clock_timestamp() - keep
     order by a.ended_at limit max_rows for update skip locked);
  -- all that the log says of them goes at once, so that replaying the rest still gives the living
  delete from registry.log l where l.instance_id = any (forgotten);
  delete from registry.agents a where a.instance_id = any (forgotten);
  return cardinality(forgotten);
end
$$;
comment on function registry.retain(interval, integer) is 'Forgets runs that ended before the interval, with their log; never a living one. Answers how many went.';

-- ---------------------------------------------------------------- who may do what

revoke all on schema registry from public;
revoke all on all tables in schema registry from public, anon, authenticated;
revoke execute on all functions in schema registry from public, anon, authenticated;
grant usage on schema registry to service_role;
grant select on registry.clock, registry.agents, registry.beats, registry.log to service_role;
grant execute on function
  registry.register(uuid, text, text, integer, text, text[], jsonb, jsonb, integer, text, uuid),
  registry.activate(uuid), registry.suspend(uuid), registry.resume(uuid), registry.drain(uuid),
  registry.deregister(uuid, bigint, text), registry.beat(uuid, bigint, bigint, boolean, integer, jsonb),
  registry.may_claim(text), registry.database_up_for(), registry.sweep(interval, interval),
  registry.retain(interval, integer)
  to service_role;

alter table registry.clock enable row level security;
alter table registry.sweeper enable row level security;
alter table registry.epochs enable row level security;
alter table registry.agents enable row level security;
alter table registry.beats enable row level security;
alter table registry.log enable row level security;
