//! A task as a stream: one snapshot, then each step that changed, then the end.

use std::{collections::HashMap, sync::Arc};

use cogo_bus_core::Partial;
use cogo_contracts::{Step, Task, TaskStatus};
use cogo_service_runtime::ApiError;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tracing::warn;
use uuid::Uuid;

use crate::{
    Gateway,
    access::Access,
    follow::Follow,
    partials::{Cursor, Partials},
    tasks::Ending,
};

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
    /// A part of a step's result, before the step is done; when its attempt changes, the parts before are void.
    Partial {
        /// The step.
        message_id: Uuid,
        /// The attempt that it belongs to.
        attempt: i16,
        /// Place within the attempt, from 1.
        seq: i32,
        /// The part.
        content: Value,
        /// From where a reader that was cut off goes on.
        #[serde(skip)]
        cursor: String,
    },
    /// The task has ended; always the last.
    End(Ending),
}

impl Frame {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Snapshot { .. } => "snapshot",
            Self::Step { .. } => "step",
            Self::Partial { .. } => "partial",
            Self::End(_) => "end",
        }
    }

    /// Where a reader goes on that has had this frame; other frames come again as a snapshot.
    pub(crate) fn cursor(&self) -> Option<&str> {
        match self {
            Self::Partial { cursor, .. } => Some(cursor),
            _ => None,
        }
    }

    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).expect("frames hold strings, numbers and JSON values only")
    }
}

impl From<(Partial, String)> for Frame {
    fn from((partial, cursor): (Partial, String)) -> Self {
        let Partial { message_id, attempt, seq, content, .. } = partial;
        Self::Partial { message_id, attempt, seq, content, cursor }
    }
}

/// Sends the frames of a task, its parts from `after` on, until its end, the reader's end or the stop.
pub(crate) async fn produce(gateway: Arc<Gateway>, id: Uuid, access: Access, after: Cursor, out: mpsc::Sender<Frame>) {
    tokio::select! {
        () = out.closed() => {}
        () = gateway.parts().stop.cancelled() => {}
        ended = frames(&gateway, id, &access, after, &out) => {
            if let Err(error) = ended {
                warn!(task.id = %id, error = error.0.detail, "stream of task {id} ended early");
            }
        }
    }
}

async fn frames(
    gateway: &Gateway,
    id: Uuid,
    access: &Access,
    after: Cursor,
    out: &mpsc::Sender<Frame>,
) -> Result<(), ApiError> {
    let mut follow = Follow::start(gateway, id).await?;
    let (mut seen, mut partials) = (Seen::default(), Partials::after(after));
    loop {
        match look(gateway, id, access, (&mut seen, &mut partials), out).await {
            Ok(Look::Over) => return Ok(()),
            Ok(Look::News) => follow.look_soon(),
            Ok(Look::Quiet) => {}
            // the reader stays connected while the database is away
            Err(error) if error.0.status == 503 => {}
            Err(error) => return Err(error),
        }
        follow.wait(None).await;
    }
}

#[derive(Debug, PartialEq)]
enum Look {
    /// Something was new, and more is to come.
    News,
    Quiet,
    /// The task or its reader has ended.
    Over,
}

/// Sends what is new: steps, then parts, then the end.
async fn look(
    gateway: &Gateway,
    id: Uuid,
    access: &Access,
    (seen, partials): (&mut Seen, &mut Partials),
    out: &mpsc::Sender<Frame>,
) -> Result<Look, ApiError> {
    let task = gateway.task(id, access).await?;
    let changes = seen.changes(&task);
    let mut outcome = if changes.is_empty() { Look::Quiet } else { Look::News };
    for frame in changes {
        if out.send(frame).await.is_err() {
            return Ok(Look::Over);
        }
    }
    loop {
        // read after the task, so that those of an ended task are all there
        let parts = partials.next(gateway, &task).await?;
        if parts.is_empty() {
            break;
        }
        outcome = Look::News;
        for part in parts {
            if out.send(part.into()).await.is_err() {
                return Ok(Look::Over);
            }
        }
    }
    if !task.status.is_terminal() {
        return Ok(outcome);
    }
    // a reader that left does not miss it
    let _ = out.send(Frame::End(Ending::from(&task))).await;
    Ok(Look::Over)
}

/// What the reader has been told.
#[derive(Default)]
struct Seen {
    steps: Option<HashMap<Uuid, Step>>,
}

impl Seen {
    /// What the reader must be told, in order.
    fn changes(&mut self, task: &Task) -> Vec<Frame> {
        let mut frames = Vec::new();
        match &mut self.steps {
            None => {
                self.steps = Some(task.steps.iter().map(|step| (step.id, step.clone())).collect());
                frames.push(Frame::Snapshot { task: Box::new(task.clone()) });
            }
            Some(known) => {
                for step in &task.steps {
                    if known.get(&step.id) != Some(step) {
                        known.insert(step.id, step.clone());
                        frames.push(Frame::Step { task_status: task.status, step: Box::new(step.clone()) });
                    }
                }
            }
        }
        frames
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cogo_bus_core::{ClaimRequest, Completion};
    use cogo_contracts::{NewMessage, Tenant, routes};
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn look_tells_whether_anything_was_new() {
        let database = cogo_test_support::database().await;
        let gateway = crate::follow::tests::gateway(&database);
        let bus = &gateway.parts().bus;
        let (out, mut frames) = mpsc::channel(BACKLOG);
        let tenant = Tenant::new("acme").unwrap();
        let id = bus.enqueue(&NewMessage::new(routes::CHAT, Some(tenant), json!({}))).await.unwrap().id;
        let (mut seen, mut partials) = (Seen::default(), Partials::after(Cursor::default()));
        let mut look =
            async || look(&gateway, id, &Access::AllTenants, (&mut seen, &mut partials), &out).await.unwrap();
        assert_eq!((look().await, look().await), (Look::News, Look::Quiet), "the task, and nothing else");
        let lease = Duration::from_secs(60);
        let request = ClaimRequest { route: &routes::CHAT, holder: "w", instance: None, max_messages: 1, lease };
        let claimed = bus.claim(&request).await.unwrap().remove(0);
        assert_eq!((look().await, look().await), (Look::News, Look::Quiet), "a step");
        for seq in 1..=2 {
            bus.emit(&claimed.fence(), "w", seq, &["1".to_owned()], lease).await.unwrap();
            assert_eq!((look().await, look().await), (Look::News, Look::Quiet), "part {seq}");
        }
        assert!(bus.complete(&claimed.fence(), "w", &Completion::default()).await.unwrap());
        assert_eq!(look().await, Look::Over);
        let mut last = frames.try_recv().unwrap();
        while let Ok(frame) = frames.try_recv() {
            last = frame;
        }
        assert_eq!(last.name(), "end");
    }
}
