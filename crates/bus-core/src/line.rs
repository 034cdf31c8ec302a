//! Lines: connections kept beside the pool for the statements of which the way of a message is made.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use cogo_db::TRUSTED_REST;
use sqlx::{Connection, PgConnection, PgPool, Postgres, pool::PoolConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a process does at once all the time: claim and end, or ask and look for the reply.
const MOST: usize = 2;
/// How long a line that rested may take to say that it lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// A pool asks every connection that comes back whether it lives, and lends it to nobody meanwhile: a second exchange with
/// the server for each statement, in the way of the next. Lines are given back unasked; when all are lent, the pool lends.
#[derive(Debug, Clone)]
pub(crate) struct Lines {
    pool: PgPool,
    free: Arc<Semaphore>,
    resting: Arc<Mutex<Vec<(PgConnection, Instant)>>>,
}

/// A connection that is lent for one statement. Dropped instead of given back, as by a caller that stops waiting, it is
/// closed: nobody can know what still comes over it.
#[derive(Debug)]
pub(crate) enum Line {
    Kept { connection: PgConnection, home: Lines, _permit: OwnedSemaphorePermit },
    Pooled(PoolConnection<Postgres>),
}

impl Lines {
    pub(crate) fn beside(pool: &PgPool) -> Self {
        Self { pool: pool.clone(), free: Arc::new(Semaphore::new(MOST)), resting: Arc::default() }
    }

    /// Lends a line, which is asked whether it lives if it has rested for long.
    pub(crate) async fn lend(&self) -> Result<Line, sqlx::Error> {
        let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() else {
            return Ok(Line::Pooled(self.pool.acquire().await?));
        };
        let rested = if self.pool.is_closed() { None } else { self.lock().pop() };
        let connection = match rested {
            Some((connection, since)) if since.elapsed() <= TRUSTED_REST => Some(connection),
            Some((mut connection, _)) => {
                let answer = tokio::time::timeout(SIGN_OF_LIFE, connection.ping()).await;
                answer.is_ok_and(|lives| lives.is_ok()).then_some(connection)
            }
            None => None,
        };
        let connection = match connection {
            Some(connection) => connection,
            // no longer counted by the pool
            None => self.pool.acquire().await?.detach(),
        };
        Ok(Line::Kept { connection, home: self.clone(), _permit: permit })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(PgConnection, Instant)>> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// Gives the line back if its answer shows that it can be used again.
    pub(crate) fn back<T>(self, answer: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        if let Self::Kept { connection, home, .. } = self
            && is_sound(&answer)
        {
            home.lock().push((connection, Instant::now()));
        }
        answer
    }
}

/// Transactions of this connection, or of its server, may not write.
const READ_ONLY: &str = "25006";

/// Whether an answer leaves its connection as it was. A server that ends says so as an error of the statement, and one that
/// takes no writes may be the wrong one.
fn is_sound<T>(answer: &Result<T, sqlx::Error>) -> bool {
    match answer {
        Ok(_) => true,
        Err(sqlx::Error::Database(error)) => {
            error.code().is_some_and(|code| !code.starts_with("57") && !code.starts_with("08") && code != READ_ONLY)
        }
        Err(_) => false,
    }
}

impl Deref for Line {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match self {
            Self::Kept { connection, .. } => connection,
            Self::Pooled(connection) => connection,
        }
    }
}

impl DerefMut for Line {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match self {
            Self::Kept { connection, .. } => connection,
            Self::Pooled(connection) => connection,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn backend(line: &mut Line) -> i32 {
        sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut **line).await.unwrap()
    }

    #[tokio::test]
    async fn a_line_serves_statement_after_statement_and_more_than_two_come_from_the_pool() {
        let database = cogo_test_support::database().await;
        let lines = Lines::beside(&database.pool);
        let mut first = lines.lend().await.unwrap();
        let pid = backend(&mut first).await;
        first.back(Ok(())).unwrap();
        let (mut first, mut second) = (lines.lend().await.unwrap(), lines.lend().await.unwrap());
        assert_eq!(backend(&mut first).await, pid);
        assert_ne!(backend(&mut second).await, pid);
        assert!(matches!(lines.lend().await.unwrap(), Line::Pooled(_)));
        drop(second);
        assert!(matches!(lines.lend().await.unwrap(), Line::Kept { .. }));
    }

    #[tokio::test]
    async fn a_refusal_keeps_the_line_and_a_break_or_a_drop_does_not() {
        let database = cogo_test_support::database().await;
        let lines = Lines::beside(&database.pool);
        let mut line = lines.lend().await.unwrap();
        let pid = backend(&mut line).await;
        let refused = sqlx::query("select 1 / 0").execute(&mut *line).await;
        assert!(line.back(refused).is_err());
        let mut line = lines.lend().await.unwrap();
        assert_eq!(backend(&mut line).await, pid);
        sqlx::query("select pg_terminate_backend($1)").bind(pid).execute(&database.pool).await.unwrap();
        let broken = sqlx::query("select 1").execute(&mut *line).await;
        assert!(line.back(broken).is_err());
        let mut line = lines.lend().await.unwrap();
        let next = backend(&mut line).await;
        assert_ne!(next, pid);
        drop(line);
        assert_ne!(backend(&mut lines.lend().await.unwrap()).await, next);
    }

    #[tokio::test]
    async fn a_line_that_died_at_rest_is_noticed_before_it_is_used() {
        let database = cogo_test_support::database().await;
        let lines = Lines::beside(&database.pool);
        let mut line = lines.lend().await.unwrap();
        let pid = backend(&mut line).await;
        line.back(Ok(())).unwrap();
        sqlx::query("select pg_terminate_backend($1)").bind(pid).execute(&database.pool).await.unwrap();
        tokio::time::sleep(TRUSTED_REST * 2).await;
        assert_ne!(backend(&mut lines.lend().await.unwrap()).await, pid);
    }
}
