-- Three ways to speak besides sending: by the clock (schedules), to everyone (broadcasts), and for an answer (requests).
-- Messages are reached through the functions of schema bus alone, whatever their physical layout.

-- ---------------------------------------------------------------- schedules

create table bus.schedules (
  tenant          text        not null check (tenant ~ '^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}$'),
  name            text        not null check (name ~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$'),
  cron            text        not null constraint cron_has_five_or_six_fields
                  check (length(cron) <= 200 and cron ~ '^[0-9A-Za-z*,/#?+-]+( [0-9A-Za-z*,/#?+-]+){4,5}$'),
  time_zone       text        not null check (length(time_zone) <= 100),
  service         text        not null check (service ~ '^[a-z][a-z0-9-]{0,62}$'),
  role            text        not null check (role ~ '^[a-z][a-z0-9-]{0,62}$'),
  shard           integer     not null check (shard between 0 and 65535),
  payload         jsonb       not null
                  constraint payload_is_an_object check (jsonb_typeof(payload) = 'object')
                  constraint payload_at_most_1_mib check (pg_column_size(payload) <= 1048576),
  priority        smallint    not null check (priority between 0 and 1000),
  max_attempts    smallint    not null check (max_attempts between 1 and 1000),
  ttl_ms          bigint      check (ttl_ms between 1 and 31536000000),
  missed          text        not null check (missed in ('skip', 'run_once', 'run_all')),
  catch_up_cap    smallint    not null check (catch_up_cap between 1 and 1000),
  paused          boolean     not null default false,
  revision        bigint      not null default 1,
  since           timestamptz not null default clock_timestamp(),
  next_at         timestamptz,
  last_at         timestamptz,
  last_message_id uuid,
  last_error      text        check (length(last_error) <= 1000),
  created_at      timestamptz not null default clock_timestamp(),
  updated_at      timestamptz not null default clock_timestamp(),
  primary key (tenant, name),
  constraint what_is_broken_is_paused check (last_error is null or paused)
) with (fillfactor = 80);

comment on table bus.schedules is 'Messages that the clock sends; a firer computes the occurrences and records each once.';
comment on column bus.schedules.tenant is 'Whose schedule and whose messages.';
comment on column bus.schedules.name is 'Unlike any other of the tenant; part of the idempotency key of what it sends.';
comment on column bus.schedules.cron is 'Five fields (minute, hour, day, month, weekday) or six, with the second first.';
comment on column bus.schedules.time_zone is 'IANA name of the zone that the expression is meant in.';
comment on column bus.schedules.service is 'First part of the routing key of what is sent.';
comment on column bus.schedules.role is 'Second part of the routing key.';
comment on column bus.schedules.shard is 'Third part of the routing key.';
comment on column bus.schedules.payload is 'The request, the same for each occurrence; which one it is stands in the headers.';
comment on column bus.schedules.priority is 'Of the messages, lower is claimed first.';
comment on column bus.schedules.max_attempts is 'Of the messages: counted attempts after which a failure is final.';
comment on column bus.schedules.ttl_ms is 'Of the messages: never started later than this after they were sent; null means no limit.';
comment on column bus.schedules.missed is 'What becomes of occurrences that nobody fired in time: skip, run_once (the newest) or run_all.';
comment on column bus.schedules.catch_up_cap is 'Under run_all at most this many are made up for, the newest ones.';
comment on column bus.schedules.paused is 'Nothing is sent; what falls into a pause is not made up for.';
comment on column bus.schedules.revision is 'Grows with each change by people; a firer that read an older one records nothing.';
comment on column bus.schedules.since is 'Occurrences after this time count: when it was defined, changed or resumed.';
comment on column bus.schedules.next_at is 'The next occurrence to be sent; null means to be computed by the firer, from since on.';
comment on column bus.schedules.last_at is 'The newest occurrence that was sent.';
comment on column bus.schedules.last_message_id is 'The message that it was sent as.';
comment on column bus.schedules.last_error is 'Why it can never fire as it stands; it is paused until it is changed or resumed.';
comment on column bus.schedules.created_at is 'When it was defined first.';
comment on column bus.schedules.updated_at is 'When people changed it last.';

-- one that was never computed is due at once
create index bus_schedules_due on bus.schedules ((coalesce(next_at, '-infinity'::timestamptz))) where not paused;

create function bus.upsert_schedule(
  name text, cron text, service text, role text, tenant text, payload jsonb default '{}', time_zone text default 'UTC',
  shard integer default 0, priority integer default 100, max_attempts integer default 5, ttl_ms bigint default null,
  missed text default 'run_once', catch_up_cap integer default 100)
returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  expression text := btrim(regexp_replace(upsert_schedule.cron, '\s+', ' ', 'g'));
  created boolean;
begin
  if not exists (select from pg_timezone_names z where z.name = upsert_schedule.time_zone) then
    raise exception 'Time zone % is not known', upsert_schedule.time_zone using errcode = 'invalid_parameter_value';
  end if;
  insert into bus.schedules as s
         (tenant, name, cron, time_zone, service, role, shard, payload, priority, max_attempts, ttl_ms, missed, catch_up_cap)
  values (upsert_schedule.tenant, upsert_schedule.name, expression, upsert_schedule.time_zone, upsert_schedule.service,
          upsert_schedule.role, upsert_schedule.shard, upsert_schedule.payload, upsert_schedule.priority::smallint,
          upsert_schedule.max_attempts::smallint, upsert_schedule.ttl_ms, upsert_schedule.missed,
          upsert_schedule.catch_up_cap::smallint)
  on conflict (tenant, name) do update
     set cron = excluded.cron, time_zone = excluded.time_zone, service = excluded.service, role = excluded.role,
         shard = excluded.shard, payload = excluded.payload, priority = excluded.priority,
         max_attempts = excluded.max_attempts, ttl_ms = excluded.ttl_ms, missed = excluded.missed,
         catch_up_cap = excluded.catch_up_cap, revision = s.revision + 1, updated_at = excluded.updated_at,
         -- the same times said again, as every deployment does, must not lose an occurrence that is due
         next_at = case when (s.cron, s.time_zone) = (excluded.cron, excluded.time_zone) then s.next_at end,
         since = case when (s.cron, s.time_zone) = (excluded.cron, excluded.time_zone) then s.since else excluded.since end,
         -- what was broken gets another chance, what people paused stays paused
         paused = s.paused and s.last_error is null, last_error = null
  returning s.revision = 1 into created;
  return created;
end
$$;
comment on function bus.upsert_schedule(text, text, text, text, text, jsonb, text, integer, integer, integer, bigint, text, integer)
  is 'Defines or changes a schedule; true if it is new. Unchanged times keep their next occurrence.';

create function bus.pause_schedule(name text, tenant text) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  update bus.schedules s
     set paused = true, revision = s.revision + 1, updated_at = clock_timestamp()
   where s.tenant = pause_schedule.tenant and s.name = pause_schedule.name and not s.paused;
  return found;
end
$$;
comment on function bus.pause_schedule(text, text) is 'Sends nothing from now on; false if there is none or it is paused already.';

create function bus.resume_schedule(name text, tenant text) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  update bus.schedules s
     set paused = false, last_error = null, next_at = null, since = clock_timestamp(), revision = s.revision + 1,
         updated_at = clock_timestamp()
   where s.tenant = resume_schedule.tenant and s.name = resume_schedule.name and s.paused;
  return found;
end
$$;
comment on function bus.resume_schedule(text, text)
  is 'Goes on with the next occurrence, without those of the pause; false if there is none or it is not paused.';

create function bus.remove_schedule(name text, tenant text) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  delete from bus.schedules s where s.tenant = remove_schedule.tenant and s.name = remove_schedule.name;
  return found;
end
$$;
comment on function bus.remove_schedule(text, text) is 'Forgets a schedule; what it sent stays. False if there is none.';

create function bus.list_schedules(only_tenant text default null)
returns table (
  tenant text, name text, cron text, time_zone text, service text, role text, shard integer, payload jsonb,
  priority smallint, max_attempts smallint, ttl_ms bigint, missed text, catch_up_cap smallint, paused boolean,
  next_at timestamptz, last_at timestamptz, last_message_id uuid, last_error text, created_at timestamptz,
  updated_at timestamptz)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select s.tenant, s.name, s.cron, s.time_zone, s.service, s.role, s.shard, s.payload, s.priority, s.max_attempts,
         s.ttl_ms, s.missed, s.catch_up_cap, s.paused, s.next_at, s.last_at, s.last_message_id, s.last_error,
         s.created_at, s.updated_at
    from bus.schedules s
   where only_tenant is null or s.tenant = only_tenant
   order by s.tenant, s.name
$$;
comment on function bus.list_schedules(text) is 'All schedules, or those of one tenant, by tenant and name.';

create function bus.due_schedules(max_rows integer default 100)
returns table (
  tenant text, name text, revision bigint, cron text, time_zone text, missed text, catch_up_cap smallint,
  since timestamptz, next_at timestamptz, now timestamptz)
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select s.tenant, s.name, s.revision, s.cron, s.time_zone, s.missed, s.catch_up_cap, s.since, s.next_at, t.now
    from (select clock_timestamp() as now) as t, bus.schedules s
   where not s.paused and coalesce(s.next_at, '-infinity'::timestamptz) <= t.now
   order by coalesce(s.next_at, '-infinity'::timestamptz) limit max_rows
$$;
comment on function bus.due_schedules(integer)
  is 'Schedules to be fired or computed, and the time by which to do it; locks nothing, bus.record_schedule decides.';

create function bus.next_schedule_due() returns bigint
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select case when d.due is not null
           then greatest(0, ceil(extract(epoch from greatest(d.due, '1970-01-01') - clock_timestamp()) * 1000))::bigint end
    from (select min(coalesce(s.next_at, '-infinity'::timestamptz)) as due from bus.schedules s where not s.paused) as d
$$;
comment on function bus.next_schedule_due() is 'Milliseconds until a schedule is due, 0 if one is; null if there is none.';

create function bus.record_schedule(
  name text, tenant text, revision bigint, expected_next_at timestamptz, occurrences timestamptz[],
  next_at timestamptz, left_out boolean default false)
returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  s bus.schedules;
  occurrence timestamptz;
  sent record;
  fresh integer := 0;
begin
  if record_schedule.next_at is null or not isfinite(record_schedule.next_at) then
    raise exception 'The next occurrence must be a time' using errcode = 'invalid_parameter_value';
  end if;
  -- who comes second finds another next_at here, after having waited for the first one's commit
  update bus.schedules t
     set next_at = record_schedule.next_at
   where t.tenant = record_schedule.tenant and t.name = record_schedule.name and t.revision = record_schedule.revision
     and t.next_at is not distinct from record_schedule.expected_next_at and not t.paused
  returning t.* into s;
  if not found then
    return null;
  end if;
  for occurrence in select o from unnest(record_schedule.occurrences) as given (o) order by o loop
    select e.id, e.duplicate into sent
      from bus.enqueue_many(jsonb_build_array(jsonb_strip_nulls(jsonb_build_object(
        'tenant', s.tenant, 'service', s.service, 'role', s.role, 'shard', s.shard, 'priority', s.priority,
        'max_attempts', s.max_attempts, 'ttl_ms', s.ttl_ms,
        'idempotency_key', 'schedule:' || s.name || ':' || to_char(occurrence at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
        'headers', jsonb_build_object('schedule', s.name, 'scheduled_for', occurrence)))
        || jsonb_build_object('payload', s.payload))) as e;
    fresh := fresh + case when sent.duplicate then 0 else 1 end;
    update bus.schedules t
       set last_at = occurrence, last_message_id = sent.id
     where t.tenant = s.tenant and t.name = s.name;
  end loop;
  if record_schedule.left_out then
    insert into public.bus_events (kind, tenant, route, actor, detail)
    values ('schedule_missed', s.tenant, s.service || '/' || s.role || '/' || s.shard, 'bus.record_schedule',
            jsonb_build_object('schedule', s.name, 'policy', s.missed, 'due', record_schedule.expected_next_at,
                               'sent', cardinality(record_schedule.occurrences), 'next_at', record_schedule.next_at));
  end if;
  return fresh;
end
$$;
comment on function bus.record_schedule(text, text, bigint, timestamptz, timestamptz[], timestamptz, boolean)
  is 'Sends these occurrences and moves on to the next, all or nothing; null if another firer or a change was first, else how many messages are new.';

create function bus.break_schedule(name text, tenant text, revision bigint, reason text) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  s bus.schedules;
begin
  update bus.schedules t
     set paused = true, last_error = left(coalesce(nullif(break_schedule.reason, ''), 'no reason given'), 1000)
   where t.tenant = break_schedule.tenant and t.name = break_schedule.name and t.revision = break_schedule.revision
     and not t.paused
  returning t.* into s;
  if not found then
    return false;
  end if;
  insert into public.bus_events (kind, tenant, route, actor, detail)
  values ('schedule_broken', s.tenant, s.service || '/' || s.role || '/' || s.shard, 'bus.break_schedule',
          jsonb_build_object('schedule', s.name, 'error', s.last_error));
  return true;
end
$$;
comment on function bus.break_schedule(text, text, bigint, text)
  is 'Pauses a schedule that can never fire as it stands, with the reason; false if it has changed meanwhile.';

-- ---------------------------------------------------------------- broadcasts
--
-- Positions must be in an order in which nothing appears behind a reader. A sequence alone is not: a transaction may take
-- a number, another may commit a higher one, and only then the first commits. Rows are therefore ordered by the
-- transaction's own number first, and read only below the oldest transaction that is still open: all of those have ended,
-- and later ones have higher numbers. A transaction that stays open delays broadcasts; it never loses one.
-- Transaction numbers mean nothing in another cluster (after a dump and restore), hence the epoch in front of them.

create table bus.broadcast_epochs (
  epoch             integer     generated always as identity primary key,
  system_identifier bigint      not null,
  began_at          timestamptz not null default clock_timestamp()
);
comment on table bus.broadcast_epochs is 'Clusters that these rows have lived in, one after the other; transaction numbers compare within one only.';
comment on column bus.broadcast_epochs.epoch is 'Comes before the transaction number in the order of broadcasts.';
comment on column bus.broadcast_epochs.system_identifier is 'The cluster, as pg_control_system() names it.';
comment on column bus.broadcast_epochs.began_at is 'When the rows were first used there.';
insert into bus.broadcast_epochs (system_identifier) select c.system_identifier from pg_control_system() c;

create table bus.broadcasts (
  seq        bigint      generated always as identity primary key,
  epoch      integer     not null,
  xid        xid8        not null,
  at         timestamptz not null default clock_timestamp(),
  topic      text        not null check (topic ~ '^[a-z][a-z0-9_.-]{0,126}$'),
  tenant     text        not null check (tenant ~ '^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}$'),
  payload    jsonb       not null
             constraint payload_is_an_object check (jsonb_typeof(payload) = 'object')
             constraint payload_at_most_1_mib check (pg_column_size(payload) <= 1048576),
  headers    jsonb       not null
             constraint headers_are_an_object check (jsonb_typeof(headers) = 'object')
             constraint headers_at_most_16_kib check (pg_column_size(headers) <= 16384),
  expires_at timestamptz not null
);
comment on table bus.broadcasts is 'One row for each broadcast, however many read it; never changed, removed once expired.';
comment on column bus.broadcasts.seq is 'Names the broadcast; orders those of one transaction.';
comment on column bus.broadcasts.epoch is 'Cluster in which it was made.';
comment on column bus.broadcasts.xid is 'Transaction that made it; readable once every older one has ended.';
comment on column bus.broadcasts.at is 'When it was made, by the database clock.';
comment on column bus.broadcasts.topic is 'What it is about; consumers follow topics.';
comment on column bus.broadcasts.tenant is 'Whose it is.';
comment on column bus.broadcasts.payload is 'The content, a JSON object of at most 1 MiB.';
comment on column bus.broadcasts.headers is 'W3C trace context and other transport headers.';
comment on column bus.broadcasts.expires_at is 'Not read after this time, then removed.';
create index bus_broadcasts_topic on bus.broadcasts (topic, epoch, xid, seq);
create index bus_broadcasts_tenant on bus.broadcasts (tenant, topic, epoch, xid, seq);
create index bus_broadcasts_expiry on bus.broadcasts (expires_at);

create table bus.cursors (
  consumer        text        not null check (consumer ~ '^[A-Za-z0-9][A-Za-z0-9_.:@#/-]{0,127}$'),
  topic           text        not null check (topic ~ '^[a-z][a-z0-9_.-]{0,126}$'),
  tenant          text        not null check (tenant = '*' or tenant ~ '^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}$'),
  epoch           integer     not null,
  xid             xid8        not null,
  seq             bigint      not null,
  since           timestamptz not null,
  created_at      timestamptz not null default clock_timestamp(),
  acknowledged_at timestamptz,
  seen_at         timestamptz not null default clock_timestamp(),
  primary key (consumer, topic, tenant)
) with (fillfactor = 70);
comment on table bus.cursors is 'How far each consumer of a topic has acknowledged.';
comment on column bus.cursors.consumer is 'Name that all instances of one consumer share.';
comment on column bus.cursors.topic is 'The topic that it follows.';
comment on column bus.cursors.tenant is 'The one tenant whose broadcasts it reads, or * for those of all.';
comment on column bus.cursors.epoch is 'Of the last broadcast that was acknowledged.';
comment on column bus.cursors.xid is 'Of the last broadcast that was acknowledged.';
comment on column bus.cursors.seq is 'Of the last broadcast that was acknowledged.';
comment on column bus.cursors.since is 'Broadcasts made before this time are not read.';
comment on column bus.cursors.created_at is 'When the consumer first followed the topic.';
comment on column bus.cursors.acknowledged_at is 'When it last advanced.';
comment on column bus.cursors.seen_at is 'When it last read, to the hour; one that nobody reads is removed in time.';
create index bus_cursors_topic on bus.cursors (topic);

create function bus.broadcast_epoch() returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  here bigint := (select c.system_identifier from pg_control_system() c);
  latest bus.broadcast_epochs;
begin
  select e.* into latest from bus.broadcast_epochs e order by e.epoch desc limit 1;
  if latest.system_identifier is distinct from here then
    perform pg_advisory_xact_lock(hashtextextended('bus.broadcast_epochs', 0));
    select e.* into latest from bus.broadcast_epochs e order by e.epoch desc limit 1;
    if latest.system_identifier is distinct from here then
      insert into bus.broadcast_epochs as e (system_identifier) values (here) returning e.* into latest;
    end if;
  end if;
  return latest.epoch;
end
$$;
comment on function bus.broadcast_epoch() is 'The epoch of this cluster; a new one when the rows were brought here from another.';

create function bus.publish(
  topic text, tenant text, payload jsonb, ttl_ms bigint default 604800000, headers jsonb default '{}')
returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  published bigint;
begin
  if (publish.ttl_ms between 1 and 31536000000) is not true then
    raise exception 'A broadcast lives 1 ms to 365 days' using errcode = 'invalid_parameter_value';
  end if;
  insert into bus.broadcasts as b (epoch, xid, topic, tenant, payload, headers, expires_at)
  values (bus.broadcast_epoch(), pg_current_xact_id(), publish.topic, publish.tenant, publish.payload, publish.headers,
          clock_timestamp() + publish.ttl_ms * interval '1 millisecond')
  returning b.seq into published;
  if exists (select from bus.cursors c where c.topic = publish.topic) then
    perform pg_notify('bus_broadcast', publish.topic);
  end if;
  return published;
end
$$;
comment on function bus.publish(text, text, jsonb, bigint, jsonb)
  is 'Makes a broadcast that each consumer of the topic reads; answers its number. Wakes nobody when nobody follows the topic.';

create function bus.subscribe(consumer text, topic text, start_at text default 'latest', only_tenant text default '*')
returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  -- everything that ends from now on has this number or a higher one
  first_epoch integer := bus.broadcast_epoch();
  first_xid xid8 := pg_snapshot_xmin(pg_current_snapshot());
  first_seq bigint := 0;
  not_before timestamptz := '-infinity';
  oldest record;
begin
  if subscribe.start_at is null then
    raise exception 'A consumer starts at earliest, latest or a time' using errcode = 'invalid_parameter_value';
  elsif subscribe.start_at <> 'latest' then
    not_before := case when subscribe.start_at = 'earliest' then '-infinity' else subscribe.start_at::timestamptz end;
    select b.epoch, b.xid, b.seq - 1 as before into oldest
      from bus.broadcasts b
     where b.topic = subscribe.topic and b.at >= not_before and (b.epoch, b.xid) < (first_epoch, first_xid)
       and (subscribe.only_tenant = '*' or b.tenant = subscribe.only_tenant)
     order by b.epoch, b.xid, b.seq limit 1;
    if found then
      first_epoch := oldest.epoch;
      first_xid := oldest.xid;
      first_seq := oldest.before;
    end if;
  end if;
  insert into bus.cursors (consumer, topic, tenant, epoch, xid, seq, since)
  values (subscribe.consumer, subscribe.topic, subscribe.only_tenant, first_epoch, first_xid, first_seq, not_before)
  on conflict (consumer, topic, tenant) do nothing;
  return found;
end
$$;
comment on function bus.subscribe(text, text, text, text)
  is 'Lets a consumer follow a topic from earliest, latest or a time on; one that follows it already stays where it is, and false is answered.';

create function bus.unsubscribe(consumer text, topic text, only_tenant text default '*') returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  delete from bus.cursors c
   where c.consumer = unsubscribe.consumer and c.topic = unsubscribe.topic and c.tenant = unsubscribe.only_tenant;
  return found;
end
$$;
comment on function bus.unsubscribe(text, text, text) is 'Forgets how far a consumer has read; false if it did not follow the topic.';

create function bus.read_broadcasts(consumer text, topic text, max_rows integer default 100, only_tenant text default '*')
returns table (
  seq bigint, at timestamptz, tenant text, payload jsonb, headers jsonb, expires_at timestamptz,
  read_from text, read_to text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  c bus.cursors;
  here text;
  now timestamptz;
  current_epoch integer := bus.broadcast_epoch();
  -- read before the rows are, so that whatever is below it has ended and is seen
  open_from xid8 := pg_snapshot_xmin(pg_current_snapshot());
begin
  select k.* into c from bus.cursors k
   where k.consumer = read_broadcasts.consumer and k.topic = read_broadcasts.topic and k.tenant = read_broadcasts.only_tenant;
  if not found then
    raise exception 'Consumer % does not follow topic %', read_broadcasts.consumer, read_broadcasts.topic
      using errcode = 'no_data_found';
  end if;
  if (read_broadcasts.max_rows between 1 and 1000) is not true then
    raise exception 'A read takes 1 to 1000 broadcasts' using errcode = 'invalid_parameter_value';
  end if;
  now := clock_timestamp();
  if c.seen_at < now - interval '1 hour' then
    update bus.cursors k set seen_at = now
     where k.consumer = c.consumer and k.topic = c.topic and k.tenant = c.tenant and k.seen_at < now - interval '1 hour';
  end if;
  here := c.epoch || '.' || c.xid || '.' || c.seq;
  if c.tenant = '*' then
    return query
    select b.seq, b.at, b.tenant, b.payload, b.headers, b.expires_at, here, b.epoch || '.' || b.xid || '.' || b.seq
      from bus.broadcasts b
     where b.topic = c.topic and (b.epoch, b.xid, b.seq) > (c.epoch, c.xid, c.seq)
       and (b.epoch, b.xid) < (current_epoch, open_from) and b.at >= c.since and b.expires_at > now
     order by b.epoch, b.xid, b.seq limit read_broadcasts.max_rows;
  else
    return query
    select b.seq, b.at, b.tenant, b.payload, b.headers, b.expires_at, here, b.epoch || '.' || b.xid || '.' || b.seq
      from bus.broadcasts b
     where b.tenant = c.tenant and b.topic = c.topic and (b.epoch, b.xid, b.seq) > (c.epoch, c.xid, c.seq)
       and (b.epoch, b.xid) < (current_epoch, open_from) and b.at >= c.since and b.expires_at > now
     order by b.epoch, b.xid, b.seq limit read_broadcasts.max_rows;
  end if;
end
$$;
comment on function bus.read_broadcasts(text, text, integer, text)
  is 'What a consumer has not acknowledged, in order; read_from and the read_to of the last row worked on go to bus.acknowledge_broadcasts.';

create function bus.acknowledge_broadcasts(consumer text, topic text, read_from text, read_to text, only_tenant text default '*')
returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  target text[] := regexp_match(acknowledge_broadcasts.read_to, '^([0-9]{1,9})\.([0-9]{1,19})\.([0-9]{1,18})$');
  open_from xid8 := pg_snapshot_xmin(pg_current_snapshot());
begin
  if target is null then
    raise exception 'Position % is none that was read', acknowledge_broadcasts.read_to using errcode = 'invalid_parameter_value';
  end if;
  if (target[1]::integer, target[2]::xid8) >= (bus.broadcast_epoch(), open_from) then
    raise exception 'Position % cannot have been read yet', acknowledge_broadcasts.read_to
      using errcode = 'invalid_parameter_value';
  end if;
  update bus.cursors c
     set epoch = target[1]::integer, xid = target[2]::xid8, seq = target[3]::bigint, acknowledged_at = clock_timestamp(),
         seen_at = clock_timestamp()
   where c.consumer = acknowledge_broadcasts.consumer and c.topic = acknowledge_broadcasts.topic
     and c.tenant = acknowledge_broadcasts.only_tenant
     and c.epoch || '.' || c.xid || '.' || c.seq = acknowledge_broadcasts.read_from
     and (c.epoch, c.xid, c.seq) < (target[1]::integer, target[2]::xid8, target[3]::bigint);
  return found;
end
$$;
comment on function bus.acknowledge_broadcasts(text, text, text, text, text)
  is 'Moves a consumer from one position to a later one; false if it is no longer at the first, because another instance moved it.';

create function bus.broadcasts_held_back(topic text) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  current_epoch integer := bus.broadcast_epoch();
begin
  return exists (
    select from bus.broadcasts b
     where b.topic = broadcasts_held_back.topic
       and (b.epoch, b.xid) >= (current_epoch, pg_snapshot_xmin(pg_current_snapshot())));
end
$$;
comment on function bus.broadcasts_held_back(text)
  is 'Whether something of the topic is committed but waits for an older transaction to end; look again soon.';

create function bus.retain_broadcasts(max_rows integer default 1000, idle interval default '30 days') returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  removed integer;
begin
  delete from bus.broadcasts
   where seq in (select b.seq from bus.broadcasts b where b.expires_at <= (select clock_timestamp())
                  order by b.expires_at limit max_rows for update skip locked);
  get diagnostics removed = row_count;
  delete from bus.cursors c where c.seen_at < clock_timestamp() - idle;
  return removed;
end
$$;
comment on function bus.retain_broadcasts(integer, interval)
  is 'Removes broadcasts that have expired and cursors that nobody has read for the interval; answers how many broadcasts went.';

-- ---------------------------------------------------------------- requests

create function bus.request(message jsonb, deadline_ms bigint, watcher text, caller uuid default null)
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
    select m.tenant, floor(extract(epoch from m.expires_at - clock_timestamp()) * 1000)::bigint as remaining_ms into asker
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
  -- under a known key the first message may be a step of another task
  select m.root_id into task from public.agent_messages m where m.id = sent.id;
  perform bus.watch(task, request.watcher, allowed + 60000);
  return query select sent.id, task, sent.duplicate;
end
$$;
comment on function bus.request(jsonb, bigint, text, uuid)
  is 'Sends a message that never starts after the deadline, or that of its caller, and watches its task; bus.reply has the answer.';

create function bus.reply(request uuid) returns jsonb
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  asked record;
  task jsonb;
  finished_at timestamptz;
begin
  select m.root_id, m.expires_at into asked from public.agent_messages m where m.id = request;
  if not found then
    return null;
  end if;
  task := bus.task(asked.root_id);
  if task ->> 'status' in ('done', 'failed', 'cancelled') then
    finished_at := (task ->> 'finished_at')::timestamptz;
  end if;
  -- one clock says which replies are late
  if finished_at <= coalesce(asked.expires_at, 'infinity') then
    return jsonb_build_object('status', task -> 'status', 'result', task -> 'result', 'result_url', task -> 'result_url',
                              'error', task -> 'error');
  end if;
  if asked.expires_at <= clock_timestamp() then
    return jsonb_build_object('status', 'timed_out');
  end if;
  return jsonb_build_object('status', 'pending', 'remaining_ms',
    ceil(extract(epoch from asked.expires_at - clock_timestamp()) * 1000)::bigint);
end
$$;
comment on function bus.reply(uuid)
  is 'What became of a request: pending (with remaining_ms), done (with result), failed (with error), cancelled or timed_out; null if there is none. A reply after the deadline is recorded on the message and not answered here.';

-- ---------------------------------------------------------------- who may do what

alter table bus.schedules enable row level security;
alter table bus.broadcast_epochs enable row level security;
alter table bus.broadcasts enable row level security;
alter table bus.cursors enable row level security;
revoke all on bus.schedules, bus.broadcast_epochs, bus.broadcasts, bus.cursors from public, anon, authenticated;

do $$
declare
  own constant regprocedure[] := array[
    'bus.upsert_schedule(text, text, text, text, text, jsonb, text, integer, integer, integer, bigint, text, integer)',
    'bus.pause_schedule(text, text)', 'bus.resume_schedule(text, text)', 'bus.remove_schedule(text, text)',
    'bus.list_schedules(text)', 'bus.due_schedules(integer)', 'bus.next_schedule_due()',
    'bus.record_schedule(text, text, bigint, timestamptz, timestamptz[], timestamptz, boolean)',
    'bus.break_schedule(text, text, bigint, text)', 'bus.broadcast_epoch()',
    'bus.publish(text, text, jsonb, bigint, jsonb)', 'bus.subscribe(text, text, text, text)',
    'bus.unsubscribe(text, text, text)', 'bus.read_broadcasts(text, text, integer, text)',
    'bus.acknowledge_broadcasts(text, text, text, text, text)', 'bus.broadcasts_held_back(text)',
    'bus.retain_broadcasts(integer, interval)', 'bus.request(jsonb, bigint, text, uuid)', 'bus.reply(uuid)'];
  one regprocedure;
begin
  foreach one in array own loop
    execute format('revoke execute on function %s from public, anon, authenticated', one);
    execute format('grant execute on function %s to service_role', one);
  end loop;
end
$$;
