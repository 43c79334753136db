//! The wall clock: the local time of the machine.

use std::fmt;

use bevy_ecs::prelude::*;
use ecs_torrent_components::week::WeekTime;
use ecs_torrent_protocol::time::Timestamp;

/// Reads the local time of the machine. A simulated machine's first moment is a Monday at 0:00.
#[derive(Resource)]
pub struct WallClock(Box<dyn Fn(Timestamp) -> WeekTime + Send + Sync>);

impl WallClock {
    /// Creates a clock that returns the time of the week for a time of the engine's [`Clock`].
    ///
    /// [`Clock`]: ecs_torrent_components::clock::Clock
    #[must_use]
    pub fn new(read: impl Fn(Timestamp) -> WeekTime + Send + Sync + 'static) -> Self {
        Self(Box::new(read))
    }

    /// The system's clock, in the zone of the variable `TZ` or of `/etc/localtime`; UTC if neither names one.
    #[must_use]
    pub(crate) fn system() -> Self {
        Self::new(|_| {
            let now = jiff::Zoned::now();
            let day = now.weekday().to_monday_zero_offset();
            let [day, hour, minute, second] = [day, now.hour(), now.minute(), now.second()].map(i8::unsigned_abs);
            WeekTime::new((u64::from(day) * 24 + u64::from(hour)) * 3600 + u64::from(minute) * 60 + u64::from(second))
        })
    }

    /// Returns the local time of the week.
    #[must_use]
    pub fn week_time(&self, now: Timestamp) -> WeekTime {
        (self.0)(now)
    }
}

impl Default for WallClock {
    fn default() -> Self {
        Self::new(|now| WeekTime::new(now.since(Timestamp::ZERO).as_secs()))
    }
}

impl fmt::Debug for WallClock {
    fn fmt(&self, form: &mut fmt::Formatter<'_>) -> fmt::Result {
        form.write_str("WallClock")
    }
}
