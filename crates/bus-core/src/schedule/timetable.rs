//! The times that a cron expression means in its zone, and which of them are to be sent. No I/O.

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use chrono_tz::Tz;
use croner::{
    Cron,
    errors::CronError,
    parser::{CronParser, Seconds, Year},
};

use crate::schedule::MissedRuns;

/// An occurrence that is fired no later than this was not missed.
const GRACE: TimeDelta = TimeDelta::seconds(60);

/// Why a schedule can never fire as it stands.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSchedule {
    /// The expression makes no sense.
    #[error("Cron expression {cron:?} cannot be read")]
    Cron {
        /// The expression.
        cron: String,
        /// What is wrong with it.
        #[source]
        source: CronError,
    },
    /// The zone is unknown to this build, or to the database.
    #[error("Time zone {0:?} is not known")]
    Zone(String),
    /// The expression means no time at all, such as the 30th of February.
    #[error("Cron expression {cron:?} has no occurrence after {after}")]
    Never {
        /// The expression.
        cron: String,
        /// Where the search began.
        after: DateTime<Utc>,
    },
}

/// A cron expression in a zone.
///
/// Where clocks go forward, a fixed time that does not exist happens at the end of the gap; where they go back, a fixed
/// time that exists twice happens the first time only. Expressions with `*` or `/` in the time of day follow the clock
/// on the wall: nothing in the gap, both rounds of the hour that is repeated.
pub(crate) struct Timetable {
    cron: Cron,
    zone: Tz,
}

/// What to do about a schedule that is due.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// To be sent, oldest first.
    pub(crate) occurrences: Vec<DateTime<Utc>>,
    /// The next one, later than now.
    pub(crate) next_at: DateTime<Utc>,
    /// Whether missed ones are not sent.
    pub(crate) left_out: bool,
}

impl Timetable {
    pub(crate) fn parse(cron: &str, zone: &str) -> Result<Self, InvalidSchedule> {
        let zone = zone.parse().map_err(|_unknown| InvalidSchedule::Zone(zone.to_owned()))?;
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        match parser.parse(cron) {
            Ok(cron) => Ok(Self { cron, zone }),
            Err(source) => Err(InvalidSchedule::Cron { cron: cron.to_owned(), source }),
        }
    }

    /// The first occurrence after this time.
    pub(crate) fn next_after(&self, after: DateTime<Utc>) -> Result<DateTime<Utc>, InvalidSchedule> {
        let never = || InvalidSchedule::Never { cron: self.cron.as_str().to_owned(), after };
        let found = self.cron.find_next_occurrence(&after.trunc_subsecs(0).with_timezone(&self.zone), false);
        let next = found.map_err(|_exhausted| never())?.with_timezone(&Utc);
        // an answer that does not move on would send the same occurrence for ever
        if next > after { Ok(next) } else { Err(never()) }
    }

    /// Up to `at_most` occurrences from `first` to `until`, both included: the newest ones, oldest first.
    fn newest(&self, first: DateTime<Utc>, until: DateTime<Utc>, at_most: usize) -> Vec<DateTime<Utc>> {
        let mut found = Vec::new();
        let mut before = until.trunc_subsecs(0).with_timezone(&self.zone);
        while found.len() < at_most {
            // backwards, so that a long time without a firer costs no more than what is sent
            let Ok(previous) = self.cron.find_previous_occurrence(&before, found.is_empty()) else { break };
            let occurrence = previous.with_timezone(&Utc);
            if occurrence < first {
                break;
            }
            found.push(occurrence);
            before = previous;
        }
        found.reverse();
        found
    }

    /// What to send now, and when to look again.
    pub(crate) fn plan(
        &self,
        first: DateTime<Utc>,
        now: DateTime<Utc>,
        missed: MissedRuns,
        catch_up_cap: usize,
    ) -> Result<Plan, InvalidSchedule> {
        if first > now {
            return Ok(Plan { occurrences: Vec::new(), next_at: first, left_out: false });
        }
        let in_time = now - GRACE;
        let (from, at_most) = match missed {
            MissedRuns::Skip => (first.max(in_time), usize::MAX),
            MissedRuns::RunOnce => (first, 1),
            MissedRuns::RunAll => (first, catch_up_cap),
        };
        let occurrences = self.newest(from, now, at_most);
        let left_out = first < in_time && occurrences.first().is_none_or(|&oldest| oldest > first);
        Ok(Plan { occurrences, next_at: self.next_after(now)?, left_out })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn following(cron: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let timetable = Timetable::parse(cron, zone).unwrap();
        let mut times = Vec::new();
        let mut now = time(after);
        for _ in 0..count {
            now = timetable.next_after(now).unwrap();
            times.push(now.format("%m-%dT%H:%M").to_string());
        }
        times
    }

    #[test]
    fn occurrences_are_meant_in_their_zone() {
        assert_eq!(following("0 6 * * 1-5", "UTC", "2026-11-20T06:00:00Z", 2), ["11-23T06:00", "11-24T06:00"]);
        assert_eq!(following("0 6 * * *", "Asia/Kolkata", "2026-11-20T06:00:00Z", 1), ["11-21T00:30"]);
        let seconds = Timetable::parse("*/20 * * * * *", "UTC").unwrap();
        assert_eq!(seconds.next_after(time("2026-01-01T00:00:25.7Z")).unwrap(), time("2026-01-01T00:00:40Z"));
    }

    #[test]
    fn daily_time_that_the_clock_leaps_over_happens_right_after_the_gap() {
        // Berlin, 2026-03-29: 02:00 CET becomes 03:00 CEST at 01:00 UTC
        let times = following("30 2 * * *", "Europe/Berlin", "2026-03-27T12:00:00Z", 3);
        assert_eq!(times, ["03-28T01:30", "03-29T01:00", "03-30T00:30"]);
        let times = following("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:29:00Z", 3);
        assert_eq!(times, ["03-29T00:30", "03-29T01:00", "03-29T01:30"]);
    }

    #[test]
    fn daily_time_that_the_clock_repeats_happens_once_and_an_interval_both_times() {
        // Berlin, 2026-10-25: 03:00 CEST becomes 02:00 CET at 01:00 UTC
        let times = following("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2);
        assert_eq!(times, ["10-25T00:30", "10-26T01:30"]);
        let times = following("*/30 * * * *", "Europe/Berlin", "2026-10-24T23:59:00Z", 5);
        assert_eq!(times, ["10-25T00:00", "10-25T00:30", "10-25T01:00", "10-25T01:30", "10-25T02:00"]);
    }

    #[test]
    fn looking_back_finds_what_looking_forward_found() {
        let zones = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca"];
        let expressions =
            ["30 2 * * *", "0 * * * *", "*/15 1-3 * * *", "15 0,1,2,3 * * *", "0 30 2 L * *", "0 2 * * 0"];
        for zone in zones {
            for cron in expressions {
                let timetable = Timetable::parse(cron, zone).unwrap();
                let (first_day, last_day) = (time("2026-02-01T00:00:00Z"), time("2026-12-01T00:00:00Z"));
                let mut forward = vec![timetable.next_after(first_day).unwrap()];
                while let Some(&last) = forward.last().filter(|last| **last <= last_day) {
                    forward.push(timetable.next_after(last).unwrap());
                }
                forward.pop();
                assert_eq!(timetable.newest(forward[0], last_day, usize::MAX), forward, "{cron} in {zone}");
            }
        }
    }

    #[test]
    fn policy_decides_what_is_made_up_for() {
        let timetable = Timetable::parse("0 * * * *", "UTC").unwrap();
        let (first, now) = (time("2026-01-01T01:00:00Z"), time("2026-01-01T05:00:03Z"));
        let hours = |missed, cap, now| {
            let plan = timetable.plan(first, now, missed, cap).unwrap();
            let hours: Vec<_> = plan.occurrences.iter().map(|at| at.format("%H").to_string()).collect();
            (hours.join(" "), plan.left_out)
        };
        for (missed, cap, expected) in [
            (MissedRuns::Skip, 100, ("05", true)),
            (MissedRuns::RunOnce, 100, ("05", true)),
            (MissedRuns::RunAll, 100, ("01 02 03 04 05", false)),
            (MissedRuns::RunAll, 2, ("04 05", true)),
        ] {
            assert_eq!(hours(missed, cap, now), (expected.0.to_owned(), expected.1), "{missed:?} {cap}");
        }
        let late = time("2026-01-01T05:02:00Z");
        assert_eq!(hours(MissedRuns::Skip, 100, late), (String::new(), true));
        assert_eq!(hours(MissedRuns::RunOnce, 100, late), ("05".to_owned(), true));
        let plan = timetable.plan(first, first, MissedRuns::Skip, 1).unwrap();
        assert_eq!((plan.occurrences, plan.left_out), (vec![first], false), "in time");
        assert_eq!(plan.next_at, time("2026-01-01T02:00:00Z"));
        let plan = timetable.plan(now + GRACE, now, MissedRuns::RunAll, 1).unwrap();
        assert_eq!((plan.occurrences, plan.next_at), (Vec::new(), now + GRACE), "not due");
    }

    #[test]
    fn long_outage_of_a_schedule_of_seconds_costs_only_what_is_sent() {
        let timetable = Timetable::parse("* * * * * *", "UTC").unwrap();
        let plan =
            timetable.plan(time("1990-01-01T00:00:00Z"), time("2026-01-01T00:00:00Z"), MissedRuns::RunAll, 3).unwrap();
        assert_eq!(plan.occurrences.len(), 3);
        assert_eq!(plan.occurrences[0], time("2025-12-31T23:59:58Z"));
    }

    #[test]
    fn what_means_no_time_is_refused() {
        for (cron, zone) in [("0 25 * * *", "UTC"), ("rubbish", "UTC"), ("", "UTC"), ("0 0 * * * * 2030", "UTC")] {
            assert!(matches!(Timetable::parse(cron, zone), Err(InvalidSchedule::Cron { .. })), "{cron}");
        }
        assert!(matches!(Timetable::parse("0 0 * * *", "Mars/Olympus"), Err(InvalidSchedule::Zone(_))));
        let february = Timetable::parse("0 0 30 2 *", "UTC").unwrap();
        assert!(matches!(february.next_after(time("2026-01-01T00:00:00Z")), Err(InvalidSchedule::Never { .. })));
    }
}
