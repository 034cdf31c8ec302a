-- One short answer to whether the chores of healing have anything to do, so that an idle bus is not asked chore by chore.

create function bus.overdue(out leases boolean, out outlived boolean, out schedule_ms bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  moment constant timestamptz := clock_timestamp();
begin
  select exists (select from bus.claims c where c.lease_until <= moment),
         exists (select from bus.expiring e where e.at <= moment),
         -- greatest() would turn a null into 0
         case when d.due is not null
           then greatest(0, ceil(extract(epoch from greatest(d.due, '1970-01-01') - moment) * 1000))::bigint end
    into leases, outlived, schedule_ms
    from (select min(coalesce(s.next_at, '-infinity'::timestamptz)) as due from bus.schedules s where not s.paused) as d;
end
$$;
comment on function bus.overdue()
  is 'Whether bus.reclaim and bus.expire have anything to do, and milliseconds until a schedule is due, 0 if one is; null if there is none. Changes nothing.';
revoke execute on function bus.overdue() from public, anon, authenticated;
grant execute on function bus.overdue() to service_role;
