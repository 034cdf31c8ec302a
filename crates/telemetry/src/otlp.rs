//! Exporters that push to an OTLP collector over HTTP.

use std::time::Duration;

use opentelemetry_otlp::{MetricExporter, Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use reqwest::{Url, blocking::Client};

use crate::{Error, redact::redacted};

/// How long one push may take; a collector is near.
const PUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Spans and metrics of one process on their way out.
pub(crate) struct Exporters {
    pub(crate) spans: SpanExporter,
    pub(crate) metrics: MetricExporter,
}

/// Builds both exporters; nothing is sent yet, so a collector may start later.
pub(crate) fn exporters(endpoint: &str) -> Result<Exporters, Error> {
    let base = base_address(endpoint)?;
    let client = client(&base)?;
    let unusable = |error: opentelemetry_otlp::ExporterBuildError| refused(endpoint, error.to_string());
    let spans = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(signal_address(&base, "v1/traces"))
        .with_timeout(PUSH_TIMEOUT)
        .with_http_client(client.clone())
        .build()
        .map_err(unusable)?;
    let metrics = MetricExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(signal_address(&base, "v1/metrics"))
        .with_timeout(PUSH_TIMEOUT)
        .with_http_client(client)
        .build()
        .map_err(unusable)?;
    Ok(Exporters { spans, metrics })
}

fn refused(endpoint: &str, reason: impl Into<String>) -> Error {
    Error::Endpoint { endpoint: redacted(endpoint).into_owned(), reason: reason.into() }
}

fn base_address(endpoint: &str) -> Result<Url, Error> {
    let example = "expected an address such as http://127.0.0.1:4318";
    let url = Url::parse(endpoint).map_err(|error| refused(endpoint, format!("{error}, {example}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refused(endpoint, format!("the scheme is {}, {example}", url.scheme())));
    }
    // 4317 is the collector's gRPC port; HTTP there fails on each push with nothing but a broken connection
    if url.port() == Some(4317) {
        return Err(refused(endpoint, "4317 is the port for gRPC, OTLP over HTTP listens on 4318"));
    }
    Ok(url)
}

/// The signal's path behind whatever path the base has, as the OTLP specification says for the common variable.
fn signal_address(base: &Url, path: &str) -> String {
    format!("{}/{path}", base.as_str().trim_end_matches('/'))
}

/// Built on a thread of its own, since a blocking client must not be built on a thread of tokio.
fn client(base: &Url) -> Result<Client, Error> {
    let address = base.clone();
    let builder = std::thread::Builder::new().name("otlp-client".to_owned()).spawn(move || build_client(&address));
    let built = match builder {
        Ok(handle) => handle.join().map_err(|_| refused(base.as_str(), "the HTTP client could not be built"))?,
        Err(error) => return Err(refused(base.as_str(), error.to_string())),
    };
    built.map_err(|error| {
        let hint = if base.scheme() == "https" {
            "; https needs root certificates (package ca-certificates), plain http to a local collector does not"
        } else {
            ""
        };
        refused(base.as_str(), format!("{error:?}{hint}"))
    })
}

fn build_client(address: &Url) -> Result<Client, reqwest::Error> {
    // fails only when a provider is installed already, which serves as well
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder().timeout(PUSH_TIMEOUT).redirect(reqwest::redirect::Policy::none());
    if address.scheme() == "http" {
        builder = builder.tls_certs_only([]);
    }
    let host = address.host_str().unwrap_or_default();
    if host == "localhost" || host == "[::1]" || host.starts_with("127.") {
        builder = builder.no_proxy();
    }
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_paths_stand_behind_the_base() {
        for (base, expected) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
            ("http://host/otel/", "http://host/otel/v1/traces"),
        ] {
            assert_eq!(signal_address(&Url::parse(base).unwrap(), "v1/traces"), expected);
        }
    }

    #[test]
    fn unusable_endpoints_say_why_and_hide_passwords() {
        for (endpoint, part) in [
            ("collector:4318", "scheme"),
            ("ftp://me:hunter2@host", "scheme"),
            ("http://me:hunter2@127.0.0.1:4317", "4318"),
            ("", "http://127.0.0.1:4318"),
        ] {
            let error = exporters(endpoint).err().expect("the endpoint is unusable");
            let text = format!("{error} {error:?}");
            assert!(text.contains(part), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn https_is_usable_or_says_what_it_needs() {
        match exporters("https://collector.example:4318") {
            Ok(_) => {}
            Err(error) => assert!(error.to_string().contains("ca-certificates"), "{error}"),
        }
    }
}
