//! One job from its request to its reply.

use std::{sync::Arc, time::Duration};

use anyhow::ensure;
use cogo_contracts::{Isolation, SandboxEvent, SandboxReply, SandboxRequest};
use cogo_service_runtime::Dependencies;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;
use uuid::Uuid;

use crate::{
    Settings,
    command::MACHINE_FAULT,
    job::{Jobs, Output},
    protocol::{ToManager, ToWorker},
    worker,
    workers::{Kind, Membership, NoSlot, Verdict, Workers},
};

const LIMIT_MS: std::ops::RangeInclusive<u64> = 1..=600_000;
/// How much later than the limit a worker may report the end before it counts as lost.
const REPORTS_WITHIN: Duration = Duration::from_secs(5);
/// Frames of the own worker that wait to be read.
const BACKLOG: usize = 64;

/// Why a job is not run; no later attempt would be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request is against the contract.
    #[error("Request not usable: {0}")]
    Invalid(&'static str),
    /// Nothing here can shut the command off as far as is asked.
    #[error(
        "Isolation {} is not available, commands run with isolation none; send \"isolation\":\"none\" to accept that",
        name(*.0)
    )]
    Isolation(Isolation),
    /// No worker is connected and the own one is switched off.
    #[error(
        "No sandbox worker is connected and running commands on this machine is switched off; connect a worker to \
         /sandbox/worker, or set COGO_SANDBOX_MANAGER_ALLOW_LOCAL=true to run commands as this user"
    )]
    NobodyConnected,
    /// Every worker that has a slot failed too often in a row; unlike the others, this passes.
    #[error("Every free sandbox worker failed too often and rests for another {} ms", retry_after.as_millis())]
    Resting {
        /// Until one of them may be tried.
        retry_after: Duration,
    },
}

/// The control plane: workers on one side, jobs on the other.
pub struct Manager {
    settings: Settings,
    workers: Arc<Workers>,
    jobs: Arc<Jobs>,
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl Manager {
    /// A manager; its own worker runs on `tracker` until `stop` if the settings allow it.
    ///
    /// # Errors
    /// When the worker token is empty: everybody would know it.
    pub fn new(
        settings: Settings,
        dependencies: Dependencies,
        stop: CancellationToken,
        tracker: TaskTracker,
    ) -> anyhow::Result<Self> {
        let empty_token = settings.worker_token.as_ref().is_some_and(|token| token.reveal().is_empty());
        ensure!(!empty_token, "worker_token is empty; leave it out to let in callers on this machine only");
        let workers = Arc::new(Workers::new(dependencies));
        if settings.allow_local {
            let (frames, from_manager) = mpsc::unbounded_channel();
            // joined before the first job can come
            let membership = workers.join("local", Kind::Local, settings.local_slots, frames);
            tracker.spawn(local_worker(membership, from_manager, settings.clone(), stop.clone()));
        }
        Ok(Self { settings, workers, jobs: Arc::default(), stop, tracker })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn workers(&self) -> &Arc<Workers> {
        &self.workers
    }

    pub(crate) fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    pub(crate) fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// Whether a command could be run at this moment.
    ///
    /// # Errors
    /// [`Refusal::NobodyConnected`].
    pub fn expect_worker(&self) -> Result<(), Refusal> {
        if self.workers.reports().is_empty() { Err(Refusal::NobodyConnected) } else { Ok(()) }
    }

    /// Runs a command to its one end; `message` is the key under which others look on.
    ///
    /// Waits while all workers are busy. Dropping the future kills the command. A worker that was gone, silent or unable
    /// to start commands three times in a row rests before it is given another.
    ///
    /// # Errors
    /// When the request cannot be run here at all. A command that fails is a reply and no error.
    pub async fn run(&self, message: Uuid, request: SandboxRequest) -> Result<SandboxReply, Refusal> {
        check(&request)?;
        let listed = self.jobs.list(message);
        let mut lease = self.workers.lease().await.map_err(|none| match none {
            NoSlot::NobodyConnected => Refusal::NobodyConnected,
            NoSlot::Resting { retry_after } => Refusal::Resting { retry_after },
        })?;
        let started = Instant::now();
        let latest = started + Duration::from_millis(request.limit_ms) + REPORTS_WITHIN;
        lease.start(request);
        let mut output = Output::default();
        let end = loop {
            let event = match timeout_at(latest, lease.events.recv()).await {
                Ok(Some(event)) => {
                    if event.is_terminal() {
                        lease.ended();
                        lease.judge(verdict(&event));
                    }
                    event
                }
                Ok(None) => {
                    lease.judge(Verdict::Failing);
                    failed(format!("Worker {} is gone", lease.worker_name))
                }
                Err(_) => {
                    lease.judge(Verdict::Failing);
                    failed(format!("Worker {} did not report the end in time", lease.worker_name))
                }
            };
            let Some(event) = output.keep(event) else { continue };
            listed.log().push(event.clone());
            if event.is_terminal() {
                break event;
            }
        };
        let run_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let Output { stdout, stderr, truncated } = output;
        Ok(SandboxReply { end, stdout, stderr, truncated, run_ms, isolation: Isolation::None })
    }
}

/// A command that fails says nothing against its worker, one that the machine could not start does.
fn verdict(end: &SandboxEvent) -> Verdict {
    match end {
        SandboxEvent::Failed { reason } if reason.starts_with(MACHINE_FAULT) => Verdict::Failing,
        _ => Verdict::Well,
    }
}

fn check(request: &SandboxRequest) -> Result<(), Refusal> {
    if request.command.first().is_none_or(String::is_empty) {
        return Err(Refusal::Invalid("command must name a program"));
    }
    if request.command.iter().any(|part| part.contains('\0')) {
        return Err(Refusal::Invalid("command must not hold NUL characters"));
    }
    if !LIMIT_MS.contains(&request.limit_ms) {
        return Err(Refusal::Invalid("limit_ms must be from 1 to 600000"));
    }
    if request.isolation != Isolation::None {
        return Err(Refusal::Isolation(request.isolation));
    }
    Ok(())
}

fn name(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::None => "none",
        Isolation::Namespaces => "namespaces",
        Isolation::Vm => "vm",
    }
}

fn failed(reason: String) -> SandboxEvent {
    SandboxEvent::Failed { reason }
}

/// The worker of this process, over channels instead of a connection.
async fn local_worker(
    membership: Membership,
    from_manager: mpsc::UnboundedReceiver<ToWorker>,
    settings: Settings,
    stop: CancellationToken,
) {
    let (to_manager, mut events) = mpsc::channel(BACKLOG);
    let own = worker::Settings { slots: settings.local_slots, command_path: settings.command_path };
    let relay = async {
        while let Some(frame) = events.recv().await {
            if let ToManager::Event { job, event } = frame {
                membership.deliver(job, event).await;
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = worker::serve(own, from_manager, to_manager) => warn!("own sandbox worker ended"),
        () = relay => {}
    }
}
