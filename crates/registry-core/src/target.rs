//! Whom an order is for: a run, or whoever owns a slot.

use std::{fmt, str::FromStr};

use uuid::Uuid;

/// Whom an order is for, and why it is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub(crate) whom: Whom,
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whom {
    Run(Uuid),
    Slot(String, i32),
}

/// A text that names neither a run nor a slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no agent: give name, name/slot, name/slot#instance or an instance id")]
pub struct NoTarget {
    text: String,
}

impl Target {
    /// One run of a process.
    #[must_use]
    pub fn run(instance_id: Uuid) -> Self {
        Self { whom: Whom::Run(instance_id), reason: None }
    }

    /// The living owner of a slot.
    #[must_use]
    pub fn slot(name: &str, slot: u16) -> Self {
        Self { whom: Whom::Slot(name.to_owned(), i32::from(slot)), reason: None }
    }

    /// Says why, for the log and the audit.
    #[must_use]
    pub fn because(mut self, reason: &str) -> Self {
        self.reason = Some(reason.to_owned());
        self
    }
}

impl From<Uuid> for Target {
    fn from(instance_id: Uuid) -> Self {
        Self::run(instance_id)
    }
}

impl FromStr for Target {
    type Err = NoTarget;

    /// Reads `name` (its slot 0), `name/slot`, a holder name, or an instance id.
    fn from_str(text: &str) -> Result<Self, NoTarget> {
        let refused = || NoTarget { text: text.chars().take(80).collect() };
        if let Ok(instance_id) = text.parse::<Uuid>() {
            return Ok(Self::run(instance_id));
        }
        if let Some((_, instance_id)) = text.split_once('#') {
            return instance_id.parse().map(Self::run).map_err(|_| refused());
        }
        let (name, slot) = text.split_once('/').unwrap_or((text, "0"));
        let is_name = name.starts_with(|first: char| first.is_ascii_lowercase())
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if !is_name {
            return Err(refused());
        }
        slot.parse().map(|slot| Self::slot(name, slot)).map_err(|_| refused())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.whom {
            Whom::Run(instance_id) => write!(formatter, "{instance_id}"),
            Whom::Slot(name, slot) => write!(formatter, "{name}/{slot}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_slots_are_read_and_rubbish_is_not() {
        let id = Uuid::now_v7();
        assert_eq!(id.to_string().parse::<Target>().unwrap(), Target::run(id));
        assert_eq!(format!("rag-embed/3#{}", id.simple()).parse::<Target>().unwrap(), Target::run(id));
        assert_eq!("rag-embed".parse::<Target>().unwrap(), Target::slot("rag-embed", 0));
        assert_eq!("rag-embed/7".parse::<Target>().unwrap(), Target::slot("rag-embed", 7));
        for bad in ["", "/1", "rag-embed/", "rag-embed/x", "rag-embed/70000", "Rag", "rag/1#x", "a b"] {
            assert!(bad.parse::<Target>().is_err(), "{bad:?}");
        }
    }
}
