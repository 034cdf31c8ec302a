//! Gathers completions: whatever has come in while one batch was being written is the next batch. An idle worker
//! waits for nothing, a busy one pays one commit for many messages.

use std::{collections::HashSet, time::Duration};

use cogo_bus_core::{Bus, Completion, Error, Fence};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;
use tracing::debug;
use uuid::Uuid;

use crate::passing::{in_time, is_away, silent};

/// Most completions of one statement.
const BATCH: usize = 500;

/// A completion on its way to the database.
struct Order {
    fence: Fence,
    holder: String,
    completion: Completion,
    recorded: oneshot::Sender<Result<bool, Error>>,
}

/// The way in; back-pressure is the bounded channel.
#[derive(Clone)]
pub(crate) struct Settler {
    bus: Bus,
    orders: mpsc::Sender<Order>,
}

impl Settler {
    /// Starts gathering, with this patience for each answer of the database; it ends by itself once the last handle is gone and everything is written.
    pub(crate) fn start(bus: Bus, patience: Duration, tracker: &TaskTracker) -> Self {
        let (orders, incoming) = mpsc::channel(2 * BATCH);
        tracker.spawn(gather(bus.clone(), patience, incoming));
        Self { bus, orders }
    }

    /// Records a completion that sends nothing; answers whether the claim was still the holder's.
    pub(crate) async fn complete(&self, fence: &Fence, holder: &str, completion: &Completion) -> Result<bool, Error> {
        if !completion.is_plain() {
            return self.bus.complete(fence, holder, completion).await;
        }
        let (recorded, answer) = oneshot::channel();
        let (fence_of_order, holder_of_order) = (fence.clone(), holder.to_owned());
        let order = Order { fence: fence_of_order, holder: holder_of_order, completion: completion.clone(), recorded };
        if self.orders.send(order).await.is_ok()
            && let Ok(answer) = answer.await
        {
            return answer;
        }
        // the gathering task is gone, as at the very end of a process
        self.bus.complete(fence, holder, completion).await
    }
}

async fn gather(bus: Bus, patience: Duration, mut incoming: mpsc::Receiver<Order>) {
    let mut orders = Vec::with_capacity(BATCH);
    while incoming.recv_many(&mut orders, BATCH).await > 0 {
        write(&bus, patience, std::mem::take(&mut orders)).await;
    }
}

/// Writes one batch for each holder among the orders; there is more than one only around a rejoining.
async fn write(bus: &Bus, patience: Duration, mut orders: Vec<Order>) {
    while let Some(holder) = orders.first().map(|order| order.holder.clone()) {
        let (batch, others) = orders.into_iter().partition(|order| order.holder == holder);
        orders = others;
        write_batch(bus, patience, &holder, batch).await;
    }
}

async fn write_batch(bus: &Bus, patience: Duration, holder: &str, batch: Vec<Order>) {
    if batch.len() > 1 {
        let ended: Vec<(Fence, Completion)> =
            batch.iter().map(|order| (order.fence.clone(), order.completion.clone())).collect();
        match in_time(patience, bus.complete_many(&ended, holder)).await {
            Ok(recorded) => {
                let recorded: HashSet<Uuid> = recorded.into_iter().collect();
                for order in batch {
                    let ours = recorded.contains(&order.fence.id);
                    // an attempt that no longer waits was dropped; its message is recorded all the same
                    let _ = order.recorded.send(Ok(ours));
                }
                return;
            }
            Err(Error::Database(error)) if is_away(&error) => {
                debug!(%error, size = batch.len(), "batch of completions not written, the database is away");
                return refuse_all(batch);
            }
            // one of them is refused: each shall learn its own answer
            Err(error) => debug!(%error, size = batch.len(), "batch of completions not written, writing one by one"),
        }
    }
    let mut batch = batch.into_iter();
    while let Some(order) = batch.next() {
        let answer = in_time(patience, bus.complete(&order.fence, holder, &order.completion)).await;
        let away = matches!(&answer, Err(Error::Database(error)) if is_away(error));
        let _ = order.recorded.send(answer);
        if away {
            // each of the others would wait just as long
            return refuse_all(batch);
        }
    }
}

fn refuse_all(batch: impl IntoIterator<Item = Order>) {
    for order in batch {
        let _ = order.recorded.send(Err(silent()));
    }
}
