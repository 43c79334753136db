//! Moves a torrent's files to another place, see `ports/disk/moving.rs`.

mod copying;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ecs_torrent_components::ids::StorageId;
use rustix::fs::{CWD, Mode, OFlags, fsync};

use self::copying::Copying;
use super::deleting::{folders_of, is_something_else};
use super::files::{Files, LookFor, Result, SharedFiles};
use super::storage::CloseReport;
use crate::backends::beneath::{self, Parent, Status};
use crate::port::JobTag;
use crate::ports::disk::{
    DeletedFiles, DiskAction, DiskDone, DiskError, DiskEvent, FileMove, FolderIds, FoundFile, FoundFiles, KeptReason,
    MoveProgress, MoveStep, Provenance, Refusal,
};

/// Time after which a step lets other jobs of the disk have their turn.
const TURN: Duration = Duration::from_millis(50);

/// A step of a move, carried out in turns.
pub(super) struct Mover {
    tag: JobTag,
    step: MoveStep,
    from: Files,
    to: Files,
    state: Mutex<State>,
    is_closed: AtomicBool,
    /// Dropped last, after every handle to the files.
    report: Mutex<Option<CloseReport>>,
}

/// Progress of a step.
#[derive(Default)]
struct State {
    /// The step that this one replaces. It has to end its turn first.
    before: Option<Arc<Mover>>,
    /// The files that are to be created, once they are known.
    plan: Option<Vec<usize>>,
    next: usize,
    /// Whether the step knows which files have the suffix of incomplete files.
    has_names: bool,
    copying: Option<Copying>,
    progress: MoveProgress,
}

/// The end of a turn.
pub(super) enum Turn {
    /// The step has ended.
    Ended(DiskEvent),
    /// Another turn is needed; the progress.
    More(DiskEvent),
    /// The storage was closed: nothing is done any more.
    Closed,
}

/// How the files at both places of a move are related.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    /// One file with two names.
    Linked,
    /// One name of one file, reached by two paths.
    SameName,
    /// Two files.
    Different,
}

impl Mover {
    pub(super) fn new(
        (tag, storage): (JobTag, StorageId),
        moving: FileMove,
        step: MoveStep,
        shared: &Arc<SharedFiles>,
        before: Option<Arc<Self>>,
    ) -> Self {
        let FileMove {
            from,
            to,
            claims,
            needs,
        } = moving;
        let needs = needs.as_deref();
        let marks_only = crate::ports::disk::FileClaims {
            key: claims.key,
            part_suffix: claims.part_suffix,
            ..Default::default()
        };
        let from = Files::new(storage, &from.root, from.volume, from.files, shared.clone());
        let to = Files::new(storage, &to.root, to.volume, to.files, shared.clone());
        Self {
            tag,
            step,
            from: from.with_claims(claims).with_needs(needs),
            to: to.with_claims(marks_only).with_needs(needs),
            state: Mutex::new(State {
                before,
                ..State::default()
            }),
            is_closed: AtomicBool::new(false),
            report: Mutex::default(),
        }
    }

    /// Ends the step where it is. `report` reports when every handle is closed.
    pub(super) fn close(&self, report: Option<CloseReport>) {
        self.is_closed.store(true, Ordering::Relaxed);
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = report;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out a part of the step.
    pub(super) fn advance(&self) -> Turn {
        let mut state = self.lock();
        if let Some(before) = state.before.take() {
            before.is_closed.store(true, Ordering::Relaxed);
            drop(before.lock());
        }
        if self.is_closed.load(Ordering::Relaxed) {
            return Turn::Closed;
        }
        let done = catch_unwind(AssertUnwindSafe(|| {
            if !std::mem::replace(&mut state.has_names, true) {
                self.find_suffixes()?;
            }
            self.carry_out(&mut state)
        }));
        let outcome = done.unwrap_or_else(|_| {
            let error = io::Error::other("the disk job panicked");
            Err(DiskError::new(DiskAction::Use, self.from.root().to_path_buf(), error))
        });
        match outcome {
            Ok(None) => Turn::More(self.event(Ok(DiskDone::Moving(state.progress)))),
            Ok(Some(done)) => Turn::Ended(self.event(Ok(done))),
            Err(error) => Turn::Ended(self.event(Err(error))),
        }
    }

    fn carry_out(&self, state: &mut State) -> Result<Option<DiskDone>> {
        match self.step {
            MoveStep::Check => self.plan(&mut state.progress).and_then(|_| self.found().map(Some)),
            MoveStep::Copy => self.copy(state),
            MoveStep::Undo => self.undo().map(|()| Some(DiskDone::Deleted(DeletedFiles::default()))),
            MoveStep::DeleteOld => self.delete_old().map(|files| Some(DiskDone::Deleted(files))),
        }
    }

    /// Finds out which files have the suffix of incomplete files. Files that are not at the new place yet get the names
    /// there that they have at the old place. Files that the user has moved have their names at the new place.
    fn find_suffixes(&self) -> Result<()> {
        let (Some(old), Some(new)) = (&self.from.names, &self.to.names) else {
            return Ok(());
        };
        let (from, to) = (self.from.existing_folder()?, self.to.existing_folder()?);
        for index in 0..self.from.entries().len() {
            if new.with_suffix(&self.to.table, index).is_none() {
                continue;
            }
            if let Some(root) = &from {
                self.from.find_suffix(root.as_fd(), index, LookFor::Moved);
            }
            let is_missing = || Ok(self.from.find_moved(from.as_deref(), index)?.is_none());
            match &to {
                Some(root) if matches!(self.step, MoveStep::Undo | MoveStep::DeleteOld) => {
                    self.to.find_suffix(root.as_fd(), index, LookFor::Marked);
                }
                Some(root) if is_missing()? => self.to.find_suffix(root.as_fd(), index, LookFor::Any),
                _ => new.set(&self.to.table, index, old.current(index).is_some()),
            }
        }
        Ok(())
    }

    fn event(&self, outcome: Result<DiskDone>) -> DiskEvent {
        DiskEvent {
            tag: self.tag,
            outcome,
            blocks: Vec::new(),
        }
    }

    /// Brings files to the new place until the turn is over. Deletes them there again after an error.
    fn copy(&self, state: &mut State) -> Result<Option<DiskDone>> {
        let result = self.copy_for_a_turn(state);
        if result.is_err() {
            state.copying = None;
            if let Err(error) = self.undo() {
                tracing::warn!("files of a move that failed are left: {error}");
            }
        }
        result
    }

    fn copy_for_a_turn(&self, state: &mut State) -> Result<Option<DiskDone>> {
        let until = Instant::now() + TURN;
        if state.plan.is_none() {
            let plan = self.plan(&mut state.progress)?;
            state.plan = Some(plan);
        }
        loop {
            if Instant::now() >= until || self.is_closed.load(Ordering::Relaxed) {
                return Ok(None);
            }
            if let Some(copying) = &mut state.copying {
                let copied = copying.copy_some(&self.from, &self.to)?;
                state.progress.moved += copied;
                if copying.is_done() {
                    copying.finish(&self.from, &self.to)?;
                    state.copying = None;
                }
                continue;
            }
            let Some(index) = state.plan.as_ref().and_then(|plan| plan.get(state.next)).copied() else {
                return self.finish().map(Some);
            };
            state.next += 1;
            state.copying = self.begin_file(index, &mut state.progress)?;
        }
    }

    /// Returns the indexes of all files, and of the part file.
    fn indexes(&self) -> impl Iterator<Item = usize> + '_ {
        let stored = self.from.entries().iter().enumerate();
        let stored = stored.filter(|(_, entry)| entry.is_stored()).map(|(index, _)| index);
        stored.chain(self.from.parts().map(|parts| parts.index))
    }

    /// Returns the files that have to be created at the new place. Refuses the move if one of them would replace a file
    /// that is not the torrent's.
    fn plan(&self, progress: &mut MoveProgress) -> Result<Vec<usize>> {
        self.from.find_volume()?;
        self.to.find_volume()?;
        let (from, to) = (self.from.existing_folder()?, self.to.existing_folder()?);
        let mut plan = Vec::new();
        for index in self.indexes() {
            let source = self.from.find_moved(from.as_deref(), index)?;
            let target = self.to.find_moved(to.as_deref(), index)?;
            let Some((source, status)) = source else {
                match target {
                    Some((file, status)) if !self.to.is_marked(Some(index), &file, &status) => {
                        return Err(self.taken(index));
                    }
                    _ => continue,
                }
            };
            let relation = match &target {
                Some((_, found)) => Some(self.relation(index, &status, found)?),
                None => None,
            };
            let is_own = self.is_own(index, &source, &status, relation);
            if !is_own && self.is_skipped(index) {
                continue;
            }
            progress.size += status.stamp.len;
            let is_there = match (relation, &target) {
                (Some(Relation::Linked | Relation::SameName), _) => true,
                (Some(Relation::Different), Some((file, found))) => {
                    if !self.to.is_marked(Some(index), file, found) {
                        return Err(self.taken(index));
                    }
                    // The copy gets the time of the original when it is complete and durable.
                    found.stamp.has_same_data_as(&status.stamp)
                }
                _ => false,
            };
            match is_there {
                true => progress.moved += status.stamp.len,
                false => plan.push(index),
            }
        }
        Ok(plan)
    }

    /// Whether the user does not want a file.
    fn is_skipped(&self, index: usize) -> bool {
        let parts = self.from.parts();
        parts.is_some_and(|parts| index != parts.index && parts.skipped.contains(index as u32))
    }

    fn taken(&self, index: usize) -> DiskError {
        let path = self.to.path(self.to.entry(index));
        DiskError::new(DiskAction::Create, path, Refusal::Taken.into())
    }

    /// Whether a file at the old place is the torrent's alone, apart from a second name at the new place.
    fn is_own(&self, index: usize, file: &OwnedFd, status: &Status, relation: Option<Relation>) -> bool {
        let links = if relation == Some(Relation::Linked) { 2 } else { 1 };
        let is_marked = || self.from.is_marked(Some(index), file, status);
        status.link_count == links && self.from.claims.is_own(index, (status.id, status.stamp), is_marked)
    }

    /// Returns how two existing files are related. A file that may be reached by two paths over two mounts is an error.
    fn relation(&self, index: usize, source: &Status, target: &Status) -> Result<Relation> {
        if source.id == target.id {
            let is_one_name = source.link_count < 2 || self.is_one_name(index)?;
            return Ok(if is_one_name {
                Relation::SameName
            } else {
                Relation::Linked
            });
        }
        let may_be_same = (source.id.inode, source.id.born_ns) == (target.id.inode, target.id.born_ns)
            && (source.id.born_ns.is_some() || source.stamp.has_same_data_as(&target.stamp));
        match may_be_same {
            true => Err(self.taken(index)),
            false => Ok(Relation::Different),
        }
    }

    /// Whether both paths of a file are the same name in the same folder.
    fn is_one_name(&self, index: usize) -> Result<bool> {
        let parent = |files: &Files| {
            let path = &files.entry(index).path;
            let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
            let root = files.folder()?;
            let status = beneath::open_folder_below(root.as_fd(), folder).and_then(Status::of);
            let status =
                status.map_err(|error| DiskError::new(DiskAction::Open, files.path(files.entry(index)), error))?;
            Ok((status.id, name.to_lowercase()))
        };
        Ok(parent(&self.from)? == parent(&self.to)?)
    }

    /// Gives a file its name at the new place, or begins to copy it there.
    fn begin_file(&self, index: usize, progress: &mut MoveProgress) -> Result<Option<Copying>> {
        let (source, status) = self.from.open(index, false)?;
        let root = self.to.created_folder()?;
        let mut parent = Parent::new(root.as_fd());
        let entry = self.to.entry(index);
        if let Some((file, found)) = self.to.find_moved(Some(&*root), index)? {
            let is_copy = self.to.is_marked(Some(index), &file, &found)
                && self.relation(index, &status, &found)? == Relation::Different;
            if !is_copy {
                return Err(self.taken(index));
            }
            // An earlier copy that was interrupted.
            let failed = |error| DiskError::new(DiskAction::Delete, self.to.path(entry), error);
            beneath::unlink(root.as_fd(), &entry.path).map_err(failed)?;
        }
        let in_the_way = |error: DiskError| match error.error.kind() {
            io::ErrorKind::AlreadyExists => self.taken(index),
            _ => error,
        };
        if self.is_own(index, &source, &status, None) {
            let linked = self
                .to
                .make(&mut parent, index, |parent, path| beneath::link(&source, parent, path));
            match linked {
                Ok(()) => {
                    progress.moved += status.stamp.len;
                    return Ok(None);
                }
                Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => return Err(self.taken(index)),
                // Another file system, or one without links.
                Err(_) => {}
            }
        }
        let (target, _) = self.to.create(&mut parent, index).map_err(in_the_way)?;
        Copying::begin(index, (source, status), target, &self.to).map(Some)
    }

    /// Makes the new names durable, and returns the files.
    fn finish(&self) -> Result<DiskDone> {
        if let Some(root) = self.to.existing_folder()? {
            let folders = self.indexes().flat_map(|index| folders_of(&self.to.entry(index).path));
            let folders: BTreeSet<&str> = folders.chain(["."]).collect();
            for folder in folders {
                let failed = |error| DiskError::new(DiskAction::Sync, self.to.root().join(folder), error);
                match beneath::sync_folder(root.as_fd(), folder) {
                    // No file of the folder exists.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    result => result.map_err(failed)?,
                }
            }
        }
        // The download folder itself may be new. Folders above it that may not be read cannot be.
        for folder in self.to.root().ancestors().skip(1) {
            let opened = rustix::fs::openat(CWD, folder, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            let _ = opened.and_then(fsync);
        }
        self.found()
    }

    /// Returns the files at the new place.
    fn found(&self) -> Result<DiskDone> {
        let mut files = vec![None; self.to.entries().len()];
        files.extend(self.to.parts().map(|_| None));
        let (from, to) = (self.from.existing_folder()?, self.to.existing_folder()?);
        for index in self.indexes() {
            let Some((_, status)) = self.to.find_moved(to.as_deref(), index)? else {
                continue;
            };
            let source = self.from.find_moved(from.as_deref(), index)?;
            let relation = match &source {
                Some((_, source)) => Some(self.relation(index, source, &status)?),
                None => None,
            };
            // A user's file that is reached by another path stays the user's.
            let is_own = relation != Some(Relation::SameName)
                || source.is_some_and(|(source, status)| self.is_own(index, &source, &status, relation));
            if !is_own && self.is_skipped(index) {
                continue;
            }
            files[index] = Some(FoundFile {
                stamp: self.to.believable(status).stamp,
                id: status.id,
                provenance: if is_own { Provenance::Created } else { Provenance::Found },
            });
        }
        let below = to.map_or_else(BTreeMap::new, |root| self.to.folders_below(root.as_fd()));
        Ok(DiskDone::Moved(Box::new(FoundFiles {
            root: self.to.root(),
            volume: self.to.find_volume()?,
            folders: FolderIds {
                above: self.to.root.folders_above(),
                below,
            },
            files,
        })))
    }

    /// Deletes at the new place what the move brought there, as far as the old place has it too.
    fn undo(&self) -> Result<()> {
        self.to.find_volume()?;
        self.from.find_volume()?;
        let (from, to) = (self.from.existing_folder()?, self.to.existing_folder()?);
        let Some(root) = &to else { return Ok(()) };
        let mut folders = BTreeSet::new();
        for index in self.indexes() {
            let entry = self.to.entry(index);
            folders.extend(folders_of(&entry.path));
            let source = self.from.find_moved(from.as_deref(), index);
            let target = self.to.find_moved(to.as_deref(), index);
            let (Ok(Some((_, source))), Ok(Some((file, status)))) = (source, target) else {
                continue;
            };
            let is_brought = match self.relation(index, &source, &status) {
                Ok(Relation::Linked) => true,
                Ok(Relation::Different) => self.to.is_marked(Some(index), &file, &status),
                _ => false,
            };
            if is_brought {
                let failed = |error| DiskError::new(DiskAction::Delete, self.to.path(entry), error);
                beneath::unlink(root.as_fd(), &entry.path).map_err(failed)?;
            }
        }
        self.to.remove_folders(root, folders);
        Ok(())
    }

    /// Deletes the torrent's files at the old place, as far as the new place has them too.
    fn delete_old(&self) -> Result<DeletedFiles> {
        self.from.find_volume()?;
        self.to.find_volume()?;
        let mut report = DeletedFiles::default();
        let (from, to) = (self.from.existing_folder()?, self.to.existing_folder()?);
        let Some(root) = &from else { return Ok(report) };
        let mut folders = BTreeSet::new();
        for index in self.indexes() {
            let entry = self.from.entry(index);
            folders.extend(folders_of(&entry.path));
            let Ok(Some((file, status))) = self.from.find_moved(from.as_deref(), index) else {
                continue;
            };
            // The only copy is never deleted.
            let Ok(Some((_, moved))) = self.to.find_moved(to.as_deref(), index) else {
                continue;
            };
            let Ok(relation @ (Relation::Linked | Relation::Different)) = self.relation(index, &status, &moved) else {
                continue;
            };
            if relation == Relation::Different {
                let reason = match self.is_own(index, &file, &status, None) {
                    true if moved.stamp.len == status.stamp.len => None,
                    true => Some(KeptReason::Replaced),
                    false if status.link_count > 1 => Some(KeptReason::HardLinked),
                    false => Some(KeptReason::Found),
                };
                if let Some(reason) = reason {
                    report.kept.push((index, reason));
                    continue;
                }
            }
            let failed = |error| DiskError::new(DiskAction::Delete, self.from.path(entry), error);
            beneath::unlink(root.as_fd(), &entry.path).map_err(failed)?;
            report.deleted.push(index);
        }
        self.from.remove_folders(root, folders);
        Ok(report)
    }
}

impl Files {
    /// Returns the download folder, if it exists.
    fn existing_folder(&self) -> Result<Option<Arc<OwnedFd>>> {
        match self.folder() {
            Ok(folder) => Ok(Some(folder)),
            Err(error) if error.is_absence() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens a file, if it exists. Anything but a regular file is not the torrent's.
    fn find_moved(&self, root: Option<&OwnedFd>, index: usize) -> Result<Option<(OwnedFd, Status)>> {
        let Some(root) = root else { return Ok(None) };
        match self.open_below(root, index, false) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_absence() => Ok(None),
            Err(error) if is_something_else(&error.error) => {
                let path = self.path(self.entry(index));
                Err(DiskError::new(DiskAction::Create, path, Refusal::Taken.into()))
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
