//! The formulas: each turns figures into a number of workers.

use std::time::Duration;

use super::{
    Candidate, Sample, Settings, Source,
    history::{Rates, count, load},
    holt::Holt,
};

/// A message that is too old may at most double the count in one step, whatever its age.
const AGE_AT_MOST: f64 = 2.0;

/// What every formula knows.
pub(super) struct Situation<'a> {
    pub(super) settings: &'a Settings,
    pub(super) sample: Sample,
    pub(super) rates: Rates,
    pub(super) service_s: f64,
    /// Time since the count last changed; none if it never did.
    pub(super) unchanged_for: Option<Duration>,
}

impl Situation<'_> {
    pub(super) fn all(&self, forecast: &Holt) -> Vec<Candidate> {
        let arrivals = self.for_arrivals(Source::Arrivals, self.rates.arrivals_per_s, "arrive");
        let mut all = vec![arrivals, self.backlog()];
        all.extend(self.age());
        all.extend(self.in_flight());
        all.extend(self.forecast(forecast));
        all
    }

    /// Little's law: the mean number at work is the rate of arrival times the time of work.
    fn for_arrivals(&self, source: Source, per_s: f64, verb: &str) -> Candidate {
        let Settings { per_worker, utilisation, .. } = *self.settings;
        let exact = per_s * self.service_s / (f64::from(per_worker) * utilisation);
        let why = format!(
            "{per_s:.2} per s {verb}, {:.0} ms of work each, {per_worker} at once, busy {:.0} % of the time",
            self.service_s * 1000.0,
            utilisation * 100.0
        );
        self.candidate(source, exact, why)
    }

    /// Kubernetes: the present count times metric over target; metric is the load of a worker, target what it gets
    /// through while a message may wait.
    fn backlog(&self) -> Candidate {
        let per_worker = f64::from(self.settings.per_worker);
        let target = per_worker * (1.0 + self.settings.wait_target.as_secs_f64() / self.service_s.max(1e-6));
        let exact = load(&self.sample) / target;
        let (queued, in_flight) = (self.sample.queued, self.sample.in_flight);
        let why = format!("{queued} wait and {in_flight} are at work, {target:.1} are the target of a worker");
        self.candidate(Source::Backlog, exact, why)
    }

    /// The same formula with age for metric; only upwards, and not before the last change could show.
    fn age(&self) -> Option<Candidate> {
        let Sample { oldest_age: age, current, .. } = self.sample;
        let target = self.settings.wait_target;
        if age <= target {
            return None;
        }
        let ratio = (age.as_secs_f64() / target.as_secs_f64()).min(AGE_AT_MOST);
        let for_each_a_worker = load(&self.sample) / f64::from(self.settings.per_worker);
        let exact = (f64::from(current.max(1)) * ratio).min(for_each_a_worker);
        let (age_s, target_s) = (age.as_secs_f64(), target.as_secs_f64());
        let why = format!("the oldest has waited {age_s:.1} s, {target_s:.1} s are the target");
        let mut candidate = self.candidate(Source::Age, exact, why);
        if self.unchanged_for.is_some_and(|unchanged| unchanged < target) {
            candidate.counts = false;
            candidate.why.push_str(", but the last change has not had that long to show");
        }
        Some(candidate)
    }

    /// Whoever works is not ended; more than there are it cannot ask for.
    fn in_flight(&self) -> Option<Candidate> {
        let Sample { in_flight, current, .. } = self.sample;
        if in_flight == 0 {
            return None;
        }
        let exact = (count(in_flight) / f64::from(self.settings.per_worker)).min(f64::from(current));
        let why = format!("{in_flight} are at work, {} at once", self.settings.per_worker);
        Some(self.candidate(Source::InFlight, exact, why))
    }

    fn forecast(&self, forecast: &Holt) -> Option<Candidate> {
        let per_s = forecast.forecast()?;
        let horizon_s = self.settings.horizon.as_secs_f64();
        let mut candidate = self.for_arrivals(Source::Forecast, per_s, &format!("will arrive in {horizon_s:.0} s"));
        if !forecast.is_trusted() {
            let (error, error_of_last) = forecast.errors();
            candidate.counts = false;
            candidate.why.push_str(&format!(
                ", but lately it was off by {error:.2} and taking the last value by {error_of_last:.2}"
            ));
        } else if candidate.wanted <= self.sample.current {
            candidate.counts = false;
            candidate.why.push_str(", but a forecast may only raise the count");
        }
        Some(candidate)
    }

    fn candidate(&self, source: Source, exact: f64, why: String) -> Candidate {
        let current = self.sample.current;
        let ratio = exact / f64::from(current);
        let wanted = if current > 0 && (ratio - 1.0).abs() <= self.settings.tolerance { current } else { ceil(exact) };
        Candidate { source, exact, wanted, counts: true, why }
    }
}

/// The next whole number; what no `u32` holds becomes its nearest.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, and bounds come after it"
)]
fn ceil(exact: f64) -> u32 {
    // what is above a whole number by an error of rounding only is that number
    (exact - 1e-9).ceil().max(0.0) as u32
}
