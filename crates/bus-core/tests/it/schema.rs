//! What the schema promises to any client: roles, row security, comments.

use cogo_db::MIGRATOR;
use sqlx::PgConnection;

use crate::support::bus;

/// Sessions that are open since then keep their statements.
const SESSIONS_SINCE: i64 = 20_261_122_060_000;

#[tokio::test]
async fn strangers_may_neither_read_nor_call() {
    let (bus, _database) = bus().await;
    for (role, statement) in [
        ("anon", "select count(*) from public.agent_messages"),
        ("authenticated", "select count(*) from public.bus_events"),
        ("anon", "select bus.enqueue('a', 'b', 't', '{}')"),
        ("service_role", "update public.agent_messages set status = 'done'"),
        ("service_role", "delete from public.agent_messages"),
        ("service_role", "update public.bus_events set kind = 'told'"),
        ("service_role", "delete from public.bus_events"),
    ] {
        let mut transaction = bus.pool().begin().await.unwrap();
        sqlx::query(sqlx::AssertSqlSafe(format!("set local role {role}"))).execute(&mut *transaction).await.unwrap();
        let refused = sqlx::query(statement).execute(&mut *transaction).await.unwrap_err();
        let code = refused.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned());
        assert_eq!(code.as_deref(), Some("42501"), "{role}: {statement}");
    }
}

#[tokio::test]
async fn service_role_may_send_and_work() {
    let (bus, _database) = bus().await;
    let mut transaction = bus.pool().begin().await.unwrap();
    sqlx::query("set local role service_role").execute(&mut *transaction).await.unwrap();
    for statement in [
        "select bus.enqueue('a', 'b', 't', '{}')",
        "insert into public.agent_messages (service, role, shard, tenant, payload) values ('a', 'b', 0, 't', '{}')",
        "select * from bus.claim('a', 'b', 0, 'w', 2)",
        "select bus.complete(id, 'w', attempts) from public.agent_messages where status = 'claimed'",
        "insert into public.bus_events (kind, tenant) values ('told', 't')",
    ] {
        sqlx::query(statement).execute(&mut *transaction).await.unwrap();
    }
}

/// A Supabase project gives whatever is made in public to its browser roles.
#[tokio::test]
async fn browsers_reach_nothing_where_all_of_public_is_given_to_them() {
    let database = cogo_test_support::empty_database().await;
    sqlx::raw_sql(
        "do $$ begin
           create role anon; create role authenticated; create role service_role;
         exception when duplicate_object then null; end $$;
         alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
         alter default privileges in schema public grant all on sequences to anon, authenticated, service_role;
         alter default privileges in schema public grant all on functions to anon, authenticated, service_role",
    )
    .execute(&database.pool)
    .await
    .unwrap();
    cogo_db::migrate(&database.pool).await.unwrap();
    let open: Vec<String> = sqlx::query_scalar(
        "select c.oid::regclass || ' ' || a.privilege_type || ' ' || a.grantee::regrole
           from pg_class c cross join lateral aclexplode(c.relacl) as a
          where c.relnamespace = 'public'::regnamespace and a.grantee::regrole::text in ('anon', 'authenticated')
         union all
         select p.oid::regprocedure::text from pg_proc p cross join lateral aclexplode(p.proacl) as a
          where p.pronamespace = 'public'::regnamespace and a.grantee::regrole::text in ('anon', 'authenticated')
            and not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e')",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    assert_eq!(open, Vec::<String>::new());
}

#[tokio::test]
async fn every_column_is_explained() {
    let (bus, _database) = bus().await;
    let bare: Vec<String> = sqlx::query_scalar(
        "select c.oid::regclass || '.' || a.attname
           from pg_class c
           join pg_namespace n on n.oid = c.relnamespace
           join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
          where c.relkind in ('r', 'p') and n.nspname in ('public', 'bus', 'registry')
            and not c.relispartition and c.relname <> '_sqlx_migrations' and col_description(c.oid, a.attnum) is null
          order by 1",
    )
    .fetch_all(bus.pool())
    .await
    .unwrap();
    assert!(bare.is_empty(), "columns without a comment: {bare:?}");
}

#[tokio::test]
async fn migrations_apply_twice() {
    let database = cogo_test_support::empty_database().await;
    cogo_db::migrate(&database.pool).await.unwrap();
    cogo_db::migrate(&database.pool).await.unwrap();
    assert!(matches!(cogo_db::schema_state(&database.pool).await.unwrap(), cogo_db::SchemaState::Fits(_)));
}

#[tokio::test]
async fn functions_that_run_as_the_owner_look_into_no_schema_of_the_caller() {
    let (bus, _database) = bus().await;
    let loose: Vec<String> = sqlx::query_scalar(
        "select p.oid::regprocedure::text
           from pg_proc p
           join pg_namespace n on n.oid = p.pronamespace
          where n.nspname in ('bus', 'registry', 'public')
            and not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e')
            -- what is no text has its names looked up when it is created
            and p.prosqlbody is null
            and not coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)",
    )
    .fetch_all(bus.pool())
    .await
    .unwrap();
    assert!(loose.is_empty(), "{loose:?}");
}

#[tokio::test]
async fn nobody_but_the_service_role_may_call() {
    let (bus, _database) = bus().await;
    let open: Vec<String> = sqlx::query_scalar(
        "select p.oid::regprocedure::text
           from pg_proc p
           join pg_namespace n on n.oid = p.pronamespace
          where n.nspname in ('bus', 'registry', 'public')
            and not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e')
            and (has_function_privilege('anon', p.oid, 'execute')
                 or has_function_privilege('authenticated', p.oid, 'execute'))",
    )
    .fetch_all(bus.pool())
    .await
    .unwrap();
    assert!(open.is_empty(), "{open:?}");
}

/// Sends one, several and a plain batch to each of two routes, and claims all of them in portions of every size.
async fn send_and_work_off(session: &mut PgConnection) -> i64 {
    let mut done = 0;
    for role in ["free", "limited"] {
        for sending in [
            "insert into public.agent_messages (service, role, tenant, payload) values ('a', $1, 't', '{}')",
            "insert into public.agent_messages (service, role, tenant, payload)
             select 'a', $1, 't' || n, '{}' from generate_series(1, 7) as n",
            "select bus.enqueue_payloads('a', $1, 't', array(select '{}'::jsonb from generate_series(1, 150)))",
        ] {
            sqlx::query(sending).bind(role).execute(&mut *session).await.unwrap();
        }
        for most in [3, 1, 50, 1000, 1000] {
            let working = "select count(bus.complete(c.id, 'w', c.attempt)) from bus.claim('a', $1, 0, 'w', $2) as c";
            let ended: i64 = sqlx::query_scalar(working).bind(role).bind(most).fetch_one(&mut *session).await.unwrap();
            done += ended;
        }
    }
    done
}

#[tokio::test]
async fn sessions_that_are_open_go_on_after_every_migration() {
    let database = cogo_test_support::empty_database().await;
    MIGRATOR.run_to(SESSIONS_SINCE, &database.pool).await.unwrap();
    let mut session = database.pool.acquire().await.unwrap();
    sqlx::query("select bus.set_limit('a', 'limited', 0, 'route', max_running => 1000)")
        .execute(&mut *session)
        .await
        .unwrap();
    // statements of functions are kept from the sixth time on
    for _ in 0..3 {
        assert_eq!(send_and_work_off(&mut session).await, 316);
    }
    for version in MIGRATOR.iter().map(|migration| migration.version).filter(|version| *version > SESSIONS_SINCE) {
        MIGRATOR.run_to(version, &database.another_pool()).await.unwrap();
        assert_eq!(send_and_work_off(&mut session).await, 316, "after {version}");
    }
}

/// What of a row the rule below looks at: its status, and whether each of these is set.
#[derive(Clone, Copy, Debug)]
struct Seen {
    status: &'static str,
    claimed_by: bool,
    lease_until: bool,
    retry_at: bool,
    done_at: bool,
    error: bool,
}

fn status_fits(row: Seen) -> bool {
    match row.status {
        "queued" => !row.lease_until && !row.done_at,
        "claimed" => row.lease_until && row.claimed_by && !row.retry_at && !row.done_at,
        "done" | "cancelled" => !row.lease_until && !row.retry_at && row.done_at,
        "failed" => !row.lease_until && !row.retry_at && row.done_at && row.error,
        _ => false,
    }
}

#[tokio::test]
async fn status_fits_holder_lease_and_times() {
    let (bus, _database) = bus().await;
    let mut connection = bus.pool().acquire().await.unwrap();
    sqlx::query("create temp table looked_at (like public.agent_messages including constraints including defaults)")
        .execute(&mut *connection)
        .await
        .unwrap();
    let insert = "insert into looked_at (service, role, tenant, payload, root_id, status, attempts, released,
                                         claimed_by, lease_until, retry_at, done_at, error)
                  select 'a', 'b', 't', '{}', gen_random_uuid(), $1, 1, $2,
                         case when $3 then 'w' end, case when $4 then now() end, case when $5 then now() end,
                         case when $6 then now() end, case when $7 then 'e' end";
    for status in ["queued", "claimed", "done", "failed", "cancelled", "lost"] {
        for (bits, released) in (0_u8..32).flat_map(|bits| [-1_i16, 0, 1, 2].map(|released| (bits, released))) {
            let set = |bit: u8| bits & (1 << bit) != 0;
            let row = Seen {
                status,
                claimed_by: set(0),
                lease_until: set(1),
                retry_at: set(2),
                done_at: set(3),
                error: set(4),
            };
            let told = sqlx::query(insert)
                .bind(status)
                .bind(released)
                .bind(row.claimed_by)
                .bind(row.lease_until)
                .bind(row.retry_at)
                .bind(row.done_at)
                .bind(row.error)
                .execute(&mut *connection)
                .await;
            let broken = told.err().and_then(|error| error.into_database_error()?.constraint().map(str::to_owned));
            let fits = status_fits(row) && (0..=1).contains(&released);
            let expected = (!fits).then_some("status_fits_holder_lease_and_times");
            assert_eq!(broken.as_deref(), expected, "{row:?}, {released} of 1 attempt released");
        }
    }
}
