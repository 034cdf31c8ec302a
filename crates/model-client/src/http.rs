//! Sends requests to one provider: deadlines, retries before the first byte, bounded bodies.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use futures_util::StreamExt;
use reqwest::{
    Response, Url,
    header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER},
};
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    error::{Error, Phase},
    settings::{Secret, Settings},
    wire,
};

/// Longest wait between two retries, whatever the provider asks for beyond it ends the call.
const LONGEST_BACKOFF: Duration = Duration::from_secs(8);

/// How much of an error's body is read.
const MAX_ERROR_BYTES: usize = 8 << 10;

/// Stands for "never" where a duration is too long to add to the clock.
const FAR_FUTURE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Builds the HTTP client for one server; the only place in the workspace that does.
///
/// It follows no redirects (a key must not travel on), connects within `connect_timeout`, uses no proxy for the own
/// machine, and loads the machine's certificates only for `https`, so that plain `http` works where none are installed.
/// Deadlines of whole calls belong to the caller.
///
/// # Errors
/// [`Error::Settings`] with key `base_url` when the address is not `http` or `https`, or when the client cannot be
/// built, as on a machine without any root certificate.
pub fn http_client(address: &str, connect_timeout: Duration) -> Result<reqwest::Client, Error> {
    let refused = |reason: String| Error::Settings { key: "base_url", reason };
    let url = Url::parse(address).map_err(|error| refused(format!("is not an address: {error}")))?;
    // Fails only when a provider is installed already, which serves as well.
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    let mut builder =
        reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).connect_timeout(connect_timeout);
    match url.scheme() {
        "https" => {}
        "http" => builder = builder.tls_certs_only([]),
        other => return Err(refused(format!("has the scheme {other}, not http or https"))),
    }
    if is_loopback(&url) {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| refused(format!("cannot be used: {error:?}")))
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    host == "localhost" || host == "[::1]" || host.starts_with("127.")
}

/// The end of a call, and whose deadline it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    at: Instant,
    phase: Phase,
}

impl Deadline {
    pub(crate) fn start(total_timeout: Duration, callers: Option<Duration>) -> Self {
        let (duration, phase) = match callers {
            Some(callers) if callers <= total_timeout => (callers, Phase::Deadline),
            _ => (total_timeout, Phase::Total),
        };
        let now = Instant::now();
        Self { at: now + duration.min(FAR_FUTURE), phase }
    }

    /// Waits for a step of the call, at most `longest`, and never beyond the end of the call.
    pub(crate) async fn within<T>(
        &self,
        longest: Duration,
        phase: Phase,
        cancellation: &CancellationToken,
        step: impl Future<Output = T>,
    ) -> Result<T, Error> {
        let step_end = Instant::now() + longest.min(FAR_FUTURE);
        let (end, phase) = if step_end < self.at { (step_end, phase) } else { (self.at, self.phase) };
        // The step comes last: a stream that always has more must not outrun the end of the call.
        tokio::select! {
            biased;
            () = cancellation.cancelled() => Err(Error::Cancelled),
            () = tokio::time::sleep_until(end) => Err(Error::Timeout(phase)),
            output = step => Ok(output),
        }
    }

    fn allows(&self, wait: Duration) -> bool {
        wait < self.at.saturating_duration_since(Instant::now())
    }
}

/// The way to one provider.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    client: reqwest::Client,
    base_url: String,
    headers: HeaderMap,
    key: Option<Secret>,
    header_timeout: Duration,
    max_retries: u32,
    retry_backoff: Duration,
}

impl Transport {
    pub(crate) fn new(settings: &Settings) -> Result<Self, Error> {
        let key = settings.api_key.clone().filter(|key| !key.expose().is_empty());
        let mut headers = HeaderMap::new();
        if let Some(key) = &key {
            let mut value = HeaderValue::try_from(format!("Bearer {}", key.expose())).map_err(|_| Error::Settings {
                key: "api_key",
                reason: "has characters that a header cannot carry".to_owned(),
            })?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(Self {
            client: http_client(&settings.base_url, settings.header_timeout)?,
            base_url: settings.base_url.trim_end_matches('/').to_owned(),
            headers,
            key,
            header_timeout: settings.header_timeout,
            max_retries: settings.max_retries,
            retry_backoff: settings.retry_backoff,
        })
    }

    pub(crate) fn key(&self) -> Option<&Secret> {
        self.key.as_ref()
    }

    /// Posts until the provider begins a good reply; nothing is repeated once it has.
    pub(crate) async fn post(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
        deadline: &Deadline,
        cancellation: &CancellationToken,
    ) -> Result<Response, Error> {
        let mut retries = 0;
        loop {
            let attempt = self.post_once(path, body, deadline, cancellation);
            let failure = match attempt.await {
                Ok(response) => return Ok(response),
                Err(failure) => failure,
            };
            if retries >= self.max_retries || !failure.may_repeat {
                return Err(failure.error);
            }
            let wait = self.wait_before_retry(retries, &failure.error);
            if !deadline.allows(wait) {
                return Err(failure.error);
            }
            retries += 1;
            tracing::warn!(
                error = %failure.error,
                retry = retries,
                wait_ms = wait.as_millis(),
                "model provider failed, retrying"
            );
            let pause = tokio::time::sleep(wait);
            deadline.within(FAR_FUTURE, Phase::Total, cancellation, pause).await?;
        }
    }

    async fn post_once(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
        deadline: &Deadline,
        cancellation: &CancellationToken,
    ) -> Result<Response, Failure> {
        let request =
            self.client.post(format!("{}{path}", self.base_url)).headers(self.headers.clone()).json(body).send();
        let response = deadline
            .within(self.header_timeout, Phase::Header, cancellation, request)
            .await
            .map_err(Failure::last)?
            .map_err(|error| Failure { may_repeat: error.is_connect(), error: Error::unreachable(error) })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let retry_after = retry_after(response.headers());
        let reading = read_body(response, MAX_ERROR_BYTES);
        let text = deadline
            .within(self.header_timeout, Phase::Header, cancellation, reading)
            .await
            .map_err(Failure::last)?
            // A status without a readable body still says enough.
            .unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        Err(Failure {
            may_repeat: status.is_server_error() || status.as_u16() == 429,
            error: wire::error_of_status(status.as_u16(), retry_after, &text, self.key()),
        })
    }

    fn wait_before_retry(&self, retries: u32, error: &Error) -> Duration {
        let bound = self.retry_backoff.saturating_mul(2_u32.saturating_pow(retries)).min(LONGEST_BACKOFF);
        let jitter = bound.mul_f64(random_fraction());
        match error {
            Error::RateLimited { retry_after: Some(asked) } => asked.saturating_add(jitter),
            _ => jitter,
        }
    }
}

/// A failed attempt.
struct Failure {
    error: Error,
    /// Nothing of a reply was seen, and the same call may do better.
    may_repeat: bool,
}

impl Failure {
    fn last(error: Error) -> Self {
        Self { error, may_repeat: false }
    }
}

/// Reads a body of at most `limit` bytes; what is longer is cut.
pub(crate) async fn read_body(response: Response, limit: usize) -> Result<Vec<u8>, Error> {
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        body.extend_from_slice(&chunk.map_err(Error::unreachable)?);
        if body.len() >= limit {
            body.truncate(limit);
            break;
        }
    }
    Ok(body)
}

/// Seconds only: the other form, a date, would have to be compared with this machine's clock, which may be wrong.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: f64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Between 0 and 1. The standard library seeds each `RandomState` anew, which is random enough to spread retries.
fn random_fraction() -> f64 {
    let bits = u32::try_from(RandomState::new().hash_one(()) >> 32).unwrap_or(u32::MAX);
    f64::from(bits) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_takes_seconds_and_nothing_else() {
        let read = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(value));
            retry_after(&headers)
        };
        assert_eq!(read("2"), Some(Duration::from_secs(2)));
        assert_eq!(read("0.5"), Some(Duration::from_millis(500)));
        assert_eq!(read("-1"), None);
        assert_eq!(read("NaN"), None);
        assert_eq!(read("Wed, 21 Oct 2026 07:28:00 GMT"), None);
    }

    #[test]
    fn addresses_that_are_not_http_are_refused_by_name() {
        for address in ["", "localhost:11434", "ftp://host/v1"] {
            let outcome = http_client(address, Duration::from_secs(1));
            assert!(matches!(outcome, Err(Error::Settings { key: "base_url", .. })), "{address}");
        }
    }

    #[test]
    fn waits_grow_no_longer_than_their_bound() {
        let settings = Settings { base_url: "http://127.0.0.1:1".to_owned(), ..Settings::default() };
        let transport = Transport::new(&settings).unwrap();
        let server_error = Error::Rejected { status: 500, text: String::new() };
        for retries in [0, 1, 5, 40, u32::MAX] {
            let wait = transport.wait_before_retry(retries, &server_error);
            assert!(wait <= LONGEST_BACKOFF, "{retries}: {wait:?}");
        }
        assert!(transport.wait_before_retry(0, &server_error) <= settings.retry_backoff);
        let asked = Duration::from_secs(30);
        let limited = Error::RateLimited { retry_after: Some(asked) };
        assert!(transport.wait_before_retry(0, &limited) >= asked);
    }
}
