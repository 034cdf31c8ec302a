//! The two steps of stopping: soft (claim nothing new), then hard (drop what is left).

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Both tokens; the soft one ends by itself when the hard one fires.
#[derive(Debug, Clone)]
pub struct Stop {
    hard: CancellationToken,
    soft: CancellationToken,
}

impl Default for Stop {
    fn default() -> Self {
        let hard = CancellationToken::new();
        Self { soft: hard.child_token(), hard }
    }
}

impl Stop {
    /// Fires when nothing new may be started.
    #[must_use]
    pub fn soft(&self) -> &CancellationToken {
        &self.soft
    }

    /// Fires when what still runs must be dropped.
    #[must_use]
    pub fn hard(&self) -> &CancellationToken {
        &self.hard
    }

    /// Waits for SIGTERM or SIGINT, then stops softly; a second signal or the end of `grace` stops hard.
    pub(crate) async fn on_signals(self, grace: Duration) -> std::io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => info!("stopping on SIGTERM"),
            _ = interrupt.recv() => info!("stopping on SIGINT"),
            () = self.soft.cancelled() => info!("stopping"),
        }
        self.soft.cancel();
        tokio::select! {
            _ = terminate.recv() => warn!("second signal, dropping what is left"),
            _ = interrupt.recv() => warn!("second signal, dropping what is left"),
            () = tokio::time::sleep(grace) => warn!("grace period is over, dropping what is left"),
            () = self.hard.cancelled() => {}
        }
        self.hard.cancel();
        Ok(())
    }
}
