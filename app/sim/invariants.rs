//! What holds in an engine after every tick, whatever happens to it.
//!
//! [`InvariantsPlugin`] looks at what has changed in a tick, not at everything, so that it can stay on in large
//! simulations, and at the rest once in a while; a [`Violation`] is noted and the engine goes on. It works in any engine: simulated ones get the
//! [`Truth`] about their disks too.
//!
//! | [`Invariant`] | says |
//! |---|---|
//! | `Truth` | a piece that is had lies verified on the disk |
//! | `Owners` | no file is written or deleted that the torrent did not create, but with leave |
//! | `Wire` | what is advertised and served is had, and right; requests are made once, and answered once; silence after a close |
//! | `Requests` | peers' queues, pieces in flight and the wire agree on what is asked for; a request times out once |
//! | `Picker` | copies are counted as peers have them; what is missing is offered; interest follows |
//! | `Lifecycle` | a torrent's states follow each other along legal edges; one that downloads misses something |
//! | `Phases` | so do the phases of a stop |
//! | `Counters` | what was downloaded is had, in flight, corrupt or dropped |
//! | `Bounds` | memory and queues stay within their settings |
//! | `Work` | a tick takes no more messages of a peer, and of all, than its settings let it |
//! | `Cadence` | an engine that has nothing to do rests |

mod bounds;
mod cadence;
mod counters;
mod lifecycle;
mod picker;
mod requests;
mod truth;
mod wire;
mod work;

use std::fmt;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_engine::core::FlushToPorts;
use ecs_torrent_engine::schedule::{Tick, TickSet};
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_systems::{FlushSet, IntakeSet, ReapSet};

pub use self::truth::Truth;

/// Notes in [`Violations`] what should not be.
#[derive(Clone, Copy)]
pub struct InvariantsPlugin;

impl Plugin for InvariantsPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<Violations>()
            .init_resource::<wire::Conversations>()
            .init_resource::<truth::Known>()
            .init_resource::<lifecycle::Seen>()
            .init_resource::<counters::Bases>()
            .init_resource::<cadence::Cadence>()
            .add_systems(
                Tick,
                (wire::hear, work::check)
                    .chain()
                    .after(IntakeSet::Frames)
                    .before(TickSet::Assemble),
            )
            .add_systems(
                Tick,
                (truth::check, wire::listen, cadence::check)
                    .chain()
                    .after(FlushSet::Links)
                    .before(FlushToPorts),
            )
            .add_systems(
                Tick,
                (
                    requests::check_late,
                    (lifecycle::check, lifecycle::check_completion),
                    counters::check,
                    bounds::check,
                    (
                        bounds::check_all,
                        requests::check_all,
                        picker::check,
                        truth::check_owners,
                    )
                        .chain()
                        .run_if(is_time_for_all),
                )
                    .chain()
                    .after(ReapSet::Tell)
                    .before(ReapSet::Release),
            )
            .add_systems(Tick, wire::forget.in_set(ReapSet::Release));
    }
}

/// What can only be seen by looking at everything is looked at every so many ticks.
const ALL_EVERY: u32 = 64;

fn is_time_for_all(mut tick: Local<u32>) -> bool {
    *tick = tick.wrapping_add(1);
    tick.is_multiple_of(ALL_EVERY)
}

/// What should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the table of the module says it")]
pub enum Invariant {
    Truth,
    Owners,
    Wire,
    Requests,
    Picker,
    Lifecycle,
    Phases,
    Counters,
    Bounds,
    Work,
    Cadence,
}

/// Something that should not be, and was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// What does not hold.
    pub invariant: Invariant,
    /// Since when.
    pub at: Timestamp,
    /// What is the matter.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.since(Timestamp::ZERO);
        write!(f, "at {:.3} s, {:?}: {}", at.as_secs_f64(), self.invariant, self.what)
    }
}

/// Most violations that are kept: the first ones tell.
const MAX_KEPT: usize = 100;

/// What was found so far, the oldest first.
#[derive(Resource, Debug, Default)]
pub struct Violations {
    found: Vec<Violation>,
}

impl Violations {
    /// What was found, the oldest first; at most 100 are kept.
    #[must_use]
    pub fn found(&self) -> &[Violation] {
        &self.found
    }

    /// Takes out what was found.
    pub fn take(&mut self) -> Vec<Violation> {
        std::mem::take(&mut self.found)
    }

    fn note(&mut self, clock: &Clock, invariant: Invariant, what: impl FnOnce() -> String) {
        if self.found.len() < MAX_KEPT {
            let (at, what) = (clock.now(), what());
            self.found.push(Violation { invariant, at, what });
        }
    }
}
