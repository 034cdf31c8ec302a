//! Artifacts: stored once per tenant under the digest of their bytes, read by their tenant only, kept while used.

use std::time::Duration;

use cogo_bus_core::{ArtifactDigest, Bus, Error, MAX_ARTIFACT_BYTES};
use cogo_contracts::Tenant;

use crate::support::bus;

/// SHA-256 of `abc`, from the appendix of FIPS 180-2.
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const DAY: Duration = Duration::from_secs(86_400);

fn tenant(name: &str) -> Tenant {
    Tenant::new(name).unwrap()
}

async fn contents(bus: &Bus) -> i64 {
    sqlx::query_scalar("select count(*) from bus.artifact_contents").fetch_one(bus.pool()).await.unwrap()
}

/// Makes every artifact look as if it had last been used so many hours ago.
async fn unused_for(bus: &Bus, hours: f64) {
    sqlx::query("update bus.artifacts set last_used_at = clock_timestamp() - $1 * interval '1 hour'")
        .bind(hours)
        .execute(bus.pool())
        .await
        .unwrap();
}

#[tokio::test]
async fn bytes_are_stored_once_per_tenant_under_their_digest() {
    let (bus, _database) = bus().await;
    let first = bus.put_artifact(&tenant("acme"), "text/plain", b"abc").await.unwrap();
    assert_eq!((first.digest.as_str(), first.size, first.created), (ABC, 3, true));
    assert_eq!(first.digest.url(), format!("/artifacts/{ABC}"));
    let again = bus.put_artifact(&tenant("acme"), "text/html", b"abc").await.unwrap();
    assert_eq!((again.created, again.media_type.as_str()), (false, "text/plain"), "what the first put gave stays");
    assert_eq!(contents(&bus).await, 1);
    assert!(bus.put_artifact(&tenant("other"), "text/html", b"abc").await.unwrap().created);
    assert_eq!(contents(&bus).await, 2);
    let read = bus.get_artifact(&tenant("acme"), &first.digest).await.unwrap().unwrap();
    assert_eq!((read.content.as_slice(), read.info.media_type.as_str()), (&b"abc"[..], "text/plain"));
    assert_eq!(bus.artifact(&tenant("acme"), &first.digest).await.unwrap(), Some(read.info));
    assert_eq!(bus.artifact_tenant(&first.digest).await.unwrap().as_deref(), Some("acme"));
}

#[tokio::test]
async fn artifact_of_another_tenant_is_absent() {
    let (bus, _database) = bus().await;
    let stored = bus.put_artifact(&tenant("acme"), "text/plain", b"abc").await.unwrap();
    assert_eq!(bus.get_artifact(&tenant("other"), &stored.digest).await.unwrap(), None);
    assert_eq!(bus.artifact(&tenant("other"), &stored.digest).await.unwrap(), None);
    let unknown: ArtifactDigest = "0".repeat(64).parse().unwrap();
    assert_eq!(bus.get_artifact(&tenant("acme"), &unknown).await.unwrap(), None);
    assert_eq!(bus.artifact_tenant(&unknown).await.unwrap(), None);
}

#[tokio::test]
async fn largest_artifact_fits_and_one_byte_more_does_not() {
    let (bus, _database) = bus().await;
    let mut bytes: Vec<u8> = (0..=MAX_ARTIFACT_BYTES).map(|place| (place % 251) as u8).collect();
    let refused = bus.put_artifact(&tenant("acme"), "application/zip", &bytes).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused { reason, .. } if reason == "artifact at most 16 mib"), "{refused:?}");
    bytes.truncate(MAX_ARTIFACT_BYTES);
    let stored = bus.put_artifact(&tenant("acme"), "application/zip", &bytes).await.unwrap();
    assert_eq!(bus.get_artifact(&tenant("acme"), &stored.digest).await.unwrap().unwrap().content, bytes);
    let empty = bus.put_artifact(&tenant("acme"), "text/plain", b"").await.unwrap();
    assert_eq!(empty.size, 0);
}

#[tokio::test]
async fn database_checks_the_digest_whoever_writes() {
    let (bus, _database) = bus().await;
    let wrong = sqlx::query("select bus.put_artifact('acme', 'text/plain', 'abc', $1)").bind("0".repeat(64));
    assert!(wrong.execute(bus.pool()).await.unwrap_err().to_string().contains(ABC));
    let right = sqlx::query("select bus.put_artifact('acme', 'text/plain', 'abc', $1)").bind(ABC);
    right.execute(bus.pool()).await.unwrap();
    let forged = sqlx::query("update bus.artifact_contents set content = 'abd'").execute(bus.pool()).await.unwrap_err();
    let constraint = forged.as_database_error().and_then(|error| error.constraint()).map(str::to_owned);
    assert_eq!(constraint.as_deref(), Some("artifact_content_has_its_digest"));
}

#[tokio::test]
async fn media_type_that_would_break_a_header_is_refused() {
    let (bus, _database) = bus().await;
    for media_type in
        ["", "text", "text/", "/plain", "text/plain\r\nx: y", "text/pl\u{e4}in", &format!("a/{}", "b".repeat(127))]
    {
        let refused = bus.put_artifact(&tenant("acme"), media_type, b"abc").await;
        assert!(matches!(refused, Err(Error::Refused { .. })), "{media_type:?}: {refused:?}");
    }
    bus.put_artifact(&tenant("acme"), "text/plain; charset=utf-8", b"abc").await.unwrap();
}

#[tokio::test]
async fn use_keeps_an_artifact_and_disuse_removes_it_with_its_bytes() {
    let (bus, _database) = bus().await;
    let acme = tenant("acme");
    let mut digests = Vec::new();
    for bytes in [&b"put again"[..], b"read", b"looked at", b"unused"] {
        digests.push(bus.put_artifact(&acme, "text/plain", bytes).await.unwrap().digest);
    }
    unused_for(&bus, 48.0).await;
    bus.put_artifact(&acme, "text/plain", b"put again").await.unwrap();
    bus.get_artifact(&acme, &digests[1]).await.unwrap().unwrap();
    bus.artifact(&acme, &digests[2]).await.unwrap().unwrap();
    assert_eq!(bus.artifact(&tenant("other"), &digests[3]).await.unwrap(), None, "and that is no use of it");
    assert_eq!(bus.retain_artifacts(DAY, 10).await.unwrap(), 1);
    assert_eq!(contents(&bus).await, 3);
    assert_eq!(bus.get_artifact(&acme, &digests[3]).await.unwrap(), None);
    unused_for(&bus, 48.0).await;
    assert_eq!(bus.retain_artifacts(DAY, 2).await.unwrap(), 2, "no more than it is told");
    assert!(bus.put_artifact(&acme, "text/plain", b"unused").await.unwrap().created, "what went may come back");
}

#[tokio::test]
async fn many_readers_write_once_a_minute() {
    let (bus, _database) = bus().await;
    let stored = bus.put_artifact(&tenant("acme"), "text/plain", b"abc").await.unwrap();
    unused_for(&bus, 1.0).await;
    let version = "select xmin::text::bigint from bus.artifacts";
    let mut versions = Vec::new();
    for _ in 0..3 {
        bus.get_artifact(&tenant("acme"), &stored.digest).await.unwrap().unwrap();
        versions.push(sqlx::query_scalar::<_, i64>(version).fetch_one(bus.pool()).await.unwrap());
    }
    assert!(versions[1..].iter().all(|version| *version == versions[0]), "{versions:?}");
}

#[tokio::test]
async fn puts_of_the_same_bytes_at_once_store_them_once() {
    let (bus, _database) = bus().await;
    let acme = tenant("acme");
    let put = || bus.put_artifact(&acme, "text/plain", b"the same");
    let stored = futures_util::future::join_all((0..8).map(|_| put())).await;
    let created = stored.into_iter().filter(|stored| stored.as_ref().unwrap().created).count();
    assert_eq!((created, contents(&bus).await), (1, 1));
}

#[tokio::test]
async fn readers_wait_for_no_other_reader() {
    let (bus, _database) = bus().await;
    let mut digests = Vec::new();
    for bytes in [b"a", b"b"] {
        digests.push(bus.put_artifact(&tenant("acme"), "text/plain", bytes).await.unwrap().digest);
    }
    unused_for(&bus, 1.0).await;
    let read = "select count(*) from bus.get_artifact('acme', $1)";
    let mut first = bus.pool().begin().await.unwrap();
    let mut second = bus.pool().begin().await.unwrap();
    for transaction in [&mut first, &mut second] {
        sqlx::query("set local lock_timeout = '1ms'").execute(&mut **transaction).await.unwrap();
    }
    for (one, other) in [(0, 1), (1, 0)] {
        for (transaction, digest) in [(&mut first, &digests[one]), (&mut second, &digests[other])] {
            let found: i64 =
                sqlx::query_scalar(read).bind(digest.as_str()).fetch_one(&mut **transaction).await.unwrap();
            assert_eq!(found, 1);
        }
    }
    first.commit().await.unwrap();
    second.commit().await.unwrap();
    let mut looking = bus.pool().begin_with("begin read only").await.unwrap();
    let found: i64 = sqlx::query_scalar(read).bind(digests[0].as_str()).fetch_one(&mut *looking).await.unwrap();
    assert_eq!(found, 1);
    drop(looking);
    let used: i64 = sqlx::query_scalar(
        "select count(*) from bus.artifacts where last_used_at > clock_timestamp() - interval '1 minute'",
    )
    .fetch_one(bus.pool())
    .await
    .unwrap();
    assert_eq!(used, 2);
}
