//! What stands in a log line, and what never does.

use cogo_telemetry::{Error, Look, assemble, trace_id};
use tracing::{debug_span, dispatcher::with_default, info, info_span, warn};

use crate::it::captured::{Captured, settings, telemetry};

#[test]
fn a_line_is_one_flat_object_with_the_fields_of_its_spans() {
    let (dispatch, _guard, captured) = telemetry(&settings(), Look::Json);
    with_default(&dispatch, || {
        let span = info_span!("process rag.embed", message.id = 7, tenant = tracing::field::Empty);
        span.record("tenant", "acme");
        span.in_scope(|| info!(attempt = 2, ok = true, "claimed \"one\"\nand more"));
    });
    let lines = captured.lines();
    assert_eq!(lines.len(), 1);
    let line = &lines[0];
    assert_eq!(line["message"], "claimed \"one\"\nand more");
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["span"], "process rag.embed");
    assert_eq!(line["message.id"], 7);
    assert_eq!(line["tenant"], "acme");
    assert_eq!(line["attempt"], 2);
    assert_eq!(line["ok"], true);
    assert_eq!(line["trace_id"].as_str().unwrap().len(), 32);
    assert_eq!(line["span_id"].as_str().unwrap().len(), 16);
    assert!(line["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
}

#[test]
fn a_line_tells_the_trace_also_within_a_span_that_has_none_and_one_that_the_log_does_not_show() {
    for filter in ["debug", "warn"] {
        let mut settings = settings();
        settings.log_filter = filter.to_owned();
        let (dispatch, _guard, captured) = telemetry(&settings, Look::Json);
        let traced = with_default(&dispatch, || {
            // at the level of debugging there are no traces
            let outer = info_span!("outer");
            outer.in_scope(|| debug_span!("inner").in_scope(|| warn!("told")));
            warn!("outside");
            trace_id(&outer)
        });
        let lines = captured.lines();
        assert!(traced.is_some());
        assert_eq!(lines[0]["trace_id"].as_str(), traced.as_deref(), "{filter}");
        assert_eq!(lines[1].get("trace_id"), None, "{filter}");
    }
}

#[test]
fn secrets_reach_neither_form_of_the_log() {
    for look in [Look::Json, Look::Plain] {
        let (dispatch, _guard, captured) = telemetry(&settings(), look);
        with_default(&dispatch, || {
            let span = info_span!("connect", password = "hunter2", url = "postgres://cogo:hunter2@db/cogo");
            span.in_scope(|| {
                info!(api_key = "hunter2", max_tokens = 5, "sent Bearer hunter2 to http://a:hunter2@b/");
            });
        });
        let text = captured.text();
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("db/cogo") && text.contains("max_tokens"), "{text}");
        assert!(!text.contains('\u{1b}'), "plain text has no colours: {text}");
    }
}

#[test]
fn settings_do_not_show_the_password_of_the_collector() {
    let mut settings = settings();
    settings.otlp_endpoint = Some("http://me:hunter2@collector:4318".to_owned());
    let shown = format!("{settings:?}");
    assert!(shown.contains("collector:4318") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn a_bad_filter_is_named_with_its_text() {
    let mut settings = settings();
    settings.log_filter = "info,cogo_bus_core=loud".to_owned();
    let error = assemble(&settings, Captured::default(), Look::Json).expect_err("the filter does not parse");
    assert!(matches!(error, Error::Filter { .. }));
    assert!(error.to_string().contains("RUST_LOG") && error.to_string().contains("=loud"), "{error}");
}

#[test]
fn a_sample_ratio_outside_of_its_range_is_refused() {
    for ratio in [-0.1, 1.1, f64::NAN] {
        let mut settings = settings();
        settings.sample_ratio = ratio;
        let error = assemble(&settings, Captured::default(), Look::Json).expect_err("the ratio is refused");
        assert!(matches!(error, Error::SampleRatio(_)));
    }
}
