//! Held pieces: sets the bit of each stored piece, and broadcasts `Have`.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use ecs_torrent_components::lifecycle::ChangedFacts;
use ecs_torrent_components::messages::{PieceStored, PiecesKnown};
use ecs_torrent_components::peer::{FlushQueue, Outbox, PeerPieces, PeerState};
use ecs_torrent_components::torrent::{Have, Layout, TorrentPeers};
use ecs_torrent_components::wanted::WantedPieces;
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::wire::Message;

use crate::AnnounceSet;
use crate::conditions::has_messages_of_two;

/// Keeps the have bitfield and broadcasts it.
pub struct HavingPlugin;

impl Plugin for HavingPlugin {
    fn build(&self, app: &mut App) {
        let has_pieces = has_messages_of_two::<PiecesKnown, PieceStored>;
        app.add_message::<PiecesKnown>()
            .add_observer(attach_have)
            .configure_sets(Tick, AnnounceSet::Have.run_if(has_pieces))
            .add_systems(Tick, (set_bits, broadcast_have).chain().in_set(AnnounceSet::Have));
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
        if let Ok(mut have) = torrents.get_mut(torrent)
            && have.record_stored(index)
            && have.is_full()
        {
            changed.add(torrent);
        }
    }
}

/// Sends `Have` for each stored piece. Skips peers that already have the piece, unless the peer uses our `Have`s to
/// drive super-seeding. Our interest in them cannot change.
pub(crate) fn broadcast_have(
    mut stored: MessageReader<PieceStored>,
    mut flush: ResMut<FlushQueue>,
    torrents: Query<(&TorrentPeers, Option<&WantedPieces>)>,
    mut peers: Query<(&mut PeerState, &mut PeerPieces, &mut Outbox)>,
) {
    for &PieceStored { torrent, index, .. } in stored.read() {
        let Ok((connected, wanted)) = torrents.get(torrent) else {
            continue;
        };
        // A piece that is not wanted was in flight when the user changed their mind.
        let was_wanted = wanted.is_none_or(|wanted| wanted.is_wanted(index));
        for peer in connected.iter() {
            let Ok((mut state, mut pieces, mut outbox)) = peers.get_mut(peer) else {
                continue;
            };
            let has = pieces.has(index);
            if !has || state.suggests {
                flush.send(peer, &mut outbox, &Message::Have(index));
            }
            if !has || !was_wanted {
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

#[cfg(test)]
mod tests {
    use ecs_torrent_components::peer::PeerPieces;

    use super::*;
    use crate::testing::Bed;

    fn store(bed: &mut Bed, index: u32) {
        let stored = PieceStored {
            torrent: bed.torrent,
            index,
            len: 1,
        };
        bed.run_after(stored, broadcast_have);
    }

    #[test]
    fn peers_that_lack_a_piece_get_have() {
        let mut bed = Bed::new(());
        let [lacks, has, suggests] = [bed.peer(), bed.peer(), bed.peer()];
        *bed.get_mut::<PeerPieces>(lacks) = PeerPieces::none(3);
        bed.get_mut::<PeerState>(suggests).suggests = true;
        for peer in [has, suggests] {
            bed.get_mut::<PeerPieces>(peer).wanted_count = 2;
        }
        store(&mut bed, 1);
        assert!(bed.has_sent(lacks, &[Message::Have(1)]));
        assert!(bed.has_sent(has, &[]), "it has it");
        assert!(bed.has_sent(suggests, &[Message::Have(1)]), "it counts on it");
        store(&mut bed, 2);
        assert!(
            bed.has_sent(has, &[Message::NotInterested]),
            "it has nothing else that we lack"
        );
        assert!(!bed.get::<PeerState>(has).am_interested);
        assert!(bed.get::<PeerState>(lacks).am_interested, "that is not affected");
    }

    /// Only the last piece changes the torrent's state.
    #[test]
    fn the_last_stored_piece_changes_the_torrent() {
        let mut bed = Bed::new(());
        bed.world.init_resource::<ChangedFacts>();
        bed.world.init_resource::<Messages<PiecesKnown>>();
        for (index, is_changed) in [(0, false), (1, false), (1, false), (2, true), (2, false)] {
            let stored = PieceStored {
                torrent: bed.torrent,
                index,
                len: 1,
            };
            bed.run_after(stored, set_bits);
            let count = bed.world.resource_mut::<ChangedFacts>().drain().count();
            assert_eq!(count, usize::from(is_changed), "{index}");
        }
    }
}
