//! What a tree shall be: groups with their strategy, children with their restart rules; checked as a whole.

use std::{collections::HashSet, time::Duration};

use serde::{Deserialize, Serialize};

/// What a group does when one of its children must be restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Only that child is restarted.
    OneForOne,
    /// All children are stopped in reverse order and started in order.
    OneForAll,
    /// That child and those started after it are.
    RestForOne,
}

/// Whether a child that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// Always.
    Permanent,
    /// After an abnormal end.
    Transient,
    /// Never, and it is forgotten once it ended, even when a sibling took it along.
    Temporary,
}

/// How a worker is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shutdown {
    /// It is killed at once.
    BrutalKill,
    /// It is asked, and killed after this time.
    Timeout(Duration),
    /// It is asked and waited for.
    Infinity,
}

/// Whether a group ends by itself when its significant children have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AutoShutdown {
    /// No.
    Never,
    /// When one of them ends by itself.
    AnySignificant,
    /// When the last of them ends by itself.
    AllSignificant,
}

/// How a group stops its children.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StopOrder {
    /// One after the other, the last started first.
    Reverse,
    /// All at once: for many children that do not need each other.
    AtOnce,
}

/// A pause before a restart that grows with each early end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Backoff {
    /// The most that the first pause can be.
    pub first: Duration,
    /// The most that any pause can be.
    pub longest: Duration,
    /// A child that ran this long begins anew with the first pause.
    pub forgiven_after: Duration,
    /// Whether the pause is drawn evenly from zero to its bound (full jitter) or is the bound itself.
    pub jitter: bool,
}

impl Default for Backoff {
    /// 100 ms doubling up to 30 s, full jitter, forgiven after 30 s.
    fn default() -> Self {
        let longest = Duration::from_secs(30);
        Self { first: Duration::from_millis(100), longest, forgiven_after: longest, jitter: true }
    }
}

/// A group: children under one strategy. Groups are children of groups.
#[derive(Debug, Clone)]
pub struct GroupSpec<W> {
    /// What is restarted together.
    pub strategy: Strategy,
    /// So many restarts are allowed within the period; one more and the group gives up. 0: the first is too many.
    pub intensity: u32,
    /// The period of the intensity.
    pub period: Duration,
    /// Whether it ends with its significant children.
    pub auto_shutdown: AutoShutdown,
    /// How it stops its children.
    pub stop_order: StopOrder,
    /// The children in the order of their start.
    pub children: Vec<ChildSpec<W>>,
}

impl<W> GroupSpec<W> {
    /// A group without children; gives up at the second restart within 5 s, as OTP's.
    #[must_use]
    pub const fn new(strategy: Strategy) -> Self {
        Self {
            strategy,
            intensity: 1,
            period: Duration::from_secs(5),
            auto_shutdown: AutoShutdown::Never,
            stop_order: StopOrder::Reverse,
            children: Vec::new(),
        }
    }

    /// The default of a process' root: all for one, 3 restarts in 60 s.
    #[must_use]
    pub const fn root() -> Self {
        Self::new(Strategy::OneForAll).intensity(3, Duration::from_secs(60))
    }

    /// The default of a domain: the rest for one, 5 restarts in 30 s.
    #[must_use]
    pub const fn domain() -> Self {
        Self::new(Strategy::RestForOne).intensity(5, Duration::from_secs(30))
    }

    /// The default of a group of like agents: each for itself, 5 restarts in 30 s.
    #[must_use]
    pub const fn agents() -> Self {
        Self::new(Strategy::OneForOne).intensity(5, Duration::from_secs(30))
    }

    /// Allows so many restarts within the period.
    #[must_use]
    pub const fn intensity(mut self, intensity: u32, period: Duration) -> Self {
        self.intensity = intensity;
        self.period = period;
        self
    }

    /// Sets when it ends with its significant children.
    #[must_use]
    pub const fn auto_shutdown(mut self, auto_shutdown: AutoShutdown) -> Self {
        self.auto_shutdown = auto_shutdown;
        self
    }

    /// Sets how it stops its children.
    #[must_use]
    pub const fn stop_order(mut self, stop_order: StopOrder) -> Self {
        self.stop_order = stop_order;
        self
    }

    /// Adds a child behind the others.
    #[must_use]
    pub fn child(mut self, child: ChildSpec<W>) -> Self {
        self.children.push(child);
        self
    }

    /// The most restarts of one bad worker before the tree is over, if its ends come fast enough: the product of what
    /// the groups above it allow. A group that allows 5 lets it run 6 times each time it is itself started.
    #[must_use]
    pub fn worst_restarts(&self) -> u64 {
        self.worst_starts().saturating_sub(1)
    }

    fn worst_starts(&self) -> u64 {
        let inside = self.children.iter().map(|child| match &child.kind {
            Kind::Worker { .. } => 1,
            Kind::Group(group) => group.worst_starts(),
        });
        (u64::from(self.intensity) + 1).saturating_mul(inside.max().unwrap_or(1))
    }

    /// Checks the group and everything below.
    ///
    /// # Errors
    /// The first rule that is broken, with the path of the child that breaks it.
    pub fn validate(&self) -> Result<(), Error> {
        self.validate_at("")
    }

    fn validate_at(&self, path: &str) -> Result<(), Error> {
        if self.period.is_zero() {
            return Err(Error::NoPeriod { path: path.to_owned() });
        }
        let mut names = HashSet::new();
        for child in &self.children {
            child.validate_in(path, self.auto_shutdown)?;
            if !names.insert(child.name.as_str()) {
                return Err(Error::DuplicateName { path: join(path, &child.name) });
            }
        }
        Ok(())
    }
}

/// One child of a group.
#[derive(Debug, Clone)]
pub struct ChildSpec<W> {
    /// Its name, unique in its group.
    pub name: String,
    /// Whether it is started again.
    pub restart: Restart,
    /// Whether its end can be the end of its group.
    pub significant: bool,
    /// The pause before a restart; without one it is restarted at once, as in OTP.
    pub backoff: Option<Backoff>,
    /// What it is.
    pub kind: Kind<W>,
}

/// What a child is.
#[derive(Debug, Clone)]
pub enum Kind<W> {
    /// Something that a driver starts.
    Worker {
        /// What the driver starts.
        work: W,
        /// How it is stopped.
        shutdown: Shutdown,
        /// How long it may take to start; without a limit it is waited for.
        start_timeout: Option<Duration>,
    },
    /// Children of its own. It takes as long to stop as they do.
    Group(GroupSpec<W>),
}

impl<W> ChildSpec<W> {
    /// A permanent worker that has 5 s to stop.
    #[must_use]
    pub fn worker(name: impl Into<String>, work: W) -> Self {
        let shutdown = Shutdown::Timeout(Duration::from_secs(5));
        Self::new(name.into(), Kind::Worker { work, shutdown, start_timeout: None })
    }

    /// A permanent group.
    #[must_use]
    pub fn group(name: impl Into<String>, group: GroupSpec<W>) -> Self {
        Self::new(name.into(), Kind::Group(group))
    }

    const fn new(name: String, kind: Kind<W>) -> Self {
        Self { name, restart: Restart::Permanent, significant: false, backoff: None, kind }
    }

    /// Sets whether it is started again.
    #[must_use]
    pub const fn restart(mut self, restart: Restart) -> Self {
        self.restart = restart;
        self
    }

    /// Makes its end count for the automatic shutdown of its group.
    #[must_use]
    pub const fn significant(mut self) -> Self {
        self.significant = true;
        self
    }

    /// Sets the pause before restarts.
    #[must_use]
    pub const fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = Some(backoff);
        self
    }

    /// Sets how a worker is stopped; a group has no use for it.
    #[must_use]
    pub fn shutdown(mut self, wanted: Shutdown) -> Self {
        if let Kind::Worker { shutdown, .. } = &mut self.kind {
            *shutdown = wanted;
        }
        self
    }

    /// Limits how long a worker may take to start; a group has no use for it.
    #[must_use]
    pub fn start_timeout(mut self, wanted: Duration) -> Self {
        if let Kind::Worker { start_timeout, .. } = &mut self.kind {
            *start_timeout = Some(wanted);
        }
        self
    }

    pub(crate) fn validate_in(&self, group: &str, auto_shutdown: AutoShutdown) -> Result<(), Error> {
        if self.name.is_empty() || self.name.contains(|c: char| c == '/' || c.is_control()) {
            return Err(Error::BadName { group: group.to_owned(), name: self.name.clone() });
        }
        let path = join(group, &self.name);
        if self.significant && self.restart == Restart::Permanent {
            return Err(Error::SignificantPermanent { path });
        }
        if self.significant && auto_shutdown == AutoShutdown::Never {
            return Err(Error::SignificantForNothing { path });
        }
        if let Some(backoff) = self.backoff {
            if backoff.first.is_zero() {
                return Err(Error::NoFirstPause { path });
            }
            if backoff.first > backoff.longest {
                return Err(Error::PausesReversed { path, first: backoff.first, longest: backoff.longest });
            }
        }
        match &self.kind {
            Kind::Worker { start_timeout: Some(limit), .. } if limit.is_zero() => Err(Error::NoTimeToStart { path }),
            Kind::Worker { .. } => Ok(()),
            Kind::Group(inside) => inside.validate_at(&path),
        }
    }
}

/// The path of a child in a group.
pub(crate) fn join(group: &str, name: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{group}/{name}") }
}

/// A specification that cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A name is empty, or has a slash or a control character in it.
    #[error("Group {group:?} has a child with the bad name {name:?}: it must not be empty nor contain `/`")]
    BadName {
        /// Path of the group.
        group: String,
        /// The name.
        name: String,
    },
    /// Two children of one group have the same name.
    #[error("There are two children {path:?}")]
    DuplicateName {
        /// Their path.
        path: String,
    },
    /// The period of a group is zero, so that its intensity would mean nothing.
    #[error("The period of group {path:?} is 0")]
    NoPeriod {
        /// Path of the group.
        path: String,
    },
    /// A child that is always restarted cannot be the end of its group.
    #[error("Child {path:?} is significant and permanent")]
    SignificantPermanent {
        /// Its path.
        path: String,
    },
    /// The group of a significant child never ends by itself.
    #[error("Child {path:?} is significant, but its group has no automatic shutdown")]
    SignificantForNothing {
        /// Its path.
        path: String,
    },
    /// The first pause of a backoff is zero, so that doubling it leads nowhere.
    #[error("The first pause of child {path:?} is 0")]
    NoFirstPause {
        /// Its path.
        path: String,
    },
    /// The first pause is longer than the longest.
    #[error("The first pause of child {path:?} is {first:?}, longer than its longest, {longest:?}")]
    PausesReversed {
        /// Its path.
        path: String,
        /// The first pause.
        first: Duration,
        /// The longest pause.
        longest: Duration,
    },
    /// No child can start in no time.
    #[error("The start timeout of child {path:?} is 0")]
    NoTimeToStart {
        /// Its path.
        path: String,
    },
}
