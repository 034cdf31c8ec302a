//! How long a lookup among 10,000 agents takes while the fleet changes, and how soon another process sees a change.
//!
//! `cargo bench -p cogo-registry-core --bench lookups` starts a Postgres of its own. Criterion measures the mean of each
//! lookup and compares it with the last run; beside it stand the percentiles of single lookups, since a mean hides the
//! slow ones. It fails on no figure.
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use cogo_registry_core::{Follower, Query, Registry, Snapshot, View, ViewSettings};
use cogo_test_support::{TestDatabase, database};
use criterion::Criterion;
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const AGENTS: i64 = 10_000;
/// Capabilities that the agents share: a hundred agents have each.
const KINDS: i64 = 100;
const LOOKUPS: usize = 200_000;
const CHANGES: usize = 400;

fn main() {
    // `cargo test --all-targets` builds this and starts it too, but does not want the figures
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime starts").block_on(measure());
}

async fn measure() {
    let database = database().await;
    fill(&database.pool).await;
    let registry = Registry::new(database.pool.clone());
    let whole = Instant::now();
    let snapshot = registry.snapshot().await.expect("the registry is read");
    println!("whole reading of {} agents: {:?}", snapshot.len(), whole.elapsed());

    let token = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let (follower, view) = Follower::new(&registry, ViewSettings::default());
    tasks.spawn(follower.run(token.clone()));
    view.wait_for(snapshot.version()).await;

    let changed = Arc::new(AtomicU64::new(0));
    let churn = tasks.spawn(churn(database.another_pool(), token.clone(), Arc::clone(&changed)));
    let before = changed.load(Ordering::Relaxed);
    let (began, version) = (Instant::now(), view.version());
    let looking = view.clone();
    let looked = tokio::task::spawn_blocking(move || {
        let lookups = lookups(&looking);
        means(&lookups);
        lookups.iter().map(|(what, lookup)| timed(what, lookup)).collect::<Vec<_>>()
    });
    let table = looked.await.expect("the lookups end");
    let seconds = began.elapsed().as_secs_f64();
    let made = changed.load(Ordering::Relaxed) - before;
    println!(
        "\nsingle lookups, {LOOKUPS} of each; meanwhile {:.0} changes per second, {} versions followed",
        f64::from(u32::try_from(made).unwrap_or(u32::MAX)) / seconds,
        view.version() - version
    );
    for line in table {
        println!("{line}");
    }
    churn.abort();
    visibility(&database).await;
    token.cancel();
    while tasks.join_next().await.is_some() {}
}

/// Registers and activates the fleet in one statement each; the functions are those that every process calls.
async fn fill(pool: &PgPool) {
    sqlx::query(
        "select r.epoch from generate_series(1, $1) as n,
                registry.register(gen_random_uuid(), 'rag', 'agent-' || n / 1000, (n % 1000)::integer, '1.' || n % 7 || '.0',
                  array['kind-' || n % $2, 'route:rag/embed/0'],
                  jsonb_build_object('environment', 'host', 'host', 'h' || n % 50, 'region', 'r' || n % 3,
                                     'cpus', 2, 'memory_bytes', 1000000, 'pid', n),
                  tags => array['zone:' || n % 4]) as r",
    )
    .bind(AGENTS)
    .bind(KINDS)
    .execute(pool)
    .await
    .expect("the fleet joins");
    sqlx::query("select registry.activate(a.instance_id) from registry.agents a")
        .execute(pool)
        .await
        .expect("the fleet is active");
}

/// Suspends and resumes, leaves and joins, as fast as one connection can.
async fn churn(pool: PgPool, token: CancellationToken, changed: Arc<AtomicU64>) {
    let mut round = 0_i32;
    while !token.is_cancelled() {
        round = (round + 1) % 1000;
        let statement = if round % 4 == 3 {
            "select r.epoch from registry.register(gen_random_uuid(), 'rag', 'agent-1', $1, '1.0.0', array['kind-1']) as r"
        } else {
            "select count(*) from registry.agents a,
                    registry.order_state(case a.state when 'active' then 'suspend' else 'resume' end, a.instance_id)
              where a.name = 'agent-2' and a.slot = $1 and a.state in ('active', 'suspended')"
        };
        sqlx::query(statement).bind(round).execute(&pool).await.expect("a change is made");
        changed.fetch_add(1, Ordering::Relaxed);
    }
}

/// A lookup by what it is called.
type Lookup<'a> = (&'static str, Box<dyn Fn() + 'a>);

fn lookups(view: &View) -> Vec<Lookup<'_>> {
    let by_kind = Query::capability("kind-42");
    let narrow = Query::capability("kind-42")
        .tag("zone:2")
        .version(">=1.2, <1.6".parse().expect("a range of versions"))
        .region("r0")
        .limit(10);
    let all = Query::capability("route:rag/embed/0");
    let run: Uuid = view
        .look(|snapshot| snapshot.owner("agent-3/17").map(|entry| entry.id.instance_id))
        .expect("the copy is fresh")
        .value
        .expect("the agent is there");
    let (of_100, narrow_2) = (by_kind.clone(), narrow.clone());
    let (least, two) = (by_kind.clone(), by_kind.clone());
    vec![
        ("resolve(name/slot)", Box::new(|| drop(black_box(view.resolve("agent-3/17"))))),
        ("resolve(instance)", Box::new(move || drop(black_box(view.resolve_run(run))))),
        ("discover(capability), 100 of 10,000", Box::new(move || drop(black_box(view.discover(&of_100))))),
        ("discover(capability, tag, version, region)", Box::new(move || drop(black_box(view.discover(&narrow))))),
        ("find_healthy(capability), 100 of 10,000", Box::new(move || drop(black_box(view.find_healthy(&by_kind))))),
        (
            "find_healthy(capability, tag, version, region)",
            Box::new(move || drop(black_box(view.find_healthy(&narrow_2)))),
        ),
        ("least_loaded(capability), of 100", Box::new(move || drop(black_box(view.least_loaded(&least))))),
        ("power_of_two(capability), of 100", Box::new(move || drop(black_box(view.power_of_two(&two))))),
        ("power_of_two(route), of 10,000", Box::new(move || drop(black_box(view.power_of_two(&all))))),
    ]
}

/// The means, as criterion tells them.
fn means(lookups: &[Lookup<'_>]) {
    let criterion = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    let mut criterion = criterion.configure_from_args();
    let mut group = criterion.benchmark_group("10,000 agents under churn");
    for (what, lookup) in lookups {
        group.bench_function(*what, |bencher| bencher.iter(lookup));
    }
    group.finish();
    criterion.final_summary();
}

fn timed(what: &str, lookup: impl Fn()) -> String {
    let mut times = Vec::with_capacity(LOOKUPS);
    for _ in 0..LOOKUPS {
        let began = Instant::now();
        lookup();
        times.push(began.elapsed());
    }
    format!("{what:<48} {}", percentiles(times))
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |part: f64| -> Duration {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index into a list of that length"
        )]
        let place = ((times.len() as f64 * part) as usize).min(times.len() - 1);
        times[place]
    };
    format!("p50 {:>10.2?}  p99 {:>10.2?}  p99.9 {:>10.2?}  max {:>10.2?}", at(0.5), at(0.99), at(0.999), at(1.0))
}

/// From the answer to a change in one process to its being visible in the copy of another, which has a pool and a
/// subscription of its own.
async fn visibility(database: &TestDatabase) {
    let (writer, reader) = (Registry::new(database.another_pool()), Registry::new(database.another_pool()));
    let (follower, view) = Follower::new(&reader, ViewSettings::default());
    let token = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(follower.run(token.clone()));
    let start = writer.snapshot().await.expect("the registry is read");
    view.wait_for(start.version()).await;
    let runs: Vec<_> =
        start.agents().filter(|entry| entry.id.name == "agent-5").map(|entry| entry.id.instance_id).collect();
    let mut times = Vec::with_capacity(CHANGES);
    for round in 0..CHANGES {
        let run = runs[round % (runs.len() / 2)];
        let asked = Instant::now();
        let ordered = match round / (runs.len() / 2) % 2 {
            0 => writer.suspend(run).await,
            _ => writer.resume(run).await,
        };
        let version = ordered.expect("the change is made").registry_version;
        let answered = Instant::now();
        while view.look(Snapshot::version).map_or(0, |answer| answer.value) < version {
            tokio::task::yield_now().await;
        }
        times.push((answered.elapsed(), asked.elapsed()));
    }
    println!("visible in another process, {CHANGES} changes, 10,000 agents:");
    println!("{:<48} {}", "  after the answer to the change", percentiles(times.iter().map(|time| time.0).collect()));
    println!("{:<48} {}", "  after the change was asked for", percentiles(times.iter().map(|time| time.1).collect()));
    token.cancel();
    while tasks.join_next().await.is_some() {}
}
