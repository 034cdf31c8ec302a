-- Settings and parts of results that do what the caller meant.

-- as before; a burst alone was taken for no limit
create or replace function bus.set_limit(
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
  if burst is not null and per_second is null then
    raise exception 'A burst needs per_second, the rate at which it fills again'
      using errcode = 'invalid_parameter_value';
  end if;
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

-- as before; without a lease it does not shorten the one that there is
create or replace function bus.emit(
  id uuid, holder text, attempt smallint, first_seq integer, contents jsonb[], lease_ms bigint default null)
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
  -- a lease that is longer than the usual one stays as it is, unless the caller says what it shall be
  lease_left bigint := greatest(30000, (
    select ceil(date_part('epoch', max(c.lease_until) - clock_timestamp()) * 1000) from bus.claims c
     where c.holder = emit.holder and emit.id = any (c.ids)));
begin
  if (emit.first_seq >= 1) is not true then
    raise exception 'Partials are numbered from 1' using errcode = 'invalid_parameter_value';
  end if;
  -- the fence is that of a heartbeat, and it keeps the claim in its state until this commits
  if not exists (select from bus.extend(array[emit.id], array[emit.attempt], emit.holder,
                                       coalesce(emit.lease_ms, lease_left))) then
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
  is 'Stores parts of the result of a message in hand, and renews its lease by lease_ms (without: by 30 s at least, and never to an earlier end); answers the last number stored, null if the claim is no longer the caller''s. Sent again under the same numbers, it changes nothing.';
