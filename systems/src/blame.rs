//! Bans of peers that are proven to have sent wrong bytes.

use std::fmt;
use std::net::SocketAddr;

use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::bans::Bans;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::peer::{CloseReason, Peer};
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::{Settings, seconds};
use ecs_torrent_components::torrent::Torrent;

/// A peer, identified by its address even after it has disconnected. Neither its peer id nor its claimed listening port
/// identifies it: either may belong to another peer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Culprit {
    pub(crate) entity: Entity,
    pub(crate) address: SocketAddr,
}

impl PartialEq for Culprit {
    fn eq(&self, other: &Self) -> bool {
        self.entity == other.entity
    }
}

impl Eq for Culprit {}

/// Parameters for bans.
#[derive(SystemParam)]
pub(crate) struct Blame<'w, 's> {
    clock: Res<'w, Clock>,
    settings: Res<'w, Settings>,
    bans: ResMut<'w, Bans>,
    reaper: ResMut<'w, Reaper>,
    peers: Query<'w, 's, &'static Peer>,
    torrents: Query<'w, 's, &'static Torrent>,
}

impl Blame<'_, '_> {
    pub(crate) fn identify(&self, entity: Entity) -> Option<Culprit> {
        let address = self.peers.get(entity).ok()?.endpoint.address()?;
        Some(Culprit { entity, address })
    }

    /// Bans a peer that is not banned already, and closes its connection.
    pub(crate) fn ban(&mut self, culprit: &Culprit, torrent: Entity, sent: fmt::Arguments<'_>) {
        let now = self.clock.now();
        if self.bans.has(now, culprit.address) {
            return;
        }
        tracing::warn!(
            torrent = self.torrents.get(torrent).ok().map(|torrent| display(torrent.label())),
            peer = %culprit.address,
            "banned: sent {sent}"
        );
        let limits = &self.settings.peers;
        let (duration, max) = (seconds(limits.ban_s), limits.max_bans);
        self.bans.ban(now, duration, max, culprit.address);
        self.reaper.close(culprit.entity, CloseReason::Corrupt);
    }

    /// Closes a connection.
    pub(crate) fn close(&mut self, peer: Entity, reason: impl Into<CloseReason>) {
        self.reaper.close(peer, reason);
    }
}
