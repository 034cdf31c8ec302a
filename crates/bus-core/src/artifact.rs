//! Artifacts: large payloads by reference, named by the SHA-256 of their bytes, once per tenant.

use std::{fmt, str::FromStr, time::Duration};

use chrono::{DateTime, Utc};
use cogo_contracts::Tenant;

use crate::{Bus, Error};

/// Most bytes of an artifact; a constraint of the table holds it too.
pub const MAX_ARTIFACT_BYTES: usize = 16 * 1024 * 1024;
/// Where the front door serves artifacts; a digest follows.
const ADDRESS: &str = "/artifacts/";
/// Hex digits of a SHA-256.
const DIGITS: usize = 64;

/// The name of an artifact: the SHA-256 of its bytes in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ArtifactDigest(String);

/// A text that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("A digest is 64 hex digits in lower case")]
pub struct NotADigest;

impl FromStr for ArtifactDigest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let is_digest =
            text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        is_digest.then(|| Self(text.to_owned())).ok_or(NotADigest)
    }
}

impl fmt::Display for ArtifactDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl ArtifactDigest {
    /// The digest as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where the front door serves it: what belongs into `result_url`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{ADDRESS}{}", self.0)
    }

    /// The digest of an address as [`ArtifactDigest::url`] makes it; none if it leads elsewhere.
    #[must_use]
    pub fn of_url(url: &str) -> Option<Self> {
        url.strip_prefix(ADDRESS)?.parse().ok()
    }
}

/// What became of bytes that were put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredArtifact {
    /// Its name, computed by the database.
    pub digest: ArtifactDigest,
    /// Media type that the first put of these bytes gave.
    pub media_type: String,
    /// Length in bytes.
    pub size: u32,
    /// Whether the bytes were new to the tenant.
    pub created: bool,
}

/// What is known of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactInfo {
    /// Its name.
    pub digest: ArtifactDigest,
    /// Media type that the first put gave.
    pub media_type: String,
    /// Length in bytes.
    pub size: u32,
    /// When it was first put.
    pub created_at: DateTime<Utc>,
}

/// An artifact with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// What is known of it.
    pub info: ArtifactInfo,
    /// The bytes.
    pub content: Vec<u8>,
}

impl Bus {
    /// Stores bytes of at most [`MAX_ARTIFACT_BYTES`]; the same bytes again are a use and no second copy.
    ///
    /// # Errors
    /// [`Error::Refused`] for a size or media type against the contract, [`Error::Database`] when the outcome is unknown;
    /// to put them again is safe.
    pub async fn put_artifact(
        &self,
        tenant: &Tenant,
        media_type: &str,
        content: &[u8],
    ) -> Result<StoredArtifact, Error> {
        let (digest, media_type, size, created): (String, String, i32, bool) =
            sqlx::query_as("select digest, known_media_type, size, created from bus.put_artifact($1, $2, $3)")
                .bind(tenant.as_str())
                .bind(media_type)
                .bind(content)
                .fetch_one(&self.pool)
                .await?;
        Ok(StoredArtifact { digest: ArtifactDigest(digest), media_type, size: size.unsigned_abs(), created })
    }

    /// What is known of an artifact of this tenant; counts as a use.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn artifact(&self, tenant: &Tenant, digest: &ArtifactDigest) -> Result<Option<ArtifactInfo>, Error> {
        let row: Option<InfoRow> = sqlx::query_as("select media_type, size, created_at from bus.artifact($1, $2)")
            .bind(tenant.as_str())
            .bind(digest.as_str())
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.map(|row| row.named(digest)))
    }

    /// An artifact of this tenant with its bytes; counts as a use.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn get_artifact(&self, tenant: &Tenant, digest: &ArtifactDigest) -> Result<Option<Artifact>, Error> {
        let row: Option<FullRow> =
            sqlx::query_as("select media_type, size, created_at, content from bus.get_artifact($1, $2)")
                .bind(tenant.as_str())
                .bind(digest.as_str())
                .fetch_optional(&self.pool)
                .await?;
        Ok(row.map(|row| Artifact { info: row.info.named(digest), content: row.content }))
    }

    /// The tenant that put these bytes first, for a caller who may act for every tenant.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn artifact_tenant(&self, digest: &ArtifactDigest) -> Result<Option<String>, Error> {
        let tenant =
            sqlx::query_scalar("select bus.artifact_tenant($1)").bind(digest.as_str()).fetch_one(&self.pool).await?;
        Ok(tenant)
    }

    /// Removes up to `max_rows` artifacts that nobody put or read for `keep`; answers how many.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn retain_artifacts(&self, keep: Duration, max_rows: u32) -> Result<u64, Error> {
        let removed: i32 = sqlx::query_scalar("select bus.retain_artifacts($1 * interval '1 second', $2)")
            .bind(keep.as_secs_f64())
            .bind(max_rows.cast_signed())
            .fetch_one(&self.pool)
            .await?;
        Ok(u64::from(removed.unsigned_abs()))
    }
}

#[derive(sqlx::FromRow)]
struct InfoRow {
    media_type: String,
    size: i32,
    created_at: DateTime<Utc>,
}

impl InfoRow {
    fn named(self, digest: &ArtifactDigest) -> ArtifactInfo {
        let Self { media_type, size, created_at } = self;
        ArtifactInfo { digest: digest.clone(), media_type, size: size.unsigned_abs(), created_at }
    }
}

#[derive(sqlx::FromRow)]
struct FullRow {
    #[sqlx(flatten)]
    info: InfoRow,
    content: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_told_from_other_texts() {
        let text = "0123456789abcdef".repeat(4);
        let digest: ArtifactDigest = text.parse().unwrap();
        assert_eq!(ArtifactDigest::of_url(&digest.url()), Some(digest));
        for other in [&text[1..], &text.to_uppercase(), &format!("{text}0"), "", &format!("{}g", &text[1..])] {
            assert_eq!(other.parse::<ArtifactDigest>(), Err(NotADigest), "{other}");
        }
        assert_eq!(ArtifactDigest::of_url(&format!("https://elsewhere/artifacts/{text}")), None);
    }
}
