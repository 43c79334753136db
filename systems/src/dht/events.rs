//! Events of the DHT for users: few enough to log them all.

use std::time::Duration;

use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::dht::{DhtAddressKnown, DhtAnnounced, DhtReady};
use ecs_torrent_components::peer::Allowance;
use ecs_torrent_protocol::dht::node::Found;
use ecs_torrent_protocol::time::Timestamp;

/// Burst of events about the node, and the interval between two after the burst. A network connection that comes and
/// goes, or hostile nodes that contradict each other about our address, make no more.
const OF_NODE: (u32, Duration) = (8, Duration::from_secs(60));

/// Burst of events about torrents, and the interval between two after the burst. Each torrent causes one at its start.
const OF_TORRENTS: (u32, Duration) = (512, Duration::from_millis(200));

/// The outcome of a search for a torrent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    has_peers: bool,
    is_stored: bool,
}

/// The limits on events.
#[derive(Debug)]
pub(super) struct EventLimits {
    of_node: Allowance,
    of_torrents: Allowance,
}

impl EventLimits {
    pub(super) fn new(now: Timestamp) -> Self {
        let full = |(most, interval)| Allowance::new(now, most, interval);
        Self {
            of_node: full(OF_NODE),
            of_torrents: full(OF_TORRENTS),
        }
    }
}

/// The events of a tick.
#[derive(SystemParam)]
pub(super) struct DhtEvents<'w> {
    ready: MessageWriter<'w, DhtReady>,
    address: MessageWriter<'w, DhtAddressKnown>,
    announced: MessageWriter<'w, DhtAnnounced>,
}

impl DhtEvents<'_> {
    pub(super) fn publish_ready(&mut self, ready: DhtReady, limits: &mut EventLimits, now: Timestamp) {
        if limits.of_node.take(now) {
            self.ready.write(ready);
        }
    }

    pub(super) fn publish_address(&mut self, known: DhtAddressKnown, limits: &mut EventLimits, now: Timestamp) {
        if limits.of_node.take(now) {
            self.address.write(known);
        }
    }

    /// Publishes the result of a search for a torrent, unless the outcome is the last published one. A result beyond
    /// the limit is published after a later search.
    pub(super) fn publish_search(
        &mut self,
        torrent: Entity,
        found: &Found,
        published: &mut Option<Outcome>,
        limits: &mut EventLimits,
        now: Timestamp,
    ) {
        let outcome = Some(Outcome {
            has_peers: found.peer_count > 0,
            is_stored: found.stored_count > 0,
        });
        if *published != outcome && limits.of_torrents.take(now) {
            *published = outcome;
            self.announced.write(DhtAnnounced {
                torrent,
                peers: found.peer_count,
                nodes: found.stored_count,
            });
        }
    }
}
