//! How long messages of killed workers waited until they were taken back, and until they ran again.

use std::{collections::HashMap, time::Duration};

use anyhow::Context;
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    history::{Answer, Call, Held, Operation},
    scene::Death,
};

/// A time in which the database itself was away, from and until, in microseconds of the Unix epoch.
pub(super) type Outage = (i64, i64);

/// From the moment that is noted until what was taken back with it is committed, in microseconds.
const SETTLING_US: i64 = 1_000_000;

/// When the bus took back what a dead worker held, in microseconds of the Unix epoch.
pub(super) type TakenBack = HashMap<Uuid, i64>;

/// How long a message of a killed worker waited until it was handed out again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Recovery {
    /// From the kill to the claim.
    pub(super) time: Duration,
    /// For how much of that the database itself was away.
    pub(super) without_database: Duration,
    /// From the kill until it stood in the queue again, time without the database aside; absent: nobody noted it.
    pub(super) queued: Option<Duration>,
    /// Whether a worker found nothing to claim while it stood there, so that it was passed over.
    pub(super) passed_over: bool,
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

    /// Whether all that made it late was the queue: it stood there in time, and others went first as long as it did.
    pub(super) fn waited_its_turn(&self, limit: Duration) -> bool {
        self.is_late(limit) && !self.passed_over && self.queued.is_some_and(|queued| queued <= limit)
    }
}

/// When first attempts ended that were not the last, by the clock of the database.
pub(super) async fn taken_back(pool: &PgPool) -> anyhow::Result<TakenBack> {
    let rows: Vec<(Uuid, i64)> = sqlx::query_as(
        "select id, (extract(epoch from ended_at) * 1000000)::bigint from bus.attempts
          where attempt = 1",
    )
    .fetch_all(pool)
    .await
    .context("read when messages were taken back")?;
    Ok(rows.into_iter().collect())
}

/// The recoveries from kills of workers, in no order. Only first attempts count, since later ones wait on purpose.
pub(super) fn recoveries(
    calls: &[Call],
    deaths: &[Death],
    outages: &[Outage],
    taken_back: &TakenBack,
) -> Vec<Recovery> {
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
    let empty: Vec<(i64, i64)> = calls.iter().filter_map(found_nothing).collect();
    for (held, (holder, claimed_us)) in claims.iter().filter(|(held, _)| held.attempt == 1) {
        let Some(death) = deaths.iter().find(|death| death.name == *holder && death.at_us >= *claimed_us) else {
            continue;
        };
        let next = Held { attempt: 2, ..*held };
        let Some((_, again_us)) = claims.get(&next).filter(|(next_holder, again_us)| {
            // one that slept past its lease had lost it before it was killed
            next_holder != holder && *again_us > death.at_us
        }) else {
            continue;
        };
        if ended.get(&held.id) != Some(&1) {
            let back = taken_back.get(&held.id);
            let since = |until_us: i64| microseconds(until_us - death.at_us);
            recoveries.push(Recovery {
                time: since(*again_us),
                without_database: away(outages, death.at_us, *again_us),
                queued: back.map(|back| since(*back).saturating_sub(away(outages, death.at_us, *back))),
                passed_over: back.is_some_and(|back| {
                    empty.iter().any(|(asked, told)| asked > &(back + SETTLING_US) && told < again_us)
                }),
            });
        }
    }
    recoveries
}

/// When a worker asked and was told that there is nothing to claim.
fn found_nothing(call: &Call) -> Option<(i64, i64)> {
    let Operation::Claim { .. } = call.operation else { return None };
    let Some(Answer::Taken(taken)) = call.answer() else { return None };
    taken.is_empty().then_some((call.invoked_us, call.returned_us?))
}

/// How much of a time the database was away.
fn away(outages: &[Outage], from: i64, until: i64) -> Duration {
    outages.iter().map(|(begin, end)| microseconds((*end).min(until) - (*begin).max(from))).sum()
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
        let taken = Taken { held, tenant: "acme".to_owned(), remaining_ms: None, mark: None };
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
        let recovery = Recovery { time: SECOND, without_database: Duration::ZERO, queued: None, passed_over: false };
        assert_eq!(recoveries(&calls, &deaths, &[], &TakenBack::new()), [recovery]);
        assert!(recoveries(&calls, &[], &[], &TakenBack::new()).is_empty());
        let killed_in_its_sleep = [Death { name: "a".to_owned(), at_us: 1_500_000 }];
        assert!(recoveries(&calls, &killed_in_its_sleep, &[], &TakenBack::new()).is_empty());
        assert!(!recovery.is_late(SECOND) && recovery.is_late(SECOND / 2));
    }

    #[test]
    fn only_a_message_that_stood_in_the_queue_in_time_waited_for_its_turn() {
        let calls = [claim("a", 1, 1_000), claim("b", 2, 1_500_000)];
        let deaths = [Death { name: "a".to_owned(), at_us: 500_000 }];
        // away for 0.1 s before it was taken back, which is not counted
        let outages = [(600_000, 700_000)];
        let taken_back = TakenBack::from([(Uuid::from_u128(1), 1_000_000)]);
        let [recovery] = recoveries(&calls, &deaths, &outages, &taken_back).try_into().expect("one");
        assert_eq!(recovery.queued, Some(Duration::from_millis(400)));
        assert!(recovery.waited_its_turn(Duration::from_millis(400)));
        assert!(!recovery.waited_its_turn(Duration::from_millis(399)), "taken back too late");
        assert!(!recovery.waited_its_turn(SECOND), "not late at all");
        let mut with_an_idle_worker = calls.to_vec();
        let mut idle = claim("c", 1, 3_000_000);
        idle.outcome = Outcome::Ok(Answer::Taken(Vec::new()));
        with_an_idle_worker[1].returned_us = Some(4_000_000);
        with_an_idle_worker.push(idle);
        let passed_over = recoveries(&with_an_idle_worker, &deaths, &outages, &taken_back);
        assert!(passed_over.iter().all(|recovery| recovery.passed_over && !recovery.waited_its_turn(SECOND)));
        let unnoted = recoveries(&calls, &deaths, &outages, &TakenBack::new());
        assert!(unnoted.iter().all(|recovery| !recovery.waited_its_turn(Duration::ZERO)));
    }

    #[test]
    fn time_without_the_database_is_counted_apart_and_makes_nothing_late() {
        let calls = [claim("a", 1, 1_000), claim("b", 2, 1_500_000)];
        let deaths = [Death { name: "a".to_owned(), at_us: 500_000 }];
        // before the kill, across it, within, across the end, after it
        let outages =
            [(0, 400_000), (450_000, 600_000), (700_000, 800_000), (1_400_000, 1_900_000), (2_000_000, 3_000_000)];
        let [recovery] = recoveries(&calls, &deaths, &outages, &TakenBack::new()).try_into().expect("one");
        assert_eq!(
            recovery,
            Recovery { time: SECOND, without_database: Duration::from_millis(300), queued: None, passed_over: false }
        );
        assert!(!recovery.is_late(Duration::from_millis(700)) && recovery.is_late(Duration::from_millis(699)));
    }
}
