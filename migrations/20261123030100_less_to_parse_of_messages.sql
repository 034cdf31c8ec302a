-- The same for the rules of the table of messages, in a transaction of its own: who sends locks it before bus.ready.

-- The same rule as before, for a quarter less.
alter table public.agent_messages drop constraint status_fits_holder_lease_and_times;
alter table public.agent_messages add constraint status_fits_holder_lease_and_times check (
  case
    when done_at is not null then
      lease_until is null and retry_at is null and (status in ('done', 'cancelled') or status = 'failed' and error is not null)
    when lease_until is not null then status = 'claimed' and claimed_by is not null and retry_at is null
    else status = 'queued'
  end and released between 0 and attempts) not valid;

-- What this trigger changes, and no more: that a message is sent fresh is seen by after_insert.
drop trigger before_insert on public.agent_messages;
create trigger before_insert before insert on public.agent_messages
  for each row when (
    new.root_id is distinct from new.id or num_nonnulls(new.parent_id, new.replay_of, new.idempotency_key) > 0 or new.awaiting
    -- the default is after the transaction's beginning
    or new.created_at < now() or new.created_at > clock_timestamp())
  execute function bus.before_insert();

-- as before, without what is fresh
create or replace function bus.before_insert() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  parent record;
  first uuid;
begin
  if new.awaiting and not exists (select from bus.joins j where j.id = new.id) then
    raise exception 'A message awaits others by its "awaits" in bus.enqueue'
      using errcode = 'check_violation';
  end if;
  -- by the database's clock, whatever the sender says
  new.created_at := clock_timestamp();
  if new.replay_of is not null and not exists (
    select from public.agent_messages d
     where d.id = new.replay_of and d.status = 'failed' and d.tenant = new.tenant and d.root_id = new.root_id) then
    raise exception 'Message % is no dead letter of this task', new.replay_of
      using errcode = 'foreign_key_violation';
  end if;
  if new.parent_id is not null then
    select m.root_id, m.tenant, m.expires_at, m.status into parent
      from public.agent_messages m where m.id = new.parent_id;
    if not found then
      raise exception 'Parent message % does not exist', new.parent_id
        using errcode = 'foreign_key_violation';
    end if;
    if parent.status = 'cancelled' then
      raise exception 'Parent message % was cancelled', new.parent_id using errcode = 'check_violation';
    end if;
    if parent.tenant <> new.tenant then
      raise exception 'A message of tenant % cannot have a parent of another tenant', new.tenant
        using errcode = 'check_violation';
    end if;
    new.root_id := parent.root_id;
    -- a child never outlives the deadline of the task; least() ignores nulls
    new.expires_at := least(new.expires_at, parent.expires_at);
  elsif new.root_id is not null and new.root_id <> new.id
    and not exists (select from public.agent_messages r where r.id = new.root_id and r.tenant = new.tenant) then
    raise exception 'Task % of tenant % does not exist', new.root_id, new.tenant
      using errcode = 'foreign_key_violation';
  end if;
  new.root_id := coalesce(new.root_id, new.id);
  if new.idempotency_key is not null then
    first := bus.take_key(new.tenant, new.idempotency_key, new.id, null);
    if first <> new.id then
      raise exception 'Tenant % has used the idempotency key of this message for %', new.tenant, first
        using errcode = 'unique_violation', constraint = 'agent_messages_idempotency';
    end if;
  end if;
  return new;
end
$$;
comment on function bus.before_insert() is 'Fills root and deadline from the parent; refuses rows that cross tenants.';
