//! The fetch of a torrent's info dictionary.

use std::time::Duration;

use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use bevy_ecs::system::SystemParam;
use bytes::Bytes;
use ecs_torrent_components::candidates::AllowedSources;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{CommandQueue, Reply, SupplyMetadata};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::messages::{
    ExtensionHandshakeReceived, ExtensionReceived, LifecycleChanged, PeerDisconnected,
};
use ecs_torrent_components::peer::{FlushQueue, Outbox, PeerExtensions, Wire};
use ecs_torrent_components::settings::{MetadataSettings, Settings};
use ecs_torrent_components::torrent::{Content, Lifecycle, PeerOf, Torrent, TorrentPeers};
use ecs_torrent_components::work_list::{Listed, WorkList};
use ecs_torrent_protocol::metadata::{Fetch, FetchLimits, METADATA, MetadataMessage, Outcome};
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::{Message, WireError};

use super::serving::{MetadataServer, has_piece};
use crate::blame::{Blame, Culprit};

/// The fetch of a torrent's metadata. It is on a torrent that is [`Lifecycle::FetchingMetadata`].
#[derive(Component, Debug)]
#[component(storage = "SparseSet")]
pub struct MetadataFetch {
    fetch: Fetch<Culprit>,
    listed: Listed,
    /// The time that is set in [`Deadlines`].
    timer: Option<Timestamp>,
}

/// A torrent whose requests for metadata may have timed out.
#[derive(Debug)]
pub(crate) struct FetchTimer(Entity);

impl MetadataFetch {
    /// Returns the pieces of the metadata that are there, and all of them. `None` before a peer has offered metadata.
    #[must_use]
    pub fn progress(&self) -> Option<(u32, u32)> {
        self.fetch.progress()
    }

    /// Lists the torrent: its fetch may have requests to send.
    fn list(&mut self, torrent: Entity, queue: &mut WorkList<Self>) {
        queue.add(torrent, &mut self.listed);
    }
}

fn limits(settings: &MetadataSettings) -> FetchLimits {
    FetchLimits {
        max_bytes: settings.max_bytes,
        max_requests: settings.max_requests,
        timeout: Duration::from_millis(settings.request_timeout_ms),
        rest: Duration::from_secs(settings.rest_s),
    }
}

/// Returns the size that a peer offers.
fn offered(extensions: &PeerExtensions) -> Option<u32> {
    extensions.id_of(METADATA)?;
    extensions.handshake.metadata_size
}

/// Begins and ends fetches with the state of their torrents.
pub(super) fn begin_fetches(
    mut changed: MessageReader<LifecycleChanged>,
    settings: Res<Settings>,
    mut queue: ResMut<WorkList<MetadataFetch>>,
    mut commands: Commands,
    blame: Blame,
    torrents: Query<(&Torrent, &Lifecycle, Option<&TorrentPeers>, Has<MetadataFetch>)>,
    peers: Query<&PeerExtensions>,
) {
    for LifecycleChanged { torrent: entity, .. } in changed.read() {
        let Ok((torrent, lifecycle, connected, is_begun)) = torrents.get(*entity) else {
            continue;
        };
        let is_wanted = *lifecycle == Lifecycle::FetchingMetadata;
        if is_wanted && !is_begun {
            let mut begun = MetadataFetch {
                fetch: Fetch::new(torrent.id(), limits(&settings.metadata)),
                listed: Listed::default(),
                timer: None,
            };
            for peer in connected.into_iter().flat_map(RelationshipTarget::iter) {
                let size = peers.get(peer).ok().and_then(offered);
                if let (Some(size), Some(source)) = (size, blame.identify(peer)) {
                    begun.fetch.add_source(source, size);
                }
            }
            begun.list(*entity, &mut queue);
            commands.entity(*entity).insert(begun);
        } else if !is_wanted && is_begun {
            commands.entity(*entity).remove::<MetadataFetch>();
        }
    }
}

/// Records which peers offer metadata.
pub(super) fn find_sources(
    mut received: MessageReader<ExtensionHandshakeReceived>,
    mut queue: ResMut<WorkList<MetadataFetch>>,
    blame: Blame,
    peers: Query<(&PeerOf, &PeerExtensions)>,
    mut fetches: Query<&mut MetadataFetch>,
) {
    for ExtensionHandshakeReceived { peer, .. } in received.read() {
        let Ok((of, extensions)) = peers.get(*peer) else {
            continue;
        };
        let (Ok(mut fetch), Some(source)) = (fetches.get_mut(of.0), blame.identify(*peer)) else {
            continue;
        };
        match offered(extensions) {
            Some(size) => drop(fetch.fetch.add_source(source, size)),
            None => fetch.fetch.remove_source(source),
        }
        fetch.list(of.0, &mut queue);
    }
}

/// Parameters of the messages about metadata.
#[derive(SystemParam)]
pub(super) struct Receiver<'w, 's> {
    clock: Res<'w, Clock>,
    queue: ResMut<'w, WorkList<MetadataFetch>>,
    supplied: ResMut<'w, CommandQueue<SupplyMetadata>>,
    wakeup: Res<'w, Wakeup>,
    fetches: Query<'w, 's, (&'static Torrent, &'static mut MetadataFetch)>,
    blame: Blame<'w, 's>,
}

/// Handles the messages of the extension.
pub(super) fn receive_metadata(
    mut received: MessageReader<ExtensionReceived>,
    mut server: ResMut<MetadataServer>,
    mut receiver: Receiver,
    torrents: Query<(&AllowedSources, Option<&Content>)>,
    mut peers: Query<(&PeerOf, &mut Wire)>,
) {
    for ExtensionReceived { peer, payload, .. } in received.read().filter(|message| message.extension == METADATA) {
        let Ok((of, mut wire)) = peers.get_mut(*peer) else {
            continue;
        };
        let is_expected = match MetadataMessage::read(payload) {
            Ok(Some(MetadataMessage::Request { piece })) => {
                let served = torrents.get(of.0);
                let is_served = served.is_ok_and(|(allowed, content)| has_piece(allowed, content, piece));
                server.add(*peer, piece) && is_served
            }
            Ok(Some(MetadataMessage::Data {
                piece,
                total_size,
                data,
            })) => receiver.receive(*peer, of.0, piece, total_size, data),
            Ok(Some(MetadataMessage::Reject { piece })) => receiver.reject(*peer, of.0, piece),
            Ok(None) | Err(_) => false,
        };
        // Messages that a well-behaved peer does not send are bounded, like others of that kind.
        if !is_expected && !wire.changes.take(receiver.clock.now()) {
            receiver.blame.close(*peer, WireError::TooManyChanges);
        }
    }
}

impl Receiver<'_, '_> {
    /// Records a refusal. Returns whether the piece was requested.
    fn reject(&mut self, peer: Entity, of: Entity, piece: u32) -> bool {
        let (Ok((_, mut fetch)), Some(source)) = (self.fetches.get_mut(of), self.blame.identify(peer)) else {
            return false;
        };
        fetch.list(of, &mut self.queue);
        fetch.fetch.reject(source, piece, self.clock.now())
    }

    /// Takes a piece. Returns whether it was requested.
    fn receive(&mut self, peer: Entity, of: Entity, piece: u32, total_size: u32, data: Bytes) -> bool {
        let (Ok((torrent, mut fetch)), Some(source)) = (self.fetches.get_mut(of), self.blame.identify(peer)) else {
            return false;
        };
        // The payload is a slice of a larger buffer, which would stay in memory until the fetch ends.
        let data = Bytes::copy_from_slice(&data);
        let outcome = fetch.fetch.receive(source, piece, total_size, data, self.clock.now());
        fetch.list(of, &mut self.queue);
        match outcome {
            Outcome::Unsolicited => return false,
            Outcome::Kept => {}
            Outcome::Contradiction => self.blame.close(peer, WireError::BadMetadata),
            Outcome::Failed {
                senders_of_bad_metadata,
            } => self.ban(of, &senders_of_bad_metadata),
            Outcome::Complete {
                info,
                senders_of_bad_metadata,
            } => {
                self.supplied.0.push_back(SupplyMetadata {
                    torrent: torrent.id(),
                    info,
                    reply: Reply::ignored(),
                });
                self.wakeup.at(self.clock.now());
                self.ban(of, &senders_of_bad_metadata);
            }
        }
        true
    }

    fn ban(&mut self, torrent: Entity, senders_of_bad_metadata: &[Culprit]) {
        for sender in senders_of_bad_metadata {
            self.blame.ban(sender, torrent, format_args!("corrupt metadata"));
        }
    }
}

/// Requests the missing pieces of the metadata.
pub(super) fn request_metadata(
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    mut queue: ResMut<WorkList<MetadataFetch>>,
    mut timers: ResMut<Deadlines<FetchTimer>>,
    mut flush: ResMut<FlushQueue>,
    mut fetches: Query<&mut MetadataFetch>,
    mut peers: Query<(&PeerExtensions, &mut Outbox)>,
) {
    let now = clock.now();
    while let Some(FetchTimer(torrent)) = timers.pop_due(now) {
        if let Ok(mut fetch) = fetches.get_mut(torrent)
            && fetch.timer.is_some_and(|timer| timer <= now)
        {
            fetch.timer = None;
            fetch.list(torrent, &mut queue);
        }
    }
    while let Some(torrent) = queue.pop() {
        let Ok(mut fetch) = fetches.get_mut(torrent) else {
            continue;
        };
        fetch.listed.clear();
        for (source, piece) in fetch.fetch.requests(now) {
            let Ok((extensions, mut outbox)) = peers.get_mut(source.entity) else {
                continue;
            };
            if let Some(id) = extensions.id_of(METADATA) {
                let payload = MetadataMessage::Request { piece }.write();
                flush.send(source.entity, &mut outbox, &Message::Extended { id, payload });
            }
        }
        if let Some(next) = fetch.fetch.next_deadline(now)
            && fetch.timer.is_none_or(|timer| next < timer)
        {
            fetch.timer = Some(next);
            timers.set(next, FetchTimer(torrent));
        }
    }
    wakeup.at_next(timers.next());
}

/// Requests from other peers the pieces that were requested from disconnected peers.
pub(super) fn release_sources(
    mut disconnected: MessageReader<PeerDisconnected>,
    wakeup: Res<Wakeup>,
    clock: Res<Clock>,
    mut queue: ResMut<WorkList<MetadataFetch>>,
    blame: Blame,
    mut fetches: Query<&mut MetadataFetch>,
) {
    for PeerDisconnected { torrent, peer, .. } in disconnected.read() {
        let Some(torrent) = torrent else {
            continue;
        };
        if let (Ok(mut fetch), Some(source)) = (fetches.get_mut(*torrent), blame.identify(*peer))
            && fetch.fetch.has_source(source)
        {
            fetch.fetch.remove_source(source);
            fetch.list(*torrent, &mut queue);
            wakeup.at(clock.now());
        }
    }
}

#[cfg(test)]
mod tests {
    use ecs_torrent_components::bans::Bans;
    use ecs_torrent_components::candidates::CandidateSources;

    use super::super::MetadataPlugin;
    use super::*;
    use crate::testing::{Bed, content, torrent};

    /// Requests for pieces that a torrent does not serve are bounded like other useless messages; others are not.
    #[test]
    fn requests_for_missing_pieces_use_up_the_allowance() {
        for (has_metadata, piece, is_bounded) in [(true, 0, false), (true, 1, true), (false, 0, true)] {
            let mut bed = Bed::new(MetadataPlugin);
            bed.world.init_resource::<Bans>();
            bed.world.init_resource::<Messages<ExtensionReceived>>();
            bed.world.init_resource::<CommandQueue<SupplyMetadata>>();
            let allowed = AllowedSources(CandidateSources::default().serving(false));
            bed.world.entity_mut(bed.torrent).insert((torrent(), allowed));
            if has_metadata {
                bed.world.entity_mut(bed.torrent).insert(content());
            }
            let peer = bed.peer();
            let payload = MetadataMessage::Request { piece }.write();
            for _ in 0..600 {
                bed.world.write_message(ExtensionReceived {
                    peer,
                    extension: METADATA,
                    payload: payload.clone(),
                });
            }
            bed.run(receive_metadata);
            let now = bed.world.resource::<Clock>().now();
            assert_eq!(
                !bed.get_mut::<Wire>(peer).changes.take(now),
                is_bounded,
                "piece {piece}"
            );
        }
    }
}
