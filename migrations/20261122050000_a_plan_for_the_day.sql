-- The insert of many plain messages is planned once in a session, not once for each batch.

-- Writes bus.insert_plain anew, with one statement for each part that messages may be sent to.
create function bus.make_insert_plain() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $make$
declare
  given constant text := '(select unnest(ids) as id, unnest(payloads) as payload, unnest(headers) as headers) as g';
  -- All that bus.after_insert asks of such a message, and the bounds of the part. What does not fit is inserted into the table as
  -- ever, so that only a rule which becomes stricter there must become so here.
  fits constant text :=
    'g.id >= first and g.id < past and jsonb_typeof(g.payload) = ''object''
         and (small or pg_column_size(g.payload) <= 1048576)
         and (g.headers is null or jsonb_typeof(g.headers) = ''object'' and pg_column_size(g.headers) <= 16384)';
  parts text;
begin
  select string_agg(format($part$
    when %1$L then
      insert into bus.%1$I (id, root_id, service, role, shard, tenant, payload, headers)
      select g.id, g.id, service, role, shard, tenant, g.payload, coalesce(g.headers, '{}')
        from %2$s
       where %3$s;$part$, c.relname, given, fits), '' order by c.relname desc)
    into parts
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
   where i.inhparent = 'public.agent_messages'::regclass and c.relname ~ '^messages_[0-9]{8}$'
     and to_date(right(c.relname, 8), 'YYYYMMDD') >= (clock_timestamp() at time zone 'UTC')::date - 1;
  execute format($body$
create or replace function bus.insert_plain(
  part text, service text, role text, shard integer, tenant text, ids uuid[], payloads jsonb[], headers jsonb[], first uuid,
  past uuid)
returns uuid[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  -- none is larger than all together
  small constant boolean := pg_column_size(payloads) <= 1048576;
  stored bigint := 0;
begin
  case part
    -- one there must be
    when '' then null;%1$s
    else null;
  end case;
  get diagnostics stored = row_count;
  if stored = greatest(cardinality(ids), cardinality(payloads), cardinality(headers)) then
    return ids;
  end if;
  insert into public.agent_messages (id, root_id, service, role, shard, tenant, payload, headers)
  select g.id, g.id, service, role, shard, tenant, g.payload, coalesce(g.headers, '{}')
    from %2$s
   where stored = 0 or (%3$s) is not true;
  return array(
    select g.id from %2$s
     where stored > 0 and %3$s);
end
$$ $body$, parts, given, fits);
end
$make$;
revoke all on function bus.make_insert_plain() from public, anon, authenticated;

select bus.make_insert_plain();
revoke all on function bus.insert_plain(text, text, text, integer, text, uuid[], jsonb[], jsonb[], uuid, uuid)
  from public, anon, authenticated;
comment on function bus.insert_plain(text, text, text, integer, text, uuid[], jsonb[], jsonb[], uuid, uuid)
  is 'For bus.enqueue_payloads: inserts into the part of the day what fits there; answers whose ready rows are to be made. Written by bus.make_insert_plain.';

-- as before, and with the insert of these parts
create or replace function bus.ensure_partitions(days_ahead integer default 3) returns integer
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
    begin
      execute format(
        'create table bus.%I partition of public.agent_messages for values from (%L) to (%L)
           with (fillfactor = 45, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0)', part,
        bus.first_id(day::timestamp at time zone 'UTC'), bus.first_id((day + 1)::timestamp at time zone 'UTC'));
    exception when check_violation then
      -- somebody has sent for this day just now
      continue;
    end;
    execute format('alter table bus.%I enable row level security', part);
    execute format('revoke all on bus.%I from public, anon, authenticated, service_role', part);
    execute format('comment on table bus.%I is %L', part, 'Messages of one day by their ids; dropped as a whole by bus.retain.');
    made := made + 1;
  end loop;
  if made > 0 then
    begin
      perform bus.make_insert_plain();
    exception when lock_not_available or internal_error then
      -- somebody is just changing that function; the day has its statement before it comes, by the part that is made tomorrow
      null;
    end;
  end if;
  return made;
end
$$;

-- as before; which messages fit is known where they are inserted
create or replace function bus.enqueue_payloads(
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
  part constant text := 'messages_' || to_char(today, 'YYYYMMDD');
  its_table constant regclass := to_regclass('bus.' || part);
  made uuid[];
  placed uuid[] := '{}';
  settings record;
begin
  if ids is null then
    made := array(select bus.uuid_v7() from generate_series(1, cardinality(payloads)));
    ids := made;
  elsif array_ndims(ids) <> 1 or array_lower(ids, 1) <> 1 then
    -- pieces are cut from it by place
    ids := array(select unnest(ids));
  end if;
  select r.aging_ms, r.draining is not true and shard between 0 and 65535
         and exists (select from pg_inherits i where i.inhrelid = its_table and i.inhparent = 'public.agent_messages'::regclass)
         and not exists (select from pg_class c
                          where c.oid in ('public.agent_messages'::regclass, its_table) and c.relhasrules)
         -- a trigger that somebody put there (4: upon insert) sees the statements, and what it makes of a row counts
         and not exists (select from pg_trigger t
                          where t.tgrelid in ('public.agent_messages'::regclass, its_table) and t.tgtype & 4 = 4
                            and t.tgname not in ('before_insert', 'after_insert')) as plain
    into settings
    from (select) as one
    left join bus.routes r on r.lane = hashtextextended(its_route, 0);
  if settings.plain then
    placed := bus.insert_plain(
      part, service, role, shard, tenant, ids, payloads, headers,
      -- as bus.first_id, of which two calls take as long as twenty messages
      (lpad(to_hex((today - date '1970-01-01') * 86400000::bigint), 12, '0') || repeat('0', 20))::uuid,
      (lpad(to_hex((today + 1 - date '1970-01-01') * 86400000::bigint), 12, '0') || repeat('0', 20))::uuid);
  else
    insert into public.agent_messages (id, root_id, service, role, shard, tenant, payload, headers)
    select g.id, g.id, service, role, shard, tenant, g.payload, coalesce(g.headers, '{}')
      from (select unnest(ids) as id, unnest(payloads) as payload, unnest(headers) as headers) as g;
  end if;
  insert into bus.ready (lane, share, due, attempt, route, tenant, ids)
  select hashtextextended(its_route, 0), hashtext(tenant),
         (date_part('epoch', moment) * 1000000)::bigint + 100 * 1000::bigint * coalesce(settings.aging_ms, 10000),
         1, its_route, tenant, placed[place:place + 99]
    from generate_series(1, cardinality(placed), 100) as place;
  return made;
end
$$;
