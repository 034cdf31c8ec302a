//! What is known of running jobs: their output so far, for those who look on and for the reply.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use cogo_contracts::SandboxEvent;
use tokio::sync::watch;
use uuid::Uuid;

use crate::{protocol::OUTPUT_CAP, text::storable};

/// The jobs of this process by the message that asked for them.
#[derive(Default)]
pub(crate) struct Jobs {
    running: Mutex<HashMap<Uuid, Arc<Log>>>,
}

/// The events of one job, in order.
pub(crate) struct Log {
    events: Mutex<Vec<SandboxEvent>>,
    count: watch::Sender<usize>,
}

/// A job on the list; when it is dropped without an end, the job has ended as failed.
pub(crate) struct Listed {
    jobs: Arc<Jobs>,
    message: Uuid,
    log: Arc<Log>,
}

impl Jobs {
    pub(crate) fn list(self: &Arc<Self>, message: Uuid) -> Listed {
        let log = Arc::new(Log { events: Mutex::default(), count: watch::Sender::new(0) });
        self.lock().insert(message, Arc::clone(&log));
        Listed { jobs: Arc::clone(self), message, log }
    }

    pub(crate) fn find(&self, message: Uuid) -> Option<Arc<Log>> {
        self.lock().get(&message).cloned()
    }

    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Arc<Log>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    /// Adds an event; nothing follows a terminal one.
    pub(crate) fn push(&self, event: SandboxEvent) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.last().is_some_and(SandboxEvent::is_terminal) {
            return;
        }
        events.push(event);
        let count = events.len();
        drop(events);
        self.count.send_replace(count);
    }

    /// The event at this place once it is there.
    pub(crate) async fn at(&self, place: usize) -> Option<SandboxEvent> {
        let mut count = self.count.subscribe();
        count.wait_for(|&count| count > place).await.ok()?;
        self.events.lock().unwrap_or_else(PoisonError::into_inner).get(place).cloned()
    }
}

impl Listed {
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.log.push(SandboxEvent::Failed { reason: "The job was given up before its end".to_owned() });
        let mut running = self.jobs.lock();
        // a later attempt at the same message has a log of its own
        if running.get(&self.message).is_some_and(|log| Arc::ptr_eq(log, &self.log)) {
            running.remove(&self.message);
        }
    }
}

/// The output of a job, cut at the cap.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) truncated: bool,
}

impl Output {
    /// Keeps what fits; answers the event as it may be shown, none if nothing of it is left.
    pub(crate) fn keep(&mut self, event: SandboxEvent) -> Option<SandboxEvent> {
        match event {
            SandboxEvent::Stdout { text } => {
                let text = append(&mut self.stdout, &text, &mut self.truncated);
                (!text.is_empty()).then_some(SandboxEvent::Stdout { text })
            }
            SandboxEvent::Stderr { text } => {
                let text = append(&mut self.stderr, &text, &mut self.truncated);
                (!text.is_empty()).then_some(SandboxEvent::Stderr { text })
            }
            SandboxEvent::Failed { reason } => Some(SandboxEvent::Failed { reason: storable(&reason) }),
            other => Some(other),
        }
    }
}

fn append(kept: &mut String, text: &str, truncated: &mut bool) -> String {
    let text = storable(text);
    let fits = text.floor_char_boundary(OUTPUT_CAP - kept.len());
    *truncated |= fits < text.len();
    kept.push_str(&text[..fits]);
    text[..fits].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut_between_characters_and_says_so() {
        let mut output = Output::default();
        let line = "€".repeat(OUTPUT_CAP / 3);
        output.keep(SandboxEvent::Stdout { text: line.clone() });
        assert_eq!((output.stdout.len(), output.truncated), (line.len(), false));
        assert_eq!(output.keep(SandboxEvent::Stdout { text: "€".to_owned() }), None);
        assert_eq!((output.stdout.len(), output.truncated), (line.len(), true));
    }

    #[test]
    fn nothing_follows_the_end() {
        let jobs = Arc::new(Jobs::default());
        let listed = jobs.list(Uuid::nil());
        let log = jobs.find(Uuid::nil()).unwrap();
        listed.log().push(SandboxEvent::TimedOut);
        listed.log().push(SandboxEvent::Exited { code: Some(0) });
        drop(listed);
        assert_eq!(*log.events.lock().unwrap(), [SandboxEvent::TimedOut]);
        assert!(jobs.find(Uuid::nil()).is_none());
    }
}
