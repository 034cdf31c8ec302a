//! How long messages of killed workers waited until they ran again.

use std::{collections::HashMap, time::Duration};

use uuid::Uuid;

use crate::{
    history::{Answer, Call, Held, Operation},
    scene::Death,
};

/// A time in which the database itself was away, from and until, in microseconds of the Unix epoch.
pub(super) type Outage = (i64, i64);

/// The times from a kill to the moment that a message of the dead was handed out again, shortest first. Only first attempts
/// count, since later ones wait on purpose, and only those during which the database did not go away as well.
pub(super) fn times(calls: &[Call], deaths: &[Death], outages: &[Outage]) -> Vec<Duration> {
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
    let mut times = Vec::new();
    for (held, (holder, claimed_us)) in claims.iter().filter(|(held, _)| held.attempt == 1) {
        let Some(death) = deaths.iter().find(|death| death.name == *holder && death.at_us >= *claimed_us) else {
            continue;
        };
        let next = Held { attempt: 2, ..*held };
        let Some((_, again_us)) = claims.get(&next).filter(|(next_holder, _)| next_holder != holder) else { continue };
        let was_away = outages.iter().any(|(from, until)| *from < *again_us && *until > death.at_us);
        if !was_away && ended.get(&held.id) != Some(&1) {
            times.push(Duration::from_micros((again_us - death.at_us).max(0).unsigned_abs()));
        }
    }
    times.sort_unstable();
    times
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

    #[test]
    fn time_runs_from_the_kill_to_the_next_claim_unless_the_database_was_away() {
        let calls = [claim("a", 1, 1_000), claim("b", 2, 1_500_000)];
        let deaths = [Death { name: "a".to_owned(), at_us: 500_000 }];
        assert_eq!(times(&calls, &deaths, &[]), [Duration::from_secs(1)]);
        assert!(times(&calls, &deaths, &[(600_000, 700_000)]).is_empty());
        assert!(times(&calls, &[], &[]).is_empty());
    }
}
