//! Ends a session when its torrent stops: saves it or deletes it.

use std::sync::Arc;
use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_components::commands::{KeptFile, MAX_REMOVED_NAMES, Removed};
use ecs_torrent_components::torrent::{ActivePieces, Content, Partials, StopPhase, Storage};
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::disk::{DeletedFiles, DiskDone, DiskRequest};
use ecs_torrent_engine::ports::state::StateRequest;
use ecs_torrent_engine::ports::{DiskPort, StatePort};
use ecs_torrent_engine::purpose;

use super::saving::{SYNC, Saved, SavedItem, SessionWriter};
use super::spilling::{SPILL, Spiller};
use super::{Job, SessionState};
use crate::stop_participants::{Ending, StopDuty, StopParticipants, StopTurn, has_stops};

const FIND: Purpose = purpose!("find volume of data to delete");
const FORGET: Purpose = purpose!("forget session");
const DELETE: Purpose = purpose!("delete data");
/// Interval at which a torrent that waits for an answer is examined. The answer itself ends the wait in most cases; a
/// state folder that cannot be read never answers, and must not keep the engine busy until the stop's deadline.
const ANSWER_INTERVAL: Duration = Duration::from_millis(20);

/// The stop participant that writes the blocks of unfinished pieces.
pub(super) struct UnfinishedBlocks;

/// Writes the blocks of a stopping torrent's unfinished pieces, before these pieces are dropped.
pub(super) fn spill_stopped(
    mut duty: StopDuty<UnfinishedBlocks>,
    mut spilling: Local<Vec<Entity>>,
    mut disk: ResMut<DiskPort>,
    mut spiller: Spiller,
    mut torrents: Query<(&Storage, &Partials, Option<&ActivePieces>, &mut SessionState)>,
) {
    for StopTurn { torrent, ending } in duty.take() {
        if let (Ending::Save { .. } | Ending::Pause, Ok((storage, partials, Some(active), mut state))) =
            (ending, torrents.get_mut(torrent))
        {
            let count = spiller.spill(&mut disk, torrent, storage, (active, partials), true);
            state.add_spills(count);
        }
        spilling.push(torrent);
    }
    duty.finish_done(&mut spilling, |torrent| {
        torrents.get(torrent).map_or(true, |(.., state)| !state.is_spilling())
    });
}

/// Torrents that are stopped while the state folder or the disk has not answered about them.
#[derive(Resource, Debug, Default)]
pub(super) struct AwaitingAnswers(Vec<StopTurn>);

/// Returns whether a step of a save or a removal has ended, or a torrent is being stopped.
pub(super) fn has_steps(
    participants: Res<StopParticipants>,
    waiting: Res<AwaitingAnswers>,
    state: Res<StatePort>,
    disk: Res<DiskPort>,
) -> bool {
    let has_writes = || {
        [SPILL, SYNC, FIND, DELETE]
            .into_iter()
            .any(|purpose| disk.has_events_for(purpose))
    };
    has_stops(participants) || !waiting.0.is_empty() || state.has_events() || has_writes()
}

/// Ends the sessions of stopping torrents.
pub(super) fn end_sessions(
    mut writer: SessionWriter,
    mut spiller: Spiller,
    mut waiting: ResMut<AwaitingAnswers>,
    mut torrents: Query<Saved>,
) {
    let waiting = &mut waiting.0;
    waiting.extend(writer.duty.take());
    for turn in std::mem::take(waiting) {
        let StopTurn {
            torrent: entity,
            ending,
        } = turn;
        let Ok(mut saved) = torrents.get_mut(entity) else {
            continue;
        };
        // The stop took too long and is over: the torrent stays listed, and may run again by now.
        if saved
            .stopping
            .is_none_or(|stopping| stopping.phase != StopPhase::WriteSession)
        {
            continue;
        }
        // A torrent that is stopped while it is being added: the state folder will answer soon. The deletable files are
        // known once the disk has reported who owns them.
        let has_files = saved.known.is_some();
        let has_part = saved
            .known
            .is_some_and(|(_, content, _)| saved.state.has_part(&content.0.info.files));
        let deletes = match ending {
            Ending::Forget { delete_data } => delete_data || has_part,
            _ => false,
        };
        let is_unopened = deletes && has_files && !saved.state.is_opened;
        let is_moving = matches!(ending, Ending::Forget { .. }) && saved.state.moving.is_some();
        if !saved.state.is_loaded || is_unopened || is_moving {
            waiting.retain(|other| other.torrent != entity);
            waiting.push(turn);
            writer.wakeup.at(writer.clock.now() + ANSWER_INTERVAL);
            continue;
        }
        saved.state.is_last = true;
        saved.state.intent.is_stopped = ending == (Ending::Save { until_resumed: true });
        match ending {
            Ending::Refuse if saved.state.is_known() => writer.end(&mut saved, Ok(())),
            Ending::Save { .. } | Ending::Pause => writer.begin(&mut saved, &mut spiller),
            Ending::Refuse => writer.forget(&mut saved, false),
            Ending::Forget { delete_data: true } if has_files => writer.find_volume(&mut saved),
            Ending::Forget { .. } => writer.forget(&mut saved, false),
        }
    }
}

/// Collects the results of found volumes, and of deleted sessions and data.
pub(super) fn collect_forgotten(mut writer: SessionWriter, mut torrents: Query<Saved>) {
    let found: Vec<_> = writer.disk.take(FIND).collect();
    for event in found {
        let Ok(mut saved) = torrents.get_mut(event.tag.owner) else {
            continue;
        };
        if !matches!(saved.state.job, Job::FindingVolume) {
            continue;
        }
        match event.outcome {
            Err(error) if error.is_volume_gone() => writer.keep(&mut saved, error.to_string().into()),
            // The deletion reports any other fault.
            _ => writer.forget(&mut saved, true),
        }
    }
    let forgotten = writer.port.take(FORGET).map(|event| {
        let outcome = event.outcome.map(|_| None).map_err(|error| error.0);
        (event.tag.owner, outcome)
    });
    let mut steps: Vec<(Entity, Result<Option<DeletedFiles>, Arc<str>>)> = forgotten.collect();
    steps.extend(writer.disk.take(DELETE).map(|event| {
        let outcome = match event.outcome {
            Ok(DiskDone::Deleted(files)) => Ok(Some(files)),
            Ok(_) => Ok(None),
            Err(error) => Err(error.to_string().into()),
        };
        (event.tag.owner, outcome)
    }));
    for (entity, outcome) in steps {
        let Ok(mut saved) = torrents.get_mut(entity) else {
            continue;
        };
        let Job::Forgetting { left, error, removed } = &mut saved.state.job else {
            continue;
        };
        *left -= 1;
        match outcome {
            Ok(files) => {
                *removed = files.map_or(std::mem::take(removed), |files| {
                    Box::new(report(&files, saved.known.map(|(_, content, _)| content)))
                });
            }
            Err(reason) => drop(error.get_or_insert(reason)),
        }
        if *left == 0 {
            let removed = std::mem::take(removed);
            let result = error.take().map_or(Ok(()), Err);
            writer.end_with(&mut saved, result, *removed);
        }
    }
}

impl SessionWriter<'_, '_> {
    /// Requests the volume of the data to delete. Without the volume, the torrent is not forgotten, because the
    /// ownership of its data would be lost.
    fn find_volume(&mut self, saved: &mut SavedItem<'_, '_>) {
        self.disk.push(DiskRequest::FindVolume {
            tag: JobTag::new(FIND, saved.entity),
            storage: saved.storage.id,
        });
        saved.state.job = Job::FindingVolume;
        saved.state.is_kept = true;
    }

    /// Ends a removal that deletes nothing.
    fn keep(&mut self, saved: &mut SavedItem<'_, '_>, reason: Arc<str>) {
        saved.state.job = Job::None;
        saved.state.is_last = false;
        self.duty.finish_with(saved.entity, Err(reason));
    }

    /// Deletes the session, and the data if requested, and frees the files for other torrents.
    fn forget(&mut self, saved: &mut SavedItem<'_, '_>, delete_data: bool) {
        let torrent = saved.torrent.id();
        saved.state.is_kept = false;
        let has_part = saved
            .known
            .is_some_and(|(_, content, _)| saved.state.has_part(&content.0.info.files));
        let drops_part = !delete_data && has_part && saved.state.is_opened;
        if drops_part {
            self.disk.push(DiskRequest::DropParts {
                tag: JobTag::new(DELETE, saved.entity),
                storage: saved.storage.id,
            });
        }
        if delete_data {
            self.disk.push(DiskRequest::Delete {
                tag: JobTag::new(DELETE, saved.entity),
                storage: saved.storage.id,
                keep: self.registry.shared_files(torrent).into_iter().collect(),
            });
        }
        self.registry.remove(torrent);
        self.port.push(StateRequest::Remove {
            tag: JobTag::new(FORGET, saved.entity),
            torrent,
        });
        saved.state.job = Job::Forgetting {
            left: 1 + usize::from(delete_data || drops_part),
            error: None,
            removed: Box::default(),
        };
    }
}

/// Returns the names of the deleted and the kept files, up to a readable number.
fn report(files: &DeletedFiles, content: Option<&Content>) -> Removed {
    let entries = content.map(|content| content.0.info.files.files()).unwrap_or_default();
    let path = |index: usize| entries.get(index).map(|entry| entry.path.clone()).unwrap_or_default();
    let kept = files
        .kept
        .iter()
        .take(MAX_REMOVED_NAMES)
        .map(|(index, reason)| KeptFile {
            path: path(*index),
            reason: reason.to_string().into(),
        });
    Removed {
        deleted: files
            .deleted
            .iter()
            .take(MAX_REMOVED_NAMES)
            .map(|index| path(*index))
            .collect(),
        deleted_count: files.deleted.len(),
        kept: kept.collect(),
        kept_count: files.kept.len(),
    }
}

#[cfg(test)]
mod tests {
    use ecs_torrent_components::candidates::Candidates;
    use ecs_torrent_components::ids::StorageId;
    use ecs_torrent_components::lifecycle::Stopping;
    use ecs_torrent_components::torrent::Torrent;
    use ecs_torrent_engine::ports::disk::{DiskEvent, DiskRequest};
    use ecs_torrent_engine::ports::state::{StateEvent, StateRequest};

    use super::super::{OptionsGiven, SavedParts, SessionsPlugin};
    use super::*;
    use crate::testing::{Bed, content, torrent};

    fn bed() -> Bed {
        let mut bed = Bed::new((crate::ownership::OwnershipPlugin, SessionsPlugin));
        bed.open_port::<DiskRequest, DiskEvent>(Vec::new());
        bed.open_port::<StateRequest, StateEvent>(Vec::new());
        bed
    }

    /// Adds a torrent whose session is to be ended. `loaded` is `None` while its saved state is unknown, or else
    /// whether there is any.
    fn add(bed: &mut Bed, loaded: Option<bool>) -> Entity {
        let storage = Storage {
            id: StorageId(1),
            root: "/".into(),
        };
        let phase = StopPhase::WriteSession;
        let parts = (torrent(), content(), storage, Stopping { phase }, Candidates::default());
        let entity = bed.world.spawn(parts).id();
        bed.world.trigger(OptionsGiven {
            torrent: entity,
            name: None,
            overwrite: false,
            overwrite_ns: None,
            has_moved: false,
            is_paused: false,
        });
        bed.world.flush();
        if let Some(is_known) = loaded {
            let mut torrents = bed.world.query::<SavedParts>();
            let mut parts = torrents.get_mut(&mut bed.world, entity).unwrap();
            parts.record_loaded(None, None, is_known, None);
        }
        assert!(bed.world.get::<Torrent>(entity).is_some());
        entity
    }

    fn end(bed: &mut Bed, turns: &[(Entity, Ending)]) -> Vec<StopTurn> {
        let turns = turns.iter().map(|(torrent, ending)| StopTurn {
            torrent: *torrent,
            ending: *ending,
        });
        bed.world.insert_resource(AwaitingAnswers(turns.collect()));
        bed.run(end_sessions);
        std::mem::take(&mut bed.world.resource_mut::<AwaitingAnswers>().0)
    }

    /// No state of a refused torrent is kept, unless it was saved before.
    #[test]
    fn a_refused_torrent_is_forgotten_unless_it_was_known() {
        for is_known in [false, true] {
            let mut bed = bed();
            let torrent = add(&mut bed, Some(is_known));
            assert!(end(&mut bed, &[(torrent, Ending::Refuse)]).is_empty());
            let requests = bed.world.resource::<StatePort>().outgoing();
            assert_eq!(matches!(requests, [StateRequest::Remove { .. }]), !is_known);
            assert_eq!(requests.is_empty(), is_known);
        }
    }

    /// Torrents that are stopped while they are loaded end one after the other, each in the way that was requested
    /// last.
    #[test]
    fn torrents_wait_for_the_state_folder() {
        let mut bed = bed();
        let [one, two] = [add(&mut bed, None), add(&mut bed, None)];
        let save = Ending::Save { until_resumed: false };
        let turns = end(&mut bed, &[(one, save), (two, save), (one, Ending::Refuse)]);
        let turns: Vec<_> = turns.into_iter().map(|turn| (turn.torrent, turn.ending)).collect();
        assert_eq!(turns, [(two, save), (one, Ending::Refuse)]);
        assert!(bed.world.resource::<StatePort>().outgoing().is_empty());
    }

    #[test]
    fn nothing_runs_while_no_session_ends() {
        let mut bed = bed();
        let take = |mut disk: ResMut<DiskPort>| {
            [SPILL, SYNC, FIND, DELETE]
                .into_iter()
                .for_each(|purpose| disk.take(purpose).for_each(drop));
        };
        bed.run(take);
        assert!(!bed.holds(has_steps));
        let torrent = bed.torrent;
        let ending = Ending::Refuse;
        bed.world
            .resource_mut::<AwaitingAnswers>()
            .0
            .push(StopTurn { torrent, ending });
        assert!(bed.holds(has_steps));
    }
}
