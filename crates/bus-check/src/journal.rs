//! Keeps a history while it is made: in memory, or in a file that survives a kill of its process.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::history::{Call, Operation, Outcome};

/// One line of a journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Entry {
    #[serde(rename = "i")]
    Invoked { n: u64, at: i64, client: i64, ask: Operation },
    #[serde(rename = "r")]
    Returned { n: u64, at: i64, told: Outcome },
}

/// Where one client notes what it does. Clones share the journal.
#[derive(Debug, Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    process: String,
    /// How far the client's own clock is off, in ms.
    skew_ms: i64,
    next: AtomicU64,
    sink: Mutex<Sink>,
}

#[derive(Debug)]
enum Sink {
    Memory(Vec<Entry>),
    File(File),
}

impl Journal {
    /// In memory, for a client within this process.
    #[must_use]
    pub fn in_memory(process: &str) -> Self {
        Self::new(process, 0, Sink::Memory(Vec::new()))
    }

    /// In a file, for a client that may be killed: what it was about to do stands there before it does it.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn in_file(process: &str, skew_ms: i64, path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self::new(process, skew_ms, Sink::File(file)))
    }

    fn new(process: &str, skew_ms: i64, sink: Sink) -> Self {
        let inner = Inner { process: process.to_owned(), skew_ms, next: AtomicU64::new(1), sink: Mutex::new(sink) };
        Self { inner: Arc::new(inner) }
    }

    /// Milliseconds of the client's own clock, which may be wrong.
    #[must_use]
    pub fn client_ms(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX).saturating_add(self.inner.skew_ms)
    }

    /// Notes that a call is about to be made; answers its number.
    pub fn invoked(&self, operation: Operation) -> u64 {
        let n = self.inner.next.fetch_add(1, Ordering::Relaxed);
        self.write(Entry::Invoked { n, at: now_us(), client: self.client_ms(), ask: operation });
        n
    }

    /// Notes what came back. A call without this is one whose outcome nobody knows.
    pub fn returned(&self, number: u64, outcome: Outcome) {
        self.write(Entry::Returned { n: number, at: now_us(), told: outcome });
    }

    /// The calls so far, for a journal in memory.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        match &*self.sink() {
            Sink::Memory(entries) => pair(&self.inner.process, entries.iter().cloned()),
            Sink::File(_) => Vec::new(),
        }
    }

    /// Forgets the calls so far, for a journal in memory.
    pub fn clear(&self) {
        if let Sink::Memory(entries) = &mut *self.sink() {
            entries.clear();
        }
    }

    fn sink(&self) -> MutexGuard<'_, Sink> {
        // a client that panicked has noted what it did up to there
        self.inner.sink.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, entry: Entry) {
        match &mut *self.sink() {
            Sink::Memory(entries) => entries.push(entry),
            Sink::File(file) => {
                let mut line = serde_json::to_vec(&entry).expect("entries are plain data");
                line.push(b'\n');
                // in one write, so that a kill leaves whole lines; the page cache outlives the process
                file.write_all(&line).expect("the directory of the journals is writable");
            }
        }
    }
}

/// Reads the journal that a process left; a line that was cut off by its end is no line.
///
/// # Errors
/// When the file cannot be read.
pub fn read(process: &str, path: &Path) -> io::Result<Vec<Call>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        // killed before its first call
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let entries = text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    Ok(pair(process, entries))
}

/// Microseconds of the Unix epoch by the clock of the machine, asked of the kernel: also where the process itself is shown
/// another time.
#[must_use]
pub fn now_us() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}

fn pair(process: &str, entries: impl Iterator<Item = Entry>) -> Vec<Call> {
    let mut calls = BTreeMap::new();
    for entry in entries {
        match entry {
            Entry::Invoked { n, at, client, ask } => {
                let call = Call {
                    process: process.to_owned(),
                    number: n,
                    invoked_us: at,
                    client_ms: client,
                    operation: ask,
                    outcome: Outcome::Unknown("nothing came back".to_owned()),
                    returned_us: None,
                };
                calls.insert(n, call);
            }
            Entry::Returned { n, at, told } => {
                if let Some(call) = calls.get_mut(&n) {
                    call.outcome = told;
                    call.returned_us = Some(at);
                }
            }
        }
    }
    calls.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Answer;

    #[test]
    fn a_call_without_its_reply_is_unknown_and_a_cut_line_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("w");
        let journal = Journal::in_file("w", 7_200_000, &path).unwrap();
        let first = journal.invoked(Operation::Reclaim);
        journal.returned(first, Outcome::Ok(Answer::Count(3)));
        journal.invoked(Operation::Expire);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"r\":{\"n\":2,\"at\"").unwrap();
        let calls = read("w", &path).unwrap();
        assert_eq!(calls.len(), 2);
        assert_eq!(calls[0].answer(), Some(&Answer::Count(3)));
        assert!(calls[1].is_unknown() && calls[1].returned_us.is_none());
        assert!(calls[0].client_ms - calls[0].invoked_us / 1000 >= 7_199_000);
        assert!(read("x", &directory.path().join("none")).unwrap().is_empty());
    }
}
