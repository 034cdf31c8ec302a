-- The layout for speed: messages stand in day partitions and are never moved; what may be claimed stands in chunks beside
-- them; one lease row covers all that was claimed at once. docs/decisions/2026-11-21-chunked-ready-rows.md has the figures.
--
-- Where an unfinished message is (moved in the transaction that changes it):
--   bus.delayed   not before a time
--   bus.ready     claimable, up to 100 messages a row
--   bus.claims    leased to a holder, one row for each claim
--   bus.groups    in line behind an earlier message of its group; the head is also in one of the three above
--   bus.joins     waits for other messages to end
-- The message's own row judges every change: status and attempts are compared and set under its lock. Locks are taken in
-- the order messages (by id), claims, groups; chunks, and claims of others, are skipped while they are locked.
--
-- Functions that read messages are planned once for any parameters, by index, without just-in-time compilation: planning
-- over all parts at each call costs more than the call.

-- ---------------------------------------------------------------- ids and lanes

create or replace function bus.uuid_v7() returns uuid
language sql volatile parallel safe
set search_path = pg_catalog, pg_temp
as $$
  -- 48 bits of milliseconds, the version and 12 random bits; then the variant and 62 random bits of a version 4
  select encode(
    int8send((extract(epoch from clock_timestamp()) * 1000)::bigint << 16 | 28672 | (random() * 4095)::bigint)
    || substring(uuid_send(gen_random_uuid()) from 9), 'hex')::uuid
$$;

create function bus.first_id(at timestamptz) returns uuid
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select (lpad(to_hex((extract(epoch from first_id.at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;
comment on function bus.first_id(timestamptz) is 'No time-ordered id made at or after this time is smaller.';

create function bus.lane(route text, target_instance text default null) returns bigint
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$ select hashtextextended(lane.route || coalesce('>' || lane.target_instance, ''), 0) $$;
comment on function bus.lane(text, text) is 'Where messages of a route (service/role/shard) stand, or those for one instance of it.';

-- ---------------------------------------------------------------- the messages

alter table public.agent_messages rename to one_heap;
alter table public.one_heap set schema bus;
do $$
declare
  name text;
begin
  for name in select t.tgname from pg_trigger t where t.tgrelid = 'bus.one_heap'::regclass and not t.tgisinternal loop
    execute format('drop trigger %I on bus.one_heap', name);
  end loop;
  -- the primary key is needed to read it once more
  for name in select i.indexrelid::regclass from pg_index i where i.indrelid = 'bus.one_heap'::regclass and not i.indisprimary loop
    execute 'drop index ' || name;
  end loop;
  alter table bus.one_heap rename constraint agent_messages_pkey to one_heap_pkey;
  if exists (select from pg_publication_tables where pubname = 'supabase_realtime' and schemaname = 'bus' and tablename = 'one_heap') then
    alter publication supabase_realtime drop table bus.one_heap;
  end if;
end
$$;

create table public.agent_messages (
  like bus.one_heap including defaults including constraints including comments including storage,
  primary key (id)
) partition by range (id);
alter table public.agent_messages drop constraint agent_messages_check1;
-- names are checked once for each chunk of messages instead of at every change of a row, where they cost more than all
-- other checks together: by bus.ready, and by bus.after_insert for what is not ready at once
alter table public.agent_messages
  drop constraint agent_messages_service_check, drop constraint agent_messages_role_check,
  drop constraint agent_messages_tenant_check;
-- with another name a claim of the old layout that was under way fails, instead of taking messages without a lease row
alter table public.agent_messages
  drop column blocked,
  add column awaiting boolean not null default false;
alter table public.agent_messages
  add column limit_key text check (length(limit_key) between 1 and 200);
comment on table public.agent_messages is 'Every message between agents. Insert freely; change only through functions of schema bus.';
comment on column public.agent_messages.attempts is 'How often it was claimed; half of the fence. Of a claim of more than 64 messages it tells only at the first heartbeat.';
comment on column public.agent_messages.status is 'queued, claimed, done, failed (dead letter) or cancelled; claimed shows at once, or at the first heartbeat for a claim of more than 64 messages.';
comment on column public.agent_messages.lease_until is 'Until when the holder owned the message when this was written; bus.claims has the word.';
comment on column public.agent_messages.awaiting is 'Waits for other messages to end (bus.joins); kept by the database.';
comment on column public.agent_messages.limit_key is 'What limits per key count by, within the tenant.';

-- no index holds a column that changes, so that every change of a row stays within its page (a heap-only tuple); the root
-- of a task is found by its id
create index agent_messages_task on public.agent_messages (root_id) where root_id <> id;

create table bus.messages_other partition of public.agent_messages default
  with (fillfactor = 45, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);

create function bus.ensure_partitions(days_ahead integer default 3) returns integer
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
    execute format(
      'create table bus.%I partition of public.agent_messages for values from (%L) to (%L)
         with (fillfactor = 45, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0)', part,
      bus.first_id(day::timestamp at time zone 'UTC'), bus.first_id((day + 1)::timestamp at time zone 'UTC'));
    execute format('alter table bus.%I enable row level security', part);
    execute format('revoke all on bus.%I from public, anon, authenticated, service_role', part);
    execute format('comment on table bus.%I is %L', part, 'Messages of one day by their ids; dropped as a whole by bus.retain.');
    made := made + 1;
  end loop;
  return made;
end
$$;
comment on function bus.ensure_partitions(integer) is 'Makes the parts for yesterday to days_ahead that are missing; answers how many. Without a part messages go to bus.messages_other.';
select bus.ensure_partitions();

-- ---------------------------------------------------------------- beside the messages

create table bus.ready (
  lane      bigint   not null,
  share     integer  not null,
  due       bigint   not null,
  chunk     bigint   generated always as identity,
  attempt   smallint not null,
  route     text     not null,
  tenant    text     not null,
  limit_key text,
  ids       uuid[]   not null check (cardinality(ids) > 0),
  primary key (lane, share, due, chunk),
  constraint service_role_and_tenant_are_names 
    check (route ~ '^[a-z][a-z0-9-]{0,62}/[a-z][a-z0-9-]{0,62}/[0-9]+$'
           and tenant ~ '^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}$')
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
        autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off, toast_tuple_target = 4096);
alter table bus.ready alter ids set storage external;
comment on table bus.ready is 'What may be claimed, in chunks of at most 100 messages of one tenant.';
comment on column bus.ready.lane is 'bus.lane of the route, or of the route and the instance that alone may claim it.';
comment on column bus.ready.share is 'Hash of the tenant (and limit key, where keys are limited); claims go round these.';
comment on column bus.ready.due is 'Microseconds since 1970 of sending plus what the priority adds: waiting makes up for priority.';
comment on column bus.ready.chunk is 'Tells chunks with equal keys apart.';
comment on column bus.ready.attempt is 'Number of the next claim of these messages.';
comment on column bus.ready.route is 'service/role/shard.';
comment on column bus.ready.tenant is 'Whose messages these are.';
comment on column bus.ready.limit_key is 'Their limit key.';
comment on column bus.ready.ids is 'The messages, in the order of sending.';

create table bus.delayed (
  lane bigint      not null,
  due  timestamptz not null,
  id   uuid        not null,
  primary key (lane, due, id)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0,
        vacuum_truncate = off);
comment on table bus.delayed is 'What may not be claimed yet.';
comment on column bus.delayed.lane is 'As in bus.ready.';
comment on column bus.delayed.due is 'When it may be claimed.';
comment on column bus.delayed.id is 'The message.';

create table bus.expiring (
  at timestamptz not null,
  id uuid        not null,
  primary key (at, id)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0,
        vacuum_truncate = off);
comment on table bus.expiring is 'Times to live, looked at when they pass.';
comment on column bus.expiring.at is 'The message''s expires_at.';
comment on column bus.expiring.id is 'The message, perhaps ended long ago.';

create table bus.claims (
  holder      text        not null,
  claim       bigint      generated always as identity,
  lane        bigint      not null,
  route       text        not null,
  tenant      text,
  limit_key   text,
  limited     boolean     not null default false,
  claimed_at  timestamptz not null default clock_timestamp(),
  lease_until timestamptz not null,
  remaining   integer     not null,
  version     integer     not null default 0,
  ids         uuid[]      not null,
  attempts    smallint[]  not null,
  primary key (holder, claim),
  constraint an_attempt_for_each_id check (cardinality(ids) = cardinality(attempts))
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500,
        autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off, toast_tuple_target = 4096);
alter table bus.claims alter ids set storage external, alter attempts set storage external;
create index bus_claims_lease on bus.claims (lease_until);
create index bus_claims_limited on bus.claims (lane, tenant, limit_key) where limited;
comment on table bus.claims is 'Leases: who holds which messages until when, one row for each claim.';
comment on column bus.claims.holder is 'Who claimed; half of the fence.';
comment on column bus.claims.claim is 'Tells the claims of a holder apart.';
comment on column bus.claims.lane is 'bus.lane of the route.';
comment on column bus.claims.route is 'service/role/shard.';
comment on column bus.claims.tenant is 'Whose messages these are, where limits count by it.';
comment on column bus.claims.limit_key is 'Their limit key, where limits count by it.';
comment on column bus.claims.limited is 'Whether limits of the route count this row.';
comment on column bus.claims.claimed_at is 'When, by the database clock.';
comment on column bus.claims.lease_until is 'The holder owns what has not ended until then, unless it extends.';
comment on column bus.claims.remaining is 'At least as many are unfinished; the row goes when it reaches 0.';
comment on column bus.claims.version is 'Grows when the ids change; an end that was counted by other ids is not counted off.';
comment on column bus.claims.ids is 'The messages, ended ones included.';
comment on column bus.claims.attempts is 'Number of the claim of each message; the other half of the fence.';

create table bus.groups (
  lane      bigint not null,
  tenant    text   not null,
  group_key text   not null,
  position  bigint generated always as identity,
  id        uuid   not null,
  primary key (lane, tenant, group_key, position)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
create index bus_groups_id on bus.groups (id);
comment on table bus.groups is 'Unfinished messages with a group key in line; only the first of a group may be claimed.';
comment on column bus.groups.lane is 'bus.lane of the route, whatever the instance.';
comment on column bus.groups.tenant is 'Groups are a tenant''s own.';
comment on column bus.groups.group_key is 'The group.';
comment on column bus.groups.position is 'Given under the lock of the group until the commit, so that it is the order of the commits.';
comment on column bus.groups.id is 'The message.';

create table bus.joins (
  id      uuid    primary key,
  missing integer not null check (missing >= 0)
);
comment on table bus.joins is 'Messages that wait for others to end.';
comment on column bus.joins.id is 'The waiting message.';
comment on column bus.joins.missing is 'How many have not ended.';
create table bus.awaited (
  on_id uuid not null,
  id    uuid not null references bus.joins on delete cascade,
  primary key (on_id, id)
);
create index bus_awaited_id on bus.awaited (id);
comment on table bus.awaited is 'For what the messages of bus.joins wait.';
comment on column bus.awaited.on_id is 'The message that has not ended.';
comment on column bus.awaited.id is 'The message that waits for it.';

create table bus.keys (
  tenant          text        not null,
  idempotency_key text        not null,
  id              uuid        not null,
  until           timestamptz not null,
  primary key (tenant, idempotency_key)
);
create index bus_keys_until on bus.keys (until);
comment on table bus.keys is 'Idempotency keys in use.';
comment on column bus.keys.tenant is 'Keys are a tenant''s own.';
comment on column bus.keys.idempotency_key is 'The key.';
comment on column bus.keys.id is 'The message that was sent under it.';
comment on column bus.keys.until is 'From then on the key may be used anew.';

create table bus.dead_letters (
  id        uuid        primary key,
  failed_at timestamptz not null,
  route     text        not null,
  tenant    text        not null
);
create index bus_dead_letters_time on bus.dead_letters (failed_at desc);
comment on table bus.dead_letters is 'Which messages are failed, newest first.';
comment on column bus.dead_letters.id is 'The message.';
comment on column bus.dead_letters.failed_at is 'Its done_at.';
comment on column bus.dead_letters.route is 'service/role/shard.';
comment on column bus.dead_letters.tenant is 'Whose it is.';

create table bus.attempts (
  id         uuid        not null,
  attempt    smallint    not null,
  holder     text        not null,
  started_at timestamptz,
  ended_at   timestamptz not null default clock_timestamp(),
  outcome    text        not null check (outcome in ('failed', 'lease_expired', 'holder_gone', 'released', 'cancelled')),
  error      text,
  primary key (id, attempt)
);
create index bus_attempts_ended on bus.attempts (ended_at);
comment on table bus.attempts is 'History of attempts that did not complete; the one that did stands in the message.';
comment on column bus.attempts.id is 'The message.';
comment on column bus.attempts.attempt is 'Number of the claim.';
comment on column bus.attempts.holder is 'Who held it.';
comment on column bus.attempts.started_at is 'When it was claimed.';
comment on column bus.attempts.ended_at is 'When that claim ended.';
comment on column bus.attempts.outcome is 'How it ended.';
comment on column bus.attempts.error is 'Why, safe to show.';

create table bus.routes (
  lane      bigint  primary key,
  service   text    not null,
  role      text    not null,
  shard     integer not null default 0,
  paused    boolean not null default false,
  draining  boolean not null default false,
  aging_ms  integer not null default 10000 check (aging_ms between 0 and 86400000),
  keyed     boolean not null default false,
  changed_at timestamptz not null default clock_timestamp(),
  changed_by text,
  unique (service, role, shard),
  constraint lane_of_the_route check (lane = hashtextextended(service || '/' || role || '/' || shard, 0))
);
comment on table bus.routes is 'Settings of routes that differ from the defaults.';
comment on column bus.routes.lane is 'bus.lane of the route.';
comment on column bus.routes.service is 'First part of the routing key.';
comment on column bus.routes.role is 'Second part.';
comment on column bus.routes.shard is 'Third part.';
comment on column bus.routes.paused is 'Nothing is claimed.';
comment on column bus.routes.draining is 'Nothing new is accepted; what is there is worked off.';
comment on column bus.routes.aging_ms is 'How long a message waits to make up for one point of priority.';
comment on column bus.routes.keyed is 'Whether a limit of the route counts by key.';
comment on column bus.routes.changed_at is 'Last change, by the database clock.';
comment on column bus.routes.changed_by is 'Who made it.';

create table bus.limits (
  lane        bigint  not null references bus.routes on delete cascade,
  counted_by  text    not null check (counted_by in ('route', 'tenant', 'key')),
  subject     text    not null default '',
  max_running integer check (max_running >= 0),
  per_second  double precision check (per_second > 0 and per_second <= 1000000),
  burst       double precision check (burst >= 1 and burst <= 1000000),
  primary key (lane, counted_by, subject),
  constraint a_limit_limits check (max_running is not null or per_second is not null),
  constraint a_rate_has_a_burst check ((per_second is null) = (burst is null)),
  constraint a_route_has_no_subject check (counted_by <> 'route' or subject = '')
);
comment on table bus.limits is 'How many messages of a route may run at once and start in a second.';
comment on column bus.limits.lane is 'The route.';
comment on column bus.limits.counted_by is 'One count for the route, for each tenant, or for each limit key of a tenant.';
comment on column bus.limits.subject is 'The tenant or the key (tenant/key) that this is for; empty for every one that has no own row.';
comment on column bus.limits.max_running is 'Claims at once, over all processes.';
comment on column bus.limits.per_second is 'Claims a second, over all processes.';
comment on column bus.limits.burst is 'Claims that may be made up for at once after a pause (token bucket).';

create table bus.buckets (
  lane       bigint not null,
  counted_by text   not null,
  subject    text   not null,
  tokens     double precision not null,
  at         timestamptz not null,
  primary key (lane, counted_by, subject),
  foreign key (lane) references bus.routes on delete cascade
) with (fillfactor = 50, autovacuum_vacuum_threshold = 500);
comment on table bus.buckets is 'Token buckets of the rates in bus.limits.';
comment on column bus.buckets.lane is 'The route.';
comment on column bus.buckets.counted_by is 'As in bus.limits.';
comment on column bus.buckets.subject is 'The tenant, tenant/key, or nothing for the route.';
comment on column bus.buckets.tokens is 'Claims that were free at that time.';
comment on column bus.buckets.at is 'The time.';

-- ---------------------------------------------------------------- wake-ups

do $$
begin
  for slot in 0..15 loop
    execute format('create sequence bus.woken_%s minvalue 0 start 0', slot);
  end loop;
end
$$;

create function bus.wake() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  slot constant regclass := ('bus.woken_' || (new.lane & 15))::regclass;
  -- 18 bits of the lane over 45 bits of tenths of a millisecond
  lane_bits constant bigint := (new.lane & 262143) << 45;
  at constant bigint := (extract(epoch from clock_timestamp() - timestamptz '2026-01-01 00:00:00Z') * 10000)::bigint;
  last constant bigint := coalesce(pg_sequence_last_value(slot), 0);
  allowed_at bigint := case when last & ~35184372088831 = lane_bits then last & 35184372088831 else 0 end;
begin
  -- A commit with a notification waits for every other such commit. So a route notifies 400 times a second at most, ten
  -- times in a row (a leaky bucket: the time of the next regular one), remembered in a sequence, which nobody waits for;
  -- who was woken looks again for some time (adaptive polling). A time far ahead is of a clock that was set back.
  if allowed_at - at between 251 and 10000 then
    return null;
  end if;
  perform setval(slot, lane_bits | (case when allowed_at > at and allowed_at - at <= 250 then allowed_at else at end + 25));
  perform pg_notify('bus_ready', new.route);
  return null;
end
$$;
comment on function bus.wake() is 'Tells sleeping workers of a route, at the commit, that something can be claimed.';

create constraint trigger wake after insert on bus.ready
  deferrable initially deferred
  for each row execute function bus.wake();

-- ---------------------------------------------------------------- making ready

create function bus.make_ready(ids uuid[]) returns void
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
         hashtext(b.tenant || case when r.keyed then coalesce('/' || b.limit_key, '') else '' end),
         (extract(epoch from b.created_at) * 1000000)::bigint + b.priority * 1000::bigint * coalesce(r.aging_ms, 10000),
         b.attempts + 1, b.route, b.tenant, b.limit_key, b.ids
    from block b
    left join bus.routes r on r.lane = hashtextextended(b.route, 0);
end
$$;
comment on function bus.make_ready(uuid[]) is 'Puts queued messages, which must be nowhere else, among those that may be claimed.';

create function bus.promote(lane bigint, max_rows integer default 1000) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  promoted uuid[];
begin
  with due as materialized (
    select d.due, d.id from bus.delayed d
     where d.lane = promote.lane and d.due <= (select clock_timestamp())
     order by d.due, d.id limit promote.max_rows for update skip locked
  ), taken as (
    delete from bus.delayed d using due
     where d.lane = promote.lane and d.due = due.due and d.id = due.id
    returning d.id
  )
  select array_agg(t.id) into promoted from taken t;
  perform bus.make_ready(promoted) where promoted is not null;
  return coalesce(cardinality(promoted), 0);
end
$$;
comment on function bus.promote(bigint, integer) is 'Makes ready what is due of a lane; answers how many.';

-- ---------------------------------------------------------------- what every insert is held to

create or replace function bus.before_insert() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  parent record;
  first uuid;
begin
  if new.status <> 'queued' or new.attempts <> 0 or new.released <> 0
    or (new.awaiting and not exists (select from bus.joins j where j.id = new.id))
    or num_nonnulls(new.claimed_by, new.claimed_at, new.lease_until, new.done_at, new.error, new.last_error_at,
                    new.result, new.result_snippet, new.result_url) > 0 then
    raise exception 'A new message must be queued, unclaimed, without attempts and without a result'
      using errcode = 'check_violation';
  end if;
  -- by the database's clock, whatever the sender says
  new.created_at := clock_timestamp();
  if new.replay_of is not null and not exists (
    select from public.agent_messages d
     where d.id = new.replay_of and d.status = 'failed' and d.tenant = new.tenant and d.root_id = new.root_id) then
    raise exception 'Message % is no dead letter of this task', new.replay_of
      using errcode = 'foreign_key_violation';
  end if;
  if new.parent_id is not null then
    select m.root_id, m.tenant, m.expires_at, m.status into parent
      from public.agent_messages m where m.id = new.parent_id;
    if not found then
      raise exception 'Parent message % does not exist', new.parent_id
        using errcode = 'foreign_key_violation';
    end if;
    if parent.status = 'cancelled' then
      raise exception 'Parent message % was cancelled', new.parent_id using errcode = 'check_violation';
    end if;
    if parent.tenant <> new.tenant then
      raise exception 'A message of tenant % cannot have a parent of another tenant', new.tenant
        using errcode = 'check_violation';
    end if;
    new.root_id := parent.root_id;
    -- a child never outlives the deadline of the task; least() ignores nulls
    new.expires_at := least(new.expires_at, parent.expires_at);
  elsif new.root_id is not null and new.root_id <> new.id
    and not exists (select from public.agent_messages r where r.id = new.root_id and r.tenant = new.tenant) then
    raise exception 'Task % of tenant % does not exist', new.root_id, new.tenant
      using errcode = 'foreign_key_violation';
  end if;
  new.root_id := coalesce(new.root_id, new.id);
  if new.idempotency_key is not null then
    first := bus.take_key(new.tenant, new.idempotency_key, new.id, null);
    if first <> new.id then
      raise exception 'Tenant % has used the idempotency key of this message for %', new.tenant, first
        using errcode = 'unique_violation', constraint = 'agent_messages_idempotency';
    end if;
  end if;
  return new;
end
$$;

create function bus.take_key(tenant text, idempotency_key text, id uuid, window_ms bigint) returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  owner uuid;
begin
  -- waits for a concurrent sender of the same key
  insert into bus.keys as k (tenant, idempotency_key, id, until)
  values (take_key.tenant, take_key.idempotency_key, take_key.id,
          clock_timestamp() + coalesce(take_key.window_ms, 2592000000) * interval '1 millisecond')
  on conflict (tenant, idempotency_key) do update set id = excluded.id, until = excluded.until
   where k.until <= clock_timestamp()
  returning k.id into owner;
  if owner is null then
    select k.id into owner from bus.keys k
     where k.tenant = take_key.tenant and k.idempotency_key = take_key.idempotency_key;
  end if;
  return owner;
end
$$;
comment on function bus.take_key(text, text, uuid, bigint) is 'Answers which message owns an idempotency key, this one if it was free; for 30 days unless told.';

create or replace function bus.after_insert() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  batch record;
  closed text;
begin
  select count(*) as size, count(n.retry_at) > 0 as delayed, count(n.expires_at) > 0 as expiring,
         count(n.group_key) > 0 as grouped, bool_or(n.awaiting) as awaiting
    into batch from new_rows n;
  if batch.size = 0 then
    return null;
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
         hashtext(b.tenant || case when r.keyed then coalesce('/' || b.limit_key, '') else '' end),
         (extract(epoch from b.created_at) * 1000000)::bigint + b.priority * 1000::bigint * coalesce(r.aging_ms, 10000),
         1, b.route, b.tenant, b.limit_key, b.ids[first:first + 99]
    from block b
    left join bus.routes r on r.lane = hashtextextended(b.route, 0)
   cross join lateral generate_series(1, cardinality(b.ids), 100) as first;

  if (batch.delayed or batch.grouped or batch.awaiting) and exists (
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
    -- a worker that sleeps until the next one is due must hear of one that is due sooner
    perform pg_notify('bus_ready', d.route)
       from (select distinct n.service || '/' || n.role || '/' || n.shard as route from new_rows n
              where n.retry_at is not null and n.group_key is null and not n.awaiting) as d;
  end if;
  if batch.expiring then
    insert into bus.expiring (at, id) select n.expires_at, n.id from new_rows n where n.expires_at is not null;
  end if;
  if batch.grouped then
    perform bus.join_groups(array(select n.id from new_rows n where n.group_key is not null order by n.created_at, n.id));
  end if;
  if exists (select from bus.routes r where r.draining) then
    select r.service || '/' || r.role || '/' || r.shard into closed
      from bus.routes r join new_rows n on n.service = r.service and n.role = r.role and n.shard = r.shard
     where r.draining and n.parent_id is null and n.replay_of is null limit 1;
    if closed is not null then
      raise exception 'Route % is being drained and accepts nothing new', closed
        using errcode = 'object_not_in_prerequisite_state';
    end if;
  end if;
  if exists (select from bus.watchers) then
    perform bus.announce_tasks(array(select distinct n.root_id from new_rows n));
  end if;
  return null;
end
$$;
comment on function bus.after_insert() is 'Makes new messages claimable, or puts them where they wait.';

create trigger before_insert before insert on public.agent_messages
  for each row when (
    new.root_id is distinct from new.id or new.parent_id is not null or new.replay_of is not null
    or new.idempotency_key is not null or new.awaiting or new.status <> 'queued' or new.attempts <> 0 or new.released <> 0
    or num_nonnulls(new.claimed_by, new.claimed_at, new.lease_until, new.done_at, new.error, new.last_error_at,
                    new.result, new.result_snippet, new.result_url) > 0
    or new.created_at not between clock_timestamp() - interval '1 minute' and clock_timestamp())
  execute function bus.before_insert();
create trigger after_insert after insert on public.agent_messages
  referencing new table as new_rows
  for each statement execute function bus.after_insert();

-- ---------------------------------------------------------------- groups and joins

create function bus.lock_group(lane bigint, tenant text, group_key text) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select pg_advisory_xact_lock(hashtextextended(tenant || chr(10) || group_key, lane))
$$;
comment on function bus.lock_group(bigint, text, text) is 'One at a time, those who add to a group and those who end its messages.';

create function bus.place(ids uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  waiting uuid[];
begin
  with late as (
    insert into bus.delayed (lane, due, id)
    select bus.lane(m.service || '/' || m.role || '/' || m.shard, m.target_instance), m.retry_at, m.id
      from public.agent_messages m
     where m.id = any (place.ids) and m.status = 'queued' and m.retry_at > clock_timestamp()
    returning id
  )
  select array_agg(l.id) into waiting from late l;
  perform bus.make_ready(array(select i from unnest(place.ids) as i where (i = any (waiting)) is not true));
end
$$;
comment on function bus.place(uuid[]) is 'Puts queued messages, which must be nowhere else, where they may be claimed: now or when they are due.';

create function bus.join_groups(ids uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
begin
  -- several groups are locked in one order, so that two senders cannot wait for each other
  perform bus.lock_group(g.lane, g.tenant, g.group_key)
     from (select distinct hashtextextended(m.service || '/' || m.role || '/' || m.shard, 0), m.tenant, m.group_key
             from public.agent_messages m where m.id = any (join_groups.ids) order by 1, 2, 3) as g (lane, tenant, group_key);
  insert into bus.groups (lane, tenant, group_key, id)
  select hashtextextended(m.service || '/' || m.role || '/' || m.shard, 0), m.tenant, m.group_key, m.id
    from unnest(join_groups.ids) with ordinality as given (id, o)
    join public.agent_messages m on m.id = given.id
   order by given.o;
  perform bus.place(array(
    select g.id from bus.groups g
      join public.agent_messages m on m.id = g.id and not m.awaiting
     where g.id = any (join_groups.ids)
       and not exists (select from bus.groups e
                        where e.lane = g.lane and e.tenant = g.tenant and e.group_key = g.group_key
                          and e.position < g.position)));
end
$$;
comment on function bus.join_groups(uuid[]) is 'Puts messages at the end of their groups; the heads may be claimed.';

create function bus.leave_group(message uuid) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  line bus.groups;
  next uuid;
  was_head boolean;
begin
  select g.* into line from bus.groups g where g.id = message;
  if not found then
    return;
  end if;
  perform bus.lock_group(line.lane, line.tenant, line.group_key);
  was_head := not exists (select from bus.groups e
                           where e.lane = line.lane and e.tenant = line.tenant and e.group_key = line.group_key
                             and e.position < line.position);
  delete from bus.groups g where g.lane = line.lane and g.tenant = line.tenant and g.group_key = line.group_key
                             and g.position = line.position;
  if found and was_head then
    select g.id into next from bus.groups g
     where g.lane = line.lane and g.tenant = line.tenant and g.group_key = line.group_key
     order by g.position limit 1;
    perform bus.place(array[next])
      where next is not null and not (select m.awaiting from public.agent_messages m where m.id = next);
  end if;
end
$$;
comment on function bus.leave_group(uuid) is 'Takes an ended message out of its group; the next one comes forward.';

create function bus.count_down(ended uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  complete uuid[];
begin
  with gone as (
    delete from bus.awaited a where a.on_id = any (count_down.ended) returning a.id
  ), counted as (
    select g.id, count(*) as ended from gone g group by g.id order by g.id
  ), locked as materialized (
    select j.id, counted.ended from bus.joins j join counted using (id) order by j.id for update of j
  ), down as (
    update bus.joins j set missing = j.missing - locked.ended from locked where j.id = locked.id
    returning j.id, j.missing
  )
  select array_agg(d.id) into complete from down d where d.missing = 0;
  if complete is not null then
    delete from bus.joins j where j.id = any (complete);
    update public.agent_messages m set awaiting = false where m.id = any (complete) and m.status = 'queued';
    -- one that stands behind others of its group goes on waiting there; who ends those has the lock until the commit
    perform bus.lock_group(g.lane, g.tenant, g.group_key)
       from (select distinct g.lane, g.tenant, g.group_key from bus.groups g where g.id = any (complete)
              order by 1, 2, 3) as g;
    perform bus.place(array(
      select c from unnest(complete) as c
       where not exists (select from bus.groups g join bus.groups e using (lane, tenant, group_key)
                          where g.id = c and e.position < g.position)));
  end if;
end
$$;
comment on function bus.count_down(uuid[]) is 'Tells those who wait for these messages that they ended; who waits for nothing more may be claimed.';

create function bus.after_end(ids uuid[], grouped uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  one uuid;
  awaited constant boolean := exists (select from bus.awaited);
begin
  if awaited or grouped is not null then
    -- all groups that are left or joined, in the order in which senders lock them
    perform bus.lock_group(g.lane, g.tenant, g.group_key)
       from (select distinct g.lane, g.tenant, g.group_key from bus.groups g
              where g.id = any (after_end.grouped)
                 or (awaited and g.id in (select a.id from bus.awaited a where a.on_id = any (after_end.ids)))
              order by 1, 2, 3) as g;
  end if;
  if awaited then
    perform bus.count_down(after_end.ids);
  end if;
  foreach one in array coalesce(after_end.grouped, '{}') loop
    perform bus.leave_group(one);
  end loop;
end
$$;
comment on function bus.after_end(uuid[], uuid[]) is 'What the end of messages sets free.';

-- ---------------------------------------------------------------- sending

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
  unknown text;
  prepared uuid[];
  owners uuid[];
  one record;
  known constant text[] := array[
    'id', 'service', 'role', 'shard', 'tenant', 'payload', 'priority', 'max_attempts', 'delay_ms', 'ttl_ms', 'root_id',
    'parent_id', 'reply_to', 'idempotency_key', 'idempotency_ms', 'group_key', 'limit_key', 'target_instance', 'headers',
    'awaits'];
begin
  if jsonb_typeof(messages) <> 'array' then
    raise exception 'Messages must be a JSON array' using errcode = 'invalid_parameter_value';
  end if;
  select jsonb_object_keys(e.m - known) into unknown
    from jsonb_array_elements(messages) as e (m)
   where e.m - known <> '{}'
   limit 1;
  if unknown is not null then
    raise exception 'Unknown message field %', unknown using errcode = 'invalid_parameter_value';
  end if;
  prepared := array(
    select coalesce((e.m ->> 'id')::uuid, bus.uuid_v7())
      from jsonb_array_elements(messages) with ordinality as e (m, o) order by e.o);
  owners := prepared;

  -- keys in one order, so that two senders cannot wait for each other
  for one in
    select e.o, e.m ->> 'tenant' as tenant, e.m ->> 'idempotency_key' as key, (e.m ->> 'idempotency_ms')::bigint as window_ms
      from jsonb_array_elements(messages) with ordinality as e (m, o)
     where e.m ->> 'idempotency_key' is not null and e.m ->> 'tenant' is not null
     order by 2, 3, 1
  loop
    owners[one.o] := bus.take_key(one.tenant, one.key, prepared[one.o], one.window_ms);
  end loop;
  for one in
    select prepared[e.o] as id, e.m ->> 'tenant' as tenant, e.m -> 'awaits' as awaits, e.o::integer as place
      from jsonb_array_elements(messages) with ordinality as e (m, o)
     where e.m -> 'awaits' is not null and owners[e.o] = prepared[e.o]
     order by 1
  loop
    -- of the batch only what stands before it, so that no two wait for each other
    perform bus.await(one.id, one.tenant, array(
      select coalesce((select owners[p] from generate_subscripts(prepared, 1) as p where prepared[p] = a::uuid limit 1), a::uuid)
        from jsonb_array_elements_text(one.awaits) as a), owners[:one.place - 1]);
  end loop;

  insert into public.agent_messages
         (id, service, role, shard, tenant, payload, priority, max_attempts, retry_at, expires_at,
          root_id, parent_id, reply_to, idempotency_key, group_key, limit_key, target_instance, headers, awaiting)
  select prepared[e.o], e.m ->> 'service', e.m ->> 'role', coalesce((e.m ->> 'shard')::integer, 0),
         e.m ->> 'tenant', coalesce(e.m -> 'payload', '{}'),
         coalesce((e.m ->> 'priority')::smallint, 100::smallint),
         coalesce((e.m ->> 'max_attempts')::smallint, 5::smallint),
         clock_timestamp() + nullif((e.m ->> 'delay_ms')::bigint, 0) * interval '1 millisecond',
         clock_timestamp() + (e.m ->> 'ttl_ms')::bigint * interval '1 millisecond',
         coalesce((e.m ->> 'root_id')::uuid, prepared[e.o]), (e.m ->> 'parent_id')::uuid, e.m ->> 'reply_to',
         e.m ->> 'idempotency_key', e.m ->> 'group_key', e.m ->> 'limit_key', e.m ->> 'target_instance',
         coalesce(e.m -> 'headers', '{}'),
         e.m -> 'awaits' is not null and exists (select from bus.joins j where j.id = prepared[e.o])
    from jsonb_array_elements(messages) with ordinality as e (m, o)
   where owners[e.o] = prepared[e.o]
   order by e.o;

  return query select o, owners[o], owners[o] <> prepared[o] from generate_series(1, cardinality(prepared)::bigint) as o;
end
$$;
comment on function bus.enqueue_many(jsonb) is 'Sends an array of messages in one go; answers id and whether the idempotency key was known, in order.';

create function bus.await(waiting uuid, its_tenant text, on_ids uuid[], with_it uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  open uuid[];
  stranger uuid;
begin
  -- waits for ends that are under way; those that begin later find the row in bus.awaited
  perform from public.agent_messages m where m.id = any (on_ids) order by m.id for share;
  select i into stranger from unnest(on_ids) as i
   where i <> all (with_it)
     and not exists (select from public.agent_messages m where m.id = i and m.tenant = its_tenant) limit 1;
  if stranger is not null or waiting = any (on_ids) then
    raise exception 'Message % cannot be awaited: its tenant has none before this one', coalesce(stranger, waiting)
      using errcode = 'foreign_key_violation';
  end if;
  open := array(
    select distinct i from unnest(on_ids) as i
     where not exists (select from public.agent_messages m where m.id = i and m.done_at is not null));
  if cardinality(open) > 0 then
    insert into bus.joins (id, missing) values (waiting, cardinality(open));
    insert into bus.awaited (on_id, id) select i, waiting from unnest(open) as i;
  end if;
end
$$;
comment on function bus.await(uuid, text, uuid[], uuid[]) is 'Lets a message that is about to be sent wait for the ends of others, among them those sent with it.';

-- ---------------------------------------------------------------- claiming

create function bus.take_share(
  lane bigint, share integer, want integer, inout ids uuid[], inout attempts smallint[],
  of_tenant text default null, of_key text default null)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  chunk record;
  missing integer := want;
  -- most chunks are full; where they are not, the next round takes as many as the last one showed to be needed
  rows_wanted integer := greatest(1, (want + 99) / 100);
  got integer;
  seen integer;
begin
  loop
    got := 0;
    seen := 0;
    for chunk in
      select r.due, r.chunk, r.attempt, r.ids, cardinality(r.ids) as size from bus.ready r
       where r.lane = take_share.lane and r.share = take_share.share
         and (of_tenant is null or (r.tenant = of_tenant and r.limit_key is not distinct from of_key))
       order by r.due, r.chunk limit rows_wanted for update skip locked
    loop
      seen := seen + 1;
      if chunk.size <= missing then
        delete from bus.ready r
         where r.lane = take_share.lane and r.share = take_share.share and r.due = chunk.due and r.chunk = chunk.chunk;
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
    exit when missing = 0 or seen < rows_wanted;
    rows_wanted := greatest(1, ceil(missing / (got::numeric / seen))::integer);
  end loop;
end
$$;
comment on function bus.take_share(bigint, integer, integer, uuid[], smallint[], text, text)
  is 'Takes up to want ready messages of one share of a lane, oldest first, what others are taking aside.';

create function bus.shares_after(lane bigint, turn integer, most integer) returns integer[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  shares integer[] := '{}';
  next_share integer := turn;
begin
  loop
    select r.share into next_share from bus.ready r
     where r.lane = shares_after.lane and r.share > next_share order by r.share limit 1;
    if not found then
      select r.share into next_share from bus.ready r where r.lane = shares_after.lane order by r.share limit 1;
    end if;
    exit when next_share is null or next_share = any (shares) or cardinality(shares) >= most;
    shares := shares || next_share;
  end loop;
  return shares;
end
$$;
comment on function bus.shares_after(bigint, integer, integer) is 'Up to so many shares of a lane that have something ready, going round from the one after turn.';

create function bus.turn(lane bigint) returns integer
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  -- each session goes its own rounds, and begins them anywhere
  select coalesce(nullif(current_setting('bus.turn_' || (turn.lane & 9223372036854775807), true), '')::integer,
                  (random() * 4294967295 - 2147483648)::integer)
$$;
comment on function bus.turn(bigint) is 'The share of a lane that this session served last.';

create function bus.remember_turn(lane bigint, share integer) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $$ select set_config('bus.turn_' || (remember_turn.lane & 9223372036854775807), remember_turn.share::text, false) $$;
comment on function bus.remember_turn(bigint, integer) is 'Remembers the share of a lane that this session served last.';

create function bus.take(lane bigint, want integer, inout ids uuid[], inout attempts smallint[])
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  turn integer := bus.turn(take.lane);
  shares integer[];
  before integer;
  target constant integer := cardinality(ids) + want;
begin
  loop
    shares := bus.shares_after(take.lane, turn, least(want, 64));
    exit when cardinality(shares) = 0;
    before := cardinality(ids);
    for i in 1..cardinality(shares) loop
      select t.ids, t.attempts into ids, attempts
        from bus.take_share(take.lane, shares[i], ceil((target - cardinality(ids))::numeric / (cardinality(shares) - i + 1))::integer,
                            ids, attempts) as t;
      turn := shares[i];
      exit when cardinality(ids) = target;
    end loop;
    exit when cardinality(ids) = target or cardinality(ids) = before;
  end loop;
  perform bus.remember_turn(take.lane, turn);
end
$$;
comment on function bus.take(bigint, integer, uuid[], smallint[])
  is 'Takes up to want ready messages of a lane, in equal parts from its tenants, beginning after the one served last.';

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
  direct constant bigint := bus.lane(its_route, claim.instance);
  settings bus.routes;
  taken uuid[] := '{}';
  taken_attempts smallint[] := '{}';
  claims bigint[];
  moment timestamptz;
  shown integer;
begin
  if claim.holder is null or claim.holder = '' then
    raise exception 'A claim needs a holder' using errcode = 'invalid_parameter_value';
  end if;
  if (claim.max_messages between 1 and 1000) is not true then
    raise exception 'A claim takes 1 to 1000 messages' using errcode = 'invalid_parameter_value';
  end if;
  if (claim.lease_ms between 100 and 86400000) is not true then
    raise exception 'A lease lasts 100 ms to 24 h' using errcode = 'invalid_parameter_value';
  end if;
  -- a holder that the registry knows must be active; one that it does not know, such as a psql session, may claim
  if not registry.may_claim(claim.holder) then
    raise exception 'Holder % is not active in the registry', claim.holder
      using errcode = 'object_not_in_prerequisite_state';
  end if;
  select r.* into settings from bus.routes r where r.lane = its_lane;
  if settings.paused then
    return;
  end if;
  if exists (select from bus.expiring e where e.at <= (select clock_timestamp())) then
    perform bus.expire();
  end if;
  if exists (select from bus.delayed d where d.lane = its_lane and d.due <= (select clock_timestamp())) then
    perform bus.promote(its_lane);
  end if;
  if claim.instance is not null and exists (
    select from bus.delayed d where d.lane = direct and d.due <= (select clock_timestamp())) then
    perform bus.promote(direct);
  end if;

  if settings.lane is not null and exists (select from bus.limits l where l.lane = settings.lane) then
    select t.ids, t.attempts, t.claims into taken, taken_attempts, claims
      from bus.take_limited(settings, direct, claim.holder, claim.max_messages, claim.lease_ms) as t;
    if cardinality(taken) = 0 then
      return;
    end if;
  else
    -- what others are just taking is passed over; when that is all, wait for one of them and look again
    for look in 1..2 loop
      if claim.instance is not null then
        select t.ids, t.attempts into taken, taken_attempts from bus.take(direct, claim.max_messages, taken, taken_attempts) as t;
      end if;
      if cardinality(taken) < claim.max_messages then
        select t.ids, t.attempts into taken, taken_attempts
          from bus.take(its_lane, claim.max_messages - cardinality(taken), taken, taken_attempts) as t;
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
           m.created_at, (extract(epoch from clock_timestamp() - m.created_at) * 1000)::bigint,
           (extract(epoch from m.expires_at - clock_timestamp()) * 1000)::bigint
      from unnest(taken, taken_attempts) as e (id, attempt)
      join public.agent_messages m on m.id = e.id
     where m.status = 'queued' and m.attempts = e.attempt - 1
       and (m.expires_at is null or m.expires_at > clock_timestamp());
  else
    -- a row that somebody has locked, such as one who is about to send what awaits it, is not waited for
    return query
    with free as materialized (
      select m.id, e.attempt from unnest(taken, taken_attempts) as e (id, attempt)
        join public.agent_messages m on m.id = e.id
       order by m.id for update of m skip locked
    ), marked as (
      update public.agent_messages as m
         set status = 'claimed', attempts = e.attempt, claimed_by = claim.holder, claimed_at = clock_timestamp(),
             lease_until = clock_timestamp() + claim.lease_ms * interval '1 millisecond', retry_at = null
        from free e
       where m.id = e.id and m.status = 'queued' and m.attempts = e.attempt - 1
         and (m.expires_at is null or m.expires_at > moment)
      returning m.id, e.attempt, m.max_attempts, m.tenant, m.payload, m.headers, m.root_id, m.parent_id, m.reply_to,
                m.priority, m.created_at, m.expires_at
    ), handed_out as (
      select k.* from marked k
      union all
      select m.id, e.attempt, m.max_attempts, m.tenant, m.payload, m.headers, m.root_id, m.parent_id, m.reply_to,
             m.priority, m.created_at, m.expires_at
        from unnest(taken, taken_attempts) as e (id, attempt)
        join public.agent_messages m on m.id = e.id
       where not exists (select from free f where f.id = e.id) and m.status = 'queued' and m.attempts = e.attempt - 1
         and (m.expires_at is null or m.expires_at > moment)
    )
    select h.id, h.attempt, h.max_attempts, h.tenant, h.payload, h.headers, h.root_id, h.parent_id, h.reply_to, h.priority,
           h.created_at, (extract(epoch from clock_timestamp() - h.created_at) * 1000)::bigint,
           (extract(epoch from h.expires_at - clock_timestamp()) * 1000)::bigint
      from handed_out h
     -- one whose time passed in this very moment is not started; its lease ends, and then it is a dead letter
     where h.expires_at is null or h.expires_at > clock_timestamp();
  end if;
  get diagnostics shown = row_count;
  if shown < cardinality(taken) then
    perform bus.drop_unclaimable(claim.holder, claims, moment);
  end if;
  perform bus.watched(taken);
end
$$;
comment on function bus.claim(text, text, integer, text, integer, bigint, text)
  is 'Takes up to max_messages of a route for holder: tenants in turn, by priority and age within one; leased for lease_ms.';

create function bus.drop_unclaimable(holder text, claims bigint[], moment timestamptz) returns void
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
    perform bus.settle_failure(h.id, h.attempts, 'failed', null, 'time to live passed before it was started', false, null, 'bus.claim')
      where h.status = 'queued' and h.attempts = h.attempt - 1;
    perform bus.let_go(drop_unclaimable.holder, array[h.claim], array[h.version], array[h.id], array[h.attempt]);
  end loop;
end
$$;
comment on function bus.drop_unclaimable(text, bigint[], timestamptz)
  is 'Takes out of fresh claims what was cancelled, or what outlived its time, before it could be handed out.';

create function bus.watched(ids uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
begin
  if exists (select from bus.watchers w where w.until > (select clock_timestamp())) then
    perform bus.announce_tasks(array(
      select distinct m.root_id from public.agent_messages m where m.id = any (watched.ids)));
  end if;
end
$$;
comment on function bus.watched(uuid[]) is 'Tells those who watch the tasks of these messages that a step changed.';

create function bus.token_wait(its_lane bigint, its_tenant text, its_key text) returns bigint
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case when not bool_or(w.full) then max(w.ms) end
    from (
      select distinct on (l.counted_by)
             l.max_running <= (
               select coalesce(sum(c.remaining), 0) from bus.claims c
                where c.limited and c.lane = its_lane and (l.counted_by = 'route' or c.tenant = its_tenant)
                  and (l.counted_by <> 'key' or c.limit_key = its_key)) is true as full,
             case when b.tokens is null then 0 else
               greatest(0, ceil((1 - least(l.burst, b.tokens + greatest(0, extract(epoch from clock_timestamp() - b.at))
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
comment on function bus.token_wait(bigint, text, text)
  is 'Milliseconds until the rates of a route let a message of a tenant and key start; null if it waits for another to end.';

drop function bus.next_due(text, text, integer);
create function bus.next_due(service text, role text, shard integer, instance text default null) returns bigint
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  with recursive lane as (
    select hashtextextended(next_due.service || '/' || next_due.role || '/' || next_due.shard, 0) as lane
  ), rated as (
    select r.lane, r.keyed from bus.routes r, lane
     where r.lane = lane.lane and not r.paused
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
       from bus.delayed d
      where next_due.instance is not null
        and d.lane = bus.lane(next_due.service || '/' || next_due.role || '/' || next_due.shard, next_due.instance)
      order by d.due limit 1),
    (select min(bus.token_wait(rated.lane, h.tenant, case when rated.keyed then h.limit_key end)) from head h, rated))
$$;
comment on function bus.next_due(text, text, integer, text)
  is 'Milliseconds until the next delayed message of a route is due, or a rate lets one start; null if nothing waits for time.';

create function bus.held(holder text, with_expired boolean default false)
returns table (claim bigint, version integer, id uuid, attempt smallint, claimed_at timestamptz)
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select c.claim, c.version, h.id, h.attempt, c.claimed_at
    from bus.claims c, unnest(c.ids, c.attempts) as h (id, attempt)
   where c.holder = held.holder and (with_expired or c.lease_until > clock_timestamp())
$$;
comment on function bus.held(text, boolean) is 'What a holder has claimed, ended messages included: the message''s row must still be of that attempt.';

create function bus.let_go(holder text, claims bigint[], versions integer[], ids uuid[], attempts smallint[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  one record;
  c bus.claims;
  counted integer;
  freed text[];
begin
  for one in
    select g.claim, g.version, array_agg(g.id) as ids, array_agg(g.attempt) as attempts
      from unnest(let_go.claims, let_go.versions, let_go.ids, let_go.attempts) as g (claim, version, id, attempt)
     group by g.claim, g.version order by g.claim
  loop
    -- somebody may have its lock for long, by a completion inside a transaction of his own; then this end is not counted
    -- off, which is safe: the lease ends. Too many counted off would lose messages. Limits are counted exactly, and wait.
    select k.* into c from bus.claims k
     where k.holder = let_go.holder and k.claim = one.claim for update skip locked;
    if not found then
      select k.* into c from bus.claims k
       where k.holder = let_go.holder and k.claim = one.claim and k.limited for update;
    end if;
    if c.claim is not null and c.version = one.version then
      counted := cardinality(one.ids);
      if c.remaining <= counted then
        delete from bus.claims k where k.holder = c.holder and k.claim = c.claim;
      else
        update bus.claims k set remaining = k.remaining - counted where k.holder = c.holder and k.claim = c.claim;
      end if;
      freed := case when c.limited then freed || c.route else freed end;
      continue;
    end if;
    -- an extension split the claim meanwhile: each is counted off where it is now
    for c in
      select k.* from bus.claims k where k.holder = let_go.holder and k.ids && one.ids order by k.claim for update skip locked
    loop
      select count(*) into counted
        from unnest(c.ids, c.attempts) as i (id, attempt)
        join unnest(one.ids, one.attempts) as e (id, attempt) on e.id = i.id and e.attempt = i.attempt;
      continue when counted = 0;
      if c.remaining <= counted then
        delete from bus.claims k where k.holder = c.holder and k.claim = c.claim;
      else
        update bus.claims k set remaining = k.remaining - counted where k.holder = c.holder and k.claim = c.claim;
      end if;
      freed := case when c.limited then freed || c.route else freed end;
    end loop;
  end loop;
  -- what a limit held back may go on
  perform bus.announce(freed) where freed is not null;
end
$$;
comment on function bus.let_go(text, bigint[], integer[], uuid[], smallint[]) is 'Counts ended messages off the claims they were in.';

create or replace function bus.extend(ids uuid[], attempts smallint[], holder text, lease_ms bigint)
returns table (id uuid)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  until constant timestamptz := clock_timestamp() + least(greatest(extend.lease_ms, 100), 86400000) * interval '1 millisecond';
  kept record;
  one bus.claims;
  part record;
  to_do uuid[];
begin
  -- who locks many rows locks them in the order of their ids, so that no two can wait for each other
  with given as materialized (
    select h.claim, g.id, g.attempt, h.claimed_at
      from unnest(extend.ids, extend.attempts) as g (id, attempt)
      join bus.held(extend.holder) h on h.id = g.id and h.attempt = g.attempt
  ), mine as materialized (
    select given.claim, m.id, given.attempt, given.claimed_at
      from given join public.agent_messages m on m.id = given.id
     where (m.status = 'queued' and m.attempts = given.attempt - 1)
        or (m.status = 'claimed' and m.attempts = given.attempt and m.claimed_by = extend.holder)
     order by m.id for update of m
  ), marked as (
    update public.agent_messages m
       set status = 'claimed', attempts = mine.attempt, claimed_by = extend.holder, claimed_at = mine.claimed_at,
           lease_until = until, retry_at = null
      from mine where m.id = mine.id
    returning m.id, m.attempts, mine.claim
  )
  select array_agg(k.id) as ids, array_agg(k.attempts) as attempts, array_agg(distinct k.claim) as claims
    into kept from marked k;
  to_do := kept.ids;
  -- a second look finds what another extension has just moved to a claim of its own
  for look in 1..2 loop
    exit when coalesce(cardinality(to_do), 0) = 0;
    for one in
      select c.* from bus.claims c
       where c.holder = extend.holder and (c.claim = any (kept.claims) or (look = 2 and c.ids && to_do))
       order by c.claim for update skip locked
    loop
      select array_agg(h.id) filter (where k.id is not null) as ids,
             array_agg(h.attempt) filter (where k.id is not null) as attempts,
             array_agg(h.id) filter (where k.id is null and m.id is not null) as other_ids,
             array_agg(h.attempt) filter (where k.id is null and m.id is not null) as other_attempts
        into part
        from unnest(one.ids, one.attempts) as h (id, attempt)
        left join unnest(kept.ids, kept.attempts) as k (id, attempt) on k.id = h.id and k.attempt = h.attempt
        left join public.agent_messages m
          on m.id = h.id and ((m.status = 'queued' and m.attempts = h.attempt - 1)
                              or (m.status = 'claimed' and m.attempts = h.attempt and m.claimed_by = extend.holder));
      continue when part.ids is null;
      if part.other_ids is null then
        update bus.claims c set lease_until = until where c.holder = extend.holder and c.claim = one.claim;
      else
        -- a claim of which only a part is extended is split
        insert into bus.claims (holder, lane, route, tenant, limit_key, limited, claimed_at, lease_until, remaining, ids, attempts)
        values (extend.holder, one.lane, one.route, one.tenant, one.limit_key, one.limited, one.claimed_at, one.lease_until,
                cardinality(part.other_ids), part.other_ids, part.other_attempts);
        update bus.claims c
           set lease_until = until, remaining = cardinality(part.ids), version = c.version + 1, ids = part.ids,
               attempts = part.attempts
         where c.holder = extend.holder and c.claim = one.claim;
      end if;
      to_do := array(select k from unnest(to_do) as k except select k from unnest(part.ids) as k);
    end loop;
  end loop;
  if cardinality(to_do) > 0 then
    -- the claim is locked, as by a completion inside a long transaction: the others of it get a lease of their own, and
    -- bus.take_back leaves them alone when the old one ends. Limits count them in the old one.
    insert into bus.claims (holder, lane, route, claimed_at, lease_until, remaining, ids, attempts)
    select extend.holder, c.lane, c.route, c.claimed_at, until, count(*), array_agg(h.id), array_agg(h.attempt)
      from bus.claims c, unnest(c.ids, c.attempts) as h (id, attempt)
      join unnest(kept.ids, kept.attempts) as k (id, attempt) on k.id = h.id and k.attempt = h.attempt
     where c.holder = extend.holder and h.id = any (to_do)
     group by c.claim, c.lane, c.route, c.claimed_at;
  end if;
  return query select unnest(kept.ids);
end
$$;

-- ---------------------------------------------------------------- ending

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
begin
  -- the lease is read first; should it pass and be reclaimed meanwhile, the row is of another attempt by then
  with given as materialized (
    select h.claim, h.version, h.claimed_at, g.id, g.attempt, g.result, g.snippet, g.url
      from unnest(complete_many.ids, complete_many.attempts, complete_many.results, complete_many.result_snippets,
                  complete_many.result_urls) as g (id, attempt, result, snippet, url)
      join (select c.claim, c.version, h.id, h.attempt, c.claimed_at
              from bus.claims c, unnest(c.ids, c.attempts) as h (id, attempt)
             where c.holder = complete_many.holder and c.lease_until > clock_timestamp()) as h
        on h.id = g.id and h.attempt = g.attempt
     order by g.id
  ), done as (
    update public.agent_messages as m
       set status = 'done', attempts = g.attempt, claimed_by = complete_many.holder, claimed_at = g.claimed_at,
           done_at = clock_timestamp(), lease_until = null, retry_at = null, error = null,
           result = g.result, result_snippet = left(g.snippet, 400), result_url = g.url
      from given g
     where m.id = g.id
       and ((m.status = 'queued' and m.attempts = g.attempt - 1)
            or (m.status = 'claimed' and m.attempts = g.attempt and m.claimed_by = complete_many.holder))
    returning m.id, m.attempts, m.root_id, g.claim, g.version, m.group_key is not null as grouped, m.payload ? '__assignment' as assigned
  )
  select array_agg(d.id) as ids, array_agg(d.attempts) as attempts, array_agg(d.claim) as claims,
         array_agg(d.version) as versions,
         array_agg(d.root_id) as roots,
         array_agg(d.id) filter (where d.grouped) as grouped, array_agg(d.id) filter (where d.assigned) as assigned
    into done from done d;
  if done.ids is null then
    return;
  end if;
  perform bus.let_go(complete_many.holder, done.claims, done.versions, done.ids, done.attempts);
  perform bus.after_end(done.ids, done.grouped);
  if done.assigned is not null then
    insert into public.bus_events (kind, tenant, message_id, root_id, route, actor, detail)
    select 'execute_done', m.tenant, m.id, m.root_id, m.service || '/' || m.role || '/' || m.shard,
           complete_many.holder, bus.outcome_detail(m.*::public.agent_messages)
      from public.agent_messages m where m.id = any (done.assigned);
  end if;
  if exists (select from bus.watchers) then
    perform bus.announce_tasks(done.roots);
  end if;
  return query select unnest(done.ids);
end
$$;

drop function bus.settle_failure(bus.one_heap, text, boolean, bigint, text);
drop function bus.after_crash(bus.one_heap);
drop function bus.record_event(text, bus.one_heap, text, jsonb);
drop function bus.outcome_detail(bus.one_heap);
create function bus.record_event(kind text, m public.agent_messages, actor text, detail jsonb) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  insert into public.bus_events (kind, tenant, message_id, root_id, route, actor, detail)
  values (kind, m.tenant, m.id, m.root_id, m.service || '/' || m.role || '/' || m.shard, actor, detail)
$$;
comment on function bus.record_event(text, public.agent_messages, text, jsonb) is 'Writes one audit row about a message.';

create function bus.outcome_detail(m public.agent_messages) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object(
    'attempt', m.attempts,
    'wait_ms', round(extract(epoch from m.claimed_at - m.created_at) * 1000),
    'run_ms', round(extract(epoch from coalesce(m.done_at, m.last_error_at) - m.claimed_at) * 1000),
    'decision_id', m.payload -> '__assignment' -> 'decision_id',
    'usage', m.result -> 'usage')
$$;
comment on function bus.outcome_detail(public.agent_messages) is 'What the orchestrator learns from: attempt, times in ms, decision and usage.';

create function bus.settle_failure(
  message uuid, attempt smallint, outcome text, holder text, reason text, retriable boolean, retry_ms bigint, actor text,
  started_at timestamptz default null)
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  m public.agent_messages;
  counted integer;
  delay interval;
  again boolean;
  settled public.agent_messages;
begin
  select t.* into m from public.agent_messages t where t.id = message and t.status in ('queued', 'claimed') for update;
  -- without a holder it has only waited, and its attempts are those of before
  if not found or m.attempts + (m.status = 'queued' and holder is not null)::integer <> settle_failure.attempt
    or (holder is null and m.status <> 'queued') then
    return null;
  end if;
  counted := settle_failure.attempt - m.released;
  delay := coalesce(
    retry_ms * interval '1 millisecond',
    -- exponential from 1 s, at most 5 min, the upper half jittered so that a herd spreads; a worker that vanished gives
    -- its first time back at once
    case when outcome in ('lease_expired', 'holder_gone') and counted <= 1 then interval '0' else
    least(300.0, power(2.0, least(greatest(counted, 1), 20) - 1)) * (0.5 + random() / 2) * interval '1 second' end);
  -- a retry that could only come after the time to live is no retry; the reason stays the handler's
  again := retriable and counted < m.max_attempts
    and (m.expires_at is null or clock_timestamp() + delay < m.expires_at);
  update public.agent_messages as t
     set status        = case when again then 'queued' else 'failed' end,
         attempts      = settle_failure.attempt,
         claimed_by    = coalesce(settle_failure.holder, t.claimed_by),
         claimed_at    = coalesce(settle_failure.started_at, t.claimed_at),
         retry_at      = case when again and delay > interval '0' then clock_timestamp() + delay end,
         lease_until   = null,
         error         = left(coalesce(nullif(reason, ''), 'no reason given'), 4000),
         last_error_at = clock_timestamp(),
         done_at       = case when again then null else clock_timestamp() end
   where t.id = m.id
  returning t.* into settled;
  if holder is not null then
    insert into bus.attempts (id, attempt, holder, started_at, outcome, error)
    values (m.id, settle_failure.attempt, holder, settled.claimed_at, outcome, settled.error)
    on conflict do nothing;
  end if;
  if again then
    if m.payload ? '__assignment' then
      perform bus.record_event('execute_retry', settled, actor,
        bus.outcome_detail(settled) || jsonb_build_object('error', settled.error, 'retry_at', settled.retry_at));
    end if;
    perform bus.place(array[m.id]);
    if settled.retry_at is not null then
      -- a worker that sleeps until the next one is due must hear of one that is due sooner
      perform bus.announce(array[m.service || '/' || m.role || '/' || m.shard]);
    end if;
  else
    perform bus.record_event(case when m.payload ? '__assignment' then 'execute_failed' else 'message_failed' end, settled,
      actor, bus.outcome_detail(settled) || jsonb_build_object('error', settled.error));
    insert into bus.dead_letters (id, failed_at, route, tenant)
    values (m.id, settled.done_at, m.service || '/' || m.role || '/' || m.shard, m.tenant);
    perform bus.after_end(array[m.id], case when m.group_key is not null then array[m.id] end);
  end if;
  perform bus.announce_tasks(array[settled.root_id]);
  return settled.status;
end
$$;
comment on function bus.settle_failure(uuid, smallint, text, text, text, boolean, bigint, text, timestamptz)
  is 'Back to queued with a delay, or to failed: a dead letter with its reason. Answers the new status; null if the message is not in that attempt.';

create or replace function bus.fail(
  id uuid, holder text, attempt smallint, reason text, retriable boolean default true, retry_ms bigint default null)
returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  mine record;
  status text;
begin
  select h.claim, h.version, h.claimed_at into mine from bus.held(fail.holder) h where h.id = fail.id and h.attempt = fail.attempt;
  if not found then
    return null;
  end if;
  status := bus.settle_failure(fail.id, fail.attempt, 'failed', fail.holder, fail.reason, fail.retriable, fail.retry_ms,
                               fail.holder, mine.claimed_at);
  if status is not null then
    perform bus.let_go(fail.holder, array[mine.claim], array[mine.version], array[fail.id], array[fail.attempt]);
  end if;
  return status;
end
$$;

create or replace function bus.release(ids uuid[], attempts smallint[], holder text) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  worn record;
  freed record;
begin
  -- a message that nobody wants to work on must not go round for ever
  for worn in
    select m.id, h.attempt, h.claim, h.version
      from unnest(release.ids, release.attempts) as g (id, attempt)
      join bus.held(release.holder, true) h on h.id = g.id and h.attempt = g.attempt
      join public.agent_messages m on m.id = g.id
     where m.released >= 1000 order by m.id
  loop
    if bus.settle_failure(worn.id, worn.attempt, 'released', release.holder, 'handed back 1000 times', false, null,
                          release.holder) is not null then
      perform bus.let_go(release.holder, array[worn.claim], array[worn.version], array[worn.id], array[worn.attempt]);
    end if;
  end loop;
  with mine as materialized (
    select m.id, h.attempt, h.claim, h.version
      from unnest(release.ids, release.attempts) as g (id, attempt)
      join bus.held(release.holder, true) h on h.id = g.id and h.attempt = g.attempt
      join public.agent_messages m on m.id = g.id
     where (m.status = 'queued' and m.attempts = h.attempt - 1)
        or (m.status = 'claimed' and m.attempts = h.attempt and m.claimed_by = release.holder)
     order by m.id for update of m
  ), given_back as (
    update public.agent_messages as t
       set status = 'queued', attempts = mine.attempt, lease_until = null, retry_at = null, released = t.released + 1,
           claimed_by = release.holder
      from mine where t.id = mine.id
    returning t.id, mine.claim, mine.version, mine.attempt
  )
  select array_agg(f.id) as ids, array_agg(f.attempt) as attempts, array_agg(f.claim) as claims, array_agg(f.version) as versions into freed from given_back f;
  if freed.ids is null then
    return 0;
  end if;
  perform bus.let_go(release.holder, freed.claims, freed.versions, freed.ids, freed.attempts);
  perform bus.make_ready(freed.ids);
  return cardinality(freed.ids);
end
$$;

create function bus.unplace(message public.agent_messages) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  its_lane constant bigint := bus.lane(message.service || '/' || message.role || '/' || message.shard, message.target_instance);
  chunk record;
begin
  delete from bus.delayed d where d.lane = its_lane and d.due = message.retry_at and d.id = message.id;
  if found then
    return;
  end if;
  -- a chunk that is just being claimed is left: the claim will see the message's status
  for chunk in
    select r.share, r.due, r.chunk, cardinality(r.ids) as size from bus.ready r
     where r.lane = its_lane and r.tenant = message.tenant and message.id = any (r.ids) limit 1 for update skip locked
  loop
    if chunk.size = 1 then
      delete from bus.ready r where r.lane = its_lane and r.share = chunk.share and r.due = chunk.due and r.chunk = chunk.chunk;
    else
      update bus.ready r set ids = array_remove(r.ids, message.id)
       where r.lane = its_lane and r.share = chunk.share and r.due = chunk.due and r.chunk = chunk.chunk;
    end if;
  end loop;
end
$$;
comment on function bus.unplace(public.agent_messages) is 'Takes a message that nobody holds from where it waits.';

create or replace function bus.cancel(task uuid) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  m public.agent_messages;
  held record;
  cancelled integer := 0;
  before integer;
begin
  loop
    before := cancelled;
    for m in
      select t.* from public.agent_messages t
       where (t.id = task or (t.root_id = task and t.root_id <> t.id)) and t.status in ('queued', 'claimed')
       order by t.id for update
    loop
      select c.holder, c.claim, c.version, c.claimed_at, c.attempts[array_position(c.ids, m.id)] as attempt into held
        from bus.claims c
       where m.id = any (c.ids)
         and c.attempts[array_position(c.ids, m.id)] = m.attempts + (m.status = 'queued')::integer
         and (m.status = 'queued' or c.holder = m.claimed_by);
      update public.agent_messages as t
         set status = 'cancelled', done_at = clock_timestamp(), lease_until = null, retry_at = null,
             attempts = coalesce(held.attempt, t.attempts), claimed_by = coalesce(held.holder, t.claimed_by),
             claimed_at = coalesce(held.claimed_at, t.claimed_at)
       where t.id = m.id;
      if held.claim is not null then
        perform bus.let_go(held.holder, array[held.claim], array[held.version], array[m.id], array[held.attempt]);
        insert into bus.attempts (id, attempt, holder, started_at, outcome)
        values (m.id, held.attempt, held.holder, held.claimed_at, 'cancelled') on conflict do nothing;
      else
        perform bus.unplace(m);
      end if;
      delete from bus.joins j where j.id = m.id;
      perform bus.after_end(array[m.id], case when m.group_key is not null then array[m.id] end);
      perform bus.record_event('message_cancelled', m, 'bus.cancel', jsonb_build_object('was', case when held.claim is null then m.status else 'claimed' end));
      perform pg_notify('bus_cancel', m.id::text);
      cancelled := cancelled + 1;
    end loop;
    -- a completion that was under way may have sent children meanwhile; the next look sees them
    exit when before = cancelled and not exists (
      select from public.agent_messages t
       where (t.id = task or (t.root_id = task and t.root_id <> t.id)) and t.status in ('queued', 'claimed'));
  end loop;
  perform bus.announce_tasks(array[task]);
  return cancelled;
end
$$;

-- ---------------------------------------------------------------- healing

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
  expired integer := 0;
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
     order by t.id for update of t
  loop
    perform bus.unplace(m);
    delete from bus.joins j where j.id = m.id;
    if bus.settle_failure(m.id, m.attempts, 'failed', null,
         'time to live passed ' || coalesce('before another attempt, last error: ' || m.error, 'before it was started'),
         false, null, 'bus.expire') is not null then
      expired := expired + 1;
    end if;
  end loop;
  return expired;
end
$$;

create function bus.take_back(holder_of text, claim_of bigint, outcome text, reason text, actor text, max_rows integer,
                              out settled integer, out left_over boolean)
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
  if not left_over then
    delete from bus.claims c where c.holder = holder_of and c.claim = claim_of;
  end if;
end
$$;
comment on function bus.take_back(text, bigint, text, text, text, integer)
  is 'Requeues what is unfinished of a claim, or makes it dead letters; the claim goes once nothing is left of it.';

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
  return reclaimed;
end
$$;

create or replace function bus.requeue_held(holder text, reason text) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c record;
  back record;
  requeued integer := 0;
begin
  for c in select k.claim from bus.claims k where k.holder = requeue_held.holder order by k.claim for update loop
    back := bus.take_back(requeue_held.holder, c.claim, 'holder_gone', reason, 'bus.requeue_held', 100000);
    requeued := requeued + back.settled;
    -- what was being completed at this moment: its lease ends now, so that the reclaimer sees to it
    update bus.claims k set lease_until = clock_timestamp()
     where back.left_over and k.holder = requeue_held.holder and k.claim = c.claim;
  end loop;
  return requeued;
end
$$;

create function bus.replay_after(dead_letter uuid, delay_ms bigint) returns uuid
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
comment on function bus.replay_after(uuid, bigint) is 'Sends a dead letter again as a new message of the same task that points back, delayed; answers the new id.';

create or replace function bus.replay(dead_letter uuid) returns uuid
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$ select bus.replay_after(dead_letter, 0::bigint) $$;

create function bus.replay_many(route text default null, error_like text default null, per_second double precision default 50,
                                max_messages integer default 1000)
returns table (dead_letter uuid, id uuid)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
begin
  if (replay_many.per_second > 0) is not true then
    raise exception 'A rate must be positive' using errcode = 'invalid_parameter_value';
  end if;
  return query
  select o.id, bus.replay_after(o.id, ((o.place - 1) * 1000 / replay_many.per_second)::bigint)
    from (select d.id, row_number() over (order by d.failed_at, d.id) as place
            from bus.dead_letters d
            join public.agent_messages m on m.id = d.id and m.status = 'failed'
           where (replay_many.route is null or d.route = replay_many.route)
             and (replay_many.error_like is null or m.error like replay_many.error_like)
             and not exists (select from public.agent_messages r
                              where r.root_id = m.root_id and r.root_id <> r.id and r.replay_of = m.id
                                and r.status in ('queued', 'claimed', 'done'))
           order by d.failed_at, d.id limit replay_many.max_messages) as o;
end
$$;
comment on function bus.replay_many(text, text, double precision, integer)
  is 'Sends dead letters of a route or with an error like a pattern again, oldest first, spread over time at the rate.';

-- ---------------------------------------------------------------- retention

create function bus.drop_old_partitions(cutoff timestamptz) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
set lock_timeout = '1s'
as $$
declare
  part record;
  removed bigint := 0;
  rows_there bigint;
  open boolean;
begin
  for part in
    select c.oid::regclass as name, to_date(right(c.relname, 8), 'YYYYMMDD') as day
      from pg_inherits i join pg_class c on c.oid = i.inhrelid
     where i.inhparent = 'public.agent_messages'::regclass and c.relname ~ '^messages_[0-9]{8}$'
     order by c.relname
  loop
    exit when (part.day + 1)::timestamp at time zone 'UTC' > cutoff;
    -- a task goes as a whole: not while one of its messages, here or in a later part, is unfinished or young
    execute format('select count(*), coalesce(bool_or(m.done_at is null or m.done_at >= $1), false) from %s m', part.name)
       into rows_there, open using cutoff;
    continue when open or exists (
      select from public.agent_messages m
       where m.root_id >= bus.first_id(part.day::timestamp at time zone 'UTC')
         and m.root_id < bus.first_id((part.day + 1)::timestamp at time zone 'UTC')
         and m.root_id <> m.id and (m.done_at is null or m.done_at >= cutoff));
    begin
      -- a sender whose id is old may not have committed: nobody may be there when it is looked at for the last time
      execute format('lock table only public.agent_messages, %s in access exclusive mode', part.name);
      execute format('select count(*), coalesce(bool_or(m.done_at is null or m.done_at >= $1), false) from %s m', part.name)
         into rows_there, open using cutoff;
      if open then
        raise lock_not_available;
      end if;
      execute format('drop table %s', part.name);
      removed := removed + rows_there;
    exception when lock_not_available then
      -- somebody has a transaction open for long, or has just sent something: the next time will do
      continue;
    end;
  end loop;
  return removed;
end
$$;
comment on function bus.drop_old_partitions(timestamptz) is 'Drops the parts whose tasks all ended before that; answers how many messages went.';

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
begin
  begin
    perform bus.ensure_partitions();
  exception when lock_not_available then
    null;
  end;
  removed := bus.drop_old_partitions(cutoff);
  -- what is left of parts that cannot go yet, and of ids that are not time-ordered
  with old as (
    select r.id from public.agent_messages r
     where (r.id < bus.first_id(cutoff) or r.tableoid = 'bus.messages_other'::regclass)
       and r.root_id = r.id and r.done_at < cutoff
       and not exists (select from public.agent_messages s
                        where s.root_id = r.id and s.root_id <> s.id and (s.done_at is null or s.done_at >= cutoff))
     order by r.id limit max_tasks for update skip locked),
  gone as (
    delete from public.agent_messages t using old
     where (t.id = old.id or (t.root_id = old.id and t.root_id <> t.id)) and t.done_at < cutoff
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
comment on function bus.retain(interval, integer) is 'Removes finished tasks that ended before the interval: whole days at once, the rest task by task; answers how many messages went.';

-- ---------------------------------------------------------------- following a task

create or replace function bus.watch(task uuid, watcher text, for_ms bigint) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
begin
  -- those who stopped waiting are forgotten by those who start
  delete from bus.watchers
   where ctid = any (array(select w.ctid from bus.watchers w where w.until < (select clock_timestamp()) limit 10
                              for update skip locked));
  insert into bus.watchers (root_id, watcher, until)
  values (watch.task, watch.watcher, clock_timestamp() + watch.for_ms * interval '1 millisecond')
  on conflict (root_id, watcher) do update set until = greatest(bus.watchers.until, excluded.until);
  -- waits for changes that are under way, so that the caller's next read sees them; those that start later wait for this
  -- commit and then see the watcher
  perform from public.agent_messages m
    where (m.id = watch.task or (m.root_id = watch.task and m.root_id <> m.id)) and m.done_at is null
    order by m.id for share;
end
$$;

create or replace function bus.task(task uuid) returns jsonb
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
begin
  return (
  with message as (
    select m.* from public.agent_messages m where m.id = task and m.root_id = task
    union all
    select m.* from public.agent_messages m where m.root_id = task and m.root_id <> m.id
  ), step as (
    select m.*,
           m.status = 'claimed' or m.status = 'queued' and exists (
             select from bus.claims c where m.id = any (c.ids) and c.attempts[array_position(c.ids, m.id)] = m.attempts + 1)
             as held,
           not exists (select from message c where c.parent_id = m.id)
             and not exists (select from message r where r.replay_of = m.id) as leaf
      from message m
  ), last_leaf as (
    select s.* from step s where s.leaf and s.done_at is not null order by s.done_at desc, s.id desc limit 1
  )
  select jsonb_build_object(
    'id', task,
    'tenant', min(s.tenant),
    'status', case
      when bool_or(s.held) or (bool_or(s.status = 'queued') and (count(*) > 1 or max(s.attempts) > 0)) then 'running'
      when bool_or(s.status = 'queued') then 'queued'
      when bool_or(s.leaf and s.status = 'failed') then 'failed'
      when bool_or(s.leaf and s.status = 'cancelled') then 'cancelled'
      else 'done' end,
    'created_at', min(s.created_at),
    'finished_at', case when bool_and(s.done_at is not null) then max(s.done_at) end,
    'error', (select l.error from last_leaf l),
    'result', (select l.result from last_leaf l),
    'result_url', (select l.result_url from last_leaf l),
    'steps', jsonb_agg(jsonb_build_object(
      'id', s.id, 'parent_id', s.parent_id, 'replay_of', s.replay_of,
      'service', s.service, 'role', s.role, 'shard', s.shard, 'status', case when s.held then 'claimed' else s.status end,
      'attempts', s.attempts, 'claimed_by', s.claimed_by, 'created_at', s.created_at,
      'claimed_at', s.claimed_at, 'retry_at', s.retry_at, 'done_at', s.done_at, 'error', s.error,
      'result_snippet', s.result_snippet) order by s.created_at, s.id))
    from step s
  having count(*) > 0);
end
$$;

create function bus.results(ids uuid[]) returns table (id uuid, status text, result jsonb, result_url text, error text)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select m.id, m.status, m.result, m.result_url, m.error
    from unnest(results.ids) with ordinality as g (id, o) join public.agent_messages m on m.id = g.id order by g.o
$$;
comment on function bus.results(uuid[]) is 'How messages ended and what they answered, in order; for one that awaited them.';

create function bus.history(message uuid)
returns table (attempt smallint, holder text, started_at timestamptz, ended_at timestamptz, outcome text, error text)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select a.attempt, a.holder, a.started_at, a.ended_at, a.outcome, a.error from bus.attempts a where a.id = history.message
  union all
  select m.attempts, m.claimed_by, m.claimed_at, m.done_at, case m.status when 'done' then 'completed' else 'running' end, null
    from public.agent_messages m
   where m.id = history.message and m.status in ('done', 'claimed')
  union all
  select c.attempts[array_position(c.ids, m.id)], c.holder, c.claimed_at, null, 'running', null
    from public.agent_messages m
    join bus.claims c on m.id = any (c.ids) and c.attempts[array_position(c.ids, m.id)] = m.attempts + 1
   where m.id = history.message and m.status = 'queued'
   order by 1
$$;
comment on function bus.history(uuid) is 'Each attempt of a message, first to last.';


create or replace function registry.requeue_stragglers() returns integer
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  -- a claim that was under way while its holder ended commits after the requeue of that end; two minutes are far more
  -- than any claim takes
  select coalesce(sum(bus.requeue_held(gone.holder, 'holder ' || gone.holder || ' ended: ' || gone.end_reason)), 0)::integer
    from (select a.holder, a.end_reason from registry.agents a
           where a.state = 'terminated' and a.ended_at > clock_timestamp() - interval '2 minutes'
             and exists (select from bus.claims c where c.holder = a.holder)
           order by a.holder) as gone
$$;

-- ---------------------------------------------------------------- steering routes

create function bus.route_settings(service text, role text, shard integer, changed_by text) returns bigint
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  insert into bus.routes as r (lane, service, role, shard, changed_by)
  values (hashtextextended(service || '/' || role || '/' || shard, 0), service, role, shard, changed_by)
  on conflict (lane) do update set changed_at = clock_timestamp(), changed_by = excluded.changed_by
  returning r.lane
$$;
comment on function bus.route_settings(text, text, integer, text) is 'The row of a route, made if it is missing and locked.';

create function bus.steer(service text, role text, shard integer, action text, changed_by text default null) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  its_lane bigint;
begin
  if action not in ('pause', 'resume', 'drain', 'open') then
    raise exception 'A route can be paused, resumed, drained or opened, not %', action
      using errcode = 'invalid_parameter_value';
  end if;
  its_lane := bus.route_settings(steer.service, steer.role, steer.shard, steer.changed_by);
  update bus.routes r
     set paused = case action when 'pause' then true when 'resume' then false else r.paused end,
         draining = case action when 'drain' then true when 'open' then false else r.draining end
   where r.lane = its_lane;
  insert into public.bus_events (kind, tenant, route, actor, detail)
  values ('route_' || action, 'system', steer.service || '/' || steer.role || '/' || steer.shard,
          coalesce(changed_by, session_user), '{}');
  perform bus.announce(array[steer.service || '/' || steer.role || '/' || steer.shard]) where action = 'resume';
end
$$;
comment on function bus.steer(text, text, integer, text, text)
  is 'pause: nothing is claimed; resume; drain: nothing new is accepted (children are); open.';

create function bus.set_aging(service text, role text, shard integer, aging_ms integer, changed_by text default null) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  its_lane constant bigint := bus.route_settings(set_aging.service, set_aging.role, set_aging.shard, set_aging.changed_by);
begin
  update bus.routes r set aging_ms = set_aging.aging_ms where r.lane = its_lane;
end
$$;
comment on function bus.set_aging(text, text, integer, integer, text)
  is 'How long a message of the route waits to make up for one point of priority; holds for messages sent from now on.';

create function bus.set_limit(
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
     set share = hashtext(d.tenant || case when r.keyed then coalesce('/' || d.limit_key, '') else '' end)
    from bus.routes r
   where r.lane = its_lane and d.lane = its_lane
     and d.share <> hashtext(d.tenant || case when r.keyed then coalesce('/' || d.limit_key, '') else '' end);
  perform bus.announce(array[set_limit.service || '/' || set_limit.role || '/' || set_limit.shard]);
end
$$;
comment on function bus.set_limit(text, text, integer, text, text, integer, double precision, double precision, text)
  is 'Sets how many messages of a route (or of each tenant or key on it) run at once and start a second; both null removes it.';

create function bus.allowance(its_lane bigint, its_tenant text, its_key text, want integer) returns integer
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
       and (k.counted_by = 'route' or (k.counted_by = 'tenant' and k.subject in ('', its_tenant))
            or (k.counted_by = 'key' and its_key is not null and k.subject in ('', its_tenant || '/' || its_key)))
     order by k.counted_by, k.subject desc
  loop
    its_subject := case l.counted_by when 'route' then '' when 'tenant' then its_tenant else its_tenant || '/' || its_key end;
    if l.max_running is not null then
      select coalesce(sum(c.remaining), 0) into running from bus.claims c
       where c.limited and c.lane = its_lane
         and (l.counted_by = 'route' or c.tenant = its_tenant)
         and (l.counted_by <> 'key' or c.limit_key = its_key);
      allowed := least(allowed, greatest(0, l.max_running - running));
    end if;
    if l.per_second is not null then
      insert into bus.buckets as b (lane, counted_by, subject, tokens, at)
      values (its_lane, l.counted_by, its_subject, l.burst, clock_timestamp())
      on conflict (lane, counted_by, subject) do update
         -- a clock that was set back gives nothing and takes nothing
         set tokens = least(l.burst, b.tokens + greatest(0, extract(epoch from clock_timestamp() - b.at)) * l.per_second),
             at = clock_timestamp()
      returning b.tokens into free;
      allowed := least(allowed, floor(free + 0.000001)::integer);
    end if;
  end loop;
  return allowed;
end
$$;
comment on function bus.allowance(bigint, text, text, integer) is 'How many messages of a tenant and key the limits of a route let start now.';

create function bus.take_limited(settings bus.routes, direct bigint, holder text, want integer, lease_ms bigint,
                                 out ids uuid[], out attempts smallint[], out claims bigint[])
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  its_route constant text := settings.service || '/' || settings.role || '/' || settings.shard;
  turn integer := bus.turn(settings.lane);
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
                                case when settings.keyed then head.tenant end, head.limit_key) as t;
          continue when cardinality(got.ids) = 0;
          insert into bus.claims as c (holder, lane, route, tenant, limit_key, limited, lease_until, remaining, ids, attempts)
          values (take_limited.holder, settings.lane, its_route, head.tenant, head.limit_key, true,
                  clock_timestamp() + take_limited.lease_ms * interval '1 millisecond', cardinality(got.ids), got.ids,
                  got.attempts)
          returning c.claim into one_claim;
          update bus.buckets b set tokens = b.tokens - cardinality(got.ids)
           where b.lane = settings.lane
             and (b.counted_by = 'route' or (b.counted_by = 'tenant' and b.subject = head.tenant)
                  or (b.counted_by = 'key' and b.subject = head.tenant || '/' || head.limit_key));
          ids := ids || got.ids;
          attempts := attempts || got.attempts;
          claims := claims || one_claim;
          part := part - cardinality(got.ids);
          exit when part <= 0;
        end loop;
      end loop;
      round := case when cardinality(ids) = before then round + 1 else 0 end;
      exit when cardinality(ids) >= want or cardinality(shares) < 256 and round > 0 or round = 8;
    end loop;
  end loop;
  perform bus.remember_turn(settings.lane, turn);
end
$$;
comment on function bus.take_limited(bus.routes, bigint, text, integer, bigint)
  is 'Takes ready messages of a limited route, as many of each tenant and key as its limits let start.';

-- ---------------------------------------------------------------- what is where

create function bus.whereabouts() returns table (place text, id uuid)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select 'ready', unnest(r.ids) from bus.ready r
  union all select 'delayed', d.id from bus.delayed d
  union all
  select distinct 'claimed', m.id
    from bus.claims c, unnest(c.ids, c.attempts) as h (id, attempt)
    join public.agent_messages m on m.id = h.id
   where (m.status = 'queued' and m.attempts = h.attempt - 1)
      or (m.status = 'claimed' and m.attempts = h.attempt and m.claimed_by = c.holder)
  union all select 'joins', j.id from bus.joins j
  union all
  select 'behind', g.id from bus.groups g
   where exists (select from bus.groups e
                  where e.lane = g.lane and e.tenant = g.tenant and e.group_key = g.group_key and e.position < g.position)
$$;
comment on function bus.whereabouts() is 'Where each unfinished message is.';

create function bus.misplaced() returns table (id uuid, status text, places text[])
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(m.id, w.id), m.status, w.places
    from (select m.id, m.status from public.agent_messages m where m.done_at is null) as m
    full join (select p.id, array_agg(p.place order by p.place) as places from bus.whereabouts() p group by p.id) as w using (id)
   where m.id is null or w.id is null
      -- only a message of a group may both wait for others and stand in line
      or (cardinality(w.places) > 1 and w.places <> array['behind', 'joins'])
$$;
comment on function bus.misplaced() is 'Messages that are nowhere, in two places, or ended and still somewhere: none, whatever happened.';

create function bus.heal(max_rows integer default 1000) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  lost record;
  healed integer := 0;
begin
  for lost in
    select w.id, w.status, m.attempts, m.claimed_by, m.group_key
      from bus.misplaced() w join public.agent_messages m on m.id = w.id
     where w.places is null and m.created_at < clock_timestamp() - interval '1 minute'
     order by w.id limit max_rows for update of m skip locked
  loop
    if lost.group_key is not null and not exists (select from bus.groups g where g.id = lost.id) then
      perform bus.settle_failure(lost.id, lost.attempts, 'lease_expired', lost.claimed_by, 'claim was lost', true, null, 'bus.heal')
        where lost.status = 'claimed';
      perform bus.join_groups(array[lost.id]);
    elsif lost.status = 'claimed' then
      perform bus.settle_failure(lost.id, lost.attempts, 'lease_expired', lost.claimed_by, 'claim was lost', true, null, 'bus.heal');
    else
      perform bus.place(array[lost.id]);
    end if;
    healed := healed + 1;
  end loop;
  -- ends that a function of an older schema recorded know nothing of groups
  for lost in
    select g.id from bus.groups g join public.agent_messages m on m.id = g.id
     where m.done_at < clock_timestamp() - interval '1 minute' limit max_rows
  loop
    perform bus.leave_group(lost.id);
    healed := healed + 1;
  end loop;
  return healed;
end
$$;
comment on function bus.heal(integer)
  is 'Puts messages that are nowhere back into the queue (it reads all that is unfinished, so nothing calls it by itself); only a function of an older schema, under way while the schema changed, leaves such.';

-- ---------------------------------------------------------------- what was there before

insert into bus.keys (tenant, idempotency_key, id, until)
select m.tenant, m.idempotency_key, m.id, clock_timestamp() + interval '30 days'
  from bus.one_heap m where m.idempotency_key is not null;
alter table public.agent_messages disable trigger user;
insert into public.agent_messages
       (id, created_at, service, role, shard, tenant, payload, status, priority, attempts, released, max_attempts, claimed_by,
        claimed_at, lease_until, retry_at, expires_at, done_at, error, last_error_at, result, result_snippet, result_url,
        root_id, parent_id, replay_of, reply_to, idempotency_key, group_key, target_instance, headers)
select m.id, m.created_at, m.service, m.role, m.shard, m.tenant, m.payload, m.status, m.priority, m.attempts, m.released,
       m.max_attempts, m.claimed_by, m.claimed_at, m.lease_until, m.retry_at, m.expires_at, m.done_at, m.error, m.last_error_at,
       m.result, m.result_snippet, m.result_url, m.root_id, m.parent_id, m.replay_of, m.reply_to, m.idempotency_key,
       m.group_key, m.target_instance, m.headers
  from bus.one_heap m;
alter table public.agent_messages enable trigger user;
insert into bus.claims (holder, lane, route, claimed_at, lease_until, remaining, ids, attempts)
select m.claimed_by, hashtextextended(m.service || '/' || m.role || '/' || m.shard, 0),
       m.service || '/' || m.role || '/' || m.shard, min(m.claimed_at), min(m.lease_until), count(*), array_agg(m.id),
       array_agg(m.attempts)
  from public.agent_messages m where m.status = 'claimed' group by m.claimed_by, m.service, m.role, m.shard;
insert into bus.expiring (at, id)
select m.expires_at, m.id from public.agent_messages m where m.done_at is null and m.expires_at is not null;
insert into bus.dead_letters (id, failed_at, route, tenant)
select m.id, m.done_at, m.service || '/' || m.role || '/' || m.shard, m.tenant
  from public.agent_messages m where m.status = 'failed';
insert into bus.groups (lane, tenant, group_key, id)
select hashtextextended(m.service || '/' || m.role || '/' || m.shard, 0), m.tenant, m.group_key, m.id
  from public.agent_messages m where m.done_at is null and m.group_key is not null order by m.created_at, m.id;
select bus.place(array(
  select m.id from public.agent_messages m
   where m.status = 'queued'
     and not exists (select from bus.groups g join bus.groups e using (lane, tenant, group_key)
                      where g.id = m.id and e.position < g.position)));
drop table bus.one_heap;
-- their wake-ups, before the tables are altered
set constraints all immediate;

-- ---------------------------------------------------------------- who may do what

do $$
declare
  name text;
begin
  for name in select c.oid::regclass from pg_class c
               where c.relnamespace = 'bus'::regnamespace and c.relkind in ('r', 'p', 'S') loop
    execute format('revoke all on %s from public, anon, authenticated, service_role', name);
  end loop;
  for name in select c.oid::regclass from pg_class c where c.relnamespace = 'bus'::regnamespace and c.relkind = 'r' loop
    execute format('alter table %s enable row level security', name);
  end loop;
end
$$;
revoke all on public.agent_messages from public, anon, authenticated, service_role;
revoke execute on all functions in schema bus, registry from public, anon, authenticated;
grant execute on all functions in schema bus to service_role;
grant select, insert on public.agent_messages to service_role;
alter table public.agent_messages enable row level security;
do $$
begin
  if exists (select from pg_publication where pubname = 'supabase_realtime') then
    alter publication supabase_realtime add table public.agent_messages;
  end if;
end
$$;
comment on table bus.messages_other is 'Messages whose ids are of no day that has a part of its own.';

-- ---------------------------------------------------------------- what the old layout needed

drop function bus.after_end();
drop function bus.lock_group(text, text, integer, text, text);
drop function bus.head_of_group(text, text, integer, text, text);
