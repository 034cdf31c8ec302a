//! Waiting for a task to change: hints first, a look every second in case one was lost.

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

/// The price of a lost hint.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Interest ends by itself if this process does.
const WATCHED_FOR: Duration = Duration::from_secs(60);
const RENEW_AFTER: Duration = Duration::from_secs(20);

/// Interest in one task. Order matters: start, then read the task, then wait; so no change falls in between.
pub(crate) struct Follow<'gateway> {
    gateway: &'gateway Gateway,
    id: Uuid,
    hints: Receiver<Wake>,
    renew_at: Instant,
}

impl<'gateway> Follow<'gateway> {
    pub(crate) async fn start(gateway: &'gateway Gateway, id: Uuid) -> Result<Self, ApiError> {
        let hints = gateway.parts().wakeups.subscribe();
        gateway.watch(id, WATCHED_FOR).await?;
        Ok(Self { gateway, id, hints, renew_at: Instant::now() + RENEW_AFTER })
    }

    /// Returns when the task should be read again: on a hint, after a second, at `until` or at the stop.
    pub(crate) async fn wait(&mut self, until: Option<Instant>) {
        if Instant::now() >= self.renew_at {
            match self.gateway.watch(self.id, WATCHED_FOR).await {
                Ok(()) => self.renew_at = Instant::now() + RENEW_AFTER,
                Err(error) => debug!(error = error.0.detail, "interest in task not renewed yet"),
            }
        }
        let next_look = Instant::now() + LOOK_EVERY;
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
        // the read that follows answers everything that is known by now
        while self.hints.try_recv().is_ok() {}
    }
}
