//! The rules of probes without I/O: answers and the time go in, what is to be asked and the health come out.

use std::time::Duration;

use super::{Health, Invalid, Kind, ProbeView, Reason, Spec, Verdict};

/// One asking of one probe; a later one has a greater number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(u64);

/// The rules of the probes of one process. Times are of one clock.
#[derive(Debug)]
pub struct Core {
    probes: Vec<Probe>,
    next_run: u64,
}

#[derive(Debug)]
struct Probe {
    spec: Spec,
    verdict: Verdict,
    failures: u32,
    successes: u32,
    last_failure: Option<String>,
    /// When it is to be asked.
    next: Duration,
    running: Option<Running>,
}

#[derive(Debug, Clone, Copy)]
struct Running {
    run: RunId,
    until: Duration,
}

impl Core {
    /// Probes that are asked from now on.
    ///
    /// # Errors
    /// The first rule that they break.
    pub fn new(specs: Vec<Spec>, now: Duration) -> Result<Self, Invalid> {
        Spec::validate_all(&specs)?;
        let probes = specs.into_iter().map(|spec| Probe::new(spec, now)).collect();
        Ok(Self { probes, next_run: 0 })
    }

    /// The probes that are to be asked now, by their place in the order given; each must be answered by
    /// [`answered`](Self::answered) with its run.
    pub fn due(&mut self, now: Duration) -> Vec<(usize, RunId)> {
        let started = self.is_started();
        let mut due = Vec::new();
        for (place, probe) in self.probes.iter_mut().enumerate() {
            if probe.running.is_some() || probe.next > now || !probe.is_asked(started) {
                continue;
            }
            let run = RunId(self.next_run);
            self.next_run += 1;
            probe.running = Some(Running { run, until: now.saturating_add(probe.spec.timeout) });
            // from now, so that a pause of the machine is not followed by a burst
            probe.next = now.saturating_add(probe.spec.period);
            due.push((place, run));
        }
        due
    }

    /// A probe was answered; an answer that came too late counts for nothing.
    pub fn answered(&mut self, now: Duration, run: RunId, answer: Result<(), String>) {
        self.expire(now);
        let was_started = self.is_started();
        let asked = |probe: &&mut Probe| probe.running.is_some_and(|running| running.run == run);
        if let Some(probe) = self.probes.iter_mut().find(asked) {
            probe.running = None;
            probe.take(answer);
        }
        if !was_started && self.is_started() {
            for probe in self.probes.iter_mut().filter(|probe| probe.spec.kind != Kind::Startup) {
                probe.next = now.saturating_add(probe.spec.initial_delay);
            }
        }
    }

    /// Counts what was not answered in time as failed; answers which, so that nobody waits for them any more.
    pub fn expire(&mut self, now: Duration) -> Vec<RunId> {
        let mut expired = Vec::new();
        for probe in &mut self.probes {
            if let Some(running) = probe.running.filter(|running| running.until <= now) {
                probe.running = None;
                let reason = format!("no answer within {} ms", probe.spec.timeout.as_millis());
                probe.take(Err(reason));
                expired.push(running.run);
            }
        }
        expired
    }

    /// When [`due`](Self::due) and [`expire`](Self::expire) have something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let started = self.is_started();
        let next = |probe: &Probe| match probe.running {
            Some(running) => Some(running.until),
            None => probe.is_asked(started).then_some(probe.next),
        };
        self.probes.iter().filter_map(next).min()
    }

    /// The state that all probes make together.
    #[must_use]
    pub fn health(&self, now: Duration) -> Health {
        let started = self.is_started();
        let late = self.probes.iter().filter(|probe| probe.is_asked(started)).filter_map(|probe| probe.late(now));
        Health::of(self.probes.iter().map(Probe::view).collect(), late.collect())
    }

    fn is_started(&self) -> bool {
        let startup = self.probes.iter().filter(|probe| probe.spec.kind == Kind::Startup);
        startup.into_iter().all(|probe| probe.verdict == Verdict::Passing)
    }
}

impl Probe {
    fn new(spec: Spec, now: Duration) -> Self {
        let next = now.saturating_add(spec.initial_delay);
        Self { spec, verdict: Verdict::Unknown, failures: 0, successes: 0, last_failure: None, next, running: None }
    }

    fn is_asked(&self, started: bool) -> bool {
        match self.spec.kind {
            Kind::Startup => self.verdict != Verdict::Passing,
            _ => started,
        }
    }

    fn take(&mut self, answer: Result<(), String>) {
        match answer {
            Ok(()) => {
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                self.last_failure = None;
                if self.successes >= self.spec.success_threshold {
                    self.verdict = Verdict::Passing;
                }
            }
            Err(reason) => {
                self.successes = 0;
                self.failures = self.failures.saturating_add(1);
                self.last_failure = Some(reason);
                if self.failures >= self.spec.failure_threshold {
                    self.verdict = Verdict::Failing;
                }
            }
        }
    }

    /// Whether it should have been asked so long ago that its verdict says nothing any more.
    fn late(&self, now: Duration) -> Option<Reason> {
        if self.running.is_some() {
            return None;
        }
        let late_by = now.checked_sub(self.next)?;
        let patience = self.spec.period.saturating_mul(self.spec.failure_threshold);
        (late_by > patience).then(|| Reason {
            probe: self.spec.name.clone(),
            kind: self.spec.kind,
            text: format!("has not been asked for {} ms", (late_by + self.spec.period).as_millis()),
        })
    }

    fn view(&self) -> ProbeView {
        ProbeView {
            name: self.spec.name.clone(),
            kind: self.spec.kind,
            verdict: self.verdict,
            failures: self.failures,
            successes: self.successes,
            last_failure: self.last_failure.clone(),
        }
    }
}
