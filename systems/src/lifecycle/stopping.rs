//! The stop: phases that progress across ticks, one at a time, each with its deadline.
//!
//! Order on the wire: no more requests; cancel, not-interested and choke to every peer, then the close; then `stopped`
//! to the trackers; then the session; then the files are closed, the torrent is gone, and the callers get their answers.
//! Removing works the same way, with the session deleted instead of saved. So does a pause, at whose end the torrent
//! stays listed, as paused. The work of each phase is done by its participants (`stop_participants`).

use std::sync::Arc;
use std::time::Duration;

use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{AddError, Removed, StartTorrentError, TorrentNotFound};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::lifecycle::{Blocked, ChangedFacts, Desired, Failure, Fault, Readiness};
use ecs_torrent_components::messages::TorrentStopped;
use ecs_torrent_components::settings::{LifecycleSettings, Settings, millis};
use ecs_torrent_components::torrent::{Content, Have, StopPhase, Stopping, Torrent, TorrentIndex};

use super::adds::Adds;
use super::failing::{Restarts, Retry};
use super::opening::{Opener, Opening};
use super::starting::Starts;
use super::stop_requests::{Requested, StopRequests, StopsInOrder, Waiters, stop_error};
use crate::ownership::{FileRegistry, whole_files};
use crate::sessions::SessionState;
use crate::stop_participants::{Ending, StopParticipants};

/// Time for saving the session of a pause. Nothing ends the program after a pause, and a pause of all torrents saves
/// thousands of sessions.
const PAUSE_SAVE_LIMIT: Duration = Duration::from_secs(60);

/// Begins requested stops, and changes what becomes of torrents whose stop is running.
pub(super) fn begin_stops(
    mut commands: Commands,
    mut requests: StopRequests,
    mut opener: Opener,
    (clock, wakeup): (Res<Clock>, Res<Wakeup>),
    settings: Res<Settings>,
    mut stops: ResMut<StopsInOrder>,
    mut changed: ResMut<ChangedFacts>,
    mut participants: ResMut<StopParticipants>,
    mut torrents: Query<Requested>,
) {
    let wanted = requests.take(&mut stops, &torrents.as_readonly());
    for entity in wanted {
        let Ok(mut requested) = torrents.get_mut(entity) else {
            continue;
        };
        let is_pausing = *requested.desired == Desired::Pause && *requested.readiness != Readiness::Closed;
        let is_running = is_pausing || requested.desired.is_leaving();
        let ending = stops.ending(entity);
        *requested.desired = match ending {
            Ending::Pause => Desired::Pause,
            Ending::Save { .. } => Desired::Stop,
            Ending::Forget { .. } | Ending::Refuse => Desired::Remove,
        };
        // A pause that is requested together with a stop outlasts the stop.
        if stops.is_pause_requested(entity) {
            requested.state.set_paused(true);
        }
        // The data of a torrent whose files were closed can be deleted only after they are opened again.
        let is_closed = *requested.readiness == Readiness::Closed || requested.state.is_closed();
        if is_closed && ending == (Ending::Forget { delete_data: true }) {
            let (readiness, state) = (&mut *requested.readiness, &mut *requested.state);
            opener.reopen(entity, requested.torrent, readiness, state, &mut commands);
        }
        // A second stop joins the first.
        if is_running {
            if ending != Ending::Pause {
                participants.hasten(entity, clock.now() + millis(settings.lifecycle.save_timeout_ms));
            }
            continue;
        }
        changed.add(entity);
        wakeup.at(clock.now());
        stops.torrents.push(entity);
        let phase = StopPhase::HaltDownloads;
        let turn = stops.turn(entity, phase);
        participants.begin(turn, phase, clock.now(), limit(phase, ending, &settings.lifecycle));
        commands.entity(entity).insert(Stopping { phase });
    }
}

/// Returns the time limit of a phase.
fn limit(phase: StopPhase, ending: Ending, settings: &LifecycleSettings) -> Duration {
    if (phase, ending) == (StopPhase::WriteSession, Ending::Pause) {
        return PAUSE_SAVE_LIMIT;
    }
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
    clock: Res<'w, Clock>,
    settings: Res<'w, Settings>,
    index: ResMut<'w, TorrentIndex>,
    stopped: MessageWriter<'w, TorrentStopped>,
    changed: ResMut<'w, ChangedFacts>,
    adds: ResMut<'w, Adds>,
    starts: ResMut<'w, Starts>,
    registry: ResMut<'w, FileRegistry>,
    retries: ResMut<'w, Deadlines<Retry>>,
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
    blocked: &'static mut Blocked,
    state: &'static mut SessionState,
    stopping: &'static mut Stopping,
}

/// Advances the stops whose running phase is over.
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
            participants.begin(turn, phase, now, limit(phase, turn.ending, &settings.lifecycle));
        }
        next.is_some()
    });
    stops.torrents = order;
    if stops.torrents.is_empty() && stops.after_pause.is_empty() {
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
                // Another end was requested meanwhile: the session is written accordingly, or deleted.
                return Some(StopPhase::WriteSession);
            }
            if let (Err(reason), Ending::Save { .. } | Ending::Pause) = (&result, ending) {
                let waiters = stops.waiters.remove(&torrent).unwrap_or_default();
                if ending != Ending::Pause {
                    let error = stop_error(stopped.torrent, reason.clone());
                    stops.first_error.get_or_insert(error);
                }
                self.keep_failed(stopped, reason, ending);
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
        if waiters.written_as.take() == Some(Ending::Pause) {
            self.keep_paused(stopped);
            waiters.answer_pauses(&Ok(()));
            self.adds.end(torrent, Ok(stopped.torrent.id()));
            // A stop or removal that was requested in the last phase begins in the next tick.
            if ending != Ending::Pause {
                stops.waiters.insert(torrent, waiters);
                stops.after_pause.push(torrent);
            }
            return None;
        }
        if let (Ending::Forget { .. }, true, Err(reason)) = (ending, stopped.state.is_kept(), &result) {
            self.keep_removed(stopped, waiters, reason);
            return None;
        }
        self.despawn(stopped, ending);
        self.answer(stopped, waiters, ending, &result);
        None
    }

    /// Keeps a torrent that was to be removed with its data, while the volume of the data is not there. A running torrent
    /// waits for the volume; a paused one stays paused, and a stopped one stopped.
    fn keep_removed(&mut self, stopped: &mut StoppedItem<'_, '_>, waiters: Waiters, reason: &Arc<str>) {
        let (torrent, id) = (stopped.entity, stopped.torrent.id());
        tracing::warn!(torrent = %stopped.torrent.label(), "not removed: {reason}");
        stopped.state.record_kept();
        self.adds.end(torrent, Ok(id));
        let (name, why) = (stopped.torrent.name.clone(), reason.clone());
        self.starts
            .answer(torrent, &Err(StartTorrentError::Unsaved { name, reason: why }));
        waiters.answer_kept(stopped.torrent, reason);
        if stopped.state.was_stopped() {
            self.despawn(stopped, Ending::Save { until_resumed: true });
        } else if stopped.state.is_paused() {
            self.keep_paused(stopped);
        } else {
            stopped.blocked.0 = Some(reason.clone());
            stopped.fault.0 = None;
            stopped.state.record_closed();
            *stopped.desired = Desired::Run;
            *stopped.readiness = Readiness::Unopened;
            let wait = millis(self.settings.lifecycle.blocked_retry_ms);
            self.retries.set(self.clock.now() + wait, Retry(torrent));
            self.commands.entity(torrent).remove::<Stopping>();
            self.changed.add(torrent);
        }
    }

    /// Answers the callers that wait for the end of a torrent, and those that wait for it to be added or started.
    fn answer(
        &mut self,
        stopped: &StoppedItem<'_, '_>,
        waiters: Waiters,
        ending: Ending,
        result: &Result<Removed, Arc<str>>,
    ) {
        let torrent = stopped.torrent.name.clone();
        let answer = match (ending, result) {
            (Ending::Save { .. } | Ending::Pause, Ok(_)) => Ok(stopped.torrent.id()),
            (Ending::Save { .. } | Ending::Pause, Err(reason)) => Err(AddError::Unsaved {
                torrent,
                reason: reason.clone(),
            }),
            (Ending::Forget { .. } | Ending::Refuse, _) => Err(AddError::Removed { torrent }),
        };
        self.adds.end(stopped.entity, answer);
        let unstarted = match (ending, result) {
            // The torrent stays listed.
            (Ending::Save { .. } | Ending::Pause, Err(reason)) => StartTorrentError::Unsaved {
                name: stopped.torrent.name.clone(),
                reason: reason.clone(),
            },
            _ => TorrentNotFound(stopped.torrent.id()).into(),
        };
        self.starts.answer(stopped.entity, &Err(unstarted));
        waiters.answer(stopped.torrent, result);
    }

    fn despawn(&mut self, stopped: &StoppedItem<'_, '_>, ending: Ending) {
        if let (Ending::Save { .. }, Some((content, have))) = (ending, stopped.known) {
            let info = &content.0.info;
            let whole = whole_files(&info.files, &info.geometry, have);
            self.registry.stop(stopped.torrent.id(), whole);
        }
        self.index.remove(&stopped.torrent.hashes);
        let info_hash = stopped.torrent.id();
        self.stopped.write(TorrentStopped { info_hash });
        self.commands.entity(stopped.entity).despawn();
    }

    /// Keeps a torrent whose session could not be saved, so that the user sees it and can retry.
    fn keep_failed(&mut self, stopped: &mut StoppedItem<'_, '_>, reason: &Arc<str>, ending: Ending) {
        let done = match ending {
            Ending::Pause => "paused",
            _ => "stopped",
        };
        stopped.fault.0 = Some(Failure {
            reason: format!("{done}, but its state is not saved: {reason}").into(),
            retry_at: None,
        });
        stopped.blocked.0 = None;
        *stopped.desired = Desired::Run;
        *stopped.readiness = Readiness::Unopened;
        stopped.state.record_unsaved_end();
        self.commands.entity(stopped.entity).remove::<Stopping>();
        self.changed.add(stopped.entity);
    }

    /// Keeps a torrent whose pause is over. The next start examines everything again, so no fault is left.
    fn keep_paused(&mut self, stopped: &mut StoppedItem<'_, '_>) {
        *stopped.desired = Desired::Pause;
        *stopped.readiness = Readiness::Closed;
        (stopped.fault.0, stopped.blocked.0) = (None, None);
        stopped.state.record_closed();
        self.commands
            .entity(stopped.entity)
            .remove::<(Stopping, Opening, Restarts)>();
        self.changed.add(stopped.entity);
    }
}
