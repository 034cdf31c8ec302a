//! What a StatsD server is told of the instruments of a process.

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use cogo_contracts::routes;
use cogo_telemetry::{Look, Outcome, Settings, assemble};

#[test]
fn counters_gauges_and_timings_reach_the_server() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut settings = Settings::new("cogo-test", "1.2.3", "test/0#1");
    settings.statsd_addr = Some(server.local_addr().unwrap().to_string());
    let (_dispatch, guard) = assemble(&settings, std::io::sink, Look::Json).unwrap();
    let metrics = guard.bus_metrics().of(&routes::EMBED);
    metrics.received(3, Duration::from_millis(12));
    metrics.processed(Outcome::Done, Duration::from_millis(250));
    // the end of the process sends what is left
    guard.shutdown();

    let mut text = String::new();
    let until = Instant::now() + Duration::from_secs(20);
    let tags = "service:cogo-test,instance:test/0,";
    let expected = [
        format!("messaging.client.consumed.messages:3|c|#{tags}"),
        format!("messaging.client.operation.duration:12|ms|#{tags}"),
        format!("messaging.process.duration:250|ms|#{tags}"),
        "process.resident_memory:".to_owned(),
    ];
    while !expected.iter().all(|line| text.contains(line)) {
        assert!(Instant::now() < until, "{text}");
        let mut bytes = [0; 2_048];
        if let Ok(length) = server.recv(&mut bytes) {
            text.push_str(&String::from_utf8_lossy(&bytes[..length]));
            text.push('\n');
        }
    }
    assert!(text.contains("outcome:done"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("process.resident_memory:") && line.contains("|g|#")), "{text}");
}

#[test]
fn address_that_cannot_be_used_stops_the_start() {
    let mut settings = Settings::new("cogo-test", "1.2.3", "test/0#1");
    settings.statsd_addr = Some("somewhere".to_owned());
    let refused = assemble(&settings, std::io::sink, Look::Json).err().unwrap().to_string();
    assert!(refused.contains("COGO_STATSD_ADDR") && refused.contains("host:port"), "{refused}");
}
