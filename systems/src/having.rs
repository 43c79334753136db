//! Held pieces: sets the bit of each stored piece, and broadcasts `Have`.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use ecs_torrent_components::lifecycle::ChangedFacts;
use ecs_torrent_components::messages::{PieceStored, PiecesKnown};
use ecs_torrent_components::peer::{FlushQueue, Outbox, PeerPieces, PeerState};
use ecs_torrent_components::torrent::{Have, Layout, TorrentPeers};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::wire::Message;

use crate::AnnounceSet;
use crate::conditions::has_messages_of_two;

/// Keeps the have bitfield and broadcasts it.
pub struct HavingPlugin;

impl Plugin for HavingPlugin {
    fn build(&self, app: &mut App) {
        app.add_message::<PiecesKnown>().add_observer(attach_have).add_systems(
            Tick,
            (set_bits, broadcast_have)
                .chain()
                .run_if(has_messages_of_two::<PiecesKnown, PieceStored>)
                .in_set(AnnounceSet::Have),
        );
    }
}

/// Gives a torrent whose piece sizes are known an empty set of held pieces.
fn attach_have(known: On<Add<Layout>>, mut commands: Commands, layouts: Query<&Layout>) {
    if let Ok(Layout(geometry)) = layouts.get(known.entity) {
        let have = Have::none(geometry.piece_count());
        commands.entity(known.entity).insert(have);
    }
}

fn set_bits(
    mut known: MessageReader<PiecesKnown>,
    mut stored: MessageReader<PieceStored>,
    mut changed: ResMut<ChangedFacts>,
    mut torrents: Query<&mut Have>,
) {
    for PiecesKnown {
        torrent, have: pieces, ..
    } in known.read()
    {
        if let Ok(mut have) = torrents.get_mut(*torrent) {
            have.record_found(pieces);
            changed.add(*torrent);
        }
    }
    for &PieceStored { torrent, index, .. } in stored.read() {
        let Ok(mut have) = torrents.get_mut(torrent) else {
            continue;
        };
        if have.record_stored(index) && have.is_full() {
            changed.add(torrent);
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
