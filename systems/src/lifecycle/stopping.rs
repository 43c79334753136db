//! The stop: phases that progress across ticks, one at a time, each with its deadline.
//!
//! Order on the wire: no more requests; cancel, not-interested and choke to every peer, then the close; then `stopped`
//! to the trackers; then the session; then the torrent is gone and the callers get their answers. Removing works the
//! same way, with the session deleted instead of saved.

use std::sync::Arc;

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{
    AddError, CommandQueue, RemoveError, RemoveOptions, RemoveTorrent, Removed, Reply, StopAll, StopError, StopTorrent,
    TorrentNotFound,
};
use ecs_torrent_components::lifecycle::{ChangedFacts, Desired, Failure, Fault, Readiness};
use ecs_torrent_components::messages::{RequestStop, TorrentStopped};
use ecs_torrent_components::peer::{CloseReason, FlushQueue, Outbox, Peer, Requests, Stage};
use ecs_torrent_components::piece::PiecePhase;
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::{LifecycleSettings, Settings, millis};
use ecs_torrent_components::torrent::{
    ActivePieces, Content, Have, Partials, StopPhase, Stopping, Storage, Torrent, TorrentIndex, TorrentPeers,
};
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::disk::DiskRequest;
use ecs_torrent_engine::ports::net::NetEvent;
use ecs_torrent_engine::ports::{DiskPort, NetPort};
use ecs_torrent_protocol::wire::Message;

use super::adds::Adds;
use crate::ownership::{FileRegistry, whole_files};
use crate::picking::Flight;
use crate::sessions::{Ending, Endings, SessionState, Spiller};

const CLOSING: Purpose = Purpose("close links");

type StopReply = Reply<Result<(), StopError>>;
type RemoveReply = Reply<Result<Removed, RemoveError>>;

/// Stopping torrents, in the order in which their stops began, and the callers that wait for them.
#[derive(Resource, Debug, Default)]
pub(super) struct StopsInOrder {
    torrents: Vec<Entity>,
    waiters: EntityHashMap<Waiters>,
    all: Vec<StopReply>,
    /// The first session that could not be saved since a caller requested a stop of all torrents.
    first_error: Option<StopError>,
}

/// Callers that wait for one torrent, and how the torrent is to end.
#[derive(Debug, Default)]
struct Waiters {
    stops: Vec<StopReply>,
    removals: Vec<RemoveReply>,
    removal: Option<RemoveOptions>,
    /// The torrent was listed and then refused: its earlier data in the state folder stays, and nothing else.
    is_refused: bool,
}

impl StopsInOrder {
    /// Returns how a torrent is to end.
    fn ending(&self, torrent: Entity) -> Ending {
        ending_of(&self.waiters, torrent)
    }
}

fn ending_of(waiters: &EntityHashMap<Waiters>, torrent: Entity) -> Ending {
    waiters.get(&torrent).map_or(Ending::Save, Waiters::ending)
}

impl Waiters {
    fn ending(&self) -> Ending {
        match self.removal {
            Some(RemoveOptions { delete_data }) => Ending::Forget { delete_data },
            None if self.is_refused => Ending::Refuse,
            None => Ending::Save,
        }
    }

    fn answer(self, torrent: &Torrent, result: &Result<Removed, Arc<str>>) {
        let name = &torrent.name;
        for reply in self.removals {
            reply.send(result.clone().map_err(|reason| RemoveError::Incomplete {
                name: name.clone(),
                reason,
            }));
        }
        // A caller that requested only a stop gets a success, even if a removal is incomplete.
        let stopped = match self.removal {
            Some(_) => Ok(()),
            None => result.as_ref().map(drop).map_err(Arc::clone),
        };
        for reply in self.stops {
            reply.send(stopped.clone().map_err(|reason| stop_error(torrent, reason)));
        }
    }
}

fn stop_error(torrent: &Torrent, reason: Arc<str>) -> StopError {
    StopError {
        torrent: torrent.id(),
        name: torrent.name.clone(),
        reason,
    }
}

/// Connections of stopping torrents whose orderly close has not ended, by torrent.
#[derive(Resource, Debug, Default)]
pub(crate) struct ClosingLinks(EntityHashMap<usize>);

impl ClosingLinks {
    /// Counts a close whose end is awaited, and returns its tag.
    pub(crate) fn expect(&mut self, torrent: Option<Entity>, reason: &CloseReason) -> Option<JobTag> {
        let owner = torrent.filter(|_| *reason == CloseReason::Stopping)?;
        *self.0.entry(owner).or_default() += 1;
        Some(JobTag::new(CLOSING, owner))
    }
}

/// Torrents that must send `stopped` to their trackers, and the number of missing answers.
#[derive(Resource, Debug, Default)]
pub(crate) struct AnnounceStops {
    /// Written by the stop, taken by the announces.
    pub(crate) wanted: Vec<Entity>,
    /// Written by the announces: the number of trackers that have not answered.
    pub(crate) pending: EntityHashMap<usize>,
}

pub(super) fn hear_stops(
    mut commands: Commands,
    mut singles: ResMut<CommandQueue<StopTorrent>>,
    mut removals: ResMut<CommandQueue<RemoveTorrent>>,
    mut alls: ResMut<CommandQueue<StopAll>>,
    mut requested: MessageReader<RequestStop>,
    index: Res<TorrentIndex>,
    clock: Res<Clock>,
    settings: Res<Settings>,
    mut stops: ResMut<StopsInOrder>,
    mut adds: ResMut<Adds>,
    mut changed: ResMut<ChangedFacts>,
    mut torrents: Query<(Entity, &mut Desired)>,
) {
    let mut wanted: Vec<Entity> = requested.read().map(|request| request.torrent).collect();
    for StopTorrent { torrent, reply } in singles.0.drain(..) {
        match index.get(torrent) {
            Some(entity) => {
                wanted.push(entity);
                stops.waiters.entry(entity).or_default().stops.push(reply);
            }
            None => reply.send(Ok(())),
        }
    }
    for RemoveTorrent {
        torrent,
        options,
        reply,
    } in removals.0.drain(..)
    {
        let Some(entity) = index.get(torrent) else {
            reply.send(Err(TorrentNotFound(torrent).into()));
            continue;
        };
        wanted.push(entity);
        let waiters = stops.waiters.entry(entity).or_default();
        waiters.removals.push(reply);
        waiters.removal.get_or_insert_default().delete_data |= options.delete_data;
    }
    for entity in adds.refused.drain(..) {
        wanted.push(entity);
        stops.waiters.entry(entity).or_default().is_refused = true;
    }
    for StopAll { reply } in alls.0.drain(..) {
        wanted.extend(torrents.iter().map(|(entity, _)| entity));
        stops.all.push(reply);
    }
    for entity in wanted {
        let Ok((_, mut desired)) = torrents.get_mut(entity) else {
            continue;
        };
        // A second stop joins the first.
        let is_joining = desired.is_leaving();
        *desired = match stops.ending(entity) {
            Ending::Save => Desired::Stop,
            Ending::Forget { .. } | Ending::Refuse => Desired::Remove,
        };
        if is_joining {
            continue;
        }
        changed.add(entity);
        stops.torrents.push(entity);
        let phase = StopPhase::HaltDownloads;
        let stopping = Stopping {
            phase,
            deadline: clock.now() + limit(phase, &settings.lifecycle),
            has_begun: false,
        };
        commands.entity(entity).insert(stopping);
    }
}

/// Returns the time limit of a phase.
fn limit(phase: StopPhase, settings: &LifecycleSettings) -> std::time::Duration {
    millis(match phase {
        StopPhase::HaltDownloads => settings.halt_timeout_ms,
        StopPhase::DisconnectPeers => settings.disconnect_timeout_ms,
        StopPhase::AnnounceStopped => settings.announce_timeout_ms,
        StopPhase::WriteSession => settings.save_timeout_ms,
    })
}

/// Parameters that the phases need to begin and to end.
#[derive(bevy_ecs::system::SystemParam)]
pub(super) struct Stops<'w, 's> {
    commands: Commands<'w, 's>,
    net: ResMut<'w, NetPort>,
    disk: ResMut<'w, DiskPort>,
    index: ResMut<'w, TorrentIndex>,
    closing: ResMut<'w, ClosingLinks>,
    announces: ResMut<'w, AnnounceStops>,
    endings: ResMut<'w, Endings>,
    reaper: ResMut<'w, Reaper>,
    flush: ResMut<'w, FlushQueue>,
    stopped: MessageWriter<'w, TorrentStopped>,
    changed: ResMut<'w, ChangedFacts>,
    adds: ResMut<'w, Adds>,
    registry: ResMut<'w, FileRegistry>,
    spiller: Spiller<'w, 's>,
    flight: Flight<'w, 's>,
    peers: Query<'w, 's, (&'static Peer, Option<&'static mut Requests>, &'static mut Outbox)>,
}

/// A torrent that is being stopped.
#[derive(bevy_ecs::query::QueryData)]
#[query_data(mutable)]
pub(super) struct Stopped {
    entity: Entity,
    torrent: &'static Torrent,
    storage: &'static Storage,
    content: &'static Content,
    have: &'static Have,
    partials: &'static Partials,
    desired: &'static mut Desired,
    readiness: &'static mut Readiness,
    fault: &'static mut Fault,
    stopping: &'static mut Stopping,
    state: &'static mut SessionState,
    active: Option<&'static mut ActivePieces>,
    peers: Option<&'static TorrentPeers>,
}

pub(super) fn advance_stops(
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    settings: Res<Settings>,
    mut stops: ResMut<StopsInOrder>,
    mut stage: Stops,
    mut torrents: Query<Stopped>,
) {
    stage.count_closed();
    let now = clock.now();
    let StopsInOrder {
        torrents: order,
        waiters,
        all,
        first_error,
    } = &mut *stops;
    order.retain(|&entity| {
        // A torrent whose stop was requested in this tick gets its component at the end of the tick.
        let Ok(mut stopped) = torrents.get_mut(entity) else {
            wakeup.at(now);
            return true;
        };
        let ending = ending_of(waiters, entity);
        loop {
            if !std::mem::replace(&mut stopped.stopping.has_begun, true) {
                stage.begin(&mut stopped, ending);
                // Each phase is visible for a tick at least.
                wakeup.at(now);
                return true;
            }
            let phase = stopped.stopping.phase;
            let outcome = stage.outcome(&mut stopped);
            let is_late = now >= stopped.stopping.deadline;
            let result = match outcome {
                None if !is_late => {
                    wakeup.at(stopped.stopping.deadline);
                    return true;
                }
                None => {
                    tracing::warn!(torrent = %stopped.torrent.name, ?phase, "stopping: went on after its time");
                    Err("it took too long".into())
                }
                Some(result) => result,
            };
            if phase == StopPhase::WriteSession && stage.endings.began.remove(&entity) != Some(ending) {
                // A removal was requested meanwhile: the session is deleted, whether it was saved or not.
                stopped.stopping.has_begun = false;
                stopped.stopping.deadline = now + limit(phase, &settings.lifecycle);
                continue;
            }
            if phase == StopPhase::WriteSession {
                let waiters = waiters.remove(&entity).unwrap_or_default();
                if let (Err(reason), Ending::Save) = (&result, ending) {
                    first_error.get_or_insert_with(|| stop_error(stopped.torrent, reason.clone()));
                    stage.keep_failed(&mut stopped, reason);
                } else {
                    stage.despawn(&stopped, ending);
                }
                // An add of the same torrent may wait for this.
                wakeup.at(now);
                stage.answer_adds(&stopped, ending, &result);
                waiters.answer(stopped.torrent, &result);
                return false;
            }
            let Some(next) = following(phase) else {
                return false;
            };
            tracing::debug!(torrent = %stopped.torrent.name, phase = ?next, "stopping");
            *stopped.stopping = Stopping {
                phase: next,
                deadline: now + limit(next, &settings.lifecycle),
                has_begun: false,
            };
            stage.changed.add(entity);
        }
    });
    if order.is_empty() {
        let result = first_error.take().map_or(Ok(()), Err);
        all.drain(..).for_each(|reply| reply.send(result.clone()));
    }
}

fn following(phase: StopPhase) -> Option<StopPhase> {
    match phase {
        StopPhase::HaltDownloads => Some(StopPhase::DisconnectPeers),
        StopPhase::DisconnectPeers => Some(StopPhase::AnnounceStopped),
        StopPhase::AnnounceStopped => Some(StopPhase::WriteSession),
        StopPhase::WriteSession => None,
    }
}

impl Stops<'_, '_> {
    fn count_closed(&mut self) {
        for event in self.net.take(CLOSING) {
            let NetEvent::Gone { tag } = event else {
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

    fn begin(&mut self, stopped: &mut StoppedItem<'_, '_>, ending: Ending) {
        let entity = stopped.entity;
        match stopped.stopping.phase {
            StopPhase::HaltDownloads => {
                if let (Some(active), Ending::Save) = (&stopped.active, ending) {
                    let count = self
                        .spiller
                        .spill(&mut self.disk, entity, stopped.storage, active, stopped.partials);
                    stopped.state.add_spills(count);
                }
            }
            StopPhase::DisconnectPeers => {
                stopped
                    .peers
                    .into_iter()
                    .flat_map(RelationshipTarget::iter)
                    .for_each(|peer| self.part_from(peer));
            }
            StopPhase::AnnounceStopped => {
                self.closing.0.remove(&entity);
                self.announces.wanted.push(entity);
                // The announces take this over in this tick; the number is one until they have counted.
                self.announces.pending.insert(entity, 1);
            }
            StopPhase::WriteSession => {
                self.announces.pending.remove(&entity);
                // Clears the result of an earlier stop that did not wait for it.
                self.endings.ended.remove(&entity);
                self.endings.wanted.push((entity, ending));
                self.endings.began.insert(entity, ending);
            }
        }
    }

    /// Returns the result of the phase, once it is over.
    fn outcome(&mut self, stopped: &mut StoppedItem<'_, '_>) -> Option<Result<Removed, Arc<str>>> {
        let entity = stopped.entity;
        let is_done = match stopped.stopping.phase {
            StopPhase::HaltDownloads => {
                let is_empty = stopped.active.as_mut().is_none_or(|active| self.halt(active));
                is_empty && !stopped.state.is_spilling()
            }
            StopPhase::DisconnectPeers => stopped.peers.is_none() && !self.closing.0.contains_key(&entity),
            StopPhase::AnnounceStopped => !self.announces.pending.contains_key(&entity),
            StopPhase::WriteSession => return self.endings.ended.remove(&entity),
        };
        is_done.then(|| Ok(Removed::default()))
    }

    /// Lets pieces that are hashed or written finish, and drops the others. Returns true when none is left.
    fn halt(&mut self, active: &mut ActivePieces) -> bool {
        self.flight.drop_pieces(active, |piece| match piece.phase {
            PiecePhase::Filling => !piece.is_full(),
            PiecePhase::Restoring => true,
            PiecePhase::Hashing | PiecePhase::Writing => false,
        })
    }

    /// Queues a cancel for each outstanding request, not-interested and choke; the close follows when these are sent.
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

    /// Answers callers that wait for an add of a torrent that has ended first.
    fn answer_adds(&mut self, stopped: &StoppedItem<'_, '_>, ending: Ending, result: &Result<Removed, Arc<str>>) {
        let torrent = stopped.torrent.name.clone();
        let answer = match (ending, result) {
            (Ending::Save, Ok(_)) => Ok(stopped.torrent.id()),
            (Ending::Save, Err(reason)) => Err(AddError::Unsaved {
                torrent,
                reason: reason.clone(),
            }),
            (Ending::Forget { .. } | Ending::Refuse, _) => Err(AddError::Removed { torrent }),
        };
        self.adds.end(stopped.entity, answer);
    }

    fn despawn(&mut self, stopped: &StoppedItem<'_, '_>, ending: Ending) {
        if ending == Ending::Save {
            let info = &stopped.content.0.info;
            let whole = whole_files(&info.files, &info.geometry, &stopped.have.0);
            self.registry.stop(stopped.torrent.id(), whole);
        }
        self.disk.push(DiskRequest::Close {
            storage: stopped.storage.id,
        });
        self.index.remove(&stopped.torrent.hashes);
        let info_hash = stopped.torrent.id();
        self.stopped.write(TorrentStopped { info_hash });
        self.commands.entity(stopped.entity).despawn();
    }

    /// Keeps a torrent whose session could not be saved, so that the user sees it and can retry.
    fn keep_failed(&mut self, stopped: &mut StoppedItem<'_, '_>, reason: &Arc<str>) {
        stopped.fault.0 = Some(Failure {
            reason: format!("stopped, but its state is not saved: {reason}").into(),
            retry_at: None,
        });
        *stopped.desired = Desired::Run;
        *stopped.readiness = Readiness::Unopened;
        self.commands.entity(stopped.entity).remove::<Stopping>();
        self.changed.add(stopped.entity);
    }
}
