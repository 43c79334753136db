//! Conditions that hold in an engine after every tick, under all faults.
//!
//! [`InvariantsPlugin`] checks the changes of a tick, so that it can stay enabled in large simulations, and everything
//! else at intervals. It records a [`Violation`], and the engine continues. It works in any engine; simulated ones also
//! provide the [`Truth`] about their disks.
//!
//! | [`Invariant`] | condition |
//! |---|---|
//! | `Truth` | a held piece is stored on the disk as verified |
//! | `Owners` | no file is written or deleted that the torrent did not create, unless the user allows it |
//! | `Wire` | advertised and served data is held and right; requests are sent and answered once; silence after close |
//! | `Requests` | peers' queues, pieces in flight and the wire agree on open requests; a request times out once |
//! | `Picker` | availability matches the peers' pieces; missing pieces that are wanted can be picked, and no others are requested; interest follows |
//! | `Lifecycle` | a torrent's state follows from its intent and facts, and changes along the edges of the table; a torrent that downloads lacks wanted pieces, a finished one none, a seeding one no piece |
//! | `Phases` | the phases of a stop change only along legal edges |
//! | `Paused` | a paused torrent has no peers, no pieces in flight, no check, no open files, and no announces |
//! | `Counters` | downloaded bytes are held, in flight, corrupt or dropped |
//! | `Bounds` | memory and queues stay within their settings |
//! | `Work` | a tick processes no more messages, per peer and in total, than its settings allow |
//! | `Private` | no private torrent is advertised to strangers or announced to other trackers, and none has or contacts peers that strangers named (BEP 27) |
//! | `Seeding` | a torrent that has reached a seeding limit no longer seeds, or serves only pieces that no connected peer has |
//! | `Queue` | the torrents that run are the first ones of the queue, and no place is free while one waits that could run; no more torrents are checked at a time than the settings allow |
//! | `Readers` | each deadline is of a missing piece in the window ahead of a reader that is open; readers read held pieces only |
//! | `Dht` | the tables of our node of the DHT are bounded, no host gets a storm of queries, and nothing is stored for a host without a token that it got for the same key |
//! | `Cadence` | an engine without work is idle |

mod bounds;
mod cadence;
mod counters;
mod lifecycle;
mod nodes;
mod pausing;
mod picker;
mod privacy;
mod queue;
mod readers;
mod requests;
mod seeding;
mod strangers;
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

/// Records broken invariants in [`Violations`].
#[derive(Clone, Copy)]
pub struct InvariantsPlugin;

impl Plugin for InvariantsPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<Violations>()
            .init_resource::<wire::Conversations>()
            .init_resource::<truth::Known>()
            .init_resource::<counters::Bases>()
            .init_resource::<cadence::Cadence>()
            .init_resource::<pausing::OpenStorages>()
            .init_resource::<strangers::Named>()
            .init_resource::<nodes::NodeTraffic>()
            .add_systems(
                Tick,
                (wire::read_events, work::check, nodes::record)
                    .chain()
                    .after(IntakeSet::Frames)
                    .before(TickSet::Assemble),
            )
            .add_systems(
                Tick,
                (
                    truth::check,
                    wire::listen,
                    privacy::listen,
                    (strangers::record, strangers::listen).chain(),
                    nodes::listen,
                    pausing::listen,
                    readers::listen,
                    cadence::check,
                )
                    .chain()
                    .after(FlushSet::Streams)
                    .before(FlushToPorts),
            )
            .add_systems(
                Tick,
                (
                    requests::check_late,
                    (lifecycle::check, lifecycle::check_completion, lifecycle::check_derived),
                    pausing::check,
                    seeding::check,
                    queue::check,
                    readers::check,
                    counters::check,
                    bounds::check,
                    (
                        bounds::check_all,
                        requests::check_all,
                        picker::check,
                        privacy::check_candidates,
                        nodes::check_all,
                        truth::check_owners,
                    )
                        .chain()
                        .run_if(is_time_for_all),
                )
                    .chain()
                    .after(ReapSet::Publish)
                    .before(ReapSet::Release),
            )
            .add_systems(Tick, wire::forget.in_set(ReapSet::Release));
    }
}

/// Number of ticks between two checks of the conditions that need a pass over everything.
const ALL_EVERY: u32 = 64;

fn is_time_for_all(mut tick: Local<u32>) -> bool {
    *tick = tick.wrapping_add(1);
    tick.is_multiple_of(ALL_EVERY)
}

/// A condition that always holds.
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
    Paused,
    Counters,
    Bounds,
    Work,
    Private,
    Seeding,
    Queue,
    Readers,
    Dht,
    Cadence,
}

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The invariant that does not hold.
    pub invariant: Invariant,
    /// Time at which the violation was found.
    pub at: Timestamp,
    /// Description of the problem.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.since(Timestamp::ZERO);
        write!(f, "at {:.3} s, {:?}: {}", at.as_secs_f64(), self.invariant, self.what)
    }
}

/// Maximum number of violations that are stored; the first ones are the most useful.
const MAX_KEPT: usize = 100;

/// The violations found so far, the oldest first.
#[derive(Resource, Debug, Default)]
pub struct Violations {
    found: Vec<Violation>,
}

impl Violations {
    /// Returns the violations, the oldest first; at most 100 are stored.
    #[must_use]
    pub fn found(&self) -> &[Violation] {
        &self.found
    }

    /// Removes and returns the violations.
    pub fn take(&mut self) -> Vec<Violation> {
        std::mem::take(&mut self.found)
    }

    fn report(&mut self, clock: &Clock, invariant: Invariant, what: impl FnOnce() -> String) {
        if self.found.len() < MAX_KEPT {
            let (at, what) = (clock.now(), what());
            self.found.push(Violation { invariant, at, what });
        }
    }
}
