//! `/metrics` as Prometheus reads it.

use crate::it::seeded::{get, seed, server};

#[tokio::test]
async fn the_scrape_has_the_process_and_the_whole_bus() {
    let database = cogo_test_support::database().await;
    seed(&database.pool).await;
    let answer = get(&server(&database.pool), "/metrics").await;
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let text = answer.text();
    for line in [
        r#"cogo_bus_messages{status="done",service="rag",role="embed"} 111"#,
        r#"cogo_bus_messages{status="queued",service="rag",role="embed"} 6"#,
        r#"cogo_bus_messages{status="claimed",service="gateway",role="chat"} 3"#,
        r#"cogo_bus_messages{status="failed",service="gateway",role="chat"} 25"#,
        r#"cogo_bus_messages{status="cancelled",service="kg",role="build"} 6"#,
        r#"cogo_agents{state="active"} 0"#,
        "cogo_bus_reachable 1",
        "# TYPE cogo_bus_messages gauge",
        "# TYPE process_resident_memory_bytes gauge",
    ] {
        assert!(text.lines().any(|found| found == line), "missing {line}\nin {text}");
    }
    let age = text
        .lines()
        .find_map(|line| line.strip_prefix(r#"cogo_bus_oldest_queued_age_seconds{service="rag",role="embed"} "#))
        .unwrap();
    assert!((39.0..60.0).contains(&age.parse::<f64>().unwrap()), "{age}");
    assert!(!text.contains("acme") && !text.contains("globex"), "no tenant is a label");
    let mut series: Vec<_> = text.lines().filter_map(|line| line.rsplit_once(' ')).map(|(name, _)| name).collect();
    series.retain(|name| !name.starts_with('#'));
    series.sort_unstable();
    let all = series.len();
    series.dedup();
    assert_eq!(series.len(), all, "each series stands once");
}

#[tokio::test]
async fn a_scrape_without_a_database_shows_the_process_and_says_so() {
    let database = cogo_test_support::database().await;
    let server = server(&database.pool);
    database.pool.close().await;
    let answer = get(&server, "/metrics").await;
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains("\ncogo_bus_reachable 0\n"));
    assert!(answer.text().contains("target_info"));
    assert!(!answer.text().contains("cogo_bus_messages"), "no zeros are invented");
}
