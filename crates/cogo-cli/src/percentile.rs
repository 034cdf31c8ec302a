//! Percentiles of measured times by nearest rank: always a value that was measured.

/// Times in ms, sorted.
#[derive(Debug, Default)]
pub(crate) struct Times {
    sorted: Vec<f64>,
}

impl Times {
    pub(crate) fn new(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        Self { sorted: times }
    }

    /// The smallest time that at least `percent` of all do not exceed; none without a time.
    pub(crate) fn percentile(&self, percent: u8) -> Option<f64> {
        let rank = (self.sorted.len() * usize::from(percent.min(100))).div_ceil(100).max(1);
        self.sorted.get(rank - 1).copied()
    }

    pub(crate) fn max(&self) -> Option<f64> {
        self.sorted.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let times = Times::new((1..=200).rev().map(f64::from).collect());
        for (percent, expected) in [(0, 1.0), (1, 2.0), (50, 100.0), (90, 180.0), (99, 198.0), (100, 200.0)] {
            assert_eq!(times.percentile(percent), Some(expected));
        }
        assert_eq!(times.max(), Some(200.0));
    }

    #[test]
    fn few_times_are_enough_and_none_has_no_percentile() {
        let one = Times::new(vec![7.0]);
        assert_eq!((one.percentile(50), one.percentile(99)), (Some(7.0), Some(7.0)));
        let two = Times::new(vec![9.0, 1.0]);
        assert_eq!((two.percentile(50), two.percentile(51)), (Some(1.0), Some(9.0)));
        assert_eq!(Times::default().percentile(50), None);
    }
}
