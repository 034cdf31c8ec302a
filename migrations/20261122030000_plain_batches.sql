-- Many plain messages of one tenant to one route for less: straight into the part of the day with their ready rows, since
-- what the triggers of the table would find out about each of them is said once for all.

create function bus.enqueue_payloads(
  service text, role text, tenant text, payloads jsonb[], headers jsonb[] default null, shard integer default 0,
  ids uuid[] default null)
returns uuid[]
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_variable
declare
  its_route constant text := service || '/' || role || '/' || shard;
  moment constant timestamptz := clock_timestamp();
  today constant date := (moment at time zone 'UTC')::date;
  part constant regclass := to_regclass('bus.messages_' || to_char(today, 'YYYYMMDD'));
  -- as bus.first_id, of which two calls take as long as twenty messages
  first constant uuid := (lpad(to_hex((today - date '1970-01-01') * 86400000::bigint), 12, '0') || repeat('0', 20))::uuid;
  past constant uuid := (lpad(to_hex((today + 1 - date '1970-01-01') * 86400000::bigint), 12, '0') || repeat('0', 20))::uuid;
  given constant text := '(select unnest($5) as id, unnest($6) as payload, unnest($7) as headers) as g';
  -- all that bus.after_insert asks of such a message, and the bounds of the part. What does not fit is inserted below as
  -- ever, so that only a rule which becomes stricter there must become so here.
  fits constant text :=
    'g.id >= $8 and g.id < $9 and jsonb_typeof(g.payload) = ''object'' and pg_column_size(g.payload) <= 1048576
     and (g.headers is null or jsonb_typeof(g.headers) = ''object'' and pg_column_size(g.headers) <= 16384)';
  made uuid[];
  settings record;
  stored bigint := 0;
begin
  if ids is null then
    made := array(select bus.uuid_v7() from generate_series(1, cardinality(payloads)));
    ids := made;
  elsif array_ndims(ids) <> 1 or array_lower(ids, 1) <> 1 then
    -- pieces are cut from it by place
    ids := array(select unnest(ids));
  end if;
  select r.aging_ms, r.draining is not true and shard between 0 and 65535 and part is not null
         -- a trigger that somebody put on the table sees its statements
         and not exists (select from pg_trigger t
                          where t.tgrelid = 'public.agent_messages'::regclass and t.tgname <> 'after_insert'
                            and t.tgtype & 5 = 4) as plain
    into settings
    from (select) as one
    left join bus.routes r on r.lane = hashtextextended(its_route, 0);
  if settings.plain then
    execute format(
      'insert into %s (id, root_id, service, role, shard, tenant, payload, headers)
       select g.id, g.id, $1, $2, $3, $4, g.payload, coalesce(g.headers, ''{}'') from %s where %s', part, given, fits)
      using service, role, shard, tenant, ids, payloads, headers, first, past;
    get diagnostics stored = row_count;
  end if;
  if stored < greatest(cardinality(ids), cardinality(payloads), cardinality(headers)) then
    -- the rest goes the way of every insert, which knows all rules and days
    execute format(
      'insert into public.agent_messages (id, root_id, service, role, shard, tenant, payload, headers)
       select g.id, g.id, $1, $2, $3, $4, g.payload, coalesce(g.headers, ''{}'') from %s where (%s) is not true or $10 = 0',
      given, fits)
      using service, role, shard, tenant, ids, payloads, headers, first, past, stored;
    execute format('select case when $10 > 0 then array(select g.id from %s where %s) end', given, fits)
       into ids using service, role, shard, tenant, ids, payloads, headers, first, past, stored;
  end if;
  insert into bus.ready (lane, share, due, attempt, route, tenant, ids)
  select hashtextextended(its_route, 0), hashtext(tenant),
         (date_part('epoch', moment) * 1000000)::bigint + 100 * 1000::bigint * coalesce(settings.aging_ms, 10000),
         1, its_route, tenant, ids[place:place + 99]
    from generate_series(1, cardinality(ids), 100) as place;
  return made;
end
$$;
comment on function bus.enqueue_payloads(text, text, text, jsonb[], jsonb[], integer, uuid[])
  is 'Sends plain messages of one tenant to one route, all or none; answers the ids that it made, null if they were given.';
revoke all on function bus.enqueue_payloads(text, text, text, jsonb[], jsonb[], integer, uuid[]) from public, anon, authenticated;
grant execute on function bus.enqueue_payloads(text, text, text, jsonb[], jsonb[], integer, uuid[]) to service_role;
