//! A private cluster may be killed without harm to the others.

use cogo_pg_local::Healed;
use cogo_test_support::{database, private_cluster};

#[tokio::test]
async fn a_private_cluster_keeps_committed_rows_over_a_crash() {
    let bystander = database().await;
    let private = private_cluster().await;
    sqlx::query("create table public.kept (id bigint)").execute(&private.pool).await.expect("table");
    sqlx::query("insert into public.kept (id) values (7)").execute(&private.pool).await.expect("row");

    private.kill();
    assert_eq!(private.heal().await, Healed::Restarted);
    assert_eq!(private.heal().await, Healed::NotNeeded);

    let kept: i64 = sqlx::query_scalar("select id from public.kept").fetch_one(&private.pool).await.expect("kept row");
    assert_eq!(kept, 7);
    sqlx::query("select 1").execute(&bystander.pool).await.expect("the shared cluster never stopped");

    let directory = private.cluster.directory().to_path_buf();
    drop(private);
    assert!(!directory.exists(), "the private cluster is removed");
}
