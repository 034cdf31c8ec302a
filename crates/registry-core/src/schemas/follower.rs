//! The task that keeps the schemas in memory current.

use std::{convert::Infallible, time::Duration};

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::cache::SchemaRegistry;
use crate::{
    registry::Error,
    standing::{Heard, Member},
};

/// The channel on which each change of schemas is told.
const CHANNEL: &str = "registry_schemas";
/// Without beats it is looked this often.
const CONFIRM_EVERY: Duration = Duration::from_secs(5);
/// First and longest pause before a broken connection is opened again.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Follows the schemas: by the count that beats tell of and, once there are any, by notifications on a connection of its
/// own. A fleet without schemas opens none.
#[derive(Debug)]
pub struct SchemaFollower {
    schemas: SchemaRegistry,
    heard: Option<watch::Receiver<Option<Heard>>>,
}

impl SchemaFollower {
    /// Prepares the task.
    #[must_use]
    pub fn new(schemas: &SchemaRegistry) -> Self {
        Self { schemas: schemas.clone(), heard: None }
    }

    /// Also heeds the count that each answer to a beat of this member carries.
    #[must_use]
    pub fn fed_by(mut self, member: &Member) -> Self {
        self.heard = Some(member.heard());
        self
    }

    /// Follows until the token is cancelled. No failure of the database ends it.
    pub async fn run(mut self, token: CancellationToken) {
        let mut pause = RECONNECT.0;
        loop {
            let broken = tokio::select! {
                () = token.cancelled() => return,
                followed = self.follow(&mut pause) => match followed {
                    Ok(never) => match never {},
                    Err(broken) => broken,
                },
            };
            warn!(error = %broken, retry_ms = pause.as_millis(), "following the schemas broke off");
            tokio::select! {
                () = token.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(RECONNECT.1);
        }
    }

    async fn follow(&mut self, pause: &mut Duration) -> Result<Infallible, Error> {
        self.schemas.refresh().await?;
        while self.schemas.change() == Some(0) {
            self.until_due().await;
            self.schemas.refresh().await?;
        }
        let mut listener = self.connect().await?;
        // listening first: what changes from here on is told, what changed before is read now
        self.schemas.refresh().await?;
        *pause = RECONNECT.0;
        debug!(change = self.schemas.change(), "following the schemas");
        loop {
            tokio::select! {
                told = listener.try_recv() => {
                    if told.map_err(Error::Database)?.is_none() {
                        return Err(Error::Database(sqlx::Error::PoolClosed));
                    }
                }
                () = self.until_due() => {}
            }
            self.schemas.refresh().await?;
        }
    }

    /// Waits until a beat tells of a change, or until it is time to look.
    async fn until_due(&mut self) {
        let Some(heard) = &mut self.heard else {
            tokio::time::sleep(CONFIRM_EVERY).await;
            return;
        };
        while heard.changed().await.is_ok() {
            let told = *heard.borrow_and_update();
            if let Some(Heard { schema_version: Some(change), asked, .. }) = told
                && !self.schemas.heard_of(change, asked)
            {
                return;
            }
        }
        // the member is gone; so will the process be
        self.heard = None;
        tokio::time::sleep(CONFIRM_EVERY).await;
    }

    async fn connect(&self) -> Result<PgListener, Error> {
        let one = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(CONFIRM_EVERY)
            .connect_lazy_with(self.schemas.0.pool.connect_options().as_ref().clone());
        let mut listener = PgListener::connect_with(&one).await.map_err(Error::Database)?;
        // a silent reconnect would hide the gap that has to be caught up
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await.map_err(Error::Database)?;
        Ok(listener)
    }
}
