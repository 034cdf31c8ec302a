//! `cogo bench slowdown`: what a long past, a long future, a crowd or a long transaction costs the bus.

use std::time::{Duration, Instant};

use clap::Args;

use crate::{
    command::{
        bench_bus::{ClientThreads, on_threads},
        bench_bus_database::BenchServer,
        bench_bus_load::Plan,
        bench_bus_report::rounded,
        bench_slowdown_circumstance::{Circumstance, Sizes, Standing, settle},
        bench_slowdown_disk::ensure_room,
        bench_slowdown_held,
        bench_slowdown_measure::{Figures, Measured, Pace, Place, pairs},
        bench_slowdown_report::{Examined, Report, readable},
        bench_slowdown_tenants::{Crowd, measure_alone, measure_crowd, messages_of_others},
    },
    context::Context,
    failure::Failure,
    output::Output,
};

/// As `cogo bench bus` measures unless it is told otherwise.
const CONSUMERS: u16 = 2;
const PRODUCERS: u16 = 1;
const BATCH: u16 = 1000;
const PAYLOAD_BYTES: u32 = 300;

/// Measure whether the bus slows down: with delayed and finished messages, crowds, many routes, a long transaction.
///
/// For each circumstance two databases of its own, one empty and one in the circumstance, are measured in turn on the server
/// of DATABASE_URL or of the fleet, or on a Postgres of its own if there is neither, and removed afterwards. Finished messages
/// are inserted as such (with triggers off, as a superuser may), all else is sent as anybody would send it. Times depend on who
/// else is busy; the pages that a statement reads do not, and a statement whose pages grow with the circumstance is the
/// one to look at.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cogo bench slowdown --json\n  cogo bench slowdown --only delayed,finished --finished 1000000\n  cogo bench slowdown --only held --held 60"
)]
pub(crate) struct BenchSlowdown {
    /// Only these circumstances, separated by commas; without it all of them.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_enum)]
    only: Vec<Circumstance>,
    /// Messages of each batch phase.
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(10..=10_000_000))]
    messages: u32,
    /// Messages of each measurement that are sent, claimed and completed one by one.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    steps: u32,
    /// How often each is measured; figures are medians.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    runs: u16,
    /// Delayed messages on the route that is measured.
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    delayed: u32,
    /// Finished messages of the route that is measured.
    #[arg(long, value_name = "N", default_value_t = 10_000_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000_000))]
    finished: u32,
    /// Other routes with messages.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    routes: u32,
    /// How long the transaction is held open.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    held: u32,
}

impl BenchSlowdown {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let (pace, sizes) = (self.pace(), self.sizes());
        let chosen: Vec<Circumstance> =
            Circumstance::ALL.into_iter().filter(|one| self.only.is_empty() || self.only.contains(one)).collect();
        let client = ClientThreads::start()?;
        let server = BenchServer::find_or_start(context).await?;
        let settings = server.settings().await?;
        if !settings.durable {
            context.output.note("note: this server does not wait for its disk; the figures say little");
        }
        let rows = chosen.iter().map(|one| sizes.rows(*one)).max().unwrap_or(0);
        if let Some(unknown) = ensure_room(&mut server.connect().await?, rows, pace.most_measured()).await? {
            context.output.note(&format!("note: {unknown}"));
        }
        let mut examined = Vec::new();
        for circumstance in chosen {
            context.output.note(&format!("making ready: {}", circumstance.title(size_of(circumstance, pace, sizes))));
            let empty = server.create_database_for("_empty").await?;
            let under = server.create_database_for("_under").await?;
            let (empty_url, under_url, output) = (empty.url().to_owned(), under.url().to_owned(), context.output);
            let work = async move {
                let examination = examine(circumstance, [&empty_url, &under_url], pace, sizes, output);
                Box::pin(examination).await
            };
            let one = on_threads(&client.handle, work).await;
            empty.remove().await?;
            under.remove().await?;
            let one = one?;
            context.output.note(&one.summary());
            examined.push(one);
        }
        server.close().await;
        let report = Report::new(pace, settings, examined);
        context.output.either(&report, || readable(&report))?;
        report.verdict()
    }

    fn pace(&self) -> Pace {
        let plan = Plan {
            messages: self.messages,
            consumers: CONSUMERS,
            producers: PRODUCERS,
            batch: BATCH,
            payload_bytes: PAYLOAD_BYTES,
        };
        Pace { plan, steps: self.steps, runs: self.runs }
    }

    fn sizes(&self) -> Sizes {
        Sizes {
            delayed: self.delayed,
            finished: self.finished,
            routes: self.routes,
            held: Duration::from_secs(u64::from(self.held)),
        }
    }
}

impl Pace {
    /// Messages that the measurements of a circumstance leave behind in both databases, at most.
    fn most_measured(self) -> u64 {
        let measurements = u64::from(bench_slowdown_held::MEASUREMENTS.max(u32::from(self.runs))) + 3;
        2 * measurements * (u64::from(self.plan.messages) + u64::from(self.steps))
    }
}

/// Messages, routes or seconds, as its title says.
fn size_of(circumstance: Circumstance, pace: Pace, sizes: Sizes) -> u64 {
    match circumstance {
        Circumstance::Delayed => u64::from(sizes.delayed),
        Circumstance::Finished => u64::from(sizes.finished),
        Circumstance::Routes => u64::from(sizes.routes),
        Circumstance::Held => sizes.held.as_secs(),
        Circumstance::Tenant => u64::from(pace.plan.messages.saturating_sub(messages_of_others(pace)).max(1)),
    }
}

/// Makes the circumstance in the second database and measures both in turn.
async fn examine(
    circumstance: Circumstance,
    [empty_url, under_url]: [&str; 2],
    pace: Pace,
    sizes: Sizes,
    output: Output,
) -> Result<Examined, Failure> {
    let (empty, under) = (Place::open(empty_url, pace.plan)?, Place::open(under_url, pace.plan)?);
    let size = size_of(circumstance, pace, sizes);
    let both = [&empty, &under];
    let examined = match circumstance {
        Circumstance::Delayed => stand(circumstance, Standing::Delayed(sizes.delayed), both, pace, output).await,
        Circumstance::Finished => stand(circumstance, Standing::Finished(sizes.finished), both, pace, output).await,
        Circumstance::Routes => stand(circumstance, Standing::Routes(sizes.routes), both, pace, output).await,
        Circumstance::Tenant => crowd(size, both, pace).await,
        Circumstance::Held => {
            warm_up(both, pace).await?;
            let course = bench_slowdown_held::examine(&empty, &under, under_url, pace, sizes.held, output).await?;
            let pairs: Vec<(&Figures, &Figures)> =
                course.last_held(pace.runs).map(|moment| (&moment.empty, &moment.under)).collect();
            let of = Examined::of(circumstance, size, &pairs);
            Ok(Examined { counted: course.counted, lost: course.lost, over_time: course.moments, ..of })
        }
    };
    empty.close().await;
    under.close().await;
    examined
}

/// What stands in the database all along: it is counted before and after.
async fn stand(
    circumstance: Circumstance,
    standing: Standing,
    [empty, under]: [&Place; 2],
    pace: Pace,
    output: Output,
) -> Result<Examined, Failure> {
    let began = Instant::now();
    standing.make(&under.pool, output).await?;
    let prepared_s = rounded(began.elapsed().as_secs_f64());
    // both, or the one would be measured with figures about its tables and the other without
    settle(&empty.pool).await?;
    let counted = standing.count(&under.pool).await?;
    warm_up([empty, under], pace).await?;
    let pairs = pairs(empty, under, pace).await?;
    standing.count(&under.pool).await?;
    let lost = pairs.iter().flatten().map(|measured| measured.lost).sum();
    Ok(Examined { counted, prepared_s, lost, ..of_pairs(circumstance, u64::from(standing.size()), &pairs) })
}

/// The line of the big tenant is made anew each time.
async fn crowd(size: u64, [empty, under]: [&Place; 2], pace: Pace) -> Result<Examined, Failure> {
    warm_up([empty, under], pace).await?;
    let (mut pairs, mut crowds) = (Vec::new(), Vec::new());
    for run in 0..pace.runs {
        let (alone, (in_crowd, crowd)) = if run % 2 == 0 {
            let alone = measure_alone(empty, pace).await?;
            (alone, measure_crowd(under, pace).await?)
        } else {
            let in_crowd = measure_crowd(under, pace).await?;
            (measure_alone(empty, pace).await?, in_crowd)
        };
        pairs.push([alone, in_crowd]);
        crowds.push(crowd);
    }
    let lost = pairs.iter().flatten().map(|measured| measured.lost).sum();
    let counted = i64::try_from(size).unwrap_or(i64::MAX);
    Ok(Examined { counted, lost, crowd: Crowd::worst(crowds), ..of_pairs(Circumstance::Tenant, size, &pairs) })
}

async fn warm_up(places: [&Place; 2], pace: Pace) -> Result<(), Failure> {
    for place in places {
        place.warm_up(pace).await?;
    }
    Ok(())
}

fn of_pairs(circumstance: Circumstance, size: u64, pairs: &[[Measured; 2]]) -> Examined {
    let pairs: Vec<(&Figures, &Figures)> =
        pairs.iter().map(|[empty, under]| (&empty.figures, &under.figures)).collect();
    Examined::of(circumstance, size, &pairs)
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Builder;

    use super::*;

    const SIZES: Sizes = Sizes { delayed: 1200, finished: 500, routes: 130, held: Duration::from_millis(200) };

    /// Examines with tiny values; answers it with a count in the database of the circumstance afterwards.
    fn examined(circumstance: Circumstance, count: &'static str) -> (Examined, i64) {
        let plan = Plan { messages: 300, consumers: 2, producers: 1, batch: 50, payload_bytes: 100 };
        let pace = Pace { plan, steps: 5, runs: 2 };
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (empty, under) = (cogo_test_support::database().await, cogo_test_support::database().await);
            let examination = examine(circumstance, [&empty.url, &under.url], pace, SIZES, Output::new(true));
            let examined = Box::pin(examination).await.expect("figures");
            let count = sqlx::query_scalar(count).fetch_one(&under.pool).await.expect("a count");
            (examined, count)
        })
    }

    fn has_figures(examined: &Examined, names: &[&str]) {
        for name in names {
            for figures in [&examined.empty, &examined.under, &examined.speed_ratio] {
                assert!(figures.get(name).is_some_and(|figure| figure > 0.0), "{name} in {examined:?}");
            }
        }
        assert_eq!(examined.lost, 0);
    }

    const EVERYWHERE: [&str; 11] = [
        "enqueue_per_s",
        "drain_per_s",
        "send_p50_ms",
        "send_p99_ms",
        "claim_p50_ms",
        "claim_p99_ms",
        "complete_p50_ms",
        "complete_p99_ms",
        "send_pages",
        "claim_pages",
        "complete_pages",
    ];

    #[test]
    fn delayed_messages_are_there_and_figures_come_out() {
        let (examined, delayed) = examined(Circumstance::Delayed, "select count(*) from bus.delayed");
        assert_eq!((examined.counted, delayed), (1200, 1200));
        has_figures(&examined, &EVERYWHERE);
        has_figures(&examined, &["empty_claim_p50_ms", "empty_claim_p99_ms", "empty_claim_pages"]);
        has_figures(&examined, &["batch_send_pages", "batch_claim_pages", "batch_complete_pages"]);
    }

    #[test]
    fn finished_messages_are_there_on_two_days_and_nowhere_else_in_the_bus() {
        let count = "select count(*) from public.agent_messages m where m.claimed_by = 'bench/0' and m.status = 'done'
                        and m.id < bus.first_id(date_trunc('day', clock_timestamp() at time zone 'UTC') at time zone 'UTC')
                        and not exists (select from bus.misplaced())";
        let (examined, yesterdays) = examined(Circumstance::Finished, count);
        assert_eq!((examined.counted, yesterdays), (500, 250));
        has_figures(&examined, &EVERYWHERE);
    }

    #[test]
    fn messages_wait_on_each_of_many_routes() {
        let (examined, waiting) = examined(Circumstance::Routes, "select sum(cardinality(ids))::bigint from bus.ready");
        assert_eq!((examined.counted, waiting), (130, 1300));
        has_figures(&examined, &EVERYWHERE);
    }

    #[test]
    fn one_tenant_has_99_of_100_messages_and_the_waits_of_the_others_are_told() {
        let (examined, big) =
            examined(Circumstance::Tenant, "select count(*) from public.agent_messages where tenant = 'big'");
        // a line of its own beside the single steps, and then that of the drain, twice
        assert_eq!((examined.counted, big), (297, 2 * (50 + 297)));
        let crowd = examined.crowd.clone().expect("a crowd");
        assert!(crowd.messages_of_others == 3 && (crowd.share_of_the_big_one - 0.99).abs() < 1e-9, "{crowd:?}");
        assert!(crowd.others_handed_out_within > 0.0 && crowd.others_handed_out_within <= 1.0, "{crowd:?}");
        has_figures(&examined, &EVERYWHERE);
        assert!(
            examined.under.get("others_wait_p50_ms").is_some() && examined.empty.get("others_wait_p99_ms").is_some()
        );
        assert_eq!(examined.under.get("empty_claim_p50_ms"), None, "no claim is empty beside a long line");
    }

    #[test]
    fn a_transaction_is_held_open_and_what_it_keeps_dead_is_told_over_time() {
        let (examined, left) = examined(Circumstance::Held, "select count(*) from bus.ready");
        assert_eq!((examined.counted, left), (1, 0));
        has_figures(&examined, &EVERYWHERE);
        let moments = &examined.over_time;
        assert!(moments.len() >= 4, "before, two while it was held, after: {moments:?}");
        let (first, last) = (&moments[0], &moments[moments.len() - 1]);
        assert!(!first.is_held && !last.is_held);
        let held: Vec<_> = moments.iter().filter(|moment| moment.is_held).collect();
        assert_eq!(held.len(), moments.len() - 2);
        let worst = held[held.len() - 1].left;
        // 300 messages in batches of 50 and five single steps, at least, since it was opened
        assert!(worst.dead_in_ready >= 11 && worst.dead_in_claims >= 11, "{worst:?}");
        assert!(last.left.dead_in_ready < worst.dead_in_ready, "a vacuum after its end could clean up: {last:?}");
    }
}
