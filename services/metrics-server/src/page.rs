//! The page `/dashboard/local` and its files, embedded in the binary.

use axum::{
    Router,
    http::{
        HeaderName, HeaderValue,
        header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS},
    },
    response::{IntoResponse, Redirect},
    routing::{MethodRouter, get},
};

use crate::Console;

const PAGE: &str = "/dashboard/local";

/// Everything comes from this process, and nothing of the page runs that is not one of its files.
const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(crate) fn routes() -> Router<Console> {
    Router::new()
        .route("/", get(async || Redirect::temporary(PAGE)))
        .route("/dashboard", get(async || Redirect::temporary(PAGE)))
        .route("/dashboard/", get(async || Redirect::temporary(PAGE)))
        .route(PAGE, file("text/html; charset=utf-8", include_str!("page/dashboard.html")))
        .route("/dashboard/files/dashboard.css", file("text/css; charset=utf-8", include_str!("page/dashboard.css")))
        .route(
            "/dashboard/files/dashboard.js",
            file("text/javascript; charset=utf-8", include_str!("page/dashboard.js")),
        )
        .route("/dashboard/files/icon.svg", file("image/svg+xml", include_str!("page/icon.svg")))
}

fn file(media_type: &'static str, content: &'static str) -> MethodRouter<Console> {
    let headers: [(HeaderName, HeaderValue); 5] = [
        (CONTENT_TYPE, HeaderValue::from_static(media_type)),
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        // the files change with the binary and have no other name then
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    get(async move || (headers, content).into_response())
}
