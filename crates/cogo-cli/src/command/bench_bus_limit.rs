//! The limit: what the same server does with the same payloads when a queue keeps nothing but a primary key.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use serde::Serialize;
use sqlx::{Connection, PgConnection, types::Json};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{
    command::{
        bench_bus_load::{Load, Plan, all},
        bench_bus_report::median,
    },
    failure::Failure,
};

/// Ids of one statement, made by the client.
type Batches = Arc<Vec<Vec<Uuid>>>;

/// What the server could do at most, and how near it the bus is: all in turn, since the machine may change its speed.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Limit {
    /// Rows a second into a table with only a primary key.
    pub(crate) insert_per_s: f64,
    /// Rows a second that are inserted and then updated once in place.
    pub(crate) cycle_per_s: f64,
    /// Rows a second with all columns of a message, into a table without parts, checks and triggers.
    pub(crate) same_row_per_s: f64,
    /// The same, each then updated once in place in the columns that a completion writes.
    pub(crate) same_row_cycle_per_s: f64,
    /// Median time in ms of what a ping cannot do without: three connections in turn insert a row, update it and update
    /// it again, each with a commit of its own.
    pub(crate) three_commits_ms: f64,
    /// The bus divided by each of the first four, in their order.
    pub(crate) enqueue_ratio: f64,
    pub(crate) cycle_ratio: f64,
    pub(crate) same_row_ratio: f64,
    pub(crate) same_row_cycle_ratio: f64,
}

/// Turns of the bus and of what limits it; medians of an odd number are figures that were measured.
const TURNS: u8 = 3;
/// How often three commits are timed.
const THREE_COMMITS: u16 = 100;

/// What one statement does with a batch.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Into a table with full pages.
    Insert,
    /// Into a table that leaves room in its pages, so that an update touches no index.
    InsertWithRoom,
    /// Into a table with the columns of a message and room in its pages.
    InsertSameRow,
    Update,
    UpdateSameRow,
}

/// Seconds of one turn.
struct Turn {
    enqueue: f64,
    drain: f64,
    insert: f64,
    insert_with_room: f64,
    update: f64,
    insert_same_row: f64,
    update_same_row: f64,
}

impl Turn {
    fn cycle(&self) -> f64 {
        self.insert_with_room + self.update
    }

    fn same_row_cycle(&self) -> f64 {
        self.insert_same_row + self.update_same_row
    }

    fn of_bus(&self) -> f64 {
        self.enqueue + self.drain
    }
}

impl Limit {
    fn of(turns: &[Turn], rows: f64, three_commits_ms: f64) -> Self {
        let middle = |figure: fn(&Turn) -> f64| median(turns.iter().map(figure).collect()).unwrap_or(f64::NAN);
        Self {
            insert_per_s: rows / middle(|turn| turn.insert),
            cycle_per_s: rows / middle(Turn::cycle),
            same_row_per_s: rows / middle(|turn| turn.insert_same_row),
            same_row_cycle_per_s: rows / middle(Turn::same_row_cycle),
            three_commits_ms,
            enqueue_ratio: middle(|turn| turn.insert / turn.enqueue),
            cycle_ratio: middle(|turn| turn.cycle() / turn.of_bus()),
            same_row_ratio: middle(|turn| turn.insert_same_row / turn.enqueue),
            same_row_cycle_ratio: middle(|turn| turn.same_row_cycle() / turn.of_bus()),
        }
    }
}

/// Measures the limit in the schema `bench` of the database at `url`, in turn with this load on the bus.
pub(crate) async fn measure(url: &str, load: &Load) -> Result<Limit, Failure> {
    let plan = load.plan;
    let mut connection = PgConnection::connect(url).await?;
    for statement in [
        "create table bench.full_pages (
           id uuid primary key, created_at timestamptz not null default clock_timestamp(), service text not null,
           role text not null, tenant text not null, payload jsonb not null, status text not null default 'queued',
           attempts smallint not null default 0, done_at timestamptz, result_snippet text)",
        "create table bench.roomy_pages (like bench.full_pages including all) with (fillfactor = 45)",
        "create table bench.same_rows (like public.agent_messages including defaults, primary key (id))
           with (fillfactor = 45)",
    ] {
        sqlx::query(statement).execute(&mut connection).await?;
    }
    let mut turns = Vec::new();
    for _ in 0..TURNS {
        turns.push(turn(url, load, &mut connection).await?);
    }
    let three_commits_ms = three_commits(url, plan).await?;
    // what is measured next is not to wait for the disk, or for a vacuum, on behalf of these
    sqlx::query("drop table bench.full_pages, bench.roomy_pages, bench.same_rows").execute(&mut connection).await?;
    let _ = sqlx::query("checkpoint").execute(&mut connection).await;
    connection.close().await?;
    Ok(Limit::of(&turns, f64::from(plan.messages), three_commits_ms))
}

async fn turn(url: &str, load: &Load, connection: &mut PgConnection) -> Result<Turn, Failure> {
    let plan = load.plan;
    let rows = f64::from(plan.messages);
    let insert = each_batch(url, plan, Step::Insert, plan.producers, &ids(plan)).await?;
    let enqueue = rows / load.enqueue().await?;
    let batches = ids(plan);
    let insert_same_row = each_batch(url, plan, Step::InsertSameRow, plan.producers, &batches).await?;
    let drain = rows / load.drain().await?;
    // the planner guesses about a new table, and these must use their keys
    sqlx::query("analyze bench.same_rows").execute(&mut *connection).await?;
    let update_same_row = each_batch(url, plan, Step::UpdateSameRow, plan.consumers, &batches).await?;
    let batches = ids(plan);
    let insert_with_room = each_batch(url, plan, Step::InsertWithRoom, plan.producers, &batches).await?;
    sqlx::query("analyze bench.roomy_pages").execute(&mut *connection).await?;
    let update = each_batch(url, plan, Step::Update, plan.consumers, &batches).await?;
    Ok(Turn { enqueue, drain, insert, insert_with_room, update, insert_same_row, update_same_row })
}

async fn three_commits(url: &str, plan: Plan) -> Result<f64, Failure> {
    let mut connections = Vec::new();
    for _ in 0..3 {
        connections.push(PgConnection::connect(url).await?);
    }
    let mut times = Vec::new();
    for _ in 0..THREE_COMMITS {
        let row = [Uuid::now_v7()];
        let began = Instant::now();
        for (connection, step) in connections.iter_mut().zip([Step::InsertWithRoom, Step::Update, Step::Update]) {
            run(connection, plan, step, &row).await?;
        }
        times.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(median(times).unwrap_or(f64::NAN))
}

fn ids(plan: Plan) -> Batches {
    let batch = |number| (0..plan.size_of_batch(number)).map(|_| Uuid::now_v7()).collect();
    Arc::new((0..plan.batches()).map(batch).collect())
}

/// Answers how many seconds it took.
async fn each_batch(url: &str, plan: Plan, step: Step, connections: u16, batches: &Batches) -> Result<f64, Failure> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    let mut open = Vec::new();
    for _ in 0..connections {
        open.push(PgConnection::connect(url).await?);
    }
    let began = Instant::now();
    for mut connection in open {
        let (next, batches) = (Arc::clone(&next), Arc::clone(batches));
        workers.spawn(async move {
            while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                run(&mut connection, plan, step, batch).await?;
            }
            Ok(())
        });
    }
    all(workers).await?;
    Ok(began.elapsed().as_secs_f64())
}

async fn run(connection: &mut PgConnection, plan: Plan, step: Step, ids: &[Uuid]) -> Result<(), Failure> {
    let payloads =
        || (0..).zip(ids).map(|(number, _)| Json(plan.payload(number))).collect::<Vec<Json<serde_json::Value>>>();
    let statement = match step {
        Step::Insert => sqlx::query(
            "insert into bench.full_pages (id, service, role, tenant, payload)
             select given.id, 'bench', 'work', 'default', given.payload
               from unnest($1::uuid[], $2::jsonb[]) as given (id, payload)",
        )
        .bind(ids)
        .bind(payloads()),
        Step::InsertWithRoom => sqlx::query(
            "insert into bench.roomy_pages (id, service, role, tenant, payload)
             select given.id, 'bench', 'work', 'default', given.payload
               from unnest($1::uuid[], $2::jsonb[]) as given (id, payload)",
        )
        .bind(ids)
        .bind(payloads()),
        Step::InsertSameRow => sqlx::query(
            "insert into bench.same_rows (id, root_id, service, role, shard, tenant, payload)
             select given.id, given.id, 'bench', 'work', 0, 'default', given.payload
               from unnest($1::uuid[], $2::jsonb[]) as given (id, payload)",
        )
        .bind(ids)
        .bind(payloads()),
        Step::Update => sqlx::query(
            "update bench.roomy_pages
                set status = 'done', attempts = 1, done_at = clock_timestamp(), result_snippet = 'ok'
              where id = any ($1)",
        )
        .bind(ids),
        Step::UpdateSameRow => sqlx::query(
            "update bench.same_rows
                set status = 'done', attempts = 1, claimed_by = 'bench', claimed_at = clock_timestamp(),
                    done_at = clock_timestamp(), result_snippet = 'ok'
              where id = any ($1)",
        )
        .bind(ids),
    };
    statement.execute(connection).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_compare_a_whole_life_with_a_whole_life_of_the_same_turn() {
        let turn = |speed: f64| Turn {
            enqueue: 2.0 / speed,
            drain: 3.0 / speed,
            insert: 1.0 / speed,
            insert_with_room: 1.5 / speed,
            update: 1.0 / speed,
            insert_same_row: 1.6 / speed,
            update_same_row: 1.4 / speed,
        };
        let limit = Limit::of(&[turn(1.0), turn(4.0), turn(2.0)], 100.0, 1.0);
        let ratios = [limit.enqueue_ratio, limit.cycle_ratio, limit.same_row_ratio, limit.same_row_cycle_ratio];
        for (ratio, expected) in ratios.into_iter().zip([0.5, 0.5, 0.8, 0.6]) {
            assert!((ratio - expected).abs() < 1e-9, "{ratios:?}");
        }
        assert!((limit.insert_per_s - 200.0).abs() < 1e-9, "the middle one of three speeds");
    }
}
