-- What operators ordered and did not take back, so that it outlives the processes that it is about.
--
-- An order locks its own row of standing_orders; one to suspend takes the clock of the registry first, as every change of
-- membership does, so that no run becomes active beside it.

create table registry.standing_orders (
  kind       text        not null check (kind in ('domain', 'process', 'instance')),
  name       text        not null check (name ~ '^[a-z][a-z0-9-]{0,62}(/[0-9]{1,5})?$'),
  fleet      integer     not null default -1 check (fleet between -1 and 65535),
  domain     text        not null check (domain ~ '^[a-z][a-z0-9-]{0,62}$'),
  wish       text        not null check (wish in ('drained', 'suspended')),
  version    bigint      not null default 1,
  ordered_at timestamptz not null default clock_timestamp(),
  ordered_by text        not null check (length(ordered_by) between 1 and 200),
  reason     text        check (length(reason) between 1 and 400),
  primary key (kind, name, fleet),
  constraint only_instances_have_a_slot check ((kind = 'instance') = (name like '%/%')),
  constraint a_fleet_drains_and_everyone_suspends check ((wish = 'drained') = (fleet >= 0))
) with (fillfactor = 70);
comment on table registry.standing_orders is 'What operators ordered and did not take back: a run that begins finds it here.';
comment on column registry.standing_orders.kind is 'What the name is of.';
comment on column registry.standing_orders.name is 'Domain, process, or process/slot.';
comment on column registry.standing_orders.fleet is 'For drained: the first slot of the `cogo up` that it is for, which tells several on one database apart. -1: every process of that name.';
comment on column registry.standing_orders.domain is 'The domain that it is in, or is.';
comment on column registry.standing_orders.wish is 'drained: it is not started. suspended: it runs and claims nothing.';
comment on column registry.standing_orders.version is 'Counts the changes; a change names the version that it knows.';
comment on column registry.standing_orders.ordered_at is 'When, by the database clock.';
comment on column registry.standing_orders.ordered_by is 'Who, as in user@host.';
comment on column registry.standing_orders.reason is 'Why; null if nobody said.';

create function registry.give_order(
  kind text, name text, fleet integer, domain text, wish text, ordered_by text, reason text, known_version bigint,
  out accepted boolean, out version bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  perform registry.lock_clock() where give_order.wish = 'suspended';
  if give_order.known_version = 0 then
    insert into registry.standing_orders (kind, name, fleet, domain, wish, ordered_by, reason)
    values (give_order.kind, give_order.name, give_order.fleet, give_order.domain, give_order.wish, give_order.ordered_by,
            left(nullif(give_order.reason, ''), 400))
    on conflict do nothing;
  else
    update registry.standing_orders as s
       set version = s.version + 1, domain = give_order.domain, wish = give_order.wish, ordered_at = clock_timestamp(),
           ordered_by = give_order.ordered_by, reason = left(nullif(give_order.reason, ''), 400)
     where s.kind = give_order.kind and s.name = give_order.name and s.fleet = give_order.fleet
       and s.version = give_order.known_version;
  end if;
  accepted := found;
  select s.version into version from registry.standing_orders s
   where s.kind = give_order.kind and s.name = give_order.name and s.fleet = give_order.fleet;
  version := coalesce(version, 0);
  if accepted then
    insert into public.bus_events (kind, tenant, actor, detail)
    values ('order_given', '-', give_order.ordered_by, jsonb_strip_nulls(jsonb_build_object(
              'target', give_order.name, 'target_kind', give_order.kind, 'fleet', nullif(give_order.fleet, -1),
              'wish', give_order.wish, 'reason', left(nullif(give_order.reason, ''), 400))));
  end if;
end
$$;
comment on function registry.give_order(text, text, integer, text, text, text, text, bigint)
  is 'Compare and set of a standing order; known_version 0 for one that is new. Answers whether it was accepted, and the version that stands now, 0 if none does.';

create function registry.lift_order(kind text, name text, fleet integer, known_version bigint, lifted_by text) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  lifted registry.standing_orders;
begin
  delete from registry.standing_orders s
   where s.kind = lift_order.kind and s.name = lift_order.name and s.fleet = lift_order.fleet
     and s.version = lift_order.known_version
  returning s.* into lifted;
  if not found then
    return false;
  end if;
  insert into public.bus_events (kind, tenant, actor, detail)
  values ('order_lifted', '-', lift_order.lifted_by, jsonb_strip_nulls(jsonb_build_object(
            'target', lifted.name, 'target_kind', lifted.kind, 'fleet', nullif(lifted.fleet, -1), 'wish', lifted.wish,
            'ordered_by', lifted.ordered_by)));
  return true;
end
$$;
comment on function registry.lift_order(text, text, integer, bigint, text)
  is 'Takes a standing order back; false if it was changed since that version, or is gone.';

-- a run that becomes active under an order to suspend is suspended in the same transaction: it never claims in between
create or replace function registry.order_state(
  wish text, instance_id uuid default null, name text default null, slot integer default null, reason text default null)
returns table (run uuid, holder text, epoch bigint, before text, state text, accepted boolean, registry_version bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  meant uuid := order_state.instance_id;
  from_states text[];
  to_state text;
  changed record;
  standing registry.standing_orders;
begin
  case order_state.wish
    when 'activate' then to_state := 'active';    from_states := array['registered'];
    when 'suspend'  then to_state := 'suspended'; from_states := array['active', 'suspect'];
    when 'resume'   then to_state := 'active';    from_states := array['suspended'];
    when 'drain'    then to_state := 'draining';  from_states := array['registered', 'active', 'suspect', 'suspended'];
    else raise exception 'Unknown wish %', order_state.wish using errcode = 'invalid_parameter_value';
  end case;
  perform registry.lock_clock();
  if meant is null then
    select t.instance_id into meant from registry.agents t
     where t.name = order_state.name and t.slot = order_state.slot and t.state <> 'terminated';
  end if;
  for changed in
    select x.before, (x.after).*
      from registry.transition(meant, from_states, to_state, left(nullif(order_state.reason, ''), 400)) as x
  loop
    if order_state.wish = 'activate' and changed.before = 'registered' and changed.state = 'active' then
      select s.* into standing from registry.standing_orders s
       where s.wish = 'suspended'
         and (s.kind, s.name) in (('domain', changed.domain), ('process', changed.name),
                                  ('instance', changed.name || '/' || changed.slot))
       order by s.ordered_at limit 1;
      if found then
        select (x.after).state into changed.state
          from registry.transition(meant, array['active'], 'suspended',
                 left('ordered by ' || standing.ordered_by || coalesce(': ' || standing.reason, ''), 400)) as x;
      end if;
    end if;
    return query
    select changed.instance_id, changed.holder, changed.epoch, changed.before, changed.state,
           changed.state = to_state, c.version
      from registry.clock c;
  end loop;
end
$$;
comment on function registry.order_state(text, uuid, text, integer, text)
  is 'activate, suspend, resume or drain a run, named by its id or as the owner of a slot. accepted: it is now in the state that was asked for; a run that is activated under a standing order is suspended. No row for a run that is not known.';

-- ---------------------------------------------------------------- who may do what

revoke all on registry.standing_orders from public, anon, authenticated;
revoke execute on function
  registry.give_order(text, text, integer, text, text, text, text, bigint),
  registry.lift_order(text, text, integer, bigint, text)
  from public, anon, authenticated;
grant select on registry.standing_orders to service_role;
grant execute on function
  registry.give_order(text, text, integer, text, text, text, text, bigint),
  registry.lift_order(text, text, integer, bigint, text)
  to service_role;

alter table registry.standing_orders enable row level security;
