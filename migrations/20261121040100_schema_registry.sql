-- What requests and replies look like: JSON Schemas by subject, in versions that count up and never change.
--
-- The database keeps the order, the content and its address, and lets nobody register between another's look and write.
-- Whether two versions are compatible is judged by whoever registers (crate registry-core); it says against which newest
-- version and under which rule it judged, and is refused when that is not so any more.
--
-- Locks: the clock first, like every change that beats tell of; then the subject.

alter table registry.clock add column schema_version bigint not null default 0;
comment on column registry.clock.schema_version is 'Counts the changes of schemas and of their rules; beats tell of it. 0: there has never been one.';

create table registry.schema_subjects (
  service       text        not null check (service ~ '^[a-z][a-z0-9-]{0,62}$'),
  role          text        not null check (role ~ '^[a-z][a-z0-9-]{0,62}$'),
  direction     text        not null check (direction in ('request', 'reply')),
  compatibility text        not null check (compatibility in (
                  'none', 'backward', 'forward', 'full',
                  'backward_transitive', 'forward_transitive', 'full_transitive')),
  newest        integer     not null default 0 check (newest >= 0),
  created_at    timestamptz not null default clock_timestamp(),
  changed_at    timestamptz not null default clock_timestamp(),
  primary key (service, role, direction)
);
comment on table registry.schema_subjects is 'What has a schema: one direction of a route, whatever its shard.';
comment on column registry.schema_subjects.service is 'First part of the route.';
comment on column registry.schema_subjects.role is 'Second part of the route.';
comment on column registry.schema_subjects.direction is 'request (payloads) or reply (results).';
comment on column registry.schema_subjects.compatibility is 'What the next version must keep; _transitive: towards every version, not only the newest.';
comment on column registry.schema_subjects.newest is 'Newest version.';
comment on column registry.schema_subjects.created_at is 'When its first version was registered.';
comment on column registry.schema_subjects.changed_at is 'When a version was added or the rule was changed last.';

create table registry.schema_documents (
  digest   bytea primary key check (octet_length(digest) = 32),
  document jsonb not null check (jsonb_typeof(document) = 'object' and pg_column_size(document) <= 262144),
  check (digest = sha256(convert_to(document::text, 'UTF8')))
);
comment on table registry.schema_documents is 'Each schema once, under the address that its content gives it.';
comment on column registry.schema_documents.digest is 'SHA-256 of the document as jsonb writes it: keys ordered, no spaces of its own.';
comment on column registry.schema_documents.document is 'A JSON Schema of draft 2020-12.';

create table registry.schema_versions (
  service    text        not null,
  role       text        not null,
  direction  text        not null,
  version    integer     not null check (version > 0),
  digest     bytea       not null references registry.schema_documents (digest),
  author     text        not null check (length(author) between 1 and 200),
  note       text        check (length(note) <= 2000),
  created_at timestamptz not null default clock_timestamp(),
  primary key (service, role, direction, version),
  foreign key (service, role, direction) references registry.schema_subjects (service, role, direction)
);
comment on table registry.schema_versions is 'The versions of each subject, 1, 2, 3 and so on.';
comment on column registry.schema_versions.service is 'First part of the route.';
comment on column registry.schema_versions.role is 'Second part of the route.';
comment on column registry.schema_versions.direction is 'request or reply.';
comment on column registry.schema_versions.version is 'Number within the subject.';
comment on column registry.schema_versions.digest is 'The schema.';
comment on column registry.schema_versions.author is 'Who registered it.';
comment on column registry.schema_versions.note is 'What it is for.';
comment on column registry.schema_versions.created_at is 'When it was registered.';

create function registry.refuse_schema_change() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception '%.% is never changed: register another version', tg_table_schema, tg_table_name
    using errcode = 'object_not_in_prerequisite_state';
end
$$;
comment on function registry.refuse_schema_change() is 'Keeps schemas as they were registered.';
create trigger schema_documents_never_change before update or delete or truncate on registry.schema_documents
  for each statement execute function registry.refuse_schema_change();
create trigger schema_versions_never_change before update or delete or truncate on registry.schema_versions
  for each statement execute function registry.refuse_schema_change();

create function registry.schema_tell(subject registry.schema_subjects, kind text, author text) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  told bigint;
begin
  update registry.clock as c set schema_version = c.schema_version + 1 returning c.schema_version into told;
  insert into public.bus_events (kind, tenant, actor, detail)
  values (kind, '-', author, jsonb_build_object(
            'subject', concat_ws('/', subject.service, subject.role, subject.direction),
            'version', subject.newest, 'compatibility', subject.compatibility));
  perform pg_notify('registry_schemas', told::text);
  return told;
end
$$;
comment on function registry.schema_tell(registry.schema_subjects, text, text)
  is 'Tells of a change of schemas: to beats, listeners of registry_schemas and the audit; the caller holds the clock.';

create function registry.register_schema(
  service text, role text, direction text, document jsonb, author text, expected_newest integer,
  expected_compatibility text, note text default null)
returns table (outcome text, version integer, digest bytea, schema_version bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  subject registry.schema_subjects;
  address bytea := sha256(convert_to(register_schema.document::text, 'UTF8'));
begin
  perform registry.lock_clock();
  select s.* into subject from registry.schema_subjects s
   where (s.service, s.role, s.direction) = (register_schema.service, register_schema.role, register_schema.direction)
     for update;
  if not found and register_schema.expected_newest = 0 then
    insert into registry.schema_subjects as s (service, role, direction, compatibility)
    values (register_schema.service, register_schema.role, register_schema.direction,
            register_schema.expected_compatibility)
    returning s.* into subject;
  end if;
  if (subject.newest, subject.compatibility)
     is distinct from (register_schema.expected_newest, register_schema.expected_compatibility) then
    return query select 'changed', coalesce(subject.newest, 0), null::bytea, c.schema_version from registry.clock c;
    return;
  end if;
  if exists (select from registry.schema_versions v
              where (v.service, v.role, v.direction, v.version)
                  = (subject.service, subject.role, subject.direction, subject.newest)
                and v.digest = address) then
    return query select 'known', subject.newest, address, c.schema_version from registry.clock c;
    return;
  end if;
  insert into registry.schema_documents (digest, document) values (address, register_schema.document)
  on conflict do nothing;
  update registry.schema_subjects as s
     set newest = s.newest + 1, changed_at = clock_timestamp()
   where (s.service, s.role, s.direction) = (subject.service, subject.role, subject.direction)
     and s.newest = subject.newest
  returning s.* into subject;
  insert into registry.schema_versions (service, role, direction, version, digest, author, note)
  values (subject.service, subject.role, subject.direction, subject.newest, address, register_schema.author,
          register_schema.note);
  return query select 'registered', subject.newest, address,
                      registry.schema_tell(subject, 'schema_registered', register_schema.author);
end
$$;
comment on function registry.register_schema(text, text, text, jsonb, text, integer, text, text)
  is 'Adds a version to a subject, which is made if it is not there. Outcome: registered; known (it is the newest already, nothing changed); changed (the newest version or the rule is not the expected one: judge again).';

create function registry.set_schema_compatibility(
  service text, role text, direction text, compatibility text, author text)
returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  subject registry.schema_subjects;
begin
  perform registry.lock_clock();
  update registry.schema_subjects as s
     set compatibility = set_schema_compatibility.compatibility, changed_at = clock_timestamp()
   where (s.service, s.role, s.direction)
       = (set_schema_compatibility.service, set_schema_compatibility.role, set_schema_compatibility.direction)
  returning s.* into subject;
  if not found then
    return false;
  end if;
  perform registry.schema_tell(subject, 'schema_rule_changed', set_schema_compatibility.author);
  return true;
end
$$;
comment on function registry.set_schema_compatibility(text, text, text, text, text)
  is 'Changes what the next version must keep; false if there is no such subject.';

-- ---------------------------------------------------------------- beats tell of it

drop function registry.beat(uuid, bigint, bigint, boolean, integer, jsonb);
create function registry.beat(
  instance_id uuid, epoch bigint, seq bigint, ready boolean default true, in_flight integer default 0,
  stats jsonb default '{}')
returns table (
  outcome text, state text, end_reason text, registry_version bigint, config_version bigint, database_time timestamptz,
  schema_version bigint)
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
         after.state, after.end_reason, c.version, c.config_version, clock_timestamp(), c.schema_version
    from registry.clock c;
end
$$;
comment on function registry.beat(uuid, bigint, bigint, boolean, integer, jsonb)
  is 'Sign of life. Outcome: alive; ended (superseded, dead or deregistered: stop claiming, register as a new instance); unknown (also for another epoch). An old seq changes nothing. Tells of the newest versions of registry, configuration and schemas.';

-- ---------------------------------------------------------------- agents that connect through their parent

create function registry.key_opens(name text, key_proof bytea) returns boolean
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select exists (select from registry.agent_keys k
                  where k.name = key_opens.name and k.revoked_at is null
                    and k.proof_hash = sha256(key_opens.key_proof))
$$;
comment on function registry.key_opens(text, bytea)
  is 'Whether this is the proof of a living key of this name. Unlike at registration, a name without keys is opened by none.';

-- ---------------------------------------------------------------- who may do what

revoke all on registry.schema_subjects, registry.schema_documents, registry.schema_versions
  from public, anon, authenticated;
revoke execute on all functions in schema registry from public, anon, authenticated;
grant select on registry.schema_subjects, registry.schema_documents, registry.schema_versions to service_role;
grant execute on function
  registry.register_schema(text, text, text, jsonb, text, integer, text, text),
  registry.set_schema_compatibility(text, text, text, text, text),
  registry.beat(uuid, bigint, bigint, boolean, integer, jsonb), registry.key_opens(text, bytea)
  to service_role;

alter table registry.schema_subjects enable row level security;
alter table registry.schema_documents enable row level security;
alter table registry.schema_versions enable row level security;
