-- Completions in batches: one statement, one commit and one look at the watchers for many messages.

create function bus.complete_many(
  ids uuid[], attempts smallint[], holder text, results jsonb[], result_snippets text[])
returns table (id uuid)
language plpgsql security definer
set search_path = pg_catalog
as $$
#variable_conflict use_column
declare
  completed uuid[];
  roots uuid[];
begin
  with given as (
    select g.id, g.attempt, g.result, g.snippet
      from unnest(complete_many.ids, complete_many.attempts, complete_many.results, complete_many.result_snippets)
        as g (id, attempt, result, snippet)
     -- everybody locks rows in the order of their ids
     order by g.id
  ), locked as (
    select t.id, given.result, given.snippet
      from given
      join public.agent_messages t on t.id = given.id and t.attempts = given.attempt
     where t.status = 'claimed' and t.claimed_by = complete_many.holder and t.lease_until > clock_timestamp()
     order by t.id for update of t
  ), done as (
    update public.agent_messages as t
       set status = 'done', done_at = clock_timestamp(), lease_until = null, error = null,
           result = locked.result, result_snippet = left(locked.snippet, 400)
      from locked
     where t.id = locked.id
    returning t.*
  ), recorded as (
    insert into public.bus_events (kind, tenant, message_id, root_id, route, actor, detail)
    select 'execute_done', d.tenant, d.id, d.root_id, d.service || '/' || d.role || '/' || d.shard,
           complete_many.holder, bus.outcome_detail(d.*::public.agent_messages)
      from done d
     where d.payload ? '__assignment'
  )
  select array_agg(d.id), array_agg(distinct d.root_id) into completed, roots from done d;
  perform bus.announce_tasks(roots);
  return query select unnest(completed);
end
$$;
comment on function bus.complete_many(uuid[], smallint[], text, jsonb[], text[])
  is 'Records completions without follow-ups in one go; answers the ids that were still the caller''s.';

revoke execute on function bus.complete_many(uuid[], smallint[], text, jsonb[], text[])
  from public, anon, authenticated;
grant execute on function bus.complete_many(uuid[], smallint[], text, jsonb[], text[]) to service_role;
