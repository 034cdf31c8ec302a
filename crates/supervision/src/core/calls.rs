//! What can be wanted of a group while it runs.

use std::sync::Arc;

use crate::{
    ChildSpec, Error,
    core::{
        RunId, Tree,
        child::State,
        group::{AfterStart, AfterStop, Group, Message},
        shared::Shared,
    },
};

/// Names a call, chosen by the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallId(pub u64);

/// What is wanted of a group.
#[derive(Debug)]
pub enum Request<W> {
    /// A new child behind the others, started at once.
    Start(Box<ChildSpec<W>>),
    /// A new child behind the others that is down as one that was parked.
    Add(Box<ChildSpec<W>>),
    /// The child shall stop and stay down until it or its siblings are restarted; a temporary one is forgotten.
    Terminate(String),
    /// The child shall stop and stay down until it, or a group above it, is asked for by name: no restart of a sibling or
    /// of its group brings it back. A temporary one is forgotten.
    Park(String),
    /// A child that is down shall be started, and nothing below it is parked any more.
    Restart(String),
    /// A child that is down shall be forgotten.
    Delete(String),
}

/// Why a call did not do what was wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No such group, or it is down.
    #[error("There is no running group {path:?}")]
    NoSuchGroup {
        /// Its path.
        path: String,
    },
    /// No such child in the group.
    #[error("There is no child {name:?}")]
    NotFound {
        /// Its name.
        name: String,
    },
    /// The child runs.
    #[error("The child runs")]
    Running,
    /// The child will be started again anyway.
    #[error("The child is being restarted")]
    Restarting,
    /// A child of that name runs already.
    #[error("A child of that name runs already")]
    AlreadyStarted,
    /// A child of that name is there, but down.
    #[error("A child of that name is there already")]
    AlreadyPresent,
    /// The specification of the new child is wrong.
    #[error(transparent)]
    BadSpec(Error),
    /// The child did not start.
    #[error("The child did not start: {reason}")]
    StartFailed {
        /// Why.
        reason: String,
    },
    /// The group, or the whole tree, ended before it came to this.
    #[error("The group has ended")]
    Ended,
}

impl<W: Clone> Tree<W> {
    pub(super) fn call(&mut self, call: CallId, path: &str, request: Request<W>) {
        let found = self.run_of_group(path);
        let Some(group) = found.and_then(|run| self.groups.get_mut(&run)) else {
            let error = if self.shared.over.is_some() {
                CallError::Ended
            } else {
                CallError::NoSuchGroup { path: path.to_owned() }
            };
            self.shared.reply(call, Err(error));
            return;
        };
        if group.end.is_some() {
            self.shared.reply(call, Err(CallError::Ended));
            return;
        }
        group.inbox.push_back(Message::Call { call, request });
        let run = group.run;
        self.after(run);
    }

    /// The current run of the group at a path; none while it is down.
    #[must_use]
    pub fn run_of_group(&self, path: &str) -> Option<RunId> {
        let mut run = self.root_run;
        for name in path.split('/').filter(|_| !path.is_empty()) {
            run = self.groups.get(&run)?.children.get(name)?.state.run()?;
        }
        self.groups.contains_key(&run).then_some(run)
    }
}

impl<W: Clone> Group<W> {
    pub(super) fn answer(&mut self, shared: &mut Shared<W>, call: super::CallId, request: Request<W>) {
        let refused = match request {
            Request::Start(spec) => self.start_new(shared, call, *spec).err(),
            Request::Add(spec) => self.add_parked(shared, call, *spec).err(),
            Request::Terminate(name) => self.find(&name).map(|name| self.terminate(call, name)).err(),
            Request::Park(name) => self.find(&name).map(|name| self.park(call, name)).err(),
            Request::Restart(name) => self.find_down(&name).map(|name| self.start_old(call, name)).err(),
            Request::Delete(name) => self.find_down(&name).map(|name| self.delete(shared, call, &name)).err(),
        };
        if let Some(error) = refused {
            shared.reply(call, Err(error));
        }
    }

    fn start_new(&mut self, shared: &Shared<W>, call: CallId, spec: ChildSpec<W>) -> Result<(), CallError> {
        let name = self.add_new(shared, spec)?;
        self.start_these([name].into(), AfterStart::Reply { call, is_new: true });
        Ok(())
    }

    fn add_parked(&mut self, shared: &mut Shared<W>, call: CallId, spec: ChildSpec<W>) -> Result<(), CallError> {
        let name = self.add_new(shared, spec)?;
        if let Some(child) = self.children.get_mut(&name) {
            child.history.parked = true;
        }
        shared.reply(call, Ok(()));
        Ok(())
    }

    fn add_new(&mut self, shared: &Shared<W>, spec: ChildSpec<W>) -> Result<Arc<str>, CallError> {
        spec.validate_in(&self.path, self.spec.auto_shutdown).map_err(CallError::BadSpec)?;
        if let Some(child) = self.children.get(spec.name.as_str()) {
            let is_there = child.state.run().is_some();
            return Err(if is_there { CallError::AlreadyStarted } else { CallError::AlreadyPresent });
        }
        let name: Arc<str> = spec.name.as_str().into();
        self.add(Arc::clone(&name), spec, shared.now).dynamic = true;
        Ok(name)
    }

    fn park(&mut self, call: CallId, name: Arc<str>) {
        if let Some(child) = self.children.get_mut(&name) {
            child.history.parked = true;
        }
        self.terminate(call, name);
    }

    fn terminate(&mut self, call: CallId, name: Arc<str>) {
        self.stop_these(vec![name], AfterStop::Reply { call });
    }

    fn start_old(&mut self, call: CallId, name: Arc<str>) {
        if let Some(child) = self.children.get_mut(&name) {
            child.history.unpark();
        }
        self.start_these([name].into(), AfterStart::Reply { call, is_new: false });
    }

    fn delete(&mut self, shared: &mut Shared<W>, call: CallId, name: &Arc<str>) {
        self.remove(name);
        shared.reply(call, Ok(()));
    }

    fn find(&self, name: &str) -> Result<Arc<str>, CallError> {
        let found = self.children.get_key_value(name).map(|(name, _)| Arc::clone(name));
        found.ok_or_else(|| CallError::NotFound { name: name.to_owned() })
    }

    fn find_down(&self, name: &str) -> Result<Arc<str>, CallError> {
        let found = self.find(name)?;
        match self.children.get(&found).map(|child| child.state) {
            Some(State::Stopped) => Ok(found),
            Some(State::Restarting { .. }) => Err(CallError::Restarting),
            _ => Err(CallError::Running),
        }
    }
}
