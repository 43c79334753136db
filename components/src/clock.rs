//! Time, as systems see it.

use std::sync::atomic::{AtomicU64, Ordering};

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::time::Timestamp;

/// The time of this tick. The runner or the simulator sets it once at the start; it is the same for every system.
#[derive(Resource, Debug, Clone, Copy, Default)]
pub struct Clock {
    now: Timestamp,
}

impl Clock {
    /// The time of this tick.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Sets the time; an earlier time is ignored, because time does not go back. For runners.
    pub fn advance_to(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
    }
}

/// The time of the next tick if no port has an event before: the earliest deadline requested by the systems.
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
    use std::time::Duration;

    use super::*;

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
