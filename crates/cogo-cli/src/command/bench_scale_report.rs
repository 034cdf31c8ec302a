//! What `cogo bench scale` prints, and whether that is what was asked for.

use serde::Serialize;

use crate::{
    command::{
        bench_bus_database::ServerSettings,
        bench_scale_fleet::Size,
        bench_scale_load::Wave,
        bench_scale_watch::{Account, Step, Watch, seconds},
    },
    failure::Failure,
    output::table,
};

/// From a load step to the new worker working, in seconds: less than this.
const ASKED_STEP_S: f64 = 10.0;
/// Changes of the count in a period of the square wave: at most this.
const ASKED_CHANGES: usize = 2;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Of the steps that found a single instance the slowest one; none if no new instance worked.
    step_to_working_s: Option<f64>,
    asked_step_s: f64,
    /// Of the periods the one with the most changes.
    changes_per_period_max: usize,
    asked_changes: usize,
    ok: bool,
    changes_per_period: Vec<usize>,
    steps: Vec<Step>,
    messages: Account,
    pool: Size,
    load: Wave,
    server: ServerSettings,
    /// Every decision of the run, in the order of writing.
    decisions: Vec<Row>,
}

/// One decision.
#[derive(Debug, Serialize)]
struct Row {
    /// Seconds since the first step.
    at_s: f64,
    from: i32,
    to: i32,
    wanted: i32,
    /// Mean time of work on one message that it went by.
    service_ms: Option<f64>,
    sentence: String,
}

impl Report {
    pub(crate) fn new(pool: Size, load: Wave, server: ServerSettings, watch: Watch) -> Self {
        let changes: Vec<usize> = watch
            .edges
            .windows(2)
            .map(|period| {
                let within = |at| period[0] <= at && at < period[1];
                let changes = watch.decisions.iter().filter(|decision| decision.from_count != decision.to_count);
                changes.filter(|decision| within(decision.at)).count()
            })
            .collect();
        // a step that found more than one instance may need no other
        let measured = watch.steps.iter().filter(|step| step.instances_before <= 1);
        let slowest = measured.map(|step| step.working_s).reduce(|slowest, next| Some(slowest?.max(next?)));
        let first = watch.edges.first().copied();
        let row = |decision: &cogo_registry_core::ScalingDecision| Row {
            at_s: first.map_or(0.0, |first| seconds(first, decision.at)),
            from: decision.from_count,
            to: decision.to_count,
            wanted: decision.wanted,
            service_ms: decision.inputs["service_ms"].as_f64().map(f64::round),
            sentence: decision.sentence.clone(),
        };
        let mut report = Self {
            step_to_working_s: slowest.flatten(),
            asked_step_s: ASKED_STEP_S,
            changes_per_period_max: changes.iter().copied().max().unwrap_or(0),
            asked_changes: ASKED_CHANGES,
            ok: false,
            changes_per_period: changes,
            messages: watch.account,
            pool,
            load,
            server,
            decisions: watch.decisions.iter().map(row).collect(),
            steps: watch.steps,
        };
        report.ok = report.faults().is_empty();
        report
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        match self.step_to_working_s {
            Some(seconds) if seconds < ASKED_STEP_S => {}
            Some(seconds) => faults.push(format!("the new worker worked after {seconds:.1} s")),
            None => faults.push("a load step brought no new worker to work".to_owned()),
        }
        if self.changes_per_period_max > ASKED_CHANGES {
            faults.push(format!("the count changed {} times in a period", self.changes_per_period_max));
        }
        let Account { sent, done, failed, .. } = self.messages;
        if done < sent {
            faults.push(format!("of {sent} messages {done} were done and {failed} failed"));
        }
        faults
    }

    /// What was asked for and is not so.
    pub(crate) fn verdict(&self) -> Result<(), Failure> {
        let faults = self.faults();
        if faults.is_empty() {
            return Ok(());
        }
        Err(Failure::failed("The pool does not follow its load as asked").cause(faults.join("; ")))
    }
}

/// The tables for people.
pub(crate) fn readable(report: &Report) -> String {
    let time = |seconds: Option<f64>| seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1} s"));
    let steps = report.steps.iter().zip(&report.changes_per_period).enumerate().map(|(number, (step, changes))| {
        [
            (number + 1).to_string(),
            step.instances_before.to_string(),
            time(step.decided_s),
            time(step.registered_s),
            time(step.working_s),
            changes.to_string(),
        ]
    });
    let steps = table(["period", ">before", ">decided", ">registered", ">working", ">changes"], steps);
    let decisions = report.decisions.iter().map(|decision| {
        let change = format!("{} → {}", decision.from, decision.to);
        [format!("{:.1} s", decision.at_s), change, decision.sentence.clone()]
    });
    let decisions = table([">at", "count", "why"], decisions);
    let Account { sent, done, failed, repeated } = report.messages;
    format!(
        "{steps}\n\n{decisions}\n\nstep to working: {} (asked: < {ASKED_STEP_S} s), changes per period: at most {} (asked: \
         <= {ASKED_CHANGES})\nmessages: {sent} sent, {done} done, {failed} failed, {repeated} taken up again",
        time(report.step_to_working_s),
        report.changes_per_period_max,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(before: usize, working_s: Option<f64>) -> Step {
        Step { instances_before: before, decided_s: Some(4.0), registered_s: Some(5.0), working_s }
    }

    fn report(steps: Vec<Step>, changes_per_period: Vec<usize>, messages: Account) -> Report {
        let pool = sqlx::PgPool::connect_lazy("postgres://nobody@localhost/nothing").expect("an address");
        let mut watch = Watch::new(pool);
        (watch.steps, watch.account) = (steps, messages);
        let server = ServerSettings { version: "15".to_owned(), shared_buffers: "1MB".to_owned(), durable: true };
        let load = Wave { periods: 1, half_s: 90, low_per_s: 1, high_per_s: 20, work_ms: 400 };
        let report = Report::new(Size { max: 4, concurrency: 4 }, load, server, watch);
        let most = changes_per_period.iter().copied().max().unwrap_or(0);
        Report { changes_per_period_max: most, changes_per_period, ..report }
    }

    #[tokio::test]
    async fn the_slowest_step_that_had_to_scale_counts() {
        let all = Account { sent: 9, done: 9, failed: 0, repeated: 0 };
        let steps = vec![step(1, Some(6.0)), step(3, None), step(1, Some(7.5))];
        let good = report(steps, vec![2, 0, 2], all);
        assert_eq!((good.step_to_working_s, good.faults()), (Some(7.5), Vec::new()));
        assert!(readable(&good).contains("step to working: 7.5 s"), "{}", readable(&good));

        let never = report(vec![step(1, Some(6.0)), step(1, None)], vec![2], all);
        assert_eq!((never.step_to_working_s, never.faults().len()), (None, 1));
        let slow = report(vec![step(1, Some(10.0))], vec![3], Account { done: 8, ..all });
        assert_eq!(slow.faults().len(), 3, "{:?}", slow.faults());
    }
}
