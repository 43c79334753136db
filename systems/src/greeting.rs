//! First messages to a new peer: our extensions, our pieces, and its allowed-fast set.

use std::net::{IpAddr, SocketAddr};

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use bytes::Bytes;
use ecs_torrent_components::candidates::AllowedSources;
use ecs_torrent_components::messages::{LifecycleChanged, PeerConnected};
use ecs_torrent_components::peer::{
    AllowedFast, CloseReason, ExtensionRegistry, FlushQueue, Outbox, Peer, PeerExtensions, PeerPieces, PeerState,
    Stage, UploadQueue, Wire,
};
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::scope::Scope;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Content, Have, Lifecycle, Torrent, TorrentPeers};
use ecs_torrent_engine::ports::net::LocalAddresses;
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::extension::{ExtensionHandshake, HANDSHAKE_ID};
use ecs_torrent_protocol::fast::allowed_fast_set;
use ecs_torrent_protocol::metadata::METADATA;
use ecs_torrent_protocol::wire::Message;

use crate::conditions::has_messages;
use crate::dialing::ExternalAddresses;
use crate::metadata::metadata_size;
use crate::{AnnounceSet, IntakeSet};

/// Client name and version in extension handshakes.
const CLIENT: &str = concat!("ecs-torrent ", env!("CARGO_PKG_VERSION"));

/// Sends the first messages to new peers.
pub struct GreetingPlugin;

impl Plugin for GreetingPlugin {
    fn build(&self, app: &mut App) {
        app.add_systems(
            Tick,
            (
                greet_peers
                    .run_if(has_messages::<PeerConnected>)
                    .in_set(IntakeSet::Greet),
                (announce_held, send_upload_only)
                    .chain()
                    .run_if(has_messages::<LifecycleChanged>)
                    .in_set(AnnounceSet::Completion),
            ),
        );
    }
}

/// Sends our pieces, the extension handshake, and the allowed-fast set. Runs in the same tick as the handshake and
/// before any other message is sent: BEP 3 requires the bitfield first.
fn greet_peers(
    mut connected: MessageReader<PeerConnected>,
    settings: Res<Settings>,
    (local, external): (Res<LocalAddresses>, Res<ExternalAddresses>),
    registry: Res<ExtensionRegistry>,
    mut flush: ResMut<FlushQueue>,
    torrents: Query<(&Torrent, &Lifecycle, &AllowedSources, Option<&Have>, Option<&Content>)>,
    mut peers: Query<(&Peer, &Wire, &mut Outbox, &mut UploadQueue)>,
) {
    for connection in connected.read() {
        let entity = connection.peer;
        let Ok((torrent, lifecycle, allowed, have, content)) = torrents.get(connection.torrent) else {
            continue;
        };
        let Ok((peer, wire, mut outbox, mut uploads)) = peers.get_mut(entity) else {
            continue;
        };
        let mut send = |message: Message| flush.send(entity, &mut outbox, &message);
        let session = &wire.session;
        if let Some(have) = have {
            // BEP 6: with the fast extension, one of the three messages is required. Without it, none means no pieces.
            if session.fast && have.is_full() {
                send(Message::HaveAll);
            } else if session.fast && have.is_empty() {
                send(Message::HaveNone);
            } else if !have.is_empty() {
                let mut bits = Vec::new();
                have.write_wire(&mut bits);
                send(Message::Bitfield(bits.into()));
            }
        } else if session.fast {
            send(Message::HaveNone);
        }
        let address = peer.endpoint.address();
        if session.extended {
            // BEP 21: also a torrent that lacks only pieces that the user does not want.
            let only_uploads = lifecycle.is_finished() || have.is_some_and(|have| have.is_full());
            let mut handshake = our_handshake(&settings, &local, address, only_uploads);
            (handshake.ipv4, handshake.ipv6) = match address.and_then(|peer| other_address(peer, &local, &external)) {
                Some(IpAddr::V4(v4)) => (Some(v4), None),
                Some(IpAddr::V6(v6)) => (None, Some(v6)),
                None => (None, None),
            };
            let supported = registry.iter(*allowed).filter(|(_, id)| *id > 0);
            handshake.extensions = supported.map(|(name, id)| (name.to_owned(), id)).collect();
            if handshake.extensions.contains_key(METADATA) {
                handshake.metadata_size = metadata_size(allowed, content);
            }
            send(Message::Extended {
                id: HANDSHAKE_ID,
                payload: handshake.write().into(),
            });
        }
        // The allowed-fast set helps peers that trade with us. A seed wants nothing in return, and a hundred newcomers
        // would take its uplink from the unchoked peers.
        let trading = have.filter(|have| !have.is_full());
        if let (true, Some(SocketAddr::V4(address)), Some(have)) = (session.fast, address, trading) {
            let count = settings.peers.allowed_fast;
            let mut set = allowed_fast_set(*address.ip(), torrent.id(), have.len(), count);
            set.retain(|piece| have.contains(*piece));
            set.iter().for_each(|piece| send(Message::AllowedFast(*piece)));
            uploads.allowed_fast = AllowedFast::new(&set);
        }
    }
}

fn our_handshake(
    settings: &Settings,
    local: &LocalAddresses,
    peer: Option<SocketAddr>,
    only_uploads: bool,
) -> ExtensionHandshake {
    ExtensionHandshake {
        client: Some(CLIENT.to_owned()),
        listen_port: peer
            .and_then(|peer| local.for_family_of(peer))
            .map(|local| local.port()),
        request_queue: u32::try_from(settings.uploads.max_queue).ok(),
        your_ip: peer.map(|peer| peer.ip().to_canonical()),
        // BEP 21.
        upload_only: only_uploads.then_some(true),
        ..ExtensionHandshake::default()
    }
}

/// Our address of the other family than that of a peer, if we have one that the peer may know: it recognizes us if it
/// is connected there too (BEP 10, `ipv4` and `ipv6`).
fn other_address(peer: SocketAddr, local: &LocalAddresses, external: &ExternalAddresses) -> Option<IpAddr> {
    let is_ipv4 = !peer.ip().to_canonical().is_ipv4();
    let listening = local.0.iter().find(|local| local.is_ipv4() == is_ipv4)?;
    let ip = match listening.ip().is_unspecified() {
        true => external.of_family(is_ipv4)?,
        false => listening.ip(),
    };
    Scope::of(peer.ip().to_canonical()).may_reach(ip).then_some(ip)
}

/// Most `Have`s that a peer is sent at once, 9 KiB. A new connection, which begins with a bitfield, is cheaper than
/// more.
const MAX_LATE_HAVES: usize = 1024;

/// Sends our pieces to peers that connected before these were known: those of a torrent whose metadata came from peers
/// while its data was there already. Where that takes many messages, a new connection takes the place of the old one:
/// BEP 3 allows a bitfield only as the first message.
fn announce_held(
    mut changed: MessageReader<LifecycleChanged>,
    mut flush: ResMut<FlushQueue>,
    mut reaper: ResMut<Reaper>,
    torrents: Query<(&Have, &TorrentPeers)>,
    mut peers: Query<(&Peer, &PeerPieces, &PeerState, &mut Outbox)>,
) {
    let is_examined = |changed: &&LifecycleChanged| {
        matches!(changed.from, Lifecycle::Adding | Lifecycle::Checking) && changed.to.is_running()
    };
    for LifecycleChanged { torrent, .. } in changed.read().filter(is_examined) {
        let Ok((have, connected)) = torrents.get(*torrent) else {
            continue;
        };
        for entity in connected.iter() {
            let Ok((peer, pieces, state, mut outbox)) = peers.get_mut(entity) else {
                continue;
            };
            if peer.stage != Stage::Connected {
                continue;
            }
            // A peer that has a piece need not know that we have it, unless our `Have`s drive its super-seeding.
            let is_news = |piece: &u32| state.suggests || !pieces.has(*piece);
            let news = || have.iter().filter(is_news);
            if news().nth(MAX_LATE_HAVES).is_some() {
                reaper.close(entity, CloseReason::Reconnecting);
                continue;
            }
            news().for_each(|piece| flush.send(entity, &mut outbox, &Message::Have(piece)));
        }
    }
}

/// Sends `upload_only` to the peers of a torrent that has everything it wants now, or turns out to have it, and takes
/// it back when the user wants more (BEP 21). A repeated extension handshake changes only the keys that it contains
/// (BEP 10).
fn send_upload_only(
    mut changed: MessageReader<LifecycleChanged>,
    mut flush: ResMut<FlushQueue>,
    torrents: Query<&TorrentPeers>,
    mut peers: Query<(&mut Outbox, &PeerExtensions)>,
) {
    let is_news = |changed: &&LifecycleChanged| changed.finishes() || changed.wants_more();
    for LifecycleChanged { torrent, to, .. } in changed.read().filter(is_news) {
        for peer in torrents.get(*torrent).into_iter().flat_map(RelationshipTarget::iter) {
            let Ok((mut outbox, extensions)) = peers.get_mut(peer) else {
                continue;
            };
            if !extensions.is_known {
                continue;
            }
            let payload = Bytes::from_static(match to.is_finished() {
                true => b"d1:mde11:upload_onlyi1ee",
                false => b"d1:mde11:upload_onlyi0ee",
            });
            flush.send(
                peer,
                &mut outbox,
                &Message::Extended {
                    id: HANDSHAKE_ID,
                    payload,
                },
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use ecs_torrent_components::peer::Direction;
    use ecs_torrent_components::torrent::Layout;

    use super::*;
    use crate::testing::Bed;

    /// Greets a peer. Returns it.
    fn greet(bed: &mut Bed, is_fast: bool) -> Entity {
        let peer = bed.peer();
        bed.get_mut::<Wire>(peer).session.fast = is_fast;
        let connected = PeerConnected {
            torrent: bed.torrent,
            peer,
        };
        bed.run_after(connected, greet_peers);
        peer
    }

    fn bed(held: &[u32]) -> Bed {
        let mut bed = Bed::new(());
        bed.world.init_resource::<LocalAddresses>();
        bed.world.init_resource::<ExternalAddresses>();
        bed.world.resource_mut::<Settings>().peers.allowed_fast = 0;
        let parts = (crate::testing::torrent(), AllowedSources::default());
        bed.world.entity_mut(bed.torrent).insert(parts);
        for piece in held {
            bed.get_mut::<Have>(bed.torrent).record_stored(*piece);
        }
        bed
    }

    /// BEP 3 and 6.
    #[test]
    fn the_first_message_says_which_pieces_we_have() {
        let bits = |bits: u8| Message::Bitfield(vec![bits].into());
        for (held, is_fast, message) in [
            (&[][..], true, Some(Message::HaveNone)),
            (&[], false, None),
            (&[0, 2], true, Some(bits(0xa0))),
            (&[0, 2], false, Some(bits(0xa0))),
            (&[0, 1, 2], true, Some(Message::HaveAll)),
            (&[0, 1, 2], false, Some(bits(0xe0))),
        ] {
            let mut bed = bed(held);
            let peer = greet(&mut bed, is_fast);
            assert!(bed.has_sent(peer, message.as_slice()), "{held:?} {is_fast}");
        }
        for is_fast in [true, false] {
            let mut bed = bed(&[]);
            bed.world.entity_mut(bed.torrent).remove::<(Layout, Have)>();
            let peer = greet(&mut bed, is_fast);
            assert!(
                bed.has_sent(peer, &[Message::HaveNone][..usize::from(is_fast)]),
                "no metadata"
            );
        }
    }

    /// A seed wants nothing in return for allowed-fast pieces.
    #[test]
    fn only_a_leecher_allows_pieces_to_choked_peers() {
        for (held, count) in [(&[0u32, 1][..], 2), (&[0, 1, 2], 0)] {
            let mut bed = bed(held);
            bed.world.resource_mut::<Settings>().peers.allowed_fast = 3;
            let peer = greet(&mut bed, true);
            let sent = bed.get_mut::<Outbox>(peer).take().concat();
            let allowed = sent.windows(5).filter(|window| *window == [0, 0, 0, 5, 17]);
            assert_eq!(allowed.count(), count);
        }
    }

    /// Peers may have connected before the held pieces were known; a bitfield can only be the first message.
    #[test]
    fn peers_from_before_the_check_get_the_held_pieces() {
        for (from, to, is_sent) in [
            (Lifecycle::Checking, Lifecycle::Downloading, true),
            (Lifecycle::Adding, Lifecycle::Seeding, true),
            (Lifecycle::Downloading, Lifecycle::Seeding, false),
            (Lifecycle::Checking, Lifecycle::Paused, false),
        ] {
            let mut bed = bed(&[0, 2]);
            let peer = bed.peer();
            *bed.get_mut::<PeerPieces>(peer) = PeerPieces::none(3);
            let torrent = bed.torrent;
            bed.run_after(LifecycleChanged { torrent, from, to }, announce_held);
            let haves = [Message::Have(0), Message::Have(2)];
            assert!(bed.has_sent(peer, &haves[..2 * usize::from(is_sent)]));
        }
        let mut bed = bed(&[0]);
        let mut connection = bed.connection(Direction::Inbound);
        connection.stage = Stage::Handshaking;
        let peer = bed.peer();
        bed.world.entity_mut(peer).insert(connection);
        let changed = LifecycleChanged {
            torrent: bed.torrent,
            from: Lifecycle::Checking,
            to: Lifecycle::Downloading,
        };
        bed.run_after(changed, announce_held);
        assert!(bed.has_sent(peer, &[]), "the handshake comes first");
    }

    /// A peer learns of few pieces one by one, and of many by the bitfield of a new connection. A seed need not know.
    #[test]
    fn many_late_pieces_take_a_new_connection() {
        let count = MAX_LATE_HAVES as u32 + 1;
        for (held, pieces, suggests, haves, is_closed) in [
            (count - 1, PeerPieces::none(count), false, count - 1, false),
            (count, PeerPieces::none(count), false, 0, true),
            (count, PeerPieces::all(count), false, 0, false),
            (count, PeerPieces::all(count), true, 0, true),
        ] {
            let mut bed = bed(&[]);
            *bed.get_mut::<Have>(bed.torrent) = Have::none(count);
            (0..held).for_each(|piece| assert!(bed.get_mut::<Have>(bed.torrent).record_stored(piece)));
            let peer = bed.peer();
            *bed.get_mut::<PeerPieces>(peer) = pieces;
            bed.get_mut::<PeerState>(peer).suggests = suggests;
            let changed = LifecycleChanged {
                torrent: bed.torrent,
                from: Lifecycle::Checking,
                to: Lifecycle::Seeding,
            };
            bed.run_after(changed, announce_held);
            let sent = bed.get_mut::<Outbox>(peer).take().concat();
            assert_eq!(sent.len(), 9 * haves as usize);
            assert_eq!(bed.world.resource::<Reaper>().is_doomed(peer), is_closed);
        }
    }

    /// BEP 21 and 10.
    #[test]
    fn peers_with_the_extension_protocol_get_upload_only() {
        for (from, to, is_known, sent) in [
            (Lifecycle::Downloading, Lifecycle::Seeding, true, Some(1)),
            (Lifecycle::Downloading, Lifecycle::Seeding, false, None),
            (Lifecycle::Adding, Lifecycle::Seeding, true, Some(1)),
            (Lifecycle::Downloading, Lifecycle::Finished, true, Some(1)),
            (Lifecycle::Finished, Lifecycle::Seeding, true, None),
            (Lifecycle::Finished, Lifecycle::Downloading, true, Some(0)),
            (Lifecycle::Checking, Lifecycle::Downloading, true, None),
        ] {
            let mut bed = bed(&[]);
            let peer = bed.peer();
            bed.get_mut::<PeerExtensions>(peer).is_known = is_known;
            let torrent = bed.torrent;
            bed.run_after(LifecycleChanged { torrent, from, to }, send_upload_only);
            let bytes = bed.get_mut::<Outbox>(peer).take().concat();
            let value = sent.map(|value| format!("11:upload_onlyi{value}ee"));
            assert_eq!(bytes.is_empty(), value.is_none());
            assert!(value.is_none_or(|value| bytes.ends_with(value.as_bytes())));
        }
    }
}
