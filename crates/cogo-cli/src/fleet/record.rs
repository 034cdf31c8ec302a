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

    fn lock(&self) -> MutexGuard<'_, FleetState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
