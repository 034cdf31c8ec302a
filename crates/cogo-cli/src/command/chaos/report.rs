//! What a chaos run says of itself: an object for programs, a table for people, and which promises were broken.

use std::collections::BTreeMap;

use cogo_bus_check::Harm;
use serde::Serialize;

use super::{
    account::Account,
    faults::{Healed, counted},
    fleet::wall_clock_library,
    verdict::Verdicts,
    watch::{Seen, Wrong},
};
use crate::output::table;

/// Longest time until the fleet is whole again, in seconds.
const RECOVERY_LIMIT_S: f64 = 35.0;
/// Longest time until a slot has an owner again whose crash its parent saw.
const CRASH_RECOVERY_LIMIT_S: f64 = 2.0;
/// How many of a thousand verdicts must be right.
const RIGHT_OF_THOUSAND: f64 = 999.0;
/// Broken promises that are told in full.
const MOST_TOLD: usize = 12;

/// What a run was told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    pub(crate) seed: u64,
    pub(crate) minutes: f64,
}

/// What it came to.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Acknowledged and gone, never ended, or given up.
    pub(crate) lost: usize,
    pub(crate) double_completions: usize,
    pub(crate) two_owner_moments: usize,
    /// Accepted from one who no longer owned it.
    stale_accepted: usize,
    /// Everything that the checker of the bus found, those above included.
    violations: usize,
    recovery_max_s: f64,
    crash_recovery_max_s: f64,
    #[serde(flatten)]
    pub(crate) verdicts: Verdicts,
    /// How many were done.
    faults: usize,
    faults_by_kind: BTreeMap<String, u32>,
    seed: u64,
    minutes: f64,
    /// Whether the clocks that were set are wall clocks of processes, or, without libfaketime, only those of their ids.
    wall_clocks: bool,
    sent: usize,
    done: usize,
    taken_back: usize,
    calls: usize,
    healed: Vec<Healed>,
    wrong_verdicts: Vec<Wrong>,
    #[serde(skip)]
    details: Vec<String>,
}

impl Report {
    pub(crate) fn new(told: Told, healed: Vec<Healed>, seen: Seen, account: &Account) -> Self {
        let Account { report, effects, two_owner_moments, done, failed, taken_back } = account;
        let longest = |time: &dyn Fn(&Healed) -> f64| healed.iter().map(time).fold(0.0, f64::max);
        let recovery_max_s = longest(&|one| one.recovery_s.max(one.take_over_s.unwrap_or(0.0)));
        let crash_recovery_max_s = longest(&|one| one.crash_recovery_s.unwrap_or(0.0));
        let count = |rows: i64| usize::try_from(rows).unwrap_or(usize::MAX);
        let mut details: Vec<String> = report.violations.iter().map(ToString::to_string).collect();
        details.extend(two_owner_moments.iter().cloned());
        Self {
            lost: report.count(Harm::Lost) + failed + count(effects.missing),
            double_completions: report.count(Harm::Duplicated) + count(effects.doubled),
            two_owner_moments: two_owner_moments.len() + count(effects.foreign) + count(seen.two_owners.cast_signed()),
            stale_accepted: report.count(Harm::Stale) + count(effects.unowned),
            violations: report.violations.len(),
            recovery_max_s,
            crash_recovery_max_s,
            verdicts: seen.verdicts,
            faults: healed.len(),
            faults_by_kind: counted(&healed),
            seed: told.seed,
            minutes: told.minutes,
            wall_clocks: wall_clock_library().is_some(),
            sent: report.messages,
            done: *done,
            taken_back: *taken_back,
            calls: report.calls,
            healed,
            wrong_verdicts: seen.wrong,
            details,
        }
    }

    /// The promises that were broken; none is how it should be.
    pub(crate) fn broken(&self) -> Vec<String> {
        let none = |what: &str, count: usize| (count > 0).then(|| format!("{count} {what}"));
        let within = |what: &str, time_s: f64, limit_s: f64| {
            (time_s > limit_s).then(|| format!("{what} took {time_s:.1} s, {limit_s:.0} s are promised"))
        };
        let right = self.verdicts.right_of_thousand();
        let verdicts =
            (right < RIGHT_OF_THOUSAND).then(|| format!("only {:.2} % of the verdicts are right", right / 10.0));
        [
            none("messages lost", self.lost),
            none("completions doubled", self.double_completions),
            none("moments with two owners of a slot", self.two_owner_moments),
            none("writes accepted from one who no longer owned them", self.stale_accepted),
            none("promises of the bus broken", self.violations),
            within("healing", self.recovery_max_s, RECOVERY_LIMIT_S),
            within("replacing a crashed process", self.crash_recovery_max_s, CRASH_RECOVERY_LIMIT_S),
            verdicts,
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// What is wrong in detail, for people.
    pub(crate) fn details(&self) -> impl Iterator<Item = &str> {
        self.details.iter().take(MOST_TOLD).map(String::as_str)
    }

    pub(crate) fn readable(&self) -> String {
        let Verdicts { verdicts, verdicts_right, false_suspect, false_dead, missed_suspect, missed_dead } =
            self.verdicts;
        let row = |what: &str, figure: String, promised: &str| [what.to_owned(), figure, promised.to_owned()];
        let right = format!("{verdicts_right} ({:.2} %)", self.verdicts.right_of_thousand() / 10.0);
        table(
            ["what", ">figure", "promised"],
            [
                row("minutes", format!("{}", self.minutes), ""),
                row("seed", self.seed.to_string(), ""),
                row("faults", self.faults.to_string(), ""),
                row("messages sent", self.sent.to_string(), ""),
                row("messages done", self.done.to_string(), "all"),
                row("attempts taken back", self.taken_back.to_string(), ""),
                row("lost", self.lost.to_string(), "0"),
                row("double completions", self.double_completions.to_string(), "0"),
                row("two-owner moments", self.two_owner_moments.to_string(), "0"),
                row("stale writes accepted", self.stale_accepted.to_string(), "0"),
                row("longest recovery", format!("{:.1} s", self.recovery_max_s), "35 s"),
                row("longest recovery of a crash", format!("{:.1} s", self.crash_recovery_max_s), "2 s"),
                row("health verdicts", verdicts.to_string(), ""),
                row("of them right", right, "99.9 %"),
                row("falsely suspect", false_suspect.to_string(), ""),
                row("falsely dead", false_dead.to_string(), ""),
                row("suspect missed", missed_suspect.to_string(), ""),
                row("dead missed", missed_dead.to_string(), ""),
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::chaos::{
        account::Effects,
        schedule::{Fault, FaultKind},
        verdict::Judgement,
    };

    fn account() -> Account {
        Account {
            report: cogo_bus_check::Report::default(),
            effects: Effects::default(),
            two_owner_moments: Vec::new(),
            done: 10,
            failed: 0,
            taken_back: 1,
        }
    }

    fn healed(recovery_s: f64, crash_recovery_s: f64) -> Healed {
        Healed {
            fault: Fault { kind: FaultKind::Kill, victim: None, at_ms: 5_000 },
            began_ms: 5_000,
            recovery_s,
            crash_recovery_s: Some(crash_recovery_s),
            take_over_s: None,
            last_ailed: String::new(),
        }
    }

    fn seen(right: u64, wrong: u64) -> Seen {
        let mut seen = Seen::default();
        (0..right).for_each(|_| seen.verdicts.add(Judgement::Right));
        (0..wrong).for_each(|_| seen.verdicts.add(Judgement::FalseDead));
        seen
    }

    fn report(healed_in: (f64, f64), seen: Seen, account: &Account) -> Report {
        Report::new(Told { seed: 7, minutes: 5.0 }, vec![healed(healed_in.0, healed_in.1)], seen, account)
    }

    #[test]
    fn a_run_that_keeps_everything_has_nothing_broken() {
        let report = report((34.0, 1.9), seen(999, 1), &account());
        assert!(report.broken().is_empty(), "{:?}", report.broken());
    }

    #[test]
    fn each_promise_can_be_broken() {
        let fine = || seen(1_000, 0);
        let with = |effects| Account { effects, ..account() };
        let moments = vec!["two".to_owned()];
        for (broken, expected) in [
            (report((35.1, 1.0), fine(), &account()), "healing took"),
            (report((3.0, 2.1), fine(), &account()), "replacing a crashed process took"),
            (report((3.0, 1.0), seen(998, 2), &account()), "99.80 %"),
            (report((3.0, 1.0), fine(), &Account { failed: 1, ..account() }), "1 messages lost"),
            (report((3.0, 1.0), fine(), &with(Effects { missing: 2, ..Effects::default() })), "2 messages lost"),
            (report((3.0, 1.0), fine(), &with(Effects { doubled: 1, ..Effects::default() })), "1 completions doubled"),
            (report((3.0, 1.0), fine(), &with(Effects { foreign: 1, ..Effects::default() })), "1 moments with two"),
            (report((3.0, 1.0), fine(), &with(Effects { unowned: 1, ..Effects::default() })), "1 writes accepted"),
            (report((3.0, 1.0), Seen { two_owners: 1, ..fine() }, &account()), "1 moments with two"),
            (report((3.0, 1.0), fine(), &Account { two_owner_moments: moments, ..account() }), "1 moments with two"),
        ] {
            assert_eq!(broken.broken().len(), 1, "{:?}", broken.broken());
            assert!(broken.broken()[0].contains(expected), "{:?} and not {expected}", broken.broken());
        }
    }

    #[test]
    fn programs_find_every_figure_at_the_top() {
        let value = serde_json::to_value(report((3.0, 1.0), seen(10, 0), &account())).expect("an object");
        for key in [
            "lost",
            "double_completions",
            "two_owner_moments",
            "recovery_max_s",
            "crash_recovery_max_s",
            "verdicts",
            "verdicts_right",
            "false_dead",
            "missed_dead",
            "faults",
            "seed",
            "minutes",
        ] {
            assert!(value[key].is_number(), "{key} in {value}");
        }
    }
}
