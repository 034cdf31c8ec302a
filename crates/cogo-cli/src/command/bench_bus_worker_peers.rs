//! Peers whose own worker process works while this side sends through their SQL function: their mixed load.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;

use crate::{
    command::{
        bench_bus_load::{Plan, all, as_f64},
        bench_bus_producer::produce,
    },
    failure::Failure,
};

/// How long a peer may take to send what it begins with.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks whether its worker has begun.
const PAUSE: Duration = Duration::from_millis(100);

/// What a peer offers to senders in any language.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) peer: &'static str,
    /// Takes payloads as `jsonb[]`, makes jobs of the kind that its worker knows, answers how many.
    send: &'static str,
    /// How many jobs are not finished; the peer removes finished ones.
    unfinished: &'static str,
}

const ADD_JOBS: &str = "select count(*) from graphile_worker.add_jobs(array(
    select row ('noop', given.payload::json, null, null, null, null, null, null)::graphile_worker.job_spec
      from unnest($1::jsonb[]) as given (payload)))";
const UNFINISHED_JOBS: &str = "select count(*) from graphile_worker._private_jobs";

/// The peers that can be driven so.
pub(crate) static DOORS: [Door; 3] = [
    Door { peer: "graphile-worker", send: ADD_JOBS, unfinished: UNFINISHED_JOBS },
    Door { peer: "graphile_worker-rs", send: ADD_JOBS, unfinished: UNFINISHED_JOBS },
    Door {
        peer: "procrastinate",
        // its task takes nothing but the number
        send: "select cardinality(procrastinate_defer_jobs_v1(array(
            select row ('bench', 'noop', 0, null, null, jsonb_build_object('id', given.payload -> 'id'), null)
                     ::procrastinate_job_to_defer_v1
              from unnest($1::jsonb[]) as given (payload))))::bigint",
        unfinished: "select count(*) from procrastinate_jobs",
    },
];

/// Waits until the worker of the peer is at work, then sends for a while; answers how many a second were finished meanwhile.
pub(crate) async fn mixed(url: String, door: &'static Door, plan: Plan, time: Duration) -> Result<f64, Failure> {
    let working = tokio::time::timeout(PATIENCE, until_working(&url, door)).await;
    let mut looking = working.map_err(|_elapsed| Failure::timeout(format!("{} did not begin to work", door.peer)))?;
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicU64::new(0));
    let mut connections = Vec::new();
    for _ in 0..plan.producers {
        connections.push(PgConnection::connect(&url).await?);
    }
    let began = Instant::now();
    let before = unfinished(&mut looking, door).await?;
    let mut producers = JoinSet::new();
    for connection in connections {
        producers.spawn(produce(connection, door.send, plan, Arc::clone(&stop), Arc::clone(&sent)));
    }
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    all(producers).await?;
    let elapsed = began.elapsed();
    let after = unfinished(&mut looking, door).await?;
    let finished = (before + sent.load(Ordering::SeqCst)).saturating_sub(after);
    Ok(as_f64(finished) / elapsed.as_secs_f64())
}

/// Looks until there are fewer unfinished jobs than before; its database and tables come while one looks.
async fn until_working(url: &str, door: &Door) -> PgConnection {
    let mut most = 0;
    loop {
        if let Ok(mut connection) = PgConnection::connect(url).await {
            while let Ok(count) = unfinished(&mut connection, door).await {
                if count < most {
                    return connection;
                }
                most = count;
                tokio::time::sleep(PAUSE).await;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn unfinished(connection: &mut PgConnection, door: &Door) -> Result<u64, Failure> {
    let count: i64 = sqlx::query_scalar(door.unfinished).fetch_one(connection).await?;
    Ok(u64::try_from(count).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use sqlx::{Executor, PgPool};

    use super::*;

    const PLAN: Plan = Plan { messages: 100, consumers: 1, producers: 2, batch: 20, payload_bytes: 100 };

    /// A peer's tables and function, and a worker that finishes ten jobs at a time; answers how many it finished.
    async fn work(pool: PgPool, stop: Arc<AtomicBool>) -> u64 {
        let queue = "create schema graphile_worker;
             create type graphile_worker.job_spec as (identifier text, payload json, queue_name text,
               run_at timestamptz, max_attempts integer, job_key text, priority integer, flags text[]);
             create table graphile_worker._private_jobs (id bigserial primary key, spec graphile_worker.job_spec);
             create table graphile_worker.seen (identifier text);
             create function graphile_worker.add_jobs(graphile_worker.job_spec[])
               returns setof graphile_worker._private_jobs language sql as
               'insert into graphile_worker.seen select of.identifier from unnest($1) as of;
                insert into graphile_worker._private_jobs (spec) select row(of.*)::graphile_worker.job_spec
                  from unnest($1) as of returning *';
             insert into graphile_worker._private_jobs (spec) select null from generate_series(1, 100000);";
        pool.execute(queue).await.expect("a queue");
        let mut finished = 0;
        while !stop.load(Ordering::Relaxed) {
            let removed = sqlx::query(
                "delete from graphile_worker._private_jobs
                  where id in (select id from graphile_worker._private_jobs order by id limit 10)",
            );
            finished += removed.execute(&pool).await.expect("a worker").rows_affected();
            // it must not be through before anybody looks
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        finished
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_worker_finishes_while_others_send_is_its_rate() {
        let database = cogo_test_support::empty_database().await;
        let stop = Arc::new(AtomicBool::new(false));
        let mut worker = JoinSet::new();
        worker.spawn(work(database.pool.clone(), Arc::clone(&stop)));
        let began = Instant::now();
        let door = DOORS.iter().find(|door| door.peer == "graphile-worker").expect("a door");
        let per_s = mixed(database.url.clone(), door, PLAN, Duration::from_millis(300)).await.expect("a rate");
        stop.store(true, Ordering::Relaxed);
        let finished = worker.join_next().await.expect("a worker").expect("it ends");
        assert!(per_s > 0.0 && per_s * 0.3 <= as_f64(finished), "{per_s}/s of {finished} in {:?}", began.elapsed());
        let kinds: Vec<String> = sqlx::query_scalar("select distinct identifier from graphile_worker.seen")
            .fetch_all(&database.pool)
            .await
            .expect("jobs");
        assert_eq!(kinds, ["noop"], "what was sent is of the kind that the worker knows");
    }
}
