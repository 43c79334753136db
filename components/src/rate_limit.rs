//! Limits on transfer rates.

use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::settings::{LEAST_LIMIT, NO_LIMIT};

/// The time whose bytes may be transferred at once. A longer burst would show in the rate of a second.
const BURST: Duration = Duration::from_millis(100);

/// Least time between two portions: each costs a tick.
const PAUSE: Duration = Duration::from_millis(20);

/// Minimum portion of a limited transfer in bytes: smaller ones would cost a tick each.
const LEAST_PORTION: u64 = 2048;

/// The rates of all peers together.
#[derive(Resource, Debug, Clone, Default)]
pub struct RateLimits {
    /// Payload and messages received from peers.
    pub download: RateLimit,
    /// Blocks sent to peers.
    pub upload: RateLimit,
    /// Number of torrents with [`TorrentBuckets`](crate::buckets::TorrentBuckets). Without any, no system looks for
    /// them.
    pub torrent_count: usize,
    /// Whether the alternative limits of the settings are in force.
    pub is_alternative: bool,
}

/// The user's limits on the transfer rates of one torrent. They apply in addition to the engine's. Only torrents with
/// limits have this component.
#[derive(Component, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TransferLimits {
    /// Maximum number of bytes received from peers per second, over any ten seconds; `None` is no limit.
    pub download_bytes_per_s: Option<u64>,
    /// Maximum number of bytes in blocks sent to peers per second, over any ten seconds; `None` is no limit.
    pub upload_bytes_per_s: Option<u64>,
}

/// A change of [`TransferLimits`]: `None` keeps a limit, `Some(None)` removes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LimitsPatch {
    /// The limit on downloads, in bytes per second.
    pub download_bytes_per_s: Option<Option<u64>>,
    /// The limit on uploads, in bytes per second.
    pub upload_bytes_per_s: Option<Option<u64>>,
}

impl LimitsPatch {
    /// Returns the changed limits.
    #[must_use]
    pub fn apply(&self, limits: &TransferLimits) -> TransferLimits {
        // The range ends with a rate that is no limit.
        let set = |limit: Option<u64>| limit.filter(|rate| *rate != NO_LIMIT);
        TransferLimits {
            download_bytes_per_s: self.download_bytes_per_s.map_or(limits.download_bytes_per_s, set),
            upload_bytes_per_s: self.upload_bytes_per_s.map_or(limits.upload_bytes_per_s, set),
        }
    }
}

/// A limit on a rate is outside its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {value} is too {}, it can be from {LEAST_LIMIT} to {NO_LIMIT}", if *value < LEAST_LIMIT { "small" } else { "large" })]
pub struct LimitError {
    /// The name of the limit.
    pub name: &'static str,
    /// The value.
    pub value: u64,
}

impl TransferLimits {
    /// Whether there is no limit.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }

    /// Checks the limits.
    ///
    /// # Errors
    /// If a limit is outside the range that the engine's own limits have too.
    pub fn check(&self) -> Result<(), LimitError> {
        for (name, value) in [
            ("download_bytes_per_s", self.download_bytes_per_s),
            ("upload_bytes_per_s", self.upload_bytes_per_s),
        ] {
            if let Some(value) = value.filter(|value| !(LEAST_LIMIT..=NO_LIMIT).contains(value)) {
                return Err(LimitError { name, value });
            }
        }
        Ok(())
    }
}

/// A limit on the bytes per second of a transfer; none by default.
///
/// Bytes are taken before they are transferred. A transfer may take more than is left: the next one waits for longer.
///
/// ```
/// use std::time::Duration;
/// use ecs_torrent_components::rate_limit::RateLimit;
/// use ecs_torrent_protocol::time::Timestamp;
///
/// let mut limit = RateLimit::new(Some(100_000));
/// let mut now = Timestamp::ZERO;
/// let mut bytes = 0;
/// while now < Timestamp::ZERO + Duration::from_secs(10) {
///     match limit.portion(now) {
///         Some(0) => now = limit.next(now),
///         _ => {
///             limit.take(16384);
///             bytes += 16384;
///         }
///     }
/// }
/// assert!((970_000..=1_030_000).contains(&bytes), "{bytes}");
/// ```
#[derive(Debug, Clone, Default)]
pub struct RateLimit {
    bytes_per_s: Option<u64>,
    /// Bytes that may be transferred. Negative if more was transferred than was left.
    left: i64,
    updated: Timestamp,
    /// When a transfer last had to wait.
    waited: Option<Timestamp>,
    /// The next turn of the transfers that wait.
    turn: Timestamp,
}

/// Time for which transfers count as waiting after one of them last had to.
const WAITING: Duration = Duration::from_secs(2);

impl RateLimit {
    /// Creates a limit in bytes per second; `None` is no limit.
    #[must_use]
    pub fn new(bytes_per_s: Option<u64>) -> Self {
        Self {
            bytes_per_s,
            ..Self::default()
        }
    }

    /// Changes the limit. Transfers that wait may try again at once.
    pub fn set(&mut self, bytes_per_s: Option<u64>, now: Timestamp) {
        if bytes_per_s != self.bytes_per_s {
            *self = Self {
                bytes_per_s,
                updated: now,
                waited: self.waited,
                ..Self::default()
            };
        }
    }

    /// Returns the limit in bytes per second, if there is one.
    #[must_use]
    pub fn bytes_per_s(&self) -> Option<u64> {
        self.bytes_per_s
    }

    /// Returns the number of bytes that one transfer may take at `now`: 0 if it has to wait, `None` without a limit.
    pub fn portion(&mut self, now: Timestamp) -> Option<u64> {
        let rate = self.bytes_per_s?;
        let (least, burst) = portions(rate);
        let elapsed = now.since(self.updated);
        let gained = portion_of(rate, elapsed);
        // The part of a byte that is lost here is gained with the next one.
        if gained > 0 {
            let all = self.left.saturating_add(i64::try_from(gained).unwrap_or(i64::MAX));
            let most = i64::try_from(burst).unwrap_or(i64::MAX);
            self.updated = if all >= most {
                now
            } else {
                self.updated + time_for(rate, gained)
            };
            self.left = all.min(most);
        }
        Some(match u64::try_from(self.left) {
            Ok(left) if left >= least => left,
            _ => 0,
        })
    }

    /// Returns the remaining bytes of the last portion; `None` without a limit.
    #[must_use]
    pub fn left(&self) -> Option<u64> {
        self.bytes_per_s.map(|_| u64::try_from(self.left).unwrap_or(0))
    }

    /// Records bytes of a transfer.
    pub fn take(&mut self, bytes: u64) {
        if self.bytes_per_s.is_some() {
            self.left = self.left.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }

    /// Records that a transfer has to wait at `now`.
    pub fn record_waiting(&mut self, now: Timestamp) {
        self.waited = Some(now);
    }

    /// Whether transfers have to wait: one had to in the last two seconds.
    #[must_use]
    pub fn is_waiting(&self, now: Timestamp) -> bool {
        self.waited.is_some_and(|waited| now.since(waited) < WAITING)
    }

    /// Gives back bytes that were taken and not transferred.
    pub fn give_back(&mut self, bytes: u64) {
        if self.bytes_per_s.is_some() {
            self.left = self.left.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }

    /// Returns when to try again, after a transfer had to wait. The time stays the same until it has come, so that
    /// calls in the meantime cause no ticks of their own.
    pub fn next(&mut self, now: Timestamp) -> Timestamp {
        if self.turn <= now {
            self.turn = self.next_turn(now);
        }
        self.turn
    }

    /// Like [`next`](Self::next), at a time that many limits have in common: all of them together cause few ticks.
    pub fn next_common(&mut self, now: Timestamp) -> Timestamp {
        let nanos = self.next(now).since(Timestamp::ZERO).as_nanos();
        let pauses = nanos.div_ceil(PAUSE.as_nanos());
        let nanos = pauses.saturating_mul(PAUSE.as_nanos());
        Timestamp::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn next_turn(&self, now: Timestamp) -> Timestamp {
        let Some(rate) = self.bytes_per_s else { return now };
        let least = i64::try_from(portions(rate).0).unwrap_or(i64::MAX);
        let lacking = u64::try_from(least.saturating_sub(self.left)).unwrap_or(0);
        let next = self.updated + time_for(rate, lacking) + Duration::from_nanos(1);
        next.max(now + PAUSE)
    }
}

/// Returns the smallest portion, worth a tick, and the largest one: a burst.
fn portions(rate: u64) -> (u64, u64) {
    let at_least = |time| portion_of(rate, time).max(LEAST_PORTION);
    (at_least(PAUSE), at_least(BURST))
}

fn portion_of(rate: u64, time: Duration) -> u64 {
    let bytes = u128::from(rate) * time.as_nanos() / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn time_for(rate: u64, bytes: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Transfers as much as the limit allows, in portions of `most` bytes. Returns the bytes of each window of 10 s.
    fn windows(rate: u64, most: u64, pause: Duration) -> Vec<u64> {
        let mut limit = RateLimit::new(Some(rate));
        let (mut now, mut windows) = (Timestamp::ZERO, vec![0; 4]);
        loop {
            let window = (now.since(Timestamp::ZERO).as_secs() / 10) as usize;
            let Some(bytes) = windows.get_mut(window) else {
                return windows;
            };
            match limit.portion(now).unwrap() {
                0 => now = limit.next(now).max(now + pause),
                portion => {
                    let taken = portion.min(most);
                    limit.take(taken);
                    *bytes += taken;
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_ten_seconds_carry_what_is_allowed(
            rate in 10_000u64..1_000_000_000,
            most in 1024u64..1 << 20,
            pause_us in 1u64..20_000,
        ) {
            for bytes in windows(rate, most, Duration::from_micros(pause_us)) {
                let ideal = 10 * rate;
                let (_, burst) = portions(rate);
                prop_assert!(bytes <= ideal + burst + ideal / 100, "{bytes} of {ideal}");
                prop_assert!(bytes + burst + ideal / 100 >= ideal, "{bytes} of {ideal}");
            }
        }
    }

    #[test]
    fn a_transfer_that_takes_more_than_is_left_is_paid_back() {
        let mut limit = RateLimit::new(Some(1000));
        let now = Timestamp::ZERO + Duration::from_secs(5);
        assert_eq!(limit.portion(now), Some(2048));
        limit.take(16_384);
        assert_eq!(limit.portion(now + Duration::from_secs(10)), Some(0));
        let next = limit.next(now + Duration::from_secs(10));
        assert_eq!(next.since(now).as_secs(), 16);
        assert_eq!(limit.portion(next), Some(2048));
    }

    #[test]
    fn a_changed_limit_applies_at_once_and_forgets_debts() {
        let mut limit = RateLimit::new(Some(10_000));
        let now = Timestamp::ZERO + Duration::from_secs(5);
        limit.take(1 << 20);
        assert_eq!(limit.portion(now), Some(0));
        assert!(limit.next(now) > now + Duration::from_secs(60));
        limit.set(Some(1_000_000), now);
        let next = limit.next(now);
        assert!(next <= now + Duration::from_millis(21));
        assert_eq!(limit.portion(next), Some(20_000));
        limit.set(None, now);
        assert_eq!(limit.portion(now), None);
        limit.set(Some(20_000), now);
        assert_eq!(limit.portion(now), Some(0), "no burst for the time without a limit");
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let mut limit = RateLimit::default();
        limit.take(u64::MAX);
        assert_eq!(limit.portion(Timestamp::ZERO), None);
    }
}
