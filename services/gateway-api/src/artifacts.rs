//! Artifacts over HTTP: large payloads put once, read by their tenant under the address that a result names.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LOCATION,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse, Response},
};
use cogo_bus_core::{ArtifactDigest, MAX_ARTIFACT_BYTES, StoredArtifact};
use cogo_contracts::Tenant;
use cogo_service_runtime::ApiError;
use serde::{Deserialize, Serialize};
use tracing::info;

use crate::{
    Gateway,
    access::{Access, Caller},
    body, problems,
};

/// A sender that is slower than this holds memory for nothing; 16 MiB within it is less than 3 Mbit/s.
const ARRIVES_WITHIN: Duration = Duration::from_secs(60);
/// What bytes are when their sender does not say.
const UNSAID: &str = "application/octet-stream";

/// Whose artifact is meant, for a key that acts for every tenant.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Owner {
    tenant: Option<String>,
}

/// The answer to a put.
#[derive(Serialize)]
struct Stored {
    digest: String,
    url: String,
    media_type: String,
    size: u32,
}

impl From<&StoredArtifact> for Stored {
    fn from(stored: &StoredArtifact) -> Self {
        let StoredArtifact { digest, media_type, size, .. } = stored;
        Self { digest: digest.to_string(), url: digest.url(), media_type: media_type.clone(), size: *size }
    }
}

/// `PUT /artifacts`: 201 when the bytes were new to the tenant, 200 when they were not.
pub(crate) async fn put(
    State(gateway): State<Arc<Gateway>>,
    Caller(access): Caller,
    owner: Result<Query<Owner>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let Query(owner) = owner.map_err(|rejection| ApiError::bad_request(rejection.body_text()))?;
    let tenant = tenant_to_write(&access, owner)?;
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > MAX_ARTIFACT_BYTES as u64) {
        return Err(problems::artifact_too_large());
    }
    let media_type = match headers.get(CONTENT_TYPE) {
        Some(given) => given.to_str().map_err(|_unreadable| problems::not_a_media_type())?,
        None => UNSAID,
    };
    // held until the bytes are stored, so that uploads cannot take all memory
    let _room = gateway.uploads().try_acquire().map_err(|_full| problems::busy())?;
    let bytes = body::read_bytes(body, MAX_ARTIFACT_BYTES, ARRIVES_WITHIN, problems::artifact_too_large).await?;
    let stored = gateway.database().answered(gateway.parts().bus.put_artifact(&tenant, media_type, &bytes)).await?;
    info!(artifact.digest = %stored.digest, size = stored.size, created = stored.created, "stored artifact {}", stored.digest);
    let status = if stored.created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, [(LOCATION, stored.digest.url())], Json(Stored::from(&stored))).into_response())
}

/// `GET /artifacts/{digest}`: the bytes, or 304 for a caller that has them.
pub(crate) async fn get(
    State(gateway): State<Arc<Gateway>>,
    Caller(access): Caller,
    Path(digest): Path<String>,
    owner: Result<Query<Owner>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Query(owner) = owner.map_err(|rejection| ApiError::bad_request(rejection.body_text()))?;
    let digest: ArtifactDigest = digest.parse().map_err(|_no_digest| problems::no_such_artifact())?;
    let tenant = tenant_to_read(&gateway, &access, owner, &digest).await?.ok_or_else(problems::no_such_artifact)?;
    let bus = &gateway.parts().bus;
    let tag = HeaderValue::from_str(&format!("\"{digest}\"")).expect("a digest is hex digits");
    if has_already(&headers, &digest) {
        let known = gateway.database().answered(bus.artifact(&tenant, &digest)).await?;
        known.ok_or_else(problems::no_such_artifact)?;
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, tag), (CACHE_CONTROL, REVALIDATE)]).into_response());
    }
    let artifact = gateway.database().answered(bus.get_artifact(&tenant, &digest)).await?;
    let artifact = artifact.ok_or_else(problems::no_such_artifact)?;
    let media_type = HeaderValue::from_str(&artifact.info.media_type).unwrap_or(HeaderValue::from_static(UNSAID));
    let headers = [
        (CONTENT_TYPE, media_type),
        (ETAG, tag),
        (CACHE_CONTROL, REVALIDATE),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        // a page that somebody stored must not act as this server in the browser of who opens it
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox")),
    ];
    Ok((headers, artifact.content).into_response())
}

/// The bytes never change, but who may read them may.
const REVALIDATE: HeaderValue = HeaderValue::from_static("private, no-cache");

fn tenant_to_write(access: &Access, owner: Owner) -> Result<Tenant, ApiError> {
    let Some(named) = owner.tenant else {
        return match access {
            Access::One(own) => Ok(own.clone()),
            Access::AllTenants => {
                Err(problems::bad_field("tenant", "it must say whose artifact this is, as in ?tenant=acme"))
            }
        };
    };
    let tenant = Tenant::new(&named).map_err(|invalid| problems::bad_field("tenant", invalid.to_string()))?;
    if access.covers(tenant.as_str()) { Ok(tenant) } else { Err(problems::wrong_tenant(tenant.as_str())) }
}

/// None where there is nothing that the caller may see.
async fn tenant_to_read(
    gateway: &Gateway,
    access: &Access,
    owner: Owner,
    digest: &ArtifactDigest,
) -> Result<Option<Tenant>, ApiError> {
    let named = match (owner.tenant, access) {
        (Some(named), _) => Some(named),
        (None, Access::One(own)) => return Ok(Some(own.clone())),
        // the bytes are the same whoever put them
        (None, Access::AllTenants) => gateway.database().answered(gateway.parts().bus.artifact_tenant(digest)).await?,
    };
    Ok(named.and_then(|named| Tenant::new(&named).ok()).filter(|tenant| access.covers(tenant.as_str())))
}

fn has_already(headers: &HeaderMap, digest: &ArtifactDigest) -> bool {
    headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).flat_map(|list| list.split(',')).any(
        |tag| {
            let tag = tag.trim();
            let tag = tag.strip_prefix("W/").unwrap_or(tag);
            tag == "*" || tag.trim_matches('"') == digest.as_str()
        },
    )
}
