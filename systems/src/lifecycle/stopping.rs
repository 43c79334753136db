//! The stop: phases that progress across ticks, one at a time, each with its deadline.
//!
//! On the wire, in this order: no more requests; cancel, not-interested and choke to every peer, then the close;
//! only then `stopped` to the trackers; only then the torrent is gone and whoever asked is answered.

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{CommandQueue, Reply, StopAll, StopError, StopTorrent};
use ecs_torrent_components::messages::{RequestStop, TorrentStopped};
use ecs_torrent_components::peer::{CloseReason, FlushQueue, Outbox, Peer, Requests, Stage};
use ecs_torrent_components::piece::PiecePhase;
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::{LifecycleSettings, Settings, millis};
use ecs_torrent_components::torrent::{
    ActivePieces, Lifecycle, StopPhase, Stopping, Storage, Torrent, TorrentIndex, TorrentPeers,
};
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::disk::DiskRequest;
use ecs_torrent_engine::ports::{DiskPort, NetPort};
use ecs_torrent_protocol::wire::Message;

use super::failing::Flight;
use crate::checking::Check;
use crate::picking::Picker;

const CLOSING: Purpose = Purpose("close links");

/// Torrents that are stopping, in the order in which they began to.
#[derive(Resource, Debug, Default)]
pub(super) struct StopsInOrder {
    torrents: Vec<Entity>,
    all: Vec<Reply<Result<(), StopError>>>,
}

/// On a stopping torrent: who is answered when it is gone.
#[derive(Component, Debug, Default)]
pub(super) struct StopWaiters(Vec<Reply<Result<(), StopError>>>);

/// Connections of stopping torrents whose orderly close has not ended, by torrent.
#[derive(Resource, Debug, Default)]
pub(crate) struct ClosingLinks(EntityHashMap<usize>);

impl ClosingLinks {
    /// Counts a close whose end is waited for, and names it.
    pub(crate) fn expect(&mut self, torrent: Option<Entity>, reason: &CloseReason) -> Option<JobTag> {
        let owner = torrent.filter(|_| *reason == CloseReason::Stopping)?;
        *self.0.entry(owner).or_default() += 1;
        Some(JobTag {
            purpose: CLOSING,
            owner,
            number: 0,
        })
    }
}

/// Torrents whose trackers have to hear `stopped`, and those whose trackers have.
#[derive(Resource, Debug, Default)]
pub(crate) struct AnnounceStops {
    /// Written by the stop, taken by the announces.
    pub(crate) wanted: Vec<Entity>,
    /// Written by the announces: how many trackers have not answered.
    pub(crate) pending: EntityHashMap<usize>,
}

pub(super) fn hear_stops(
    mut commands: Commands,
    mut singles: ResMut<CommandQueue<StopTorrent>>,
    mut alls: ResMut<CommandQueue<StopAll>>,
    mut requested: MessageReader<RequestStop>,
    index: Res<TorrentIndex>,
    clock: Res<Clock>,
    settings: Res<Settings>,
    mut stops: ResMut<StopsInOrder>,
    mut torrents: Query<(Entity, &mut Lifecycle, Option<&mut StopWaiters>)>,
) {
    let mut wanted: Vec<(Entity, Option<Reply<Result<(), StopError>>>)> = Vec::new();
    for StopTorrent { torrent, reply } in singles.0.drain(..) {
        match index.get(torrent) {
            Some(entity) => wanted.push((entity, Some(reply))),
            None => reply.send(Ok(())),
        }
    }
    wanted.extend(requested.read().map(|request| (request.torrent, None)));
    for StopAll { reply } in alls.0.drain(..) {
        wanted.extend(torrents.iter().map(|(entity, ..)| (entity, None)));
        stops.all.push(reply);
    }
    let mut new_waiters: EntityHashMap<StopWaiters> = EntityHashMap::default();
    for (entity, reply) in wanted {
        let Ok((_, mut lifecycle, waiters)) = torrents.get_mut(entity) else {
            reply.into_iter().for_each(|reply| reply.send(Ok(())));
            continue;
        };
        if *lifecycle != Lifecycle::Stopping {
            *lifecycle = Lifecycle::Stopping;
            stops.torrents.push(entity);
            let phase = StopPhase::HaltDownloads;
            let deadline = clock.now() + limit(phase, &settings.lifecycle);
            commands
                .entity(entity)
                .insert(Stopping { phase, deadline })
                .remove::<(Picker, Check)>();
        }
        // A second stop joins the first.
        match waiters {
            Some(mut waiters) => waiters.0.extend(reply),
            None => new_waiters.entry(entity).or_default().0.extend(reply),
        }
    }
    for (entity, waiters) in new_waiters.drain() {
        commands.entity(entity).insert(waiters);
    }
}

/// Time for a phase.
fn limit(phase: StopPhase, settings: &LifecycleSettings) -> std::time::Duration {
    millis(match phase {
        StopPhase::HaltDownloads => settings.halt_timeout_ms,
        StopPhase::DisconnectPeers => settings.disconnect_timeout_ms,
        StopPhase::AnnounceStopped => settings.announce_timeout_ms,
        StopPhase::Despawn => 0,
    })
}

/// Everything that a phase needs to begin and to end.
#[derive(bevy_ecs::system::SystemParam)]
pub(super) struct Stops<'w, 's> {
    commands: Commands<'w, 's>,
    net: ResMut<'w, NetPort>,
    disk: ResMut<'w, DiskPort>,
    index: ResMut<'w, TorrentIndex>,
    closing: ResMut<'w, ClosingLinks>,
    announces: ResMut<'w, AnnounceStops>,
    reaper: ResMut<'w, Reaper>,
    flush: ResMut<'w, FlushQueue>,
    stopped: MessageWriter<'w, TorrentStopped>,
    flight: Flight<'w, 's>,
    peers: Query<'w, 's, (&'static Peer, Option<&'static mut Requests>, &'static mut Outbox)>,
}

pub(super) fn advance_stops(
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    settings: Res<Settings>,
    mut stops: ResMut<StopsInOrder>,
    mut stage: Stops,
    mut torrents: Query<(
        &Torrent,
        &Storage,
        &mut Stopping,
        Option<&mut ActivePieces>,
        Option<&TorrentPeers>,
        Option<&mut StopWaiters>,
    )>,
) {
    stage.count_closed();
    let now = clock.now();
    let stops = &mut *stops;
    stops.torrents.retain(|&entity| {
        // A torrent whose stop was heard in this tick gets its component at the end of it.
        let Ok((torrent, storage, mut stopping, mut active, peers, waiters)) = torrents.get_mut(entity) else {
            wakeup.at(now);
            return true;
        };
        loop {
            let is_done = match stopping.phase {
                StopPhase::HaltDownloads => active.as_mut().is_none_or(|active| stage.halt(active)),
                StopPhase::DisconnectPeers => peers.is_none() && !stage.closing.0.contains_key(&entity),
                StopPhase::AnnounceStopped => !stage.announces.pending.contains_key(&entity),
                StopPhase::Despawn => true,
            };
            if !is_done && now < stopping.deadline {
                wakeup.at(stopping.deadline);
                return true;
            }
            if !is_done {
                tracing::warn!(torrent = %torrent.name, phase = ?stopping.phase, "stopping: went on after its time");
            }
            let Some(next) = following(stopping.phase) else {
                stage.despawn(entity, torrent, storage);
                waiters
                    .into_iter()
                    .flat_map(|mut waiters| std::mem::take(&mut waiters.0))
                    .for_each(|r| r.send(Ok(())));
                return false;
            };
            tracing::debug!(torrent = %torrent.name, phase = ?next, "stopping");
            stopping.phase = next;
            stopping.deadline = now + limit(next, &settings.lifecycle);
            stage.begin(next, entity, active.as_deref_mut(), peers);
            if next != StopPhase::Despawn {
                // What was just begun leaves with this tick; the next one sees whether that was all.
                wakeup.at(now);
                return true;
            }
        }
    });
    if stops.torrents.is_empty() {
        stops.all.drain(..).for_each(|reply| reply.send(Ok(())));
    }
}

fn following(phase: StopPhase) -> Option<StopPhase> {
    match phase {
        StopPhase::HaltDownloads => Some(StopPhase::DisconnectPeers),
        StopPhase::DisconnectPeers => Some(StopPhase::AnnounceStopped),
        StopPhase::AnnounceStopped => Some(StopPhase::Despawn),
        StopPhase::Despawn => None,
    }
}

impl Stops<'_, '_> {
    fn count_closed(&mut self) {
        for event in self.net.take(CLOSING) {
            let ecs_torrent_engine::ports::net::NetEvent::Gone { tag } = event else {
                continue;
            };
            if let Some(count) = self.closing.0.get_mut(&tag.owner) {
                *count -= 1;
                if *count == 0 {
                    self.closing.0.remove(&tag.owner);
                }
            }
        }
    }

    /// Pieces that are hashed or written finish; the others are given up. True when none is left.
    fn halt(&mut self, active: &mut ActivePieces) -> bool {
        self.flight
            .ground(active, |piece| piece.phase == PiecePhase::Filling && !piece.is_full())
    }

    fn begin(
        &mut self,
        phase: StopPhase,
        torrent: Entity,
        active: Option<&mut ActivePieces>,
        peers: Option<&TorrentPeers>,
    ) {
        match phase {
            StopPhase::DisconnectPeers => {
                if let Some(active) = active {
                    self.flight.ground(active, |_| true);
                }
                peers
                    .into_iter()
                    .flat_map(RelationshipTarget::iter)
                    .for_each(|peer| self.part_from(peer));
            }
            StopPhase::AnnounceStopped => {
                self.closing.0.remove(&torrent);
                self.announces.wanted.push(torrent);
                // Taken over by the announces in this tick; one until they have counted.
                self.announces.pending.insert(torrent, 1);
            }
            StopPhase::HaltDownloads | StopPhase::Despawn => {}
        }
    }

    /// Cancel for each outstanding request, not-interested, choke; the close follows when these have left.
    fn part_from(&mut self, entity: Entity) {
        let Ok((peer, requests, mut outbox)) = self.peers.get_mut(entity) else {
            return;
        };
        if let (Stage::Connected, Some(mut requests)) = (peer.stage, requests) {
            let mut send = |message| self.flush.send(entity, &mut outbox, &message);
            requests
                .cancel_all()
                .iter()
                .for_each(|pending| send(Message::Cancel(pending.request)));
            send(Message::NotInterested);
            send(Message::Choke);
        }
        self.reaper.close(entity, CloseReason::Stopping);
    }

    fn despawn(&mut self, entity: Entity, torrent: &Torrent, storage: &Storage) {
        self.announces.pending.remove(&entity);
        self.disk.push(DiskRequest::Close { storage: storage.id });
        self.index.remove(&torrent.hashes);
        let info_hash = torrent.id();
        self.stopped.write(TorrentStopped { info_hash });
        self.commands.entity(entity).despawn();
    }
}
