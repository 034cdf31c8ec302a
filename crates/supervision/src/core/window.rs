//! Counts restarts within a period.

use std::{collections::VecDeque, time::Duration};

#[derive(Debug, Default)]
pub(super) struct Window {
    restarts: VecDeque<Duration>,
}

impl Window {
    /// Notes a restart; whether it is still within what is allowed.
    pub(super) fn allows(&mut self, now: Duration, intensity: u32, period: Duration) -> bool {
        while self.restarts.front().is_some_and(|earlier| now.saturating_sub(*earlier) > period) {
            self.restarts.pop_front();
        }
        self.restarts.push_back(now);
        self.restarts.len() <= intensity as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(intensity: u32, times_ms: &[u64]) -> Vec<bool> {
        let mut window = Window::default();
        let period = Duration::from_secs(1);
        times_ms.iter().map(|ms| window.allows(Duration::from_millis(*ms), intensity, period)).collect()
    }

    #[test]
    fn one_more_than_the_intensity_is_too_many() {
        assert_eq!(answers(0, &[0]), [false]);
        assert_eq!(answers(2, &[0, 0, 0]), [true, true, false]);
        assert_eq!(answers(2, &[0, 500, 1000]), [true, true, false]);
    }

    #[test]
    fn what_is_older_than_the_period_is_forgotten() {
        assert_eq!(answers(1, &[0, 1001, 2002, 2003]), [true, true, true, false]);
    }
}
