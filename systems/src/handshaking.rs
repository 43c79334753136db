//! Handshakes: which torrent a connection is for, and whether it may stay.

use std::collections::BTreeMap;

use bevy_app::{App, Plugin};
use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use ecs_torrent_components::bans::Bans;
use ecs_torrent_components::candidates::Candidates;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::connections::ConnectionCounts;
use ecs_torrent_components::messages::{PeerConnected, PeerDisconnected};
use ecs_torrent_components::peer::{
    CloseReason, Direction, FlushQueue, Outbox, Peer, PeerExtensions, PeerPieces, PeerRates, PeerState, Requests,
    Stage, UploadQueue, Wire,
};
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Layout, Lifecycle, PeerOf, Torrent, TorrentIndex, TorrentPeers};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::peer_id::PeerId;
use ecs_torrent_protocol::wire::{Handshake, Reserved, Session};

use crate::links::{LinkConnected, ReadyPeers};
use crate::{IntakeSet, ReapSet};

/// Exchanges handshakes.
pub struct HandshakingPlugin;

impl Plugin for HandshakingPlugin {
    fn build(&self, app: &mut App) {
        app.add_message::<PeerConnected>()
            .init_resource::<FlushQueue>()
            .init_resource::<TorrentIndex>()
            .add_systems(
                Tick,
                (
                    (send_handshakes, read_handshakes).chain().in_set(IntakeSet::Handshakes),
                    forget_ids.in_set(ReapSet::Release),
                ),
            );
    }
}

/// The peers of a torrent whose handshake was accepted, by the id they gave, and who opened the connection.
#[derive(Component, Debug, Default)]
pub struct ConnectedIds(BTreeMap<PeerId, (Entity, Direction)>);

/// Opens the conversation on connections that we made.
fn send_handshakes(
    mut connected: MessageReader<LinkConnected>,
    clock: Res<Clock>,
    mut counts: ResMut<ConnectionCounts>,
    mut flush: ResMut<FlushQueue>,
    mut peers: Query<(&mut Peer, &mut Outbox, &PeerOf)>,
    torrents: Query<&Torrent>,
) {
    for &LinkConnected { peer: entity } in connected.read() {
        let Ok((mut peer, mut outbox, of)) = peers.get_mut(entity) else {
            continue;
        };
        let Ok(torrent) = torrents.get(of.0) else { continue };
        counts.advance(&peer, Stage::Handshaking);
        peer.stage = Stage::Handshaking;
        peer.since = clock.now();
        flush.send_handshake(entity, &mut outbox, &our_handshake(torrent, torrent.id()));
    }
}

fn our_handshake(torrent: &Torrent, info_hash: InfoHash) -> Handshake {
    Handshake {
        reserved: Reserved::ours(),
        info_hash,
        peer_id: torrent.peer_id,
    }
}

/// What a handshake is judged by.
#[derive(bevy_ecs::system::SystemParam)]
struct Judge<'w, 's> {
    index: Res<'w, TorrentIndex>,
    bans: Res<'w, Bans>,
    clock: Res<'w, Clock>,
    settings: Res<'w, Settings>,
    reaper: ResMut<'w, Reaper>,
    /// How many each torrent has let in in this tick: its peers are only behind it.
    admitted: Local<'s, EntityHashMap<usize>>,
    torrents: Query<
        'w,
        's,
        (
            &'static Torrent,
            &'static Lifecycle,
            &'static mut ConnectedIds,
            &'static mut Candidates,
            Option<&'static TorrentPeers>,
            Option<&'static Layout>,
        ),
    >,
}

fn read_handshakes(
    ready: Res<ReadyPeers>,
    mut commands: Commands,
    mut judge: Judge,
    mut counts: ResMut<ConnectionCounts>,
    mut flush: ResMut<FlushQueue>,
    mut peers: Query<(&mut Peer, &mut Wire, &mut Outbox, Option<&PeerOf>)>,
    mut connected: MessageWriter<PeerConnected>,
) {
    let now = judge.clock.now();
    judge.admitted.clear();
    for &entity in &ready.0 {
        let Ok((mut peer, mut wire, mut outbox, of)) = peers.get_mut(entity) else {
            continue;
        };
        if peer.stage != Stage::Handshaking || judge.reaper.is_doomed(entity) {
            continue;
        }
        let handshake = match wire.codec.handshake() {
            Ok(Some(handshake)) => handshake,
            Ok(None) => continue,
            Err(error) => {
                judge.reaper.close(entity, error);
                continue;
            }
        };
        let torrent = match judge.admit(entity, &peer, &handshake, of.map(|of| of.0)) {
            Ok(torrent) => torrent,
            Err(reason) => {
                if reason == CloseReason::Myself && peer.direction == Direction::Inbound {
                    // Answered all the same: so the end that dialed sees whom it has reached, and forgets the address.
                    flush.send_handshake(entity, &mut outbox, &handshake);
                }
                judge.reaper.close(entity, reason);
                continue;
            }
        };
        let Ok((data, _, _, mut candidates, _, layout)) = judge.torrents.get_mut(torrent) else {
            continue;
        };
        if peer.direction == Direction::Inbound {
            flush.send_handshake(entity, &mut outbox, &our_handshake(data, handshake.info_hash));
        }
        if let Some(address) = peer.listens_at {
            candidates.forgive(address);
        }
        counts.advance(&peer, Stage::Connected);
        peer.stage = Stage::Connected;
        peer.since = now;
        peer.peer_id = Some(handshake.peer_id);
        peer.client = handshake.peer_id.client().into();
        wire.last_message = now;
        outbox.last_sent = now;
        wire.session = Session {
            geometry: layout.map(|layout| layout.0),
            fast: handshake.reserved.has_fast(),
            extended: handshake.reserved.has_extension_protocol(),
        };
        let piece_count = layout.map_or(0, |layout| layout.0.piece_count());
        commands.entity(entity).insert((
            PeerOf(torrent),
            PeerState::new(now),
            PeerPieces::none(piece_count),
            Requests::default(),
            UploadQueue::default(),
            PeerRates::default(),
            PeerExtensions::default(),
        ));
        tracing::debug!(peer = %peer.endpoint, client = %peer.client, "connected");
        connected.write(PeerConnected { torrent, peer: entity });
    }
}

impl Judge<'_, '_> {
    /// The torrent that a connection is for, if it may stay.
    fn admit(
        &mut self,
        entity: Entity,
        peer: &Peer,
        handshake: &Handshake,
        dialed_for: Option<Entity>,
    ) -> Result<Entity, CloseReason> {
        let named = self.index.get(handshake.info_hash);
        let torrent = match (dialed_for, named) {
            (Some(dialed), Some(named)) if dialed == named => named,
            (Some(_), _) => return Err(CloseReason::WrongTorrent),
            (None, named) => named.ok_or(CloseReason::UnknownTorrent)?,
        };
        let Ok((data, lifecycle, mut ids, mut candidates, peers, _)) = self.torrents.get_mut(torrent) else {
            return Err(CloseReason::UnknownTorrent);
        };
        if !lifecycle.is_running() {
            return Err(CloseReason::UnknownTorrent);
        }
        if handshake.peer_id == data.peer_id {
            // Fault 30: we are in the tracker's list too; nobody is helped by dialing ourselves again.
            if let Some(address) = peer.listens_at {
                candidates.remove(address);
            }
            return Err(CloseReason::Myself);
        }
        if self.bans.has_id(self.clock.now(), handshake.peer_id) {
            return Err(CloseReason::Banned);
        }
        let admitted = self.admitted.get(&torrent).copied().unwrap_or(0);
        let peer_count = peers.map_or(0, RelationshipTarget::len) + admitted;
        if dialed_for.is_none() && peer_count >= self.settings.peers.max_per_torrent {
            return Err(CloseReason::TooMany);
        }
        match ids.0.get(&handshake.peer_id) {
            // Fault 30: both sides may have connected at once. Both keep the connection that the side with the
            // higher id opened, or each would close another one.
            Some(&(other, direction)) if !self.reaper.is_doomed(other) => {
                let keeps_new = match peer.direction {
                    Direction::Inbound => handshake.peer_id > data.peer_id,
                    Direction::Outbound => data.peer_id > handshake.peer_id,
                };
                let is_crossing = direction != peer.direction;
                if !(is_crossing && keeps_new) {
                    return Err(CloseReason::Duplicate);
                }
                self.reaper.close(other, CloseReason::Duplicate);
            }
            _ => {}
        }
        ids.0.insert(handshake.peer_id, (entity, peer.direction));
        if dialed_for.is_none() {
            *self.admitted.entry(torrent).or_default() += 1;
        }
        Ok(torrent)
    }
}

/// A peer that has gone may come back under its id.
fn forget_ids(mut gone: MessageReader<PeerDisconnected>, peers: Query<&Peer>, mut torrents: Query<&mut ConnectedIds>) {
    for PeerDisconnected { torrent, peer, .. } in gone.read() {
        let Some(id) = peers.get(*peer).ok().and_then(|peer| peer.peer_id) else {
            continue;
        };
        let Some(mut ids) = torrent.and_then(|torrent| torrents.get_mut(torrent).ok()) else {
            continue;
        };
        if ids.0.get(&id).is_some_and(|(entity, _)| entity == peer) {
            ids.0.remove(&id);
        }
    }
}
