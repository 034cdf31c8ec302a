//! The process's metrics in the text format that Prometheus scrapes.

use prometheus::{Encoder, Registry, TextEncoder};

/// A handle on the registry; clones show the same numbers, from any thread.
#[derive(Debug, Clone)]
pub struct Exposition {
    registry: Registry,
}

impl Exposition {
    /// `Content-Type` of the text.
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    pub(crate) fn new(registry: Registry) -> Self {
        Self { registry }
    }

    /// Every metric as it is now, ending with a newline.
    #[must_use]
    pub fn prometheus_text(&self) -> String {
        let mut text = Vec::new();
        // encoding into memory fails only for a metric without samples, which is left out of the scrape
        for family in self.registry.gather() {
            let mut encoded = Vec::new();
            match TextEncoder::new().encode(std::slice::from_ref(&family), &mut encoded) {
                Ok(()) => text.extend_from_slice(&encoded),
                Err(error) => tracing::debug!(metric = family.name(), error = %error, "metric left out of the scrape"),
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}
