//! Log events as one flat JSON object per line, with the fields of the spans around them and their trace.

use std::{
    fmt,
    io::{self, Write},
    sync::OnceLock,
};

use opentelemetry::trace::{SpanContext, TraceContextExt};
use serde_json::{Map, Value};
use tracing::{
    Dispatch, Event, Subscriber,
    dispatcher::WeakDispatch,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_opentelemetry::get_otel_context;
use tracing_subscriber::{
    Layer, Registry,
    fmt::{
        MakeWriter,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    layer,
    registry::LookupSpan,
};

use crate::redact::{MASK, is_secret, redacted};

/// Writes `timestamp, level, target, message, …fields, span, trace_id, span_id`.
pub(crate) struct JsonLines<W> {
    writer: W,
    /// Knows the trace of a span.
    dispatch: OnceLock<WeakDispatch>,
}

impl<W> JsonLines<W> {
    pub(crate) fn new(writer: W) -> Self {
        Self { writer, dispatch: OnceLock::new() }
    }

    /// The trace of the innermost span that has one, whether or not the log shows that span.
    fn trace(&self) -> Option<SpanContext> {
        let dispatch = self.dispatch.get()?.upgrade()?;
        let current = dispatch.current_span();
        let span = dispatch.downcast_ref::<Registry>()?.span(current.id()?)?;
        let context = span.scope().find_map(|span| get_otel_context(&span.id(), &dispatch))?;
        Some(context.span().span_context().clone()).filter(SpanContext::is_valid)
    }
}

/// The fields of a span, as they came: most spans end without an event, and then nobody reads them.
struct Fields(Vec<(&'static str, Value)>);

impl<S, W> Layer<S> for JsonLines<W>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + 'static,
{
    fn on_register_dispatch(&self, dispatch: &Dispatch) {
        // a layer belongs to one subscriber
        let _first_stays = self.dispatch.set(dispatch.downgrade());
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: layer::Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields(Vec::with_capacity(attributes.fields().len()));
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: layer::Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: layer::Context<'_, S>) {
        let mut line = Map::new();
        let mut innermost = None;
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(Fields(fields)) = span.extensions().get::<Fields>() {
                fields.iter().for_each(|(name, value)| insert(&mut line, name, value.clone()));
            }
            innermost = Some(span.name());
        }
        let mut own = Fields(Vec::new());
        event.record(&mut own);
        own.0.into_iter().for_each(|(name, value)| insert(&mut line, name, value));

        let mut time = String::new();
        // a time that cannot be written is left out, and the line is not lost
        if SystemTime.format_time(&mut Writer::new(&mut time)).is_ok() {
            line.insert("timestamp".to_owned(), Value::String(time));
        }
        line.insert("level".to_owned(), Value::String(event.metadata().level().to_string()));
        line.insert("target".to_owned(), Value::String(event.metadata().target().to_owned()));
        if let Some(name) = innermost {
            line.insert("span".to_owned(), Value::String(name.to_owned()));
        }
        if let Some(trace) = self.trace() {
            line.insert("trace_id".to_owned(), Value::String(trace.trace_id().to_string()));
            line.insert("span_id".to_owned(), Value::String(trace.span_id().to_string()));
        }
        let text = format!("{}\n", Value::Object(line));
        if let Err(error) = self.writer.make_writer_for(event.metadata()).write_all(text.as_bytes()) {
            let _ = writeln!(io::stderr(), "a line of the log was lost: {error}");
        }
    }
}

fn insert(line: &mut Map<String, Value>, name: &str, value: Value) {
    let kept = match value {
        _ if is_secret(name) => Value::String(MASK.to_owned()),
        Value::String(text) => Value::String(redacted(&text).into_owned()),
        other => other,
    };
    line.insert(name.to_owned(), kept);
}

impl Fields {
    /// Of fields of one name a line shows the last.
    fn insert(&mut self, field: &Field, value: Value) {
        self.0.push((field.name(), value));
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, Value::from(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, Value::from(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, Value::String(format!("{value:?}")));
    }
}
