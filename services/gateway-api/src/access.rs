//! Who may call: keys, compared by digest, and for which tenants they act.

use std::{hint::black_box, sync::Arc};

use anyhow::{Context, ensure};
use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, header::AUTHORIZATION, request::Parts},
};
use cogo_contracts::Tenant;
use cogo_service_runtime::{ApiError, Secret};
use sha2::{Digest, Sha256};

use crate::{Gateway, problems};

const APIKEY: HeaderName = HeaderName::from_static("apikey");

/// For which tenants a caller acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Access {
    /// For every tenant.
    AllTenants,
    /// For this tenant only.
    One(Tenant),
}

impl Access {
    pub(crate) fn covers(&self, tenant: &str) -> bool {
        match self {
            Self::AllTenants => true,
            Self::One(own) => own.as_str() == tenant,
        }
    }

    /// What two valid credentials of one request allow together; none if they speak for different tenants.
    fn and(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::AllTenants, access) | (access, Self::AllTenants) => Some(access),
            (Self::One(one), Self::One(other)) => (one == other).then_some(Self::One(one)),
        }
    }
}

/// The configured keys; only their digests are kept.
pub(crate) struct Keys(Vec<(Fingerprint, Access)>);

type Fingerprint = [u8; 32];

impl Keys {
    /// # Errors
    /// When an entry has no key or its tenant's name is not one; the key itself is not in the text.
    pub(crate) fn parse(entries: &[Secret]) -> anyhow::Result<Self> {
        let mut keys = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            let number = index + 1;
            let (access, key) = match entry.reveal().rsplit_once(':') {
                Some((tenant, key)) => {
                    let tenant = Tenant::new(tenant).ok().with_context(|| {
                        format!("Entry {number} of api_keys names no valid tenant before its colon")
                    })?;
                    (Access::One(tenant), key)
                }
                None => (Access::AllTenants, entry.reveal()),
            };
            ensure!(
                !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic()),
                "Entry {number} of api_keys has no key of visible ASCII characters"
            );
            keys.push((fingerprint(key), access));
        }
        Ok(Self(keys))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Access of a request: without keys everyone's, else that of its credentials, each of which must be valid.
    pub(crate) fn admit(&self, headers: &HeaderMap) -> Result<Access, ApiError> {
        if self.is_empty() {
            return Ok(Access::AllTenants);
        }
        let mut admitted: Option<Access> = None;
        for presented in presented(headers)? {
            let access = self.find(presented).ok_or_else(|| problems::unauthorized("The key is not known"))?;
            let both = match admitted {
                None => Some(access),
                Some(first) => first.and(access),
            };
            let refusal = || problems::unauthorized("The keys of this request act for different tenants");
            admitted = Some(both.ok_or_else(refusal)?);
        }
        admitted.ok_or_else(|| problems::unauthorized("The request carries no key"))
    }

    /// Looks at every entry whatever it finds, so that time tells nothing of the keys.
    fn find(&self, presented: &str) -> Option<Access> {
        let presented = fingerprint(presented);
        let mut found = None;
        for (fingerprint, access) in &self.0 {
            if same(fingerprint, &presented) {
                found = Some(access.clone());
            }
        }
        found
    }
}

/// The access of the caller, as an argument of handlers.
pub(crate) struct Caller(pub(crate) Access);

impl FromRequestParts<Arc<Gateway>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, ApiError> {
        gateway.keys().admit(&parts.headers).map(Self)
    }
}

/// Every credential of the request.
fn presented(headers: &HeaderMap) -> Result<Vec<&str>, ApiError> {
    let unreadable = |_| problems::unauthorized("A credential is not text");
    let mut keys = Vec::new();
    for value in headers.get_all(AUTHORIZATION) {
        let value = value.to_str().map_err(unreadable)?;
        match value.split_once(' ') {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => keys.push(key.trim()),
            _ => return Err(problems::unauthorized("The header Authorization is not of the form Bearer <key>")),
        }
    }
    for value in headers.get_all(APIKEY) {
        keys.push(value.to_str().map_err(unreadable)?.trim());
    }
    Ok(keys)
}

fn fingerprint(key: &str) -> Fingerprint {
    Sha256::digest(key.as_bytes()).into()
}

fn same(one: &Fingerprint, other: &Fingerprint) -> bool {
    let difference = one.iter().zip(other).fold(0, |difference, (left, right)| difference | (left ^ right));
    black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn keys(entries: &[&str]) -> Keys {
        Keys::parse(&entries.iter().map(|&entry| Secret::new(entry)).collect::<Vec<_>>()).unwrap()
    }

    fn admit(keys: &Keys, headers: &[(&'static str, &'static str)]) -> Option<Access> {
        let mut map = HeaderMap::new();
        for &(name, value) in headers {
            map.append(name, HeaderValue::from_static(value));
        }
        keys.admit(&map).ok()
    }

    #[test]
    fn each_credential_of_a_request_must_be_valid() {
        let keys = keys(&["one", "acme:two", "other:three"]);
        let acme = Some(Access::One(Tenant::new("acme").unwrap()));
        for (headers, expected) in [
            (&[("authorization", "Bearer one")][..], Some(Access::AllTenants)),
            (&[("authorization", "bearer  one")][..], Some(Access::AllTenants)),
            (&[("apikey", "two")][..], acme.clone()),
            (&[("apikey", "two"), ("authorization", "Bearer one")][..], acme),
            (&[("apikey", "two"), ("authorization", "Bearer three")][..], None),
            (&[("apikey", "one"), ("authorization", "Bearer wrong")][..], None),
            (&[("apikey", "wrong"), ("authorization", "Bearer one")][..], None),
            (&[("authorization", "Basic one")][..], None),
            (&[("authorization", "one")][..], None),
            (&[("apikey", "acme:two")][..], None),
            (&[("apikey", "")][..], None),
            (&[][..], None),
        ] {
            assert_eq!(admit(&keys, headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn tenants_with_colons_and_unusable_entries_are_told_apart() {
        let keys = keys(&["org:team:secret"]);
        assert_eq!(admit(&keys, &[("apikey", "secret")]), Some(Access::One(Tenant::new("org:team").unwrap())));
        for entry in ["", "acme:", ":key", "a b:key", "with space"] {
            let Err(error) = Keys::parse(&[Secret::new(entry)]) else { panic!("{entry:?} was taken") };
            assert!(error.to_string().contains("Entry 1 of api_keys"), "{error}");
        }
    }
}
