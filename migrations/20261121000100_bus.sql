-- The bus: one table that any client may insert into, and functions in schema bus for everything else.
-- Applies to plain Postgres 15 and later and to Supabase.

do $$
begin
  if not exists (select from pg_roles where rolname = 'anon') then
    create role anon nologin noinherit;
  end if;
  if not exists (select from pg_roles where rolname = 'authenticated') then
    create role authenticated nologin noinherit;
  end if;
  if not exists (select from pg_roles where rolname = 'service_role') then
    create role service_role nologin noinherit bypassrls;
  end if;
exception
  when duplicate_object or unique_violation then
    -- another database of this cluster created them at this very moment
    null;
end
$$;

create schema bus;
comment on schema bus is 'Functions and side tables of public.agent_messages; the only way to change a message.';

create function bus.uuid_v7() returns uuid
language sql volatile parallel safe
set search_path = pg_catalog, pg_temp
as $$
  -- milliseconds, the version, and what is random (with the variant) of a version 4
  select (lpad(to_hex((extract(epoch from clock_timestamp()) * 1000)::bigint), 12, '0')
          || '7' || substr(gen_random_uuid()::text, 16))::uuid
$$;
comment on function bus.uuid_v7() is 'Time-ordered id (RFC 9562 version 7) by the database clock.';

create table public.agent_messages (
  id              uuid        primary key default bus.uuid_v7(),
  created_at      timestamptz not null default clock_timestamp(),
  -- names are [a-z][a-z0-9-]{0,62} and [A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}; checks run at every change of a row, and
  -- a regular expression costs several times what these do
  service         text        not null
                  check (length(service) between 1 and 63 and ascii(service) between 97 and 122
                         and btrim(service, 'abcdefghijklmnopqrstuvwxyz0123456789-') = ''),
  role            text        not null
                  check (length(role) between 1 and 63 and ascii(role) between 97 and 122
                         and btrim(role, 'abcdefghijklmnopqrstuvwxyz0123456789-') = ''),
  shard           integer     not null default 0 check (shard between 0 and 65535),
  tenant          text        not null
                  check (length(tenant) between 1 and 128 and strpos('_.:@-', left(tenant, 1)) = 0
                         and btrim(tenant, 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:@-') = ''),
  payload         jsonb       not null
                  constraint payload_is_an_object check (jsonb_typeof(payload) = 'object'),
  status          text        not null default 'queued'
                  check (status in ('queued', 'claimed', 'done', 'failed', 'cancelled')),
  priority        smallint    not null default 100 check (priority between 0 and 1000),
  attempts        smallint    not null default 0 check (attempts >= 0),
  released        smallint    not null default 0 check (released between 0 and attempts),
  max_attempts    smallint    not null default 5 check (max_attempts between 1 and 1000),
  claimed_by      text        check (length(claimed_by) <= 200),
  claimed_at      timestamptz,
  lease_until     timestamptz,
  retry_at        timestamptz check (isfinite(retry_at)),
  expires_at      timestamptz check (isfinite(expires_at)),
  done_at         timestamptz,
  error           text        check (length(error) <= 4000),
  last_error_at   timestamptz,
  result          jsonb       constraint result_at_most_1_mib check (pg_column_size(result) <= 1048576),
  result_snippet  text        check (length(result_snippet) <= 400),
  result_url      text        check (length(result_url) <= 2000),
  root_id         uuid        not null,
  parent_id       uuid,
  replay_of       uuid,
  reply_to        text        check (length(reply_to) <= 200),
  idempotency_key text        check (length(idempotency_key) between 1 and 200),
  group_key       text        check (length(group_key) between 1 and 200),
  blocked         boolean     not null default false check (not blocked or group_key is not null),
  target_instance text        check (length(target_instance) <= 200),
  headers         jsonb       not null default '{}'
                  constraint headers_are_an_object check (jsonb_typeof(headers) = 'object')
                  constraint headers_at_most_16_kib check (pg_column_size(headers) <= 16384),
  -- a child has room for what its sender wraps around the request
  constraint payload_at_most_1_mib
    check (pg_column_size(payload) <= 1048576 + case when parent_id is null then 0 else 65536 end),
  constraint a_claim_has_holder_and_lease
    check ((status = 'claimed') = (lease_until is not null) and (status <> 'claimed' or claimed_by is not null)),
  constraint an_end_has_a_time
    check ((status in ('done', 'failed', 'cancelled')) = (done_at is not null)),
  constraint only_a_queued_message_waits
    check (retry_at is null or status = 'queued'),
  constraint a_failure_says_why
    check (status <> 'failed' or error is not null)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

comment on table public.agent_messages is 'Every message between agents. Insert freely; change only through functions of schema bus.';
comment on column public.agent_messages.id is 'Time-ordered id; the id that the front door answers is the root of a task.';
comment on column public.agent_messages.created_at is 'When the row was made, by the database clock.';
comment on column public.agent_messages.service is 'First part of the routing key: the domain that answers.';
comment on column public.agent_messages.role is 'Second part of the routing key: the role within the domain.';
comment on column public.agent_messages.shard is 'Third part of the routing key, 0 unless the domain is split.';
comment on column public.agent_messages.tenant is 'Fourth part of the routing key: whose message this is.';
comment on column public.agent_messages.payload is 'The request, a JSON object of at most 1 MiB; policy stands under __assignment.';
comment on column public.agent_messages.status is 'queued, claimed, done, failed (dead letter) or cancelled.';
comment on column public.agent_messages.priority is 'Lower is claimed first, 0 to 1000; equal ones by age.';
comment on column public.agent_messages.attempts is 'How often it was claimed; grows with each claim and is half of the fence.';
comment on column public.agent_messages.released is 'Claims that were handed back unworked; they do not count against max_attempts.';
comment on column public.agent_messages.max_attempts is 'Counted attempts after which a failure is final.';
comment on column public.agent_messages.claimed_by is 'Holder of the current or last claim; the other half of the fence.';
comment on column public.agent_messages.claimed_at is 'When the current or last claim was made.';
comment on column public.agent_messages.lease_until is 'Until when the holder owns the message, set while claimed.';
comment on column public.agent_messages.retry_at is 'Not claimed before this time; null means at once.';
comment on column public.agent_messages.expires_at is 'Time to live: never started after this time.';
comment on column public.agent_messages.done_at is 'When it reached done, failed or cancelled.';
comment on column public.agent_messages.error is 'Last error, safe to show; the reason of a dead letter.';
comment on column public.agent_messages.last_error_at is 'When the last error was recorded.';
comment on column public.agent_messages.result is 'The reply, at most 1 MiB.';
comment on column public.agent_messages.result_snippet is 'First 400 characters of the reply, for lists.';
comment on column public.agent_messages.result_url is 'Where a larger reply stands.';
comment on column public.agent_messages.root_id is 'The task: id of the message that started the tree.';
comment on column public.agent_messages.parent_id is 'The message whose handler sent this one.';
comment on column public.agent_messages.replay_of is 'The dead letter that this message runs again.';
comment on column public.agent_messages.reply_to is 'Key under which the sender waits for the reply.';
comment on column public.agent_messages.idempotency_key is 'One message per tenant and key; a second enqueue answers the first id.';
comment on column public.agent_messages.group_key is 'Messages of one group on one route run in order, one at a time.';
comment on column public.agent_messages.blocked is 'An earlier message of the group is not finished; kept by the database.';
comment on column public.agent_messages.target_instance is 'Only the holder of this name may claim it.';
comment on column public.agent_messages.headers is 'W3C trace context and other transport headers.';

create unique index agent_messages_idempotency on public.agent_messages (tenant, idempotency_key)
  where idempotency_key is not null;
create index agent_messages_ready on public.agent_messages (service, role, shard, priority, created_at, id)
  where status = 'queued' and retry_at is null and not blocked;
create index agent_messages_delayed on public.agent_messages (service, role, shard, retry_at)
  where status = 'queued' and retry_at is not null;
create index agent_messages_expiring on public.agent_messages (expires_at)
  where status = 'queued' and expires_at is not null;
create index agent_messages_leased on public.agent_messages (lease_until) where status = 'claimed';
create index agent_messages_held on public.agent_messages (claimed_by) where status = 'claimed';
create index agent_messages_task on public.agent_messages (root_id, created_at);
create index agent_messages_group on public.agent_messages (service, role, shard, tenant, group_key, created_at, id)
  where group_key is not null and status in ('queued', 'claimed');
create index agent_messages_unfinished on public.agent_messages (root_id) where done_at is null;
create index agent_messages_ended on public.agent_messages (done_at) where done_at is not null;
create index agent_messages_dead on public.agent_messages (done_at desc) where status = 'failed';

create table public.bus_events (
  id         bigint      generated always as identity primary key,
  at         timestamptz not null default clock_timestamp(),
  kind       text        not null check (kind ~ '^[a-z][a-z0-9_]{0,62}$'),
  tenant     text        not null,
  message_id uuid,
  root_id    uuid,
  route      text,
  actor      text,
  detail     jsonb       not null default '{}'
);
comment on table public.bus_events is 'Audit of what happened to messages and agents; written in the transaction that it tells of.';
comment on column public.bus_events.id is 'Order of writing; readers page by it.';
comment on column public.bus_events.at is 'When, by the database clock.';
comment on column public.bus_events.kind is 'What happened, such as execute_enqueued.';
comment on column public.bus_events.tenant is 'Whose message it was.';
comment on column public.bus_events.message_id is 'The message that it happened to.';
comment on column public.bus_events.root_id is 'The task that the message belongs to.';
comment on column public.bus_events.route is 'service/role/shard of the message.';
comment on column public.bus_events.actor is 'Who did it: a holder, a function or a person.';
comment on column public.bus_events.detail is 'Facts of the kind: attempt, error, duration in ms.';
create index bus_events_at on public.bus_events (at);
create index bus_events_kind on public.bus_events (kind, id);
create index bus_events_task on public.bus_events (root_id, id) where root_id is not null;

create table bus.watchers (
  root_id uuid        not null,
  watcher text        not null,
  until   timestamptz not null,
  primary key (root_id, watcher)
);
comment on table bus.watchers is 'Who waits for steps of a task; without a row here its steps notify nobody.';
comment on column bus.watchers.root_id is 'The task that is watched.';
comment on column bus.watchers.watcher is 'Name of the waiting process.';
comment on column bus.watchers.until is 'Interest ends here unless renewed.';
create index bus_watchers_until on bus.watchers (until);
create index agent_messages_replays on public.agent_messages (replay_of) where replay_of is not null;
create index agent_messages_children on public.agent_messages (parent_id) where parent_id is not null;

-- ---------------------------------------------------------------- what every insert is held to

create function bus.lock_group(service text, role text, shard integer, tenant text, group_key text) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select pg_advisory_xact_lock(hashtextextended(
    jsonb_build_array(service, role, shard, tenant, group_key)::text, 0))
$$;
comment on function bus.lock_group(text, text, integer, text, text)
  is 'One at a time, those who add to a group and those who end its messages.';

create function bus.head_of_group(service text, role text, shard integer, tenant text, group_key text) returns uuid
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select m.id from public.agent_messages m
   where m.service = head_of_group.service and m.role = head_of_group.role and m.shard = head_of_group.shard
     and m.tenant = head_of_group.tenant and m.group_key = head_of_group.group_key
     and m.status in ('queued', 'claimed')
   order by m.created_at, m.id limit 1
$$;
comment on function bus.head_of_group(text, text, integer, text, text) is 'The oldest unfinished message of a group, the only one that may be claimed.';

create function bus.before_insert() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  parent record;
begin
  if new.status <> 'queued' or new.attempts <> 0 or new.released <> 0 or new.blocked
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
  if new.group_key is not null then
    -- until the commit, so that messages of a group become visible in the order of their times
    perform bus.lock_group(new.service, new.role, new.shard, new.tenant, new.group_key);
    new.created_at := clock_timestamp();
    new.blocked := bus.head_of_group(new.service, new.role, new.shard, new.tenant, new.group_key) is not null;
  end if;
  return new;
end
$$;
comment on function bus.before_insert() is 'Fills root and deadline from the parent; refuses rows that pretend to be further on, or cross tenants.';

create function bus.announce(routes text[]) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select pg_notify('bus_ready', route) from (select distinct unnest(routes) as route) as distinct_routes
$$;
comment on function bus.announce(text[]) is 'Wakes the workers of these routes (service/role/shard); the payload never carries content.';

create function bus.announce_tasks(roots uuid[]) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select pg_notify('bus_task', watched.root_id::text)
    from (select distinct w.root_id from bus.watchers w
           where w.root_id = any (roots) and w.until > clock_timestamp()) as watched
$$;
comment on function bus.announce_tasks(uuid[]) is 'Tells those who watch these tasks that a step changed; costs nothing when nobody watches.';

create function bus.after_insert() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform bus.announce(array(
    select distinct n.service || '/' || n.role || '/' || n.shard from new_rows n where n.status = 'queued'));
  perform bus.announce_tasks(array(select distinct n.root_id from new_rows n));
  return null;
end
$$;
comment on function bus.after_insert() is 'One wake-up per statement and route.';

create function bus.after_end() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform bus.lock_group(new.service, new.role, new.shard, new.tenant, new.group_key);
  update public.agent_messages as t
     set blocked = false
   where t.id = bus.head_of_group(new.service, new.role, new.shard, new.tenant, new.group_key) and t.blocked;
  if found then
    perform bus.announce(array[new.service || '/' || new.role || '/' || new.shard]);
  end if;
  return null;
end
$$;
comment on function bus.after_end() is 'Lets the next message of a group come forward.';

create trigger before_insert before insert on public.agent_messages
  for each row execute function bus.before_insert();
create trigger after_insert after insert on public.agent_messages
  referencing new table as new_rows
  for each statement execute function bus.after_insert();

create trigger after_end after update on public.agent_messages
  for each row when (old.group_key is not null and old.done_at is null and new.done_at is not null)
  execute function bus.after_end();

-- ---------------------------------------------------------------- sending

create function bus.enqueue_many(messages jsonb)
returns table (ord bigint, id uuid, duplicate boolean)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  unknown text;
  prepared uuid[];
  known constant text[] := array[
    'id', 'service', 'role', 'shard', 'tenant', 'payload', 'priority', 'max_attempts', 'delay_ms', 'ttl_ms', 'root_id',
    'parent_id', 'reply_to', 'idempotency_key', 'group_key', 'target_instance', 'headers'];
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

  -- several groups in one batch are locked in one order, so that two batches cannot wait for each other
  perform bus.lock_group(g.service, g.role, g.shard, g.tenant, g.group_key)
     from (select distinct e.m ->> 'service', e.m ->> 'role', coalesce((e.m ->> 'shard')::integer, 0), e.m ->> 'tenant',
                  e.m ->> 'group_key'
             from jsonb_array_elements(messages) as e (m)
            where e.m ->> 'group_key' is not null
            order by 1, 2, 3, 4, 5) as g (service, role, shard, tenant, group_key);

  insert into public.agent_messages
         (id, service, role, shard, tenant, payload, priority, max_attempts, retry_at, expires_at,
          root_id, parent_id, reply_to, idempotency_key, group_key, target_instance, headers)
  select prepared[e.o], e.m ->> 'service', e.m ->> 'role', coalesce((e.m ->> 'shard')::integer, 0),
         e.m ->> 'tenant', coalesce(e.m -> 'payload', '{}'),
         coalesce((e.m ->> 'priority')::smallint, 100::smallint),
         coalesce((e.m ->> 'max_attempts')::smallint, 5::smallint),
         clock_timestamp() + nullif((e.m ->> 'delay_ms')::bigint, 0) * interval '1 millisecond',
         clock_timestamp() + (e.m ->> 'ttl_ms')::bigint * interval '1 millisecond',
         (e.m ->> 'root_id')::uuid, (e.m ->> 'parent_id')::uuid, e.m ->> 'reply_to',
         e.m ->> 'idempotency_key', e.m ->> 'group_key', e.m ->> 'target_instance',
         coalesce(e.m -> 'headers', '{}')
    from jsonb_array_elements(messages) with ordinality as e (m, o)
   order by e.o
  on conflict (tenant, idempotency_key) where idempotency_key is not null do nothing;

  -- a second statement sees what a concurrent transaction committed under the same key
  return query
  select e.o, coalesce(first.id, prepared[e.o]), first.id is distinct from prepared[e.o] and first.id is not null
    from jsonb_array_elements(messages) with ordinality as e (m, o)
    left join public.agent_messages first
      on first.tenant = e.m ->> 'tenant' and first.idempotency_key = e.m ->> 'idempotency_key'
   order by e.o;
end
$$;
comment on function bus.enqueue_many(jsonb) is 'Sends an array of messages in one go; answers id and whether the idempotency key was known, in order.';

create function bus.enqueue(
  service text, role text, tenant text, payload jsonb, shard integer default 0,
  idempotency_key text default null, ttl_ms bigint default null, delay_ms bigint default null,
  priority integer default 100, headers jsonb default '{}')
returns uuid
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select e.id
    from bus.enqueue_many(jsonb_build_array(jsonb_strip_nulls(jsonb_build_object(
      'service', service, 'role', role, 'tenant', tenant, 'shard', shard,
      'idempotency_key', idempotency_key, 'ttl_ms', ttl_ms, 'delay_ms', delay_ms,
      'priority', priority)) || jsonb_build_object('payload', payload, 'headers', headers))) as e
$$;
comment on function bus.enqueue(text, text, text, jsonb, integer, text, bigint, bigint, integer, jsonb)
  is 'Sends one message and answers its id; under a known idempotency key the id of the first.';

-- ---------------------------------------------------------------- events

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

-- ---------------------------------------------------------------- failing, one rule for every way to fail

create function bus.settle_failure(m public.agent_messages, reason text, retriable boolean, retry_ms bigint, actor text)
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  counted integer := m.attempts - m.released;
  -- exponential from 1 s, at most 5 min, the upper half jittered so that a herd spreads
  delay interval := coalesce(
    retry_ms * interval '1 millisecond',
    least(300.0, power(2.0, least(greatest(counted, 1), 20) - 1)) * (0.5 + random() / 2) * interval '1 second');
  -- a retry that could only come after the time to live is no retry; the reason stays the handler's
  again boolean := retriable and counted < m.max_attempts
    and (m.expires_at is null or clock_timestamp() + delay < m.expires_at);
  assigned boolean := m.payload ? '__assignment';
  settled public.agent_messages;
begin
  update public.agent_messages as t
     set status        = case when again then 'queued' else 'failed' end,
         retry_at      = case when again and delay > interval '0' then clock_timestamp() + delay end,
         lease_until   = null,
         error         = left(coalesce(nullif(reason, ''), 'no reason given'), 4000),
         last_error_at = clock_timestamp(),
         done_at       = case when again then null else clock_timestamp() end
   where t.id = m.id and t.status = m.status and t.attempts = m.attempts
  returning t.* into settled;
  if not found then
    return null;
  end if;
  if again then
    if assigned then
      perform bus.record_event('execute_retry', settled, actor,
        bus.outcome_detail(settled) || jsonb_build_object('error', settled.error, 'retry_at', settled.retry_at));
    end if;
    if settled.retry_at is null then
      perform bus.announce(array[settled.service || '/' || settled.role || '/' || settled.shard]);
    end if;
  else
    perform bus.record_event(case when assigned then 'execute_failed' else 'message_failed' end, settled, actor,
      bus.outcome_detail(settled) || jsonb_build_object('error', settled.error));
  end if;
  perform bus.announce_tasks(array[settled.root_id]);
  return settled.status;
end
$$;
comment on function bus.settle_failure(public.agent_messages, text, boolean, bigint, text)
  is 'Back to queued with a delay, or to failed: a dead letter with its reason. Answers the new status.';

-- In what follows `(select clock_timestamp())` is one reading that an index can be searched with; the bare function is
-- volatile, and a comparison with it reads every row.
create function bus.after_crash(m public.agent_messages) returns bigint
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  -- at once after the first one; a worker that goes on crashing takes what is in its hands with it, so others wait
  select case when m.attempts - m.released <= 1 then 0 end::bigint
$$;
comment on function bus.after_crash(public.agent_messages) is 'Delay in ms after an attempt whose worker vanished; null means the exponential one.';

create function bus.expire(max_rows integer default 200) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  m public.agent_messages;
  expired integer := 0;
begin
  for m in
    select t.* from public.agent_messages t
     where t.status = 'queued' and t.expires_at <= (select clock_timestamp())
     order by t.expires_at limit max_rows for update skip locked
  loop
    perform bus.settle_failure(m,
      'time to live passed ' || coalesce('before another attempt, last error: ' || m.error, 'before it was started'),
      false, null, 'bus.expire');
    expired := expired + 1;
  end loop;
  return expired;
end
$$;
comment on function bus.expire(integer) is 'Turns queued messages whose time to live has passed into dead letters.';

-- ---------------------------------------------------------------- claiming

create function bus.claim(
  service text, role text, shard integer, holder text, max_messages integer default 1,
  lease_ms bigint default 30000, instance text default null)
returns table (
  id uuid, attempt smallint, max_attempts smallint, tenant text, payload jsonb, headers jsonb,
  root_id uuid, parent_id uuid, reply_to text, priority smallint, created_at timestamptz, waited_ms bigint,
  remaining_ms bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  claimed_roots uuid[];
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
  perform bus.expire();

  update public.agent_messages as t
     set retry_at = null
   where t.id in (
     select d.id from public.agent_messages d
      where d.service = claim.service and d.role = claim.role and d.shard = claim.shard
        and d.status = 'queued' and d.retry_at <= (select clock_timestamp())
      order by d.retry_at limit 200 for update skip locked);

  return query
  with candidate as materialized (
    select c.id from public.agent_messages c
     where c.service = claim.service and c.role = claim.role and c.shard = claim.shard
       and c.status = 'queued' and c.retry_at is null and not c.blocked
       and (c.expires_at is null or c.expires_at > clock_timestamp())
       and (c.target_instance is null or c.target_instance = claim.instance)
     order by c.priority, c.created_at, c.id
     limit claim.max_messages for update skip locked
  )
  update public.agent_messages as t
     set status      = 'claimed',
         attempts    = t.attempts + 1,
         claimed_by  = claim.holder,
         claimed_at  = clock_timestamp(),
         lease_until = clock_timestamp() + claim.lease_ms * interval '1 millisecond'
    from candidate
   where t.id = candidate.id
  returning t.id, t.attempts, t.max_attempts, t.tenant, t.payload, t.headers, t.root_id, t.parent_id,
            t.reply_to, t.priority, t.created_at,
            (extract(epoch from clock_timestamp() - t.created_at) * 1000)::bigint,
            (extract(epoch from t.expires_at - clock_timestamp()) * 1000)::bigint;

  if found and exists (select from bus.watchers w where w.until > (select clock_timestamp())) then
    claimed_roots := array(
      select m.root_id
        from bus.watchers w
        join public.agent_messages m on m.root_id = w.root_id and m.done_at is null
       where w.until > (select clock_timestamp()) and m.claimed_by = claim.holder and m.status = 'claimed');
    perform bus.announce_tasks(claimed_roots);
  end if;
end
$$;
comment on function bus.claim(text, text, integer, text, integer, bigint, text)
  is 'Takes up to max_messages of a route for holder, by priority then age; each is leased for lease_ms.';

create function bus.next_due(service text, role text, shard integer) returns bigint
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  -- greatest() ignores nulls, so an empty queue must not reach it
  select case when min(d.retry_at) is not null
           then greatest(0, ceil(extract(epoch from min(d.retry_at) - clock_timestamp()) * 1000))::bigint end
    from public.agent_messages d
   where d.service = next_due.service and d.role = next_due.role and d.shard = next_due.shard
     and d.status = 'queued' and d.retry_at is not null
$$;
comment on function bus.next_due(text, text, integer) is 'Milliseconds until the next delayed message of a route is due; null if none waits.';

create function bus.extend(ids uuid[], attempts smallint[], holder text, lease_ms bigint)
returns table (id uuid)
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  -- who locks many rows locks them in the order of their ids, so that no two can wait for each other
  with held as (
    select t.id
      from unnest(extend.ids, extend.attempts) as given (id, attempt)
      join public.agent_messages t on t.id = given.id and t.attempts = given.attempt
     where t.status = 'claimed' and t.claimed_by = extend.holder and t.lease_until > clock_timestamp()
     order by t.id for update of t
  )
  update public.agent_messages as t
     set lease_until = clock_timestamp() + least(greatest(extend.lease_ms, 100), 86400000) * interval '1 millisecond'
    from held
   where t.id = held.id
  returning t.id
$$;
comment on function bus.extend(uuid[], smallint[], text, bigint)
  is 'Renews the leases that are still owned; an id that is missing from the answer is lost to the caller.';

-- ---------------------------------------------------------------- ending

create function bus.complete_many(
  ids uuid[], attempts smallint[], holder text, results jsonb[], result_snippets text[], result_urls text[])
returns table (id uuid)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  completed uuid[];
  roots uuid[];
begin
  with given as (
    select g.id, g.attempt, g.result, g.snippet, g.url
      from unnest(complete_many.ids, complete_many.attempts, complete_many.results, complete_many.result_snippets,
                  complete_many.result_urls) as g (id, attempt, result, snippet, url)
  ), held as (
    -- by key alone: with the rest of the fence in it, the planner may read everything that is claimed for each id
    select t.id, t.status, t.claimed_by, t.lease_until, given.result, given.snippet, given.url
      from given
      join public.agent_messages t on t.id = given.id and t.attempts = given.attempt
     order by t.id for update of t
  ), done as (
    update public.agent_messages as t
       set status = 'done', done_at = clock_timestamp(), lease_until = null, error = null,
           result = held.result, result_snippet = left(held.snippet, 400), result_url = held.url
      from held
     where t.id = held.id and held.status = 'claimed' and held.claimed_by = complete_many.holder
       and held.lease_until > clock_timestamp()
    returning t.*
  ), recorded as (
    insert into public.bus_events (kind, tenant, message_id, root_id, route, actor, detail)
    select 'execute_done', d.tenant, d.id, d.root_id, d.service || '/' || d.role || '/' || d.shard,
           complete_many.holder, bus.outcome_detail(d.*::public.agent_messages)
      from done d
     where d.payload ? '__assignment'
  )
  select array_agg(d.id), array_agg(distinct d.root_id) into completed, roots from done d;
  perform bus.announce_tasks(roots);
  return query select unnest(completed);
end
$$;
comment on function bus.complete_many(uuid[], smallint[], text, jsonb[], text[], text[])
  is 'Records completions in one go; answers the ids that were still the caller''s.';

create function bus.complete(
  id uuid, holder text, attempt smallint, result jsonb default null, result_snippet text default null,
  result_url text default null, follow_ups jsonb default '[]')
returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform from bus.complete_many(array[complete.id], array[complete.attempt], complete.holder, array[complete.result],
                                 array[complete.result_snippet], array[complete.result_url]);
  if not found then
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
comment on function bus.complete(uuid, text, smallint, jsonb, text, text, jsonb)
  is 'Records the one completion and sends the follow-ups in the same transaction; false if the claim is no longer the caller''s.';

create function bus.fail(
  id uuid, holder text, attempt smallint, reason text, retriable boolean default true, retry_ms bigint default null)
returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  m public.agent_messages;
begin
  select t.* into m from public.agent_messages t
   where t.id = fail.id and t.status = 'claimed' and t.claimed_by = fail.holder
     and t.attempts = fail.attempt and t.lease_until > clock_timestamp()
     for update;
  if not found then
    return null;
  end if;
  return bus.settle_failure(m, fail.reason, fail.retriable, fail.retry_ms, fail.holder);
end
$$;
comment on function bus.fail(uuid, text, smallint, text, boolean, bigint)
  is 'Ends an attempt with an error: queued again or a dead letter, which it answers; null if the claim is no longer the caller''s.';

create function bus.release(ids uuid[], attempts smallint[], holder text) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  routes text[];
  m public.agent_messages;
begin
  -- a message that nobody wants to work on must not go round for ever
  for m in
    select t.* from unnest(release.ids, release.attempts) as given (id, attempt)
      join public.agent_messages t on t.id = given.id and t.attempts = given.attempt
     where t.status = 'claimed' and t.claimed_by = release.holder and t.released >= 1000
     order by t.id for update of t
  loop
    perform bus.settle_failure(m, 'handed back 1000 times', false, null, release.holder);
  end loop;
  with held as (
    select t.id
      from unnest(release.ids, release.attempts) as given (id, attempt)
      join public.agent_messages t on t.id = given.id and t.attempts = given.attempt
     where t.status = 'claimed' and t.claimed_by = release.holder
     order by t.id for update of t
  ), given_back as (
    update public.agent_messages as t
       set status = 'queued', lease_until = null, released = t.released + 1
      from held
     where t.id = held.id
    returning t.service || '/' || t.role || '/' || t.shard as route
  )
  select array_agg(route) into routes from given_back;
  perform bus.announce(routes);
  return coalesce(array_length(routes, 1), 0);
end
$$;
comment on function bus.release(uuid[], smallint[], text)
  is 'Hands claims back unworked, at once claimable by others; they do not count against max_attempts.';

create function bus.cancel(task uuid) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  m public.agent_messages;
  cancelled integer := 0;
  before integer;
begin
  loop
    before := cancelled;
    for m in
      select t.* from public.agent_messages t
       where t.root_id = task and t.status in ('queued', 'claimed') order by t.id for update
    loop
      update public.agent_messages as t
         set status = 'cancelled', done_at = clock_timestamp(), lease_until = null, retry_at = null
       where t.id = m.id;
      perform bus.record_event('message_cancelled', m, 'bus.cancel', jsonb_build_object('was', m.status));
      perform pg_notify('bus_cancel', m.id::text);
      cancelled := cancelled + 1;
    end loop;
    -- a completion that was under way may have sent children meanwhile; the next look sees them
    exit when before = cancelled and not exists (
      select from public.agent_messages t where t.root_id = task and t.status in ('queued', 'claimed'));
  end loop;
  perform bus.announce_tasks(array[task]);
  return cancelled;
end
$$;
comment on function bus.cancel(uuid) is 'Cancels every unfinished message of a task, also running ones; answers how many.';

-- ---------------------------------------------------------------- healing

create function bus.reclaim(max_rows integer default 500) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  m public.agent_messages;
  reclaimed integer := 0;
begin
  for m in
    select t.* from public.agent_messages t
     where t.status = 'claimed' and t.lease_until <= (select clock_timestamp())
     order by t.lease_until limit max_rows for update skip locked
  loop
    perform bus.record_event('lease_expired', m, 'bus.reclaim',
      jsonb_build_object('holder', m.claimed_by, 'attempt', m.attempts));
    perform bus.settle_failure(m, 'lease of ' || m.claimed_by || ' expired', true,
      bus.after_crash(m), 'bus.reclaim');
    reclaimed := reclaimed + 1;
  end loop;
  return reclaimed;
end
$$;
comment on function bus.reclaim(integer) is 'Requeues messages whose lease has passed, or makes them dead letters; safe to run twice and at once.';

create function bus.requeue_held(holder text, reason text) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  m public.agent_messages;
  requeued integer := 0;
begin
  for m in
    select t.* from public.agent_messages t
     where t.status = 'claimed' and t.claimed_by = requeue_held.holder order by t.id for update
  loop
    perform bus.settle_failure(m, reason, true, bus.after_crash(m), 'bus.requeue_held');
    requeued := requeued + 1;
  end loop;
  return requeued;
end
$$;
comment on function bus.requeue_held(text, text) is 'Takes everything from a holder that is known to be gone; the registry calls it in the transaction of the death.';

create function bus.replay(dead_letter uuid) returns uuid
language plpgsql security definer
set search_path = pg_catalog, pg_temp
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
              where r.replay_of = dead_letter and r.status in ('queued', 'claimed', 'done')) then
    raise exception 'Message % has been replayed already', dead_letter
      using errcode = 'object_not_in_prerequisite_state';
  end if;
  -- no parent: the deadline of the task may long be over, and a replay starts afresh
  insert into public.agent_messages
         (id, service, role, shard, tenant, payload, priority, max_attempts, root_id, replay_of, reply_to,
          group_key, target_instance, headers)
  values (fresh, m.service, m.role, m.shard, m.tenant, m.payload, m.priority, m.max_attempts, m.root_id, m.id,
          m.reply_to, m.group_key, m.target_instance, m.headers);
  perform bus.record_event('message_replayed', m, 'bus.replay', jsonb_build_object('replay', fresh));
  return fresh;
end
$$;
comment on function bus.replay(uuid) is 'Sends a dead letter again as a new message of the same task that points back; answers the new id.';

create function bus.retain(keep interval, max_tasks integer default 1000) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  cutoff timestamptz := clock_timestamp() - keep;
  removed integer;
begin
  -- a task goes as a whole: never a step of one that is unfinished or still young
  with old as (
    select r.id from public.agent_messages r
     where r.id = r.root_id and r.done_at < cutoff
       and not exists (select from public.agent_messages s where s.root_id = r.id and s.done_at is null)
       and not exists (select from public.agent_messages s where s.root_id = r.id and s.done_at >= cutoff)
     order by r.done_at limit max_tasks for update skip locked)
  delete from public.agent_messages t using old
   where t.root_id = old.id and t.status in ('done', 'failed', 'cancelled');
  get diagnostics removed = row_count;
  delete from bus.watchers w where w.until < (select clock_timestamp());
  return removed;
end
$$;
comment on function bus.retain(interval, integer) is 'Removes finished tasks that ended before the interval, each as a whole; answers how many messages went.';

create function bus.retain_events(keep interval, max_rows integer default 5000) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  removed integer;
begin
  delete from public.bus_events
   where id in (select e.id from public.bus_events e where e.at < (select clock_timestamp() - keep) order by e.at limit max_rows);
  get diagnostics removed = row_count;
  return removed;
end
$$;
comment on function bus.retain_events(interval, integer) is 'Removes audit rows older than the interval; answers how many went.';

-- ---------------------------------------------------------------- following a task

create function bus.watch(task uuid, watcher text, for_ms bigint) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
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
  -- waits for completions that are under way, so that the caller's next read sees them; those that start later wait for
  -- this commit and then see the watcher. Queued rows are left alone: a claim would skip them while they are locked.
  perform from public.agent_messages m
    where m.root_id = watch.task and m.status = 'claimed' order by m.id for share;
end
$$;
comment on function bus.watch(uuid, text, bigint) is 'From now on, changes of the task are announced on channel bus_task; read the task after this call, not before.';

create function bus.task(task uuid) returns jsonb
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  with step as (
    select m.*,
           not exists (select from public.agent_messages c where c.parent_id = m.id)
             and not exists (select from public.agent_messages r where r.replay_of = m.id) as leaf
      from public.agent_messages m where m.root_id = task
  ), last_leaf as (
    select s.* from step s where s.leaf and s.done_at is not null order by s.done_at desc, s.id desc limit 1
  )
  select jsonb_build_object(
    'id', task,
    'tenant', min(s.tenant),
    'status', case
      when bool_or(s.status = 'claimed') or (bool_or(s.status = 'queued') and (count(*) > 1 or max(s.attempts) > 0)) then 'running'
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
      'service', s.service, 'role', s.role, 'shard', s.shard, 'status', s.status,
      'attempts', s.attempts, 'claimed_by', s.claimed_by, 'created_at', s.created_at,
      'claimed_at', s.claimed_at, 'retry_at', s.retry_at, 'done_at', s.done_at, 'error', s.error,
      'result_snippet', s.result_snippet) order by s.created_at, s.id))
    from step s
  having count(*) > 0
$$;
comment on function bus.task(uuid) is 'A task with its steps and, once finished, the result of its last leaf; null if there is none.';

-- ---------------------------------------------------------------- who may do what

revoke all on schema bus from public;
revoke all on public.agent_messages, public.bus_events, bus.watchers from public, anon, authenticated;
revoke execute on all functions in schema bus from public, anon, authenticated;
grant usage on schema bus to service_role;
grant execute on all functions in schema bus to service_role;
-- rows are made by anyone who may insert and changed by the functions alone
grant select, insert on public.agent_messages to service_role;
grant select on public.bus_events to service_role;

alter table public.agent_messages enable row level security;
alter table public.bus_events enable row level security;
alter table bus.watchers enable row level security;

do $$
begin
  if exists (select from pg_publication where pubname = 'supabase_realtime') then
    alter publication supabase_realtime add table public.agent_messages;
  end if;
end
$$;
