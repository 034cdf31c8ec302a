//! Builds the providers, makes them the process's own, and flushes them within a bound at the end.

use std::{
    io::{self, IsTerminal},
    sync::mpsc,
    time::Duration,
};

use opentelemetry::{
    KeyValue,
    metrics::{Meter, MeterProvider},
    trace::TracerProvider,
};
use opentelemetry_sdk::{
    Resource,
    metrics::{PeriodicReader, SdkMeterProvider},
    trace::{Sampler, SdkTracerProvider},
};
use tracing::{Dispatch, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    field::MakeExt,
    filter::Targets,
    fmt::{MakeWriter, format::debug_fn},
    layer::SubscriberExt,
};

use crate::{
    BusMetrics, Error, Exposition, LogFormat, Settings, Statsd,
    json_lines::JsonLines,
    metrics::name,
    otlp::{self, Exporters},
    panic_hook, process,
    redact::{MASK, is_secret, redacted},
    statsd, trace_context,
};

/// Longest time that a stop waits for telemetry to leave.
pub const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// Scope of the spans and instruments.
const SCOPE: &str = "cogo";

/// Not traced, since a push to the collector would otherwise make spans that have to be pushed.
const TRANSPORT: [&str; 6] = ["hyper", "h2", "reqwest", "rustls", "tower", "opentelemetry"];

/// Owns the providers; flushes them when it is shut down or dropped.
#[derive(Debug)]
pub struct Guard {
    providers: Option<Providers>,
    exposition: Exposition,
    meter: Meter,
    bus_metrics: BusMetrics,
}

/// How often counters and gauges go to a StatsD server, as its own flushes do.
const STATSD_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Providers {
    tracer: SdkTracerProvider,
    meter: SdkMeterProvider,
}

impl Guard {
    /// The process's metrics as text, for `/metrics`.
    #[must_use]
    pub fn exposition(&self) -> Exposition {
        self.exposition.clone()
    }

    /// The instruments of the bus.
    #[must_use]
    pub fn bus_metrics(&self) -> BusMetrics {
        self.bus_metrics.clone()
    }

    /// For instruments of a service's own; histograms must name their buckets.
    #[must_use]
    pub fn meter(&self) -> Meter {
        self.meter.clone()
    }

    /// Sends what is left and stops; returns within [`FLUSH_WITHIN`] whatever the collector does.
    pub fn shutdown(mut self) {
        self.flush();
    }

    fn flush(&mut self) {
        let Some(providers) = self.providers.take() else {
            return;
        };
        // on a thread of its own, as the meter provider knows no deadline and a thread of tokio must not block
        let (finished, wait) = mpsc::channel();
        let flusher = std::thread::Builder::new().name("telemetry-flush".to_owned()).spawn(move || {
            let traces = providers.tracer.shutdown_with_timeout(FLUSH_WITHIN);
            let metrics = providers.meter.shutdown_with_timeout(FLUSH_WITHIN);
            // nobody listens any more when the bound has passed
            let _bound_passed = finished.send(traces.and(metrics));
        });
        let lost = match flusher {
            Ok(_) => match wait.recv_timeout(FLUSH_WITHIN) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("not finished within {FLUSH_WITHIN:?}"),
            },
            Err(error) => error.to_string(),
        };
        tracing::warn!(error = lost, "last telemetry was not delivered");
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Sets up a service: logs to stdout, JSON unless it is a terminal.
///
/// # Errors
/// When a setting cannot be used, or when this process already has a subscriber.
pub fn init(settings: &Settings) -> Result<Guard, Error> {
    let auto = if io::stdout().is_terminal() { Look::Coloured } else { Look::Json };
    let (dispatch, guard) = assemble(settings, io::stdout, auto)?;
    install(dispatch, guard)
}

/// Sets up a command-line tool: logs to stderr, since stdout is for data, and for people unless JSON is asked for.
///
/// # Errors
/// As [`init`].
pub fn init_cli(settings: &Settings) -> Result<Guard, Error> {
    let auto = if io::stderr().is_terminal() { Look::Coloured } else { Look::Plain };
    let (dispatch, guard) = assemble(settings, io::stderr, auto)?;
    install(dispatch, guard)
}

fn install(dispatch: Dispatch, guard: Guard) -> Result<Guard, Error> {
    tracing::dispatcher::set_global_default(dispatch).map_err(Error::AlreadySetUp)?;
    panic_hook::install();
    Ok(guard)
}

/// What [`LogFormat::Auto`] means at the place where the log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// For people, with colours unless `NO_COLOR` forbids them.
    Coloured,
    /// For people, without colours.
    Plain,
    /// One JSON object per line.
    Json,
}

/// Builds the subscriber without making it the process's own; `auto` is what [`LogFormat::Auto`] means.
///
/// # Errors
/// When a setting cannot be used.
pub fn assemble<W>(settings: &Settings, writer: W, auto: Look) -> Result<(Dispatch, Guard), Error>
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder()
        .parse(&settings.log_filter)
        .map_err(|source| Error::Filter { filter: settings.log_filter.clone(), source })?;
    if !(0.0..=1.0).contains(&settings.sample_ratio) {
        return Err(Error::SampleRatio(settings.sample_ratio));
    }
    let guard = guard(settings)?;
    trace_context::set_root_ratio(settings.sample_ratio);

    let tracer = guard.providers.as_ref().map(|providers| providers.tracer.tracer(SCOPE));
    let traces = tracing_opentelemetry::layer()
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        // whoever wants the context asks the span for it; to make it the thread's at each entry costs more than the entry
        .with_context_activation(false);
    // its own filter, so that a quiet log does not cut the traces
    let traced =
        Targets::new().with_default(LevelFilter::INFO).with_targets(TRANSPORT.map(|target| (target, LevelFilter::OFF)));
    let traces = tracer.map(|tracer| traces.with_tracer(tracer).with_filter(traced));
    let logs = match (settings.log_format, auto) {
        (LogFormat::Json, _) | (LogFormat::Auto, Look::Json) => json_layer(writer),
        (_, look) => human_layer(writer, look),
    };
    let subscriber = Registry::default().with(traces).with(logs.with_filter(filter));
    Ok((Dispatch::new(subscriber), guard))
}

fn guard(settings: &Settings) -> Result<Guard, Error> {
    let resource = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", settings.service_name.clone()),
            KeyValue::new("service.version", settings.service_version.clone()),
            KeyValue::new("service.instance.id", settings.instance.clone()),
        ])
        .build();
    let registry = prometheus::Registry::new();
    let scraped = opentelemetry_prometheus::exporter()
        .with_registry(registry.clone())
        .scope_info_enabled(false)
        .build()
        .map_err(Error::Registry)?;

    let sampler = Sampler::parent_based(Sampler::TraceIdRatioBased(settings.sample_ratio));
    let mut tracer = SdkTracerProvider::builder().with_resource(resource.clone()).with_sampler(sampler);
    let mut meter_provider = SdkMeterProvider::builder().with_resource(resource).with_reader(scraped);
    if let Some(endpoint) = &settings.otlp_endpoint {
        let Exporters { spans, metrics } = otlp::exporters(endpoint)?;
        tracer = tracer.with_batch_exporter(spans);
        meter_provider = meter_provider.with_periodic_exporter(metrics);
    }
    let statsd = match &settings.statsd_addr {
        Some(address) => Some(Statsd::new(address, &settings.service_name, &settings.instance)?),
        None => None,
    };
    if let Some(statsd) = statsd.clone() {
        let reader = PeriodicReader::builder(statsd::Exporter(statsd)).with_interval(STATSD_EVERY).build();
        meter_provider = meter_provider.with_reader(reader);
    }
    let providers = Providers { tracer: tracer.build(), meter: meter_provider.build() };
    let meter = providers.meter.meter(SCOPE);
    process::observe(&meter);
    if let Some(statsd) = statsd.clone() {
        observe_dropped(&meter, statsd);
    }
    Ok(Guard {
        bus_metrics: BusMetrics::new(&meter).with_statsd(statsd),
        exposition: Exposition::new(registry),
        meter,
        providers: Some(providers),
    })
}

fn observe_dropped(meter: &Meter, statsd: Statsd) {
    meter
        .u64_observable_counter(name::STATSD_DROPPED)
        .with_unit("{line}")
        .with_description("Lines for the StatsD server that were dropped")
        .with_callback(move |observer| observer.observe(statsd.dropped(), &[]))
        .build();
}

type BoxedLayer<S> = Box<dyn Layer<S> + Send + Sync>;

fn json_layer<S, W>(writer: W) -> BoxedLayer<S>
where
    S: tracing::Subscriber + for<'span> tracing_subscriber::registry::LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    JsonLines::new(writer).boxed()
}

fn human_layer<S, W>(writer: W, look: Look) -> BoxedLayer<S>
where
    S: tracing::Subscriber + for<'span> tracing_subscriber::registry::LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let fields = debug_fn(|writer, field, value| match field.name() {
        "message" => write!(writer, "{}", redacted(&format!("{value:?}"))),
        secret if is_secret(secret) => write!(writer, "{secret}={MASK}"),
        name => write!(writer, "{name}={}", redacted(&format!("{value:?}"))),
    })
    .delimited(" ");
    let layer = tracing_subscriber::fmt::layer().fmt_fields(fields).with_writer(writer);
    if look == Look::Coloured { layer.boxed() } else { layer.with_ansi(false).boxed() }
}
