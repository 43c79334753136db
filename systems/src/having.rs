//! Held pieces: sets the bit of each stored piece, broadcasts `Have`, and completes the torrent with the last piece.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use ecs_torrent_components::messages::{PieceStored, TorrentCompleted};
use ecs_torrent_components::peer::{FlushQueue, Outbox, PeerPieces, PeerState};
use ecs_torrent_components::torrent::{Have, Lifecycle, TorrentPeers};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::wire::Message;

use crate::AnnounceSet;
use crate::picking::Picker;

/// Keeps the have bitfield and broadcasts it.
pub struct HavingPlugin;

impl Plugin for HavingPlugin {
    fn build(&self, app: &mut App) {
        app.add_message::<TorrentCompleted>()
            .add_systems(Tick, (set_bits, broadcast_have).chain().in_set(AnnounceSet::Have));
    }
}

fn set_bits(
    mut commands: Commands,
    mut stored: MessageReader<PieceStored>,
    mut completed: MessageWriter<TorrentCompleted>,
    mut torrents: Query<(&mut Have, &mut Lifecycle)>,
) {
    for &PieceStored { torrent, index, .. } in stored.read() {
        let Ok((mut have, mut lifecycle)) = torrents.get_mut(torrent) else {
            continue;
        };
        // A torrent whose last pieces waited for disk space is still blocked when the last one is written.
        let is_missing_pieces = matches!(*lifecycle, Lifecycle::Downloading | Lifecycle::Blocked { .. });
        if have.0.insert(index) && have.0.is_full() && is_missing_pieces {
            *lifecycle = Lifecycle::Seeding;
            commands.entity(torrent).remove::<Picker>();
            completed.write(TorrentCompleted { torrent });
        }
    }
}

/// Sends `Have` for each stored piece. Skips peers that already have the piece, unless the peer uses our `Have`s to
/// drive super-seeding. Our interest in them cannot change.
fn broadcast_have(
    mut stored: MessageReader<PieceStored>,
    mut flush: ResMut<FlushQueue>,
    torrents: Query<&TorrentPeers>,
    mut peers: Query<(&mut PeerState, &mut PeerPieces, &mut Outbox)>,
) {
    for &PieceStored { torrent, index, .. } in stored.read() {
        let Ok(connected) = torrents.get(torrent) else { continue };
        for peer in connected.iter() {
            let Ok((mut state, mut pieces, mut outbox)) = peers.get_mut(peer) else {
                continue;
            };
            let has = pieces.has(index);
            if !has || state.suggests {
                flush.send(peer, &mut outbox, &Message::Have(index));
            }
            if !has {
                continue;
            }
            pieces.wanted_count = pieces.wanted_count.saturating_sub(1);
            if pieces.wanted_count == 0 && state.am_interested {
                state.am_interested = false;
                flush.send(peer, &mut outbox, &Message::NotInterested);
            }
        }
    }
}
