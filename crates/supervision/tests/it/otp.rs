//! The core and OTP's own supervisor do the same, step by step.

use std::{collections::HashMap, fs, process::Command};

use crate::schedule::Schedule;

/// Schedules whose restarts all count.
const PLAIN: u64 = 1500;
/// Schedules that wait until restarts are forgotten.
const WITH_SLEEPS: u64 = 100;
/// Their numbers are above this one.
const BELOW_SLEEPERS: u64 = 100_000;

const HINT: &str = "OTP's supervisor is the judge here: apt-get install erlang-base, or set COGO_SKIP_OTP=1";

/// What OTP says of each schedule; why not if it shall be skipped.
fn ask_otp(schedules: &[Schedule]) -> Result<HashMap<u64, Vec<String>>, std::io::Error> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("schedules.term");
    let terms: Vec<String> = schedules.iter().map(Schedule::as_term).collect();
    fs::write(&file, terms.join("\n")).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/otp/oracle.escript");
    let output = match Command::new("escript").arg(script).arg(&file).output() {
        Ok(output) => output,
        Err(error) if std::env::vars_os().any(|(name, value)| name == "COGO_SKIP_OTP" && value == "1") => {
            return Err(error);
        }
        Err(error) => panic!("{error}: {HINT}"),
    };
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let mut lines: HashMap<u64, Vec<String>> = HashMap::new();
    for line in text.lines() {
        let id = line.split(' ').next().and_then(|id| id.parse().ok());
        lines.entry(id.unwrap_or_else(|| panic!("{line}"))).or_default().push(line.to_owned());
    }
    Ok(lines)
}

#[test]
fn core_and_otp_agree_on_random_schedules() {
    let plain = (1..=PLAIN).map(|id| Schedule::random(id, false));
    let schedules: Vec<Schedule> =
        plain.chain((1..=WITH_SLEEPS).map(|id| Schedule::random(BELOW_SLEEPERS + id, true))).collect();
    let expected = match ask_otp(&schedules) {
        Ok(expected) => expected,
        Err(error) => {
            println!("SKIPPED: NOTHING WAS COMPARED WITH OTP: {error}");
            return;
        }
    };
    let mut seen = Seen::default();
    for schedule in &schedules {
        let lines = schedule.run();
        let mut of_otp = expected.get(&schedule.id).unwrap().clone();
        // time is the machine's to OTP: where that stood still amid such a schedule, it forgot what the core counts
        for _ in 0..3 {
            if lines != of_otp && schedule.id > BELOW_SLEEPERS {
                of_otp = ask_otp(std::slice::from_ref(schedule)).unwrap().remove(&schedule.id).unwrap();
            }
        }
        for (ours, theirs) in lines.iter().zip(&of_otp) {
            assert_eq!(ours, theirs, "ours left, OTP's right\n{schedule:#?}\nOTP: {of_otp:#?}");
        }
        assert_eq!(lines.len(), of_otp.len());
        seen.note(&lines);
    }
    println!("{} schedules, {seen:?}", schedules.len());
    seen.assert_worth_it();
}

/// What the schedules led to, so that agreement on nothing does not count.
#[derive(Debug, Default)]
struct Seen {
    starts: usize,
    failed_starts: usize,
    stops: usize,
    roots_that_gave_up: usize,
    answers: HashMap<String, usize>,
}

impl Seen {
    fn note(&mut self, lines: &[String]) {
        let mut was_over = false;
        for line in lines {
            let (answers, rest) = line.split_once('[').unwrap().1.split_once(']').unwrap();
            for answer in answers.split_whitespace() {
                *self.answers.entry(answer.to_owned()).or_default() += 1;
            }
            self.starts += rest.matches('+').count();
            self.failed_starts += rest.matches('!').count();
            self.stops += rest.matches('-').count();
            let is_over = line.ends_with("over") && !line.contains(" last ");
            self.roots_that_gave_up += usize::from(is_over && !was_over);
            was_over = is_over;
        }
    }

    fn assert_worth_it(&self) {
        assert!(self.starts > 5000 && self.failed_starts > 100 && self.stops > 3000, "{self:?}");
        assert!(self.roots_that_gave_up > 100, "{self:?}");
        let answers =
            ["ok", "failed", "gone", "running", "restarting", "not_found", "already_started", "already_present"];
        for answer in answers.into_iter().chain(["bad_spec"]) {
            assert!(self.answers.get(answer).is_some_and(|count| *count >= 5), "{answer}: {self:?}");
        }
    }
}
