//! Large payloads by reference: put once, read by their tenant only, never more than 16 MiB.

use axum::{
    body::{Body, Bytes, to_bytes},
    http::Request,
};
use cogo_bus_core::{ArtifactDigest, MAX_ARTIFACT_BYTES};
use cogo_contracts::Tenant;
use futures_util::stream;
use serde_json::json;

use super::support::{Answer, Door, door, door_with_keys};

/// SHA-256 of `abc`, from the appendix of FIPS 180-2.
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const ACME: (&str, &str) = ("apikey", "for-acme");
const OTHER: (&str, &str) = ("apikey", "for-other");
const ALL: (&str, &str) = ("apikey", "for-all");

async fn keyed() -> Door {
    door_with_keys(&["acme:for-acme", "other:for-other", "for-all"]).await
}

async fn put(door: &Door, path: &str, headers: &[(&str, &str)]) -> Answer {
    door.call("PUT", path, headers, "abc").await
}

async fn bytes_of(door: &Door, path: &str, headers: &[(&str, &str)]) -> (u16, Bytes) {
    let mut request = Request::builder().uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = door.raw(request.body(Body::empty()).unwrap()).await;
    (response.status().as_u16(), to_bytes(response.into_body(), usize::MAX).await.unwrap())
}

#[tokio::test]
async fn bytes_come_back_as_they_were_put() {
    let door = keyed().await;
    let stored = put(&door, "/artifacts", &[ACME, ("content-type", "image/svg+xml")]).await;
    let expected = json!({"digest": ABC, "url": format!("/artifacts/{ABC}"), "media_type": "image/svg+xml", "size": 3});
    assert_eq!((stored.status, &stored.json), (201, &expected));
    let path = format!("/artifacts/{ABC}");
    assert_eq!(stored.header("location"), path);
    let again = put(&door, "/artifacts", &[ACME]).await;
    assert_eq!((again.status, &again.json), (200, &expected), "known bytes are not stored again");
    let answer = door.call("GET", &path, &[ACME], Body::empty()).await;
    assert_eq!(answer.status, 200);
    for (name, value) in [
        ("content-type", "image/svg+xml"),
        ("content-length", "3"),
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "default-src 'none'; sandbox"),
        ("cache-control", "private, no-cache"),
        ("etag", &format!("\"{ABC}\"")),
    ] {
        assert_eq!(answer.header(name), value, "{name}");
    }
    assert_eq!(bytes_of(&door, &path, &[ACME]).await, (200, Bytes::from_static(b"abc")));
    let head = door.call("HEAD", &path, &[ACME], Body::empty()).await;
    assert_eq!((head.status, head.header("content-length")), (200, "3"));
}

#[tokio::test]
async fn caller_that_has_the_bytes_is_sent_none() {
    let door = keyed().await;
    put(&door, "/artifacts", &[ACME]).await;
    let path = format!("/artifacts/{ABC}");
    for tags in [format!("\"{ABC}\""), format!("W/\"{ABC}\""), format!("\"x\", \"{ABC}\""), "*".to_owned()] {
        let answer = door.call("GET", &path, &[ACME, ("if-none-match", &tags)], Body::empty()).await;
        assert_eq!((answer.status, answer.header("etag")), (304, format!("\"{ABC}\"").as_str()), "{tags}");
        let other = door.call("GET", &path, &[OTHER, ("if-none-match", &tags)], Body::empty()).await;
        other.problem(404, "no-such-artifact");
    }
    assert_eq!(bytes_of(&door, &path, &[ACME, ("if-none-match", "\"x\"")]).await.0, 200);
}

#[tokio::test]
async fn another_tenant_finds_nothing() {
    let door = keyed().await;
    put(&door, "/artifacts", &[ACME]).await;
    let path = format!("/artifacts/{ABC}");
    for (path, headers) in [
        (path.clone(), &[OTHER][..]),
        (format!("{path}?tenant=acme"), &[OTHER]),
        (format!("{path}?tenant=other"), &[ACME]),
        (format!("{path}?tenant=other"), &[ALL]),
        (format!("{path}?tenant=no%20tenant"), &[ALL]),
        (format!("/artifacts/{}", "0".repeat(64)), &[ACME]),
        (format!("/artifacts/{}", ABC.to_uppercase()), &[ACME]),
        ("/artifacts/..%2f..%2fetc".to_owned(), &[ALL]),
    ] {
        door.call("GET", &path, headers, Body::empty()).await.problem(404, "no-such-artifact");
    }
    door.call("GET", &path, &[], Body::empty()).await.problem(401, "unauthorized");
    put(&door, "/artifacts", &[]).await.problem(401, "unauthorized");
    for (path, headers) in
        [(format!("{path}?tenant=acme"), &[ACME]), (format!("{path}?tenant=acme"), &[ALL]), (path, &[ALL])]
    {
        assert_eq!(bytes_of(&door, &path, headers).await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn bytes_are_put_for_a_tenant_of_the_key() {
    let door = keyed().await;
    put(&door, "/artifacts?tenant=other", &[ACME]).await.problem(403, "wrong-tenant");
    put(&door, "/artifacts", &[ALL]).await.problem(422, "bad-field");
    put(&door, "/artifacts?tenant=no%20tenant", &[ALL]).await.problem(422, "bad-field");
    put(&door, "/artifacts?owner=acme", &[ALL]).await.problem(400, "bad-request");
    assert_eq!(put(&door, "/artifacts?tenant=other", &[ALL]).await.status, 201);
    let digest: ArtifactDigest = ABC.parse().unwrap();
    assert!(door.bus.artifact(&Tenant::new("other").unwrap(), &digest).await.unwrap().is_some());
    let open = super::support::door().await;
    assert_eq!(put(&open, "/artifacts?tenant=acme", &[]).await.status, 201);
    assert_eq!(bytes_of(&open, &format!("/artifacts/{ABC}"), &[]).await.0, 200);
}

#[tokio::test]
async fn media_type_that_is_none_is_refused_and_an_absent_one_is_just_bytes() {
    let door = keyed().await;
    for media_type in ["text", "text/\u{e4}"] {
        let answer = put(&door, "/artifacts", &[ACME, ("content-type", media_type)]).await;
        assert!([415, 422].contains(&answer.status), "{media_type}: {}", answer.json);
    }
    put(&door, "/artifacts", &[ACME]).await;
    let answer = door.call("GET", &format!("/artifacts/{ABC}"), &[ACME], Body::empty()).await;
    assert_eq!(answer.header("content-type"), "application/octet-stream");
}

/// A body that fails the test when somebody reads it.
fn unread() -> Body {
    Body::from_stream(stream::poll_fn(|_| -> std::task::Poll<Option<Result<Bytes, std::io::Error>>> {
        panic!("a body that is announced as too large is not read")
    }))
}

#[tokio::test]
async fn too_large_is_refused_before_it_is_read() {
    let door = door().await;
    let length = (MAX_ARTIFACT_BYTES + 1).to_string();
    let answer = door.call("PUT", "/artifacts?tenant=acme", &[("content-length", &length)], unread()).await;
    answer.problem(413, "too-large");
    // without a length it is read as far as the limit and no further
    let chunk = Bytes::from(vec![0; 1024 * 1024]);
    let mut sent = 0;
    let endless = stream::poll_fn(move |_| {
        sent += chunk.len();
        assert!(sent <= MAX_ARTIFACT_BYTES + 2 * chunk.len(), "it is read on and on");
        std::task::Poll::Ready(Some(Ok::<_, std::io::Error>(chunk.clone())))
    });
    let answer = door.call("PUT", "/artifacts?tenant=acme", &[], Body::from_stream(endless)).await;
    answer.problem(413, "too-large");
    let largest = vec![7; MAX_ARTIFACT_BYTES];
    let answer = door.call("PUT", "/artifacts?tenant=acme", &[], largest).await;
    assert_eq!((answer.status, &answer.json["size"]), (201, &json!(MAX_ARTIFACT_BYTES)));
}

#[tokio::test]
async fn uploads_without_end_leave_room_for_no_more_than_the_machine_has() {
    let door = door().await;
    let endless = || Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    let mut uploads = Vec::new();
    for _ in 0..16 {
        let mut upload = Box::pin(door.call("PUT", "/artifacts?tenant=acme", &[], endless()));
        assert!(futures_util::poll!(&mut upload).is_pending());
        uploads.push(upload);
    }
    let refused = door.call("PUT", "/artifacts?tenant=acme", &[], "abc").await;
    refused.problem(503, "busy");
    assert_eq!(refused.header("retry-after"), "2");
    uploads.pop();
    assert_eq!(put(&door, "/artifacts?tenant=acme", &[]).await.status, 201);
}
