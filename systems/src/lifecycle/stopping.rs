//! The stop: phases that progress across ticks, one at a time, each with its deadline.
//!
//! Order on the wire: no more requests; cancel, not-interested and choke to every peer, then the close; then `stopped`
//! to the trackers; then the session; then the files are closed, the torrent is gone, and the callers get their answers.
//! Removing works the same way, with the session deleted instead of saved. The work of each phase is done by its
//! participants (`stop_participants`).

use std::sync::Arc;
use std::time::Duration;

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{
    AddError, CommandQueue, RemoveError, RemoveOptions, RemoveTorrent, Removed, Reply, StopAll, StopError, StopTorrent,
};
use ecs_torrent_components::lifecycle::{ChangedFacts, Desired, Failure, Fault, Readiness};
use ecs_torrent_components::messages::{RequestStop, TorrentStopped};
use ecs_torrent_components::settings::{LifecycleSettings, Settings, millis};
use ecs_torrent_components::torrent::{Content, Have, StopPhase, Stopping, Storage, Torrent, TorrentIndex};
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::DiskPort;
use ecs_torrent_engine::ports::disk::DiskRequest;

use super::adds::Adds;
use crate::ownership::{FileRegistry, whole_files};
use crate::stop_participants::{Ending, StopDuty, StopParticipants, StopTurn};

const RELEASE: Purpose = Purpose("release files");

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
    /// The ending with which the session was written or deleted.
    written_as: Option<Ending>,
    /// The result of that.
    result: Option<Result<Removed, Arc<str>>>,
}

impl StopsInOrder {
    /// Whether the session of a torrent is written or deleted already, so that no removal can join.
    fn is_released(&self, torrent: Entity) -> bool {
        self.waiters
            .get(&torrent)
            .is_some_and(|waiters| waiters.result.is_some())
    }

    /// Returns how a torrent is to end.
    fn ending(&self, torrent: Entity) -> Ending {
        self.waiters.get(&torrent).map_or(Ending::Save, Waiters::ending)
    }

    /// Returns the turn of a phase's participants.
    fn turn(&mut self, torrent: Entity, phase: StopPhase) -> StopTurn {
        let ending = self.ending(torrent);
        if phase == StopPhase::WriteSession {
            self.waiters.entry(torrent).or_default().written_as = Some(ending);
        }
        StopTurn { torrent, ending }
    }
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

/// Returns whether stops are running or requested.
pub(super) fn has_stops(
    stops: Res<StopsInOrder>,
    singles: Res<CommandQueue<StopTorrent>>,
    removals: Res<CommandQueue<RemoveTorrent>>,
    alls: Res<CommandQueue<StopAll>>,
    requested: Res<Messages<RequestStop>>,
    adds: Res<Adds>,
    disk: Res<DiskPort>,
) -> bool {
    let are_running = !stops.torrents.is_empty() || !stops.all.is_empty();
    let has_commands = !singles.0.is_empty() || !removals.0.is_empty() || !alls.0.is_empty();
    let has_requests = !requested.is_empty() || !adds.refused.is_empty();
    are_running || has_commands || has_requests || disk.has_events_for(RELEASE)
}

/// Requests to stop and to remove torrents.
#[derive(SystemParam)]
pub(super) struct StopRequests<'w, 's> {
    singles: ResMut<'w, CommandQueue<StopTorrent>>,
    removals: ResMut<'w, CommandQueue<RemoveTorrent>>,
    alls: ResMut<'w, CommandQueue<StopAll>>,
    requested: MessageReader<'w, 's, RequestStop>,
    index: Res<'w, TorrentIndex>,
    adds: ResMut<'w, Adds>,
}

impl StopRequests<'_, '_> {
    /// Takes the requests: returns the torrents to stop, with repetitions, and records the callers.
    fn take(&mut self, stops: &mut StopsInOrder, is_ending: impl Fn(Entity) -> bool) -> Vec<Entity> {
        let mut wanted: Vec<Entity> = self.requested.read().map(|request| request.torrent).collect();
        for (stop, listed) in self.adds.take_decided(&mut self.singles, &self.index, &is_ending) {
            let Some(entity) = listed else {
                stop.reply.send(Ok(()));
                continue;
            };
            wanted.push(entity);
            stops.waiters.entry(entity).or_default().stops.push(stop.reply);
        }
        for (removal, listed) in self.adds.take_decided(&mut self.removals, &self.index, &is_ending) {
            // If the torrent is gone, or about to be, its session is removed in a later tick.
            let Some(entity) = listed.filter(|entity| !stops.is_released(*entity)) else {
                self.removals.0.push_back(removal);
                continue;
            };
            wanted.push(entity);
            let waiters = stops.waiters.entry(entity).or_default();
            waiters.removals.push(removal.reply);
            waiters.removal.get_or_insert_default().delete_data |= removal.options.delete_data;
        }
        for entity in self.adds.refused.drain(..) {
            wanted.push(entity);
            stops.waiters.entry(entity).or_default().is_refused = true;
        }
        wanted
    }
}

pub(super) fn begin_stops(
    mut commands: Commands,
    mut requests: StopRequests,
    (clock, wakeup): (Res<Clock>, Res<Wakeup>),
    settings: Res<Settings>,
    mut stops: ResMut<StopsInOrder>,
    mut changed: ResMut<ChangedFacts>,
    mut participants: ResMut<StopParticipants>,
    mut torrents: Query<(Entity, &mut Desired)>,
) {
    let is_ending = |entity| torrents.get(entity).is_ok_and(|(_, desired)| desired.is_leaving());
    let mut wanted = requests.take(&mut stops, is_ending);
    for StopAll { reply } in requests.alls.0.drain(..) {
        wanted.extend(torrents.iter().map(|(entity, _)| entity));
        stops.all.push(reply);
        wakeup.at(clock.now());
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
        wakeup.at(clock.now());
        stops.torrents.push(entity);
        let phase = StopPhase::HaltDownloads;
        let turn = stops.turn(entity, phase);
        participants.begin(turn, phase, clock.now(), limit(phase, &settings.lifecycle));
        commands.entity(entity).insert(Stopping { phase });
    }
}

/// Returns the time limit of a phase.
fn limit(phase: StopPhase, settings: &LifecycleSettings) -> Duration {
    millis(match phase {
        StopPhase::HaltDownloads => settings.halt_timeout_ms,
        StopPhase::DisconnectPeers => settings.disconnect_timeout_ms,
        StopPhase::AnnounceStopped => settings.announce_timeout_ms,
        StopPhase::WriteSession => settings.save_timeout_ms,
        StopPhase::Release => settings.release_timeout_ms,
    })
}

/// Parameters that the end of a stop needs.
#[derive(SystemParam)]
pub(super) struct StopParams<'w, 's> {
    commands: Commands<'w, 's>,
    index: ResMut<'w, TorrentIndex>,
    stopped: MessageWriter<'w, TorrentStopped>,
    changed: ResMut<'w, ChangedFacts>,
    adds: ResMut<'w, Adds>,
    registry: ResMut<'w, FileRegistry>,
}

/// A torrent that is being stopped.
#[derive(QueryData)]
#[query_data(mutable)]
pub(super) struct Stopped {
    entity: Entity,
    torrent: &'static Torrent,
    known: Option<(&'static Content, &'static Have)>,
    desired: &'static mut Desired,
    readiness: &'static mut Readiness,
    fault: &'static mut Fault,
    stopping: &'static mut Stopping,
}

pub(super) fn advance_stops(
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    settings: Res<Settings>,
    mut participants: ResMut<StopParticipants>,
    mut stops: ResMut<StopsInOrder>,
    mut params: StopParams,
    mut torrents: Query<Stopped>,
) {
    if stops.torrents.is_empty() && stops.all.is_empty() {
        return;
    }
    let now = clock.now();
    let mut order = std::mem::take(&mut stops.torrents);
    order.retain(|&torrent| {
        // A torrent whose stop was requested in this tick gets its component at the end of the tick.
        let Ok(mut stopped) = torrents.get_mut(torrent) else {
            wakeup.at(now);
            return true;
        };
        let result = match participants.poll(torrent, stopped.torrent.label(), now) {
            Err(next) => {
                wakeup.at(next);
                return true;
            }
            Ok(result) => result,
        };
        // The participants of the next phase, or an add of the same torrent, wait for this.
        wakeup.at(now);
        let next = params.follow(&mut stopped, &mut stops, result);
        if let Some(phase) = next {
            let turn = stops.turn(torrent, phase);
            participants.begin(turn, phase, now, limit(phase, &settings.lifecycle));
        }
        next.is_some()
    });
    stops.torrents = order;
    if stops.torrents.is_empty() {
        let result = stops.first_error.take().map_or(Ok(()), Err);
        stops.all.drain(..).for_each(|reply| reply.send(result.clone()));
    }
}

impl StopParams<'_, '_> {
    /// Handles the end of a phase. Returns the phase that begins, or `None` at the end of the stop.
    fn follow(
        &mut self,
        stopped: &mut StoppedItem<'_, '_>,
        stops: &mut StopsInOrder,
        result: Result<Removed, Arc<str>>,
    ) -> Option<StopPhase> {
        let torrent = stopped.entity;
        let waiters = stops.waiters.entry(torrent).or_default();
        let ending = waiters.ending();
        if stopped.stopping.phase == StopPhase::WriteSession {
            if waiters.written_as != Some(ending) {
                // A removal was requested meanwhile: the session is deleted, whether it was saved or not.
                return Some(StopPhase::WriteSession);
            }
            if let (Err(reason), Ending::Save) = (&result, ending) {
                let error = stop_error(stopped.torrent, reason.clone());
                let waiters = stops.waiters.remove(&torrent).unwrap_or_default();
                stops.first_error.get_or_insert(error);
                self.keep_failed(stopped, reason);
                self.answer(stopped, waiters, ending, &result);
                return None;
            }
            waiters.result = Some(result);
        }
        if let Some(phase) = stopped.stopping.phase.next() {
            tracing::debug!(torrent = %stopped.torrent.label(), ?phase, "stopping");
            stopped.stopping.phase = phase;
            self.changed.add(torrent);
            return Some(phase);
        }
        let mut waiters = stops.waiters.remove(&torrent).unwrap_or_default();
        let result = waiters.result.take().unwrap_or_else(|| Ok(Removed::default()));
        self.despawn(stopped, ending);
        self.answer(stopped, waiters, ending, &result);
        None
    }

    /// Answers the callers that wait for the end of a torrent, and those that wait for it to be added.
    fn answer(
        &mut self,
        stopped: &StoppedItem<'_, '_>,
        waiters: Waiters,
        ending: Ending,
        result: &Result<Removed, Arc<str>>,
    ) {
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
        waiters.answer(stopped.torrent, result);
    }

    fn despawn(&mut self, stopped: &StoppedItem<'_, '_>, ending: Ending) {
        if let (Ending::Save, Some((content, have))) = (ending, stopped.known) {
            let info = &content.0.info;
            let whole = whole_files(&info.files, &info.geometry, &have.0);
            self.registry.stop(stopped.torrent.id(), whole);
        }
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

/// The stop participant that closes a torrent's files.
pub(super) struct Releasing;

/// Closes the files of stopping torrents, and waits until every handle to them is closed.
pub(super) fn release_files(mut duty: StopDuty<Releasing>, mut disk: ResMut<DiskPort>, torrents: Query<&Storage>) {
    for turn in duty.take() {
        if let Ok(storage) = torrents.get(turn.torrent) {
            disk.push(DiskRequest::Close {
                tag: Some(JobTag::new(RELEASE, turn.torrent)),
                storage: storage.id,
            });
        }
    }
    for event in disk.take(RELEASE) {
        duty.finish(event.tag.owner);
    }
}
