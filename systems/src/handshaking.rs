//! Handshakes: determines the torrent of a connection, and whether the connection may stay.

use std::collections::BTreeMap;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::candidates::{AllowedSources, CandidateSource, Candidates};
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::connections::ConnectionCounts;
use ecs_torrent_components::messages::{PeerConnected, PeerDisconnected};
use ecs_torrent_components::peer::{CloseReason, Direction, FlushQueue, Outbox, Peer, PeerState, Stage, Wire};
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Layout, Lifecycle, PeerOf, Torrent, TorrentIndex};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::peer_id::PeerId;
use ecs_torrent_protocol::wire::{Handshake, Reserved, Session};

use crate::admission::{Admission, Twin};
use crate::conditions::has_messages;
use crate::streams::{ReadyPeers, StreamConnected, has_ready_peers};
use crate::{IntakeSet, ReapSet};

/// Exchanges handshakes.
pub struct HandshakingPlugin;

impl Plugin for HandshakingPlugin {
    fn build(&self, app: &mut App) {
        app.register_required_components::<Torrent, ConnectedIds>();
        app.add_message::<PeerConnected>()
            .init_resource::<FlushQueue>()
            .init_resource::<ReceivedHandshakes>()
            .init_resource::<AdmittedPeers>()
            .add_systems(
                Tick,
                (
                    (
                        send_handshakes.run_if(has_messages::<StreamConnected>),
                        (
                            read_handshakes,
                            admit_peers.run_if(|received: Res<ReceivedHandshakes>| !received.0.is_empty()),
                            open_conversations.run_if(|admitted: Res<AdmittedPeers>| !admitted.0.is_empty()),
                        )
                            .chain()
                            .run_if(has_ready_peers),
                    )
                        .chain()
                        .in_set(IntakeSet::Handshakes),
                    forget_ids.in_set(ReapSet::Release),
                ),
            );
    }
}

/// The peers of a torrent whose handshake was accepted, by peer id. An id is a claim, so several peers may share one.
#[derive(Component, Debug, Default)]
pub(crate) struct ConnectedIds(BTreeMap<PeerId, Vec<Entity>>);

impl ConnectedIds {
    /// Returns the peers with an id.
    pub(crate) fn of(&self, id: PeerId) -> impl Iterator<Item = Entity> + '_ {
        self.0.get(&id).into_iter().flatten().copied()
    }

    #[cfg(test)]
    pub(crate) fn with(id: PeerId, peers: &[Entity]) -> Self {
        Self([(id, peers.to_vec())].into())
    }
}

/// Handshakes received completely in this tick.
#[derive(Resource, Debug, Default)]
struct ReceivedHandshakes(Vec<(Entity, Handshake)>);

/// Peers that may stay.
#[derive(Resource, Debug, Default)]
struct AdmittedPeers(Vec<AdmittedPeer>);

#[derive(Debug)]
struct AdmittedPeer {
    entity: Entity,
    torrent: Entity,
    handshake: Handshake,
}

/// Sends our handshake on outbound connections that are established.
fn send_handshakes(
    mut connected: MessageReader<StreamConnected>,
    clock: Res<Clock>,
    mut counts: ResMut<ConnectionCounts>,
    settings: Res<Settings>,
    mut flush: ResMut<FlushQueue>,
    mut peers: Query<(&mut Peer, &mut Outbox, &PeerOf)>,
    torrents: Query<(&Torrent, Option<&AllowedSources>)>,
) {
    for &StreamConnected {
        peer: entity,
        transport,
    } in connected.read()
    {
        let Ok((mut peer, mut outbox, of)) = peers.get_mut(entity) else {
            continue;
        };
        let Ok((torrent, allowed)) = torrents.get(of.0) else {
            continue;
        };
        counts.advance(entity, Stage::Handshaking);
        peer.stage = Stage::Handshaking;
        peer.transport = Some(transport);
        peer.since = clock.now();
        let handshake = our_handshake(&settings, torrent, allowed, torrent.id());
        flush.send_handshake(entity, &mut outbox, &handshake);
    }
}

fn our_handshake(
    settings: &Settings,
    torrent: &Torrent,
    allowed: Option<&AllowedSources>,
    info_hash: InfoHash,
) -> Handshake {
    // The peer answers the bit with the port of its node. Peers of a private torrent must not learn of ours.
    let has_dht = settings.dht.enabled && allowed.is_some_and(|allowed| allowed.has(CandidateSource::DHT));
    Handshake {
        reserved: if has_dht {
            Reserved::ours().with_dht()
        } else {
            Reserved::ours()
        },
        info_hash,
        peer_id: torrent.peer_id,
    }
}

fn read_handshakes(
    ready: Res<ReadyPeers>,
    mut reaper: ResMut<Reaper>,
    mut received: ResMut<ReceivedHandshakes>,
    mut peers: Query<(&Peer, &mut Wire)>,
) {
    for entity in ready.0.iter() {
        let Ok((peer, mut wire)) = peers.get_mut(entity) else {
            continue;
        };
        if peer.stage != Stage::Handshaking || reaper.is_doomed(entity) {
            continue;
        }
        match wire.codec.handshake() {
            Ok(Some(handshake)) => received.0.push((entity, handshake)),
            Ok(None) => {}
            Err(error) => reaper.close(entity, error),
        }
    }
}

/// The components of a torrent that admission uses.
type TorrentData = (
    &'static Torrent,
    &'static Lifecycle,
    &'static mut ConnectedIds,
    &'static mut Candidates,
);

/// Parameters of the decision whether a peer may stay.
#[derive(SystemParam)]
struct AdmissionParams<'w, 's> {
    index: Res<'w, TorrentIndex>,
    admission: Admission<'w, 's>,
    connections: Query<'w, 's, (&'static Peer, Option<&'static PeerOf>)>,
    torrents: Query<'w, 's, TorrentData>,
}

/// Decides which peers may stay after their handshake. Runs before the admitted peers are changed: admission compares
/// all peers of a torrent as they are.
fn admit_peers(
    mut received: ResMut<ReceivedHandshakes>,
    mut admitted: ResMut<AdmittedPeers>,
    mut params: AdmissionParams,
    mut flush: ResMut<FlushQueue>,
    mut outboxes: Query<&mut Outbox>,
) {
    for (entity, handshake) in received.0.drain(..) {
        let reason = match params.admit(entity, &handshake) {
            Ok(torrent) => {
                params.admission.counts.advance(entity, Stage::Connected);
                params.admission.counts.join(entity, torrent);
                admitted.0.push(AdmittedPeer {
                    entity,
                    torrent,
                    handshake,
                });
                continue;
            }
            Err(reason) => reason,
        };
        let is_inbound = params
            .connections
            .get(entity)
            .is_ok_and(|(peer, _)| peer.direction == Direction::Inbound);
        if let (CloseReason::Myself, true, Ok(mut outbox)) = (&reason, is_inbound, outboxes.get_mut(entity)) {
            // The handshake is answered anyway, so that the dialing end recognizes itself and forgets the address.
            flush.send_handshake(entity, &mut outbox, &handshake);
        }
        params.admission.reaper.close(entity, reason);
    }
}

impl AdmissionParams<'_, '_> {
    /// Returns the torrent of a connection if the connection may stay.
    fn admit(&mut self, entity: Entity, handshake: &Handshake) -> Result<Entity, CloseReason> {
        // A connection that is no longer known was evicted in this tick.
        let Ok((peer, of)) = self.connections.get(entity) else {
            return Err(CloseReason::Evicted);
        };
        if self.admission.reaper.is_doomed(entity) {
            return Err(CloseReason::Evicted);
        }
        let dialed_for = of.map(|of| of.0);
        let named = self.index.get(handshake.info_hash);
        let torrent = match (dialed_for, named) {
            (Some(dialed), Some(named)) if dialed == named => named,
            (Some(_), _) => return Err(CloseReason::WrongTorrent),
            (None, named) => named.ok_or(CloseReason::UnknownTorrent)?,
        };
        let Ok((data, lifecycle, mut ids, mut candidates)) = self.torrents.get_mut(torrent) else {
            return Err(CloseReason::UnknownTorrent);
        };
        if !lifecycle.connects() {
            return Err(CloseReason::UnknownTorrent);
        }
        if handshake.peer_id == data.peer_id {
            // Fault 30: the tracker's list contains our own address too. Dialing ourselves again is useless.
            if let Some(address) = peer.listens_at {
                candidates.set_own(address);
            }
            return Err(CloseReason::Myself);
        }
        // Fault 30: a peer may be connected already.
        let mut replaced = Vec::new();
        for twin in ids.of(handshake.peer_id) {
            let Ok((other, _)) = self.connections.get(twin) else {
                continue;
            };
            if self.admission.reaper.is_doomed(twin) {
                continue;
            }
            match self
                .admission
                .resolve(peer, twin, other, handshake.peer_id, data.peer_id)
            {
                Twin::Both => {}
                Twin::Newcomer => replaced.push(twin),
                Twin::Other => return Err(CloseReason::Duplicate),
            }
        }
        for twin in replaced {
            self.admission.close(twin, CloseReason::Duplicate);
        }
        let (address, id) = (peer.endpoint.address(), handshake.peer_id);
        if dialed_for.is_none() && !self.admission.make_room_for_inbound(torrent, &candidates, address, id) {
            return Err(CloseReason::TooMany);
        }
        ids.0.entry(handshake.peer_id).or_default().push(entity);
        Ok(torrent)
    }
}

fn open_conversations(
    mut admitted: ResMut<AdmittedPeers>,
    mut commands: Commands,
    clock: Res<Clock>,
    settings: Res<Settings>,
    mut flush: ResMut<FlushQueue>,
    mut peers: Query<(&mut Peer, &mut Wire, &mut Outbox)>,
    mut torrents: Query<(&Torrent, &mut Candidates, Option<&Layout>, Option<&AllowedSources>)>,
    mut connected: MessageWriter<PeerConnected>,
) {
    let now = clock.now();
    for AdmittedPeer {
        entity,
        torrent,
        handshake,
    } in admitted.0.drain(..)
    {
        let (Ok((mut peer, mut wire, mut outbox)), Ok((data, mut candidates, layout, allowed))) =
            (peers.get_mut(entity), torrents.get_mut(torrent))
        else {
            continue;
        };
        if peer.direction == Direction::Inbound {
            let handshake = our_handshake(&settings, data, allowed, handshake.info_hash);
            flush.send_handshake(entity, &mut outbox, &handshake);
        }
        if let Some(address) = peer.listens_at {
            candidates.forgive(address);
        }
        peer.stage = Stage::Connected;
        peer.since = now;
        peer.peer_id = Some(handshake.peer_id);
        peer.client = handshake.peer_id.client().into();
        wire.last_message = now;
        outbox.last_sent = now;
        wire.session = Session {
            geometry: layout.map(|layout| layout.0.clone()),
            fast: handshake.reserved.has_fast(),
            extended: handshake.reserved.has_extension_protocol(),
            dht: handshake.reserved.has_dht(),
        };
        // `PeerState` requires the components of the features.
        commands.entity(entity).insert((PeerOf(torrent), PeerState::new(now)));
        tracing::debug!(torrent = %data.label(), peer = %peer.endpoint, client = %peer.client, "connected");
        connected.write(PeerConnected { torrent, peer: entity });
    }
}

/// Forgets the ids of disconnected peers, so that a peer may come back under its id.
fn forget_ids(mut gone: MessageReader<PeerDisconnected>, peers: Query<&Peer>, mut torrents: Query<&mut ConnectedIds>) {
    for PeerDisconnected { torrent, peer, .. } in gone.read() {
        let Some(id) = peers.get(*peer).ok().and_then(|peer| peer.peer_id) else {
            continue;
        };
        let Some(mut ids) = torrent.and_then(|torrent| torrents.get_mut(torrent).ok()) else {
            continue;
        };
        if let Some(twins) = ids.0.get_mut(&id) {
            twins.retain(|twin| twin != peer);
            if twins.is_empty() {
                ids.0.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bed, torrent};

    const ID: PeerId = PeerId([9; 20]);

    fn bed() -> Bed {
        let mut bed = Bed::new(HandshakingPlugin);
        bed.world.init_resource::<ReadyPeers>();
        bed.world.init_resource::<TorrentIndex>();
        bed.world.init_resource::<ConnectionCounts>();
        let names = torrent();
        bed.world
            .resource_mut::<TorrentIndex>()
            .insert(&names.hashes, bed.torrent);
        bed.world.entity_mut(bed.torrent).insert((names, Candidates::default()));
        bed
    }

    /// Lets a connection send its handshake for a torrent. Returns the reason of its refusal, if any.
    fn shake_hands(bed: &mut Bed, peer: Entity, info_hash: InfoHash) -> Option<CloseReason> {
        let handshake = Handshake {
            reserved: Reserved::ours(),
            info_hash,
            peer_id: ID,
        };
        bed.world.resource_mut::<ReceivedHandshakes>().0.push((peer, handshake));
        bed.run(admit_peers);
        bed.run(open_conversations);
        let mut closed = bed.world.resource_mut::<Reaper>().take();
        closed.pop().map(|(_, reason)| reason)
    }

    fn hash(bed: &Bed, torrent: Entity) -> InfoHash {
        bed.get::<Torrent>(torrent).id()
    }

    /// A peer that was dialed for one torrent answers for that one.
    #[test]
    fn a_dialed_peer_has_to_answer_for_its_torrent() {
        let mut bed = bed();
        let mut other = torrent();
        other.hashes = ecs_torrent_protocol::hash::InfoHashes::of(b"other", true, false);
        let hashes = other.hashes;
        let parts = (other, Candidates::default(), Lifecycle::Downloading);
        let other = bed.world.spawn(parts).id();
        bed.world.resource_mut::<TorrentIndex>().insert(&hashes, other);
        let [right, wrong] = [bed.peer(), bed.peer()];
        let (requested, named) = (hash(&bed, bed.torrent), hash(&bed, other));
        assert_eq!(shake_hands(&mut bed, right, requested), None);
        assert_eq!(shake_hands(&mut bed, wrong, named), Some(CloseReason::WrongTorrent));
    }

    #[test]
    fn a_peer_may_come_back_under_its_id() {
        let mut bed = bed();
        let requested = hash(&bed, bed.torrent);
        let [first, second] = [bed.peer(), bed.peer()];
        for peer in [first, second] {
            assert_eq!(shake_hands(&mut bed, peer, requested), None);
        }
        assert_eq!(bed.get::<ConnectedIds>(bed.torrent).0[&ID], [first, second]);
        for (peer, left) in [(first, Some(vec![second])), (second, None)] {
            let gone = PeerDisconnected {
                torrent: Some(bed.torrent),
                peer,
                reason: CloseReason::Evicted,
            };
            bed.run_after(gone, forget_ids);
            assert_eq!(bed.get::<ConnectedIds>(bed.torrent).0.get(&ID), left.as_ref());
        }
    }
}
