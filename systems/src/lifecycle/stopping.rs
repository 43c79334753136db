//! The stop: phases that progress across ticks, one at a time, each with its deadline.
//!
//! Order on the wire: no more requests; cancel, not-interested and choke to every peer, then the close; then `stopped`
//! to the trackers; then the session; then the files are closed, the torrent is gone, and the callers get their
//! answers. Removing works the same way, with the session deleted instead of saved. A pause works the same way too, but
//! the torrent stays listed, as paused, or is opened again to check all of its data. The work of each phase is done by
//! its participants (`stop_participants`).

use std::sync::Arc;
use std::time::Duration;

use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{
    AddError, MoveError, Removed, StartTorrentError, StopError, TorrentNotFound, Unsaved,
};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::lifecycle::{Blocked, ChangedFacts, Desired, Failure, Fault, Moving, Readiness};
use ecs_torrent_components::messages::TorrentStopped;
use ecs_torrent_components::settings::{LifecycleSettings, Settings, millis};
use ecs_torrent_components::torrent::{Content, Have, StopPhase, Stopping, Torrent, TorrentIndex};
use ecs_torrent_protocol::time::Timestamp;

use super::adds::Adds;
use super::failing::{Restarts, Retry};
use super::moving::Moves;
use super::opening::{Opener, Opening};
use super::removing::ListedToRemove;
use super::starting::Starts;
use super::stop_requests::{Requested, StopRequests, StopsInOrder, Waiters};
use crate::ownership::{FileRegistry, whole_files};
use crate::sessions::SessionState;
use crate::stop_participants::{Ending, StopParticipants};

/// Begins requested stops, and changes the ending of torrents whose stop is running.
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
        // A pause that is requested together with a stop is remembered after the stop.
        if stops.is_pause_requested(entity) {
            requested.state.set_paused(true);
        }
        if stops.is_rechecking(entity) {
            requested.state.request_check(stops.check_pieces(entity));
        }
        // The data of a torrent whose files were closed can be deleted only after they are opened again.
        let is_closed = *requested.readiness == Readiness::Closed || requested.state.is_closed();
        let has_part = || {
            let files = requested.content.map(|content| &content.0.info.files);
            files.is_some_and(|files| requested.state.has_part(files))
        };
        let deletes = match ending {
            Ending::Forget { delete_data } => delete_data || has_part(),
            _ => false,
        };
        // A move ends with the removal of its torrent.
        let ends_move = matches!(ending, Ending::Forget { .. }) && requested.state.moving().is_some();
        if (is_closed && deletes) || ends_move {
            let (readiness, state) = (&mut *requested.readiness, &mut *requested.state);
            opener.reopen(entity, requested.torrent, readiness, state, &mut commands);
        }
        // A second stop joins the first, and leaves it the time that it has, unless the program ends.
        if is_running {
            if stops.is_shutdown(entity) {
                participants.shorten(entity, clock.now() + millis(settings.lifecycle.save_timeout_ms));
            }
            continue;
        }
        changed.add(entity);
        wakeup.at(clock.now());
        stops.torrents.push(entity);
        let phase = StopPhase::HaltDownloads;
        let turn = stops.turn(entity, phase);
        let limit = limit(phase, ending, stops.is_shutdown(entity), &settings.lifecycle);
        participants.begin(turn, phase, clock.now(), limit);
        commands.entity(entity).insert(Stopping { phase });
    }
}

/// Returns the time limit of a phase. `is_shutdown` says whether the program ends after the stop.
fn limit(phase: StopPhase, ending: Ending, is_shutdown: bool, settings: &LifecycleSettings) -> Duration {
    let may_take_long = match ending {
        Ending::Pause => true,
        Ending::Save {
            until_resumed: is_users,
        } => is_users,
        Ending::Forget { delete_data } => delete_data,
        Ending::Refuse => false,
    };
    if phase == StopPhase::WriteSession && may_take_long && !is_shutdown {
        return millis(settings.user_save_timeout_ms);
    }
    millis(match phase {
        StopPhase::HaltDownloads => settings.halt_timeout_ms,
        StopPhase::DisconnectPeers => settings.disconnect_timeout_ms,
        StopPhase::AnnounceStopped => settings.announce_timeout_ms,
        StopPhase::WriteSession => settings.save_timeout_ms,
        StopPhase::Release => settings.release_timeout_ms,
    })
}

/// Parameters that the phases of a stop need.
#[derive(SystemParam)]
pub(super) struct StopParams<'w, 's> {
    commands: Commands<'w, 's>,
    clock: Res<'w, Clock>,
    settings: Res<'w, Settings>,
    participants: ResMut<'w, StopParticipants>,
    index: ResMut<'w, TorrentIndex>,
    stopped: MessageWriter<'w, TorrentStopped>,
    changed: ResMut<'w, ChangedFacts>,
    adds: ResMut<'w, Adds>,
    starts: ResMut<'w, Starts>,
    registry: ResMut<'w, FileRegistry>,
    opener: Opener<'w>,
    retries: ResMut<'w, Deadlines<Retry>>,
    moves: ResMut<'w, Moves>,
}

/// A torrent that is being stopped.
#[derive(QueryData)]
#[query_data(mutable)]
pub(super) struct StoppingTorrent {
    entity: Entity,
    torrent: &'static Torrent,
    known: Option<(&'static Content, &'static Have)>,
    desired: &'static mut Desired,
    readiness: &'static mut Readiness,
    fault: &'static mut Fault,
    blocked: &'static mut Blocked,
    state: &'static mut SessionState,
    stopping: &'static mut Stopping,
    is_listed_to_remove: Has<ListedToRemove>,
}

/// Progress of a stop in one tick.
enum Step {
    /// The running phase goes on; the earliest deadline of its participants.
    Wait(Timestamp),
    /// The running phase is over, and this one begins.
    Begin(StopPhase),
    /// The stop is over.
    End,
}

/// Advances the stops whose running phase is over.
pub(super) fn advance_stops(
    wakeup: Res<Wakeup>,
    mut stops: ResMut<StopsInOrder>,
    mut params: StopParams,
    mut torrents: Query<StoppingTorrent>,
) {
    if stops.torrents.is_empty() && stops.all.is_empty() {
        return;
    }
    let now = params.clock.now();
    for torrent in std::mem::take(&mut stops.torrents) {
        let step = match torrents.get_mut(torrent) {
            Ok(mut stopped) => params.advance(&mut stopped, &mut stops),
            Err(_) => Step::Wait(now),
        };
        // After an ended phase, the participants of the next one, or an add of the same torrent, wait for a tick.
        wakeup.at(match step {
            Step::Wait(next) => next,
            Step::Begin(_) | Step::End => now,
        });
        if let Step::Begin(phase) = step {
            params.begin(torrent, phase, &mut stops);
        }
        if !matches!(step, Step::End) {
            stops.torrents.push(torrent);
        }
    }
    if stops.torrents.is_empty() && stops.wanted.is_empty() {
        let result = stops.first_error.take().map_or(Ok(()), Err);
        stops.all.drain(..).for_each(|reply| reply.send(result.clone()));
    }
}

impl StopParams<'_, '_> {
    /// Begins a phase of a stop.
    fn begin(&mut self, torrent: Entity, phase: StopPhase, stops: &mut StopsInOrder) {
        let turn = stops.turn(torrent, phase);
        let limit = limit(phase, turn.ending, stops.is_shutdown(torrent), &self.settings.lifecycle);
        self.participants.begin(turn, phase, self.clock.now(), limit);
    }

    /// Ends the running phase of a stop if all of its participants have reported or are late.
    fn advance(&mut self, stopped: &mut StoppingTorrentItem<'_, '_>, stops: &mut StopsInOrder) -> Step {
        let label = stopped.torrent.label();
        let result = match self.participants.poll(stopped.entity, label, self.clock.now()) {
            Ok(result) => result,
            Err(next) => return Step::Wait(next),
        };
        match stopped.stopping.phase {
            StopPhase::WriteSession => self.end_session(stopped, stops, result),
            StopPhase::Release => self.end(stopped, stops),
            phase => self.enter(stopped, phase.next()),
        }
    }

    /// Shows the next phase of a stop.
    fn enter(&mut self, stopped: &mut StoppingTorrentItem<'_, '_>, next: Option<StopPhase>) -> Step {
        let Some(phase) = next else { return Step::End };
        tracing::debug!(torrent = %stopped.torrent.label(), ?phase, "stopping");
        stopped.stopping.phase = phase;
        self.changed.add(stopped.entity);
        Step::Begin(phase)
    }

    /// Handles a session that was written or deleted, or could not be.
    fn end_session(
        &mut self,
        stopped: &mut StoppingTorrentItem<'_, '_>,
        stops: &mut StopsInOrder,
        result: Result<Removed, Arc<str>>,
    ) -> Step {
        let torrent = stopped.entity;
        let waiters = stops.waiters.entry(torrent).or_default();
        let ending = waiters.ending();
        if waiters.written_as != Some(ending) {
            // A different ending was requested meanwhile: the session is written again to match it, or deleted.
            return Step::Begin(StopPhase::WriteSession);
        }
        let (Err(reason), Ending::Save { .. } | Ending::Pause) = (&result, ending) else {
            waiters.result = Some(result);
            return self.enter(stopped, StopPhase::WriteSession.next());
        };
        let waiters = stops.waiters.remove(&torrent).unwrap_or_default();
        if ending != Ending::Pause {
            let error = StopError(Unsaved::new(&stopped.torrent.name, reason));
            stops.first_error.get_or_insert(error);
        }
        if waiters.is_move {
            stopped.state.drop_unsaved_move();
        }
        self.keep_failed(stopped, reason, ending);
        self.answer(stopped, waiters, ending, &result);
        Step::End
    }

    /// Handles closed files: the torrent is gone or paused.
    fn end(&mut self, stopped: &mut StoppingTorrentItem<'_, '_>, stops: &mut StopsInOrder) -> Step {
        let torrent = stopped.entity;
        let mut waiters = stops.waiters.remove(&torrent).unwrap_or_default();
        let ending = waiters.ending();
        if let (Some(written @ Ending::Save { .. }), Ending::Save { .. }) = (waiters.written_as, ending)
            && written != ending
        {
            // A user's stop has joined the stop of all torrents: it is saved before it is answered.
            stops.waiters.insert(torrent, waiters);
            stopped.state.record_closed();
            return self.enter(stopped, Some(StopPhase::WriteSession));
        }
        let result = waiters.result.take().unwrap_or_else(|| Ok(Removed::default()));
        if waiters.written_as.take() == Some(Ending::Pause) {
            match ending == Ending::Pause && (waiters.is_recheck() || waiters.is_move) {
                true => self.open_again(stopped),
                false => {
                    self.keep_paused(stopped);
                    self.moves.interrupt(torrent, &stopped.torrent.name);
                }
            }
            waiters.is_move = false;
            waiters.answer_pauses(&Ok(()));
            waiters.answer_rechecks(&Ok(()));
            self.adds.end(torrent, Ok(stopped.torrent.id()));
            // A stop or removal that was requested in the last phase begins in the next tick.
            if ending != Ending::Pause {
                stops.waiters.insert(torrent, waiters);
                stops.wanted.push(torrent);
            }
            return Step::End;
        }
        if let (Ending::Forget { .. }, true, Err(reason)) = (ending, stopped.state.is_kept(), &result) {
            self.keep_removed(stopped, waiters, reason);
            return Step::End;
        }
        self.despawn(stopped, ending);
        self.answer(stopped, waiters, ending, &result);
        Step::End
    }

    /// Keeps a torrent that was to be removed with its data, while the volume of the data is not mounted. A running
    /// torrent waits for the volume; a paused one stays paused, and a stopped one, or one that was not listed before,
    /// leaves the list.
    fn keep_removed(&mut self, stopped: &mut StoppingTorrentItem<'_, '_>, waiters: Waiters, reason: &Arc<str>) {
        let (torrent, id) = (stopped.entity, stopped.torrent.id());
        tracing::warn!(torrent = %stopped.torrent.label(), "not removed: {reason}");
        stopped.state.record_kept();
        self.adds.end(torrent, Ok(id));
        let unsaved = Unsaved::new(&stopped.torrent.name, reason);
        self.starts.answer(torrent, &Err(StartTorrentError::Unsaved(unsaved)));
        self.moves.interrupt(torrent, &stopped.torrent.name);
        waiters.answer_kept(stopped.torrent, reason);
        if stopped.is_listed_to_remove || stopped.state.was_stopped() {
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
            self.retries.set(self.clock.now() + wait, Retry::scheduled(torrent));
            self.commands.entity(torrent).remove::<(Stopping, Moving)>();
            self.changed.add(torrent);
        }
    }

    /// Answers the callers that wait for the end of a torrent, and those that wait for it to be added or started.
    fn answer(
        &mut self,
        stopped: &StoppingTorrentItem<'_, '_>,
        waiters: Waiters,
        ending: Ending,
        result: &Result<Removed, Arc<str>>,
    ) {
        let (name, not_found) = (&stopped.torrent.name, TorrentNotFound(stopped.torrent.id()));
        let (added, started) = match (ending, result) {
            (Ending::Save { .. } | Ending::Pause, Ok(_)) => (Ok(stopped.torrent.id()), Err(not_found.into())),
            // The torrent stays listed.
            (Ending::Save { .. } | Ending::Pause, Err(reason)) => {
                let unsaved = Unsaved::new(name, reason);
                let started = StartTorrentError::Unsaved(unsaved.clone());
                (Err(AddError::Unsaved(unsaved)), Err(started))
            }
            (Ending::Forget { .. } | Ending::Refuse, _) => {
                let torrent = name.clone();
                (Err(AddError::Removed { torrent }), Err(not_found.into()))
            }
        };
        let moved = match (ending, result) {
            (Ending::Save { .. } | Ending::Pause, Ok(_)) => MoveError::Interrupted(name.clone()),
            (Ending::Save { .. } | Ending::Pause, Err(reason)) => MoveError::Unsaved(Unsaved::new(name, reason)),
            (Ending::Forget { .. } | Ending::Refuse, _) => not_found.into(),
        };
        self.moves.answer(stopped.entity, Err(moved));
        self.adds.end(stopped.entity, added);
        self.starts.answer(stopped.entity, &started);
        waiters.answer(stopped.torrent, result);
    }

    fn despawn(&mut self, stopped: &StoppingTorrentItem<'_, '_>, ending: Ending) {
        if let (Ending::Save { .. }, Some((content, have))) = (ending, stopped.known) {
            let info = &content.0.info;
            let whole = whole_files(&info.files, &info.geometry, have);
            self.registry.stop(stopped.torrent.id(), whole);
        }
        if let Ending::Save { .. } = ending {
            self.registry.set_name(stopped.torrent.id(), &stopped.torrent.name);
            if stopped.torrent.private {
                self.registry.set_private(stopped.torrent.id());
            }
        }
        self.index.remove(&stopped.torrent.hashes);
        let info_hash = stopped.torrent.id();
        let is_removed = matches!(ending, Ending::Forget { .. });
        self.stopped.write(TorrentStopped { info_hash, is_removed });
        self.commands.entity(stopped.entity).despawn();
    }

    /// Keeps a torrent whose session could not be saved, so that the user sees it and can retry.
    fn keep_failed(&mut self, stopped: &mut StoppingTorrentItem<'_, '_>, reason: &Arc<str>, ending: Ending) {
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
        self.commands.entity(stopped.entity).remove::<(Stopping, Moving)>();
        self.changed.add(stopped.entity);
    }

    /// Opens a torrent again whose files were closed to check all data or to be moved. If it was paused, it is paused
    /// after that.
    fn open_again(&mut self, stopped: &mut StoppingTorrentItem<'_, '_>) {
        self.keep_paused(stopped);
        *stopped.desired = Desired::Run;
        let (readiness, state) = (&mut *stopped.readiness, &mut *stopped.state);
        self.opener
            .reopen(stopped.entity, stopped.torrent, readiness, state, &mut self.commands);
    }

    /// Keeps a torrent whose pause is over. The next start examines everything again, so no fault is left.
    fn keep_paused(&mut self, stopped: &mut StoppingTorrentItem<'_, '_>) {
        *stopped.desired = Desired::Pause;
        *stopped.readiness = Readiness::Closed;
        (stopped.fault.0, stopped.blocked.0) = (None, None);
        stopped.state.record_closed();
        self.commands
            .entity(stopped.entity)
            .remove::<(Stopping, Opening, Restarts, Moving)>();
        self.changed.add(stopped.entity);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A user waits for the result of a command that takes long. The end of the program does not.
    #[test]
    fn only_the_end_of_the_program_shortens_a_save() {
        let settings = LifecycleSettings::default();
        let time = |ending, is_shutdown| limit(StopPhase::WriteSession, ending, is_shutdown, &settings);
        for ending in [
            Ending::Pause,
            Ending::Save { until_resumed: true },
            Ending::Forget { delete_data: true },
        ] {
            assert_eq!(time(ending, false), millis(settings.user_save_timeout_ms), "{ending:?}");
            assert_eq!(time(ending, true), millis(settings.save_timeout_ms), "{ending:?}");
        }
        let at_the_end = Ending::Save { until_resumed: false };
        assert_eq!(time(at_the_end, true), millis(settings.save_timeout_ms));
    }
}
