//! How what is left of an expired claim is taken back: `bus.take_back`.

use super::{
    CallDefect, CallModel,
    world::{At, Call, CallWorld, Claim, Entry, Given, Write},
};

impl CallModel {
    /// The first statement's snapshot: what is unfinished and has no later lease elsewhere.
    pub(super) fn scan(&self, world: &CallWorld, call: &mut Call) {
        let claim = expired(world, call);
        call.given = claim
            .entries
            .iter()
            .filter(|entry| world.is_current(**entry) && !self.has_later_lease(world, claim.id, **entry))
            .map(|entry| Given { entry: *entry, claim: claim.id, version: claim.version })
            .collect();
        call.given.sort_unstable();
        call.at = At::TakeRows;
    }

    /// Gets the rows that nobody has, and judges their newest versions.
    pub(super) fn take_rows(&self, world: &CallWorld, call: &mut Call) {
        for given in std::mem::take(&mut call.given) {
            if world.is_row_locked(given.entry.0, call) {
                continue;
            }
            call.rows.push(given.entry.0);
            let is_extended = self.defect != CallDefect::ReclaimTrustsItsSnapshot
                && self.has_later_lease(world, given.claim, given.entry);
            if world.is_current(given.entry) && !is_extended {
                call.mine.push(given);
            }
        }
        call.at = At::LeftOver;
    }

    /// The claim goes unless something of it is unfinished.
    pub(super) fn left_over(&self, world: &CallWorld, call: &mut Call) {
        let claim = expired(world, call);
        let is_left = |entry: &Entry| {
            let is_taken_back = call.mine.iter().any(|mine| mine.entry == *entry);
            let is_forgotten =
                self.defect == CallDefect::ReclaimForgetsWhatIsLocked && world.is_row_locked(entry.0, call);
            let is_elsewhere = is_taken_back || is_forgotten || self.has_later_lease(world, claim.id, *entry);
            world.is_current(*entry) && !is_elsewhere
        };
        if !claim.entries.iter().any(is_left) {
            call.write(Write::Delete(claim.id));
        }
        call.at = At::Commit;
    }

    fn has_later_lease(&self, world: &CallWorld, than: u8, entry: Entry) -> bool {
        let is_later = |claim: &Claim| claim.id != than && claim.lease > 0 && claim.entries.contains(&entry);
        self.defect != CallDefect::ReclaimIgnoresLaterLeases && world.claims.iter().any(is_later)
    }
}

/// The claim that it has locked, which nobody else can change.
fn expired(world: &CallWorld, call: &Call) -> Claim {
    let claim = world.claims.iter().find(|claim| call.found.contains(&claim.id));
    claim.cloned().expect("a locked claim stays")
}
