//! Log events as one flat JSON object per line, with the fields of the spans around them and their trace.

use std::fmt;

use opentelemetry::{Context, trace::TraceContextExt};
use serde::Serialize;
use serde_json::{Map, Value};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

use crate::redact::{MASK, is_secret, redacted};

/// Writes `timestamp, level, target, message, …fields, span, trace_id, span_id`.
pub(crate) struct JsonLines;

/// Keeps a span's fields as a JSON object until an event within the span is written.
pub(crate) struct SpanFields;

impl<'writer> FormatFields<'writer> for SpanFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        // written as it comes: most spans end without an event, and then nobody reads it
        let mut text = Text::default();
        fields.record(&mut text);
        let text = if text.0.is_empty() { vec![b'{'] } else { text.0 };
        writer.write_str(str::from_utf8(&text).map_err(|_| fmt::Error)?)?;
        writer.write_str("}")
    }

    fn add_fields(
        &self,
        current: &'writer mut FormattedFields<Self>,
        fields: &tracing::span::Record<'_>,
    ) -> fmt::Result {
        let mut object = Object(parse(&current.fields));
        fields.record(&mut object);
        current.fields.clear();
        write_json(&mut current.as_writer(), &object.0)
    }
}

impl<S> FormatEvent<S, SpanFields> for JsonLines
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, SpanFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Object::default();
        let mut innermost = None;
        if let Some(scope) = context.event_scope() {
            for span in scope.from_root() {
                if let Some(formatted) = span.extensions().get::<FormattedFields<SpanFields>>() {
                    fields.0.extend(parse(&formatted.fields));
                }
                innermost = Some(span.name());
            }
        }
        event.record(&mut fields);

        let mut line = fields.0;
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        line.insert("timestamp".to_owned(), Value::String(time));
        line.insert("level".to_owned(), Value::String(event.metadata().level().to_string()));
        line.insert("target".to_owned(), Value::String(event.metadata().target().to_owned()));
        if let Some(name) = innermost {
            line.insert("span".to_owned(), Value::String(name.to_owned()));
        }
        Context::map_current(|current| {
            let span_context = current.span().span_context().clone();
            if span_context.is_valid() {
                line.insert("trace_id".to_owned(), Value::String(span_context.trace_id().to_string()));
                line.insert("span_id".to_owned(), Value::String(span_context.span_id().to_string()));
            }
        });
        write_json(&mut writer, &line)?;
        writeln!(writer)
    }
}

fn parse(fields: &str) -> Map<String, Value> {
    serde_json::from_str(fields).unwrap_or_default()
}

fn write_json(writer: &mut Writer<'_>, object: &Map<String, Value>) -> fmt::Result {
    let text = serde_json::to_string(object).map_err(|_| fmt::Error)?;
    writer.write_str(&text)
}

#[derive(Default)]
struct Object(Map<String, Value>);

impl Object {
    fn insert(&mut self, field: &Field, value: Value) {
        let kept = match value {
            _ if is_secret(field.name()) => Value::String(MASK.to_owned()),
            Value::String(text) => Value::String(redacted(&text).into_owned()),
            other => other,
        };
        self.0.insert(field.name().to_owned(), kept);
    }
}

/// The text of an object but for its end.
#[derive(Default)]
struct Text(Vec<u8>);

impl Text {
    fn insert<T: Serialize + ?Sized>(&mut self, field: &Field, value: &T) {
        self.0.push(if self.0.is_empty() { b'{' } else { b',' });
        self.write(field.name());
        self.0.push(b':');
        if is_secret(field.name()) { self.write(MASK) } else { self.write(value) }
    }

    fn write<T: Serialize + ?Sized>(&mut self, value: &T) {
        // what is visited is a number, a truth value or text: none fails
        let _ = serde_json::to_writer(&mut self.0, value);
    }
}

impl Visit for Text {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, &*redacted(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, &*redacted(&format!("{value:?}")));
    }
}

impl Visit for Object {
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
