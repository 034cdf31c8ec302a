//! pgmq under the load of the bus: the same connections, batches and payloads, through its own SQL functions.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use sqlx::{Connection, PgConnection, types::Json};
use tokio::task::JoinSet;

use crate::{
    command::{
        bench_bus_load::{LEASE, Plan, drained, rate_of, rest_after},
        bench_bus_producer::produce,
    },
    failure::Failure,
};

const SEND: &str = "select count(*) from pgmq.send_batch('mixed', $1::jsonb[])";
const READ: &str = "select msg_id, message from pgmq.read('mixed', $1::integer, $2::integer)";
/// What keeps the finished message, as the bus does.
const ARCHIVE: &str = "select count(*) from pgmq.archive('mixed', $1::bigint[])";

/// Producers and consumers that work until they are told to stop.
type Workers = JoinSet<Result<(), Failure>>;

/// A queue of its own in a database where pgmq is installed, and what was sent to it and archived so far.
pub(crate) struct Queue {
    url: String,
    plan: Plan,
    sent: Arc<AtomicU64>,
    archived: Arc<AtomicU64>,
}

impl Queue {
    pub(crate) async fn create(url: String, plan: Plan) -> Result<Self, Failure> {
        let mut connection = PgConnection::connect(&url).await?;
        sqlx::query("select pgmq.create('mixed')").execute(&mut connection).await?;
        connection.close().await?;
        Ok(Self { url, plan, sent: Arc::default(), archived: Arc::default() })
    }

    /// Sends for a while; answers how many a second were sent.
    pub(crate) async fn send_for(&self, time: Duration) -> Result<f64, Failure> {
        let (stop, mut producers) = (Arc::default(), JoinSet::new());
        self.produce(&mut producers, &stop).await?;
        rate_of(producers, &stop, time, &self.sent).await
    }

    /// Archives all that was sent; answers how many a second.
    pub(crate) async fn drain(&self) -> Result<f64, Failure> {
        let (stop, mut consumers) = (Arc::default(), JoinSet::new());
        self.consume(&mut consumers, &stop).await?;
        drained(consumers, &stop, &self.archived, &self.sent).await
    }

    /// Sends and archives at once for a while; answers how many a second were archived.
    pub(crate) async fn mixed(&self, time: Duration) -> Result<f64, Failure> {
        let (stop, mut workers) = (Arc::default(), JoinSet::new());
        self.consume(&mut workers, &stop).await?;
        self.produce(&mut workers, &stop).await?;
        rate_of(workers, &stop, time, &self.archived).await
    }

    async fn produce(&self, workers: &mut Workers, stop: &Arc<AtomicBool>) -> Result<(), Failure> {
        for _ in 0..self.plan.producers {
            let connection = PgConnection::connect(&self.url).await?;
            workers.spawn(produce(connection, SEND, self.plan, Arc::clone(stop), Arc::clone(&self.sent)));
        }
        Ok(())
    }

    async fn consume(&self, workers: &mut Workers, stop: &Arc<AtomicBool>) -> Result<(), Failure> {
        for _ in 0..self.plan.consumers {
            let connection = PgConnection::connect(&self.url).await?;
            workers.spawn(consume(connection, self.plan, Arc::clone(stop), Arc::clone(&self.archived)));
        }
        Ok(())
    }

    /// A rate of what was not sent, or not kept, would say nothing.
    pub(crate) async fn account(&self) -> Result<(), Failure> {
        let mut connection = PgConnection::connect(&self.url).await?;
        let (waiting, archived): (i64, i64) =
            sqlx::query_as("select (select count(*) from pgmq.q_mixed), (select count(*) from pgmq.a_mixed)")
                .fetch_one(&mut connection)
                .await?;
        connection.close().await?;
        let counted = (self.sent.load(Ordering::SeqCst), self.archived.load(Ordering::SeqCst));
        let held = (u64::try_from(waiting + archived).unwrap_or(0), u64::try_from(archived).unwrap_or(0));
        if counted == held {
            return Ok(());
        }
        Err(Failure::failed(format!(
            "Sent and archived {counted:?} messages, but its tables hold {waiting} waiting and {archived} archived"
        )))
    }
}

/// Reads and archives batches until it is told to stop.
async fn consume(
    mut connection: PgConnection,
    plan: Plan,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
) -> Result<(), Failure> {
    let hidden_s = i32::try_from(LEASE.as_secs()).unwrap_or(i32::MAX);
    while !stop.load(Ordering::Relaxed) {
        let messages: Vec<(i64, Json<Value>)> =
            sqlx::query_as(READ).bind(hidden_s).bind(i32::from(plan.batch)).fetch_all(&mut connection).await?;
        if !messages.is_empty() {
            let ids: Vec<i64> = messages.iter().map(|(id, _payload)| *id).collect();
            let archived: i64 = sqlx::query_scalar(ARCHIVE).bind(ids).fetch_one(&mut connection).await?;
            done.fetch_add(u64::try_from(archived).unwrap_or(0), Ordering::SeqCst);
        }
        rest_after(messages.len(), plan).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sqlx::Executor;

    use super::*;

    const PLAN: Plan = Plan { messages: 100, consumers: 2, producers: 1, batch: 20, payload_bytes: 100 };

    async fn queue() -> (cogo_test_support::TestDatabase, Queue) {
        let database = cogo_test_support::empty_database().await;
        database.pool.execute(include_str!("../../tests/small_queue.sql")).await.expect("functions");
        let queue = Queue::create(database.url.clone(), PLAN).await.expect("a queue");
        (database, queue)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_sent_is_archived_at_once_also_in_pieces() {
        let (database, queue) = queue().await;
        let a_while = Duration::from_millis(200);
        assert!(queue.send_for(a_while).await.expect("a rate") > 0.0);
        assert!(queue.drain().await.expect("a rate") > 0.0);
        for _ in 0..2 {
            assert!(queue.mixed(a_while).await.expect("a rate") > 0.0);
        }
        queue.drain().await.expect("an end");
        queue.account().await.expect("nothing lacks");
        let twice: i64 = sqlx::query_scalar("select count(*) from pgmq.q_mixed where read_ct > 1")
            .fetch_one(&database.pool)
            .await
            .expect("a count");
        assert_eq!(twice, 0, "nobody reads what another one holds");
        let left: i64 =
            sqlx::query_scalar("select count(*) from pgmq.q_mixed").fetch_one(&database.pool).await.expect("a count");
        assert_eq!(left, 0, "drained");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_queue_that_does_not_keep_what_it_archives_is_found_out() {
        let (database, queue) = queue().await;
        let forgetful = "create function public.forget() returns trigger language plpgsql as 'begin return null; end';
             create trigger forget before insert on pgmq.a_mixed for each row when (new.msg_id % 7 = 0)
               execute function public.forget()";
        database.pool.execute(forgetful).await.expect("a defect");
        queue.mixed(Duration::from_millis(300)).await.expect("a rate");
        let refused = queue.account().await.expect_err("a loss");
        assert!(refused.text().contains("its tables hold"), "{refused:?}");
    }
}
