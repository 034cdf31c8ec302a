//! Routing keys `(service, role, shard, tenant)`, the only addresses on the bus.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A part of a routing key that the database would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Invalid {what} {value:?}: {rule}")]
pub struct Invalid {
    what: &'static str,
    value: String,
    rule: &'static str,
}

impl Invalid {
    pub(crate) fn new(what: &'static str, value: &str, rule: &'static str) -> Self {
        Self { what, value: shortened(value), rule }
    }
}

/// Where a message goes: service, role and shard; the tenant stands beside it in each message.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "UncheckedRoute")]
pub struct Route {
    service: Cow<'static, str>,
    role: Cow<'static, str>,
    shard: u16,
}

impl Route {
    /// A route known at compile time; both names must be of the form `[a-z][a-z0-9-]*`.
    #[must_use]
    pub const fn constant(service: &'static str, role: &'static str) -> Self {
        assert!(is_name(service.as_bytes()) && is_name(role.as_bytes()), "route names are [a-z][a-z0-9-]{{0,62}}");
        Self { service: Cow::Borrowed(service), role: Cow::Borrowed(role), shard: 0 }
    }

    /// Parses a route from its parts.
    ///
    /// # Errors
    /// When service or role is not of the form `[a-z][a-z0-9-]{0,62}`.
    pub fn new(service: &str, role: &str, shard: u16) -> Result<Self, Invalid> {
        let rule = "a name is [a-z][a-z0-9-]{0,62}";
        for (what, value) in [("service", service), ("role", role)] {
            if !is_name(value.as_bytes()) {
                return Err(Invalid { what, value: shortened(value), rule });
            }
        }
        Ok(Self { service: Cow::Owned(service.to_owned()), role: Cow::Owned(role.to_owned()), shard })
    }

    /// The same service and role on another shard.
    #[must_use]
    pub fn on_shard(&self, shard: u16) -> Self {
        Self { shard, ..self.clone() }
    }

    /// The domain that answers.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The role within the domain.
    #[must_use]
    pub fn role(&self) -> &str {
        &self.role
    }

    /// The part of a split domain, 0 if it is not split.
    #[must_use]
    pub fn shard(&self) -> u16 {
        self.shard
    }
}

impl fmt::Display for Route {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}/{}", self.service, self.role, self.shard)
    }
}

impl FromStr for Route {
    type Err = Invalid;

    /// Reads `service/role` or `service/role/shard`.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid =
            || Invalid { what: "route", value: shortened(text), rule: "a route is service/role or service/role/shard" };
        let mut parts = text.split('/');
        let (Some(service), Some(role), shard, None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(invalid());
        };
        let shard = shard.map_or(Ok(0), str::parse).map_err(|_| invalid())?;
        Self::new(service, role, shard)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UncheckedRoute {
    service: String,
    role: String,
    #[serde(default)]
    shard: u16,
}

impl TryFrom<UncheckedRoute> for Route {
    type Error = Invalid;

    fn try_from(unchecked: UncheckedRoute) -> Result<Self, Invalid> {
        Self::new(&unchecked.service, &unchecked.role, unchecked.shard)
    }
}

/// Whose message it is; no statement of the hot path crosses tenants.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tenant(String);

impl Tenant {
    /// Parses a tenant's name.
    ///
    /// # Errors
    /// When it is not of the form `[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}`.
    pub fn new(name: &str) -> Result<Self, Invalid> {
        let legal = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.:@-".contains(byte);
        let valid = name.len() <= 128
            && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
            && name.as_bytes().iter().all(legal);
        if !valid {
            return Err(Invalid {
                what: "tenant",
                value: shortened(name),
                rule: "a tenant is [A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}",
            });
        }
        Ok(Self(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for Tenant {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::new(text)
    }
}

impl TryFrom<String> for Tenant {
    type Error = Invalid;

    fn try_from(name: String) -> Result<Self, Invalid> {
        Self::new(&name)
    }
}

impl From<Tenant> for String {
    fn from(tenant: Tenant) -> Self {
        tenant.0
    }
}

/// The routes of this house, named once.
pub mod routes {
    use super::Route;

    /// Questions and jobs from outside, to be decided on.
    pub const DECIDE: Route = Route::constant("orchestrator", "decide");
    /// Decided work, to be stamped with its assignment and sent on.
    pub const DISPATCH: Route = Route::constant("executor", "dispatch");
    /// Questions about documents and code.
    pub const CHAT: Route = Route::constant("gateway", "chat");
    /// A tree to be walked; changed files are sent on to [`EMBED`] and [`BUILD`].
    pub const INDEX: Route = Route::constant("rag", "index");
    /// Files to be chunked, indexed and embedded.
    pub const EMBED: Route = Route::constant("rag", "embed");
    /// A tree whose code graph is to be built.
    pub const BUILD: Route = Route::constant("kg", "build");
    /// A command to be run in a sandbox.
    pub const SANDBOX: Route = Route::constant("sandbox", "run");
}

const fn is_name(name: &[u8]) -> bool {
    if name.is_empty() || name.len() > 63 || !name[0].is_ascii_lowercase() {
        return false;
    }
    let mut index = 1;
    while index < name.len() {
        let byte = name[index];
        if !(byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
            return false;
        }
        index += 1;
    }
    true
}

/// Errors travel to callers, so a hostile value is not echoed at length.
fn shortened(value: &str) -> String {
    value.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_as_they_are_written() {
        for text in ["rag/embed/3", "gateway/chat/0"] {
            assert_eq!(text.parse::<Route>().unwrap().to_string(), text);
        }
        assert_eq!("rag/embed".parse::<Route>().unwrap(), routes::EMBED);
    }

    #[test]
    fn bad_routing_keys_are_refused() {
        for text in ["", "rag", "Rag/embed", "rag/embed/x", "rag/embed/0/1", "rag/em bed", "rag/embed/70000", "-a/b"] {
            assert!(text.parse::<Route>().is_err(), "{text}");
        }
        for name in ["", " ", "a b", "ä", "-x", "a\0b", &"x".repeat(129)] {
            assert!(Tenant::new(name).is_err(), "{name}");
        }
    }
}
