//! How long messages of killed workers waited until they ran again.

use std::{collections::HashMap, time::Duration};

use uuid::Uuid;

use crate::{
    history::{Answer, Call, Held, Operation},
    scene::Death,
};

/// A time in which the database itself was away, from and until, in microseconds of the Unix epoch.
pub(super) type Outage = (i64, i64);

/// How long a message of a killed worker waited until it was handed out again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Recovery {
    /// From the kill to the claim.
    pub(super) time: Duration,
    /// For how much of that the database itself was away.
    pub(super) without_database: Duration,
}

impl Recovery {
    /// The time that it took while the database was there.
    pub(super) fn net(&self) -> Duration {
        self.time.saturating_sub(self.without_database)
    }

    /// Whether it took longer than it may, however long the database was away.
    pub(super) fn is_late(&self, limit: Duration) -> bool {
        self.net() > limit
    }
}

/// The recoveries from kills of workers, shortest first. Only first attempts count, since later ones wait on purpose.
pub(super) fn recoveries(calls: &[Call], deaths: &[Death], outages: &[Outage]) -> Vec<Recovery> {
    let mut claims: HashMap<Held, (&str, i64)> = HashMap::new();
    let mut ended: HashMap<Uuid, i16> = HashMap::new();
    for call in calls {
        match (&call.operation, call.answer(), call.returned_us) {
            (Operation::Claim { holder, .. }, Some(Answer::Taken(all)), Some(returned)) => {
                claims.extend(all.iter().map(|taken| (taken.held, (holder.as_str(), returned))));
            }
            (Operation::Fail { held, .. }, ..) => {
                ended.insert(held.id, held.attempt);
            }
            (Operation::Release { held, .. }, ..) => ended.extend(held.iter().map(|held| (held.id, held.attempt))),
            _ => {}
        }
    }
    let mut recoveries = Vec::new();
    for (held, (holder, claimed_us)) in claims.iter().filter(|(held, _)| held.attempt == 1) {
        let Some(death) = deaths.iter().find(|death| death.name == *holder && death.at_us >= *claimed_us) else {
            continue;
        };
        let next = Held { attempt: 2, ..*held };
        let Some((_, again_us)) = claims.get(&next).filter(|(next_holder, _)| next_holder != holder) else { continue };
        if ended.get(&held.id) != Some(&1) {
            let away = outages.iter().map(|(from, until)| (*until).min(*again_us) - (*from).max(death.at_us));
            recoveries.push(Recovery {
                time: microseconds(again_us - death.at_us),
                without_database: away.map(microseconds).sum(),
            });
        }
    }
    recoveries.sort_unstable_by_key(|recovery| recovery.time);
    recoveries
}

/// Nothing for what would be less than nothing.
fn microseconds(difference: i64) -> Duration {
    Duration::from_micros(difference.max(0).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Outcome, Taken};

    fn claim(holder: &str, attempt: i16, returned_us: i64) -> Call {
        let held = Held { id: Uuid::from_u128(1), attempt };
        let taken = Taken { held, tenant: "acme".to_owned(), remaining_ms: None };
        Call {
            process: holder.to_owned(),
            number: 1,
            invoked_us: returned_us - 10,
            client_ms: 0,
            operation: Operation::Claim { holder: holder.to_owned(), lease_ms: 1_000 },
            outcome: Outcome::Ok(Answer::Taken(vec![taken])),
            returned_us: Some(returned_us),
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn time_runs_from_the_kill_to_the_next_claim() {
        let calls = [claim("a", 1, 1_000), claim("b", 2, 1_500_000)];
        let deaths = [Death { name: "a".to_owned(), at_us: 500_000 }];
        let recovery = Recovery { time: SECOND, without_database: Duration::ZERO };
        assert_eq!(recoveries(&calls, &deaths, &[]), [recovery]);
        assert!(recoveries(&calls, &[], &[]).is_empty());
        assert!(!recovery.is_late(SECOND) && recovery.is_late(SECOND / 2));
    }

    #[test]
    fn time_without_the_database_is_counted_apart_and_makes_nothing_late() {
        let calls = [claim("a", 1, 1_000), claim("b", 2, 1_500_000)];
        let deaths = [Death { name: "a".to_owned(), at_us: 500_000 }];
        // before the kill, across it, within, across the end, after it
        let outages =
            [(0, 400_000), (450_000, 600_000), (700_000, 800_000), (1_400_000, 1_900_000), (2_000_000, 3_000_000)];
        let [recovery] = recoveries(&calls, &deaths, &outages).try_into().expect("one");
        assert_eq!(recovery, Recovery { time: SECOND, without_database: Duration::from_millis(300) });
        assert!(!recovery.is_late(Duration::from_millis(700)) && recovery.is_late(Duration::from_millis(699)));
    }
}
