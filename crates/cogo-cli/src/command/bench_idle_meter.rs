//! Processor time of processes while one watches: to the nanosecond, and of threads that come and go as well.

use std::{collections::BTreeMap, fs, time::Duration};

use crate::proc_files::cpu_ms;

/// Whether a thread may have run before anybody watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    First,
    /// What was not there at the first look began since, so all of its time counts.
    Later,
}

/// What each thread has used, as far as it was seen: a thread that ends counts up to the last look at it.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    threads: BTreeMap<(u32, u32), Span>,
}

#[derive(Debug)]
struct Span {
    first: Duration,
    last: Duration,
}

impl Meter {
    pub(crate) fn look(&mut self, pid: u32, look: Look) {
        for (thread, used) in threads(pid) {
            let first = if look == Look::First { used } else { Duration::ZERO };
            let span = self.threads.entry((pid, thread)).or_insert(Span { first, last: used });
            span.last = span.last.max(used);
        }
    }

    /// What a process has used since the first look; none if it was never seen.
    pub(crate) fn used(&self, pid: u32) -> Option<Duration> {
        let mut spans = self.threads.range((pid, 0)..=(pid, u32::MAX)).map(|(_, span)| span).peekable();
        spans.peek()?;
        Some(spans.map(|span| span.last.saturating_sub(span.first)).sum())
    }
}

/// The threads of a process and what they have used; a kernel that counts no nanoseconds tells it of the whole in ticks.
fn threads(pid: u32) -> Vec<(u32, Duration)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let exact: Vec<(u32, Duration)> = tasks
        .filter_map(|task| {
            let thread = task.file_name().to_str()?.parse().ok()?;
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            let nanoseconds = text.split_whitespace().next()?.parse().ok()?;
            Some((thread, Duration::from_nanos(nanoseconds)))
        })
        .collect();
    if exact.is_empty() {
        return cpu_ms(pid).map(|used| (pid, Duration::from_millis(used))).into_iter().collect();
    }
    exact
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Instant};

    use super::*;

    fn spin(time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn the_time_of_a_thread_counts_from_the_first_look_on_and_after_its_end() {
        let own = std::process::id();
        let mut meter = Meter::default();
        assert_eq!(meter.used(own), None);
        meter.look(own, Look::First);
        assert_eq!(meter.used(own), Some(Duration::ZERO));
        let (spun, wait) = (mpsc::channel(), mpsc::channel::<()>());
        let thread = std::thread::spawn(move || {
            spin(Duration::from_millis(60));
            spun.0.send(()).expect("the test waits");
            // alive until it was looked at
            let _ = wait.1.recv();
        });
        spun.1.recv().expect("the thread says so");
        meter.look(own, Look::Later);
        drop(wait.0);
        thread.join().expect("the thread ends");
        meter.look(own, Look::Later);
        let used = meter.used(own).expect("this process was seen");
        assert!(used > Duration::from_millis(1), "{used:?}");
    }

    #[test]
    fn a_process_that_is_not_there_has_no_figure() {
        let mut meter = Meter::default();
        meter.look(u32::MAX, Look::First);
        assert_eq!(meter.used(u32::MAX), None);
    }
}
