//! Whether what the registry says of a process is right, by the rules of failure detection and their tolerances.

use std::time::Duration;

use serde::Serialize;

/// Without a beat for this long an agent is suspect.
const SUSPECT_AFTER: Duration = Duration::from_secs(15);
/// Without a beat for this long it is dead.
const DEAD_AFTER: Duration = Duration::from_secs(30);
/// From one sweep to the next, the time for which a verdict may be late by design.
const SWEEP: Duration = Duration::from_secs(2);
/// What a verdict may be late beyond that: a sweep takes its time, and so does looking at it.
const TOLERANCE: Duration = Duration::from_secs(1);
/// The last beat of a process that was at work is at most this old: 5 s, a tenth of jitter, and a second on the way.
pub(crate) const BEAT_AT_MOST: Duration = Duration::from_millis(6_500);
/// A process that has run for this long with a database that answers has beaten: a try that the outage caught (4 s), the
/// pause after it (1.5 s), the next one, and the time that a program takes to start.
pub(crate) const SETTLED_AFTER: Duration = Duration::from_secs(8);

/// What the registry says of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// It has a living owner that may be relied on.
    Healthy,
    /// Its owner missed beats.
    Suspect,
    /// It has no owner.
    Dead,
}

/// What is so, seen from outside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Truth {
    /// Whether a process of the slot exists, running or stopped, that must have joined the registry by now.
    pub(crate) has_joined: bool,
    /// Its last beat is at least this old: for so long nobody has run who could beat.
    pub(crate) silent_for: Duration,
    /// Its last beat is at most this old; none if it cannot be known that there was one.
    pub(crate) beaten_within: Option<Duration>,
    /// Whether it has run for so long that everything must be in order.
    pub(crate) is_settled: bool,
    /// How long the database has answered: it judges nobody for a silence in which it was away itself.
    pub(crate) database_up_for: Duration,
}

/// What the registry said.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Said {
    pub(crate) verdict: Verdict,
    /// Whether the owner that it names is the process that runs.
    pub(crate) is_of_the_runner: bool,
}

/// Whether it was right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Judgement {
    Right,
    /// Suspect, though it must have beaten in time.
    FalseSuspect,
    /// Dead, though it has joined, is there, and must have beaten in time.
    FalseDead,
    /// Healthy, though it should be suspect by now.
    MissedSuspect,
    /// Not dead, though it should be by now; or the owner that is named is gone.
    MissedDead,
}

/// Judges one verdict. Between the two ages that the last beat can have, both neighbours are right.
pub(crate) fn judge(said: Said, truth: Truth) -> Judgement {
    let silent_for = truth.silent_for.min(truth.database_up_for);
    let late = SWEEP + TOLERANCE;
    let can_be_without_beat_for = |limit| truth.beaten_within.is_none_or(|within| within >= limit);
    match said.verdict {
        Verdict::Healthy if truth.is_settled && !said.is_of_the_runner => Judgement::MissedDead,
        Verdict::Healthy | Verdict::Suspect if silent_for > DEAD_AFTER + late => Judgement::MissedDead,
        Verdict::Healthy if silent_for > SUSPECT_AFTER + late => Judgement::MissedSuspect,
        Verdict::Suspect if !can_be_without_beat_for(SUSPECT_AFTER) => Judgement::FalseSuspect,
        Verdict::Dead if truth.has_joined && !can_be_without_beat_for(DEAD_AFTER) => Judgement::FalseDead,
        Verdict::Healthy | Verdict::Suspect | Verdict::Dead => Judgement::Right,
    }
}

/// Judgements counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Verdicts {
    pub(crate) verdicts: u64,
    pub(crate) verdicts_right: u64,
    pub(crate) false_suspect: u64,
    pub(crate) false_dead: u64,
    pub(crate) missed_suspect: u64,
    pub(crate) missed_dead: u64,
}

impl Verdicts {
    pub(crate) fn add(&mut self, judgement: Judgement) {
        self.verdicts += 1;
        *match judgement {
            Judgement::Right => &mut self.verdicts_right,
            Judgement::FalseSuspect => &mut self.false_suspect,
            Judgement::FalseDead => &mut self.false_dead,
            Judgement::MissedSuspect => &mut self.missed_suspect,
            Judgement::MissedDead => &mut self.missed_dead,
        } += 1;
    }

    /// How many in a thousand were right; all of none are.
    pub(crate) fn right_of_thousand(&self) -> f64 {
        if self.verdicts == 0 {
            return 1_000.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
        let share = self.verdicts_right as f64 / self.verdicts as f64;
        share * 1_000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3_600);

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// A process that was stopped so long ago.
    fn stopped(ago: f64) -> Truth {
        Truth {
            has_joined: true,
            silent_for: seconds(ago),
            beaten_within: Some(seconds(ago) + BEAT_AT_MOST),
            is_settled: false,
            database_up_for: LONG,
        }
    }

    fn at_work() -> Truth {
        Truth { beaten_within: Some(BEAT_AT_MOST), is_settled: true, ..stopped(0.0) }
    }

    fn says(verdict: Verdict, truth: Truth) -> Judgement {
        judge(Said { verdict, is_of_the_runner: true }, truth)
    }

    #[test]
    fn one_that_works_is_healthy_and_nothing_else() {
        assert_eq!(says(Verdict::Healthy, at_work()), Judgement::Right);
        assert_eq!(says(Verdict::Suspect, at_work()), Judgement::FalseSuspect);
        assert_eq!(says(Verdict::Dead, at_work()), Judgement::FalseDead);
    }

    #[test]
    fn a_stopped_one_may_be_healthy_then_must_be_suspect_then_dead() {
        use Judgement::{FalseDead, FalseSuspect, MissedDead, MissedSuspect, Right};
        for (ago, healthy, suspect, dead) in [
            (1.0, Right, FalseSuspect, FalseDead),
            (8.0, Right, FalseSuspect, FalseDead),
            (9.0, Right, Right, FalseDead),
            (17.9, Right, Right, FalseDead),
            (18.1, MissedSuspect, Right, FalseDead),
            (23.0, MissedSuspect, Right, FalseDead),
            (24.0, MissedSuspect, Right, Right),
            (32.9, MissedSuspect, Right, Right),
            (33.1, MissedDead, MissedDead, Right),
        ] {
            let truth = stopped(ago);
            let judged = [Verdict::Healthy, Verdict::Suspect, Verdict::Dead].map(|verdict| says(verdict, truth));
            assert_eq!(judged, [healthy, suspect, dead], "stopped {ago} s ago");
        }
    }

    #[test]
    fn a_database_that_was_away_has_its_whole_time_again() {
        let truth = Truth { database_up_for: seconds(10.0), ..stopped(60.0) };
        assert_eq!(says(Verdict::Healthy, truth), Judgement::Right);
        let truth = Truth { database_up_for: seconds(34.0), ..stopped(60.0) };
        assert_eq!(says(Verdict::Healthy, truth), Judgement::MissedDead);
    }

    #[test]
    fn one_that_is_gone_or_has_not_joined_may_be_called_dead_at_once() {
        assert_eq!(says(Verdict::Dead, Truth { has_joined: false, ..stopped(0.5) }), Judgement::Right);
    }

    #[test]
    fn an_owner_that_is_not_the_one_who_runs_is_a_dead_one_that_was_missed() {
        let said = Said { verdict: Verdict::Healthy, is_of_the_runner: false };
        assert_eq!(judge(said, at_work()), Judgement::MissedDead);
        // a successor that has just started has not told of itself yet
        assert_eq!(judge(said, Truth { is_settled: false, ..at_work() }), Judgement::Right);
    }

    #[test]
    fn one_whose_beats_nobody_can_know_of_may_be_called_anything() {
        let truth = Truth { beaten_within: None, is_settled: false, ..at_work() };
        for verdict in [Verdict::Healthy, Verdict::Suspect, Verdict::Dead] {
            assert_eq!(says(verdict, truth), Judgement::Right);
        }
    }

    #[test]
    fn wrong_verdicts_are_counted_apart() {
        let mut counted = Verdicts::default();
        for judgement in [Judgement::Right, Judgement::FalseDead, Judgement::MissedDead, Judgement::FalseSuspect] {
            counted.add(judgement);
        }
        let expected = Verdicts {
            verdicts: 4,
            verdicts_right: 1,
            false_suspect: 1,
            false_dead: 1,
            missed_suspect: 0,
            missed_dead: 1,
        };
        assert_eq!(counted, expected);
        assert!((counted.right_of_thousand() - 250.0).abs() < 1e-9);
    }
}
