//! The simple steps, how calls begin, and how they become visible.

use super::{
    CallModel,
    world::{At, Call, CallWorld, Claim, Entry, Given, Kind, Promise, Status, Write},
};

impl CallWorld {
    pub(super) fn has_leases(&self) -> bool {
        let lives = |claim: &Claim| claim.lease > 0;
        let is_written = |write: &Write| matches!(write, Write::Put(claim) if lives(claim));
        self.claims.iter().any(lives)
            || self.promises.iter().any(|promise| promise.lease > 0)
            || self.calls.iter().any(|call| call.until > 0 || call.writes.iter().any(is_written))
    }

    pub(super) fn tick(&mut self) {
        let later = |lease: &mut u8| *lease = lease.saturating_sub(1);
        for call in &mut self.calls {
            later(&mut call.until);
            call.remembered.iter_mut().for_each(|claim| later(&mut claim.lease));
            for write in &mut call.writes {
                if let Write::Put(claim) = write {
                    later(&mut claim.lease);
                }
            }
        }
        self.claims.iter_mut().for_each(|claim| later(&mut claim.lease));
        self.promises.iter_mut().for_each(|promise| later(&mut promise.lease));
        self.promises.retain(|promise| promise.lease > 0);
    }

    /// What somebody may have been given and could ask something about: one attempt at most of each message.
    pub(super) fn choices(&self) -> Vec<Vec<Entry>> {
        let mut choices: Vec<Vec<Entry>> = vec![Vec::new()];
        for (message, last) in (0..).zip(&self.given) {
            let with_it = choices.iter().flat_map(|choice| {
                (1..=*last).map(move |attempt| choice.iter().copied().chain([(message, attempt)]).collect())
            });
            let with_it: Vec<Vec<Entry>> = with_it.collect();
            choices.extend(with_it);
        }
        choices.retain(|choice| !choice.is_empty());
        choices
    }

    pub(super) fn claim(&mut self, lease: u8) {
        let entries: Vec<Entry> = self.ready.drain(..).collect();
        for entry in &entries {
            if self.promises.iter().any(|promise| promise.entry.0 == entry.0) {
                self.fault = Some("two live owners of a message");
            }
            self.given[usize::from(entry.0)] = entry.1;
            self.promises.push(Promise { entry: *entry, lease });
        }
        let remaining = u8::try_from(entries.len()).expect("a claim is small");
        let nobody = Call::new(Kind::Reclaim, At::Commit, Vec::new());
        let id = self.fresh_id(&nobody);
        self.claims.push(Claim { id, version: 0, lease, remaining, entries });
    }

    /// What of these is held and unfinished, as far as is committed. Where a message stands in two claims, the database
    /// takes either; the older one is the harder case, since the other was made because somebody had it.
    fn read(&self, asked: &[Entry], with_expired: bool) -> Vec<Given> {
        let claims = self.claims.iter().filter(|claim| with_expired || claim.lease > 0);
        let given = claims.flat_map(|claim| {
            let ours = claim.entries.iter().filter(|entry| asked.contains(entry) && self.is_current(**entry));
            ours.map(|entry| Given { entry: *entry, claim: claim.id, version: claim.version })
        });
        let mut given: Vec<Given> = given.collect();
        given.sort_unstable();
        given.dedup_by_key(|given| given.entry);
        given
    }

    pub(super) fn begin_reclaim(&mut self, claim: u8) {
        let mut call = Call::new(Kind::Reclaim, At::Scan, Vec::new());
        call.claims.push(claim);
        call.found.push(claim);
        self.calls.push(call);
    }

    /// The first of two transactions of an end.
    pub(super) fn commit_rows(&mut self, call: &mut Call, max_attempts: u8) {
        self.end_rows(call, max_attempts);
        call.rows.clear();
        call.at = At::LetGo;
    }

    /// Everything becomes visible.
    pub(super) fn commit(&mut self, call: Call, max_attempts: u8) {
        match call.kind {
            Kind::Extend => {
                for kept in &call.mine {
                    self.promises.retain(|promise| promise.entry != kept.entry);
                    if call.until > 0 {
                        self.promises.push(Promise { entry: kept.entry, lease: call.until });
                    }
                }
            }
            // rows that were committed before are not locked any more
            _ if call.rows.is_empty() => {}
            _ => self.end_rows(&call, max_attempts),
        }
        for write in call.writes {
            self.claims.retain(|claim| claim.id != write.id());
            if let Write::Put(claim) = write {
                self.claims.push(claim);
            }
        }
    }

    fn end_rows(&mut self, call: &Call, max_attempts: u8) {
        for ended in &call.mine {
            let (message, attempt) = ended.entry;
            if call.kind == Kind::Reclaim {
                if self.promises.iter().any(|promise| promise.entry == ended.entry) {
                    self.fault = Some("taken back from a live owner");
                }
            } else {
                if self.given[usize::from(message)] > attempt {
                    self.fault = Some("the fence let a late one through");
                }
                self.promises.retain(|promise| promise.entry != ended.entry);
            }
            let row = &mut self.rows[usize::from(message)];
            row.attempts = attempt;
            if call.kind == Kind::Complete {
                row.status = Status::Done;
                row.completions += 1;
            } else if attempt >= max_attempts {
                row.status = Status::Failed;
            } else {
                self.ready.push((message, attempt + 1));
            }
        }
    }
}

impl CallModel {
    pub(super) fn begin_end(&self, world: &mut CallWorld, kind: Kind, asked: &[Entry]) {
        let given = world.read(asked, kind == Kind::Fail);
        if given.is_empty() {
            return;
        }
        let mut call = Call::new(kind, At::LockRow(0), given);
        if self.defect == super::CallDefect::EndCountsWhatWasAsked {
            call.asked = asked.to_vec();
        }
        world.calls.push(call);
    }

    pub(super) fn begin_extension(&self, world: &mut CallWorld, asked: &[Entry]) {
        let given = world.read(asked, false);
        if given.is_empty() {
            return;
        }
        let mut call = Call::new(Kind::Extend, At::LockRow(0), given);
        call.until = self.lease;
        if self.defect == super::CallDefect::SplitDoesNotReadAgain {
            call.remembered.clone_from(&world.claims);
        }
        world.calls.push(call);
    }

    /// Gets the row of the next message and judges its newest version.
    pub(super) fn lock_row(&self, world: &CallWorld, call: &mut Call, next: usize) {
        let given = call.given[next].clone();
        call.rows.push(given.entry.0);
        let trusts = self.defect == super::CallDefect::EndTrustsItsSnapshot && call.kind != Kind::Extend;
        if trusts || world.is_current(given.entry) {
            call.mine.push(given);
        }
        if next + 1 < call.given.len() {
            call.at = At::LockRow(next + 1);
            return;
        }
        call.given.clear();
        if call.kind != Kind::Extend {
            call.to_count.clone_from(&call.mine);
        }
        call.at = match call.kind {
            _ if call.mine.is_empty() => At::Commit,
            Kind::Extend => {
                call.to_do = call.mine.iter().map(|mine| mine.entry).collect();
                At::LockClaims(1)
            }
            _ if self.end_in_two => At::CommitRows,
            _ if self.reads_claims_again => At::ReadClaims,
            _ => At::LetGo,
        };
    }
}
