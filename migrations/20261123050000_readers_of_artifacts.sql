-- Artifacts whose readers wait for no other reader.

-- as before, without waiting; in a read-only transaction it is no use
create or replace function bus.artifact(tenant text, digest text)
returns table (media_type text, size integer, created_at timestamptz)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  -- many readers write once, and none of them waits for another, who may be in a transaction of his own
  if not current_setting('transaction_read_only')::boolean then
    update bus.artifacts as a set last_used_at = clock_timestamp()
     where a.ctid = (select u.ctid from bus.artifacts u
                      where u.digest = artifact.digest and u.tenant = artifact.tenant
                        and u.last_used_at < clock_timestamp() - interval '1 minute'
                        for no key update skip locked)
       and a.digest = artifact.digest and a.tenant = artifact.tenant;
  end if;
  return query
  select a.media_type, a.size, a.created_at
    from bus.artifacts a where a.digest = artifact.digest and a.tenant = artifact.tenant;
end
$$;
comment on function bus.artifact(text, text) is 'What is known of an artifact of this tenant, no row if it has none; counts as a use, but for a read-only transaction.';
