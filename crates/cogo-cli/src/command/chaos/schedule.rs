//! Which fault strikes whom and when: decided by a seed alone, so that a run can be had again.

use std::{fmt, time::Duration};

use clap::ValueEnum;
use cogo_bus_check::Chance;
use serde::Serialize;

/// Name of the processes that work, in the registry.
pub(crate) const WORKER: &str = "chaos-worker";
/// Name of the processes that heal.
pub(crate) const KEEPER: &str = "chaos-keeper";

/// From the start of the load to the first fault.
const FIRST_MS: u64 = 5_000;
/// What is left behind the last fault to heal in.
const LAST_MS: u64 = 5_000;
/// Time to heal from the end of one fault to the next, at least and at most.
const PAUSE_MS: (u64, u64) = (7_000, 11_000);
/// More for the whole fleet, which finds back to its database by itself.
const POSTGRES_PAUSE_MS: u64 = 8_000;

/// What is done to the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FaultKind {
    /// `kill -9` of a process.
    Kill,
    /// SIGSTOP for 10 s: long enough to be missed, too short to be dead.
    #[value(name = "stop-10")]
    #[serde(rename = "stop-10")]
    Stop10,
    /// SIGSTOP for 40 s: declared dead, and comes back.
    #[value(name = "stop-40")]
    #[serde(rename = "stop-40")]
    Stop40,
    /// SIGSTOP for 20 s, while another process takes the slot; then both run.
    TakeOver,
    /// `kill -9` of Postgres.
    PostgresKill,
    /// An immediate stop of Postgres, which loses every connection.
    PostgresStop,
    /// Notifications on their way to some of the workers are lost for 20 s.
    HintsLost,
    /// The connections that listen for notifications are ended by the server.
    ListenersCut,
    /// The clock of a worker is an hour ahead for 15 s.
    ClockAhead,
    /// The clock of a worker is an hour behind for 15 s.
    ClockBehind,
}

impl FaultKind {
    /// How long it lasts by itself.
    pub(crate) const fn lasts(self) -> Duration {
        Duration::from_secs(match self {
            Self::Kill | Self::PostgresKill | Self::PostgresStop | Self::ListenersCut => 0,
            Self::Stop10 => 10,
            Self::Stop40 => 40,
            Self::TakeOver | Self::HintsLost => 20,
            Self::ClockAhead | Self::ClockBehind => 15,
        })
    }

    const fn is_of_postgres(self) -> bool {
        matches!(self, Self::PostgresKill | Self::PostgresStop)
    }

    /// Its name on the command line and in reports.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// One process of the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Seat {
    pub(crate) process: &'static str,
    pub(crate) slot: u32,
}

impl fmt::Display for Seat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.process, self.slot)
    }
}

impl Serialize for Seat {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One fault of a schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    /// The process that it happens to, if it happens to one.
    pub(crate) victim: Option<Seat>,
    /// Since the load began; it comes later if the fleet has not healed by then.
    pub(crate) at_ms: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:6.1} s  {}", Duration::from_millis(self.at_ms).as_secs_f64(), self.kind.name())?;
        match self.victim {
            Some(victim) => write!(formatter, " {victim}"),
            None => Ok(()),
        }
    }
}

/// How many of each there are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crew {
    pub(crate) workers: u32,
    pub(crate) keepers: u32,
}

impl Crew {
    /// Every process, keepers first, as they are started.
    pub(crate) fn seats(self) -> impl Iterator<Item = Seat> {
        let keepers = (0..self.keepers).map(|slot| Seat { process: KEEPER, slot });
        keepers.chain((0..self.workers).map(|slot| Seat { process: WORKER, slot }))
    }
}

/// The faults of a run: each kind once in an order that the seed decides, then each again in another, as long as they fit.
pub(crate) fn schedule(seed: u64, length: Duration, kinds: &[FaultKind], crew: Crew) -> Vec<Fault> {
    let length_ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    let mut chance = Chance::new(seed);
    let mut faults = Vec::new();
    let mut at_ms = FIRST_MS;
    loop {
        let before = faults.len();
        for kind in shuffled(kinds, &mut chance) {
            let lasts_ms = u64::try_from(kind.lasts().as_millis()).unwrap_or(u64::MAX);
            let victim = victim(kind, crew, &mut chance);
            let pause = PAUSE_MS.0 + chance.below(PAUSE_MS.1 - PAUSE_MS.0);
            if at_ms + lasts_ms + LAST_MS > length_ms {
                // a shorter one may still fit
                continue;
            }
            faults.push(Fault { kind, victim, at_ms });
            at_ms += lasts_ms + pause + if kind.is_of_postgres() { POSTGRES_PAUSE_MS } else { 0 };
        }
        if faults.len() == before {
            return faults;
        }
    }
}

/// Fisher and Yates.
fn shuffled(kinds: &[FaultKind], chance: &mut Chance) -> Vec<FaultKind> {
    let mut order = kinds.to_vec();
    for place in (1..order.len()).rev() {
        let other = usize::try_from(chance.below(place as u64 + 1)).unwrap_or(place);
        order.swap(place, other);
    }
    order
}

fn victim(kind: FaultKind, crew: Crew, chance: &mut Chance) -> Option<Seat> {
    // drawn for every kind, so that one more kind that needs none does not move all the others
    let (share, number) = (chance.percent(20), chance.number());
    let seat = |process, of: u32| {
        let slot = u32::try_from(number.checked_rem(u64::from(of)).unwrap_or(0)).unwrap_or(0);
        Seat { process, slot }
    };
    match kind {
        FaultKind::Kill | FaultKind::Stop40 if share && crew.keepers > 1 => Some(seat(KEEPER, crew.keepers)),
        FaultKind::Kill
        | FaultKind::Stop10
        | FaultKind::Stop40
        | FaultKind::TakeOver
        | FaultKind::ClockAhead
        | FaultKind::ClockBehind => Some(seat(WORKER, crew.workers)),
        FaultKind::PostgresKill | FaultKind::PostgresStop | FaultKind::HintsLost | FaultKind::ListenersCut => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREW: Crew = Crew { workers: 8, keepers: 2 };

    fn all(seed: u64, minutes: u64) -> Vec<Fault> {
        schedule(seed, Duration::from_secs(60 * minutes), FaultKind::value_variants(), CREW)
    }

    #[test]
    fn one_seed_is_one_schedule() {
        assert_eq!(all(7, 5), all(7, 5));
        assert_ne!(all(7, 5), all(8, 5));
    }

    #[test]
    fn five_minutes_have_every_kind_whatever_the_seed() {
        for seed in 0..200 {
            let faults = all(seed, 5);
            for kind in FaultKind::value_variants() {
                assert!(faults.iter().any(|fault| fault.kind == *kind), "seed {seed} lacks {}", kind.name());
            }
        }
    }

    #[test]
    fn faults_stand_apart_and_within_the_time() {
        for seed in 0..200 {
            let faults = all(seed, 3);
            for pair in faults.windows(2) {
                let end = Duration::from_millis(pair[0].at_ms) + pair[0].kind.lasts();
                assert!(Duration::from_millis(pair[1].at_ms) >= end + Duration::from_millis(PAUSE_MS.0), "{pair:?}");
            }
            let last = faults.last().expect("there are faults");
            let end = Duration::from_millis(last.at_ms) + last.kind.lasts() + Duration::from_millis(LAST_MS);
            assert!(end <= Duration::from_secs(180), "{last:?}");
        }
    }

    #[test]
    fn victims_are_processes_that_there_are() {
        for fault in (0..100).flat_map(|seed| all(seed, 10)) {
            let Some(victim) = fault.victim else { continue };
            assert!(CREW.seats().any(|seat| seat == victim), "{fault:?}");
        }
    }

    #[test]
    fn a_time_in_which_nothing_fits_has_no_faults() {
        assert!(schedule(1, Duration::from_secs(6), FaultKind::value_variants(), CREW).is_empty());
        assert!(schedule(1, Duration::from_secs(60), &[], CREW).is_empty());
    }
}
