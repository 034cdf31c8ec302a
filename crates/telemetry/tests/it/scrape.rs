//! Names and buckets as Prometheus sees them.

use std::time::Duration;

use cogo_contracts::routes;
use cogo_telemetry::{BusMetrics, Look, Outcome};

use crate::it::captured::{settings, telemetry};

#[test]
fn the_scrape_has_every_instrument_under_its_published_name() {
    let (_dispatch, guard, _log) = telemetry(&settings(), Look::Json);
    let bus = guard.bus_metrics();
    bus.sent(&routes::EMBED, 3, Duration::from_millis(4));
    let route = bus.of(&routes::EMBED);
    route.received(2, Duration::from_millis(30));
    route.waited(Duration::from_secs(40));
    route.settled(Duration::from_millis(2));
    for outcome in [Outcome::Done, Outcome::Retry, Outcome::DeadLetter, Outcome::LeaseLost] {
        route.processed(outcome, Duration::from_millis(80));
    }
    bus.reclaimed(4);
    bus.expired(5);

    let text = guard.exposition().prometheus_text();
    let embed = r#"messaging_destination_name="rag.embed""#;
    for line in [
        format!(
            r#"messaging_client_sent_messages_total{{{embed},messaging_operation_name="send",messaging_system="cogo"}} 3"#
        ),
        format!(
            r#"messaging_client_consumed_messages_total{{{embed},messaging_operation_name="receive",messaging_system="cogo"}} 2"#
        ),
        format!(
            r#"messaging_process_duration_seconds_bucket{{{embed},messaging_system="cogo",outcome="done",le="0.075"}} 0"#
        ),
        format!(
            r#"messaging_process_duration_seconds_bucket{{{embed},messaging_system="cogo",outcome="done",le="0.1"}} 1"#
        ),
        format!(
            r#"messaging_client_operation_duration_seconds_bucket{{{embed},messaging_operation_name="send",messaging_system="cogo",le="0.005"}} 1"#
        ),
        r#"cogo_bus_wait_duration_seconds_bucket{role="embed",service="rag",le="30"} 0"#.to_owned(),
        r#"cogo_bus_wait_duration_seconds_bucket{role="embed",service="rag",le="60"} 1"#.to_owned(),
        r#"cogo_bus_retries_total{role="embed",service="rag"} 1"#.to_owned(),
        r#"cogo_bus_dead_letters_total{role="embed",service="rag"} 1"#.to_owned(),
        r#"cogo_bus_lease_lost_total{role="embed",service="rag"} 1"#.to_owned(),
        "cogo_bus_reclaimed_total 4".to_owned(),
        "cogo_bus_expired_total 5".to_owned(),
        "# TYPE process_cpu_seconds_total counter".to_owned(),
        "# TYPE process_resident_memory_bytes gauge".to_owned(),
        "# TYPE process_start_time_seconds gauge".to_owned(),
    ] {
        assert!(text.lines().any(|found| found == line), "missing {line}\nin {text}");
    }
    assert!(text.contains(r#"service_name="cogo-telemetry-test""#), "{text}");
    assert!(!text.contains("tenant"), "{text}");
    assert!(text.ends_with('\n'));
}

#[test]
fn the_scrape_has_no_series_of_what_never_came() {
    let (_dispatch, guard, _log) = telemetry(&settings(), Look::Json);
    let route = guard.bus_metrics().of(&routes::EMBED);
    route.processed(Outcome::Done, Duration::from_millis(80));
    route.processed(Outcome::Done, Duration::from_millis(80));
    let text = guard.exposition().prometheus_text();
    let counts: Vec<&str> = text.lines().filter(|line| line.contains("_seconds_count{")).collect();
    assert_eq!(counts.len(), 1, "{counts:?}");
    assert!(counts[0].contains(r#"outcome="done""#) && counts[0].ends_with(" 2"), "{counts:?}");
}

#[test]
fn a_fresh_process_has_a_scrape_as_well() {
    let (_dispatch, guard, _log) = telemetry(&settings(), Look::Json);
    assert!(guard.exposition().prometheus_text().contains("target_info"));
    BusMetrics::unread().expired(1);
}
