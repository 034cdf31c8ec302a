-- Configuration that is rolled out to running processes step by step and taken back when it does harm, and small values
-- that agents share for a while.
--
-- Changes of configuration lock the clock first, like changes of membership; then rollouts, then the rest.

create table registry.config (
  scope    text   primary key check (scope = '*' or scope ~ '^[a-z][a-z0-9-]{0,62}$'),
  document jsonb  not null check (jsonb_typeof(document) = 'object' and pg_column_size(document) <= 65536),
  version  bigint not null
);
comment on table registry.config is 'The configuration that holds now.';
comment on column registry.config.scope is 'Name of the processes that it is for; * for all, over which the one of the name wins key by key.';
comment on column registry.config.document is 'Keys and values.';
comment on column registry.config.version is 'Rollout that wrote it.';

create table registry.config_rollouts (
  version      bigint      primary key,
  state        text        not null default 'validating'
               check (state in ('validating', 'applying', 'live', 'refused', 'rolled_back')),
  state_since  timestamptz not null default clock_timestamp(),
  changes      jsonb       not null check (jsonb_typeof(changes) = 'object' and pg_column_size(changes) <= 262144),
  before       jsonb       not null default '{}',
  ready_before uuid[]      not null default '{}',
  author       text        not null check (length(author) between 1 and 200),
  note         text        check (length(note) <= 2000),
  patience_ms  integer     not null check (patience_ms between 100 and 3600000),
  settle_ms    integer     not null check (settle_ms between 0 and 3600000),
  reason       text,
  created_at   timestamptz not null default clock_timestamp()
);
comment on table registry.config_rollouts is 'Every change of configuration, with what became of it; one is under way at a time.';
comment on column registry.config_rollouts.version is 'Version of the configuration at which it began.';
comment on column registry.config_rollouts.state is 'validating (every watcher checks it, nothing has changed), applying, live, refused (nothing has changed) or rolled_back.';
comment on column registry.config_rollouts.state_since is 'Since when it is in that state.';
comment on column registry.config_rollouts.changes is 'New document by scope; null removes one.';
comment on column registry.config_rollouts.before is 'Documents of the same scopes before it was applied; null where there was none.';
comment on column registry.config_rollouts.ready_before is 'The watchers that were ready when it was applied.';
comment on column registry.config_rollouts.author is 'Who asked for it.';
comment on column registry.config_rollouts.note is 'What it is for.';
comment on column registry.config_rollouts.patience_ms is 'How long validating, and then applying, may take.';
comment on column registry.config_rollouts.settle_ms is 'How long all must stay ready after the last has applied it.';
comment on column registry.config_rollouts.reason is 'Why it was refused or taken back.';
comment on column registry.config_rollouts.created_at is 'When it was asked for.';
create unique index config_one_rollout on registry.config_rollouts ((true)) where state in ('validating', 'applying');

create table registry.config_watchers (
  instance_id uuid        primary key references registry.agents (instance_id) on delete cascade,
  since       timestamptz not null default clock_timestamp()
);
comment on table registry.config_watchers is 'The runs that heed configuration; a rollout waits for those that live.';
comment on column registry.config_watchers.instance_id is 'The run.';
comment on column registry.config_watchers.since is 'Since when.';

create table registry.config_acks (
  version     bigint      not null references registry.config_rollouts (version) on delete cascade,
  instance_id uuid        not null,
  answer      text        not null check (answer in ('valid', 'invalid', 'applied', 'failed')),
  detail      text        check (length(detail) <= 2000),
  at          timestamptz not null default clock_timestamp(),
  primary key (version, instance_id, answer)
);
comment on table registry.config_acks is 'What each watcher answered to a rollout.';
comment on column registry.config_acks.version is 'The rollout.';
comment on column registry.config_acks.instance_id is 'The run that answered.';
comment on column registry.config_acks.answer is 'valid or invalid while validating, applied or failed while applying.';
comment on column registry.config_acks.detail is 'Why not.';
comment on column registry.config_acks.at is 'When it answered.';

create function registry.config_tell(rollout registry.config_rollouts) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  told bigint;
begin
  update registry.clock as c set config_version = c.config_version + 1 returning c.config_version into told;
  insert into public.bus_events (kind, tenant, actor, detail)
  values ('config_' || rollout.state, '-', rollout.author, jsonb_strip_nulls(jsonb_build_object(
            'version', rollout.version, 'note', rollout.note, 'reason', rollout.reason,
            'scopes', (select jsonb_agg(k order by k) from jsonb_object_keys(rollout.changes) as k))));
  perform pg_notify('registry_config', told::text);
end
$$;
comment on function registry.config_tell(registry.config_rollouts) is 'Tells of a step of a rollout: to beats, listeners and the audit, without the values.';

create function registry.config_write(documents jsonb, version bigint) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  delete from registry.config c
   using jsonb_each(config_write.documents) as d where c.scope = d.key and jsonb_typeof(d.value) = 'null';
  insert into registry.config (scope, document, version)
  select d.key, d.value, config_write.version
    from jsonb_each(config_write.documents) as d where jsonb_typeof(d.value) <> 'null' order by d.key
  on conflict (scope) do update set document = excluded.document, version = excluded.version;
$$;
comment on function registry.config_write(jsonb, bigint) is 'Puts documents in place, and removes those that are null.';

create function registry.propose_config(
  changes jsonb, author text, note text default null, expected_version bigint default null,
  patience_ms integer default 30000, settle_ms integer default 10000)
returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  newest bigint;
  made registry.config_rollouts;
begin
  if jsonb_typeof(changes) is distinct from 'object' or changes = '{}'
     or exists (select from jsonb_each(changes) as d
                 where (d.key <> '*' and d.key !~ '^[a-z][a-z0-9-]{0,62}$')
                    or jsonb_typeof(d.value) not in ('object', 'null')) then
    raise exception 'Changes are an object of scopes, each with an object or null' using errcode = 'invalid_parameter_value';
  end if;
  select c.config_version into newest from registry.clock c for update;
  if newest is distinct from coalesce(expected_version, newest) then
    raise exception 'Configuration is at version %, not %', newest, expected_version
      using errcode = 'object_not_in_prerequisite_state';
  end if;
  if exists (select from registry.config_rollouts r where r.state in ('validating', 'applying')) then
    raise exception 'Another rollout is under way' using errcode = 'object_not_in_prerequisite_state';
  end if;
  insert into registry.config_rollouts as r (version, changes, author, note, patience_ms, settle_ms)
  values (newest + 1, propose_config.changes, propose_config.author, propose_config.note,
          propose_config.patience_ms, propose_config.settle_ms)
  returning r.* into made;
  perform registry.config_tell(made);
  return made.version;
end
$$;
comment on function registry.propose_config(jsonb, text, text, bigint, integer, integer)
  is 'Begins a rollout of documents by scope; answers its version. With expected_version only if nothing has changed since.';

create function registry.config_step(rollout registry.config_rollouts, state text, reason text default null)
returns registry.config_rollouts
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  changed registry.config_rollouts;
begin
  update registry.config_rollouts as r
     set state = config_step.state, state_since = clock_timestamp(), reason = config_step.reason
   where r.version = rollout.version and r.state = rollout.state
  returning r.* into changed;
  perform registry.config_tell(changed);
  return changed;
end
$$;
comment on function registry.config_step(registry.config_rollouts, text, text) is 'Moves a rollout on and tells of it; the caller holds the clock.';

create function registry.config_judge(rollout registry.config_rollouts) returns registry.config_rollouts
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  concerned uuid[];
  missing uuid[];
  harm text;
  overdue boolean := clock_timestamp() > rollout.state_since + rollout.patience_ms * interval '1 millisecond';
begin
  concerned := array(
    select a.instance_id from registry.config_watchers w join registry.agents a on a.instance_id = w.instance_id
     where a.state <> 'terminated' and (rollout.changes ? a.name or rollout.changes ? '*') order by a.instance_id);
  missing := array(
    select i from unnest(concerned) as i
     where not exists (select from registry.config_acks k
                        where k.version = rollout.version and k.instance_id = i
                          and k.answer = case rollout.state when 'validating' then 'valid' else 'applied' end));
  select a.holder || ': ' || coalesce(k.detail, k.answer) into harm
    from registry.config_acks k join registry.agents a on a.instance_id = k.instance_id
   where k.version = rollout.version and k.answer in ('invalid', 'failed') order by k.at limit 1;
  if rollout.state = 'validating' then
    if harm is not null then
      return registry.config_step(rollout, 'refused', harm);
    elsif missing = '{}' then
      update registry.config_rollouts as r
         set before = (select jsonb_object_agg(d.key, c.document)
                         from jsonb_object_keys(r.changes) as d (key) left join registry.config c on c.scope = d.key),
             ready_before = array(select b.instance_id from registry.beats b
                                   where b.ready and b.instance_id = any (concerned))
       where r.version = rollout.version;
      perform registry.config_write(rollout.changes, rollout.version);
      return registry.config_step(rollout, 'applying');
    elsif overdue then
      return registry.config_step(rollout, 'refused', cardinality(missing) || ' watchers gave no answer');
    end if;
    return rollout;
  end if;
  if harm is null then
    -- one that was ready before, has applied it, and says since then that it is not ready, or is gone without having left
    select a.holder || case when a.state = 'terminated' then ' ended: ' || a.end_reason else ' is no longer ready' end
      into harm
      from registry.config_acks k
      join registry.agents a on a.instance_id = k.instance_id
      left join registry.beats b on b.instance_id = k.instance_id
     where k.version = rollout.version and k.answer = 'applied' and k.instance_id = any (rollout.ready_before)
       and (a.end_reason in ('dead', 'superseded') or (a.state <> 'terminated' and not b.ready and b.beat_at > k.at))
     order by a.instance_id limit 1;
  end if;
  if harm is null and missing <> '{}' and overdue then
    harm := cardinality(missing) || ' watchers did not apply it';
  end if;
  if harm is not null then
    perform registry.config_write(rollout.before, rollout.version);
    return registry.config_step(rollout, 'rolled_back', harm);
  elsif missing = '{}' and clock_timestamp() > rollout.settle_ms * interval '1 millisecond' + coalesce(
          (select max(k.at) from registry.config_acks k where k.version = rollout.version), rollout.state_since) then
    return registry.config_step(rollout, 'live');
  end if;
  return rollout;
end
$$;
comment on function registry.config_judge(registry.config_rollouts)
  is 'Decides whether a rollout goes on, ends or is taken back; the caller holds the clock.';

create function registry.advance_config() returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  rollout registry.config_rollouts;
begin
  if not exists (select from registry.config_rollouts r where r.state in ('validating', 'applying')) then
    return null;
  end if;
  perform registry.lock_clock();
  select r.* into rollout from registry.config_rollouts r where r.state in ('validating', 'applying') for update;
  if not found then
    return null;
  end if;
  rollout := registry.config_judge(rollout);
  return rollout.state;
end
$$;
comment on function registry.advance_config() is 'Moves the rollout that is under way on if it is time; answers its state, null if there is none. Safe for anyone to call at any time.';

create function registry.roll_back_config(version bigint, author text, reason text) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  rollout registry.config_rollouts;
begin
  perform registry.lock_clock();
  select r.* into rollout from registry.config_rollouts r
   where r.version = roll_back_config.version and r.state in ('validating', 'applying') for update;
  if not found then
    return false;
  end if;
  if rollout.state = 'applying' then
    perform registry.config_write(rollout.before, rollout.version);
    perform registry.config_step(rollout, 'rolled_back', roll_back_config.author || ': ' || roll_back_config.reason);
  else
    perform registry.config_step(rollout, 'refused', roll_back_config.author || ': ' || roll_back_config.reason);
  end if;
  return true;
end
$$;
comment on function registry.roll_back_config(bigint, text, text) is 'Stops a rollout that is under way by hand; false if it is not.';

create function registry.watch_config(instance_id uuid, epoch bigint)
returns table (config_version bigint, document jsonb, rollout bigint, rollout_state text, proposed jsonb)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  watcher registry.agents;
begin
  select a.* into watcher from registry.agents a
   where a.instance_id = watch_config.instance_id and a.epoch = watch_config.epoch and a.state <> 'terminated';
  if not found then
    return;
  end if;
  insert into registry.config_watchers as w (instance_id) values (watcher.instance_id) on conflict do nothing;
  return query
  with held as (
    select coalesce((select c.document from registry.config c where c.scope = '*'), '{}') as general,
           coalesce((select c.document from registry.config c where c.scope = watcher.name), '{}') as own
  )
  select k.config_version, held.general || held.own, r.version, r.state,
         case when r.version is not null then
           case when r.changes ? '*' then coalesce(nullif(r.changes -> '*', 'null'), '{}') else held.general end
           || case when r.changes ? watcher.name then coalesce(nullif(r.changes -> watcher.name, 'null'), '{}')
                   else held.own end
         end
    from registry.clock k cross join held
    left join registry.config_rollouts r
      on r.state in ('validating', 'applying') and (r.changes ? '*' or r.changes ? watcher.name);
end
$$;
comment on function registry.watch_config(uuid, bigint)
  is 'Makes a run a watcher, and answers the configuration that holds for it and the rollout that concerns it, if one is under way. No row for a run that has ended.';

create function registry.acknowledge_config(
  instance_id uuid, epoch bigint, version bigint, answer text, detail text default null)
returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- the clock first: the row below holds its rollout, which whoever has the clock may be waiting for
  perform registry.lock_clock();
  insert into registry.config_acks (version, instance_id, answer, detail)
  select r.version, a.instance_id, acknowledge_config.answer, left(acknowledge_config.detail, 2000)
    from registry.config_rollouts r, registry.agents a
   where r.version = acknowledge_config.version
     and r.state = case when acknowledge_config.answer in ('valid', 'invalid') then 'validating' else 'applying' end
     and a.instance_id = acknowledge_config.instance_id and a.epoch = acknowledge_config.epoch
     and a.state <> 'terminated'
  on conflict do nothing;
  return registry.advance_config();
end
$$;
comment on function registry.acknowledge_config(uuid, bigint, bigint, text, text)
  is 'The answer of a watcher to a rollout: valid, invalid, applied or failed. One that comes too late, or from a run that has ended, counts for nothing.';

-- ---------------------------------------------------------------- values that agents share for a while

create sequence registry.kv_versions;
create table registry.kv (
  namespace  text        not null check (namespace ~ '^[a-z][a-z0-9-]{0,62}$'),
  key        text        not null check (length(key) between 1 and 512),
  value      jsonb       not null check (pg_column_size(value) <= 262144),
  version    bigint      not null,
  expires_at timestamptz,
  primary key (namespace, key)
) with (fillfactor = 70);
comment on table registry.kv is 'Small values that agents share; a row whose time is over counts as absent until it is swept away.';
comment on column registry.kv.namespace is 'Whose values; usually a domain.';
comment on column registry.kv.key is 'Name of the value.';
comment on column registry.kv.value is 'The value, at most 256 KiB.';
comment on column registry.kv.version is 'New with every write and never used again, so that a value that went and came back is told apart.';
comment on column registry.kv.expires_at is 'Until when it holds; null for ever.';
create index kv_expires on registry.kv (expires_at) where expires_at is not null;

create function registry.kv_get(namespace text, key text)
returns table (value jsonb, version bigint, remaining_ms bigint)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select k.value, k.version, (extract(epoch from k.expires_at - clock_timestamp()) * 1000)::bigint
    from registry.kv k
   where k.namespace = kv_get.namespace and k.key = kv_get.key
     and (k.expires_at is null or k.expires_at > clock_timestamp())
$$;
comment on function registry.kv_get(text, text) is 'The value, its version and how long it still holds; no row if there is none.';

create function registry.kv_put(
  namespace text, key text, value jsonb, ttl_ms bigint default null, expected_version bigint default null)
returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  until timestamptz := clock_timestamp() + kv_put.ttl_ms * interval '1 millisecond';
  written bigint;
begin
  if kv_put.ttl_ms <= 0 then
    raise exception 'A value holds for longer than no time' using errcode = 'invalid_parameter_value';
  end if;
  -- 0 asks for absence; a row whose time is over is absent
  insert into registry.kv as k (namespace, key, value, version, expires_at)
  select kv_put.namespace, kv_put.key, kv_put.value, nextval('registry.kv_versions'), until
   where coalesce(kv_put.expected_version, 0) = 0
  on conflict (namespace, key) do update
     set value = excluded.value, version = excluded.version, expires_at = excluded.expires_at
   where kv_put.expected_version is null or k.expires_at <= clock_timestamp()
  returning k.version into written;
  if written is null and kv_put.expected_version > 0 then
    update registry.kv as k
       set value = kv_put.value, version = nextval('registry.kv_versions'), expires_at = until
     where k.namespace = kv_put.namespace and k.key = kv_put.key and k.version = kv_put.expected_version
       and (k.expires_at is null or k.expires_at > clock_timestamp())
    returning k.version into written;
  end if;
  return written;
end
$$;
comment on function registry.kv_put(text, text, jsonb, bigint, bigint)
  is 'Writes a value and answers its new version. With expected_version only over that version, 0 meaning that there must be none; null if it is another.';

create function registry.kv_delete(namespace text, key text, expected_version bigint default null) returns boolean
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  with gone as (
    delete from registry.kv k
     where k.namespace = kv_delete.namespace and k.key = kv_delete.key
       and k.version = coalesce(kv_delete.expected_version, k.version)
    returning k.expires_at is null or k.expires_at > clock_timestamp() as held
  )
  select coalesce(bool_or(held), false) from gone
$$;
comment on function registry.kv_delete(text, text, bigint) is 'Removes a value, with expected_version only that one; false if there was none.';

create function registry.kv_sweep(max_rows integer default 1000) returns integer
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  with gone as (
    delete from registry.kv k
     where (k.namespace, k.key) in (
       select e.namespace, e.key from registry.kv e where e.expires_at <= (select clock_timestamp())
        order by e.expires_at limit kv_sweep.max_rows for update skip locked)
    returning 1
  )
  select count(*)::integer from gone
$$;
comment on function registry.kv_sweep(integer) is 'Removes rows whose time is over; answers how many.';

-- ---------------------------------------------------------------- who may do what

revoke all on registry.config, registry.config_rollouts, registry.config_watchers, registry.config_acks, registry.kv
  from public, anon, authenticated;
revoke all on sequence registry.kv_versions from public, anon, authenticated;
revoke execute on all functions in schema registry from public, anon, authenticated;
grant select on registry.config, registry.config_rollouts, registry.config_watchers, registry.config_acks to service_role;
grant execute on function
  registry.propose_config(jsonb, text, text, bigint, integer, integer), registry.advance_config(),
  registry.roll_back_config(bigint, text, text), registry.watch_config(uuid, bigint),
  registry.acknowledge_config(uuid, bigint, bigint, text, text), registry.kv_get(text, text),
  registry.kv_put(text, text, jsonb, bigint, bigint), registry.kv_delete(text, text, bigint), registry.kv_sweep(integer)
  to service_role;

alter table registry.config enable row level security;
alter table registry.config_rollouts enable row level security;
alter table registry.config_watchers enable row level security;
alter table registry.config_acks enable row level security;
alter table registry.kv enable row level security;
