-- What a worker that connects as service_role must be able to read: figures over the bus, how routes are steered, and
-- the version of the schema, without which it does not start.
--
-- Reading only, and only the columns that the figures need; a message is still changed by the functions of schema bus
-- alone. service_role reads past row security, so that no policy is needed. A worker's own role becomes it at its
-- connection: create role <name> login noinherit password '…' in role service_role; alter role <name> set role = 'service_role'.

grant select (route, lane, share, due, chunk, ids) on bus.ready to service_role;
grant select (lane, due, id) on bus.delayed to service_role;
grant select (lane, tenant, group_key, position, id) on bus.groups to service_role;
grant select (id) on bus.joins to service_role;
grant select (route, holder, claimed_at, lease_until, ids, attempts) on bus.claims to service_role;
grant select (id, failed_at, route) on bus.dead_letters to service_role;
grant select (lane, service, role, shard, paused, draining, aging_ms, changed_at, changed_by) on bus.routes to service_role;
grant select (lane, counted_by, subject, max_running, per_second, burst) on bus.limits to service_role;

do $$
begin
  -- whoever brings migrations in by other means keeps his list of them elsewhere
  if to_regclass('public._sqlx_migrations') is not null then
    grant select (version, success) on public._sqlx_migrations to service_role;
  end if;
end
$$;
