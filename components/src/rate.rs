//! Transfer rates that are never stale.

use std::time::Duration;

use ecs_torrent_protocol::time::Timestamp;

/// Weight of the past: after this long without a byte a rate has fallen to about a third.
const MEMORY: Duration = Duration::from_secs(3);

/// Bytes are gathered this long before they move the average, so that a burst within one tick is no spike.
const GATHER: Duration = Duration::from_millis(200);

/// A rate that is younger counts as this old, for the same reason.
const LEAST_AGE: Duration = Duration::from_secs(1);

/// A moving average of bytes per second.
///
/// It decays by the time that has passed when it is read, so nobody has to visit idle peers to age their rates.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rate {
    bytes_per_s: f64,
    gathered_bytes: u64,
    updated: Timestamp,
    /// When the first byte came: an average over less than the memory's length weighs all of it alike.
    started: Option<Timestamp>,
}

impl Rate {
    /// Counts `bytes` transferred at `now`.
    pub fn add(&mut self, now: Timestamp, bytes: u64) {
        if self.started.is_none() {
            self.started = Some(now);
            self.updated = now;
        }
        self.gathered_bytes += bytes;
        if now.since(self.updated) >= GATHER {
            self.bytes_per_s = self.average(now);
            self.gathered_bytes = 0;
            self.updated = now;
        }
    }

    /// Bytes per second at `now`.
    #[must_use]
    pub fn at(&self, now: Timestamp) -> u64 {
        self.average(now) as u64
    }

    fn average(&self, now: Timestamp) -> f64 {
        let elapsed = now.since(self.updated);
        if elapsed < GATHER {
            return self.bytes_per_s;
        }
        let seconds = elapsed.as_secs_f64();
        let age = self
            .started
            .map_or(Duration::MAX, |started| now.since(started).max(LEAST_AGE));
        let past = if age < MEMORY {
            1.0 - seconds / age.as_secs_f64()
        } else {
            (-seconds / MEMORY.as_secs_f64()).exp()
        };
        let current = self.gathered_bytes as f64 / seconds;
        current + past * (self.bytes_per_s - current)
    }
}

#[cfg(test)]
mod tests {
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
    fn silence_is_seen_without_being_told() {
        let rate = steady(30_000);
        let readings: Vec<u64> = [30, 32, 40, 70].map(|s| rate.at(at(s * 1000))).to_vec();
        assert!(readings.windows(2).all(|pair| pair[0] > pair[1]), "{readings:?}");
        assert_eq!(readings[3], 0);
    }

    #[test]
    fn one_burst_is_no_spike() {
        let mut rate = Rate::default();
        rate.add(at(0), 1 << 20);
        assert_eq!(rate.at(at(1)), 0);
        assert!(rate.at(at(200)) <= 1 << 20);
        assert!(rate.at(at(1000)) <= 1 << 20);
        assert!(rate.at(at(2000)) < 1 << 20);
    }

    #[test]
    fn a_young_rate_is_near_the_truth() {
        for seconds in [2, 3, 4, 6] {
            let rate = steady(seconds * 1000).at(at(seconds * 1000));
            assert!((75_000..105_000).contains(&rate), "{rate} after {seconds} s");
        }
    }
}
