//! Transfer rates that are never stale.

use std::time::Duration;

use ecs_torrent_protocol::time::Timestamp;

/// Time constant of the average: after this long without a byte, a rate has fallen to about a third.
const MEMORY: Duration = Duration::from_secs(3);

/// Time in which bytes are gathered before they change the average, so that a burst within one tick is no spike.
const GATHER: Duration = Duration::from_millis(200);

/// Minimum age of a rate: a younger one is computed as if it were this old, for the same reason.
const LEAST_AGE: Duration = Duration::from_secs(1);

/// Time without a byte after which a rate is exactly zero.
const SILENCE: Duration = Duration::from_secs(10);

/// A moving average of bytes per second.
///
/// A rate decays with the time that has passed when it is read, so no system has to visit idle peers to age their
/// rates. Ten seconds after the last byte it is exactly zero, whenever that byte arrived.
///
/// ```
/// use std::time::Duration;
/// use ecs_torrent_components::rate::Rate;
/// use ecs_torrent_protocol::time::Timestamp;
///
/// let mut rate = Rate::default();
/// let second = |number| Timestamp::ZERO + Duration::from_secs(number);
/// (1..60).for_each(|number| rate.add(second(number), 1000));
/// assert!((500..1500).contains(&rate.at(second(60))));
/// assert_eq!(rate.at(second(70)), 0);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Rate {
    bytes_per_s: f64,
    gathered_bytes: u64,
    updated: Timestamp,
    /// When the first byte was transferred. An average over less than the time constant weighs all of that time
    /// equally.
    started: Option<Timestamp>,
    /// When the last byte was transferred.
    last: Timestamp,
}

impl Rate {
    /// Records `bytes` transferred at `now`.
    pub fn add(&mut self, now: Timestamp, bytes: u64) {
        if self.started.is_none() {
            self.started = Some(now);
            self.updated = now;
        }
        self.last = now;
        self.gathered_bytes = self.gathered_bytes.saturating_add(bytes);
        if now.since(self.updated) >= GATHER {
            self.bytes_per_s = self.average(now);
            self.gathered_bytes = 0;
            self.updated = now;
        }
    }

    /// Returns the bytes per second at `now`.
    #[must_use]
    pub fn at(&self, now: Timestamp) -> u64 {
        // Gathered bytes are averaged over the time in which they arrived; the time after the last byte only decays.
        let until = self.last.max(self.updated + GATHER).min(now);
        let idle = now.since(self.last + GATHER);
        (self.average(until) * fade(idle)) as u64
    }

    /// Returns the average at `until`, with the bytes gathered between the last update and then.
    fn average(&self, until: Timestamp) -> f64 {
        let elapsed = until.since(self.updated);
        if elapsed < GATHER {
            return self.bytes_per_s;
        }
        let seconds = elapsed.as_secs_f64();
        let age = self
            .started
            .map_or(Duration::MAX, |started| until.since(started).max(LEAST_AGE));
        let past = if age < MEMORY {
            1.0 - seconds / age.as_secs_f64()
        } else {
            (-seconds / MEMORY.as_secs_f64()).exp()
        };
        let current = self.gathered_bytes as f64 / seconds;
        current + past * (self.bytes_per_s - current)
    }
}
/// Returns the fraction of a rate that is left after `idle` without a byte beyond the gather time: an exponential
/// decay, shifted so that it reaches zero after [`SILENCE`].
fn fade(idle: Duration) -> f64 {
    let rest = |time: Duration| (-time.as_secs_f64() / MEMORY.as_secs_f64()).exp();
    let end = rest(SILENCE - GATHER);
    ((rest(idle) - end) / (1.0 - end)).max(0.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_millis(millis)
    }

    fn steady(until_ms: u64) -> Rate {
        let mut rate = Rate::default();
        (0..=until_ms / 10).for_each(|i| rate.add(at(i * 10), 1000));
        rate
    }

    #[test]
    fn a_steady_flow_is_measured() {
        let rate = steady(30_000).at(at(30_000));
        assert!((95_000..105_000).contains(&rate), "{rate}");
    }

    #[test]
    fn silence_is_detected_without_an_event() {
        let rate = steady(30_000);
        let readings: Vec<u64> = [30, 32, 36, 40].map(|s| rate.at(at(s * 1000))).to_vec();
        assert!(readings.windows(2).all(|pair| pair[0] > pair[1]), "{readings:?}");
        assert_eq!(readings[3], 0);
    }

    #[test]
    fn one_burst_is_no_spike() {
        for begin in [0, 1_000_000] {
            let mut rate = Rate::default();
            rate.add(at(begin), 1 << 20);
            let reading = |after| rate.at(at(begin + after));
            assert_eq!(reading(1), 0);
            assert!((1 << 19..=1 << 20).contains(&reading(200)));
            assert!(reading(1000) <= 1 << 20);
            assert!(reading(2000) < 1 << 20);
        }
    }

    #[test]
    fn a_rate_is_zero_ten_seconds_after_the_last_byte() {
        for last in [30_000, 30_010, 30_070, 30_150, 30_190, 30_199] {
            let mut rate = steady(30_000);
            rate.add(at(last), 5_000_000);
            assert!(rate.at(at(last + 9_900)) > 0, "not earlier");
            for after in [10_000, 10_001, 30_000, 600_000, u64::MAX / 2_000_000] {
                assert_eq!(
                    rate.at(at(last + after)),
                    0,
                    "{after} ms after a last byte at {last} ms"
                );
            }
        }
    }

    #[test]
    fn a_change_of_speed_is_followed() {
        let mut rate = steady(30_000);
        (0..=1000).for_each(|i| rate.add(at(30_000 + i * 10), 10_000));
        let rate = rate.at(at(40_000));
        assert!((950_000..1_050_000).contains(&rate), "{rate}");
    }

    #[test]
    fn a_rate_that_begins_late_is_young() {
        let mut rate = Rate::default();
        (0..=200).for_each(|i| rate.add(at(1_000_000 + i * 10), 1000));
        let rate = rate.at(at(1_002_000));
        assert!((75_000..105_000).contains(&rate), "{rate}");
    }

    #[test]
    fn the_decay_begins_with_the_whole_rate() {
        assert_eq!((fade(Duration::ZERO), fade(SILENCE)), (1.0, 0.0));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// From a gather time after the last byte on, the rate never rises, and it ends at zero, whatever preceded.
        #[test]
        fn a_rate_only_falls_after_the_last_byte(
            flow in prop::collection::vec((0u64..3_000, 0u64..10_000_000), 1..50),
            steps in prop::collection::vec(1u64..700, 1..60),
        ) {
            let (mut rate, mut time) = (Rate::default(), 0);
            for (pause, bytes) in flow {
                time += pause;
                rate.add(at(time), bytes);
            }
            let (mut now, mut before) = (time + 200, rate.at(at(time + 200)));
            for step in steps {
                now += step;
                let reading = rate.at(at(now));
                prop_assert!(reading <= before, "{before} B/s, then {reading} B/s {} ms after the last byte", now - time);
                before = reading;
            }
            prop_assert_eq!(rate.at(at(time + 10_000)), 0);
        }

        /// A steady flow is measured to within a tenth, whatever its interval, its size, and the time of reading.
        #[test]
        fn any_steady_flow_is_measured(interval in 1u64..200, bytes in 1_000u64..1_000_000, offset in 0u64..1_000_000) {
            let mut rate = Rate::default();
            let end = 20_000 + offset % 1_000;
            (0..=end / interval).for_each(|i| rate.add(at(offset + i * interval), bytes));
            let (reading, truth) = (rate.at(at(offset + end)) as f64, bytes as f64 * 1000.0 / interval as f64);
            prop_assert!((0.9 * truth..=1.1 * truth + 1.0).contains(&reading), "{reading} B/s of {truth}");
        }
    }

    #[test]
    fn a_young_rate_is_near_the_truth() {
        for seconds in [2, 3, 4, 6] {
            let rate = steady(seconds * 1000).at(at(seconds * 1000));
            assert!((75_000..105_000).contains(&rate), "{rate} after {seconds} s");
        }
    }
}
