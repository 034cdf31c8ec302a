//! Who may call a process that asks for no key: this machine, and no page of another one in a browser on it.

use std::net::IpAddr;

use axum::http::{
    HeaderMap, HeaderName, Uri,
    header::{CONTENT_TYPE, HOST, ORIGIN},
    uri::Authority,
};
use cogo_contracts::Problem;

use crate::ApiError;

/// Characters of a caller's text that a problem repeats.
const ECHO: usize = 80;

/// A request that a page of another machine may have sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// The header that shows it.
    pub header: &'static str,
    /// Its value, shortened.
    pub value: String,
}

/// Accepts a request whose `Host` and `Origin` are of this machine or absent.
///
/// A page in a browser on this machine is not of this machine: it shows by its `Origin`, or by a `Host` whose name was
/// made to resolve to this machine.
///
/// # Errors
/// When one of them is of another machine.
pub fn expect_this_machine(headers: &HeaderMap) -> Result<(), Foreign> {
    let refuse = |header, value: &str| Err(Foreign { header, value: value.chars().take(ECHO).collect() });
    for host in texts(headers, HOST) {
        if !host.parse::<Authority>().is_ok_and(|authority| is_this_machine(authority.host())) {
            return refuse("Host", host);
        }
    }
    for origin in texts(headers, ORIGIN) {
        if !origin.parse::<Uri>().ok().as_ref().and_then(Uri::host).is_some_and(is_this_machine) {
            return refuse("Origin", origin);
        }
    }
    Ok(())
}

/// Whether the body says of itself that it is JSON, which a page of another machine cannot send without asking first.
#[must_use]
pub fn is_json(headers: &HeaderMap) -> bool {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || essence.starts_with("application/") && essence.ends_with("+json")
}

impl From<Foreign> for ApiError {
    fn from(foreign: Foreign) -> Self {
        let detail = format!("{} {:?} is not of this machine", foreign.header, foreign.value);
        let problem = Problem::new(403, "foreign-origin", "Open to this machine only", detail);
        problem.hint("Call it from this machine, as in http://127.0.0.1").into()
    }
}

fn texts(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers.get_all(name).into_iter().map(|value| value.to_str().unwrap_or_default())
}

fn is_this_machine(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn verdict(headers: &[(HeaderName, &'static str)]) -> Result<(), Foreign> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, HeaderValue::from_static(value));
        }
        expect_this_machine(&map)
    }

    #[test]
    fn only_this_machine_is_let_in() {
        for headers in [
            &[][..],
            &[(HOST, "localhost:3000")],
            &[(HOST, "[::1]:3000"), (ORIGIN, "http://127.0.0.1:5173")],
            &[(HOST, "127.3.2.1")],
        ] {
            assert_eq!(verdict(headers), Ok(()), "{headers:?}");
        }
        for (headers, header) in [
            (&[(HOST, "evil.example:3000")][..], "Host"),
            (&[(HOST, "")], "Host"),
            (&[(HOST, "localhost"), (HOST, "evil.example")], "Host"),
            (&[(HOST, "localhost.evil.example")], "Host"),
            (&[(ORIGIN, "null")], "Origin"),
            (&[(HOST, "localhost"), (ORIGIN, "https://evil.example")], "Origin"),
            (&[(ORIGIN, "http://localhost"), (ORIGIN, "http://evil.example")], "Origin"),
        ] {
            assert_eq!(verdict(headers).unwrap_err().header, header, "{headers:?}");
        }
    }
}
