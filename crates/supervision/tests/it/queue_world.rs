//! A queue and its workers in simulated time, for the autoscaler.

use std::{collections::VecDeque, time::Duration};

use cogo_supervision::autoscale::{Autoscaler, Decision, Sample, Settings};

/// One turn of the simulation; times of work should be multiples of it.
pub(crate) const TURN: Duration = Duration::from_millis(50);
/// From a wanted worker to one that works.
pub(crate) const START_UP: Duration = Duration::from_secs(2);
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
const RATE_WINDOW: Duration = Duration::from_secs(3);

/// Messages that arrive at a rate, and workers that each work on one at a time.
pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) desired: u32,
    service: Duration,
    /// Whether the samples tell the time of work.
    pub(crate) measures_service: bool,
    /// When each wanted worker works.
    workers: VecDeque<Duration>,
    /// When each waiting message came.
    queue: VecDeque<Duration>,
    /// When each message at work ends.
    at_work: Vec<Duration>,
    ended: VecDeque<Duration>,
    arriving: f64,
    next_sample: Duration,
    scaler: Autoscaler,
    /// Every decision that changed the count, with its time.
    pub(crate) changes: Vec<(Duration, Decision)>,
    /// The last decision.
    pub(crate) last: Option<Decision>,
}

impl World {
    /// A pool that has run with this many workers for long; the first sample is taken after `phase`.
    pub(crate) fn new(settings: Settings, workers: u32, service: Duration, phase: Duration) -> Self {
        Self {
            now: Duration::ZERO,
            desired: workers,
            service,
            measures_service: true,
            workers: (0..workers).map(|_| Duration::ZERO).collect(),
            queue: VecDeque::new(),
            at_work: Vec::new(),
            ended: VecDeque::new(),
            arriving: 0.0,
            next_sample: phase,
            scaler: Autoscaler::new(settings).unwrap(),
            changes: Vec::new(),
            last: None,
        }
    }

    /// Workers that work now.
    pub(crate) fn ready(&self) -> u32 {
        u32::try_from(self.workers.iter().filter(|ready_at| **ready_at <= self.now).count()).unwrap()
    }

    /// Lets time pass while this many messages arrive per second.
    pub(crate) fn run(&mut self, seconds: f64, rate: f64) {
        self.run_with(seconds, |_now| rate);
    }

    /// Lets time pass while messages arrive at a rate that depends on the time.
    pub(crate) fn run_with(&mut self, seconds: f64, rate: impl Fn(f64) -> f64) {
        let end = self.now + Duration::from_secs_f64(seconds);
        while self.now < end {
            self.turn(rate(self.now.as_secs_f64()));
        }
    }

    fn turn(&mut self, rate: f64) {
        self.now += TURN;
        self.arriving += rate * TURN.as_secs_f64();
        while self.arriving >= 1.0 {
            self.arriving -= 1.0;
            self.queue.push_back(self.now);
        }
        let now = self.now;
        let before = self.at_work.len();
        self.at_work.retain(|ends| *ends > now);
        self.ended.extend(std::iter::repeat_n(now, before - self.at_work.len()));
        while self.at_work.len() < self.ready() as usize && self.queue.pop_front().is_some() {
            self.at_work.push(now + self.service);
        }
        if self.now >= self.next_sample {
            self.next_sample += SAMPLE_EVERY;
            self.sample();
        }
    }

    fn sample(&mut self) {
        while self.ended.front().is_some_and(|ended| self.now - *ended >= RATE_WINDOW) {
            self.ended.pop_front();
        }
        let sample = Sample {
            at: self.now,
            current: self.desired,
            ready: self.ready(),
            queued: self.queue.len() as u64,
            oldest_age: self.queue.front().map_or(Duration::ZERO, |came| self.now - *came),
            in_flight: self.at_work.len() as u64,
            ended: self.ended.len() as u64,
            over: RATE_WINDOW,
            service_time: (self.measures_service && !self.ended.is_empty()).then_some(self.service),
        };
        let decision = self.scaler.decide(sample);
        if decision.is_change() {
            self.desired = decision.desired;
            let ready_at = self.now + START_UP;
            self.workers.resize(decision.desired as usize, ready_at);
            self.changes.push((self.now, decision.clone()));
        }
        self.last = Some(decision);
    }
}
