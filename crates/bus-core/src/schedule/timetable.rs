//! The times that a cron expression means in its zone, and which of them are to be sent. No I/O.

use chrono::{DateTime, MappedLocalTime, NaiveDateTime, SubsecRound, TimeDelta, TimeZone, Timelike, Utc};
use chrono_tz::Tz;
use croner::{
    Cron,
    errors::CronError,
    parser::{CronParser, Seconds, Year},
};

use crate::schedule::MissedRuns;

/// An occurrence that is fired no later than this was not missed.
const GRACE: TimeDelta = TimeDelta::seconds(60);
/// Occurrences that one plan sends at most: those of a long catch-up are recorded piece by piece, so that each piece stands
/// and other schedules have their turn in between.
const AT_ONCE: usize = 20;
/// No clock has ever been set forward by more than a day.
const LONGEST_GAP_MINUTES: i64 = 24 * 60 + 1;

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
/// Where clocks go forward, fixed times that do not exist happen at the end of the gap, once; where they go back, a fixed
/// time that exists twice happens the first time only. Expressions with `*` or `/` in the time of day follow the clock
/// on the wall: nothing in the gap, both rounds of the hour that is repeated.
pub(crate) struct Timetable {
    cron: Cron,
    zone: Tz,
    /// Whether the time of day is a number, a list or a range.
    is_fixed: bool,
}

/// What to do about a schedule that is due.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// To be sent, oldest first.
    pub(crate) occurrences: Vec<DateTime<Utc>>,
    /// The next one: later than now, or the first that was too many for this plan.
    pub(crate) next_at: DateTime<Utc>,
    /// Whether missed ones are not sent.
    pub(crate) left_out: bool,
}

impl Timetable {
    pub(crate) fn parse(cron: &str, zone: &str) -> Result<Self, InvalidSchedule> {
        let zone = zone.parse().map_err(|_unknown| InvalidSchedule::Zone(zone.to_owned()))?;
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let invalid = |source| InvalidSchedule::Cron { cron: cron.to_owned(), source };
        let fields: Vec<&str> = cron.split_whitespace().collect();
        // the parser passes them over, and a field of nothing else means no time, which takes long to find out
        if fields.iter().flat_map(|field| field.split(',')).any(str::is_empty) {
            return Err(invalid(CronError::InvalidPattern("A list has an empty place.".to_owned())));
        }
        let time_of_day = fields.len().saturating_sub(3);
        let is_fixed = !fields.iter().take(time_of_day).any(|field| field.contains(['*', '/', '?']));
        Ok(Self { cron: parser.parse(cron).map_err(invalid)?, zone, is_fixed })
    }

    /// The first occurrence after this time.
    pub(crate) fn next_after(&self, after: DateTime<Utc>) -> Result<DateTime<Utc>, InvalidSchedule> {
        let never = || InvalidSchedule::Never { cron: self.cron.as_str().to_owned(), after };
        let from = after.trunc_subsecs(0).with_timezone(&self.zone);
        let next = if self.is_fixed {
            // by a clock that is never set: a fixed time is one of each day's
            let mut wall = from.naive_local();
            loop {
                let next = self.cron.find_next_occurrence(&wall.and_utc(), false).map_err(|_exhausted| never())?;
                wall = next.naive_utc();
                match self.at(wall) {
                    Some(instant) if instant > after => break instant,
                    Some(_) => {}
                    None => return Err(never()),
                }
            }
        } else {
            let next = self.cron.find_next_occurrence(&from, false).map_err(|_exhausted| never())?;
            next.with_timezone(&Utc)
        };
        // an answer that does not move on would send the same occurrence for ever
        if next > after { Ok(next) } else { Err(never()) }
    }

    /// When a fixed time is: the first time that the clock shows it, or the end of the gap that it falls into.
    fn at(&self, wall: NaiveDateTime) -> Option<DateTime<Utc>> {
        if let Some(instant) = self.zone.from_local_datetime(&wall).earliest() {
            return Some(instant.with_timezone(&Utc));
        }
        let minute = wall.with_second(0)?;
        let after = |minutes| self.zone.from_local_datetime(&(minute + TimeDelta::minutes(minutes))).earliest();
        (1..=LONGEST_GAP_MINUTES).find_map(after).map(|instant| instant.with_timezone(&Utc))
    }

    /// Up to `at_most` occurrences from `first` to `until`, both included: the newest ones, oldest first.
    fn newest(&self, first: DateTime<Utc>, until: DateTime<Utc>, at_most: usize) -> Vec<DateTime<Utc>> {
        let mut found: Vec<DateTime<Utc>> = Vec::new();
        let mut take = |occurrence| {
            if occurrence < first {
                return false;
            }
            // several may fall into one gap
            if occurrence <= until && found.last() != Some(&occurrence) {
                found.push(occurrence);
            }
            found.len() < at_most
        };
        let until_there = until.trunc_subsecs(0).with_timezone(&self.zone);
        // backwards, so that a long time without a firer costs no more than what is sent
        let mut is_first = true;
        if self.is_fixed {
            let mut wall = until_there.naive_local();
            // all that the clock shows twice has been by the time that it shows the second round
            if let MappedLocalTime::Ambiguous(before, again) = self.zone.from_local_datetime(&wall)
                && until_there >= again
            {
                wall += again - before;
            }
            while let Ok(previous) = self.cron.find_previous_occurrence(&wall.and_utc(), is_first) {
                is_first = false;
                wall = previous.naive_utc();
                if !self.at(wall).is_some_and(&mut take) {
                    break;
                }
            }
        } else {
            let mut before = until_there;
            while let Ok(previous) = self.cron.find_previous_occurrence(&before, is_first) {
                is_first = false;
                if !take(previous.with_timezone(&Utc)) {
                    break;
                }
                before = previous;
            }
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
        let mut occurrences = self.newest(from, now, at_most);
        let left_out = first < in_time && occurrences.first().is_none_or(|&oldest| oldest > first);
        let next_at = match occurrences.get(AT_ONCE) {
            Some(&first_of_the_rest) => first_of_the_rest,
            None => self.next_after(now)?,
        };
        occurrences.truncate(AT_ONCE);
        Ok(Plan { occurrences, next_at, left_out })
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
    fn lists_and_ranges_are_fixed_times_as_well() {
        // Berlin, 2027-03-28: 02:00 CET becomes 03:00 CEST at 01:00 UTC; 2027-10-31: 03:00 CEST becomes 02:00 CET
        let times = following("30 2,14 * * *", "Europe/Berlin", "2027-03-27T12:00:00Z", 4);
        assert_eq!(times, ["03-27T13:30", "03-28T01:00", "03-28T12:30", "03-29T00:30"]);
        let times = following("0,30 2 * * *", "Europe/Berlin", "2027-03-27T12:00:00Z", 3);
        assert_eq!(times, ["03-28T01:00", "03-29T00:00", "03-29T00:30"], "both at the end of the gap, once");
        let times = following("0,30 2 * * *", "Europe/Berlin", "2027-10-30T12:00:00Z", 3);
        assert_eq!(times, ["10-31T00:00", "10-31T00:30", "11-01T01:00"]);
        let times = following("0 1-4 * * *", "Europe/Berlin", "2027-10-30T12:00:00Z", 5);
        assert_eq!(times, ["10-30T23:00", "10-31T00:00", "10-31T02:00", "10-31T03:00", "11-01T00:00"]);
        let times = following("0 12 * * *", "Pacific/Apia", "2011-12-29T00:00:00Z", 2);
        assert_eq!(times, ["12-29T22:00", "12-30T10:00"], "the day that was left out ends where the next begins");
        // what has come once is not found again in the second round
        let berlin = Timetable::parse("0,30 2 * * *", "Europe/Berlin").unwrap();
        let (day, amid) = (time("2027-10-31T00:00:00Z"), time("2027-10-31T01:10:00Z"));
        assert_eq!(berlin.newest(day, amid, 9), [time("2027-10-31T00:00:00Z"), time("2027-10-31T00:30:00Z")]);
        assert_eq!(berlin.newest(day, time("2027-10-31T00:10:00Z"), 9), [time("2027-10-31T00:00:00Z")]);
        assert_eq!(berlin.next_after(amid).unwrap(), time("2027-11-01T01:00:00Z"));
    }

    #[test]
    fn looking_back_finds_what_looking_forward_found() {
        let zones = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca"];
        let expressions = [
            "30 2 * * *",
            "0 * * * *",
            "*/15 1-3 * * *",
            "15 0,1,2,3 * * *",
            "0,10-40 1,2 * * *",
            "0 30 2 L * *",
            "0 2 * * 0",
        ];
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
    fn long_catch_up_goes_piece_by_piece_and_leaves_nothing_out() {
        let timetable = Timetable::parse("* * * * *", "UTC").unwrap();
        let (first, now) = (time("2026-01-01T00:00:00Z"), time("2026-01-01T01:00:30Z"));
        let (mut at, mut sent, mut pieces) = (first, Vec::new(), Vec::new());
        while at <= now {
            let plan = timetable.plan(at, now, MissedRuns::RunAll, 50).unwrap();
            pieces.push((plan.occurrences.len(), plan.left_out));
            sent.extend(plan.occurrences);
            at = plan.next_at;
        }
        assert_eq!(pieces, [(20, true), (20, false), (10, false)]);
        let newest: Vec<_> = (11..=60).map(|minute| first + TimeDelta::minutes(minute)).collect();
        assert_eq!((sent, at), (newest, time("2026-01-01T01:01:00Z")));
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
        for cron in ["0 25 * * *", "rubbish", "", "0 0 * * * * 2030", ",,, * * * *", "1,,2 * * * *", "* * * * 1,"] {
            assert!(matches!(Timetable::parse(cron, "UTC"), Err(InvalidSchedule::Cron { .. })), "{cron}");
        }
        assert!(matches!(Timetable::parse("0 0 * * *", "Mars/Olympus"), Err(InvalidSchedule::Zone(_))));
        let february = Timetable::parse("0 0 30 2 *", "UTC").unwrap();
        assert!(matches!(february.next_after(time("2026-01-01T00:00:00Z")), Err(InvalidSchedule::Never { .. })));
    }
}
