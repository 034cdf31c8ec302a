//! What the last samples say together: rates, the time of work, and for how long more or fewer were wanted.

use std::{cmp::Ordering, collections::VecDeque, time::Duration};

use super::Sample;

/// What earlier measurements of the time of work still weigh at each new one.
const FADES_TO: f64 = 0.95;
/// How much the assumed time of work weighs, in ends per second.
const ASSUMPTION_WEIGHT: f64 = 0.1;
/// What a measurement weighs that was made while the work under way was not steady.
const UNSTEADY_WEIGHT: f64 = 0.1;
/// Work under way counts as steady while it stays within this share of where it began, or one message.
const STEADY_WITHIN: f64 = 0.2;

/// Rates at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rates {
    pub(super) ended_per_s: f64,
    pub(super) arrivals_per_s: f64,
}

/// The samples of the time that one sample's `ended` covers, and the time of work that all of them showed.
#[derive(Debug, Default)]
pub(super) struct Samples {
    kept: VecDeque<Sample>,
    /// Since when the work under way is steady, and how much it was then.
    steady: Option<(Duration, f64)>,
    /// Faded sums of work under way and of ends per second.
    under_way: f64,
    ends: f64,
    /// Whether somebody measures the time of work; then it is not worked out here.
    is_told: bool,
}

impl Samples {
    /// Takes in a sample and answers the rates with it.
    pub(super) fn observe(&mut self, sample: Sample) -> Rates {
        self.kept.push_back(sample);
        let since = sample.at.saturating_sub(sample.over);
        // one from before the time that is covered is the other end of the difference
        while self.kept.get(1).is_some_and(|second| second.at <= since) {
            self.kept.pop_front();
        }
        let ended_per_s = per_second(sample.ended, sample.over);
        let first = self.kept.front().copied().unwrap_or(sample);
        let passed = sample.at.saturating_sub(first.at).as_secs_f64();
        let growth = if passed > 0.0 { (load(&sample) - load(&first)) / passed } else { 0.0 };
        let rates = Rates { ended_per_s, arrivals_per_s: (ended_per_s + growth).max(0.0) };
        self.measure_service(sample, ended_per_s);
        rates
    }

    /// Seconds of work on one message.
    pub(super) fn service_s(&self, assumed: Duration) -> f64 {
        (self.under_way + ASSUMPTION_WEIGHT * assumed.as_secs_f64()) / (self.ends + ASSUMPTION_WEIGHT)
    }

    /// By Little's law the mean number under way is the rate of ends times the time of work. At any one moment that holds
    /// only if both are steady: what ended was begun one time of work ago, so that long before the ends that are counted
    /// nothing may have changed. In the long run it holds anyhow, hence the small weight of unsteady moments.
    fn measure_service(&mut self, sample: Sample, ended_per_s: f64) {
        if let Some(time) = sample.service_time {
            if !self.is_told {
                (self.under_way, self.ends, self.is_told) = (0.0, 0.0, true);
            }
            self.take(time.as_secs_f64(), 1.0, 1.0);
        }
        if self.is_told {
            return;
        }
        let total: f64 = self.kept.iter().map(|kept| count(kept.in_flight)).sum();
        let mean_under_way = total / count(self.kept.len() as u64);
        let under_way = count(sample.in_flight);
        let is_steady = |begun: f64| (under_way - begun).abs() <= (STEADY_WITHIN * begun).max(1.0);
        let since = match self.steady {
            Some((since, begun)) if is_steady(begun) => since,
            _ => {
                self.steady = Some((sample.at, under_way));
                sample.at
            }
        };
        let steady_for = sample.at.saturating_sub(since).as_secs_f64();
        let settles_in = under_way / ended_per_s.max(f64::MIN_POSITIVE) + sample.over.as_secs_f64();
        let weight = if steady_for >= settles_in { 1.0 } else { UNSTEADY_WEIGHT };
        self.take(mean_under_way, ended_per_s, weight);
    }

    fn take(&mut self, under_way: f64, ends: f64, weight: f64) {
        let faded = FADES_TO.powf(weight);
        self.under_way = faded * self.under_way + weight * under_way;
        self.ends = faded * self.ends + weight * ends;
    }
}

/// Wishes since the count last changed or the wish last changed sides.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    side: Option<Ordering>,
    since: Duration,
    kept: VecDeque<(Duration, u32)>,
}

impl Wishes {
    /// Takes in a wish; `hold` is for how long wishes of this side matter.
    pub(super) fn observe(&mut self, at: Duration, wanted: u32, current: u32, hold: Duration) {
        let side = wanted.cmp(&current);
        if self.side != Some(side) {
            self.side = Some(side);
            self.since = at;
            self.kept.clear();
        }
        self.kept.push_back((at, wanted));
        while self.kept.front().is_some_and(|(then, _)| at.saturating_sub(*then) > hold) {
            self.kept.pop_front();
        }
    }

    /// For how long the wish has been on its side.
    pub(super) fn held(&self, at: Duration) -> Duration {
        at.saturating_sub(self.since)
    }

    /// The most that was wanted in the second half of the hold; the first half still shows how it came to be.
    pub(super) fn most(&self, at: Duration, hold: Duration) -> u32 {
        let settled = self.kept.iter().filter(|(then, _)| at.saturating_sub(*then) <= hold / 2);
        settled.map(|(_, wanted)| *wanted).max().unwrap_or(0)
    }

    pub(super) fn clear(&mut self) {
        self.side = None;
        self.kept.clear();
    }
}

/// Messages that are not over.
pub(super) fn load(sample: &Sample) -> f64 {
    count(sample.queued) + count(sample.in_flight)
}

/// Exact up to 2^53, which is more messages than there will be.
#[expect(clippy::cast_precision_loss, reason = "the loss is a rounding of numbers that no queue reaches")]
pub(super) fn count(number: u64) -> f64 {
    number as f64
}

fn per_second(number: u64, over: Duration) -> f64 {
    let seconds = over.as_secs_f64();
    if seconds > 0.0 { count(number) / seconds } else { 0.0 }
}
