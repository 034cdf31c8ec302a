-- The registry, completed: one matrix of states, a log that says who changed what from where to where and why, agents
-- that ride in the process of another, keys for joining, and a sweep that does not trust its own lateness.
--
-- Locks are taken in this order by everything here: clock, beats, agents, messages. A beat that changes no membership
-- takes its own row of beats only; the queueing-again of stragglers takes messages that nobody else looks at.

-- ---------------------------------------------------------------- the matrix of states

create table registry.transitions (
  from_state text not null,
  to_state   text not null,
  op         text not null,
  event      text,
  primary key (from_state, to_state)
);
comment on table registry.transitions is 'Every change of state that there is; a trigger refuses all others. The same matrix stands in crate registry-core.';
comment on column registry.transitions.from_state is 'State before; unregistered and registering are known to the process alone.';
comment on column registry.transitions.to_state is 'State after.';
comment on column registry.transitions.op is 'What the log calls the change.';
comment on column registry.transitions.event is 'Kind of the audit row; null for a change that the database does not see or that has several kinds.';

insert into registry.transitions (from_state, to_state, op, event) values
  ('unregistered', 'registering',  'registering', null),
  ('registering',  'unregistered', 'refused',     null),
  ('registering',  'registered',   'registered',  'agent_registered'),
  ('registered',   'active',       'activated',   'agent_active'),
  ('registered',   'draining',     'draining',    'agent_draining'),
  ('registered',   'terminated',   'terminated',  null),
  ('active',       'suspect',      'suspected',   'agent_suspect'),
  ('active',       'suspended',    'suspended',   'agent_suspended'),
  ('active',       'draining',     'draining',    'agent_draining'),
  ('active',       'terminated',   'terminated',  null),
  ('suspect',      'active',       'recovered',   'agent_recovered'),
  ('suspect',      'suspended',    'suspended',   'agent_suspended'),
  ('suspect',      'draining',     'draining',    'agent_draining'),
  ('suspect',      'terminated',   'terminated',  null),
  ('suspended',    'active',       'resumed',     'agent_resumed'),
  ('suspended',    'draining',     'draining',    'agent_draining'),
  ('suspended',    'terminated',   'terminated',  null),
  ('draining',     'terminated',   'terminated',  null);

create function registry.guard_transition() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  before text := case when tg_op = 'INSERT' then 'registering' else old.state end;
begin
  if before is distinct from new.state
     and not exists (select from registry.transitions t where t.from_state = before and t.to_state = new.state) then
    raise exception 'An agent does not go from % to %', before, new.state
      using errcode = 'object_not_in_prerequisite_state';
  end if;
  return new;
end
$$;
comment on function registry.guard_transition() is 'Refuses a change of state that is not in the matrix, whoever makes it.';

create trigger agents_follow_the_matrix before insert or update of state on registry.agents
  for each row execute function registry.guard_transition();

-- ---------------------------------------------------------------- what is new in the tables

alter table registry.clock add column config_version bigint not null default 0;
comment on column registry.clock.config_version is 'Version of the newest configuration; beats tell of it.';

alter table registry.sweeper add column swept_at timestamptz;
alter table registry.sweeper add column grace_until timestamptz;
comment on column registry.sweeper.swept_at is 'When the last sweep ran; one that comes much later than this first waits for beats.';
comment on column registry.sweeper.grace_until is 'Until when nobody is suspected or declared dead, since the sweep before had been long ago.';

alter table registry.agents add column tags text[] not null default '{}';
alter table registry.agents add column carrier uuid references registry.agents (instance_id) on delete set null;
alter table registry.agents add column public_key bytea;
alter table registry.agents add constraint tags_at_most_256 check (cardinality(tags) <= 256);
alter table registry.agents add constraint public_key_is_ed25519 check (octet_length(public_key) = 32);
comment on column registry.agents.tags is 'Words to find it by that say nothing of what it can do.';
comment on column registry.agents.carrier is 'The run in whose process it lives: it beats with it and ends with it. Null for a process of its own.';
comment on column registry.agents.public_key is 'Ed25519 key by which its tokens are verified; made anew for each run.';
create index agents_carried on registry.agents (carrier) where carrier is not null and state <> 'terminated';

alter table registry.beats add column carried jsonb not null default '{}';
comment on column registry.beats.carried is 'Messages that each agent in the same process works on, by name/slot.';

alter table registry.log add column holder text;
alter table registry.log add column from_state text;
alter table registry.log add column to_state text;
alter table registry.log add column reason text;
alter table registry.log add column asked_by text;
with earlier as (
  select r.version, a.holder, lag(r.body ->> 'state') over (partition by r.instance_id order by r.version) as before
    from registry.log r join registry.agents a on a.instance_id = r.instance_id
)
update registry.log as l
   set holder = e.holder, from_state = coalesce(e.before, 'registering'), to_state = l.body ->> 'state',
       reason = l.body ->> 'reason'
  from earlier e
 where e.version = l.version;
alter table registry.log alter column holder set not null;
alter table registry.log alter column from_state set not null;
alter table registry.log alter column to_state set not null;
alter table registry.log add constraint log_follows_the_matrix
  foreign key (from_state, to_state) references registry.transitions (from_state, to_state);
comment on table registry.log is 'Every change of membership in order, never changed afterwards; replayed from the start it gives the living agents.';
comment on column registry.log.holder is 'Whom it happened to, as name/slot#instance.';
comment on column registry.log.from_state is 'State before.';
comment on column registry.log.to_state is 'State after.';
comment on column registry.log.reason is 'Why, where somebody said so; always for an end.';
comment on column registry.log.asked_by is 'application_name of the session that made the change.';
comment on column registry.log.body is 'state: the state after the change; identity when registered; reason and requeued when terminated.';

create function registry.refuse_change() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception '%.% is append-only', tg_table_schema, tg_table_name using errcode = 'object_not_in_prerequisite_state';
end
$$;
comment on function registry.refuse_change() is 'Keeps what was written as it was written.';
create trigger log_is_append_only before update or truncate on registry.log
  for each statement execute function registry.refuse_change();

create table registry.agent_keys (
  key_id     uuid        primary key default gen_random_uuid(),
  name       text        not null check (name ~ '^[a-z][a-z0-9-]{0,62}$'),
  proof_hash bytea       not null unique check (octet_length(proof_hash) = 32),
  label      text        not null check (length(label) between 1 and 200),
  created_at timestamptz not null default clock_timestamp(),
  revoked_at timestamptz
);
comment on table registry.agent_keys is 'Keys for joining. A name that has one that is not revoked can be registered with such a key only.';
comment on column registry.agent_keys.key_id is 'Names the key to people; is no secret.';
comment on column registry.agent_keys.name is 'Name of the process that may join with it.';
comment on column registry.agent_keys.proof_hash is 'SHA-256 of the proof, which is itself the SHA-256 of the key: the key never reaches the database, and this column opens nothing.';
comment on column registry.agent_keys.label is 'Whom it was given to, or what for.';
comment on column registry.agent_keys.created_at is 'When it was made.';
comment on column registry.agent_keys.revoked_at is 'Since when it opens nothing; null while it does.';
create index agent_keys_name on registry.agent_keys (name) where revoked_at is null;

-- ---------------------------------------------------------------- parts of every change

drop function registry.append(text, registry.agents, jsonb);
create function registry.append(agent registry.agents, from_state text, reason text, body jsonb) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  made bigint;
begin
  update registry.clock as c set version = c.version + 1 returning c.version into made;
  insert into registry.log (version, op, instance_id, epoch, holder, from_state, to_state, reason, asked_by, body)
  select made, t.op, agent.instance_id, agent.epoch, agent.holder, t.from_state, t.to_state, append.reason,
         nullif(current_setting('application_name'), ''), jsonb_build_object('state', agent.state) || append.body
    from registry.transitions t
   where t.from_state = append.from_state and t.to_state = agent.state;
  if not found then
    raise exception 'An agent does not go from % to %', append.from_state, agent.state
      using errcode = 'object_not_in_prerequisite_state';
  end if;
  -- changes of membership are rare, beats are not and stay out of this: a notification takes a lock of the whole cluster
  perform pg_notify('registry_changed', made::text);
  return made;
end
$$;
comment on function registry.append(registry.agents, text, text, jsonb)
  is 'Writes one change to the log under the next version, which it answers, and tells those who listen to registry_changed.';

drop function registry.terminate(registry.agents, text, text);
create function registry.terminate(agent registry.agents, reason text, event text) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  before text;
  ended registry.agents;
  carried registry.agents;
  held integer;
  requeued integer := 0;
begin
  select t.state into before from registry.agents t
   where t.instance_id = agent.instance_id and t.state <> 'terminated' for update;
  if not found then
    return null;
  end if;
  -- those in the same process cannot outlive it
  for carried in
    select t.* from registry.agents t
     where t.carrier = agent.instance_id and t.state <> 'terminated' order by t.instance_id
  loop
    requeued := requeued + coalesce(
      registry.terminate(carried, left('carrier ended: ' || terminate.reason, 400), event), 0);
  end loop;
  delete from registry.beats b where b.instance_id = agent.instance_id;
  update registry.agents as t
     set state = 'terminated', state_since = clock_timestamp(), ended_at = clock_timestamp(),
         end_reason = left(terminate.reason, 400)
   where t.instance_id = agent.instance_id and t.state = before
  returning t.* into ended;
  held := bus.requeue_held(ended.holder, 'holder ' || ended.holder || ' ended: ' || ended.end_reason);
  perform registry.append(ended, before, ended.end_reason,
                          jsonb_build_object('reason', ended.end_reason, 'requeued', held));
  perform registry.record_event(event, ended, jsonb_build_object(
    'from', before, 'to', ended.state, 'reason', ended.end_reason, 'requeued', held));
  return requeued + held;
end
$$;
comment on function registry.terminate(registry.agents, text, text)
  is 'Ends a run and those that it carries, and queues again what they held, in one transaction; the caller holds the clock. Null if it had ended before.';

drop function registry.transition(uuid, text[], text, text, text);
create function registry.transition(instance_id uuid, from_states text[], to_state text, reason text default null)
returns table (before text, after registry.agents)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  perform registry.lock_clock();
  select t.* into after from registry.agents t where t.instance_id = transition.instance_id for update;
  if not found then
    return;
  end if;
  before := after.state;
  if before = any (transition.from_states) and before <> transition.to_state then
    update registry.agents as t
       set state = transition.to_state, state_since = clock_timestamp()
     where t.instance_id = transition.instance_id and t.state = before
    returning t.* into after;
    perform registry.append(after, before, transition.reason, '{}');
    perform registry.record_event(m.event, after, jsonb_strip_nulls(jsonb_build_object(
              'from', before, 'to', after.state, 'reason', transition.reason)))
       from registry.transitions m where m.from_state = before and m.to_state = after.state;
  end if;
  return next;
end
$$;
comment on function registry.transition(uuid, text[], text, text)
  is 'Compare and set of a state: answers the state before and the run as it is now, nothing for a run that is not known.';

-- ---------------------------------------------------------------- orders

create function registry.order_state(
  wish text, instance_id uuid default null, name text default null, slot integer default null, reason text default null)
returns table (run uuid, holder text, epoch bigint, before text, state text, accepted boolean, registry_version bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  meant uuid := order_state.instance_id;
  from_states text[];
  to_state text;
  changed record;
begin
  case order_state.wish
    when 'activate' then to_state := 'active';    from_states := array['registered'];
    when 'suspend'  then to_state := 'suspended'; from_states := array['active', 'suspect'];
    when 'resume'   then to_state := 'active';    from_states := array['suspended'];
    when 'drain'    then to_state := 'draining';  from_states := array['registered', 'active', 'suspect', 'suspended'];
    else raise exception 'Unknown wish %', order_state.wish using errcode = 'invalid_parameter_value';
  end case;
  perform registry.lock_clock();
  if meant is null then
    select t.instance_id into meant from registry.agents t
     where t.name = order_state.name and t.slot = order_state.slot and t.state <> 'terminated';
  end if;
  for changed in
    select x.before, (x.after).*
      from registry.transition(meant, from_states, to_state, left(nullif(order_state.reason, ''), 400)) as x
  loop
    return query
    select changed.instance_id, changed.holder, changed.epoch, changed.before, changed.state,
           changed.state = to_state, c.version
      from registry.clock c;
  end loop;
end
$$;
comment on function registry.order_state(text, uuid, text, integer, text)
  is 'activate, suspend, resume or drain a run, named by its id or as the owner of a slot. accepted: it is now in the state that was asked for. No row for a run that is not known.';

drop function registry.activate(uuid);
create function registry.activate(instance_id uuid) returns text
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select o.state from registry.order_state('activate', instance_id) as o
$$;
comment on function registry.activate(uuid) is 'From now on the run may claim; answers its state, null if it is not known.';

drop function registry.suspend(uuid);
create function registry.suspend(instance_id uuid, reason text default null) returns text
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select o.state from registry.order_state('suspend', instance_id, reason => suspend.reason) as o
$$;
comment on function registry.suspend(uuid, text) is 'Tells a run to claim nothing until it is resumed; answers its state, null if it is not known.';

drop function registry.resume(uuid);
create function registry.resume(instance_id uuid, reason text default null) returns text
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select o.state from registry.order_state('resume', instance_id, reason => resume.reason) as o
$$;
comment on function registry.resume(uuid, text) is 'Lets a suspended run claim again; answers its state, null if it is not known.';

drop function registry.drain(uuid);
create function registry.drain(instance_id uuid, reason text default null) returns text
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select o.state from registry.order_state('drain', instance_id, reason => drain.reason) as o
$$;
comment on function registry.drain(uuid, text) is 'The run claims nothing new and finishes what it has; answers its state, null if it is not known.';

-- ---------------------------------------------------------------- joining

create function registry.check_key(name text, key_proof bytea) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  guarded boolean;
  fits boolean;
begin
  select count(*) > 0, coalesce(bool_or(k.proof_hash = sha256(check_key.key_proof)), false) into guarded, fits
    from registry.agent_keys k where k.name = check_key.name and k.revoked_at is null;
  if guarded and not fits then
    raise exception 'Agent % joins with its key only', check_key.name using errcode = 'invalid_authorization_specification';
  end if;
end
$$;
comment on function registry.check_key(text, bytea) is 'Raises unless a name may join with this proof of a key.';

drop function registry.register(uuid, text, text, integer, text, text[], jsonb, jsonb, integer, text, uuid);
create function registry.register(
  instance_id uuid, domain text, name text, slot integer, version text, capabilities text[] default '{}',
  location jsonb default '{}', endpoints jsonb default '[]', level integer default 2, parent text default null,
  previous uuid default null, tags text[] default '{}', carrier uuid default null, public_key bytea default null,
  key_proof bytea default null)
returns table (
  outcome text, epoch bigint, holder text, state text, registry_version bigint, database_time timestamptz)
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
  if register.capabilities is null or register.tags is null then
    raise exception 'Capabilities and tags must be arrays, empty for none' using errcode = 'invalid_parameter_value';
  end if;
  select c into malformed from unnest(register.capabilities || register.tags) as c
   where c is null or c !~ '^[a-z][a-z0-9-]{0,62}(:[A-Za-z0-9][A-Za-z0-9_.+/-]{0,126})?$' limit 1;
  if found then
    raise exception 'Malformed capability or tag %', coalesce(malformed, 'null') using errcode = 'invalid_parameter_value';
  end if;
  perform registry.check_key(register.name, register.key_proof);

  perform registry.lock_clock();
  select t.* into known from registry.agents t where t.instance_id = register.instance_id;
  if found then
    if (known.domain, known.name, known.slot) is distinct from (register.domain, register.name, register.slot) then
      raise exception 'Instance % is registered as %/%', register.instance_id, known.name, known.slot
        using errcode = 'unique_violation';
    end if;
    return query
    select case when known.state = 'terminated' then 'ended' else 'known' end,
           known.epoch, known.holder, known.state, c.version, clock_timestamp() from registry.clock c;
    return;
  end if;
  if register.carrier is not null and not exists (
       select from registry.agents t
        where t.instance_id = register.carrier and t.carrier is null and t.state <> 'terminated') then
    return query select 'carrier_gone', 0::bigint, '', 'terminated', c.version, clock_timestamp() from registry.clock c;
    return;
  end if;

  select t.* into owner from registry.agents t
   where t.name = register.name and t.slot = register.slot and t.state <> 'terminated';
  if found then
    -- one that lost its place comes back only if nobody else took it: two processes of one slot must not fight
    if register.previous is not null and owner.instance_id <> register.previous then
      return query
      select 'occupied', owner.epoch, owner.holder, owner.state, c.version, clock_timestamp() from registry.clock c;
      return;
    end if;
    if owner.instance_id = register.carrier then
      raise exception 'An agent cannot take the slot of its carrier' using errcode = 'invalid_parameter_value';
    end if;
    perform registry.terminate(owner, 'superseded', 'agent_superseded');
  end if;

  insert into registry.epochs as e (name, slot, epoch)
  values (register.name, register.slot, 1)
  on conflict (name, slot) do update set epoch = e.epoch + 1
  returning e.epoch into granted;

  insert into registry.agents as t
         (instance_id, domain, name, slot, epoch, version, capabilities, location, endpoints, level, parent, tags,
          carrier, public_key)
  values (register.instance_id, register.domain, register.name, register.slot, granted, register.version,
          register.capabilities, register.location, register.endpoints, register.level, register.parent, register.tags,
          register.carrier, register.public_key)
  returning t.* into fresh;
  if fresh.carrier is null then
    insert into registry.beats (instance_id) values (fresh.instance_id);
  end if;

  perform registry.append(fresh, 'registering', null, jsonb_build_object(
    'domain', fresh.domain, 'name', fresh.name, 'slot', fresh.slot, 'version', fresh.version,
    'holder', fresh.holder, 'capabilities', fresh.capabilities, 'tags', fresh.tags, 'location', fresh.location,
    'endpoints', fresh.endpoints, 'level', fresh.level, 'parent', fresh.parent, 'carrier', fresh.carrier,
    'public_key', encode(fresh.public_key, 'hex')));
  perform registry.record_event('agent_registered', fresh, jsonb_build_object(
    'from', 'registering', 'to', fresh.state, 'superseded', owner.holder));
  return query
  select 'registered', fresh.epoch, fresh.holder, fresh.state, c.version, clock_timestamp() from registry.clock c;
end
$$;
comment on function registry.register(
    uuid, text, text, integer, text, text[], jsonb, jsonb, integer, text, uuid, text[], uuid, bytea, bytea)
  is 'Joins the fleet and takes over the slot at once. Outcome: registered; known (asked twice); ended (take a new instance_id); occupied (with previous given: another run owns the slot); carrier_gone (the run to ride with has ended).';

create function registry.issue_key(name text, proof_hash bytea, label text) returns uuid
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into registry.agent_keys (name, proof_hash, label)
  values (issue_key.name, issue_key.proof_hash, issue_key.label)
  returning key_id
$$;
comment on function registry.issue_key(text, bytea, text) is 'Stores what a new key is checked by; from now on the name joins with a key only.';

create function registry.revoke_key(key_id uuid) returns boolean
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  with revoked as (
    update registry.agent_keys as k set revoked_at = clock_timestamp()
     where k.key_id = revoke_key.key_id and k.revoked_at is null
    returning k.key_id
  )
  select count(*) > 0 from revoked
$$;
comment on function registry.revoke_key(uuid) is 'The key opens nothing from now on; who is in stays in. False if it did not open anything before.';

-- ---------------------------------------------------------------- beating and claiming

drop function registry.beat(uuid, bigint, bigint, boolean, integer, jsonb);
create function registry.beat(
  instance_id uuid, epoch bigint, seq bigint, ready boolean default true, in_flight integer default 0,
  stats jsonb default '{}')
returns table (
  outcome text, state text, end_reason text, registry_version bigint, config_version bigint, database_time timestamptz)
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
         cpu_cores = (beat.stats ->> 'cpu_cores')::real, memory_bytes = (beat.stats ->> 'memory_bytes')::bigint,
         carried = coalesce(beat.stats -> 'carried', '{}')
   where b.instance_id = before.instance_id and b.seq < beat.seq;
  accepted := found;
  if accepted and before.state = 'suspect' then
    perform registry.transition(before.instance_id, array['suspect'], 'active');
  end if;
  -- again, since a sweep may have ended it while the update waited
  select t.* into after from registry.agents t where t.instance_id = before.instance_id;
  return query
  select case when after.instance_id is null then 'unknown'
              when after.state = 'terminated' then 'ended'
              else 'alive' end,
         after.state, after.end_reason, c.version, c.config_version, clock_timestamp()
    from registry.clock c;
end
$$;
comment on function registry.beat(uuid, bigint, bigint, boolean, integer, jsonb)
  is 'Sign of life. Outcome: alive; ended (superseded, dead or deregistered: stop claiming, register as a new instance); unknown (also for another epoch). An old seq changes nothing. Tells of the newest versions of registry and configuration.';

create or replace function registry.may_claim(holder text) returns boolean
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  -- a name of the form that the registry makes must stand in it, or a run that it has forgotten could come back
  select coalesce((select a.state = 'active' and (a.carrier is null or c.state = 'active')
                     from registry.agents a left join registry.agents c on c.instance_id = a.carrier
                    where a.holder = may_claim.holder),
                  may_claim.holder !~ '^[a-z][a-z0-9-]*/[0-9]+#[0-9a-f]{32}$')
$$;
comment on function registry.may_claim(text)
  is 'Whether a holder may claim: an agent only while it, and the one whose process it lives in, is active; any other name always.';

-- ---------------------------------------------------------------- declaring dead

create function registry.note_sweep(started timestamptz, suspect_after interval, dead_after interval) returns timestamptz
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  previous timestamptz;
  grace timestamptz;
begin
  select s.swept_at, s.grace_until into previous, grace from registry.sweeper s for update;
  -- half of the time to death: one that came less late than that cannot have made the silent look dead
  if started - previous > greatest(dead_after / 2, interval '1 s') then
    grace := started + suspect_after;
    insert into public.bus_events (kind, tenant, actor, detail)
    select 'sweep_was_late', '-', 'registry.sweep', jsonb_build_object(
             'seconds', round(extract(epoch from started - previous), 3), 'silent', count(*))
      from registry.beats b where b.beat_at < started - suspect_after having count(*) > 0;
  elsif grace <= started then
    grace := null;
  end if;
  update registry.sweeper as s set swept_at = started, grace_until = grace;
  return grace;
end
$$;
comment on function registry.note_sweep(timestamptz, interval, interval)
  is 'Notes that a sweep runs; answers until when it must not judge because nobody had swept for long, null if it may.';

create or replace function registry.sweep(suspect_after interval default '15 s', dead_after interval default '30 s')
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
  grace timestamptz;
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
  grace := registry.note_sweep(started, suspect_after, dead_after);
  select s.holding_since into holding from registry.sweeper s;
  if holding is null and not exists (select from registry.beats b where b.beat_at < started - suspect_after) then
    return next;
    return;
  end if;

  perform registry.lock_clock();
  select count(*), count(*) filter (where b.beat_at < started - dead_after) into living, expired from registry.beats b;
  up_for := registry.database_up_for();

  if grace is not null then
    -- when everything stood still, sweeper and agents alike, the agents have a right to beat first
    held_back := expired;
    return next;
    return;
  end if;
  if expired = 0 then
    holding := null;
  elsif holding is null and up_for >= dead_after and expired >= 3 and expired * 2 > living then
    -- more likely that the way to the database stood still than that most of the fleet died at once
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
      perform registry.transition(late.instance_id, array['active'], 'suspect', 'no beat');
      suspected := suspected + 1;
    end loop;
  end if;
  return next;
end
$$;

-- ---------------------------------------------------------------- who may do what

revoke all on registry.transitions, registry.agent_keys from public, anon, authenticated;
revoke execute on all functions in schema registry from public, anon, authenticated;
grant select on registry.transitions to service_role;
grant execute on function
  registry.register(uuid, text, text, integer, text, text[], jsonb, jsonb, integer, text, uuid, text[], uuid, bytea, bytea),
  registry.order_state(text, uuid, text, integer, text), registry.activate(uuid), registry.suspend(uuid, text),
  registry.resume(uuid, text), registry.drain(uuid, text), registry.issue_key(text, bytea, text),
  registry.revoke_key(uuid), registry.beat(uuid, bigint, bigint, boolean, integer, jsonb)
  to service_role;

alter table registry.transitions enable row level security;
alter table registry.agent_keys enable row level security;
