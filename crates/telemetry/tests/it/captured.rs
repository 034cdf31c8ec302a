//! A log that a test can read back.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use cogo_telemetry::{Guard, Look, Settings, assemble};
use serde_json::Value;
use tracing::Dispatch;
use tracing_subscriber::fmt::MakeWriter;

/// Collects what the subscriber writes.
#[derive(Clone, Default)]
pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    /// Everything written so far.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// Each line as JSON.
    pub(crate) fn lines(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'writer> MakeWriter<'writer> for Captured {
    type Writer = Self;

    fn make_writer(&'writer self) -> Self {
        self.clone()
    }
}

/// Settings of a process under test.
pub(crate) fn settings() -> Settings {
    Settings::new("cogo-telemetry-test", "1.2.3", "test-1")
}

/// A subscriber for one test, with what it logs.
pub(crate) fn telemetry(settings: &Settings, look: Look) -> (Dispatch, Guard, Captured) {
    let captured = Captured::default();
    let (dispatch, guard) = assemble(settings, captured.clone(), look).unwrap();
    (dispatch, guard, captured)
}
