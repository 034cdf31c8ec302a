//! Choosing one of many agents by what they have to do.

use std::sync::Arc;

use crate::{entry::Entry, query::Query, snapshot::Snapshot};

/// Random places that are tried for two that fit before all of them are looked at.
const TRIES: usize = 16;

/// The healthy agent that fits and has the least to do.
pub(crate) fn least_loaded(snapshot: &Snapshot, query: &Query) -> Option<Arc<Entry>> {
    let healthy = snapshot.fitting(query).filter(|entry| snapshot.is_healthy(entry));
    let chosen = healthy.min_by_key(|entry| entry.in_flight())?;
    chosen.load.choose();
    Some(Arc::clone(chosen))
}

/// The less loaded of two healthy agents that fit, taken at random.
pub(crate) fn power_of_two(snapshot: &Snapshot, query: &Query, mut roll: impl FnMut() -> u64) -> Option<Arc<Entry>> {
    let candidates = snapshot.candidates(query);
    let count = u64::try_from(candidates.len()).ok().filter(|count| *count > 0)?;
    let mut first: Option<&Arc<Entry>> = None;
    for _ in 0..TRIES {
        let number = usize::try_from(roll() % count).ok()?;
        let fitting = candidates
            .get(number)
            .and_then(|place| snapshot.at(place))
            .filter(|entry| query.fits(entry) && snapshot.is_healthy(entry));
        let Some(entry) = fitting else {
            continue;
        };
        match first {
            None => first = Some(entry),
            Some(other) if other.id.instance_id == entry.id.instance_id && count > 1 => {}
            Some(other) => {
                let chosen = if entry.in_flight() < other.in_flight() { entry } else { other };
                chosen.load.choose();
                return Some(Arc::clone(chosen));
            }
        }
    }
    // few fit: then looking at all of them is the only fair way
    least_loaded(snapshot, query)
}
