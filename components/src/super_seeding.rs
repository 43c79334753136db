//! The state of super-seeding that other features read: the progress of the first copy, and each peer's turn.

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::time::Timestamp;

/// Bytes of pieces suggested to a peer before its turn ends. The more peers have a piece that no other peer has, the
/// more of them can upload to others.
pub const TURN_BYTES: u64 = 128 << 10;

/// Progress of the first copy while super-seeding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SuperSeedingPhase {
    /// Some pieces are neither held by nor assigned to any peer.
    Assigning,
    /// All pieces are assigned. Only peers that have not received all of theirs are served.
    Finishing {
        /// Latest end of the phase.
        until: Timestamp,
    },
}

/// Marks a seed that serves peers only while no connected peer has some piece. Written by the seeding limits.
#[derive(Component, Debug, Clone, Copy, Default)]
#[component(storage = "SparseSet")]
pub struct SuperSeedsOnly;

/// Progress of super-seeding, on a torrent that super-seeds. Super-seeding writes it at the end of its systems; choking
/// reads it.
#[derive(Component, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SuperSeeding {
    /// Every piece is held by or assigned to a peer.
    pub is_assigned: bool,
    /// Latest end of the finishing phase, once all pieces have been assigned.
    pub finish_until: Option<Timestamp>,
    /// A peer has not received all pieces assigned to it. Known only before `finish_until`.
    pub is_awaited: bool,
    /// The connected peers hold every piece together.
    pub is_out: bool,
}

impl SuperSeeding {
    /// Returns the current phase, or `None` once no peer waits for a piece that only this seed has.
    #[must_use]
    pub fn phase(&self, now: Timestamp) -> Option<SuperSeedingPhase> {
        if !self.is_assigned {
            return Some(SuperSeedingPhase::Assigning);
        }
        let until = self.finish_until.filter(|until| now < *until)?;
        self.is_awaited.then_some(SuperSeedingPhase::Finishing { until })
    }
}

/// A peer's turn while its torrent super-seeds. On every connected peer; written by super-seeding.
#[derive(Component, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SuperSeedingTurn {
    /// The peer has requested all pieces suggested in its turn, to their last blocks.
    pub is_spent: bool,
    /// The peer has not received all pieces assigned to it.
    pub awaits_pieces: bool,
}

impl SuperSeedingTurn {
    /// Whether the peer has had its share of the copy for now: it has requested all pieces suggested in its turn or, in
    /// the last phase, received all of them.
    #[must_use]
    pub fn is_over(&self, phase: SuperSeedingPhase) -> bool {
        match phase {
            SuperSeedingPhase::Assigning => self.is_spent,
            SuperSeedingPhase::Finishing { .. } => !self.awaits_pieces,
        }
    }
}
