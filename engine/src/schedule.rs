//! The tick: one schedule with one chain of sets, which defines the order of the whole program.

use bevy_app::App;
use bevy_ecs::message::message_update_system;
use bevy_ecs::prelude::*;
use bevy_ecs::schedule::{ScheduleLabel, SingleThreadedExecutor};

/// The only schedule of an engine; runs once per tick.
#[derive(ScheduleLabel, Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tick;

/// The stages of a tick, in order. Within a tick, data moves only down this list; work for an earlier stage waits for
/// the next tick. "Late" names the symptom when a stage runs late. ARCHITECTURE.md lists the systems of each set; a
/// test writes the list from the schedule.
#[derive(SystemSet, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TickSet {
    /// Ports are drained into inboxes, each under a budget, and bytes become frames. Connections are admitted, refused
    /// or evicted, and peers that break the protocol are closed, before they cost anything. Other decisions come later.
    /// Late: all other stages are late too.
    Intake,
    /// Received blocks are matched to requests and placed into their pieces.
    /// Late: request queues run dry and links idle.
    Assemble,
    /// Finished hashes are collected, then complete pieces are submitted in one batch; the tick never waits.
    /// Late: pieces stay in memory longer.
    Verify,
    /// Finished writes are collected, then verified pieces are submitted.
    /// Late: pieces stay in memory longer.
    Store,
    /// Stored pieces are published: the bit is set, `Have` is queued, and due trackers get an announce.
    /// Late: peers learn later which pieces they can request.
    Announce,
    /// Next actions are decided: requests, choking, connecting, timeouts, lifecycle.
    /// Late: nothing starts or ends.
    Decide,
    /// Uploads: admitted requests become disk reads, finished reads become messages.
    /// Late: peers wait for their blocks.
    Respond,
    /// The only exit: outboxes go to the sockets, once per peer, and queued jobs go to their ports.
    /// Late: nothing of this tick is visible outside.
    Flush,
    /// Entities marked dead are removed, with their reason, after every feature has released their resources.
    /// Late: slots stay occupied.
    Reap,
}

impl TickSet {
    /// All sets in order.
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

/// Upkeep before the sets of a tick: drops the messages of the last tick.
#[derive(SystemSet, Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct MessageUpkeep;

/// Adds [`Tick`] with its sets to an app.
pub(crate) fn add_tick(app: &mut App) {
    let mut schedule = Schedule::new(Tick);
    // Set explicitly: another crate's features can change the default executor.
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
