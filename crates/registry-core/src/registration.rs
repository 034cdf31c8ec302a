//! What a process says about itself when it joins, checked before the database is asked.

use std::sync::Arc;

use cogo_contracts::{AgentId, Endpoint, Location};
use uuid::Uuid;

use crate::{
    key::{AgentKey, Proof},
    token::Signer,
};

/// Longest name of a domain, a process or the first part of a capability.
const NAME_LENGTH: usize = 63;
/// Longest second part of a capability.
const QUALIFIER_LENGTH: usize = 127;
const WORD_RULE: &str = "it is word or word:qualifier, the word [a-z][a-z0-9-]{0,62}";
/// What the database stores of a version number.
const VERSION_LIMIT: u64 = 1_000_000_000;

/// Something that the database would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Invalid {what} {value:?}: {rule}")]
pub struct Invalid {
    what: &'static str,
    value: String,
    rule: &'static str,
}

/// Place of an agent in the hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Decides for the fleet.
    Strategic = 1,
    /// Does the work.
    Operational = 2,
    /// Works outside and is reached through its parent.
    External = 3,
}

/// A process as it presents itself to the registry.
#[derive(Debug, Clone)]
pub struct Registration {
    pub(crate) id: AgentId,
    pub(crate) capabilities: Vec<String>,
    pub(crate) level: Level,
    pub(crate) parent: Option<String>,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) location: Location,
    pub(crate) tags: Vec<String>,
    pub(crate) carrier: Option<Uuid>,
    pub(crate) carried: Vec<Registration>,
    pub(crate) key_proof: Option<Proof>,
    pub(crate) signer: Arc<Signer>,
}

impl Registration {
    /// A registration of level 2 without capabilities, under a new instance id.
    ///
    /// # Errors
    /// When domain or name is not `[a-z][a-z0-9-]{0,62}`, the slot is above 65535, or the version has a number of more
    /// than nine digits or a part of more than 64 characters.
    pub fn new(
        domain: &str,
        name: &str,
        slot: u32,
        version: semver::Version,
        location: Location,
    ) -> Result<Self, Invalid> {
        for (what, value) in [("domain", domain), ("agent name", name)] {
            if !is_name(value) {
                return Err(invalid(what, value, "a name is [a-z][a-z0-9-]{0,62}"));
            }
        }
        let Some(slot) = i32::try_from(slot).ok().filter(|slot| *slot <= i32::from(u16::MAX)) else {
            return Err(invalid("slot", &slot.to_string(), "a slot is 0 to 65535"));
        };
        let numbers_fit = [version.major, version.minor, version.patch].iter().all(|number| *number < VERSION_LIMIT);
        if !numbers_fit || version.pre.len() > 64 || version.build.len() > 64 {
            let rule = "its numbers have at most nine digits, its other parts at most 64 characters";
            return Err(invalid("version", &version.to_string(), rule));
        }
        let id =
            AgentId { domain: domain.to_owned(), name: name.to_owned(), slot, instance_id: Uuid::now_v7(), version };
        Ok(Self {
            id,
            capabilities: Vec::new(),
            level: Level::Operational,
            parent: None,
            endpoints: Vec::new(),
            location,
            tags: Vec::new(),
            carrier: None,
            carried: Vec::new(),
            key_proof: None,
            signer: Arc::new(Signer::new()),
        })
    }

    /// Adds something that the agent can do: a word, or a word and a qualifier such as `language:rust`.
    ///
    /// # Errors
    /// When it is not `[a-z][a-z0-9-]{0,62}` with, optionally, `:[A-Za-z0-9][A-Za-z0-9_.+/-]{0,126}` behind it.
    pub fn capability(mut self, capability: &str) -> Result<Self, Invalid> {
        if !is_word(capability) {
            return Err(invalid("capability", capability, WORD_RULE));
        }
        if !self.capabilities.iter().any(|known| known == capability) {
            self.capabilities.push(capability.to_owned());
        }
        Ok(self)
    }

    /// Adds a word to find the agent by, of the same form as a capability.
    ///
    /// # Errors
    /// As [`capability`](Self::capability).
    pub fn tag(mut self, tag: &str) -> Result<Self, Invalid> {
        if !is_word(tag) {
            return Err(invalid("tag", tag, WORD_RULE));
        }
        if !self.tags.iter().any(|known| known == tag) {
            self.tags.push(tag.to_owned());
        }
        Ok(self)
    }

    /// Adds an agent that lives in the same process: it joins after this one, beats with it and ends with it.
    ///
    /// Only the [`Heartbeat`](crate::Heartbeat) heeds it. The carried agent is found by others and is active from the
    /// start, but claims only while this one is active too.
    #[must_use]
    pub fn carrying(mut self, other: Self) -> Self {
        self.carried.push(other);
        self
    }

    /// Says in whose process the agent lives; what [`carrying`](Self::carrying) does by itself.
    #[must_use]
    pub fn carried_by(mut self, run: Uuid) -> Self {
        self.carrier = Some(run);
        self
    }

    /// Joins with this key, of which only a hash is kept.
    #[must_use]
    pub fn key(mut self, key: &AgentKey) -> Self {
        self.key_proof = Some(key.proof());
        self
    }

    /// Adds an address at which the agent answers.
    #[must_use]
    pub fn endpoint(mut self, protocol: &str, url: &str) -> Self {
        self.endpoints.push(Endpoint { protocol: protocol.to_owned(), url: url.to_owned() });
        self
    }

    /// Sets the place in the hierarchy.
    #[must_use]
    pub fn level(mut self, level: Level) -> Self {
        self.level = level;
        self
    }

    /// Names the agent (`name/slot`) that answers for this one.
    #[must_use]
    pub fn parent(mut self, instance: &str) -> Self {
        self.parent = Some(instance.to_owned());
        self
    }

    /// Who this registration says the process is.
    #[must_use]
    pub fn id(&self) -> &AgentId {
        &self.id
    }

    /// Takes a new instance id and key, since those that have ended are never used again; answers the old id.
    pub(crate) fn renew(&mut self) -> Uuid {
        self.signer = Arc::new(Signer::new());
        std::mem::replace(&mut self.id.instance_id, Uuid::now_v7())
    }
}

fn is_word(text: &str) -> bool {
    match text.split_once(':') {
        None => is_name(text),
        Some((word, qualifier)) => is_name(word) && is_qualifier(qualifier),
    }
}

fn is_name(text: &str) -> bool {
    text.len() <= NAME_LENGTH
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

fn is_qualifier(text: &str) -> bool {
    text.len() <= QUALIFIER_LENGTH
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.+/-".contains(&byte))
}

fn invalid(what: &'static str, value: &str, rule: &'static str) -> Invalid {
    Invalid { what, value: value.chars().take(80).collect(), rule }
}

#[cfg(test)]
mod tests {
    use cogo_contracts::Environment;

    use super::*;

    fn registration() -> Registration {
        let location = Location {
            environment: Environment::Host,
            host: "here".to_owned(),
            region: None,
            cpus: 1,
            memory_bytes: 1,
            pid: 1,
        };
        Registration::new("rag", "rag-embed", 0, semver::Version::new(1, 2, 3), location).unwrap()
    }

    #[test]
    fn capabilities_are_words_with_an_optional_qualifier() {
        for good in ["embed", "language:rust", "model:BAAI/bge-small-en-v1.5", "language:c++", "a"] {
            assert!(registration().capability(good).is_ok(), "{good}");
        }
        for bad in ["", "Embed", "1embed", "embed:", ":rust", "embed rust", "embed:a:b", "embed\0", "é", "embed:\n"] {
            assert!(registration().capability(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_same_capability_counts_once() {
        let twice = registration().capability("embed").unwrap().capability("embed").unwrap();
        assert_eq!(twice.capabilities, ["embed"]);
    }

    #[test]
    fn parts_that_the_database_refuses_are_refused_here() {
        let try_new = |domain: &str, name: &str, slot: u32, version: semver::Version| {
            Registration::new(domain, name, slot, version, registration().location).map(|_| ())
        };
        let version = semver::Version::new(0, 1, 0);
        assert!(try_new("rag", "rag-embed", 65_535, version.clone()).is_ok());
        assert!(try_new("Rag", "rag-embed", 0, version.clone()).is_err());
        assert!(try_new("rag", &"a".repeat(64), 0, version.clone()).is_err());
        assert!(try_new("rag", "rag-embed", 65_536, version).is_err());
        assert!(try_new("rag", "rag-embed", 0, semver::Version::new(1_000_000_000, 0, 0)).is_err());
    }

    #[test]
    fn renewing_changes_the_holder_and_nothing_else() {
        let mut renewed = registration();
        let before = renewed.id.clone();
        let old = renewed.renew();
        assert_eq!(old, before.instance_id);
        assert_ne!(renewed.id.holder(), before.holder());
        assert_eq!(renewed.id.instance(), before.instance());
    }
}
