//! Connections that end with this tick.

use bevy_ecs::entity::EntityHashSet;
use bevy_ecs::prelude::*;

use crate::peer::CloseReason;

/// Connections marked for closing, each with its reason. Any feature may mark one. At the end of the tick, every
/// feature releases what the peer held, and then the entity is despawned.
///
/// ```
/// use bevy_ecs::prelude::*;
/// use ecs_torrent_components::messages::PeerConnected;
/// use ecs_torrent_components::peer::{Peer, PluginReason};
/// use ecs_torrent_components::reaper::Reaper;
///
/// fn close_ipv6(mut connected: MessageReader<PeerConnected>, peers: Query<&Peer>, mut reaper: ResMut<Reaper>) {
///     for message in connected.read() {
///         let address = peers.get(message.peer).ok().and_then(|peer| peer.endpoint.address());
///         if address.is_some_and(|address| address.is_ipv6()) {
///             reaper.close(message.peer, PluginReason::new("IPv4 only", "the peer uses IPv6"));
///         }
///     }
/// }
/// # bevy_ecs::system::assert_is_system(close_ipv6);
/// ```
#[derive(Resource, Debug, Default)]
pub struct Reaper {
    doomed: Vec<(Entity, CloseReason)>,
    marked: EntityHashSet,
}

impl Reaper {
    /// Marks a peer for closing. The first reason stays.
    pub fn close(&mut self, peer: Entity, reason: impl Into<CloseReason>) {
        if self.marked.insert(peer) {
            self.doomed.push((peer, reason.into()));
        }
    }

    /// Whether no peer is marked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.doomed.is_empty()
    }

    /// Whether a peer is marked.
    #[must_use]
    pub fn is_doomed(&self, peer: Entity) -> bool {
        self.marked.contains(&peer)
    }

    /// Returns the marked peers, in the order in which they were marked.
    pub fn iter(&self) -> impl Iterator<Item = (Entity, &CloseReason)> + '_ {
        self.doomed.iter().map(|(peer, reason)| (*peer, reason))
    }

    /// Removes and returns all marks. For the end of the tick.
    pub fn take(&mut self) -> Vec<(Entity, CloseReason)> {
        self.marked.clear();
        std::mem::take(&mut self.doomed)
    }
}
