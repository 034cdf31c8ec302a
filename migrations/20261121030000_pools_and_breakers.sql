-- Pools whose size has one owner, the decisions about them, and breakers that processes share.
--
-- Each function locks one row of pools or one of breakers and none after it, so their order cannot matter.

create table registry.pools (
  process     text        primary key check (process ~ '^[a-z][a-z0-9-]{0,62}$'),
  min_count   integer     not null,
  max_count   integer     not null,
  desired     integer     not null,
  owner       text        check (length(owner) between 1 and 200),
  epoch       bigint      not null default 0 check (epoch >= 0),
  lease_until timestamptz,
  decided_at  timestamptz,
  decision_id bigint,
  constraint bounds_in_order check (0 <= min_count and min_count <= max_count and max_count <= 65535),
  constraint desired_within_bounds check (desired between min_count and max_count),
  constraint an_owner_has_a_lease check ((owner is null) = (lease_until is null))
) with (fillfactor = 50);
comment on table registry.pools is 'How many of a process there shall be; whoever holds the lease decides, and nobody else.';
comment on column registry.pools.process is 'Name of the process.';
comment on column registry.pools.min_count is 'Never fewer.';
comment on column registry.pools.max_count is 'Never more.';
comment on column registry.pools.desired is 'How many there shall be.';
comment on column registry.pools.owner is 'Who decides: one run of one process; null if nobody does.';
comment on column registry.pools.epoch is 'How often the owner has changed; a decision of an earlier one is refused.';
comment on column registry.pools.lease_until is 'Until when the owner decides unless it renews, by the database clock.';
comment on column registry.pools.decided_at is 'When desired last changed.';
comment on column registry.pools.decision_id is 'The decision that changed it last; it may be forgotten by now.';

create table registry.scaling_decisions (
  id         bigint      generated always as identity primary key,
  at         timestamptz not null default clock_timestamp(),
  process    text        not null,
  epoch      bigint      not null,
  decided_by text        not null,
  from_count integer     not null,
  to_count   integer     not null,
  wanted     integer     not null,
  sentence   text        not null check (length(sentence) between 1 and 4000),
  inputs     jsonb       not null default '{}' constraint inputs_are_an_object check (jsonb_typeof(inputs) = 'object'),
  candidates jsonb       not null default '[]' constraint candidates_are_an_array check (jsonb_typeof(candidates) = 'array'),
  limits     jsonb       not null default '[]' constraint limits_are_an_array check (jsonb_typeof(limits) = 'array'),
  constraint a_decision_at_most_32_kib
    check (pg_column_size(inputs) + pg_column_size(candidates) + pg_column_size(limits) <= 32768)
);
comment on table registry.scaling_decisions is 'Why a pool has the size that it has; each row explains itself.';
comment on column registry.scaling_decisions.id is 'Order of writing.';
comment on column registry.scaling_decisions.at is 'When, by the database clock.';
comment on column registry.scaling_decisions.process is 'The pool.';
comment on column registry.scaling_decisions.epoch is 'Epoch of the owner that decided.';
comment on column registry.scaling_decisions.decided_by is 'The owner that decided.';
comment on column registry.scaling_decisions.from_count is 'The desired count before.';
comment on column registry.scaling_decisions.to_count is 'The desired count after; the same if something held it back.';
comment on column registry.scaling_decisions.wanted is 'The count that was wanted before limits.';
comment on column registry.scaling_decisions.sentence is 'The decision in words.';
comment on column registry.scaling_decisions.inputs is 'The figures that were known.';
comment on column registry.scaling_decisions.candidates is 'Everything that spoke for a count: source, exact, wanted, counts, why.';
comment on column registry.scaling_decisions.limits is 'What lay between wanted and to_count.';
create index scaling_decisions_process on registry.scaling_decisions (process, id);
create index scaling_decisions_at on registry.scaling_decisions (at);

create table registry.breakers (
  name       text        primary key check (length(name) between 1 and 200),
  version    bigint      not null default 1,
  round      bigint      not null check (round >= 0),
  phase      text        not null check (phase in ('open', 'closed')),
  open_until timestamptz,
  openings   integer     not null check (openings >= 0),
  changed_at timestamptz not null default clock_timestamp(),
  changed_by text        not null check (length(changed_by) between 1 and 200),
  cause      text        not null check (length(cause) between 1 and 400),
  constraint an_opening_has_an_end check ((phase = 'open') = (open_until is not null))
) with (fillfactor = 50);
comment on table registry.breakers is 'What processes share of a circuit breaker; a row never goes back in (round, closed after open, open_until, openings).';
comment on column registry.breakers.name is 'What the breaker is around.';
comment on column registry.breakers.version is 'Counts the changes; a change names the version that it knows.';
comment on column registry.breakers.round is 'How many openings there have been; every opening begins one.';
comment on column registry.breakers.phase is 'open, or closed once somebody found it well again. Half-open is each process''s own affair.';
comment on column registry.breakers.open_until is 'When the opening ends, by the database clock; null when closed.';
comment on column registry.breakers.openings is 'Openings in a row; decides how long the next one lasts.';
comment on column registry.breakers.changed_at is 'When it last changed, by the database clock.';
comment on column registry.breakers.changed_by is 'Who changed it: a holder.';
comment on column registry.breakers.cause is 'Why, in words.';

-- ---------------------------------------------------------------- pools

create function registry.own_pool(
  process text, owner text, lease interval, min_count integer, max_count integer, start_count integer default null)
returns table (owned boolean, owner_now text, epoch bigint, desired integer, lease_left_ms bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  pool registry.pools;
  taken boolean;
  within integer;
begin
  if coalesce(own_pool.owner, '') = '' then
    raise exception 'An owner must have a name' using errcode = 'invalid_parameter_value';
  end if;
  if own_pool.lease is null or own_pool.lease < interval '1 second' or own_pool.lease > interval '10 minutes' then
    raise exception 'A lease must be from 1 s to 10 min' using errcode = 'invalid_parameter_value';
  end if;
  if own_pool.min_count is null or own_pool.max_count is null or own_pool.min_count > own_pool.max_count then
    raise exception 'Bounds % to % of pool % contradict each other', own_pool.min_count, own_pool.max_count,
      own_pool.process using errcode = 'invalid_parameter_value';
  end if;
  insert into registry.pools (process, min_count, max_count, desired)
  values (own_pool.process, own_pool.min_count, own_pool.max_count,
          least(greatest(coalesce(own_pool.start_count, own_pool.min_count), own_pool.min_count), own_pool.max_count))
  on conflict do nothing;
  select p.* into pool from registry.pools p where p.process = own_pool.process for update;
  if pool.owner <> own_pool.owner and pool.lease_until > clock_timestamp() then
    return query select false, pool.owner, pool.epoch, pool.desired,
      (extract(epoch from pool.lease_until - clock_timestamp()) * 1000)::bigint;
    return;
  end if;
  -- one that comes back late and finds that nobody took its place goes on under its epoch
  taken := pool.owner is distinct from own_pool.owner;
  within := least(greatest(pool.desired, own_pool.min_count), own_pool.max_count);
  update registry.pools as p
     set owner = own_pool.owner, epoch = p.epoch + taken::integer, lease_until = clock_timestamp() + own_pool.lease,
         min_count = own_pool.min_count, max_count = own_pool.max_count, desired = within
   where p.process = own_pool.process
  returning p.* into pool;
  if taken then
    insert into public.bus_events (kind, tenant, actor, detail)
    values ('pool_owned', '-', pool.owner, jsonb_build_object('process', pool.process, 'epoch', pool.epoch));
  end if;
  return query select true, pool.owner, pool.epoch, pool.desired,
    (extract(epoch from pool.lease_until - clock_timestamp()) * 1000)::bigint;
end
$$;
comment on function registry.own_pool(text, text, interval, integer, integer, integer)
  is 'Takes or renews the right to decide about a pool, and sets its bounds. Owned false: somebody else decides, and nothing was changed.';

create function registry.decide_pool(
  process text, owner text, epoch bigint, from_count integer, to_count integer, decision jsonb)
returns table (outcome text, desired integer, decision_id bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  pool registry.pools;
  recorded bigint;
begin
  select p.* into pool from registry.pools p where p.process = decide_pool.process for update;
  if not found then
    return query select 'unknown', null::integer, null::bigint;
    return;
  end if;
  if (pool.owner, pool.epoch) is distinct from (decide_pool.owner, decide_pool.epoch)
     or pool.lease_until <= clock_timestamp() then
    return query select 'not_owner', pool.desired, null::bigint;
    return;
  end if;
  if pool.desired is distinct from decide_pool.from_count then
    return query select 'changed', pool.desired, null::bigint;
    return;
  end if;
  insert into registry.scaling_decisions
    (process, epoch, decided_by, from_count, to_count, wanted, sentence, inputs, candidates, limits)
  values (pool.process, pool.epoch, pool.owner, pool.desired, decide_pool.to_count,
          least(coalesce((decide_pool.decision ->> 'wanted')::bigint, decide_pool.to_count), 2147483647),
          decide_pool.decision ->> 'sentence',
          coalesce(decide_pool.decision -> 'inputs', '{}'), coalesce(decide_pool.decision -> 'candidates', '[]'),
          coalesce(decide_pool.decision -> 'limits', '[]'))
  returning id into recorded;
  if decide_pool.to_count <> pool.desired then
    update registry.pools as p
       set desired = decide_pool.to_count, decided_at = clock_timestamp(), decision_id = recorded
     where p.process = pool.process;
  end if;
  return query select 'recorded', decide_pool.to_count, recorded;
end
$$;
comment on function registry.decide_pool(text, text, bigint, integer, integer, jsonb)
  is 'Sets the desired count and writes down why, in one transaction. Outcome: recorded; not_owner (lease lost or never had); changed (desired was not from_count); unknown.';

create function registry.release_pool(process text, owner text, epoch bigint) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update registry.pools as p set owner = null, lease_until = null
   where p.process = release_pool.process and p.owner = release_pool.owner and p.epoch = release_pool.epoch;
  return found;
end
$$;
comment on function registry.release_pool(text, text, bigint)
  is 'Gives up the right to decide, so that the next owner need not wait for the lease; false if it was lost before.';

create function registry.retain_scaling_decisions(keep interval, max_rows integer default 1000) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  removed integer;
begin
  with old as (
    select d.id from registry.scaling_decisions d
     where d.at < (select clock_timestamp() - keep)
     order by d.at limit max_rows for update skip locked
  )
  delete from registry.scaling_decisions d using old where d.id = old.id;
  get diagnostics removed = row_count;
  return removed;
end
$$;
comment on function registry.retain_scaling_decisions(interval, integer) is 'Forgets decisions older than the interval; answers how many went.';

-- ---------------------------------------------------------------- breakers

create function registry.milliseconds(at timestamptz) returns bigint
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(round(extract(epoch from milliseconds.at) * 1000), 0)::bigint
$$;
comment on function registry.milliseconds(timestamptz) is 'Milliseconds since 1970; 0 for null.';

create function registry.share_breaker(
  name text, expected_version bigint, round bigint, phase text, open_until_ms bigint, openings integer, changed_by text,
  cause text)
returns table (accepted boolean, version bigint, round_now bigint, phase_now text, open_until_now_ms bigint,
               openings_now integer, now_ms bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  known registry.breakers;
  ends timestamptz;
begin
  if share_breaker.phase = 'open' then
    ends := to_timestamp(share_breaker.open_until_ms / 1000.0);
    if ends > clock_timestamp() + interval '1 day' then
      raise exception 'Breaker % would be open for more than a day', share_breaker.name
        using errcode = 'invalid_parameter_value';
    end if;
  end if;
  accepted := false;
  if share_breaker.expected_version = 0 then
    insert into registry.breakers (name, round, phase, open_until, openings, changed_by, cause)
    values (share_breaker.name, share_breaker.round, share_breaker.phase, ends, share_breaker.openings,
            share_breaker.changed_by, share_breaker.cause)
    on conflict do nothing;
    accepted := found;
  else
    -- whoever writes an older view would undo what others found out
    update registry.breakers as b
       set version = b.version + 1, round = share_breaker.round, phase = share_breaker.phase, open_until = ends,
           openings = share_breaker.openings, changed_at = clock_timestamp(), changed_by = share_breaker.changed_by,
           cause = share_breaker.cause
     where b.name = share_breaker.name and b.version = share_breaker.expected_version
       and (b.round, b.phase = 'closed', registry.milliseconds(b.open_until), b.openings)
         < (share_breaker.round, share_breaker.phase = 'closed', registry.milliseconds(ends), share_breaker.openings);
    accepted := found;
  end if;
  select b.* into known from registry.breakers b where b.name = share_breaker.name;
  if accepted then
    insert into public.bus_events (kind, tenant, actor, detail)
    values (case known.phase when 'open' then 'breaker_opened' else 'breaker_closed' end, '-', known.changed_by,
            jsonb_build_object('breaker', known.name, 'round', known.round, 'openings', known.openings,
                               'cause', known.cause));
  end if;
  return query select accepted, coalesce(known.version, 0), coalesce(known.round, 0), coalesce(known.phase, 'closed'),
    registry.milliseconds(known.open_until), coalesce(known.openings, 0), registry.milliseconds(clock_timestamp());
end
$$;
comment on function registry.share_breaker(text, bigint, bigint, text, bigint, integer, text, text)
  is 'Compare and set of a breaker; expected_version 0 for one that is new. Accepted only if the version is right and the record goes forward; answers the row as it is then, and the clock.';

-- ---------------------------------------------------------------- who may do what

revoke all on registry.pools, registry.scaling_decisions, registry.breakers from public, anon, authenticated;
revoke execute on function
  registry.own_pool(text, text, interval, integer, integer, integer),
  registry.decide_pool(text, text, bigint, integer, integer, jsonb), registry.release_pool(text, text, bigint),
  registry.retain_scaling_decisions(interval, integer), registry.milliseconds(timestamptz),
  registry.share_breaker(text, bigint, bigint, text, bigint, integer, text, text)
  from public, anon, authenticated;
grant select on registry.pools, registry.scaling_decisions, registry.breakers to service_role;
grant execute on function
  registry.own_pool(text, text, interval, integer, integer, integer),
  registry.decide_pool(text, text, bigint, integer, integer, jsonb), registry.release_pool(text, text, bigint),
  registry.retain_scaling_decisions(interval, integer), registry.milliseconds(timestamptz),
  registry.share_breaker(text, bigint, bigint, text, bigint, integer, text, text)
  to service_role;

alter table registry.pools enable row level security;
alter table registry.scaling_decisions enable row level security;
alter table registry.breakers enable row level security;
