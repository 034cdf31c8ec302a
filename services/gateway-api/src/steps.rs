//! A task as a stream: one snapshot, then each step that changed, then the end.

use std::{collections::HashMap, sync::Arc};

use cogo_contracts::{Step, Task, TaskStatus};
use cogo_service_runtime::ApiError;
use serde::Serialize;
use tokio::sync::mpsc;
use tracing::warn;
use uuid::Uuid;

use crate::{Gateway, access::Access, follow::Follow, tasks::Ending};

/// Frames held for a slow reader; the next read of the task waits for room.
pub(crate) const BACKLOG: usize = 16;

/// A frame of a stream; its JSON says in `type` which one it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Frame {
    /// The task with all its steps; always the first, also after a reconnect.
    Snapshot {
        /// The task.
        task: Box<Task>,
    },
    /// A step that is new or changed.
    Step {
        /// Where the task stands now.
        task_status: TaskStatus,
        /// The step.
        step: Box<Step>,
    },
    /// The task has ended; always the last.
    End(Ending),
}

impl Frame {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Snapshot { .. } => "snapshot",
            Self::Step { .. } => "step",
            Self::End(_) => "end",
        }
    }

    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).expect("frames hold strings, numbers and JSON values only")
    }
}

/// Sends the frames of a task until its end, the reader's end or the stop.
pub(crate) async fn produce(gateway: Arc<Gateway>, id: Uuid, access: Access, out: mpsc::Sender<Frame>) {
    tokio::select! {
        () = out.closed() => {}
        () = gateway.parts().stop.cancelled() => {}
        ended = frames(&gateway, id, &access, &out) => {
            if let Err(error) = ended {
                warn!(task.id = %id, error = error.0.detail, "stream of task {id} ended early");
            }
        }
    }
}

async fn frames(gateway: &Gateway, id: Uuid, access: &Access, out: &mpsc::Sender<Frame>) -> Result<(), ApiError> {
    let mut follow = Follow::start(gateway, id).await?;
    let mut seen = Seen::default();
    loop {
        match gateway.task(id, access).await {
            Ok(task) => {
                let ended = task.status.is_terminal();
                for frame in seen.changes(task) {
                    if out.send(frame).await.is_err() {
                        return Ok(());
                    }
                }
                if ended {
                    return Ok(());
                }
            }
            // the reader stays connected while the database is away
            Err(error) if error.0.status == 503 => {}
            Err(error) => return Err(error),
        }
        follow.wait(None).await;
    }
}

/// What the reader has been told.
#[derive(Default)]
struct Seen {
    steps: Option<HashMap<Uuid, Step>>,
}

impl Seen {
    /// What the reader must be told, in order.
    fn changes(&mut self, task: Task) -> Vec<Frame> {
        let end = task.status.is_terminal().then(|| Frame::End(Ending::from(&task)));
        let mut frames = Vec::new();
        match &mut self.steps {
            None => {
                self.steps = Some(task.steps.iter().map(|step| (step.id, step.clone())).collect());
                frames.push(Frame::Snapshot { task: Box::new(task) });
            }
            Some(known) => {
                for step in task.steps {
                    if known.get(&step.id) != Some(&step) {
                        known.insert(step.id, step.clone());
                        frames.push(Frame::Step { task_status: task.status, step: Box::new(step) });
                    }
                }
            }
        }
        frames.extend(end);
        frames
    }
}
