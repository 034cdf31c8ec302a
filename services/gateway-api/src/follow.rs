//! Waiting for a task to change: hints first, and looks in case one was lost, ever later while nothing happens.

use std::time::Duration;

use cogo_bus_core::Wake;
use cogo_service_runtime::ApiError;
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::Instant,
};
use tracing::debug;
use uuid::Uuid;

use crate::Gateway;

/// First and longest wait for a look without a hint: the price of a lost one, and what a stream costs on which nothing
/// happens.
const LOOK_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// Interest ends by itself if this process does.
const WATCHED_FOR: Duration = Duration::from_secs(60);
const RENEW_AFTER: Duration = Duration::from_secs(20);

/// Interest in one task. Order matters: start, then read the task, then wait; so no change falls in between.
pub(crate) struct Follow<'gateway> {
    gateway: &'gateway Gateway,
    id: Uuid,
    hints: Receiver<Wake>,
    renew_at: Instant,
    look_after: Duration,
}

impl<'gateway> Follow<'gateway> {
    pub(crate) async fn start(gateway: &'gateway Gateway, id: Uuid) -> Result<Self, ApiError> {
        let hints = gateway.parts().wakeups.subscribe();
        gateway.watch(id, WATCHED_FOR).await?;
        Ok(Self { gateway, id, hints, renew_at: Instant::now() + RENEW_AFTER, look_after: LOOK_AFTER.0 })
    }

    /// The task has changed, so it may soon change again.
    pub(crate) fn look_soon(&mut self) {
        self.look_after = LOOK_AFTER.0;
    }

    /// Returns when the task should be read again: on a hint, after a while without one, at `until` or at the stop.
    pub(crate) async fn wait(&mut self, until: Option<Instant>) {
        if Instant::now() >= self.renew_at {
            match self.gateway.watch(self.id, WATCHED_FOR).await {
                Ok(()) => self.renew_at = Instant::now() + RENEW_AFTER,
                Err(error) => debug!(error = error.0.detail, "interest in task not renewed yet"),
            }
        }
        let next_look = Instant::now() + self.look_after;
        self.look_after = (self.look_after * 2).min(LOOK_AFTER.1);
        let latest = until.map_or(next_look, |until| until.min(next_look));
        loop {
            tokio::select! {
                () = self.gateway.parts().stop.cancelled() => return,
                () = tokio::time::sleep_until(latest) => return,
                hint = self.hints.recv() => match hint {
                    Ok(Wake::Task(id)) if id == self.id => break,
                    Ok(Wake::CatchUp) | Err(RecvError::Lagged(_)) => break,
                    Ok(_) => {}
                    Err(RecvError::Closed) => return tokio::time::sleep_until(latest).await,
                },
            }
        }
        self.look_soon();
        // the read that follows answers everything that is known by now
        while self.hints.try_recv().is_ok() {}
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use cogo_bus_core::{Bus, WakeUps};
    use cogo_registry_core::{Registry, SchemaRegistry};
    use cogo_service_runtime::Dependency;
    use cogo_telemetry::BusMetrics;
    use tokio_util::{sync::CancellationToken, task::TaskTracker};

    use super::*;
    use crate::{Parts, Settings, database_guard};

    pub(crate) fn gateway(database: &cogo_test_support::TestDatabase) -> Gateway {
        let parts = Parts {
            bus: Bus::new(database.pool.clone()),
            schemas: SchemaRegistry::new(&Registry::new(database.pool.clone())),
            wakeups: WakeUps::default(),
            metrics: BusMetrics::unread(),
            database: Dependency::alone("database", &database_guard()).unwrap(),
            stop: CancellationToken::new(),
            tracker: TaskTracker::new(),
        };
        Gateway::new(parts, &Settings { api_keys: Vec::new() }).unwrap()
    }

    #[tokio::test]
    async fn looks_without_a_hint_come_ever_later_and_soon_after_one() {
        let database = cogo_test_support::database().await;
        let gateway = Arc::new(gateway(&database));
        let parts = gateway.parts();
        let id = Uuid::now_v7();
        let mut follow = Follow::start(&gateway, id).await.unwrap();
        let mut waits = Vec::new();
        for _ in 0..6 {
            waits.push(follow.look_after.as_secs());
            follow.wait(Some(Instant::now())).await;
        }
        assert_eq!(waits, [1, 2, 4, 8, 15, 15]);
        follow.look_soon();
        assert_eq!(follow.look_after, LOOK_AFTER.0, "after a change");

        // so late that only a hint ends the wait
        follow.look_after = WATCHED_FOR * 60;
        parts.tracker.spawn(parts.wakeups.clone().run(database.pool.clone(), parts.stop.clone()));
        follow.wait(None).await;
        assert_eq!(follow.look_after, LOOK_AFTER.0, "after the subscription was opened");
        follow.look_after = WATCHED_FOR * 60;
        let hint = sqlx::query("select pg_notify('bus_task', $1)").bind(id.to_string());
        tokio::join!(follow.wait(None), async { hint.execute(&database.pool).await.unwrap() });
        assert_eq!(follow.look_after, LOOK_AFTER.0, "after a hint");
        parts.stop.cancel();
        parts.tracker.close();
        parts.tracker.wait().await;
    }
}
