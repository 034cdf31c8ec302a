//! How an extension renews the claims of its messages, and splits those of which only a part is extended.

use super::{
    CallDefect, CallModel,
    world::{At, Call, CallWorld, Claim, Entry, Write},
};

impl CallModel {
    /// Locks the claims that were read first, at the second look also those where the messages are now.
    pub(super) fn lock_claims(&self, world: &CallWorld, call: &mut Call, look: u8) {
        let is_asked = |claim: &Claim| {
            call.mine.iter().any(|mine| mine.claim == claim.id)
                || (look == 2 && claim.entries.iter().any(|entry| call.to_do.iter().any(|to_do| to_do.0 == entry.0)))
        };
        let found = world.seen_by(call).into_iter().filter(is_asked);
        let found: Vec<u8> = found.map(|claim| claim.id).filter(|claim| !world.is_claim_locked(*claim, None)).collect();
        call.claims.extend(found.iter().filter(|id| !call.claims.contains(id)).copied().collect::<Vec<_>>());
        call.found = found;
        self.after_split(call, look, 0);
    }

    /// Reads the rows of everything in a locked claim, and gives what is extended a lease apart from the rest.
    pub(super) fn split(&self, world: &CallWorld, call: &mut Call, look: u8, next: usize) {
        let id = call.found[next];
        let seen = world.seen_by(call).into_iter().find(|claim| claim.id == id);
        let remembered = call.remembered.iter().find(|claim| claim.id == id).cloned();
        if let Some(one) = remembered.or(seen) {
            let kept = |entry: &Entry| call.mine.iter().any(|mine| mine.entry == *entry);
            let part: Vec<Entry> = one.entries.iter().copied().filter(|entry| kept(entry)).collect();
            let is_unfinished = |entry: &Entry| {
                world.is_current(*entry)
                    && !(self.defect == CallDefect::SplitForgetsWhatIsLocked && world.is_row_locked(entry.0, call))
            };
            let others: Vec<Entry> =
                one.entries.iter().copied().filter(|entry| !kept(entry) && is_unfinished(entry)).collect();
            if !part.is_empty() {
                call.to_do.retain(|to_do| !part.contains(to_do));
                self.renew(world, call, one, part, others);
            }
        }
        self.after_split(call, look, next + 1);
    }

    fn renew(&self, world: &CallWorld, call: &mut Call, one: Claim, part: Vec<Entry>, others: Vec<Entry>) {
        let lease = call.until;
        if others.is_empty() {
            call.write(Write::Put(Claim { lease, ..one }));
            return;
        }
        let id = world.fresh_id(call);
        call.write(Write::Put(Claim { id, version: 0, lease: one.lease, remaining: size(&others), entries: others }));
        let version = one.version + u8::from(self.defect != CallDefect::SplitKeepsTheVersion);
        call.write(Write::Put(Claim { id: one.id, version, lease, remaining: size(&part), entries: part }));
    }

    fn after_split(&self, call: &mut Call, look: u8, next: usize) {
        call.at = if next < call.found.len() {
            At::Split(look, next)
        } else if call.to_do.is_empty() || (look == 2 && self.defect == CallDefect::ExtensionLeavesLockedClaims) {
            At::Commit
        } else if look == 1 {
            At::LockClaims(2)
        } else {
            At::LeaseOfItsOwn
        };
        if next >= call.found.len() {
            call.found.clear();
        }
    }

    /// The claim is locked: what is extended gets another one beside it.
    pub(super) fn lease_of_its_own(&self, world: &CallWorld, call: &mut Call) {
        for claim in world.seen_by(call) {
            let entries: Vec<Entry> =
                claim.entries.iter().copied().filter(|entry| call.to_do.contains(entry)).collect();
            if !entries.is_empty() {
                let id = world.fresh_id(call);
                call.write(Write::Put(Claim { id, version: 0, lease: call.until, remaining: size(&entries), entries }));
            }
        }
        call.to_do.clear();
        call.at = At::Commit;
    }
}

fn size(entries: &[Entry]) -> u8 {
    u8::try_from(entries.len()).expect("a claim is small")
}
