//! Counters and gauges of every instrument, as lines.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    metrics::{
        Temporality,
        data::{AggregatedMetrics, Metric, MetricData, ResourceMetrics},
        exporter::PushMetricExporter,
    },
};

use super::{Statsd, line::Kind};

/// Durations that are sent one by one when they are measured.
const SENT_AT_ONCE: [&str; 3] =
    [crate::name::CLIENT_OPERATION_DURATION, crate::name::PROCESS_DURATION, crate::name::WAIT_DURATION];

/// Hands the instruments' values to a way out.
#[derive(Debug)]
pub(crate) struct Exporter(pub(crate) Statsd);

/// A value of an instrument as a number.
trait Number: Copy {
    fn number(self) -> f64;
}

impl Number for f64 {
    fn number(self) -> f64 {
        self
    }
}

impl Number for u64 {
    #[expect(clippy::cast_precision_loss, reason = "figures of this size need not be exact")]
    fn number(self) -> f64 {
        self as f64
    }
}

impl Number for i64 {
    #[expect(clippy::cast_precision_loss, reason = "figures of this size need not be exact")]
    fn number(self) -> f64 {
        self as f64
    }
}

impl Exporter {
    fn send(&self, metric: &Metric) {
        match metric.data() {
            AggregatedMetrics::F64(data) => self.send_data(metric, data),
            AggregatedMetrics::U64(data) => self.send_data(metric, data),
            AggregatedMetrics::I64(data) => self.send_data(metric, data),
        }
    }

    fn send_data<T: Number>(&self, metric: &Metric, data: &MetricData<T>) {
        let name = metric.name();
        let send = |value: f64, kind: Kind, times: u64, labels: Vec<&KeyValue>| {
            self.0.send(name, value, kind, times, &labels);
        };
        match data {
            MetricData::Gauge(gauge) => {
                for point in gauge.data_points() {
                    send(point.value().number(), Kind::Gauge, 1, point.attributes().collect());
                }
            }
            MetricData::Sum(sum) => {
                let kind = if sum.is_monotonic() { Kind::Counter } else { Kind::Gauge };
                for point in sum.data_points().filter(|point| kind == Kind::Gauge || point.value().number() > 0.0) {
                    send(point.value().number(), kind, 1, point.attributes().collect());
                }
            }
            MetricData::Histogram(histogram) if !SENT_AT_ONCE.contains(&name) => {
                let milliseconds = if metric.unit() == "s" { 1_000.0 } else { 1.0 };
                for point in histogram.data_points().filter(|point| point.count() > 0) {
                    let mean = point.sum().number() / point.count().number() * milliseconds;
                    send(mean, Kind::Timing, point.count(), point.attributes().collect());
                }
            }
            // no instrument of this workspace has exponential buckets
            MetricData::Histogram(_) | MetricData::ExponentialHistogram(_) => {}
        }
    }
}

impl PushMetricExporter for Exporter {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        for metric in metrics.scope_metrics().flat_map(|scope| scope.metrics()) {
            self.send(metric);
        }
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.flush(timeout);
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        Temporality::Delta
    }
}
