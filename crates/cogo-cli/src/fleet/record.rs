//! The state of the fleet in the hands of its `cogo up`: every change goes to disk at once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;

use crate::fleet::{FleetState, Home, ProcessState};

/// Shared by everything that changes the fleet.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    home: Home,
    state: Arc<Mutex<FleetState>>,
}

impl Record {
    pub(crate) fn new(home: Home, state: FleetState) -> Self {
        let record = Self { home, state: Arc::new(Mutex::new(state)) };
        record.change(|_| {});
        record
    }

    pub(crate) fn state(&self) -> FleetState {
        self.lock().clone()
    }

    /// Changes the state and writes it; a full disk must not stop the fleet.
    pub(crate) fn change(&self, change: impl FnOnce(&mut FleetState)) {
        let mut state = self.lock();
        change(&mut state);
        if let Err(failure) = self.home.write_state(&state) {
            warn!(error = failure.text(), "the state of the fleet could not be written");
        }
    }

    pub(crate) fn change_process(&self, name: &str, change: impl FnOnce(&mut ProcessState)) {
        self.change(|state| {
            if let Some(process) = state.processes.iter_mut().find(|process| process.name == name) {
                change(process);
            }
        });
    }

    /// As [`change_process`](Self::change_process), for the instance at a path of the tree; other paths change nothing.
    pub(crate) fn change_path(&self, path: &str, change: impl FnOnce(&mut ProcessState)) {
        let name =
            self.lock().processes.iter().find(|process| process.path == path).map(|process| process.name.clone());
        if let Some(name) = name {
            self.change_process(&name, change);
        }
    }

    /// Adds an instance behind the others of its process, or begins it anew.
    pub(crate) fn add(&self, fresh: ProcessState) {
        self.change(|state| {
            state.processes.retain(|process| process.path != fresh.path);
            let group = |path: &str| path.rsplit_once('/').map(|(group, _)| group.to_owned());
            let behind = state.processes.iter().rposition(|process| group(&process.path) == group(&fresh.path));
            let place = behind.map_or(state.processes.len(), |last| last + 1);
            state.processes.insert(place, fresh);
        });
    }

    /// Forgets an instance.
    pub(crate) fn remove(&self, path: &str) {
        self.change(|state| state.processes.retain(|process| process.path != path));
    }

    fn lock(&self) -> MutexGuard<'_, FleetState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
