//! Statistics of tick durations.

use std::time::Duration;

use bevy_ecs::prelude::*;
use hdrhistogram::Histogram;

/// Longest duration that the histogram distinguishes, in nanoseconds. A tick that blocks for a minute is a defect
/// anyway.
const LONGEST_NS: u64 = 60_000_000_000;

/// Significant decimal digits of a reported duration.
const DIGITS: u8 = 2;

/// Histogram of tick durations with two significant digits; 15 KiB, whatever the number of ticks. The runner keeps it;
/// it is empty in a simulation, where time stands still inside a tick.
#[derive(Resource, Debug, Clone)]
pub struct TickTimes(Histogram<u32>);

impl Default for TickTimes {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST_NS, DIGITS).expect("the bounds are constants that fit"))
    }
}

impl TickTimes {
    /// Records a tick.
    pub fn record(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record(nanos);
    }

    /// Number of recorded ticks.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Returns the duration that the fraction `share` of the ticks (0.99 for the 99th percentile) did not exceed; zero
    /// if there were none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        Duration::from_nanos(self.0.value_at_quantile(share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_a_hundredth_too_long_at_most() {
        let mut times = TickTimes::default();
        assert_eq!(times.quantile(0.99), Duration::ZERO);
        for micros in 1..=1000 {
            times.record(Duration::from_micros(micros));
        }
        assert_eq!(times.count(), 1000);
        for (share, micros) in [(0.5, 500), (0.99, 990), (1.0, 1000)] {
            let measured = times.quantile(share);
            let exact = Duration::from_micros(micros);
            assert!((exact..=exact * 101 / 100).contains(&measured), "{share}: {measured:?}");
        }
        times.record(Duration::ZERO);
        times.record(Duration::MAX);
        assert_eq!(times.count(), 1002);
        assert!(times.quantile(1.0) >= Duration::from_nanos(LONGEST_NS));
    }
}
