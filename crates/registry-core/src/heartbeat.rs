//! The task that keeps a process in the registry, and stops its work when it cannot.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use cogo_contracts::AgentState;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::{
    beating::{Conversation, Reply, Told},
    registration::Registration,
    registry::{Error, Registry},
    standing::{Heard, Member, Membership, Standing, Vitals, Wanted},
    token::Grant,
};

/// Times of the heartbeat, all by the process's monotonic clock.
#[derive(Debug, Clone)]
pub struct HeartbeatSettings {
    /// From one beat to the next, give or take a tenth.
    pub interval: Duration,
    /// From a beat that failed to the next try, give or take half.
    pub retry: Duration,
    /// How long one beat may take, connecting included.
    pub deadline: Duration,
    /// After the start of the last good beat the process fences itself. Must be shorter than the time after which a
    /// sweep declares it dead, since from then on others do its work.
    pub fence_after: Duration,
    /// How long leaving may take.
    pub farewell: Duration,
}

impl Default for HeartbeatSettings {
    /// Beats every 5 s and fences after 25 s, which is 5 s before a sweep with default settings declares it dead.
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            retry: Duration::from_secs(1),
            deadline: Duration::from_secs(4),
            fence_after: Duration::from_secs(25),
            farewell: Duration::from_secs(3),
        }
    }
}

/// How the heartbeat ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop, and the process is out of the registry.
    Left,
    /// It was told to stop while the database did not answer; a sweep will find the process gone.
    Unreachable,
    /// Another process owns the slot; this one must stop with an error.
    Superseded {
        /// Holder name of the other process.
        by: String,
    },
}

/// Registers a process, beats for it, joins again when its place was lost, and leaves in the end.
#[derive(Debug)]
pub struct Heartbeat {
    conversation: Conversation,
    settings: HeartbeatSettings,
    standing: watch::Sender<Standing>,
    wanted: watch::Receiver<Wanted>,
    vitals: Arc<Vitals>,
    heard: watch::Sender<Option<Heard>>,
    grant: Arc<ArcSwapOption<Grant>>,
    nudge: Arc<Notify>,
    /// Start of the last good exchange; none while the process is not to claim anyway.
    contact: Option<Instant>,
    failures: u32,
}

/// What one exchange came to.
enum Turn {
    Next(Duration),
    Superseded(String),
}

impl Heartbeat {
    /// Prepares the task and the handle on it; nothing is sent before [`run`](Self::run).
    ///
    /// It opens a connection of its own with the options of the registry's pool.
    #[must_use]
    pub fn new(registry: &Registry, registration: Registration, settings: HeartbeatSettings) -> (Self, Member) {
        let (standing, standing_receiver) = watch::channel(Standing::Joining);
        let (wanted_sender, wanted) = watch::channel(Wanted::Registered);
        let vitals = Arc::new(Vitals::default());
        let (heard, heard_receiver) = watch::channel(None);
        let (grant, nudge) = (Arc::new(ArcSwapOption::empty()), Arc::new(Notify::new()));
        let member = Member {
            standing: standing_receiver,
            wanted: Arc::new(wanted_sender),
            vitals: Arc::clone(&vitals),
            heard: heard_receiver,
            grant: Arc::clone(&grant),
            nudge: Arc::clone(&nudge),
        };
        let conversation = Conversation::new(registry.pool(), registration, &settings);
        let heartbeat =
            Self { conversation, settings, standing, wanted, vitals, heard, grant, nudge, contact: None, failures: 0 };
        (heartbeat, member)
    }

    /// Runs until the token is cancelled, then leaves the registry; ends early only when superseded.
    ///
    /// No failure of the database ends it.
    pub async fn run(mut self, token: CancellationToken) -> Ended {
        loop {
            let turn = tokio::select! {
                biased;
                () = token.cancelled() => return self.leave().await,
                turn = self.turn() => turn,
            };
            let pause = match turn {
                Turn::Next(pause) => pause,
                Turn::Superseded(by) => {
                    self.grant.store(None);
                    self.standing.send_replace(Standing::Superseded { by: by.clone() });
                    return Ended::Superseded { by };
                }
            };
            tokio::select! {
                biased;
                () = token.cancelled() => return self.leave().await,
                Ok(()) = self.wanted.changed() => {}
                () = self.nudge.notified() => {}
                () = sleep(pause) => {}
            }
        }
    }

    async fn turn(&mut self) -> Turn {
        let started = Instant::now();
        self.fence_if_due();
        let wanted = *self.wanted.borrow_and_update();
        if wanted == Wanted::Draining && !self.conversation.is_member() {
            // it is about to leave: there is nothing to join for
            return Turn::Next(self.settings.interval);
        }
        let budget = self.until_fence().map_or(self.settings.deadline, |left| left.min(self.settings.deadline));
        let exchange = timeout(budget, self.conversation.exchange(wanted, &self.vitals)).await;
        match exchange {
            Ok(Ok(reply)) => self.heard(reply, started),
            Ok(Err(error)) => self.not_heard(Some(error)),
            Err(_) => self.not_heard(None),
        }
    }

    fn heard(&mut self, reply: Reply, started: Instant) -> Turn {
        if self.failures > 0 {
            info!(agent = %self.conversation.registration().id(), failures = self.failures, "registry answers again");
            self.failures = 0;
        }
        match reply {
            Reply::Alive { membership, state, told } => {
                self.contact = Some(started);
                self.remember(&membership, told, started);
                self.publish(standing_of(membership, state));
                // the process may have been stopped between asking and hearing, for longer than the answer is good
                self.fence_if_due();
                let pause = jittered(self.settings.interval, 0.1).saturating_sub(started.elapsed());
                Turn::Next(if self.contact.is_some() { pause } else { Duration::ZERO })
            }
            Reply::Lost { reason } => {
                warn!(agent = %self.conversation.registration().id(), reason, "lost the place in the registry");
                self.contact = None;
                self.grant.store(None);
                self.publish(Standing::Fenced);
                // not at once: after a mass death the whole fleet joins again
                Turn::Next(jittered(self.settings.retry, 0.5))
            }
            Reply::Occupied { by } => {
                warn!(agent = %self.conversation.registration().id(), by, "another process owns the slot");
                Turn::Superseded(by)
            }
        }
    }

    fn not_heard(&mut self, error: Option<Error>) -> Turn {
        let agent = self.conversation.registration().id();
        let cause = error.map_or_else(|| "no answer in time".to_owned(), |error| causes(&error));
        if self.failures == 0 {
            warn!(%agent, error = cause, "beat did not reach the registry");
        } else {
            debug!(%agent, error = cause, failures = self.failures, "beat did not reach the registry");
        }
        self.failures = self.failures.saturating_add(1);
        self.fence_if_due();
        let pause = jittered(self.settings.retry, 0.5);
        Turn::Next(self.until_fence().map_or(pause, |left| left.min(pause)))
    }

    fn fence_if_due(&mut self) {
        if self.until_fence() == Some(Duration::ZERO) {
            warn!(agent = %self.conversation.registration().id(), "no contact to the registry: fenced");
            self.contact = None;
            self.grant.store(None);
            self.publish(Standing::Fenced);
        }
    }

    /// Keeps what an answer told: versions for those who follow the registry, time and place for tokens.
    fn remember(&self, membership: &Membership, told: Told, started: Instant) {
        let registration = self.conversation.registration();
        self.grant.store(Some(Arc::new(Grant {
            signer: Arc::clone(&registration.signer),
            instance: registration.id().instance(),
            membership: membership.clone(),
            at: told.database_time,
        })));
        self.heard.send_replace(Some(Heard {
            registry_version: told.registry_version,
            config_version: told.config_version,
            schema_version: told.schema_version,
            asked: started.into_std(),
        }));
    }

    /// Time left until the process must fence itself; none when it is not at work.
    fn until_fence(&self) -> Option<Duration> {
        self.contact.map(|contact| self.settings.fence_after.saturating_sub(contact.elapsed()))
    }

    fn publish(&self, standing: Standing) {
        self.standing.send_if_modified(|current| {
            let changed = *current != standing;
            if changed {
                *current = standing;
            }
            changed
        });
    }

    async fn leave(mut self) -> Ended {
        let farewell = timeout(self.settings.farewell, self.conversation.leave("stopped")).await;
        let failure = match farewell {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(causes(&error)),
            Err(_) => Some("no answer in time".to_owned()),
        };
        self.grant.store(None);
        self.publish(Standing::Left);
        let Some(error) = failure else {
            return Ended::Left;
        };
        warn!(agent = %self.conversation.registration().id(), error, "could not leave the registry");
        Ended::Unreachable
    }
}

fn standing_of(membership: Membership, state: AgentState) -> Standing {
    match state {
        AgentState::Registered => Standing::Registered(membership),
        // suspect again since the beat that was just answered: the next one settles it
        AgentState::Active | AgentState::Suspect => Standing::Active(membership),
        AgentState::Suspended => Standing::Suspended(membership),
        AgentState::Draining => Standing::Draining(membership),
        AgentState::Terminated => Standing::Fenced,
    }
}

/// Spreads the beats of a fleet that was started at once.
fn jittered(duration: Duration, spread: f64) -> Duration {
    let [a, b, c, d, ..] = *Uuid::new_v4().as_bytes();
    let random = f64::from(u32::from_le_bytes([a, b, c, d])) / f64::from(u32::MAX);
    duration.mul_f64(1.0 - spread + 2.0 * spread * random)
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
