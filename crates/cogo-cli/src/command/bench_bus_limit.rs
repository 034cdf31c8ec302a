//! The limit: what the same server does with the same payloads when a queue keeps nothing but a primary key.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Serialize;
use sqlx::{Connection, PgConnection, types::Json};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{
    command::{
        bench_bus_load::{Plan, all},
        bench_bus_report::median,
    },
    failure::Failure,
};

/// Ids of one statement, made by the client.
type Batches = Arc<Vec<Vec<Uuid>>>;

/// What the server could do at most.
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
}

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

/// Measures both in the schema `bench` of the database at `url`.
pub(crate) async fn measure(url: &str, plan: Plan) -> Result<Limit, Failure> {
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
    let inserting = each_batch(url, plan, Step::Insert, plan.producers, &ids(plan)).await?;
    let batches = ids(plan);
    let first = each_batch(url, plan, Step::InsertWithRoom, plan.producers, &batches).await?;
    // the planner guesses about a new table, and this one must use its key
    sqlx::query("analyze bench.roomy_pages").execute(&mut connection).await?;
    let second = each_batch(url, plan, Step::Update, plan.consumers, &batches).await?;
    let batches = ids(plan);
    let same_rows = each_batch(url, plan, Step::InsertSameRow, plan.producers, &batches).await?;
    sqlx::query("analyze bench.same_rows").execute(&mut connection).await?;
    let same_updates = each_batch(url, plan, Step::UpdateSameRow, plan.consumers, &batches).await?;
    let three_commits_ms = three_commits(url, plan).await?;
    // what is measured next is not to wait for the disk, or for a vacuum, on behalf of these
    sqlx::query("drop table bench.full_pages, bench.roomy_pages, bench.same_rows").execute(&mut connection).await?;
    let _ = sqlx::query("checkpoint").execute(&mut connection).await;
    connection.close().await?;
    let rows = f64::from(plan.messages);
    Ok(Limit {
        insert_per_s: rows / inserting.as_secs_f64(),
        cycle_per_s: rows / (first + second).as_secs_f64(),
        same_row_per_s: rows / same_rows.as_secs_f64(),
        same_row_cycle_per_s: rows / (same_rows + same_updates).as_secs_f64(),
        three_commits_ms,
    })
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

async fn each_batch(
    url: &str,
    plan: Plan,
    step: Step,
    connections: u16,
    batches: &Batches,
) -> Result<Duration, Failure> {
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
    Ok(began.elapsed())
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
