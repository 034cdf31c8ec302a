//! Holt's double exponential smoothing, and a record of whether it has been worth listening to.

use std::{collections::VecDeque, time::Duration};

/// Forecasts must have been at least this much better than "it stays as it is".
const BETTER_THAN_LAST: f64 = 0.9;
/// So many forecasts must have been compared with what came.
const LEAST_COMPARED: u32 = 5;
/// Weight of a new error in the mean error.
const ERROR_WEIGHT: f64 = 0.1;

/// Level and trend of a series, after C. C. Holt (Forecasting seasonals and trends by exponentially weighted moving
/// averages, 1957), with the trend per second so that observations need not be evenly spaced.
#[derive(Debug, Clone)]
pub struct Holt {
    level_weight: f64,
    trend_weight: f64,
    horizon: Duration,
    state: Option<Fit>,
    pending: VecDeque<Forecast>,
    compared: u32,
    error: f64,
    error_of_last: f64,
}

#[derive(Debug, Clone, Copy)]
struct Fit {
    at: Duration,
    level: f64,
    trend_per_s: f64,
}

#[derive(Debug, Clone, Copy)]
struct Forecast {
    due: Duration,
    forecast: f64,
    last: f64,
}

impl Holt {
    /// Nothing is known. Weights are above 0 and at most 1; `horizon` is how far it is to look ahead.
    #[must_use]
    pub const fn new(level_weight: f64, trend_weight: f64, horizon: Duration) -> Self {
        Self {
            level_weight,
            trend_weight,
            horizon,
            state: None,
            pending: VecDeque::new(),
            compared: 0,
            error: 0.0,
            error_of_last: 0.0,
        }
    }

    /// Takes in an observation; one that is not after the last changes nothing.
    pub fn observe(&mut self, at: Duration, value: f64) {
        self.compare(at, value);
        let Some(fit) = self.state else {
            self.state = Some(Fit { at, level: value, trend_per_s: 0.0 });
            return;
        };
        let passed = at.saturating_sub(fit.at).as_secs_f64();
        if passed <= 0.0 {
            return;
        }
        let expected = fit.trend_per_s.mul_add(passed, fit.level);
        let level = self.level_weight * value + (1.0 - self.level_weight) * expected;
        let slope = (level - fit.level) / passed;
        let trend_per_s = self.trend_weight * slope + (1.0 - self.trend_weight) * fit.trend_per_s;
        self.state = Some(Fit { at, level, trend_per_s });
        if let Some(forecast) = self.forecast() {
            self.pending.push_back(Forecast { due: at + self.horizon, forecast, last: value });
        }
    }

    /// The value at the horizon, never below 0; none before two observations.
    #[must_use]
    pub fn forecast(&self) -> Option<f64> {
        let fit = self.state?;
        Some(fit.trend_per_s.mul_add(self.horizon.as_secs_f64(), fit.level).max(0.0))
    }

    /// Whether its forecasts have lately been clearly better than the last value. On steps and on noise they are not.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.compared >= LEAST_COMPARED && self.error < BETTER_THAN_LAST * self.error_of_last
    }

    /// Mean error of the forecast, and of the last value in its place.
    #[must_use]
    pub const fn errors(&self) -> (f64, f64) {
        (self.error, self.error_of_last)
    }

    fn compare(&mut self, at: Duration, value: f64) {
        while let Some(forecast) = self.pending.front().copied().filter(|forecast| forecast.due <= at) {
            self.pending.pop_front();
            let (error, error_of_last) = ((forecast.forecast - value).abs(), (forecast.last - value).abs());
            if self.compared == 0 {
                (self.error, self.error_of_last) = (error, error_of_last);
            } else {
                self.error += ERROR_WEIGHT * (error - self.error);
                self.error_of_last += ERROR_WEIGHT * (error_of_last - self.error_of_last);
            }
            self.compared = self.compared.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(values: impl IntoIterator<Item = f64>) -> Holt {
        let mut holt = Holt::new(0.5, 0.2, Duration::from_secs(10));
        for (second, value) in (0_u64..).zip(values) {
            holt.observe(Duration::from_secs(second), value);
        }
        holt
    }

    #[test]
    fn a_ramp_is_followed_and_trusted() {
        let holt = fed((0..60).map(f64::from));
        let forecast = holt.forecast().unwrap();
        assert!((forecast - 69.0).abs() < 0.5, "{forecast}");
        assert!(holt.is_trusted(), "{:?}", holt.errors());
    }

    #[test]
    fn steps_and_constants_are_not_trusted() {
        assert!(!fed((0..200).map(|_| 5.0)).is_trusted());
        for seconds in 21..400 {
            let square = fed((0..seconds).map(|second| if (second / 20) % 2 == 0 { 10.0 } else { 100.0 }));
            assert!(!square.is_trusted(), "after {seconds} s: {:?}", square.errors());
        }
    }

    #[test]
    fn falling_values_never_forecast_less_than_nothing() {
        assert_eq!(fed((0..50).map(|second| f64::from(100 - 2 * second))).forecast(), Some(0.0));
    }
}
