//! W3C trace context in the headers of a message, and from there into the span that handles it.

use std::sync::OnceLock;

use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{SpanContext, SpanKind, TraceContextExt, TraceFlags},
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{IdGenerator, RandomIdGenerator, Sampler, SamplingDecision, ShouldSample},
};
use serde_json::{Map, Value};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Longest `tracestate` that is carried on; the specification asks for at least this much, headers have a limit.
const MAX_TRACESTATE_BYTES: usize = 512;

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

/// Share of the traces begun by clients that is kept; set once with the telemetry of the process.
static ROOT_RATIO: OnceLock<f64> = OnceLock::new();

pub(crate) fn set_root_ratio(ratio: f64) {
    // a second set-up keeps the first ratio, as it keeps the first subscriber
    let _first_stays = ROOT_RATIO.set(ratio);
}

/// Headers for a message sent within the current span: `traceparent`, and `tracestate` where there is one.
///
/// Empty outside of any span and before telemetry is set up.
#[must_use]
pub fn inject_current() -> Map<String, Value> {
    inject(&Span::current())
}

/// Headers for a message sent within `span`.
#[must_use]
pub fn inject(span: &Span) -> Map<String, Value> {
    let mut headers = Headers(Map::new());
    TraceContextPropagator::new().inject_context(&span.context(), &mut headers);
    headers.0
}

/// Makes `span` a child of the context in a message's headers, and links it to it; does nothing without a valid one.
///
/// The link says "this message", the parent puts both into one waterfall; a retry links to the same creation. Call it
/// before the span is entered.
pub fn link_or_parent(span: &Span, headers: &Map<String, Value>) {
    let Some(traceparent) = header(headers, TRACEPARENT) else { return };
    let creation = extract(Some(traceparent), header(headers, TRACESTATE));
    if creation.is_valid() {
        continue_from(span, creation.clone());
        span.add_link(creation);
    }
}

/// Makes `span` a child of a client's context, but decides anew whether the trace is kept.
///
/// A client that sets the sampled flag on every request would otherwise decide what the operator pays for.
pub fn accept_client(span: &Span, traceparent: Option<&str>, tracestate: Option<&str>) {
    let theirs = extract(traceparent, tracestate);
    if !theirs.is_valid() {
        return;
    }
    let ratio = ROOT_RATIO.get().copied().unwrap_or(1.0);
    let flags = if keeps_new_trace(ratio) { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let ours = SpanContext::new(theirs.trace_id(), theirs.span_id(), flags, true, theirs.trace_state().clone());
    continue_from(span, ours);
}

/// The trace that `span` belongs to, as 32 hexadecimal digits; none before telemetry is set up.
#[must_use]
pub fn trace_id(span: &Span) -> Option<String> {
    let context = span.context();
    let span_context = context.span().span_context().clone();
    span_context.is_valid().then(|| span_context.trace_id().to_string())
}

fn continue_from(span: &Span, parent: SpanContext) {
    if let Err(error) = span.set_parent(Context::new().with_remote_span_context(parent)) {
        tracing::debug!(error = %error, "span keeps its own trace");
    }
}

/// Rolled on an id of our own: the client picks its trace id and could pick one that is always kept.
fn keeps_new_trace(ratio: f64) -> bool {
    let sampler = Sampler::TraceIdRatioBased(ratio);
    let own_id = RandomIdGenerator::default().new_trace_id();
    let result = sampler.should_sample(None, own_id, "", &SpanKind::Server, &[], &[]);
    result.decision == SamplingDecision::RecordAndSample
}

fn extract(traceparent: Option<&str>, tracestate: Option<&str>) -> SpanContext {
    let mut headers = Headers(Map::new());
    if let Some(value) = traceparent {
        headers.set(TRACEPARENT, value.to_owned());
    }
    if let Some(value) = tracestate.filter(|value| value.len() <= MAX_TRACESTATE_BYTES) {
        headers.set(TRACESTATE, value.to_owned());
    }
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
    context.span().span_context().clone()
}

fn header<'headers>(headers: &'headers Map<String, Value>, name: &str) -> Option<&'headers str> {
    headers.get(name).and_then(Value::as_str)
}

struct Headers(Map<String, Value>);

impl Injector for Headers {
    fn set(&mut self, key: &str, value: String) {
        if !value.is_empty() {
            self.0.insert(key.to_owned(), Value::String(value));
        }
    }
}

impl Extractor for Headers {
    fn get(&self, key: &str) -> Option<&str> {
        header(&self.0, key)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_decides_over_a_clients_trace() {
        let kept = |ratio| (0..1000).filter(|_| keeps_new_trace(ratio)).count();
        assert_eq!(kept(0.0), 0);
        assert_eq!(kept(1.0), 1000);
        // far outside of what chance does to 1000 throws
        assert!((50..150).contains(&kept(0.1)));
    }
}
