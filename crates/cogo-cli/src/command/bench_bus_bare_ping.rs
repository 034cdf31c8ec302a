//! What a ping cannot do without: three commits and a notification, with rows that have nothing of a queue.

use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::{
    Connection, PgConnection, PgPool,
    postgres::{PgListener, PgPoolOptions},
    types::Json,
};
use tokio::{sync::mpsc, task::JoinSet};
use uuid::Uuid;

use crate::failure::Failure;

const CHANNEL: &str = "cogo_bench_bare";

/// One sends, one listens, takes what is told to it by an update in place, and ends it by another.
pub(crate) struct BarePing {
    sender: PgConnection,
    done: mpsc::UnboundedReceiver<Result<Instant, Failure>>,
    /// Ends with this.
    _worker: JoinSet<()>,
}

impl BarePing {
    /// Makes the table `bench.bare`, and three connections.
    pub(crate) async fn open(pool: &PgPool) -> Result<Self, Failure> {
        let options = pool.connect_options();
        let mut sender = PgConnection::connect_with(&options).await?;
        sqlx::query(
            "create table if not exists bench.bare (id uuid primary key, payload jsonb not null,
               status text not null default 'queued') with (fillfactor = 45)",
        )
        .execute(&mut sender)
        .await?;
        let connection = PgConnection::connect_with(&options).await?;
        let own_pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options.as_ref().clone());
        let mut listener = PgListener::connect_with(&own_pool).await?;
        listener.listen(CHANNEL).await?;
        let (tell, done) = mpsc::unbounded_channel();
        let mut worker = JoinSet::new();
        worker.spawn(async move {
            if let Err(error) = work(listener, connection, &tell).await {
                let _ = tell.send(Err(error));
            }
        });
        Ok(Self { sender, done, _worker: worker })
    }

    /// How long it takes from before one row is sent until the worker sees that its end is recorded.
    pub(crate) async fn ping(&mut self, patience: Duration) -> Result<Duration, Failure> {
        let began = Instant::now();
        sqlx::query(
            "with sent as (insert into bench.bare (id, payload) values ($1, $2) returning id)
             select pg_notify($3, id::text) from sent",
        )
        .bind(Uuid::now_v7())
        .bind(Json(json!({ "ping": true })))
        .bind(CHANNEL)
        .execute(&mut self.sender)
        .await?;
        match tokio::time::timeout(patience, self.done.recv()).await {
            Ok(Some(done_at)) => Ok(done_at?.duration_since(began)),
            Ok(None) | Err(_) => Err(Failure::timeout("A row without a queue did not come back")),
        }
    }
}

/// Until nobody wants to know any more.
async fn work(
    mut listener: PgListener,
    mut connection: PgConnection,
    tell: &mpsc::UnboundedSender<Result<Instant, Failure>>,
) -> Result<(), Failure> {
    loop {
        let id: Uuid = listener
            .recv()
            .await?
            .payload()
            .parse()
            .map_err(|error| Failure::failed("A notification of the bench is no id").because(&error))?;
        sqlx::query("update bench.bare set status = 'claimed' where id = $1 returning payload")
            .bind(id)
            .fetch_one(&mut connection)
            .await?;
        sqlx::query("update bench.bare set status = 'done' where id = $1").bind(id).execute(&mut connection).await?;
        if tell.send(Ok(Instant::now())).is_err() {
            return Ok(());
        }
    }
}
