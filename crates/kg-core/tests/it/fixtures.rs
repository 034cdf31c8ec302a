//! Small trees whose edges are known one by one.

use cogo_test_support::database;

use crate::support::{REPO, built, graph_lines};

async fn check(name: &str, expected: &str) {
    let database = database().await;
    let (_, report) = built(&database.pool, name).await;
    let found = graph_lines(&database.pool, REPO).await;
    let expected: Vec<&str> = expected.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(found, expected, "\n{}\n", found.join("\n"));

    let totals = report.totals;
    assert_eq!(totals.references, totals.internal + totals.external + totals.unresolved);
    let stored: i64 = sqlx::query_scalar(
        "select (select coalesce(sum(count), 0) from public.kg_edges where kind <> 'via')
              + (select coalesce(sum(count), 0) from public.kg_unresolved)",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert_eq!(usize::try_from(stored).unwrap(), totals.references, "no reference is dropped");
}

#[tokio::test]
async fn rust_references_lead_where_rustc_leads_them() {
    check("rust", include_str!("../fixtures/rust.expected")).await;
}

#[tokio::test]
async fn python_imports_lead_where_the_interpreter_leads_them() {
    check("python", include_str!("../fixtures/python.expected")).await;
}

#[tokio::test]
async fn typescript_specifiers_lead_where_the_compiler_leads_them() {
    check("typescript", include_str!("../fixtures/typescript.expected")).await;
}

#[tokio::test]
async fn go_imports_lead_to_packages_and_their_members() {
    check("go", include_str!("../fixtures/go.expected")).await;
}
