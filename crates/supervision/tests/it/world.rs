//! A world without time of its own: it answers what the core asks and writes down in which order.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use cogo_supervision::{
    End, Event, Exit, GroupSpec, Happened, Node, NodeState,
    core::{CallError, CallId, Input, Output, Request, RunId, Tree},
};

/// How a worker takes it to be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// It stops.
    Obedient,
    /// It hears it and goes on until it is killed.
    Stubborn,
    /// Nobody asks it, it is killed.
    Brutal,
    /// Not even a kill ends it.
    Immortal,
}

/// What stands around a tree.
pub(crate) struct World {
    pub(crate) tree: Tree<Manner>,
    pub(crate) now: Duration,
    /// `+` started, `!` did not start, `-` asked to stop.
    pub(crate) notes: Vec<String>,
    pub(crate) events: Vec<Event>,
    pub(crate) over: Option<End>,
    pub(crate) is_up: bool,
    living: HashMap<RunId, (String, Manner)>,
    failing_starts: HashMap<String, u32>,
    hanging_starts: Vec<String>,
    answers: HashMap<CallId, Result<(), CallError>>,
    pending: VecDeque<Output<Manner>>,
    next_call: u64,
}

impl World {
    pub(crate) fn new(spec: GroupSpec<Manner>) -> Self {
        Self {
            tree: Tree::new(spec, 1, Duration::from_secs(1)).unwrap(),
            now: Duration::ZERO,
            notes: Vec::new(),
            events: Vec::new(),
            over: None,
            is_up: false,
            living: HashMap::new(),
            failing_starts: HashMap::new(),
            hanging_starts: Vec::new(),
            answers: HashMap::new(),
            pending: VecDeque::new(),
            next_call: 0,
        }
    }

    /// A world whose tree has been started.
    pub(crate) fn begun(spec: GroupSpec<Manner>) -> Self {
        let mut world = Self::new(spec);
        world.begin();
        world
    }

    /// Starts its tree.
    pub(crate) fn begin(&mut self) {
        self.tell(Input::Begin);
        self.settle();
    }

    /// The next so many starts of this worker fail.
    pub(crate) fn fail_starts(&mut self, path: &str, count: u32) {
        self.failing_starts.insert(path.to_owned(), count);
    }

    /// Starts of this worker say nothing from now on.
    pub(crate) fn hang_starts(&mut self, path: &str) {
        self.hanging_starts.push(path.to_owned());
    }

    /// Tells the core something; what it wants is not done before `settle`.
    pub(crate) fn tell(&mut self, input: Input<Manner>) {
        self.tree.handle(self.now, input);
        self.pending.extend(std::iter::from_fn(|| self.tree.poll()));
    }

    pub(crate) fn run_at(&self, path: &str) -> Option<RunId> {
        self.living.iter().find(|(_, (living, _))| living == path).map(|(run, _)| *run)
    }

    /// Lets a worker end; nothing happens if it does not live.
    pub(crate) fn crash(&mut self, path: &str, exit: Exit) {
        if let Some(run) = self.run_at(path) {
            self.crash_run(run, exit);
        }
    }

    pub(crate) fn crash_run(&mut self, run: RunId, exit: Exit) {
        if self.living.remove(&run).is_some() {
            self.tell(Input::Exited { run, exit });
        }
    }

    pub(crate) fn call(&mut self, group: &str, request: Request<Manner>) -> CallId {
        self.next_call += 1;
        let call = CallId(self.next_call);
        self.tell(Input::Call { call, group: group.to_owned(), request });
        call
    }

    pub(crate) fn answer(&self, call: CallId) -> Option<Result<(), CallError>> {
        self.answers.get(&call).cloned()
    }

    /// A call with everything it leads to.
    pub(crate) fn called(&mut self, group: &str, request: Request<Manner>) -> Result<(), CallError> {
        let call = self.call(group, request);
        self.settle();
        self.answer(call).unwrap()
    }

    /// A crash with everything it leads to.
    pub(crate) fn crashed(&mut self, path: &str) {
        self.crash(path, Exit::Abnormal("boom".to_owned()));
        self.settle();
    }

    /// Does what the core wants; where workers do not stop, time passes until the core has had enough.
    pub(crate) fn settle(&mut self) {
        loop {
            while let Some(output) = self.pending.pop_front() {
                self.perform(output);
            }
            let is_waited_for = |node: &&Node| {
                node.strategy.is_none() && matches!(node.state, NodeState::Starting | NodeState::Stopping)
            };
            match self.tree.deadline() {
                Some(due) if self.tree.picture().flatten().iter().any(is_waited_for) => self.pass_to(due),
                _ => return,
            }
        }
    }

    /// Lets time pass up to a moment.
    pub(crate) fn pass_to(&mut self, moment: Duration) {
        self.now = moment.max(self.now);
        self.tell(Input::Tick);
    }

    fn perform(&mut self, output: Output<Manner>) {
        match output {
            Output::Start { run, path, work } => self.start(run, path, work),
            Output::Stop { run } => {
                let Some((path, manner)) = self.living.get(&run).cloned() else { return };
                self.notes.push(format!("-{path}"));
                if manner == Manner::Obedient {
                    self.crash_run(run, Exit::Shutdown);
                }
            }
            Output::Kill { run } => {
                if self.living.get(&run).is_some_and(|(_, manner)| *manner != Manner::Immortal) {
                    self.crash_run(run, Exit::Killed);
                }
            }
            Output::Reply { call, result } => {
                assert!(self.answers.insert(call, result).is_none(), "{call:?} was answered twice");
            }
            Output::Event(event) => self.events.push(event),
            Output::Up => self.is_up = true,
            Output::Over(end) => assert!(self.over.replace(end).is_none(), "the tree ended twice"),
        }
    }

    fn start(&mut self, run: RunId, path: String, manner: Manner) {
        assert!(self.run_at(&path).is_none(), "{path} is started while it lives");
        if let Some(left) = self.failing_starts.get_mut(&path).filter(|left| **left > 0) {
            *left -= 1;
            self.notes.push(format!("!{path}"));
            self.tell(Input::Exited { run, exit: Exit::Abnormal("boom".to_owned()) });
            return;
        }
        self.notes.push(format!("+{path}"));
        self.living.insert(run, (path.clone(), manner));
        if !self.hanging_starts.contains(&path) {
            self.tell(Input::Started { run });
        }
    }

    /// Takes the notes so far as one line.
    pub(crate) fn take_notes(&mut self) -> String {
        std::mem::take(&mut self.notes).join(" ")
    }

    /// How many events of this kind there were.
    pub(crate) fn count(&self, is_meant: impl Fn(&Happened) -> bool) -> usize {
        self.events.iter().filter(|event| is_meant(&event.happened)).count()
    }

    /// The tree as one line.
    pub(crate) fn text(&self) -> String {
        if self.over.is_some() { "over".to_owned() } else { format!("({})", text_of(&self.tree.picture().children)) }
    }

    /// No worker lives that the tree does not know, and none is known that does not live.
    pub(crate) fn assert_no_orphans(&self) {
        let picture = self.tree.picture();
        let known = picture.flatten().into_iter().filter(|node| node.strategy.is_none());
        let mut known: Vec<&str> =
            known.filter(|node| node.state != NodeState::Stopped).map(|node| node.path.as_str()).collect();
        let mut living: Vec<&str> = self.living.values().map(|(path, _)| path.as_str()).collect();
        known.sort_unstable();
        living.sort_unstable();
        assert_eq!(known, living);
    }
}

fn text_of(nodes: &[Node]) -> String {
    let texts = nodes.iter().map(|node| match (node.state, node.strategy) {
        (NodeState::Stopped, _) => format!("{}:down", node.name),
        (NodeState::Running, None) => format!("{}:up", node.name),
        (NodeState::Running, Some(_)) => format!("{}({})", node.name, text_of(&node.children)),
        (state, _) => format!("{}:{state:?}", node.name),
    });
    texts.collect::<Vec<String>>().join(" ")
}
