//! The rules of supervision without I/O: inputs and the time go in, outputs come out.
//!
//! Each group handles one thing at a time, as a supervisor process of OTP does: while it stops or starts children, ends
//! of other children and calls wait in its inbox. Only the wish to end goes past the inbox.

mod calls;
mod chance;
mod child;
mod ending;
mod exits;
mod group;
mod picture;
mod shared;
mod starting;
mod stopping;
mod timers;
mod window;

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::{End, Error, Event, Exit, GroupSpec, Node};

pub use calls::{CallError, CallId, Request};
use child::{Fired, Histories};
use ending::GroupEnd;
use group::Group;
use shared::{Shared, Signal};

/// One run of one child: a restarted child has a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(u64);

/// What the driver tells.
#[derive(Debug)]
pub enum Input<W> {
    /// The tree shall start. Nothing happens before.
    Begin,
    /// Time has passed.
    Tick,
    /// A run has a process now.
    Spawned {
        /// The run.
        run: RunId,
        /// The number of the process.
        pid: u32,
    },
    /// A run counts as started.
    Started {
        /// The run.
        run: RunId,
    },
    /// A run is over. Before it was started this means that it could not be started.
    Exited {
        /// The run.
        run: RunId,
        /// How it ended.
        exit: Exit,
    },
    /// Somebody wants something of a group.
    Call {
        /// Names the answer.
        call: CallId,
        /// Path of the group.
        group: String,
        /// What is wanted.
        request: Request<W>,
    },
    /// The tree shall end in order.
    Shutdown,
    /// The tree shall end at once: whoever still runs is killed.
    Kill,
}

/// What the driver shall do.
#[derive(Debug)]
pub enum Output<W> {
    /// Start this, and say `Spawned`, `Started` and `Exited` with this run.
    Start {
        /// The run.
        run: RunId,
        /// Path of the child.
        path: String,
        /// What to start.
        work: W,
    },
    /// Ask this run to stop.
    Stop {
        /// The run.
        run: RunId,
    },
    /// Kill this run.
    Kill {
        /// The run.
        run: RunId,
    },
    /// Answer a call.
    Reply {
        /// Which.
        call: CallId,
        /// The answer.
        result: Result<(), CallError>,
    },
    /// Tell whoever listens.
    Event(Event),
    /// Every child of the tree was started.
    Up,
    /// The tree is over; nothing comes after this.
    Over(End),
}

/// A tree of groups and workers.
#[derive(Debug)]
pub struct Tree<W> {
    root: Arc<GroupSpec<W>>,
    root_run: RunId,
    groups: HashMap<RunId, Group<W>>,
    shared: Shared<W>,
    last_picture: Option<Node>,
    /// What is known of the children before the tree begins.
    before: Histories,
}

impl<W: Clone> Tree<W> {
    /// A tree that has not begun. The seed decides the jitter; the patience is how long a killed run may take to be gone
    /// before it counts as leaked.
    ///
    /// # Errors
    /// The first rule that the specification breaks.
    pub fn new(spec: GroupSpec<W>, seed: u64, patience: Duration) -> Result<Self, Error> {
        spec.validate()?;
        let mut shared = Shared::new(seed, patience);
        let root_run = shared.new_run();
        let (groups, before) = (HashMap::new(), Histories::new());
        Ok(Self { root: Arc::new(spec), root_run, groups, shared, last_picture: None, before })
    }

    /// Lets the children at these paths be down from the beginning, as those that were parked. Says nothing of paths that
    /// the tree does not have.
    #[must_use]
    pub fn with_parked<'a>(mut self, paths: impl IntoIterator<Item = &'a str>) -> Self {
        for path in paths {
            child::park_at(&mut self.before, path);
        }
        self
    }

    /// Takes in what happened at this time since the tree began; times must not go back.
    pub fn handle(&mut self, now: Duration, input: Input<W>) {
        self.shared.now = self.shared.now.max(now);
        self.fire_timers();
        match input {
            Input::Begin => self.begin(),
            Input::Tick => {}
            Input::Spawned { run, pid } => {
                self.with_owner(run, |group, shared, name| group.child_spawned(shared, name, run, pid));
            }
            Input::Started { run } => self.shared.signals.push_back(Signal::Started { run }),
            Input::Exited { run, exit } => {
                self.shared.signals.push_back(Signal::Exited { run, exit, inside: HashMap::new() });
            }
            Input::Call { call, group, request } => self.call(call, &group, request),
            Input::Shutdown => self.shutdown(),
            Input::Kill => self.kill(),
        }
        self.settle();
    }

    /// The next thing to do, until there is none.
    pub fn poll(&mut self) -> Option<Output<W>> {
        self.shared.outputs.pop_front()
    }

    /// When `Input::Tick` is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.shared.timers.next()
    }

    /// What everything is doing.
    #[must_use]
    pub fn picture(&self) -> Node {
        match (self.groups.get(&self.root_run), &self.last_picture) {
            (Some(root), _) => picture::of_root(root, &self.groups),
            (None, Some(last)) => last.clone(),
            (None, None) => picture::before_start(&self.root),
        }
    }

    fn begin(&mut self) {
        if self.shared.over.is_some() || self.groups.contains_key(&self.root_run) {
            return;
        }
        let before = std::mem::take(&mut self.before);
        let group = Group::new(self.root_run, None, String::new(), Arc::clone(&self.root), before);
        self.insert(group);
    }

    fn insert(&mut self, mut group: Group<W>) {
        let run = group.run;
        group.begin(&mut self.shared);
        self.groups.insert(run, group);
        self.after(run);
    }

    fn shutdown(&mut self) {
        if self.groups.contains_key(&self.root_run) {
            self.shared.signals.push_back(Signal::End { run: self.root_run });
        } else if self.shared.over.is_none() {
            self.shared.finish(End::Shutdown);
        }
    }

    fn kill(&mut self) {
        self.shared.hurry = true;
        for group in self.groups.values_mut() {
            group.kill_stopping(&mut self.shared);
        }
        self.shutdown();
    }

    fn fire_timers(&mut self) {
        while let Some((key, owner)) = self.shared.timers.pop_due(self.shared.now) {
            let Some(group) = self.groups.get_mut(&owner.group) else { continue };
            if group.timer(&mut self.shared, &owner.name, key) == Fired::Leaked {
                self.end_with_leak(owner.group);
            } else {
                self.after(owner.group);
            }
            self.settle();
        }
    }

    /// What leaked may still run, so nothing from here to the top may be started again.
    fn end_with_leak(&mut self, from: RunId) {
        let mut next = Some(from);
        while let Some(run) = next {
            next = self.groups.get(&run).and_then(|group| group.parent.as_ref()).map(|owner| owner.group);
            self.with_group(run, |group, shared| group.end(shared, GroupEnd::Leaked));
        }
    }

    /// Passes signals on until all is quiet.
    fn settle(&mut self) {
        while let Some(signal) = self.shared.signals.pop_front() {
            match signal {
                Signal::Begin(group) => self.insert(*group),
                Signal::End { run } => {
                    self.with_group(run, |group, shared| group.end(shared, GroupEnd::Asked));
                }
                Signal::Started { run } if run == self.root_run => self.shared.outputs.push_back(Output::Up),
                Signal::Started { run } => {
                    self.with_owner(run, |group, shared, name| group.child_started(shared, name, run));
                }
                Signal::Exited { run, exit, inside } => {
                    self.with_owner(run, |group, shared, name| group.child_exited(shared, name, run, exit, inside));
                }
            }
        }
    }

    fn with_owner(&mut self, run: RunId, act: impl FnOnce(&mut Group<W>, &mut Shared<W>, &Arc<str>)) {
        // a run that leaked or was never known has no owner
        let Some(owner) = self.shared.owners.get(&run).cloned() else { return };
        self.with_group(owner.group, |group, shared| act(group, shared, &owner.name));
    }

    fn with_group<T>(&mut self, run: RunId, act: impl FnOnce(&mut Group<W>, &mut Shared<W>) -> T) -> Option<T> {
        let group = self.groups.get_mut(&run)?;
        let result = act(group, &mut self.shared);
        self.after(run);
        Some(result)
    }

    /// Lets a group go on, and removes it once it is over.
    fn after(&mut self, run: RunId) {
        let Some(group) = self.groups.get_mut(&run) else { return };
        group.go_on(&mut self.shared);
        let Some(end) = group.is_over() else { return };
        if run == self.root_run {
            self.last_picture = Some(picture::of_root(group, &HashMap::new()));
            let leaked = std::mem::take(&mut self.shared.leaked);
            let end = if leaked.is_empty() { end.of_tree() } else { End::Leaked { paths: leaked } };
            self.shared.finish(end);
        } else {
            let inside = group.histories();
            self.shared.signals.push_back(Signal::Exited { run, exit: end.as_exit(), inside });
        }
        self.groups.remove(&run);
    }
}
