//! How an end is counted off the claim of its message: `bus.let_go`.

use super::{
    CallDefect, CallModel,
    world::{At, Call, CallWorld, Claim, Entry, Given, Write},
};

impl CallModel {
    /// Counts off the claim that was read first, if nobody has it and nobody split it.
    pub(super) fn let_go(&self, world: &CallWorld, call: &mut Call) {
        let (id, version) = first_claim(call);
        let found = world.seen_by(call).into_iter().find(|claim| claim.id == id);
        let is_free = !world.is_claim_locked(id, None);
        if let Some(claim) = found.filter(|_| is_free) {
            call.claims.push(id);
            if claim.version == version || self.defect == CallDefect::EndIgnoresTheVersion {
                let ours = take_first(call).len();
                let asked = self.defect == CallDefect::EndCountsWhatWasAsked;
                let counted = if asked { call.asked.len() } else { ours };
                count_off(call, claim, counted);
                return;
            }
        }
        call.at = At::LookElsewhere;
    }

    /// An extension split the claim meanwhile, or somebody has it: each is counted off where it is now, unless somebody has
    /// that too.
    pub(super) fn look_elsewhere(&self, world: &CallWorld, call: &mut Call) {
        let ours: Vec<Entry> = take_first(call).iter().map(|given| given.entry).collect();
        for claim in world.seen_by(call) {
            let overlaps = claim.entries.iter().any(|entry| ours.iter().any(|our| our.0 == entry.0));
            if !overlaps || world.is_claim_locked(claim.id, None) {
                continue;
            }
            call.claims.push(claim.id);
            let is_ours = |entry: &&Entry| {
                ours.iter().any(|our| {
                    our.0 == entry.0 && (our.1 == entry.1 || self.defect == CallDefect::EndIgnoresTheAttempt)
                })
            };
            let counted = claim.entries.iter().filter(is_ours).count();
            if counted > 0 {
                count_off(call, claim, counted);
            }
        }
    }
}

/// Which claims the messages are in by now, and in which version; a message may be in two, and counts for one of them.
pub(super) fn read_claims(world: &CallWorld, call: &mut Call, defect: CallDefect) {
    let ended: Vec<Entry> = call.mine.iter().map(|mine| mine.entry).collect();
    let claims = world.seen_by(call).into_iter().flat_map(|claim| {
        let ours = claim.entries.into_iter().filter(|entry| ended.contains(entry));
        ours.map(move |entry| Given { entry, claim: claim.id, version: claim.version }).collect::<Vec<_>>()
    });
    call.to_count = claims.collect();
    call.to_count.sort_unstable();
    if defect != CallDefect::EndCountsEveryClaimItReads {
        call.to_count.dedup_by_key(|given| given.entry);
    }
    call.at = if call.to_count.is_empty() { At::Commit } else { At::LetGo };
}

/// The claim that is counted off next, and the version of it that was read.
pub(super) fn first_claim(call: &Call) -> (u8, u8) {
    let claims = call.to_count.iter().map(|given| (given.claim, given.version));
    claims.min().expect("an end counts off while anything is left")
}

/// What was read in that claim; then comes the next one.
fn take_first(call: &mut Call) -> Vec<Given> {
    let first = first_claim(call);
    let (ours, others) =
        std::mem::take(&mut call.to_count).into_iter().partition(|given| (given.claim, given.version) == first);
    call.to_count = others;
    call.at = if call.to_count.is_empty() { At::Commit } else { At::LetGo };
    ours
}

fn count_off(call: &mut Call, mut claim: Claim, counted: usize) {
    let counted = u8::try_from(counted).expect("a claim is small");
    if claim.remaining <= counted {
        call.write(Write::Delete(claim.id));
    } else {
        claim.remaining -= counted;
        call.write(Write::Put(claim));
    }
}
