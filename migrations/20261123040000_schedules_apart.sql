-- Schedules that keep no other from its time, and are told from others of their name.

-- One whose row somebody has locked for long costs the others this much in each round.
create or replace function bus.record_schedule(
  name text, tenant text, revision bigint, expected_next_at timestamptz, occurrences timestamptz[],
  next_at timestamptz, left_out boolean default false)
returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '500ms'
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
                               'sent', cardinality(record_schedule.occurrences), 'next_at', record_schedule.next_at,
                               -- a long catch-up goes on
                               'goes_on', record_schedule.next_at <= clock_timestamp()));
  end if;
  return fresh;
end
$$;
alter function bus.break_schedule(text, text, bigint, text) set lock_timeout = '500ms';

-- A list with an empty place was taken, and means the rest of it; where nothing else is in a field, it means no time at all.
update bus.schedules s
   set cron = case when means.something then said.cron else '0 0 30 2 *' end, paused = s.paused or not means.something,
       last_error = case when means.something then s.last_error
                         else left('Cron expression "' || s.cron || '" means no time', 1000) end,
       revision = s.revision + 1
  from (select c.tenant, c.name,
               regexp_replace(regexp_replace(regexp_replace(c.cron, ',{2,}', ',', 'g'), '(^| ),(?=[^ ])', '\1', 'g'),
                              '([^ ,]),(?= |$)', '\1', 'g') as cron
          from bus.schedules c) as said,
       lateral (select said.cron !~ '(^| ),( |$)' as something) as means
 where s.tenant = said.tenant and s.name = said.name and (s.cron <> said.cron or not means.something);
alter table bus.schedules drop constraint cron_has_five_or_six_fields;
alter table bus.schedules add constraint cron_has_five_or_six_fields check (
  length(cron) <= 200
  and cron ~ '^[0-9A-Za-z*/#?+-]+(,[0-9A-Za-z*/#?+-]+)*( [0-9A-Za-z*/#?+-]+(,[0-9A-Za-z*/#?+-]+)*){4,5}$') not valid;

-- A firer that has looked at a schedule does nothing to another that was made under its name meanwhile.
create sequence bus.schedule_definitions;
comment on sequence bus.schedule_definitions is 'Counts definitions of schedules, so that revisions of no two of them are alike.';
alter table bus.schedules alter column revision set default nextval('bus.schedule_definitions') << 20;
comment on column bus.schedules.revision is 'Grows with each change by people, and begins anew with each definition at a number that none had; a firer that read another one records nothing.';

-- as before, for any first revision
create or replace function bus.upsert_schedule(
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
  -- nobody has updated what was just inserted
  returning s.xmax = 0 into created;
  return created;
end
$$;

-- as before, by the index: min() looked at all
create or replace function bus.next_schedule_due() returns bigint
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  select case when d.due is not null
           then greatest(0, ceil(extract(epoch from greatest(d.due, '1970-01-01') - clock_timestamp()) * 1000))::bigint end
    from (select coalesce(s.next_at, '-infinity'::timestamptz) as due from bus.schedules s
           where not s.paused and not exists (select from bus.routes r
                  where r.lane = bus.lane(s.service || '/' || s.role || '/' || s.shard, null) and r.draining)
           order by coalesce(s.next_at, '-infinity'::timestamptz) limit 1) as d
$$;
