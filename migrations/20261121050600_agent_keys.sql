-- Keys that end what they opened: a run that joined with a key is known as its user and ends with it, and a name whose
-- keys are all revoked stays closed until it gets another one or is opened by hand.
--
-- Whoever revokes takes the clock of the registry first, as every change of membership does.

create table registry.agent_key_uses (
  instance_id uuid primary key references registry.agents (instance_id) on delete cascade,
  key_id      uuid not null references registry.agent_keys (key_id) on delete cascade
);
comment on table registry.agent_key_uses is 'The runs that joined with a key, as long as the registry remembers them.';
comment on column registry.agent_key_uses.instance_id is 'The run.';
comment on column registry.agent_key_uses.key_id is 'The key that it joined with.';
create index agent_key_uses_key on registry.agent_key_uses (key_id);
comment on table registry.agent_keys is 'Keys for joining. A name that was ever given one can be registered with a living one only, until registry.open_name.';

create function registry.key_of(name text, key_proof bytea) returns uuid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  fitting uuid;
begin
  if not exists (select from registry.agent_keys k where k.name = key_of.name) then
    return null;
  end if;
  select k.key_id into fitting from registry.agent_keys k
   where k.name = key_of.name and k.revoked_at is null and k.proof_hash = sha256(key_of.key_proof);
  if not found then
    raise exception 'Agent % joins with its key only', key_of.name using errcode = 'invalid_authorization_specification';
  end if;
  return fitting;
end
$$;
comment on function registry.key_of(text, bytea)
  is 'The living key of a name that this proof is of; null for a name without keys. Raises when the name has keys, be they revoked, and this is none of them.';
drop index registry.agent_keys_name;
create index agent_keys_name on registry.agent_keys (name);

create or replace function registry.register(
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
  opened uuid;
begin
  if register.capabilities is null or register.tags is null then
    raise exception 'Capabilities and tags must be arrays, empty for none' using errcode = 'invalid_parameter_value';
  end if;
  select c into malformed from unnest(register.capabilities || register.tags) as c
   where c is null or c !~ '^[a-z][a-z0-9-]{0,62}(:[A-Za-z0-9][A-Za-z0-9_.+/-]{0,126})?$' limit 1;
  if found then
    raise exception 'Malformed capability or tag %', coalesce(malformed, 'null') using errcode = 'invalid_parameter_value';
  end if;
  -- twice: a stranger shall not get as far as the clock, and a key can be revoked while it waits for that
  perform registry.key_of(register.name, register.key_proof);
  perform registry.lock_clock();
  opened := registry.key_of(register.name, register.key_proof);
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
  insert into registry.agent_key_uses (instance_id, key_id) select fresh.instance_id, opened where opened is not null;
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

drop function registry.check_key(text, bytea);

create function registry.revoke_key_and_end(
  key_id uuid, revoked_by text, out revoked boolean, out ended integer, out requeued integer)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  run registry.agents;
  moved integer;
begin
  ended := 0;
  requeued := 0;
  perform registry.lock_clock();
  revoked := registry.revoke_key(revoke_key_and_end.key_id);
  -- also for a key that was revoked before, and left its runs alone
  for run in
    select a.* from registry.agent_key_uses u join registry.agents a on a.instance_id = u.instance_id
     where u.key_id = revoke_key_and_end.key_id and a.state <> 'terminated' order by a.instance_id
  loop
    moved := registry.terminate(run, left('key revoked by ' || revoke_key_and_end.revoked_by, 400), 'agent_key_revoked');
    -- one that rode with another of them has ended already
    ended := ended + (moved is not null)::integer;
    requeued := requeued + coalesce(moved, 0);
  end loop;
end
$$;
comment on function registry.revoke_key_and_end(uuid, text)
  is 'The key opens nothing from now on, and the runs that joined with it end: their messages are queued again, their tokens are dead. revoked: it opened something before; ended and requeued: how many runs and messages.';

create function registry.open_name(name text) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  forgotten integer;
begin
  -- the clock first, so that nobody is joining with one of them
  perform registry.lock_clock();
  if exists (select from registry.agent_keys k where k.name = open_name.name and k.revoked_at is null) then
    return null;
  end if;
  delete from registry.agent_keys k where k.name = open_name.name;
  get diagnostics forgotten = row_count;
  return forgotten;
end
$$;
comment on function registry.open_name(text)
  is 'Forgets the revoked keys of a name, which then joins without a key; answers how many there were. Null, and nothing has changed, while one is not revoked.';

create function registry.list_keys()
returns table (
  key_id uuid, name text, label text, created_at timestamptz, revoked_at timestamptz, agents text[])
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select k.key_id, k.name, k.label, k.created_at, k.revoked_at,
         array(select a.name || '/' || a.slot from registry.agent_key_uses u
                 join registry.agents a on a.instance_id = u.instance_id
                where u.key_id = k.key_id and a.state <> 'terminated' order by a.slot)
    from registry.agent_keys k order by k.name, k.created_at, k.key_id
$$;
comment on function registry.list_keys() is 'Every key, without what it is checked by, and the agents that are in with it.';

-- ---------------------------------------------------------------- who may do what

revoke all on registry.agent_key_uses from public, anon, authenticated;
revoke execute on function
  registry.key_of(text, bytea), registry.revoke_key_and_end(uuid, text), registry.open_name(text), registry.list_keys()
  from public, anon, authenticated;
grant execute on function
  registry.revoke_key_and_end(uuid, text), registry.open_name(text), registry.list_keys()
  to service_role;

alter table registry.agent_key_uses enable row level security;
