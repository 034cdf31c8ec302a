-- Schedules that keep no other from its time, and are told from others of their name.

-- One whose row somebody has locked for long costs the others this much in each round.
alter function bus.record_schedule(text, text, bigint, timestamptz, timestamptz[], timestamptz, boolean) set lock_timeout = '500ms';
alter function bus.break_schedule(text, text, bigint, text) set lock_timeout = '500ms';

-- a list with an empty place was taken, and could mean no time at all
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
