//! The tables of the code graph: commented, closed to the public roles, open to the service role.

use cogo_test_support::database;

#[tokio::test]
async fn every_column_says_what_it_holds() {
    let database = database().await;
    let silent: Vec<String> = sqlx::query_scalar(
        "select c.relname || '.' || a.attname
           from pg_class as c
           join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
          where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and c.relname like 'kg\\_%'
            and col_description(c.oid, a.attnum) is null",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    assert_eq!(silent, Vec::<String>::new());
}

#[tokio::test]
async fn only_the_service_role_reads_and_writes() {
    let database = database().await;
    let open: Vec<(String, String, bool, bool)> = sqlx::query_as(
        "select c.relname::text, r.rolname::text,
                has_table_privilege(r.oid, c.oid, 'select, insert, update, delete'), c.relrowsecurity
           from pg_class as c, pg_roles as r
          where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and c.relname like 'kg\\_%'
            and r.rolname in ('anon', 'authenticated', 'service_role')",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    assert_eq!(open.len(), 15, "five tables, three roles");
    for (table, role, allowed, row_security) in open {
        assert_eq!(allowed, role == "service_role", "{table}, {role}");
        assert!(row_security, "{table}");
    }
}
