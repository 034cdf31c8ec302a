//! The one realtime subscription of a process: hints that something may have changed, never the change itself.

use std::time::Duration;

use sqlx::{PgPool, postgres::PgListener};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

/// First and longest pause before the subscription is opened again.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Hints held for a slow receiver; one that lags behind is told to look at everything.
const BACKLOG: usize = 1024;

/// What the subscription hears of; the registry too, so that a process that follows it needs no second one.
const CHANNELS: [&str; 5] = ["bus_ready", "bus_task", "bus_cancel", "bus_broadcast", "registry_changed"];

/// A hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wake {
    /// A route (`service/role/shard`) has something to claim.
    Ready(String),
    /// A step of this task changed.
    Task(Uuid),
    /// This message was taken back.
    Cancelled(Uuid),
    /// A topic has a broadcast.
    Broadcast(String),
    /// The registry has this version now.
    Registry(i64),
    /// The subscription was (re)opened: anything may have happened meanwhile.
    CatchUp,
}

/// Hands out the hints of one subscription to any part of the process.
#[derive(Debug, Clone)]
pub struct WakeUps {
    sender: broadcast::Sender<Wake>,
}

impl Default for WakeUps {
    fn default() -> Self {
        Self { sender: broadcast::channel(BACKLOG).0 }
    }
}

impl WakeUps {
    /// Hints from now on. A receiver that lags gets [`broadcast::error::RecvError::Lagged`]: treat it as a catch-up.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Wake> {
        self.sender.subscribe()
    }

    /// Keeps the subscription open until `stop`; reconnects with backoff for ever.
    pub async fn run(self, pool: PgPool, stop: CancellationToken) {
        let mut pause = RECONNECT.0;
        loop {
            let broken = tokio::select! {
                () = stop.cancelled() => return,
                broken = self.listen(&pool, &mut pause) => broken,
            };
            warn!(error = %broken, retry_ms = pause.as_millis(), "realtime subscription broke, polling meanwhile");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(RECONNECT.1);
        }
    }

    async fn listen(&self, pool: &PgPool, pause: &mut Duration) -> sqlx::Error {
        match self.listen_until_broken(pool, pause).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn listen_until_broken(
        &self,
        pool: &PgPool,
        pause: &mut Duration,
    ) -> Result<std::convert::Infallible, sqlx::Error> {
        let mut listener = PgListener::connect_with(pool).await?;
        // a silent reconnect would hide the gap that a catch-up must cover
        listener.eager_reconnect(false);
        listener.listen_all(CHANNELS).await?;
        *pause = RECONNECT.0;
        info!("realtime subscription open");
        self.send(Wake::CatchUp);
        loop {
            let Some(notification) = listener.try_recv().await? else {
                return Err(sqlx::Error::PoolClosed);
            };
            match read(notification.channel(), notification.payload()) {
                Some(wake) => self.send(wake),
                None => warn!(channel = notification.channel(), "ignored a hint that cannot be read"),
            }
        }
    }

    fn send(&self, wake: Wake) {
        // an error only means that nobody is listening right now
        let _ = self.sender.send(wake);
    }
}

fn read(channel: &str, payload: &str) -> Option<Wake> {
    match channel {
        "bus_ready" => Some(Wake::Ready(payload.to_owned())),
        "bus_task" => payload.parse().ok().map(Wake::Task),
        "bus_cancel" => payload.parse().ok().map(Wake::Cancelled),
        "bus_broadcast" => Some(Wake::Broadcast(payload.to_owned())),
        "registry_changed" => payload.parse().ok().map(Wake::Registry),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_read_and_rubbish_is_not() {
        assert_eq!(read("bus_ready", "rag/embed/0"), Some(Wake::Ready("rag/embed/0".to_owned())));
        assert_eq!(read("registry_changed", "17"), Some(Wake::Registry(17)));
        assert_eq!(read("bus_task", "not an id"), None);
        assert_eq!(read("other", ""), None);
    }
}
