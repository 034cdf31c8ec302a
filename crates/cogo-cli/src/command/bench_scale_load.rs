//! The load of `cogo bench scale`: messages at an even rate, each of which keeps a worker busy for a while.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use cogo_bus_core::Bus;
use cogo_contracts::{Isolation, NewMessage, SandboxRequest, Tenant, routes};
use serde::Serialize;
use uuid::Uuid;

use crate::failure::Failure;

/// Time between two sendings; what fell due meanwhile goes in one statement.
const SEND_EVERY: Duration = Duration::from_millis(100);
/// How much longer than its work a command may take on a busy machine.
const WORK_LIMIT_MS: u64 = 60_000;

/// What arrives when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Wave {
    pub(crate) periods: u16,
    pub(crate) half_s: u16,
    pub(crate) low_per_s: u16,
    pub(crate) high_per_s: u16,
    /// Time of work on each message.
    pub(crate) work_ms: u32,
}

/// Sends, and remembers what.
pub(crate) struct Load {
    bus: Bus,
    wave: Wave,
    sent: RefCell<Vec<Uuid>>,
}

impl Load {
    pub(crate) fn new(bus: Bus, wave: Wave) -> Self {
        Self { bus, wave, sent: RefCell::default() }
    }

    /// The lower rate for so long.
    pub(crate) async fn low(&self, during: Duration) -> Result<(), Failure> {
        self.send(self.wave.low_per_s, during).await
    }

    /// The upper rate for so long.
    pub(crate) async fn high(&self, during: Duration) -> Result<(), Failure> {
        self.send(self.wave.high_per_s, during).await
    }

    pub(crate) fn into_sent(self) -> Vec<Uuid> {
        self.sent.into_inner()
    }

    async fn send(&self, per_s: u16, during: Duration) -> Result<(), Failure> {
        let begun = Instant::now();
        let mut sent: usize = 0;
        loop {
            let elapsed = begun.elapsed().min(during);
            let due = due_after(elapsed, per_s);
            if due > sent {
                let batch: Vec<NewMessage> = (sent..due).map(|_| self.message()).collect();
                let enqueued = self.bus.enqueue_many(&batch).await?;
                self.sent.borrow_mut().extend(enqueued.iter().map(|enqueued| enqueued.id));
                sent = due;
            }
            if elapsed >= during {
                return Ok(());
            }
            tokio::time::sleep(SEND_EVERY).await;
        }
    }

    /// A command that sleeps: the time of work is that of a worker that waits for something, and costs no processor.
    fn message(&self) -> NewMessage {
        let request = SandboxRequest {
            command: vec!["sleep".to_owned(), format!("{:.3}", f64::from(self.wave.work_ms) / 1000.0)],
            limit_ms: WORK_LIMIT_MS + u64::from(self.wave.work_ms),
            stdin: String::new(),
            isolation: Isolation::None,
        };
        let payload = serde_json::to_value(request).unwrap_or_default();
        NewMessage::new(routes::SANDBOX, Tenant::new("bench").ok(), payload)
    }
}

/// How many messages have fallen due; the first at once.
fn due_after(elapsed: Duration, per_s: u16) -> usize {
    let due = elapsed.as_millis().saturating_mul(u128::from(per_s)).div_ceil(1000);
    usize::try_from(due).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_fall_due_evenly() {
        let due = |ms: u64, per_s: u16| due_after(Duration::from_millis(ms), per_s);
        assert_eq!((due(0, 20), due(1, 20), due(50, 20), due(51, 20), due(1000, 20)), (0, 1, 1, 2, 20));
        assert_eq!((due(10_000, 0), due(10_000, 1), due(90_000, 1000)), (0, 10, 90_000));
    }
}
