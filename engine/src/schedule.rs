//! The tick: one schedule, one chain of sets. This is the whole program's order, written in this one place.

use bevy_app::App;
use bevy_ecs::message::message_update_system;
use bevy_ecs::prelude::*;
use bevy_ecs::schedule::{ScheduleLabel, SingleThreadedExecutor};

/// The one schedule of an engine; runs once per tick.
#[derive(ScheduleLabel, Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tick;

/// The stages of a tick, in their order. Data moves down this list and never up.
#[derive(SystemSet, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TickSet {
    /// Ports are drained into inboxes, each under a budget, and bytes become frames. Nothing is decided here.
    /// Runs: port draining, commands, accepting, handshakes, decoding. Late: everything is.
    Intake,
    /// Received blocks are matched to requests and placed into their pieces.
    /// Runs: assembly. Late: request queues run dry and links idle.
    Assemble,
    /// Finished hashes are collected, then full pieces submitted in one batch; the tick never waits.
    /// Runs: verification, checking, blame for corrupt blocks. Late: pieces stay in memory longer.
    Verify,
    /// Finished writes are collected, then verified pieces submitted.
    /// Runs: storage. Late: pieces stay in memory longer.
    Store,
    /// What is on the disk becomes known: the bit is set, Have is queued; trackers that are due are announced to.
    /// Runs: have broadcast, completion, announces. Late: others learn later what they could fetch here.
    Announce,
    /// What to do next: requests, choking, connecting, timeouts, lifecycle.
    /// Runs: availability, choking, picking, dialing, timeouts, lifecycle. Late: nothing starts or ends.
    Decide,
    /// Uploads: admitted requests become disk reads, finished reads become messages.
    /// Runs: uploading. Late: peers wait for their blocks.
    Respond,
    /// The only exit: outboxes go to the sockets, each peer once, and queued jobs to their ports.
    /// Runs: flushing. Late: nothing of this tick is seen outside.
    Flush,
    /// Entities marked dead go, with their reason, after every feature has let go of what they held.
    /// Runs: release of what peers held, reaping. Late: slots stay taken.
    Reap,
}

impl TickSet {
    /// All sets in their order.
    pub const ALL: [Self; 9] = [
        Self::Intake,
        Self::Assemble,
        Self::Verify,
        Self::Store,
        Self::Announce,
        Self::Decide,
        Self::Respond,
        Self::Flush,
        Self::Reap,
    ];
}

/// Before the sets of a tick: last tick's messages are dropped.
#[derive(SystemSet, Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct MessageUpkeep;

/// Adds [`Tick`] with its sets to an app.
pub(crate) fn add_tick(app: &mut App) {
    let mut schedule = Schedule::new(Tick);
    // Named, since another crate's features can change what the default executor is.
    schedule.set_executor(SingleThreadedExecutor::new());
    app.add_schedule(schedule);
    use TickSet::{Announce, Assemble, Decide, Flush, Intake, Reap, Respond, Store, Verify};
    app.configure_sets(
        Tick,
        (
            MessageUpkeep,
            Intake,
            Assemble,
            Verify,
            Store,
            Announce,
            Decide,
            Respond,
            Flush,
            Reap,
        )
            .chain(),
    );
    app.add_systems(Tick, message_update_system.in_set(MessageUpkeep));
}
