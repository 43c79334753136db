//! Time, as systems see it.

use std::sync::atomic::{AtomicU64, Ordering};

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::time::Timestamp;

/// The time of this tick: set once at its head by the runner or the simulator, the same for every system in it.
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

    /// Sets the time; time does not go back, so an earlier one is ignored. For runners.
    pub fn advance_to(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
    }
}

/// When the next tick is due if no port has anything before: the earliest of what the systems asked for.
///
/// Asking is commutative and takes a shared borrow, so it orders no systems.
#[derive(Resource, Debug, Default)]
pub struct Wakeup {
    at: AtomicU64,
}

impl Wakeup {
    /// Asks for a tick at `deadline` or before.
    pub fn at(&self, deadline: Timestamp) {
        self.at.fetch_min(deadline.as_nanos(), Ordering::Relaxed);
    }

    /// Asks for a tick at `deadline`, where there is one.
    pub fn at_next(&self, deadline: Option<Timestamp>) {
        if let Some(deadline) = deadline {
            self.at(deadline);
        }
    }

    /// Forgets what was asked for, at the head of a tick; the next one is at `latest` at the latest. For runners.
    pub fn reset(&mut self, latest: Timestamp) {
        *self.at.get_mut() = latest.as_nanos();
    }

    /// The earliest deadline asked for. For runners.
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
