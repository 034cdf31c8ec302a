-- Artifacts: large payloads by reference. Partials: what a worker has of its result while it still works on it.

-- ---------------------------------------------------------------- artifacts

create table bus.artifacts (
  digest       text        not null check (digest ~ '^[0-9a-f]{64}$'),
  tenant       text        not null check (length(tenant) between 1 and 128),
  media_type   text        not null
               constraint artifact_media_type check (length(media_type) <= 127 and media_type ~ '^[!-.0-~]+/[ !-~]+$'),
  size         integer     not null check (size >= 0),
  created_at   timestamptz not null default clock_timestamp(),
  last_used_at timestamptz not null default clock_timestamp(),
  primary key (digest, tenant)
);
comment on table bus.artifacts is 'Large payloads by reference: what is known of each. Stored once per tenant and digest, removed when unused for long.';
comment on column bus.artifacts.digest is 'SHA-256 of the bytes in lower-case hex: the name of the artifact.';
comment on column bus.artifacts.tenant is 'Whose it is; the same bytes of another tenant are another artifact.';
comment on column bus.artifacts.media_type is 'Media type that the first put gave; what refers to the artifact can rely on it.';
comment on column bus.artifacts.size is 'Length in bytes.';
comment on column bus.artifacts.created_at is 'When it was first put.';
comment on column bus.artifacts.last_used_at is 'When it was last put or read, to the minute; bus.retain_artifacts goes by it.';
create index artifacts_last_used on bus.artifacts (last_used_at);

-- The bytes stand apart, so that noting a use writes a small row and checks no digest again.
create table bus.artifact_contents (
  digest  text  not null,
  tenant  text  not null,
  content bytea not null
          constraint artifact_at_most_16_mib check (octet_length(content) <= 16777216),
  primary key (digest, tenant),
  foreign key (digest, tenant) references bus.artifacts (digest, tenant) on delete cascade,
  -- whoever writes here, and however: the bytes are those of the name
  constraint artifact_content_has_its_digest check (digest = encode(sha256(content), 'hex'))
);
-- Large payloads are mostly archives, images and models, compressed already: trying again costs time and gains nothing.
alter table bus.artifact_contents alter content set storage external;
comment on table bus.artifact_contents is 'The bytes of bus.artifacts.';
comment on column bus.artifact_contents.digest is 'SHA-256 of the bytes in lower-case hex, checked by the database.';
comment on column bus.artifact_contents.tenant is 'Whose they are.';
comment on column bus.artifact_contents.content is 'The bytes, at most 16 MiB, out of line and not compressed.';

create function bus.put_artifact(tenant text, media_type text, content bytea, expected_digest text default null)
returns table (digest text, known_media_type text, size integer, created boolean)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  computed constant text := encode(sha256(put_artifact.content), 'hex');
begin
  if expected_digest <> computed then
    raise exception 'The bytes have the digest %, not %', computed, left(expected_digest, 64)
      using errcode = 'invalid_parameter_value';
  end if;
  -- until it stands: retention may remove a known one between the two looks
  loop
    insert into bus.artifacts (digest, tenant, media_type, size)
    values (computed, put_artifact.tenant, put_artifact.media_type, octet_length(put_artifact.content))
    on conflict do nothing;
    if found then
      insert into bus.artifact_contents (digest, tenant, content)
      values (computed, put_artifact.tenant, put_artifact.content);
      return query select computed, put_artifact.media_type, octet_length(put_artifact.content), true;
      return;
    end if;
    return query
    update bus.artifacts as a set last_used_at = clock_timestamp()
     where a.digest = computed and a.tenant = put_artifact.tenant
    returning a.digest, a.media_type, a.size, false;
    exit when found;
  end loop;
end
$$;
comment on function bus.put_artifact(text, text, bytea, text)
  is 'Stores bytes under their SHA-256, once per tenant; answers the digest and the media type of the first put. It is read at /artifacts/<digest>.';

create function bus.artifact(tenant text, digest text)
returns table (media_type text, size integer, created_at timestamptz)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  update bus.artifacts as a set last_used_at = clock_timestamp()
   where a.digest = artifact.digest and a.tenant = artifact.tenant
     -- many readers write once
     and a.last_used_at < clock_timestamp() - interval '1 minute';
  return query
  select a.media_type, a.size, a.created_at
    from bus.artifacts a where a.digest = artifact.digest and a.tenant = artifact.tenant;
end
$$;
comment on function bus.artifact(text, text) is 'What is known of an artifact of this tenant, no row if it has none; counts as a use.';

create function bus.get_artifact(tenant text, digest text)
returns table (media_type text, size integer, created_at timestamptz, content bytea)
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select a.media_type, a.size, a.created_at, c.content
    from bus.artifact(get_artifact.tenant, get_artifact.digest) a
    join bus.artifact_contents c on c.digest = get_artifact.digest and c.tenant = get_artifact.tenant
$$;
comment on function bus.get_artifact(text, text) is 'An artifact of this tenant with its bytes, no row if it has none; counts as a use.';

create function bus.artifact_tenant(digest text) returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select a.tenant from bus.artifacts a where a.digest = artifact_tenant.digest order by a.created_at, a.tenant limit 1
$$;
comment on function bus.artifact_tenant(text)
  is 'The tenant that put these bytes first, null if none did; for callers who may act for every tenant.';

create function bus.retain_artifacts(keep interval, max_rows integer default 100) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  removed integer;
begin
  with old as (
    select a.digest, a.tenant from bus.artifacts a
     where a.last_used_at < (select clock_timestamp() - keep)
     order by a.last_used_at limit max_rows for update skip locked)
  delete from bus.artifacts a using old where a.digest = old.digest and a.tenant = old.tenant;
  get diagnostics removed = row_count;
  return removed;
end
$$;
comment on function bus.retain_artifacts(interval, integer)
  is 'Removes artifacts that nobody put or read for the interval; answers how many went. Keep them longer than the messages that refer to them.';

-- ---------------------------------------------------------------- partial results

create table bus.partials (
  message_id  uuid        not null,
  attempt     smallint    not null,
  seq         integer     not null check (seq > 0) constraint partials_at_most_100000 check (seq <= 100000),
  at          timestamptz not null default clock_timestamp(),
  content     jsonb       not null constraint partial_at_most_256_kib check (pg_column_size(content) <= 262144),
  total_bytes bigint      not null constraint partials_at_most_8_mib check (total_bytes <= 8388608),
  primary key (message_id, attempt, seq)
);
comment on table bus.partials is 'What a worker has of its result while it still works on it, in order; a new attempt starts anew.';
comment on column bus.partials.message_id is 'The message that is worked on.';
comment on column bus.partials.attempt is 'The attempt that it belongs to; what earlier ones had is void.';
comment on column bus.partials.seq is 'Place within the attempt, from 1.';
comment on column bus.partials.at is 'When it was stored, by the database clock.';
comment on column bus.partials.content is 'The part, any JSON value of at most 256 KiB.';
comment on column bus.partials.total_bytes is 'Bytes of the attempt up to this one, which limits them without a counter elsewhere.';
create index partials_at on bus.partials (at);

create function bus.emit(
  id uuid, holder text, attempt smallint, first_seq integer, contents jsonb[], lease_ms bigint default 30000)
returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  last_attempt smallint;
  last_seq integer;
  bytes bigint;
begin
  if (emit.first_seq >= 1) is not true then
    raise exception 'Partials are numbered from 1' using errcode = 'invalid_parameter_value';
  end if;
  -- the fence is that of a heartbeat, and it keeps the claim in its state until this commits
  if not exists (select from bus.extend(array[emit.id], array[emit.attempt], emit.holder,
                                       coalesce(emit.lease_ms, 30000))) then
    return null;
  end if;
  select p.attempt, p.seq, p.total_bytes into last_attempt, last_seq, bytes
    from bus.partials p where p.message_id = emit.id order by p.attempt desc, p.seq desc limit 1;
  if last_attempt < emit.attempt then
    delete from bus.partials p where p.message_id = emit.id and p.attempt < emit.attempt;
    last_seq := null;
    bytes := null;
  end if;
  -- a reader goes by the last number it has, so one that came later would never be seen
  if emit.first_seq > last_seq + 1 then
    raise exception 'Partial % would leave a gap after %', emit.first_seq, last_seq
      using errcode = 'invalid_parameter_value';
  end if;
  insert into bus.partials (message_id, attempt, seq, content, total_bytes)
  select emit.id, emit.attempt, emit.first_seq + e.place - 1, e.content,
         coalesce(bytes, 0) + sum(pg_column_size(e.content)) over (order by e.place)
    from unnest(emit.contents) with ordinality as e (content, place)
   where emit.first_seq + e.place - 1 > coalesce(last_seq, 0)
   order by e.place
  on conflict do nothing;
  if found then
    perform bus.announce_tasks(array(select m.root_id from public.agent_messages m where m.id = emit.id));
  end if;
  return greatest(last_seq, emit.first_seq + coalesce(cardinality(emit.contents), 0) - 1);
end
$$;
comment on function bus.emit(uuid, text, smallint, integer, jsonb[], bigint)
  is 'Stores parts of the result of a message in hand, and renews its lease by lease_ms; answers the last number stored, null if the claim is no longer the caller''s. Sent again under the same numbers, it changes nothing.';

create function bus.partials_after(ids uuid[], attempts smallint[], seqs integer[], max_rows integer default 1000)
returns table (message_id uuid, attempt smallint, seq integer, at timestamptz, content jsonb)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select p.message_id, p.attempt, p.seq, p.at, p.content
    from unnest(partials_after.ids, partials_after.attempts, partials_after.seqs)
         with ordinality as given (id, attempt, seq, place)
   cross join lateral (
     select q.message_id, q.attempt, q.seq, q.at, q.content from bus.partials q
      where q.message_id = given.id and (q.attempt, q.seq) > (given.attempt, given.seq)
      order by q.attempt, q.seq limit partials_after.max_rows) p
   order by given.place, p.attempt, p.seq limit partials_after.max_rows
$$;
comment on function bus.partials_after(uuid[], smallint[], integer[], integer)
  is 'Parts of these messages after the given attempt and number of each, in order; 0 and 0 stand for the start.';

create function bus.retain_partials(keep interval, max_rows integer default 5000) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  removed integer;
begin
  with old as (
    select p.message_id, p.attempt, p.seq from bus.partials p
     where p.at < (select clock_timestamp() - keep)
     order by p.at limit max_rows for update skip locked)
  delete from bus.partials p using old
   where p.message_id = old.message_id and p.attempt = old.attempt and p.seq = old.seq;
  get diagnostics removed = row_count;
  return removed;
end
$$;
comment on function bus.retain_partials(interval, integer)
  is 'Removes partials older than the interval; answers how many went. The result of the message stands without them.';

-- ---------------------------------------------------------------- who may do what

revoke all on bus.artifacts, bus.artifact_contents, bus.partials from public, anon, authenticated;
revoke execute on function
  bus.put_artifact(text, text, bytea, text), bus.artifact(text, text), bus.get_artifact(text, text),
  bus.artifact_tenant(text), bus.retain_artifacts(interval, integer),
  bus.emit(uuid, text, smallint, integer, jsonb[], bigint),
  bus.partials_after(uuid[], smallint[], integer[], integer), bus.retain_partials(interval, integer)
  from public, anon, authenticated;
grant execute on function
  bus.put_artifact(text, text, bytea, text), bus.artifact(text, text), bus.get_artifact(text, text),
  bus.artifact_tenant(text), bus.retain_artifacts(interval, integer),
  bus.emit(uuid, text, smallint, integer, jsonb[], bigint),
  bus.partials_after(uuid[], smallint[], integer[], integer), bus.retain_partials(interval, integer)
  to service_role;

alter table bus.artifacts enable row level security;
alter table bus.artifact_contents enable row level security;
alter table bus.partials enable row level security;
