//! Connections that end with this tick.

use bevy_ecs::entity::EntityHashSet;
use bevy_ecs::prelude::*;

use crate::peer::CloseReason;

/// Connections marked to end, each with its reason. Whoever decides marks; at the end of the tick every feature
/// lets go of what the peer held, and then the entity goes.
#[derive(Resource, Debug, Default)]
pub struct Reaper {
    doomed: Vec<(Entity, CloseReason)>,
    marked: EntityHashSet,
}

impl Reaper {
    /// Marks a peer. The first reason stays.
    pub fn close(&mut self, peer: Entity, reason: impl Into<CloseReason>) {
        if self.marked.insert(peer) {
            self.doomed.push((peer, reason.into()));
        }
    }

    /// Whether a peer is marked.
    #[must_use]
    pub fn is_doomed(&self, peer: Entity) -> bool {
        self.marked.contains(&peer)
    }

    /// The marked peers, in the order in which they were marked.
    pub fn iter(&self) -> impl Iterator<Item = (Entity, &CloseReason)> + '_ {
        self.doomed.iter().map(|(peer, reason)| (*peer, reason))
    }

    /// Takes all marks off. For the end of the tick.
    pub fn take(&mut self) -> Vec<(Entity, CloseReason)> {
        self.marked.clear();
        std::mem::take(&mut self.doomed)
    }
}
