//! A sandbox worker: commands in, events out, over a pair of channels.

use std::collections::HashMap;

use cogo_contracts::SandboxEvent;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use crate::{
    command,
    protocol::{ToManager, ToWorker},
};

/// Events of one command that wait to be sent.
const BACKLOG: usize = 16;

/// How a worker runs commands.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Commands that it takes at once.
    pub slots: u16,
    /// `PATH` of its commands, the only variable that they get.
    pub command_path: String,
}

/// Works until `from_manager` ends or `to_manager` is closed; then kills what still runs.
pub async fn serve(
    settings: Settings,
    mut from_manager: mpsc::UnboundedReceiver<ToWorker>,
    to_manager: mpsc::Sender<ToManager>,
) {
    let slots = settings.slots.max(1);
    if to_manager.send(ToManager::Hello { slots }).await.is_err() {
        return;
    }
    // dropped at the end of this function, which drops the commands and so kills their groups
    let mut commands = JoinSet::new();
    let mut stops: HashMap<Uuid, CancellationToken> = HashMap::new();
    loop {
        tokio::select! {
            () = to_manager.closed() => return,
            frame = from_manager.recv() => match frame {
                None => return,
                Some(ToWorker::Stop { job }) => if let Some(stop) = stops.get(&job) {
                    stop.cancel();
                },
                Some(ToWorker::Run { job, request }) => {
                    let stop = CancellationToken::new();
                    stops.insert(job, stop.clone());
                    let (path, out) = (settings.command_path.clone(), to_manager.clone());
                    commands.spawn(async move {
                        let (events, told) = mpsc::channel(BACKLOG);
                        tokio::join!(command::run(request, &path, stop, events), forward(job, told, out));
                        job
                    });
                }
            },
            Some(ended) = commands.join_next() => match ended {
                Ok(job) => {
                    stops.remove(&job);
                }
                Err(error) => warn!(%error, "command task ended badly"),
            },
        }
    }
}

async fn forward(job: Uuid, mut events: mpsc::Receiver<SandboxEvent>, out: mpsc::Sender<ToManager>) {
    while let Some(event) = events.recv().await {
        if out.send(ToManager::Event { job, event }).await.is_err() {
            return;
        }
    }
}
