//! Time, as systems see it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::time::Timestamp;

/// The time of this tick. The runner or the simulator sets it once at the start; it is the same for every system.
#[derive(Resource, Debug, Clone, Copy, Default)]
pub struct Clock {
    now: Timestamp,
    /// Time from 1970 (UTC) to [`Timestamp::ZERO`], by the system's clock.
    epoch: Duration,
}

impl Clock {
    /// The time of this tick.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Returns the date of this tick, in seconds since 1970 (UTC). Unlike [`Clock::now`], it may go back when the
    /// system's clock is set.
    #[must_use]
    pub fn unix_seconds(&self) -> u64 {
        self.unix_time().as_secs()
    }

    /// Returns the date of this tick as a time since 1970 (UTC).
    #[must_use]
    pub fn unix_time(&self) -> Duration {
        self.unix_time_of(self.now)
    }

    /// Returns the date of `at` as a time since 1970 (UTC).
    #[must_use]
    pub fn unix_time_of(&self, at: Timestamp) -> Duration {
        self.epoch.saturating_add(at.since(Timestamp::ZERO))
    }

    /// Sets the date of [`Timestamp::ZERO`] as a time since 1970 (UTC). For runners.
    pub fn set_epoch(&mut self, epoch: Duration) {
        self.epoch = epoch;
    }

    /// Sets the time; an earlier time is ignored, because time does not go back. For runners.
    pub fn advance_to(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
    }
}

/// The time of the next tick if no port has an event earlier: the earliest deadline that the systems requested.
///
/// Requests are commutative and take a shared borrow, so they do not order systems.
#[derive(Resource, Debug, Default)]
pub struct Wakeup {
    at: AtomicU64,
}

impl Wakeup {
    /// Requests a tick at `deadline` or before.
    pub fn at(&self, deadline: Timestamp) {
        self.at.fetch_min(deadline.as_nanos(), Ordering::Relaxed);
    }

    /// Requests a tick at `deadline`, if there is one.
    pub fn at_next(&self, deadline: Option<Timestamp>) {
        if let Some(deadline) = deadline {
            self.at(deadline);
        }
    }

    /// Clears all requests at the start of a tick; the next tick is at `latest` at the latest. For runners.
    pub fn reset(&mut self, latest: Timestamp) {
        *self.at.get_mut() = latest.as_nanos();
    }

    /// Returns the earliest requested deadline. For runners.
    #[must_use]
    pub fn earliest(&self) -> Timestamp {
        Timestamp::from_nanos(self.at.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_time_of_ticks() {
        let mut clock = Clock::default();
        clock.set_epoch(Duration::from_millis(1_700_000_000_600));
        clock.advance_to(Timestamp::ZERO + Duration::from_millis(1500));
        assert_eq!(clock.unix_seconds(), 1_700_000_002);
    }

    #[test]
    fn the_earliest_deadline_wins() {
        let at = |seconds| Timestamp::ZERO + Duration::from_secs(seconds);
        let mut wakeup = Wakeup::default();
        wakeup.reset(at(9));
        wakeup.at(at(5));
        wakeup.at_next(None);
        wakeup.at_next(Some(at(7)));
        assert_eq!(wakeup.earliest(), at(5));
        wakeup.reset(at(20));
        assert_eq!(wakeup.earliest(), at(20));
    }
}
