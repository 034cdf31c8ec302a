//! Keys by which agents may join: shown once, kept by whoever got them, never sent to the database.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    digest::{SHA256, digest},
    rand::{SecureRandom, SystemRandom},
};

/// What a key starts with, so that one that was left lying about is recognised.
const PREFIX: &str = "cogo_ak_";
const SECRET_BYTES: usize = 32;

/// A key for joining. Prints as stars; only [`reveal`](Self::reveal) shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct AgentKey(String);

/// What is sent instead of the key: its SHA-256. The database keeps only the SHA-256 of that.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Proof(pub(crate) [u8; 32]);

/// A text that is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Not an agent key: one starts with {PREFIX} and has 43 characters behind it")]
pub struct NoKey;

impl AgentKey {
    /// A new key of 256 random bits.
    ///
    /// # Panics
    /// When the operating system has no random numbers to give, without which nothing here is safe.
    #[must_use]
    pub fn generate() -> Self {
        let mut secret = [0_u8; SECRET_BYTES];
        SystemRandom::new().fill(&mut secret).expect("the operating system gives random numbers");
        Self(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(secret)))
    }

    /// Reads a key.
    ///
    /// # Errors
    /// When it is not of the form of a key; the text is not repeated.
    pub fn parse(text: &str) -> Result<Self, NoKey> {
        let secret = text.trim().strip_prefix(PREFIX).and_then(|secret| URL_SAFE_NO_PAD.decode(secret).ok());
        secret.filter(|secret| secret.len() == SECRET_BYTES).map(|_| Self(text.trim().to_owned())).ok_or(NoKey)
    }

    /// The key itself, to be handed to its owner once.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub(crate) fn proof(&self) -> Proof {
        Proof(sha256(self.0.as_bytes()))
    }
}

impl Proof {
    /// What the database keeps.
    pub(crate) fn hash(&self) -> [u8; 32] {
        sha256(&self.0)
    }
}

impl fmt::Debug for AgentKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("AgentKey(***)")
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Proof(***)")
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back_and_never_printed() {
        let key = AgentKey::generate();
        assert_eq!(AgentKey::parse(&format!("  {}\n", key.reveal())), Ok(key.clone()));
        assert_ne!(key, AgentKey::generate());
        let printed = format!("{key:?} {:?}", key.proof());
        assert_eq!(printed, "AgentKey(***) Proof(***)");
        for bad in ["", "cogo_ak_", "cogo_ak_abc", key.reveal().trim_start_matches(PREFIX)] {
            assert_eq!(AgentKey::parse(bad), Err(NoKey), "{bad:?}");
        }
    }
}
