//! Statistics of tick durations.

use std::time::Duration;

use bevy_ecs::prelude::*;

/// Number of buckets per octave: a reported quantile is at most an eighth too long.
const STEPS: u32 = 8;

/// Histogram of tick durations in buckets that grow by an eighth of an octave; 2 KiB, whatever the number of ticks. The
/// runner keeps it; it is empty in a simulation, where time stands still inside a tick.
#[derive(Resource, Debug, Clone)]
pub struct TickTimes {
    counts: [u32; (u64::BITS * STEPS) as usize],
    total: u64,
}

impl Default for TickTimes {
    fn default() -> Self {
        Self {
            counts: [0; (u64::BITS * STEPS) as usize],
            total: 0,
        }
    }
}

impl TickTimes {
    /// Records a tick.
    pub fn record(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(u64::from(STEPS));
        let octave = nanos.ilog2();
        let step = (nanos >> (octave - STEPS.ilog2())) as u32 % STEPS;
        let count = &mut self.counts[(octave * STEPS + step) as usize];
        *count = count.saturating_add(1);
        self.total += 1;
    }

    /// Number of recorded ticks.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.total
    }

    /// Returns the duration that the fraction `share` of the ticks (0.99 for the 99th percentile) did not exceed; zero
    /// if there were none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        let wanted = (self.total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in (0_u32..).zip(&self.counts) {
            seen += u64::from(*count);
            if *count > 0 && seen >= wanted {
                let (octave, step) = (bucket / STEPS, bucket % STEPS);
                let below = 1_u128 << (octave - STEPS.ilog2());
                let end = u128::from(STEPS + step + 1) * below;
                return Duration::from_nanos(u64::try_from(end).unwrap_or(u64::MAX));
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_an_eighth_too_long_at_most() {
        let mut times = TickTimes::default();
        assert_eq!(times.quantile(0.99), Duration::ZERO);
        for micros in 1..=1000 {
            times.record(Duration::from_micros(micros));
        }
        assert_eq!(times.count(), 1000);
        for (share, micros) in [(0.5, 500), (0.99, 990), (1.0, 1000)] {
            let told = times.quantile(share);
            let exact = Duration::from_micros(micros);
            assert!((exact..=exact * 9 / 8).contains(&told), "{share}: {told:?}");
        }
        times.record(Duration::ZERO);
        times.record(Duration::MAX);
        assert_eq!(times.quantile(1.0), Duration::from_nanos(u64::MAX));
    }
}
