//! How the rest of the process talks to a running tree.

use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::{
    ChildSpec, End, Event, Node, Work,
    core::{CallError, Request},
};

/// How a tree ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Why.
    pub end: End,
    /// What it looked like at last.
    pub tree: Node,
}

#[derive(Debug, Clone)]
pub(super) enum Status {
    Starting,
    Up,
    Over(Outcome),
}

#[derive(Debug)]
pub(super) enum Command {
    Call { group: String, request: Request<Work>, answer: oneshot::Sender<Result<(), CallError>> },
    Picture(oneshot::Sender<Node>),
    Shutdown,
    Kill,
}

/// A running tree. Clones are the same tree; when the last one is dropped the tree ends in order.
#[derive(Debug, Clone)]
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    events: broadcast::Sender<Event>,
    status: watch::Receiver<Status>,
}

impl Handle {
    pub(super) const fn new(
        commands: mpsc::UnboundedSender<Command>,
        events: broadcast::Sender<Event>,
        status: watch::Receiver<Status>,
    ) -> Self {
        Self { commands, events, status }
    }

    /// Waits until every child was started once.
    ///
    /// # Errors
    /// How the tree ended instead.
    pub async fn started(&self) -> Result<(), Outcome> {
        match self.wait_for(|status| !matches!(status, Status::Starting)).await {
            Status::Over(outcome) => Err(outcome),
            Status::Starting | Status::Up => Ok(()),
        }
    }

    /// Waits until the tree is over.
    pub async fn ended(&self) -> Outcome {
        loop {
            if let Status::Over(outcome) = self.wait_for(|status| matches!(status, Status::Over(_))).await {
                return outcome;
            }
        }
    }

    /// What everything is doing now, or did when the tree ended.
    pub async fn tree(&self) -> Node {
        let (answer, picture) = oneshot::channel();
        if self.commands.send(Command::Picture(answer)).is_ok()
            && let Ok(picture) = picture.await
        {
            return picture;
        }
        self.ended().await.tree
    }

    /// Everything that happens from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Adds a child to the group at this path (empty: the root group) and waits until it is started.
    ///
    /// # Errors
    /// The name is taken, the specification is wrong, the child does not start, or the group is not there.
    pub async fn start_child(&self, group: &str, child: ChildSpec<Work>) -> Result<(), CallError> {
        self.call(group, Request::Start(Box::new(child))).await
    }

    /// Stops the child at this path and waits until it is down; it stays down, and a temporary one is forgotten.
    ///
    /// # Errors
    /// There is no such child.
    pub async fn terminate_child(&self, path: &str) -> Result<(), CallError> {
        let (group, name) = split(path);
        self.call(group, Request::Terminate(name)).await
    }

    /// As [`terminate_child`](Self::terminate_child), but no restart of a sibling or of its group brings it back either:
    /// only [`restart_child`](Self::restart_child) of it, or of a group above it, does.
    ///
    /// # Errors
    /// There is no such child.
    pub async fn park_child(&self, path: &str) -> Result<(), CallError> {
        let (group, name) = split(path);
        self.call(group, Request::Park(name)).await
    }

    /// Adds a child that is down to the group at this path, as one that was parked.
    ///
    /// # Errors
    /// The name is taken, the specification is wrong, or the group is not there.
    pub async fn add_parked_child(&self, group: &str, child: ChildSpec<Work>) -> Result<(), CallError> {
        self.call(group, Request::Add(Box::new(child))).await
    }

    /// Starts the child at this path, which must be down, and waits until it is started; what was parked below it is
    /// started with it.
    ///
    /// # Errors
    /// There is no such child, it is not down, or it does not start.
    pub async fn restart_child(&self, path: &str) -> Result<(), CallError> {
        let (group, name) = split(path);
        self.call(group, Request::Restart(name)).await
    }

    /// Forgets the child at this path, which must be down.
    ///
    /// # Errors
    /// There is no such child, or it is not down.
    pub async fn delete_child(&self, path: &str) -> Result<(), CallError> {
        let (group, name) = split(path);
        self.call(group, Request::Delete(name)).await
    }

    /// Ends the tree in order: the last started child stops first. `ended` tells when it is done.
    pub fn shutdown(&self) {
        // a tree that is over needs no more
        let _ = self.commands.send(Command::Shutdown);
    }

    /// Ends the tree at once by killing whoever still runs, also while it is ending in order.
    pub fn kill(&self) {
        let _ = self.commands.send(Command::Kill);
    }

    async fn call(&self, group: &str, request: Request<Work>) -> Result<(), CallError> {
        let (answer, result) = oneshot::channel();
        let command = Command::Call { group: group.to_owned(), request, answer };
        self.commands.send(command).map_err(|_| CallError::Ended)?;
        result.await.unwrap_or(Err(CallError::Ended))
    }

    async fn wait_for(&self, is_meant: impl FnMut(&Status) -> bool) -> Status {
        let mut status = self.status.clone();
        let seen = status.wait_for(is_meant).await;
        seen.expect("the driver says how the tree ended before it goes").clone()
    }
}

fn split(path: &str) -> (&str, String) {
    let (group, name) = path.rsplit_once('/').unwrap_or(("", path));
    (group, name.to_owned())
}
