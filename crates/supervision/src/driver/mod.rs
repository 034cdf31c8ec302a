//! Drives a tree: does what the core says and tells it what came of it.

mod handle;
mod process;
mod task;
mod work;

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, info, warn};

use crate::{
    End, Error, Event, Exit, GroupSpec, Happened,
    core::{CallError, CallId, Input, Output, RunId, Tree},
};

use handle::{Command, Status};
pub use handle::{Handle, Outcome};
pub use process::{ProcessWork, Spawned};
use work::Reports;
pub use work::{TaskContext, TaskWork, Work};

/// How many reports are taken in before the core's wishes are looked at.
const AT_A_TIME: usize = 256;

/// How a tree is driven.
#[derive(Debug, Clone)]
pub struct Options {
    /// Decides the jitter of pauses; drawn by default.
    pub seed: u64,
    /// How long what was killed may take to be gone before it counts as leaked.
    pub patience: Duration,
    /// How many events a listener may lag behind before it misses some.
    pub events: usize,
    /// Whether events go to the log; not needed where a listener logs them with what it knows of the children.
    pub log: bool,
    /// Paths of children that are down from the beginning, as if they had been [parked](Handle::park_child).
    pub parked: Vec<String>,
}

impl Default for Options {
    /// A seed of its own, 5 s, 1024 events, logged, nothing parked.
    fn default() -> Self {
        let seed = RandomState::new().build_hasher().finish();
        Self { seed, patience: Duration::from_secs(5), events: 1024, log: true, parked: Vec::new() }
    }
}

/// Runs trees.
#[derive(Debug)]
pub struct Supervisor;

impl Supervisor {
    /// Checks a tree and begins to start it; it lives until it is over or its last handle is dropped, which ends it in
    /// order. Needs a tokio runtime around it. The tree is driven by one task of that runtime: children that block all
    /// of its threads block their supervisor as well.
    ///
    /// # Errors
    /// The first rule that the specification breaks.
    pub fn start(spec: GroupSpec<Work>, options: &Options) -> Result<Handle, Error> {
        let tree = Tree::new(spec, options.seed, options.patience)?;
        let tree = tree.with_parked(options.parked.iter().map(String::as_str));
        let (commands_in, commands) = mpsc::unbounded_channel();
        let (reports_in, reports) = mpsc::unbounded_channel();
        let (events, _) = broadcast::channel(options.events.max(1));
        let (status, status_out) = watch::channel(Status::Starting);
        let tasks = TaskTracker::new();
        let driver = Driver {
            tree,
            begun: Instant::now(),
            commands: Some(commands),
            reports_in,
            reports,
            runs: HashMap::new(),
            answers: HashMap::new(),
            next_call: 0,
            events: events.clone(),
            status,
            tasks: tasks.clone(),
            log: options.log,
        };
        tasks.spawn(driver.drive());
        Ok(Handle::new(commands_in, events, status_out))
    }
}

/// How a run is made to stop.
struct Strings {
    stop: CancellationToken,
    kill: KillBy,
}

enum KillBy {
    /// A task is dropped where it waits; one that never waits cannot be killed.
    Abort(tokio::task::AbortHandle),
    /// The task that minds a process sends the signal.
    Signal(CancellationToken),
}

struct Driver {
    tree: Tree<Work>,
    begun: Instant,
    /// None once nobody can send any.
    commands: Option<mpsc::UnboundedReceiver<Command>>,
    reports_in: mpsc::UnboundedSender<Input<Work>>,
    reports: mpsc::UnboundedReceiver<Input<Work>>,
    runs: HashMap<RunId, Strings>,
    answers: HashMap<CallId, oneshot::Sender<Result<(), CallError>>>,
    next_call: u64,
    events: broadcast::Sender<Event>,
    status: watch::Sender<Status>,
    tasks: TaskTracker,
    log: bool,
}

impl Driver {
    async fn drive(mut self) {
        self.tell(Input::Begin);
        let mut reports = Vec::with_capacity(AT_A_TIME);
        while self.obey() {
            let due = self.tree.deadline().map(|deadline| self.begun + deadline);
            let alarm = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let command = async {
                match &mut self.commands {
                    Some(commands) => commands.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.reports.recv_many(&mut reports, AT_A_TIME) => {
                    for report in reports.drain(..) {
                        self.tell(report);
                    }
                }
                command = command => self.command(command),
                () = alarm => self.tell(Input::Tick),
            }
        }
    }

    fn tell(&mut self, input: Input<Work>) {
        if let Input::Exited { run, .. } = &input {
            self.runs.remove(run);
        }
        self.tree.handle(self.begun.elapsed(), input);
    }

    fn command(&mut self, command: Option<Command>) {
        match command {
            None => {
                self.commands = None;
                self.tell(Input::Shutdown);
            }
            Some(Command::Shutdown) => self.tell(Input::Shutdown),
            Some(Command::Kill) => self.tell(Input::Kill),
            Some(Command::Picture(answer)) => {
                // whoever asked may have stopped waiting
                let _ = answer.send(self.tree.picture());
            }
            Some(Command::Call { group, request, answer }) => {
                self.next_call += 1;
                let call = CallId(self.next_call);
                self.answers.insert(call, answer);
                self.tell(Input::Call { call, group, request });
            }
        }
    }

    /// Does what the core wants; false once the tree is over.
    fn obey(&mut self) -> bool {
        while let Some(output) = self.tree.poll() {
            match output {
                Output::Start { run, path, work } => self.start(run, path, &work),
                Output::Stop { run } => {
                    if let Some(strings) = self.runs.get(&run) {
                        strings.stop.cancel();
                    }
                }
                Output::Kill { run } => match self.runs.get(&run).map(|strings| &strings.kill) {
                    Some(KillBy::Abort(task)) => task.abort(),
                    Some(KillBy::Signal(token)) => token.cancel(),
                    None => {}
                },
                Output::Reply { call, result } => {
                    if let Some(answer) = self.answers.remove(&call) {
                        let _ = answer.send(result);
                    }
                }
                Output::Event(event) => {
                    if self.log {
                        log(&event);
                    }
                    // nobody needs to listen
                    let _ = self.events.send(event);
                }
                Output::Up => {
                    self.status.send_replace(Status::Up);
                }
                Output::Over(end) => {
                    let outcome = Outcome { end, tree: self.tree.picture() };
                    self.status.send_replace(Status::Over(outcome));
                    return false;
                }
            }
        }
        true
    }

    fn start(&mut self, run: RunId, path: String, work: &Work) {
        let stop = CancellationToken::new();
        let reports = Reports::new(run, self.reports_in.clone());
        let kill = match work {
            Work::Task(task) => {
                let future = task::run(task, path, stop.clone(), reports);
                KillBy::Abort(self.tasks.spawn(future).abort_handle())
            }
            Work::Process(process) => {
                let token = CancellationToken::new();
                let process = std::sync::Arc::clone(process);
                let future = process::run(process, path, stop.clone(), token.clone(), reports);
                self.tasks.spawn(future);
                KillBy::Signal(token)
            }
        };
        self.runs.insert(run, Strings { stop, kill });
        if matches!(work, Work::Task(task) if !task.says_when_ready) {
            self.tell(Input::Started { run });
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if !matches!(*self.status.borrow(), Status::Over(_)) {
            let outcome = Outcome { end: End::Abandoned, tree: self.tree.picture() };
            self.status.send_replace(Status::Over(outcome));
        }
    }
}

fn log(event: &Event) {
    let path = event.path.as_str();
    match &event.happened {
        Happened::Leaked => error!(path, "child could not be killed, the tree ends"),
        Happened::GaveUp { child, intensity, period } => {
            error!(path, child, intensity, period_ms = period.as_millis(), "group restarted its children too often");
        }
        Happened::StartFailed { reason } => warn!(path, reason, "child did not start"),
        Happened::Exited { exit: Exit::Final(reason) } => error!(path, reason, "child failed for good"),
        Happened::Exited { exit: Exit::Abnormal(reason) } => warn!(path, reason, "child failed"),
        Happened::Killing => warn!(path, "child is killed"),
        Happened::RestartPlanned { pause } => info!(path, pause_ms = pause.as_millis(), "child will be restarted"),
        Happened::Started { restarts } if *restarts > 0 => info!(path, restarts, "child was restarted"),
        Happened::AutoShutdown { child } => info!(path, child, "group ends with its significant child"),
        happened => debug!(path, ?happened, "supervision"),
    }
}
