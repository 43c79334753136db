//! Moves of a torrent's files to another download folder, or to other names.
//!
//! A move is a part of opening a torrent. The disk first checks that nothing is in the way. Then the torrent goes
//! through the phases of a pause, in which its session records the move, and is opened again. While the session has a
//! move, the opening continues it before it opens the files: the disk brings the files to the new place; the session
//! names the new place; when that is durable, the disk deletes the old files. A pause, a stop or a kill leaves the
//! record, and the next opening continues from it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::commands::{
    CommandQueue, KeptFile, MAX_REMOVED_NAMES, MoveError, MoveTorrent, MovedFiles, PauseOrStart, Reply, TorrentNotFound,
};
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_components::lifecycle::{Desired, Moving};
use ecs_torrent_components::messages::{FailTorrent, FilesPlaced};
use ecs_torrent_components::names::NewNames;
use ecs_torrent_components::session::MoveStage;
use ecs_torrent_components::torrent::{Content, Have, Lifecycle, Storage, Torrent};
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::DiskPort;
use ecs_torrent_engine::ports::disk::{
    DeletedFiles, DiskDone, DiskError, DiskRequest, FileMove, FileNeeds, FoundFiles, MovePlace, MoveStep, Volume,
};
use ecs_torrent_engine::purpose;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::files::FileTable;

use super::opening::Opener;
use super::opening::loading::{Pauses, Resumed, ResumedItem};
use super::stop_requests::StopsInOrder;
use crate::ownership::{FileRegistry, FolderKeys, whole_files};
use crate::sessions::{SaveTorrent, SessionState, SessionWritten};
use crate::storage::fault;

const CHECK: Purpose = purpose!("check a move of files");
const FIND: Purpose = purpose!("find relocated files");
const MOVE: Purpose = purpose!("move files");
pub(super) const PURPOSES: [Purpose; 3] = [CHECK, FIND, MOVE];

type MoveReply = Reply<Result<MovedFiles, MoveError>>;

/// Returns whether the disk has reported about moves.
pub(super) fn has_events(disk: &DiskPort) -> bool {
    PURPOSES.into_iter().any(|purpose| disk.has_events_for(purpose))
}

/// The callers that wait for moves.
#[derive(Resource, Debug, Default)]
pub(super) struct Moves {
    /// Moves that the disk checks before they begin, each with the storage of the check.
    checks: EntityHashMap<(StorageId, MoveTorrent)>,
    running: EntityHashMap<RunningMove>,
}

/// The caller of a move that has begun.
#[derive(Debug)]
struct RunningMove {
    reply: MoveReply,
    /// A relocation ends when the session is durable, a move when the old files are deleted.
    is_relocation: bool,
}

impl Moves {
    /// Whether the disk checks a move of a torrent's files.
    pub(super) fn is_checking(&self, torrent: Entity) -> bool {
        self.checks.contains_key(&torrent)
    }

    /// Lets the disk check whether the files of a torrent can be moved.
    pub(super) fn check(&mut self, torrent: Entity, command: MoveTorrent, moving: FileMove, opener: &mut Opener) {
        let storage = opener.next_storage();
        opener.disk.push(DiskRequest::Move {
            tag: tag(CHECK, torrent, storage),
            storage,
            moving: Box::new(moving),
            step: MoveStep::Check,
        });
        self.checks.insert(torrent, (storage, command));
    }

    /// Lets the disk look for the files in another folder, where the user says they are.
    pub(super) fn find(&mut self, torrent: Entity, command: MoveTorrent, moving: FileMove, opener: &mut Opener) {
        let storage = opener.next_storage();
        opener.disk.push(DiskRequest::Open {
            tag: tag(FIND, torrent, storage),
            storage,
            root: moving.to.root,
            volume: None,
            files: moving.to.files,
            claims: moving.claims,
            needs: moving.needs,
        });
        self.checks.insert(torrent, (storage, command));
    }

    /// Adds the caller that waits for a move to end.
    pub(super) fn add(&mut self, torrent: Entity, reply: MoveReply, is_relocation: bool) {
        self.running.insert(torrent, RunningMove { reply, is_relocation });
    }

    /// Takes the move whose check has ended, unless another check was begun since.
    fn take_checked(&mut self, torrent: Entity, storage: StorageId) -> Option<MoveTorrent> {
        let is_current = self
            .checks
            .get(&torrent)
            .is_some_and(|(checked, _)| *checked == storage);
        is_current
            .then(|| self.checks.remove(&torrent))?
            .map(|(_, command)| command)
    }

    /// Whether a caller waits for a move of a torrent's files to end.
    pub(super) fn is_running(&self, torrent: Entity) -> bool {
        self.running.contains_key(&torrent)
    }

    fn is_relocating(&self, torrent: Entity) -> bool {
        self.running.get(&torrent).is_some_and(|running| running.is_relocation)
    }

    /// Answers the caller that waits for a move, if there is one.
    pub(super) fn answer(&mut self, torrent: Entity, result: Result<MovedFiles, MoveError>) {
        if let Some(running) = self.running.remove(&torrent) {
            running.reply.send(result);
        }
    }

    /// Answers the caller that waits for a move that does not go on now.
    pub(super) fn interrupt(&mut self, torrent: Entity, name: &Arc<str>) {
        self.answer(torrent, Err(MoveError::Interrupted(name.clone())));
    }
}

/// The answer to a step is ignored if the torrent has another storage by then.
fn tag(purpose: Purpose, torrent: Entity, storage: StorageId) -> JobTag {
    JobTag {
        number: storage.0,
        ..JobTag::new(purpose, torrent)
    }
}

/// Returns a move of a torrent's files to another folder or to other names.
pub(super) fn file_move(
    storage: &Storage,
    (root, new_files): (&Path, FileTable),
    files: &FileTable,
    state: &SessionState,
    needs: Option<Box<FileNeeds>>,
) -> FileMove {
    let session = state.loaded();
    FileMove {
        from: MovePlace {
            root: storage.root.clone(),
            volume: state.expected_volume(session),
            files: files.clone(),
        },
        to: MovePlace {
            root: root.to_owned(),
            volume: None,
            files: new_files,
        },
        claims: state.claims(session),
        needs,
    }
}

/// The parts of a torrent that decide whether its files may be moved.
#[derive(QueryData)]
#[query_data(mutable)]
pub(super) struct Checked {
    torrent: &'static Torrent,
    desired: &'static Desired,
    content: &'static Content,
    have: &'static Have,
    storage: &'static Storage,
    state: &'static mut SessionState,
}

/// Begins the moves without an obstacle, and refuses the others.
pub(super) fn collect_checked(
    mut opener: Opener,
    mut moves: ResMut<Moves>,
    mut stops: ResMut<StopsInOrder>,
    mut registry: ResMut<FileRegistry>,
    mut queue: ResMut<CommandQueue<PauseOrStart>>,
    mut torrents: Query<Checked>,
) {
    let checked: Vec<_> = opener.disk.take(CHECK).collect();
    let events: Vec<_> = checked.into_iter().chain(opener.disk.take(FIND)).collect();
    for event in events {
        let torrent = event.tag.owner;
        opener.disk.push(DiskRequest::Close {
            tag: None,
            storage: StorageId(event.tag.number),
        });
        let Some(command) = moves.take_checked(torrent, StorageId(event.tag.number)) else {
            continue;
        };
        let listed = torrents.get_mut(torrent).ok();
        let Some(mut checked) = listed.filter(|checked| !checked.desired.is_leaving()) else {
            command.reply.send(Err(TorrentNotFound(command.torrent).into()));
            continue;
        };
        let found = match event.outcome {
            Ok(DiskDone::Moved(found)) => *found,
            Ok(DiskDone::Opened(found)) => found,
            Ok(_) => {
                command
                    .reply
                    .send(Err(MoveError::Interrupted(checked.torrent.name.clone())));
                continue;
            }
            Err(error) => {
                command.reply.send(Err(refusal(&checked.torrent.name, &error)));
                continue;
            }
        };
        let files = command.names.table(&checked.content.0.info.files);
        if let Some(error) = checked.obstacle(&found, &files, command.is_there, &registry) {
            command.reply.send(Err(error));
        } else if stops.is_busy(torrent) {
            // The command is carried out together with the other one.
            queue.0.push_back(command.into());
        } else {
            let keys = FolderKeys::new(&found.root).with_folders(Some(&found.folders));
            registry.add(
                checked.torrent.id(),
                &checked.torrent.name,
                keys.of_table(&files, |_| None),
            );
            let stage = match command.is_there {
                true => MoveStage::Relocating,
                false => MoveStage::Copying,
            };
            let root = command.root.unwrap_or_else(|| checked.storage.root.clone());
            checked.state.begin_move(root, command.names, stage);
            moves.add(torrent, command.reply, command.is_there);
            stops.close_for_move(torrent);
        }
        opener.wakeup.at(opener.clock.now());
    }
}

/// Returns the reason why a torrent's files are not moved, after a failure of the disk.
fn refusal(name: &Arc<str>, error: &DiskError) -> MoveError {
    let (name, reason) = (name.clone(), error.to_string().into());
    match error.is_taken() {
        true => MoveError::FileExists { name, reason },
        false => MoveError::Failed { name, reason },
    }
}

impl CheckedItem<'_, '_> {
    /// Returns the reason why the files cannot be moved to a folder: it lies in their own, or another torrent uses
    /// files of these names. If the files `are_there` already, they have to be.
    fn obstacle(
        &self,
        found: &FoundFiles,
        new_files: &FileTable,
        are_there: bool,
        registry: &FileRegistry,
    ) -> Option<MoveError> {
        let files = self.content.0.info.files.files();
        let name = || self.torrent.name.clone();
        let root = self.state.resolved().unwrap_or(&self.storage.root);
        let own_folder = files.first().and_then(|file| file.path.split_once('/'));
        if are_there && let Some(path) = self.missing_file(found) {
            return Some(MoveError::NotThere { name: name(), path });
        }
        if !are_there && own_folder.is_some_and(|(folder, _)| found.root.starts_with(root.join(folder))) {
            return Some(MoveError::IntoItself {
                name: name(),
                root: found.root.to_path_buf(),
            });
        }
        let keys = FolderKeys::new(&found.root).with_folders(Some(&found.folders));
        new_files
            .files()
            .iter()
            .filter(|file| file.is_stored())
            .find_map(|file| {
                let id = self.torrent.id();
                let other = keys.all(&file.path).find_map(|key| registry.others(key, id).next())?;
                Some(MoveError::FilesTaken {
                    name: name(),
                    other: other.name.clone(),
                    path: file.path.clone(),
                })
            })
    }

    /// Returns a file that the torrent has and that was not found with its length. Files that were written since the
    /// last save are known by their pieces.
    fn missing_file(&self, found: &FoundFiles) -> Option<PathBuf> {
        let info = &self.content.0.info;
        let whole = whole_files(&info.files, &info.geometry, self.have);
        let known = self.state.known_lengths();
        let mut files = info.files.files().iter().zip(&found.files).enumerate();
        let missing = files.find(|(index, (file, found))| {
            let is_whole = file.has_bytes() && whole.contains(*index as u32) && !self.state.is_parted(*index, None);
            let len = Some(file.len).filter(|_| is_whole);
            let len = len.or_else(|| known.get(*index).copied().flatten());
            len.is_some_and(|len| found.is_none_or(|found| found.stamp.len != len))
        });
        missing.map(|(_, (file, _))| found.root.join(&*file.path))
    }
}

impl ResumedItem<'_, '_> {
    /// Continues the move that the session records, if there is one. The move of a torrent that is being removed is
    /// undone.
    pub(super) fn continue_move(&mut self, entity: Entity, commands: &mut Commands, opener: &mut Opener) -> bool {
        let Some(content) = &self.content else { return false };
        if *self.desired == Desired::Remove {
            self.saved.state.undo_move();
        }
        let Some(saved) = self.saved.state.moving().cloned() else {
            return false;
        };
        if saved.stage == MoveStage::Relocating {
            self.storage.root.clone_from(&saved.root);
            commands.trigger(FilesPlaced { torrent: entity });
            self.saved.state.relocate(&saved.root);
            self.opening.session = self.saved.state.loaded().cloned().map(Arc::new);
            return false;
        }
        let files = &content.0.info.files;
        let needs = self
            .saved
            .state
            .needs(self.torrent.id(), &content.0, self.choice, &Bitfield::default());
        let place = (&*saved.root, saved.names.table(files));
        let mut moving = file_move(&self.storage, place, files, &self.saved.state, needs);
        moving.to.volume = saved.volume.map(|mount_point| Volume {
            mount_point,
            id: saved.volume_id,
        });
        let step = match saved.stage {
            MoveStage::Copying => MoveStep::Copy,
            MoveStage::Undoing => MoveStep::Undo,
            MoveStage::DeletingOld | MoveStage::Relocating => {
                std::mem::swap(&mut moving.from, &mut moving.to);
                moving.claims = self.saved.state.old_claims();
                MoveStep::DeleteOld
            }
        };
        opener.disk.push(DiskRequest::Close {
            tag: None,
            storage: self.storage.id,
        });
        self.storage.id = opener.next_storage();
        let root = match step {
            MoveStep::Undo => moving.from.root.as_path().into(),
            _ => moving.to.root.as_path().into(),
        };
        opener.disk.push(DiskRequest::Move {
            tag: tag(MOVE, entity, self.storage.id),
            storage: self.storage.id,
            moving: Box::new(moving),
            step,
        });
        commands.entity(entity).insert(Moving {
            root,
            moved: 0,
            size: 0,
        });
        true
    }
}

/// Deletes the files at the old place of moves when the session that names the new one is durable.
pub(super) fn settle_switches(
    mut commands: Commands,
    mut written: MessageReader<SessionWritten>,
    mut opener: Opener,
    mut torrents: Query<(Resumed, &Lifecycle)>,
) {
    for SessionWritten { torrent, result } in written.read() {
        let Ok((mut resumed, Lifecycle::Moving)) = torrents.get_mut(*torrent) else {
            continue;
        };
        let state = &resumed.saved.state;
        let is_switched = state
            .moving()
            .is_some_and(|moving| moving.stage == MoveStage::DeletingOld);
        // A session that cannot be written is written again later: until then, the files are at both places.
        if is_switched && result.is_ok() && state.is_durable() {
            resumed.continue_move(*torrent, &mut commands, &mut opener);
        }
    }
}

/// Answers the callers of relocations and of moves without metadata, which are complete once the session is durable.
pub(super) fn settle_relocations(
    mut written: MessageReader<SessionWritten>,
    mut moves: ResMut<Moves>,
    torrents: Query<(&Torrent, &SessionState, &Storage)>,
) {
    for SessionWritten { torrent, result } in written.read() {
        let Ok((named, state, storage)) = torrents.get(*torrent) else {
            continue;
        };
        if !moves.is_relocating(*torrent) || state.moving().is_some() {
            continue;
        }
        if let Err(reason) = result {
            let (name, reason) = (named.name.clone(), reason.clone());
            moves.answer(*torrent, Err(MoveError::Failed { name, reason }));
        } else if state.is_durable() {
            let moved = MovedFiles {
                root: storage.root.clone(),
                ..MovedFiles::default()
            };
            moves.answer(*torrent, Ok(moved));
        }
    }
}

/// The effects of steps that have ended.
#[derive(SystemParam)]
pub(super) struct MoveEffects<'w, 's> {
    commands: Commands<'w, 's>,
    opener: Opener<'w>,
    moves: ResMut<'w, Moves>,
    registry: ResMut<'w, FileRegistry>,
    pauses: Pauses<'w>,
    save: MessageWriter<'w, SaveTorrent>,
    failed: MessageWriter<'w, FailTorrent>,
}

/// Collects the progress and the ends of steps.
pub(super) fn collect_moved(mut effects: MoveEffects, mut torrents: Query<(Resumed, &Lifecycle, Option<&mut Moving>)>) {
    let events: Vec<_> = effects.opener.disk.take(MOVE).collect();
    for event in events {
        let Ok((mut resumed, lifecycle, moving)) = torrents.get_mut(event.tag.owner) else {
            continue;
        };
        // A torrent that is being paused or stopped repeats the step when it is opened again.
        let is_late = lifecycle.is_stopping() && *resumed.desired != Desired::Remove;
        if event.tag.number != resumed.storage.id.0 || is_late {
            continue;
        }
        let entity = event.tag.owner;
        match event.outcome {
            Ok(DiskDone::Moving(progress)) => {
                if let Some(mut moving) = moving {
                    (moving.moved, moving.size) = (progress.moved, progress.size);
                }
            }
            Ok(DiskDone::Moved(found)) => effects.switch(entity, &mut resumed, *found),
            Ok(DiskDone::Deleted(files)) => effects.end(entity, &mut resumed, &files),
            Ok(_) => {}
            Err(error) => effects.fail(entity, &mut resumed, &error),
        }
    }
}

impl MoveEffects<'_, '_> {
    /// Lets the session name the new place.
    fn switch(&mut self, torrent: Entity, resumed: &mut ResumedItem<'_, '_>, found: FoundFiles) {
        let Some(saved) = resumed.saved.state.moving() else {
            return;
        };
        let (root, names) = (saved.root.clone(), saved.names.clone());
        let mut old_names = NewNames::default();
        if let Some(content) = &resumed.content {
            old_names = NewNames::of(&content.0.info.files, &names);
        }
        resumed.take_names(&names);
        let old_root = std::mem::replace(&mut resumed.storage.root, root.clone());
        if old_root != root {
            self.commands.trigger(FilesPlaced { torrent });
        }
        let state = &mut resumed.saved.state;
        state.switch_to_moved((&old_root, old_names), &root, found);
        self.save.write(SaveTorrent { torrent });
    }

    /// Ends a move whose last step is done.
    fn end(&mut self, torrent: Entity, resumed: &mut ResumedItem<'_, '_>, files: &DeletedFiles) {
        let moving = resumed.saved.state.moving();
        let names = moving.map(|moving| &moving.names).cloned().unwrap_or_default();
        let old = resumed
            .content
            .as_ref()
            .map(|content| names.table(&content.0.info.files));
        let path = |index: usize| old.as_ref().and_then(|old| Some(old.files().get(index)?.path.clone()));
        let kept = files
            .kept
            .iter()
            .take(MAX_REMOVED_NAMES)
            .map(|(index, reason)| KeptFile {
                path: path(*index).unwrap_or_default(),
                reason: reason.to_string().into(),
            });
        let moved = MovedFiles {
            root: resumed.storage.root.clone(),
            kept: kept.collect(),
            kept_count: files.kept.len(),
        };
        tracing::info!(torrent = %resumed.torrent.label(), "moved to {}", moved.root.display());
        self.moves.answer(torrent, Ok(moved));
        self.open(torrent, resumed);
    }

    /// Handles a step that failed. A move that could not bring the files to the new place is over; files that could not
    /// be deleted are left behind.
    fn fail(&mut self, torrent: Entity, resumed: &mut ResumedItem<'_, '_>, error: &DiskError) {
        let Some(saved) = resumed.saved.state.moving() else {
            return;
        };
        let name = &resumed.torrent.name;
        if saved.stage != MoveStage::Copying {
            tracing::warn!(torrent = %resumed.torrent.label(), "files of a move are left behind: {error}");
            self.end(torrent, resumed, &DeletedFiles::default());
            return;
        }
        if error.is_volume_gone() && error.path == resumed.storage.root {
            // The torrent waits for its volume, and then the move goes on.
            self.moves.interrupt(torrent, name);
            self.commands.entity(torrent).remove::<Moving>();
            self.failed.write(fault(torrent, error));
            return;
        }
        tracing::warn!(torrent = %resumed.torrent.label(), "not moved: {error}");
        self.moves.answer(torrent, Err(refusal(name, error)));
        self.open(torrent, resumed);
    }

    /// Opens the files where they are.
    fn open(&mut self, torrent: Entity, resumed: &mut ResumedItem<'_, '_>) {
        resumed.saved.state.end_move();
        resumed.opening.session = resumed.saved.state.loaded().cloned().map(Arc::new);
        self.commands.entity(torrent).remove::<Moving>();
        self.save.write(SaveTorrent { torrent });
        self.pauses.changed.add(torrent);
        resumed.go_on(torrent, &mut self.commands, &mut self.opener, &mut self.pauses);
        resumed.register(&mut self.registry);
    }
}
