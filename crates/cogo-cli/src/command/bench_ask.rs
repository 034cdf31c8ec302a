//! `cogo bench ask`: questions at a fixed rate, whatever the answers take.

use std::time::Duration;

use clap::Args;
use cogo_contracts::{ChatRequest, Tenant};
use serde::Serialize;
use tokio::{task::JoinSet, time::Instant};

use crate::{
    command::ask::{answer, question},
    context::Context,
    failure::Failure,
    front_door::{FrontDoor, FrontDoorOptions},
    output::table,
    percentile::Times,
};

/// Asked in turn when no question is given; they fit an index of COGO's own tree.
const QUESTIONS: [&str; 10] = [
    "Who takes a message back when its worker has vanished?",
    "How is the completion of a message fenced?",
    "When is an agent declared dead?",
    "How does a worker extend its lease?",
    "Which backoff does a failed message get?",
    "How are markdown files split into chunks?",
    "What does the dispatcher stamp on a message?",
    "How is BM25 computed?",
    "What becomes of a message whose time to live has passed?",
    "How does the heartbeat notice that it was superseded?",
];
/// More than this many open questions and the machine is measured, not the fleet.
const MOST_OPEN: usize = 2000;

/// Ask questions at a fixed rate and report how long the answers took.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cogo bench ask --rate 5 --seconds 60 --json\n  cogo bench ask --question \"Where does it start?\" --collection project"
)]
pub(crate) struct BenchAsk {
    /// Questions per second; a slow answer never delays the next question.
    #[arg(long, value_name = "N", default_value_t = 5.0, value_parser = rate)]
    rate: f64,
    /// How long to ask.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// A question to ask instead of the built-in ones; may be repeated.
    #[arg(long, value_name = "TEXT")]
    question: Vec<String>,
    /// Only this collection; all of the tenant's if absent.
    #[arg(long, value_name = "NAME")]
    collection: Option<String>,
    /// Who asks.
    #[arg(long, default_value = "default")]
    tenant: Tenant,
    /// Seconds after which an answer counts as failed.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
    #[command(flatten)]
    front_door: FrontDoorOptions,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Questions asked.
    n: usize,
    /// Of those, not answered in time or not well.
    failed: usize,
    /// Of those answered, without a citation.
    uncited: usize,
    p50_ms: Option<f64>,
    p90_ms: Option<f64>,
    p99_ms: Option<f64>,
    max_ms: Option<f64>,
    /// Questions per second that were really sent.
    rate: f64,
    /// How late the latest question was sent, in ms: a loaded machine shows here.
    latest_send_ms: f64,
    seconds: f64,
    first_error: Option<String>,
}

/// One question and its end.
struct Asked {
    late_ms: f64,
    answer: Result<Answered, Failure>,
}

struct Answered {
    took_ms: f64,
    is_cited: bool,
}

impl BenchAsk {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let door = FrontDoor::open(context, &self.front_door)?;
        let patience = Duration::from_secs(self.timeout);
        // a fleet that cannot answer at all is told at once; this also opens the first connection
        let warm = question(&door, &self.tenant, &self.request(0)).await?;
        answer(&door, warm, patience).await?;

        let total = whole(self.rate * f64::from(self.seconds)).max(1);
        let bar = context.output.progress("asking");
        bar.set_length(total);
        let began = Instant::now();
        let mut open = JoinSet::new();
        let mut ended = Vec::new();
        for number in 0..total {
            let due = began + Duration::from_secs_f64(as_f64(number) / self.rate);
            tokio::time::sleep_until(due).await;
            if open.len() >= MOST_OPEN {
                return Err(
                    Failure::failed(format!("{MOST_OPEN} questions are unanswered")).hint("choose a lower --rate")
                );
            }
            let (door, tenant, request) = (door.clone(), self.tenant.clone(), self.request(number));
            open.spawn(async move {
                let sent = Instant::now();
                let answer = async { answer(&door, question(&door, &tenant, &request).await?, patience).await }.await;
                let took_ms = sent.elapsed().as_secs_f64() * 1000.0;
                let answer = answer.map(|reply| Answered { took_ms, is_cited: !reply.citations.is_empty() });
                Asked { late_ms: (sent - due).as_secs_f64() * 1000.0, answer }
            });
            while let Some(asked) = open.try_join_next() {
                ended.push(asked);
                bar.inc(1);
            }
        }
        let sending = began.elapsed();
        while let Some(asked) = open.join_next().await {
            ended.push(asked);
            bar.inc(1);
        }
        bar.finish_and_clear();
        let asked = ended
            .into_iter()
            .map(|asked| asked.map_err(|error| Failure::failed("A question broke off").because(&error)))
            .collect::<Result<Vec<Asked>, Failure>>()?;
        let report = report(&asked, self.rate, sending);
        context.output.either(&report, || readable(&report))?;
        if report.failed > 0 {
            return Err(Failure::failed(format!("{} of {} questions failed", report.failed, report.n))
                .cause(report.first_error.clone().unwrap_or_default()));
        }
        Ok(())
    }

    fn request(&self, number: u64) -> ChatRequest {
        let count = if self.question.is_empty() { QUESTIONS.len() } else { self.question.len() };
        let index = usize::try_from(number).unwrap_or(0) % count;
        let question =
            self.question.get(index).cloned().unwrap_or_else(|| QUESTIONS[index % QUESTIONS.len()].to_owned());
        ChatRequest { question, collection: self.collection.clone() }
    }
}

fn report(asked: &[Asked], rate: f64, sending: Duration) -> Report {
    let answered: Vec<&Answered> = asked.iter().filter_map(|asked| asked.answer.as_ref().ok()).collect();
    let times = Times::new(answered.iter().map(|answered| answered.took_ms).collect());
    let rounded = |value: Option<f64>| value.map(|value| (value * 100.0).round() / 100.0);
    let n = asked.len();
    // the last question is sent one interval before the end of the time asked for
    let seconds = sending.as_secs_f64() + 1.0 / rate;
    Report {
        n,
        failed: n - answered.len(),
        uncited: answered.iter().filter(|answered| !answered.is_cited).count(),
        p50_ms: rounded(times.percentile(50)),
        p90_ms: rounded(times.percentile(90)),
        p99_ms: rounded(times.percentile(99)),
        max_ms: rounded(times.max()),
        rate: (as_f64(u64::try_from(n).unwrap_or(0)) / seconds * 100.0).round() / 100.0,
        latest_send_ms: (asked.iter().map(|asked| asked.late_ms).fold(0.0, f64::max) * 100.0).round() / 100.0,
        seconds: (seconds * 100.0).round() / 100.0,
        first_error: asked.iter().find_map(|asked| asked.answer.as_ref().err()).map(Failure::text),
    }
}

fn readable(report: &Report) -> String {
    let time = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
    table(
        [">n", ">failed", ">uncited", ">p50 ms", ">p90 ms", ">p99 ms", ">max ms", ">rate/s", ">latest send ms"],
        [[
            report.n.to_string(),
            report.failed.to_string(),
            report.uncited.to_string(),
            time(report.p50_ms),
            time(report.p90_ms),
            time(report.p99_ms),
            time(report.max_ms),
            format!("{:.2}", report.rate),
            time(Some(report.latest_send_ms)),
        ]],
    )
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if rate.is_finite() && rate > 0.0 && rate <= 1000.0 {
        Ok(rate)
    } else {
        Err("must be above 0, at most 1000".to_owned())
    }
}

/// Counts of a benchmark are far below where this loses digits.
fn as_f64(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

fn whole(value: f64) -> u64 {
    Duration::from_secs_f64(value.max(0.0)).as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Kind;

    #[test]
    fn failures_count_but_have_no_time() {
        let answer = |took_ms, is_cited| Asked { late_ms: 0.5, answer: Ok(Answered { took_ms, is_cited }) };
        let failed = Asked { late_ms: 3.0, answer: Err(Failure::new(Kind::Timeout, "too late")) };
        let asked = [answer(10.0, true), answer(30.0, false), failed];
        let report = report(&asked, 5.0, Duration::from_millis(400));
        assert_eq!((report.n, report.failed, report.uncited), (3, 1, 1));
        assert_eq!((report.p50_ms, report.p99_ms, report.max_ms), (Some(10.0), Some(30.0), Some(30.0)));
        assert!((report.rate - 5.0).abs() < 0.01 && (report.latest_send_ms - 3.0).abs() < 0.01);
        assert_eq!(report.first_error.as_deref(), Some("error: too late"));
    }

    #[test]
    fn the_summary_has_the_promised_keys() {
        let value = serde_json::to_value(report(&[], 5.0, Duration::ZERO)).expect("a report");
        for key in ["n", "failed", "p50_ms", "p90_ms", "p99_ms", "max_ms", "rate"] {
            assert!(value.get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn rates_are_positive_numbers() {
        for bad in ["0", "-1", "nan", "inf", "x", "1001"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
        assert_eq!(rate("0.5"), Ok(0.5));
    }
}
