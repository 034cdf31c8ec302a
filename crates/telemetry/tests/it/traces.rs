//! Trace context through a message's headers, with and without a collector.

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::mpsc,
    time::{Duration, Instant},
};

use cogo_telemetry::{FLUSH_WITHIN, Look, accept_client, inject, inject_current, link_or_parent, trace_id};
use serde_json::{Map, json};
use tracing::{Dispatch, dispatcher::with_default, info_span};

use crate::it::captured::{settings, telemetry};

const CLIENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[test]
fn a_trace_goes_through_a_message_without_any_collector() {
    let (dispatch, _guard, _log) = telemetry(&settings(), Look::Json);
    with_default(&dispatch, || {
        let producer = info_span!("send rag.embed");
        let headers = producer.in_scope(inject_current);
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["traceparent"], "an empty tracestate is left out");

        let consumer = info_span!("process rag.embed");
        link_or_parent(&consumer, &headers);
        assert_eq!(trace_id(&consumer), trace_id(&producer));
        assert_ne!(inject(&consumer)["traceparent"], headers["traceparent"], "the consumer is a span of its own");
    });
}

#[test]
fn a_quiet_log_does_not_cut_the_trace() {
    let mut settings = settings();
    settings.log_filter = "error".to_owned();
    let (dispatch, _guard, _log) = telemetry(&settings, Look::Json);
    with_default(&dispatch, || {
        assert!(info_span!("send rag.embed").in_scope(inject_current).contains_key("traceparent"));
    });
}

#[test]
fn without_telemetry_there_are_no_headers_and_no_harm() {
    with_default(&Dispatch::none(), || {
        let span = info_span!("send");
        assert!(inject(&span).is_empty());
        link_or_parent(&span, json!({"traceparent": CLIENT}).as_object().unwrap());
        assert_eq!(trace_id(&span), None);
    });
}

#[test]
fn damaged_headers_leave_the_span_its_own_trace() {
    let (dispatch, _guard, _log) = telemetry(&settings(), Look::Json);
    with_default(&dispatch, || {
        for bad in [json!("nonsense"), json!(5), json!("00-0-0-01"), json!("ff-".repeat(5000)), json!(null)] {
            let mut headers = Map::new();
            headers.insert("traceparent".to_owned(), bad.clone());
            let span = info_span!("process");
            link_or_parent(&span, &headers);
            assert!(trace_id(&span).is_some_and(|id| id != "0".repeat(32)), "{bad}");
        }
    });
}

#[test]
fn a_client_keeps_its_trace_but_does_not_decide_what_is_kept() {
    // the share of kept client traces is one per process, and other tests run in this one: only the id is checked here
    let (dispatch, _guard, _log) = telemetry(&settings(), Look::Json);
    with_default(&dispatch, || {
        let span = info_span!("POST orchestrator-chat");
        let state = format!("a={}", "x".repeat(600));
        accept_client(&span, Some(CLIENT), Some(&state));
        assert_eq!(trace_id(&span).as_deref(), Some("0af7651916cd43dd8448eb211c80319c"));
        assert!(!inject(&span).contains_key("tracestate"), "an overlong tracestate is dropped");

        let other = info_span!("POST orchestrator-chat");
        accept_client(&other, None, None);
        assert_ne!(trace_id(&other), trace_id(&span));
    });
}

#[test]
fn an_unsampled_parent_stays_unsampled_and_keeps_its_ids() {
    let (dispatch, _guard, _log) = telemetry(&settings(), Look::Json);
    with_default(&dispatch, || {
        let span = info_span!("process");
        link_or_parent(&span, json!({"traceparent": CLIENT.replace("-01", "-00")}).as_object().unwrap());
        let parent = inject(&span)["traceparent"].as_str().unwrap().to_owned();
        assert!(parent.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && parent.ends_with("-00"), "{parent}");
    });
}

#[test]
fn spans_and_metrics_reach_a_collector_at_shutdown() {
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut settings = settings();
    settings.otlp_endpoint = Some(format!("http://{}/base", collector.local_addr().unwrap()));
    let (report, requests) = mpsc::channel();
    std::thread::spawn(move || {
        for connection in collector.incoming() {
            let mut connection = connection.unwrap();
            let report = report.clone();
            std::thread::spawn(move || {
                while let Some(request) = one_request(&mut connection) {
                    if report.send(request).is_err() {
                        return;
                    }
                }
            });
        }
    });

    let mut got = Vec::new();
    // a machine that stands still may use up the time that a shutdown has
    for _ in 0..5 {
        let (dispatch, guard, _log) = telemetry(&settings, Look::Json);
        with_default(&dispatch, || {
            let span = info_span!("process rag.embed");
            link_or_parent(&span, json!({"traceparent": CLIENT}).as_object().unwrap());
            span.in_scope(|| {});
        });
        guard.shutdown();
        got = (0..2).map_while(|_| requests.recv_timeout(Duration::from_secs(5)).ok()).collect();
        if got.len() == 2 {
            break;
        }
    }

    let traces = got.iter().find(|(line, _)| line == "POST /base/v1/traces HTTP/1.1").unwrap();
    assert!(got.iter().any(|(line, _)| line == "POST /base/v1/metrics HTTP/1.1"), "{got:?}");
    assert!(contains(&traces.1, b"process rag.embed") && contains(&traces.1, b"cogo-telemetry-test"));
    // parent and link name the same span of the producer
    let span_of_producer = [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31];
    assert_eq!(traces.1.windows(8).filter(|window| *window == span_of_producer).count(), 2);
}

#[test]
fn a_collector_that_never_answers_does_not_hold_up_the_end() {
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut settings = settings();
    settings.otlp_endpoint = Some(format!("http://{}", collector.local_addr().unwrap()));
    let took = || {
        let (dispatch, guard, _log) = telemetry(&settings, Look::Json);
        with_default(&dispatch, || info_span!("send").in_scope(|| {}));
        let started = Instant::now();
        guard.shutdown();
        started.elapsed()
    };
    // the fastest of some, since the machine may stand still in any one of them
    let in_time = |took: &Duration| *took < FLUSH_WITHIN + Duration::from_millis(500);
    assert!((0..10).map(|_| took()).any(|took| in_time(&took)), "each of ten ends was held up");
}

fn contains(body: &[u8], part: &[u8]) -> bool {
    body.windows(part.len()).any(|window| window == part)
}

fn one_request(connection: &mut (impl Read + Write)) -> Option<(String, Vec<u8>)> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        connection.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    connection.read_exact(&mut body).ok()?;
    connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
    Some((head.lines().next().unwrap().to_owned(), body))
}
