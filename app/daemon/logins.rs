//! A limit on failed logins, per caller.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::connections::Caller;

/// Maximum number of callers remembered. Beyond it, the caller with the least recent failure is forgotten.
const MAX_CALLERS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// The failed logins of every caller, limited by a token bucket each: a burst at once, then one in each interval.
///
/// Only failures are delayed. The right token is accepted at any time: otherwise, anybody could lock out a client that
/// shares the address, as all programs of one machine do. Guessing 256 random bits is out of reach at any rate.
#[derive(Debug)]
pub(super) struct Logins {
    interval: Duration,
    capacity: Duration,
    /// Time at which the failures of a caller will be forgotten.
    forgotten: Mutex<LruCache<Caller, Instant>>,
}

impl Logins {
    pub(super) fn new(max: u32, interval: Duration) -> Self {
        Self {
            interval,
            capacity: interval * max,
            forgotten: Mutex::new(LruCache::new(MAX_CALLERS)),
        }
    }

    /// Records a failed login.
    ///
    /// # Errors
    /// If the caller has failed too often: the time until it may fail again.
    pub(super) fn fail(&self, caller: Caller, now: Instant) -> Result<(), Duration> {
        let mut forgotten = self.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
        let before = forgotten.get(&caller).copied().unwrap_or(now).max(now);
        let next = before + self.interval;
        let over = next.saturating_duration_since(now).saturating_sub(self.capacity);
        if over.is_zero() {
            forgotten.put(caller, next);
            Ok(())
        } else {
            Err(over)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn failures_are_counted_for_each_caller() {
        let logins = Logins::new(3, Duration::from_secs(10));
        let caller = |last| Caller::from(IpAddr::from([192, 0, 2, last]));
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        for _ in 0..3 {
            assert_eq!(logins.fail(caller(1), at(0)), Ok(()));
        }
        for _ in 0..100 {
            assert_eq!(logins.fail(caller(1), at(0)), Err(Duration::from_secs(10)));
        }
        assert_eq!(logins.fail(caller(2), at(0)), Ok(()), "another caller");
        assert_eq!(logins.fail(caller(1), at(9)), Err(Duration::from_secs(1)));
        assert_eq!(logins.fail(caller(1), at(10)), Ok(()));
        assert!(logins.fail(caller(1), at(10)).is_err());
        for _ in 0..3 {
            assert_eq!(logins.fail(caller(1), at(100)), Ok(()));
        }
    }

    #[test]
    fn the_memory_is_bounded() {
        let logins = Logins::new(1, Duration::from_secs(10));
        for number in 0..100_000_u32 {
            let _ = logins.fail(Caller::from(IpAddr::from(number.to_be_bytes())), Instant::now());
        }
        assert_eq!(logins.forgotten.lock().unwrap().len(), MAX_CALLERS.get());
    }
}
