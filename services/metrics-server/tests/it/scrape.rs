//! `/metrics` as Prometheus reads it.

use std::time::Duration;

use axum::{Router, routing};
use cogo_contracts::routes;
use cogo_metrics_server::{Console, router};
use cogo_registry_core::{Registration, Registry, detect_location};
use cogo_service_runtime::Dependencies;
use cogo_telemetry::{Look, Outcome, Settings, assemble};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

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
    assert!((39.0..100.0).contains(&age.parse::<f64>().unwrap()), "{age}");
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

#[tokio::test]
async fn each_agent_is_shown_by_itself_with_what_it_tells() {
    let database = cogo_test_support::database().await;
    seed(&database.pool).await;
    // an agent that tells its figures, one at whose address another one answers, one that is not there
    let (_dispatch, telemetry) =
        assemble(&Settings::new("cogo-rag-embed", "0.0.0", "rag-embed/7#first"), std::io::sink, Look::Json).unwrap();
    let metrics = telemetry.bus_metrics().of(&routes::EMBED);
    metrics.received(5, Duration::from_millis(1));
    metrics.processed(Outcome::Done, Duration::from_millis(250));
    let exposition = telemetry.exposition();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let told = Router::new().route("/metrics", routing::get(move || std::future::ready(exposition.prometheus_text())));
    let answering = TaskTracker::new().spawn(async move { axum::serve(listener, told).await });
    let registry = Registry::new(database.pool.clone());
    let agents = [("rag-embed", 7, url.as_str()), ("rag-embed", 8, &url), ("kg-builder", 7, "http://127.0.0.1:9")];
    for (name, slot, url) in agents {
        let version = semver::Version::new(0, 1, 0);
        let registration = Registration::new("rag", name, slot, version, detect_location(|_| None)).unwrap();
        let registration = registration.capability("route:rag/embed/0").unwrap().endpoint("http", url);
        registry.register(&registration).await.unwrap();
    }
    let console = Console::new(database.pool.clone(), super::seeded::exposition(), CancellationToken::new());
    let server = router(console.asking_agents(Dependencies::alone()).unwrap());
    let answer = get(&server, "/metrics").await;
    let text = answer.text();
    for line in [
        r#"cogo_agent_up{agent="rag-embed/7"} 1"#,
        r#"cogo_agent_up{agent="rag-embed/8"} 0"#,
        r#"cogo_agent_up{agent="kg-builder/7"} 0"#,
        r#"cogo_agent_messages_total{agent="rag-embed/7"} 5"#,
        r#"cogo_agent_attempts_total{agent="rag-embed/7"} 1"#,
        r#"cogo_agent_worked_seconds_total{agent="rag-embed/7"} 0.25"#,
        r#"cogo_agent_queue_depth{agent="rag-embed/7",route="rag/embed/0"} 6"#,
        r#"cogo_agent_in_flight{agent="kg-builder/7"} 0"#,
        "# TYPE cogo_agent_messages_total counter",
    ] {
        assert!(text.lines().any(|found| found == line), "missing {line}\nin {text}");
    }
    for family in ["cogo_agent_cpu_seconds_total", "cogo_agent_network_received_bytes_total"] {
        assert!(text.contains(&format!("{family}{{agent=\"rag-embed/7\"}} ")), "{family} in {text}");
    }
    assert!(!text.contains(r#"cogo_agent_messages_total{agent="rag-embed/8"}"#), "another agent's figures");
    answering.abort();
}

#[tokio::test]
async fn what_happened_in_the_tree_is_counted_and_stays_counted() {
    let database = cogo_test_support::database().await;
    let server = server(&database.pool);
    let shows = async |lines: &[&str]| {
        let text = get(&server, "/metrics").await.text().to_owned();
        let found: Vec<&str> = text.lines().filter(|line| line.starts_with("cogo_tree_events_total{")).collect();
        assert_eq!(found, lines);
        assert!(text.contains("\n# TYPE cogo_tree_events_total counter\n"));
    };
    shows(&[]).await;
    let happened = async |kind: &str, agent: &str, ago_s: i32| {
        sqlx::query(
            "insert into public.bus_events (kind, tenant, actor, detail, at)
             values ($1, '-', 'cogo-up#1', jsonb_build_object('agent', $2), clock_timestamp() - $3 * interval '1 second')",
        )
        .bind(kind)
        .bind(agent)
        .bind(ago_s)
        .execute(&database.pool)
        .await
        .unwrap();
    };
    happened("tree_spawn", "rag/rag-embed/0", 3600).await;
    happened("tree_spawn", "rag/rag-embed/1", 3600).await;
    happened("tree_crash", "rag/rag-embed/1", 1800).await;
    happened("tree_transition", "fleet", 0).await;
    happened("pool_scaled", "rag-embed", 0).await;
    let before = [
        r#"cogo_tree_events_total{event="crash",process="rag-embed"} 1"#,
        r#"cogo_tree_events_total{event="spawn",process="rag-embed"} 2"#,
        r#"cogo_tree_events_total{event="transition",process="fleet"} 1"#,
    ];
    shows(&before).await;
    shows(&before).await;
    sqlx::query("delete from public.bus_events where at < clock_timestamp() - interval '10 minutes'")
        .execute(&database.pool)
        .await
        .unwrap();
    happened("tree_spawn", "rag/rag-embed/1", 0).await;
    shows(&[
        before[0],
        r#"cogo_tree_events_total{event="spawn",process="rag-embed"} 3"#,
        r#"cogo_tree_events_total{event="transition",process="fleet"} 1"#,
    ])
    .await;
}
