-- Found by the model that the tests compare the bus with: a stale claim given beside the present one of its message cost
-- another message its lease, and a limit that left less free than was wanted gave it to the same tenants for ever.

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
  freed text[];
begin
  select d.done as ids, d.claim, d.last_claim, d.version, d.last_version, d.grouped, d.assigned, d.steps, d.awaited, d.watched
    into done
    from bus.mark_done(complete_many.ids, complete_many.attempts, complete_many.holder, complete_many.results,
                       complete_many.result_snippets, complete_many.result_urls) as d;
  if done.ids is null then
    return;
  end if;
  if done.claim = done.last_claim and done.version = done.last_version then
    -- all of one claim, as a worker's batches are
    freed := bus.let_go_of(complete_many.holder, done.claim, done.version, done.ids);
    if freed is not null then
      perform bus.announce(freed);
    end if;
  else
    perform bus.let_go(complete_many.holder, array_agg(h.claim), array_agg(h.version), array_agg(h.id), array_agg(h.attempt))
       -- one that an extension gave a claim of its own stands in two, and is counted off once; of its attempts only the last
       -- can have been recorded, an earlier one given with it is stale
       from (select distinct on (k.id) k.claim, k.version, k.id, k.attempt
               from bus.held(complete_many.holder, true) as k
               join unnest(complete_many.ids, complete_many.attempts) as g (id, attempt) on g.id = k.id and g.attempt = k.attempt
              where k.id = any (done.ids) order by k.id, k.attempt desc, k.claim) as h;
  end if;
  if done.awaited or done.grouped then
    perform bus.after_end(done.ids, (
      select array_agg(m.id) from public.agent_messages m where m.id = any (done.ids) and m.group_key is not null));
  end if;
  if done.assigned then
    insert into public.bus_events (kind, tenant, message_id, root_id, route, actor, detail)
    select 'execute_done', m.tenant, m.id, m.root_id, m.service || '/' || m.role || '/' || m.shard,
           complete_many.holder, bus.outcome_detail(m.*::public.agent_messages)
      from public.agent_messages m where m.id = any (done.ids) and m.payload ? '__assignment';
  end if;
  if done.watched then
    perform bus.announce_tasks(done.ids || case when done.steps then array(
      select m.root_id from public.agent_messages m where m.id = any (done.ids) and m.root_id <> m.id) end);
  end if;
  return query select unnest(done.ids);
end
$$;

-- ---------------------------------------------------------------- limits

create or replace function bus.take_limited(settings bus.routes, direct bigint, holder text, want integer, lease_ms bigint,
                                 out ids uuid[], out attempts smallint[], out claims bigint[])
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  its_route constant text := settings.service || '/' || settings.role || '/' || settings.shard;
  turn integer := bus.turn(settings.lane);
  -- whoever was looked at and given nothing keeps his turn: else the same tenants would always be first
  served integer := turn;
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
          served := shares[i];
          part := part - cardinality(got.ids);
          exit when part <= 0;
        end loop;
      end loop;
      round := case when cardinality(ids) = before then round + 1 else 0 end;
      exit when cardinality(ids) >= want or cardinality(shares) < 256 and round > 0 or round = 8;
    end loop;
  end loop;
  perform bus.remember_turn(settings.lane, served);
end
$$;
