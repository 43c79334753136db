//! The queue, which decides which torrents run when not all of them may.
//!
//! | component | kind | content |
//! |---|---|---|
//! | [`QueueOrder`], [`ForcedStart`] | intent | the torrent's position, and whether it ignores the limits |
//! | [`SlowTransfer`] | fact | the torrent runs, and is too slow to count |
//! | [`Waiting`] | fact | the torrent has to wait |

use std::num::NonZeroU32;

use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use serde::Serialize;

use crate::lifecycle::{Desired, Fault, Readiness, Stopping, Waiting};
use crate::torrent::{Have, Layout};
use crate::wanted::{WantedPieces, unneeded};

/// The place of a torrent in the queue: torrents with lower numbers run first. The numbers need not be dense.
#[derive(Component, Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueueOrder(pub i64);

/// Marks a torrent that runs whatever the limits are. It counts toward them.
#[derive(Component, Debug, Clone, Copy, Default)]
#[component(storage = "SparseSet")]
pub struct ForcedStart;

/// Marks a running torrent that is too slow to count toward the limits.
#[derive(Component, Debug, Clone, Copy, Default)]
#[component(storage = "SparseSet")]
pub struct SlowTransfer;

/// A move within the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueMove {
    /// Before all other torrents.
    Top,
    /// Before the torrent that is directly before it.
    Up,
    /// After the torrent that is directly after it.
    Down,
    /// After all other torrents.
    Bottom,
    /// To a place among all torrents, counted from 1. A place after the last one is the last one.
    Place(NonZeroU32),
}

/// A change of a torrent's place; `None` changes nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueChange {
    /// The move.
    pub movement: Option<QueueMove>,
    /// Whether the torrent runs whatever the limits are.
    pub forced: Option<bool>,
}

/// A torrent's place in the queue, for users.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct QueueStats {
    /// The place: torrents with lower numbers run first.
    pub order: i64,
    /// Whether the torrent runs whatever the limits are.
    pub forced: bool,
    /// Whether the torrent runs and is too slow to count.
    pub slow: bool,
}

/// The parts of a torrent that decide whether it takes part in the queue.
#[derive(QueryData)]
pub struct QueueFacts {
    desired: &'static Desired,
    readiness: &'static Readiness,
    fault: &'static Fault,
    is_stopping: Has<Stopping>,
    has_layout: Has<Layout>,
    have: Option<&'static Have>,
    wanted: Option<&'static WantedPieces>,
    /// Whether the torrent has to wait.
    pub is_waiting: Has<Waiting>,
    /// Whether the torrent runs whatever the limits are.
    pub is_forced: Has<ForcedStart>,
}

impl QueueFactsItem<'_, '_> {
    /// Whether the torrent takes part in the queue: it runs unless it has to wait. A torrent on a full disk keeps its
    /// slot and its connections; one whose volume is not mounted has none.
    #[must_use]
    pub fn may_run(&self) -> bool {
        let is_free = self.fault.0.is_none() && !self.is_stopping;
        is_free && self.has_layout && *self.desired == Desired::Run && *self.readiness == Readiness::Ready
    }

    /// Whether the torrent holds everything that is wanted.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.have.is_some_and(|have| unneeded(have, self.wanted).is_full())
    }
}
