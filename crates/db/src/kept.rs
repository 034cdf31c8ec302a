//! A connection that is kept for questions that come again and again.

use std::{io, pin::Pin, time::Duration};

use sqlx::{Connection, PgConnection, PgPool};
use tokio::time::timeout;

/// A question may take so long, with a fresh connection for it and a second try: a path that swallows everything never
/// says that it is dead, and whoever asks every other second must not wait for it as long as the system would.
const PATIENCE: Duration = Duration::from_secs(5);

/// The answer to a question, underway. Boxed, since of an async closure that borrows nobody can say that it may be sent.
type Answering<'c, T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'c>>;

/// One connection beside a pool, for whoever asks every second or two for ever: of a pool each question costs three
/// exchanges with the server, since the pool asks before and after it whether the connection lives.
#[derive(Debug)]
pub struct Kept {
    pool: PgPool,
    connection: Option<PgConnection>,
    patience: Duration,
}

impl Kept {
    /// Nothing is opened before the first question. The pool only tells how to connect: none of its connections is used.
    #[must_use]
    pub fn beside(pool: &PgPool) -> Self {
        Self { pool: pool.clone(), connection: None, patience: PATIENCE }
    }

    /// The answer to a question about something. It is asked once more by a fresh connection if the kept one turns out to
    /// have ended meanwhile, so it must be one that may be asked twice.
    ///
    /// # Errors
    /// Of the outer result: when no connection could be opened, or when all of it took longer than 5 s; the connection
    /// is closed then. The inner result is the question's own.
    pub async fn ask<A: ?Sized, T, E>(
        &mut self,
        about: &A,
        question: for<'c> fn(&'c mut PgConnection, &'c A) -> Answering<'c, T, E>,
    ) -> Result<Result<T, E>, sqlx::Error> {
        let patience = self.patience;
        timeout(patience, self.answer(about, question)).await.unwrap_or_else(|_elapsed| {
            let reason = format!("the database gave no answer within {patience:?}");
            Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, reason)))
        })
    }

    async fn answer<A: ?Sized, T, E>(
        &mut self,
        about: &A,
        question: for<'c> fn(&'c mut PgConnection, &'c A) -> Answering<'c, T, E>,
    ) -> Result<Result<T, E>, sqlx::Error> {
        loop {
            // taken out: broken off half-way it is closed, since nobody can know what still comes over it
            let kept = self.connection.take();
            let is_fresh = kept.is_none();
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.open().await?,
            };
            let answer = question(&mut connection, about).await;
            // asked only after a failure: whether it was the statement that failed, or the connection
            if answer.is_ok() || connection.ping().await.is_ok() {
                self.connection = Some(connection);
                return Ok(answer);
            }
            if is_fresh {
                return Ok(answer);
            }
        }
    }

    /// Not out of the pool: what rests there may have died of the same.
    async fn open(&self) -> Result<PgConnection, sqlx::Error> {
        if self.pool.is_closed() {
            return Err(sqlx::Error::PoolClosed);
        }
        PgConnection::connect_with(&self.pool.connect_options()).await
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        sync::atomic::{AtomicU32, Ordering},
        time::Instant,
    };

    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use super::*;

    const SHORT: Duration = Duration::from_millis(300);
    /// More than a busy machine needs to give up after that.
    const LONG: Duration = Duration::from_secs(20);

    /// Runs a statement, and counts how often.
    async fn run(kept: &mut Kept, statement: &'static str) -> (Result<Result<i32, sqlx::Error>, sqlx::Error>, u32) {
        let asked = AtomicU32::new(0);
        let about = (statement, &asked);
        let answer = kept.ask(&about, |connection, (statement, asked)| {
            asked.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move { sqlx::query_scalar(*statement).fetch_one(connection).await })
        });
        (answer.await, asked.load(Ordering::Relaxed))
    }

    async fn backend(kept: &mut Kept) -> i32 {
        run(kept, "select pg_backend_pid()").await.0.unwrap().unwrap()
    }

    fn is_timeout<T>(answer: &Result<T, sqlx::Error>) -> bool {
        matches!(answer, Err(sqlx::Error::Io(error)) if error.kind() == io::ErrorKind::TimedOut)
    }

    #[tokio::test]
    async fn one_connection_serves_all_questions_also_after_one_that_fails() {
        let database = cogo_test_support::database().await;
        let mut kept = Kept::beside(&database.pool);
        let pid = backend(&mut kept).await;
        let (refused, asked) = run(&mut kept, "select 1 / 0").await;
        assert!(refused.unwrap().is_err());
        assert_eq!(asked, 1, "what a statement is refused for is not asked again");
        assert_eq!(backend(&mut kept).await, pid);
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_costs_a_second_try_and_no_more() {
        let database = cogo_test_support::database().await;
        let mut kept = Kept::beside(&database.pool);
        let pid = backend(&mut kept).await;
        sqlx::query("select pg_terminate_backend($1, 10000)").bind(pid).execute(&database.pool).await.unwrap();
        assert_ne!(backend(&mut kept).await, pid);

        // one that breaks each time is not asked for ever
        let (broken, asked) = run(&mut kept, "select pg_terminate_backend(pg_backend_pid())::integer").await;
        assert!(broken.unwrap().is_err());
        assert_eq!(asked, 2);
    }

    #[tokio::test]
    async fn an_answer_that_does_not_come_is_given_up_with_its_connection() {
        let database = cogo_test_support::database().await;
        let mut kept = Kept::beside(&database.pool);
        let pid = backend(&mut kept).await;
        kept.patience = SHORT;
        let begun = Instant::now();
        let (silent, _) = run(&mut kept, "select 1 from pg_sleep(60)").await;
        assert!(is_timeout(&silent), "{silent:?}");
        assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
        kept.patience = LONG;
        assert_ne!(backend(&mut kept).await, pid);
    }

    #[tokio::test]
    async fn a_server_that_takes_connections_and_says_nothing_is_given_up_too() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let options = PgConnectOptions::new().host("127.0.0.1").port(silent.local_addr().unwrap().port());
        let mut kept = Kept::beside(&PgPoolOptions::new().connect_lazy_with(options));
        kept.patience = SHORT;
        let (answer, _) = timeout(LONG, run(&mut kept, "select 1")).await.unwrap();
        assert!(is_timeout(&answer), "{answer:?}");
    }
}
