//! Metadata for other peers.

use std::collections::VecDeque;
use std::time::Duration;

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use bytes::Bytes;
use ecs_torrent_components::candidates::AllowedSources;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::messages::{MetadataKnown, OutboxDrained, PeerDisconnected};
use ecs_torrent_components::peer::{Allowance, ExtensionRegistry, FlushQueue, Outbox, PeerExtensions, Wire};
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Content, PeerOf, TorrentPeers};
use ecs_torrent_protocol::extension::{ExtensionHandshake, HANDSHAKE_ID};
use ecs_torrent_protocol::metadata::{METADATA, MetadataMessage, PIECE_LEN, piece_count, piece_len};
use ecs_torrent_protocol::wire::Message;

/// Number of times that a connection gets the whole metadata; BEP 9 allows to refuse a peer that requests too much.
const MAX_COPIES: u32 = 3;

/// Maximum number of requests of one peer that are not answered: the pieces of 16 MiB.
const MAX_QUEUED: usize = 1024;

/// Metadata is added to a send queue while it is shorter than this, in bytes.
const SEND_AHEAD: usize = 128 << 10;

/// Seconds of the rate that may be sent at once after a quiet time.
const BURST_S: u64 = 4;

/// Requests of peers for metadata that are not answered yet.
#[derive(Resource, Debug, Default)]
pub(crate) struct MetadataServer {
    peers: EntityHashMap<Requested>,
    /// The peers with requests, in turn, except those whose outboxes are full. No [`WorkList`]: a peer that the rate
    /// did not reach keeps the first place.
    ///
    /// [`WorkList`]: ecs_torrent_components::work_list::WorkList
    turns: VecDeque<Entity>,
    /// Pieces that may be sent now, to all peers.
    allowance: Option<Allowance>,
}

#[derive(Debug, Default)]
struct Requested {
    pieces: VecDeque<u32>,
    /// Number of pieces sent since the peer connected.
    sent: u32,
    /// Whether the peer has no turn until its outbox has room.
    is_parked: bool,
}

impl MetadataServer {
    /// Adds a request. Returns false if the peer has too many that are not answered.
    pub(super) fn add(&mut self, peer: Entity, piece: u32) -> bool {
        let requested = self.peers.entry(peer).or_default();
        if requested.pieces.len() >= MAX_QUEUED {
            return false;
        }
        if requested.pieces.is_empty() {
            self.turns.push_back(peer);
        }
        requested.pieces.push_back(piece);
        true
    }

    /// Gives a peer its turn again whose outbox has room.
    fn resume(&mut self, peer: Entity) {
        if let Some(requested) = self.peers.get_mut(&peer)
            && std::mem::take(&mut requested.is_parked)
        {
            self.turns.push_back(peer);
        }
    }

    pub(super) fn has_work(&self) -> bool {
        !self.turns.is_empty()
    }
}

/// Returns the info dictionary that a torrent may serve: none if it is private (BEP 27).
fn served<'c>(allowed: &AllowedSources, content: Option<&'c Content>) -> Option<&'c Bytes> {
    content
        .filter(|_| allowed.exchanges_metadata())
        .map(|content| &content.0.info_bytes)
}

/// Whether a torrent serves a piece of its metadata.
pub(super) fn has_piece(allowed: &AllowedSources, content: Option<&Content>, piece: u32) -> bool {
    metadata_size(allowed, content).is_some_and(|size| piece < piece_count(size))
}

/// Answers requests, as fast as each peer reads and the rate for all allows. While the rate does not suffice, the peers
/// get their pieces in turns.
pub(super) fn serve_metadata(
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    settings: Res<Settings>,
    mut drained: MessageReader<OutboxDrained>,
    mut server: ResMut<MetadataServer>,
    mut flush: ResMut<FlushQueue>,
    torrents: Query<(&AllowedSources, Option<&Content>)>,
    mut peers: Query<(&PeerOf, &PeerExtensions, &mut Outbox)>,
) {
    let now = clock.now();
    drained.read().for_each(|drained| server.resume(drained.peer));
    let MetadataServer {
        peers: requests,
        turns,
        allowance,
    } = &mut *server;
    let pieces_per_s = (settings.metadata.serve_bytes_per_s / u64::from(PIECE_LEN)).max(1);
    let interval = Duration::from_secs(1) / u32::try_from(pieces_per_s).unwrap_or(u32::MAX);
    let burst = u32::try_from(pieces_per_s * BURST_S).unwrap_or(u32::MAX);
    let allowance = allowance.get_or_insert_with(|| Allowance::new(now, burst, interval));
    for _ in 0..turns.len() {
        let Some(peer) = turns.pop_front() else {
            break;
        };
        let (Some(requested), Ok((of, extensions, mut outbox))) = (requests.get_mut(&peer), peers.get_mut(peer)) else {
            continue;
        };
        let info = torrents
            .get(of.0)
            .ok()
            .and_then(|(allowed, content)| served(allowed, content));
        let (mut is_served, mut is_exhausted) = (false, false);
        while let Some(&piece) = requested.pieces.front() {
            let data = info.and_then(|info| requested.answer(info, piece));
            if data.is_some() {
                if outbox.waiting_bytes() >= SEND_AHEAD {
                    outbox.await_room(SEND_AHEAD);
                    requested.is_parked = true;
                    break;
                }
                if !allowance.take(now) {
                    wakeup.at(now + interval);
                    is_exhausted = true;
                    break;
                }
                requested.sent += 1;
                is_served = true;
            }
            requested.pieces.pop_front();
            if let Some(id) = extensions.id_of(METADATA) {
                let answer = data.unwrap_or(MetadataMessage::Reject { piece });
                let payload = answer.write();
                flush.send(peer, &mut outbox, &Message::Extended { id, payload });
            }
        }
        match requested.pieces.is_empty() || requested.is_parked {
            true => {}
            false if is_exhausted && !is_served => turns.push_front(peer),
            false => turns.push_back(peer),
        }
        if is_exhausted {
            break;
        }
    }
}

impl Requested {
    /// Returns the answer with a piece, if the piece exists and the peer has not had too many.
    fn answer(&self, info: &Bytes, piece: u32) -> Option<MetadataMessage> {
        let total_size = u32::try_from(info.len()).ok()?;
        let count = piece_count(total_size);
        if piece >= count || self.sent >= count.saturating_mul(MAX_COPIES) {
            return None;
        }
        let begin = (piece * PIECE_LEN) as usize;
        Some(MetadataMessage::Data {
            piece,
            total_size,
            data: info.slice(begin..begin + piece_len(total_size, piece) as usize),
        })
    }
}

/// Sends connected peers the size of metadata that has become known, and the extensions that the torrent may use now: a
/// private one may use fewer than before.
pub(super) fn announce_metadata(
    mut known: MessageReader<MetadataKnown>,
    registry: Res<ExtensionRegistry>,
    mut flush: ResMut<FlushQueue>,
    torrents: Query<(&AllowedSources, Option<&Content>, &TorrentPeers)>,
    mut peers: Query<(&Wire, &mut Outbox), With<PeerExtensions>>,
) {
    for MetadataKnown { torrent } in known.read() {
        let Ok((allowed, content, connected)) = torrents.get(*torrent) else {
            continue;
        };
        let extensions = registry.iter(*allowed);
        let handshake = ExtensionHandshake {
            extensions: extensions.map(|(name, id)| (name.to_owned(), id)).collect(),
            metadata_size: metadata_size(allowed, content),
            ..ExtensionHandshake::default()
        };
        let payload = Bytes::from(handshake.write());
        for peer in connected.iter() {
            if let Ok((wire, mut outbox)) = peers.get_mut(peer)
                && wire.session.extended
            {
                let (id, payload) = (HANDSHAKE_ID, payload.clone());
                flush.send(peer, &mut outbox, &Message::Extended { id, payload });
            }
        }
    }
}

/// Returns the size of the metadata that a torrent serves, for the extension handshake.
pub(crate) fn metadata_size(allowed: &AllowedSources, content: Option<&Content>) -> Option<u32> {
    served(allowed, content).and_then(|info| u32::try_from(info.len()).ok())
}

/// Forgets the requests of peers that have left.
pub(super) fn release_requests(mut disconnected: MessageReader<PeerDisconnected>, mut server: ResMut<MetadataServer>) {
    for PeerDisconnected { peer, .. } in disconnected.read() {
        server.peers.remove(peer);
    }
}

#[cfg(test)]
mod tests {
    use ecs_torrent_components::candidates::CandidateSources;

    use super::super::MetadataPlugin;
    use super::*;
    use crate::testing::{Bed, NOW, content, torrent};

    /// Two peers request more than the rate allows. One of them has always requested more, so it has the first place.
    #[test]
    fn a_greedy_peer_gets_no_more_than_its_turn() {
        let mut bed = Bed::new(MetadataPlugin);
        bed.world.init_resource::<Messages<OutboxDrained>>();
        let mut settings = bed.world.resource_mut::<Settings>();
        settings.metadata.serve_bytes_per_s = u64::from(PIECE_LEN);
        bed.world
            .entity_mut(bed.torrent)
            .insert((torrent(), content(), allowed()));
        let handshake = ExtensionHandshake {
            extensions: [(METADATA.to_owned(), 3)].into(),
            ..ExtensionHandshake::default()
        };
        let peers = [bed.peer(), bed.peer()];
        for peer in peers {
            bed.world.entity_mut(peer).insert(PeerExtensions {
                handshake: handshake.clone(),
                is_known: true,
            });
        }
        let mut answers = [0, 0];
        for second in 0..8 {
            bed.world
                .resource_mut::<Clock>()
                .advance_to(NOW + Duration::from_secs(second));
            let mut server = bed.world.resource_mut::<MetadataServer>();
            assert!(server.add(peers[0], 0) && server.add(peers[0], 0));
            if second == 0 {
                assert!((0..4).all(|_| server.add(peers[1], 0)));
            }
            // The metadata has one piece: this test is not about the limit of copies.
            server.peers.values_mut().for_each(|requested| requested.sent = 0);
            bed.run(serve_metadata);
            for (answers, peer) in answers.iter_mut().zip(peers) {
                let mut outbox = bed.get_mut::<Outbox>(peer);
                let bytes = outbox.waiting_bytes();
                *answers += usize::from(bytes > 0);
                outbox.take();
                outbox.record_sent(bytes, NOW);
            }
        }
        assert!(answers.iter().all(|answers| *answers >= 3), "{answers:?}");
    }

    /// A peer that requests and does not read costs nothing until its outbox has room.
    #[test]
    fn a_peer_that_does_not_read_has_no_turn() {
        let mut bed = Bed::new(MetadataPlugin);
        bed.world.init_resource::<Messages<OutboxDrained>>();
        bed.world
            .entity_mut(bed.torrent)
            .insert((torrent(), content(), allowed()));
        let peer = bed.peer();
        let handshake = ExtensionHandshake {
            extensions: [(METADATA.to_owned(), 3)].into(),
            ..ExtensionHandshake::default()
        };
        let is_known = true;
        bed.world
            .entity_mut(peer)
            .insert(PeerExtensions { handshake, is_known });
        bed.get_mut::<Outbox>(peer).unsent_bytes = SEND_AHEAD;
        assert!(bed.world.resource_mut::<MetadataServer>().add(peer, 0));
        bed.run(serve_metadata);
        let has_work = |bed: &Bed| bed.world.resource::<MetadataServer>().has_work();
        assert!(!has_work(&bed));
        bed.get_mut::<Outbox>(peer).record_sent(1, NOW);
        assert!(bed.get_mut::<Outbox>(peer).take_room() && !bed.get_mut::<Outbox>(peer).take_room());
        bed.world.write_message(OutboxDrained { peer });
        bed.run(serve_metadata);
        assert!(!has_work(&bed) && bed.get_mut::<Outbox>(peer).waiting_bytes() > SEND_AHEAD);
    }

    fn allowed() -> AllowedSources {
        AllowedSources(CandidateSources::default().serving(false))
    }
}
