//! Requests to stop and remove torrents, and the callers that wait for the ends of stops, pauses and removals.

use std::sync::Arc;

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::commands::{
    CommandQueue, PauseError, RecheckError, RemoveError, RemoveOptions, RemoveTorrent, Removed, Reply, StopAll,
    StopError, StopTorrent, TorrentNotFound, Unsaved,
};
use ecs_torrent_components::lifecycle::{Desired, Readiness};
use ecs_torrent_components::messages::RequestStop;
use ecs_torrent_components::torrent::{Content, StopPhase, Torrent, TorrentIndex};
use ecs_torrent_engine::ports::DiskPort;
use ecs_torrent_protocol::bitfield::Bitfield;

use super::adds::Adds;
use super::releasing::RELEASE;
use crate::sessions::SessionState;
use crate::stop_participants::{Ending, StopTurn};

type StopReply = Reply<Result<(), StopError>>;
type PauseReply = Reply<Result<(), PauseError>>;
type RecheckReply = Reply<Result<(), RecheckError>>;
type RemoveReply = Reply<Result<Removed, RemoveError>>;

/// Stopping torrents, in the order in which their stops began, and the callers that wait for them.
#[derive(Resource, Debug, Default)]
pub(super) struct StopsInOrder {
    pub(super) torrents: Vec<Entity>,
    pub(super) waiters: EntityHashMap<Waiters>,
    pub(super) all: Vec<StopReply>,
    /// The first session that could not be saved since a caller requested a stop of all torrents.
    pub(super) first_error: Option<StopError>,
    /// Torrents whose pause or check begins in this tick, or whose stop or removal was requested when their pause was
    /// almost over.
    pub(super) wanted: Vec<Entity>,
}

/// Callers that wait for one torrent, and the way in which the torrent is to end.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    stops: Vec<StopReply>,
    pauses: Vec<PauseReply>,
    rechecks: Vec<RecheckReply>,
    /// The pieces to which the check is limited; `None` for all.
    check_pieces: Option<Bitfield>,
    /// The files are closed to be moved.
    pub(super) is_move: bool,
    removals: Vec<RemoveReply>,
    removal: Option<RemoveOptions>,
    /// The torrent was listed and then refused: only its earlier data in the state folder stays.
    is_refused: bool,
    /// The torrent is stopped.
    is_stopped: bool,
    /// The torrent stays stopped over restarts.
    until_resumed: bool,
    /// The program ends after the stop.
    is_shutdown: bool,
    /// The ending with which the session was written or deleted.
    pub(super) written_as: Option<Ending>,
    /// The result of writing or deleting the session.
    pub(super) result: Option<Result<Removed, Arc<str>>>,
}

impl StopsInOrder {
    /// Whether the session of a torrent that ends is written or deleted already, so that no removal can join.
    fn is_released(&self, torrent: Entity) -> bool {
        let is_it = |waiters: &Waiters| waiters.result.is_some() && waiters.written_as != Some(Ending::Pause);
        self.waiters.get(&torrent).is_some_and(is_it)
    }

    /// Returns how a torrent is to end.
    pub(super) fn ending(&self, torrent: Entity) -> Ending {
        self.waiters.get(&torrent).map_or(Ending::Pause, Waiters::ending)
    }

    /// Whether a torrent is to be paused, or to be paused when it is listed again after its stop.
    pub(super) fn is_pause_requested(&self, torrent: Entity) -> bool {
        let is_it = |waiters: &Waiters| match waiters.ending() {
            Ending::Pause => waiters.rechecks.is_empty() && !waiters.is_move,
            Ending::Save { .. } => !waiters.pauses.is_empty(),
            Ending::Forget { .. } | Ending::Refuse => false,
        };
        self.waiters.get(&torrent).is_none_or(is_it)
    }

    /// Whether the program ends after the stop of a torrent.
    pub(super) fn is_shutdown(&self, torrent: Entity) -> bool {
        self.waiters.get(&torrent).is_some_and(|waiters| waiters.is_shutdown)
    }

    /// Returns the turn of a phase's participants.
    pub(super) fn turn(&mut self, torrent: Entity, phase: StopPhase) -> StopTurn {
        let ending = self.ending(torrent);
        if phase == StopPhase::WriteSession {
            self.waiters.entry(torrent).or_default().written_as = Some(ending);
        }
        StopTurn { torrent, ending }
    }

    /// Begins a pause in this tick.
    pub(super) fn pause(&mut self, torrent: Entity, reply: PauseReply) {
        self.waiters.entry(torrent).or_default().pauses.push(reply);
        self.wanted.push(torrent);
    }

    /// Whether a pause of a torrent is running, or begins in this tick.
    pub(super) fn is_pausing(&self, torrent: Entity) -> bool {
        let waiters = self.waiters.get(&torrent);
        waiters.is_some_and(|waiters| !waiters.pauses.is_empty())
    }

    /// Begins to close the files of a torrent in this tick, before these pieces, or all, are checked again.
    pub(super) fn recheck(&mut self, torrent: Entity, pieces: Option<Bitfield>, reply: RecheckReply) {
        let waiters = self.waiters.entry(torrent).or_default();
        waiters.rechecks.push(reply);
        waiters.check_pieces = pieces;
        self.wanted.push(torrent);
    }

    /// Returns the pieces to which the check of a torrent is limited; `None` for all.
    pub(super) fn check_pieces(&self, torrent: Entity) -> Option<&Bitfield> {
        self.waiters.get(&torrent)?.check_pieces.as_ref()
    }

    /// Whether the files of a torrent are being closed before a check, or will be in this tick.
    pub(super) fn is_rechecking(&self, torrent: Entity) -> bool {
        let waiters = self.waiters.get(&torrent);
        waiters.is_some_and(|waiters| !waiters.rechecks.is_empty())
    }

    /// Whether a stop, a pause or a check of a torrent is running or begins in this tick.
    pub(super) fn is_busy(&self, torrent: Entity) -> bool {
        self.waiters.contains_key(&torrent) || self.wanted.contains(&torrent)
    }

    /// Begins to close the files of a torrent in this tick, before they are moved.
    pub(super) fn close_for_move(&mut self, torrent: Entity) {
        self.waiters.entry(torrent).or_default().is_move = true;
        self.wanted.push(torrent);
    }

    /// Whether the files of a torrent are being closed before a move, or will be in this tick.
    pub(super) fn is_closing_for_move(&self, torrent: Entity) -> bool {
        self.waiters.get(&torrent).is_some_and(|waiters| waiters.is_move)
    }

    /// Records that a torrent is to be stopped, whether it runs, is paused, or is being paused.
    fn stop(&mut self, torrent: Entity, until_resumed: bool) -> &mut Waiters {
        let waiters = self.waiters.entry(torrent).or_default();
        waiters.is_stopped = true;
        waiters.until_resumed |= until_resumed;
        waiters
    }
}

impl Waiters {
    pub(super) fn ending(&self) -> Ending {
        let until_resumed = self.until_resumed;
        match self.removal {
            Some(RemoveOptions { delete_data }) => Ending::Forget { delete_data },
            None if self.is_refused => Ending::Refuse,
            None if self.is_stopped => Ending::Save { until_resumed },
            None => Ending::Pause,
        }
    }

    /// Answers every caller with the result of the torrent's end.
    pub(super) fn answer(mut self, torrent: &Torrent, result: &Result<Removed, Arc<str>>) {
        let is_gone = self.removal.is_some() || self.is_refused;
        let saved = result
            .as_ref()
            .map(drop)
            .map_err(|reason| Unsaved::new(&torrent.name, reason));
        let paused = match is_gone {
            true => Err(PauseError::NotFound(TorrentNotFound(torrent.id()))),
            false => saved.clone().map_err(PauseError::Unsaved),
        };
        self.answer_pauses(&paused);
        let checked = match is_gone {
            true => Err(RecheckError::NotFound(TorrentNotFound(torrent.id()))),
            false => saved.clone().map_err(RecheckError::Unsaved),
        };
        self.answer_rechecks(&checked);
        for reply in self.removals {
            let name = torrent.name.clone();
            reply.send(
                result
                    .clone()
                    .map_err(|reason| RemoveError::Incomplete { name, reason }),
            );
        }
        // A caller that requested only a stop gets success, even if a removal is incomplete.
        let stopped = match self.removal {
            Some(_) => Ok(()),
            None => saved.map_err(StopError),
        };
        for reply in self.stops {
            reply.send(stopped.clone());
        }
    }

    /// Answers every caller of a removal that was not carried out.
    pub(super) fn answer_kept(mut self, torrent: &Torrent, reason: &Arc<str>) {
        let unsaved = Unsaved::new(&torrent.name, reason);
        self.answer_pauses(&Err(PauseError::Unsaved(unsaved.clone())));
        self.answer_rechecks(&Err(RecheckError::Unsaved(unsaved.clone())));
        for reply in self.removals {
            let Unsaved { name, reason } = unsaved.clone();
            reply.send(Err(RemoveError::Kept { name, reason }));
        }
        for reply in self.stops {
            reply.send(Err(StopError(unsaved.clone())));
        }
    }

    /// Answers the callers that wait for the torrent to be paused.
    pub(super) fn answer_pauses(&mut self, result: &Result<(), PauseError>) {
        self.pauses.drain(..).for_each(|reply| reply.send(result.clone()));
    }

    /// Answers the callers that wait for a check to be recorded.
    pub(super) fn answer_rechecks(&mut self, result: &Result<(), RecheckError>) {
        self.rechecks.drain(..).for_each(|reply| reply.send(result.clone()));
    }

    /// Whether the files are closed only to check data.
    pub(super) fn is_recheck(&self) -> bool {
        !self.rechecks.is_empty()
    }
}

/// Commands to stop and to remove torrents, as they have arrived.
#[derive(SystemParam)]
pub(super) struct StopQueues<'w> {
    stops: Res<'w, CommandQueue<StopTorrent>>,
    alls: Res<'w, CommandQueue<StopAll>>,
    removals: Res<'w, CommandQueue<RemoveTorrent>>,
    requested: Res<'w, Messages<RequestStop>>,
}

/// Returns whether stops are running or requested.
pub(super) fn has_stops(stops: Res<StopsInOrder>, queues: StopQueues, adds: Res<Adds>, disk: Res<DiskPort>) -> bool {
    let are_running = !stops.torrents.is_empty() || !stops.all.is_empty() || !stops.wanted.is_empty();
    let has_commands = !queues.stops.0.is_empty() || !queues.removals.0.is_empty() || !queues.alls.0.is_empty();
    let has_requests = !queues.requested.is_empty() || !adds.refused.is_empty();
    are_running || has_commands || has_requests || disk.has_events_for(RELEASE)
}

/// The parts of a torrent that its stop changes first.
#[derive(QueryData)]
#[query_data(mutable)]
pub(super) struct Requested {
    entity: Entity,
    pub(super) torrent: &'static Torrent,
    pub(super) desired: &'static mut Desired,
    pub(super) readiness: &'static mut Readiness,
    pub(super) state: &'static mut SessionState,
    pub(super) content: Option<&'static Content>,
}

type RequestedTorrents<'w, 's> = Query<'w, 's, RequestedReadOnly>;

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
    pub(super) fn take(&mut self, stops: &mut StopsInOrder, torrents: &RequestedTorrents) -> Vec<Entity> {
        let mut wanted = std::mem::take(&mut stops.wanted);
        for RequestStop { torrent } in self.requested.read() {
            if torrents.contains(*torrent) {
                stops.stop(*torrent, true);
                wanted.push(*torrent);
            }
        }
        let is_leaving = |entity| is_leaving(torrents, entity);
        for (stop, listed) in self.adds.take_decided(&mut self.singles, &self.index, is_leaving) {
            let Some(entity) = listed else {
                stop.reply.send(Ok(()));
                continue;
            };
            wanted.push(entity);
            stops.stop(entity, true).stops.push(stop.reply);
        }
        for (removal, listed) in self.adds.take_decided(&mut self.removals, &self.index, is_leaving) {
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
        for StopAll { until_resumed, reply } in self.alls.0.drain(..) {
            for torrent in torrents {
                // Nothing else stops all torrents and lets them run again later.
                stops.stop(torrent.entity, until_resumed).is_shutdown |= !until_resumed;
                wanted.push(torrent.entity);
            }
            stops.all.push(reply);
        }
        wanted
    }
}

fn is_leaving(torrents: &RequestedTorrents, entity: Entity) -> bool {
    let requested = torrents.get(entity);
    requested.is_ok_and(|requested| requested.desired.is_leaving())
}
