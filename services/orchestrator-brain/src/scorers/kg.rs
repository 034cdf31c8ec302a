//! Kg: how much of the knowledge that the target answers from is there?

use crate::sense::Target;

/// What the tenant has indexed, as far as the request needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coverage {
    /// The collection asked for, or any if none was named, holds something.
    Indexed,
    /// There is nothing to answer from.
    Nothing,
    /// It was not looked at, or cannot be.
    Unknown,
}

/// 1 if what is asked for is indexed, 0 if nothing is, one half when unknown or when the target uses no knowledge.
/// From `rag_scopes`, the totals of each collection.
pub(crate) fn score(target: &Target, coverage: Coverage) -> f64 {
    match coverage {
        _ if !target.uses_knowledge => 0.5,
        Coverage::Indexed => 1.0,
        Coverage::Nothing => 0.0,
        Coverage::Unknown => 0.5,
    }
}
