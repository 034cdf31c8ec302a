//! Makes decisions: listens to the voices, then holds back what is too early or too much.

use std::{cmp::Ordering, time::Duration};

use super::{
    Decision, Inputs, Invalid, Limit, Sample, Settings,
    candidates::Situation,
    history::{Rates, Samples, Wishes},
    holt::Holt,
};

/// Decides for one pool; samples must come in the order of their time.
#[derive(Debug)]
pub struct Autoscaler {
    settings: Settings,
    samples: Samples,
    wishes: Wishes,
    forecast: Holt,
    /// The count that was last seen or decided, and when it changed.
    count: Option<u32>,
    changed_at: Option<Duration>,
}

impl Autoscaler {
    /// Knows nothing yet.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn new(settings: Settings) -> Result<Self, Invalid> {
        settings.validate()?;
        let forecast = Holt::new(settings.level_weight, settings.trend_weight, settings.horizon);
        Ok(Self {
            settings,
            samples: Samples::default(),
            wishes: Wishes::default(),
            forecast,
            count: None,
            changed_at: None,
        })
    }

    /// What it decides by.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How many workers there shall be. A moment without figures is no sample: then nothing is decided, and nothing
    /// scales down for want of figures.
    pub fn decide(&mut self, sample: Sample) -> Decision {
        self.notice_count(sample);
        let rates = self.samples.observe(sample);
        self.forecast.observe(sample.at, rates.arrivals_per_s);
        let service_s = self.samples.service_s(self.settings.assumed_service_time);
        let unchanged_for = self.changed_at.map(|changed| sample.at.saturating_sub(changed));
        let situation = Situation { settings: &self.settings, sample, rates, service_s, unchanged_for };
        let candidates = situation.all(&self.forecast);
        let voices = candidates.iter().filter(|candidate| candidate.counts);
        let wanted = voices.map(|candidate| candidate.wanted).max().unwrap_or(0);

        let (desired, limits) = self.brake(sample, wanted, unchanged_for);
        if desired != sample.current {
            self.count = Some(desired);
            self.changed_at = Some(sample.at);
            self.wishes.clear();
        }
        let inputs = inputs(sample, rates, service_s);
        let mut decision = Decision { inputs, candidates, wanted, desired, limits, sentence: String::new() };
        decision.explain();
        decision
    }

    /// Somebody else may have changed the count, which counts as a change.
    fn notice_count(&mut self, sample: Sample) {
        if self.count.is_some_and(|count| count != sample.current) {
            self.changed_at = Some(sample.at);
            self.wishes.clear();
        }
        self.count = Some(sample.current);
    }

    fn brake(&mut self, sample: Sample, wanted: u32, unchanged_for: Option<Duration>) -> (u32, Vec<Limit>) {
        let Settings { min, max, .. } = self.settings;
        let mut limits = Vec::new();
        // bounds that were moved are kept at once
        let current = sample.current.clamp(min, max);
        if current != sample.current {
            let wanted = sample.current;
            limits.push(if wanted < min { Limit::Min { wanted } } else { Limit::Max { wanted } });
            return (current, limits);
        }
        match wanted {
            less if less < min => limits.push(Limit::Min { wanted }),
            more if more > max => limits.push(Limit::Max { wanted }),
            _ => {}
        }
        let within = wanted.clamp(min, max);
        let side = within.cmp(&current);
        let (hold, cool_down) = match side {
            Ordering::Less => (self.settings.hold_down, self.settings.cool_down_down),
            _ => (self.settings.hold_up, self.settings.cool_down_up),
        };
        self.wishes.observe(sample.at, within, current, hold);
        if side == Ordering::Equal {
            return (current, limits);
        }
        let held = self.wishes.held(sample.at);
        if held < hold {
            limits.push(Limit::Hold { held_ms: millis(held), needed_ms: millis(hold) });
            return (current, limits);
        }
        if let Some(left) =
            unchanged_for.and_then(|unchanged| cool_down.checked_sub(unchanged)).filter(|l| !l.is_zero())
        {
            limits.push(Limit::CoolDown { left_ms: millis(left) });
            return (current, limits);
        }
        let settled = self.wishes.most(sample.at, hold);
        if settled != within {
            limits.push(Limit::Lately { wanted: settled });
        }
        let furthest = match side {
            Ordering::Less => current.saturating_sub(self.settings.step_down.unwrap_or(u32::MAX)),
            _ => current.saturating_add(self.settings.step_up.unwrap_or(u32::MAX)),
        };
        let stepped = if side == Ordering::Less { settled.max(furthest) } else { settled.min(furthest) };
        if stepped != settled {
            limits.push(Limit::Step { wanted: settled });
        }
        (stepped.clamp(min, max), limits)
    }
}

fn inputs(sample: Sample, rates: Rates, service_s: f64) -> Inputs {
    Inputs {
        current: sample.current,
        ready: sample.ready,
        queued: sample.queued,
        oldest_age_ms: millis(sample.oldest_age),
        in_flight: sample.in_flight,
        ended_per_s: rates.ended_per_s,
        arrivals_per_s: rates.arrivals_per_s,
        service_ms: service_s * 1000.0,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
