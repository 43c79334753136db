//! Moves of a torrent's files on a simulated disk. The disk has no hard links, so every file is copied, as to another
//! file system. A step that is interrupted has taken effect on some of the files.

use std::path::PathBuf;
use std::sync::Arc;

use ecs_torrent_components::ids::StorageId;
use rustix::io::Errno;

use super::LookFor;
use super::file::File;
use super::storage::{DiskContext, Storage};
use crate::ports::disk::{
    self, DeletedFiles, DiskAction, DiskDone, DiskError, FileClaims, FileMove, FoundFile, FoundFiles, KeptReason,
    MoveStep, Provenance, Refusal,
};

type Result<T> = std::result::Result<T, DiskError>;

/// A step of a move, with the storage of the new place. The job's storage is that of the old one.
pub(super) struct Move {
    to: Storage,
    step: MoveStep,
    size: u64,
}

/// The files on which a step takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// All of them.
    All,
    /// Some, as a kill leaves them.
    Files(usize),
}

impl Move {
    /// Returns the step, and the storage of the old place.
    pub(super) fn new(
        id: StorageId,
        moving: FileMove,
        step: MoveStep,
        owners: &super::storage::Owners,
    ) -> (Storage, Self) {
        let claims = FileClaims {
            key: moving.claims.key,
            part_suffix: moving.claims.part_suffix,
            ..FileClaims::default()
        };
        let storage = |place: disk::MovePlace, claims| {
            let storage = Storage::new(id, place.root, place.volume, place.files, claims, owners.clone());
            moving.needs.iter().for_each(|needs| storage.take_needs(needs));
            storage
        };
        let size = match step {
            MoveStep::Copy => moving.from.files.total_size(),
            MoveStep::Check | MoveStep::Undo | MoveStep::DeleteOld => 0,
        };
        let to = storage(moving.to, claims);
        (storage(moving.from, moving.claims), Self { to, step, size })
    }

    /// Number of bytes that the step moves.
    pub(super) fn bytes(&self) -> u32 {
        u32::try_from(self.size).unwrap_or(u32::MAX)
    }

    pub(super) fn run(&self, from: &Storage, context: &mut DiskContext<'_>, reach: Reach) -> Result<DiskDone> {
        from.find_volume(context)?;
        self.find_suffixes(from, context);
        match self.step {
            MoveStep::Check => {
                self.check(from, context)?;
                Ok(DiskDone::Moved(Box::new(self.found(context))))
            }
            MoveStep::Copy => {
                let copied = self.check(from, context).and_then(|()| self.copy(from, context, reach));
                if copied.is_err() {
                    self.undo(from, context, Reach::All);
                }
                copied?;
                Ok(DiskDone::Moved(Box::new(self.found(context))))
            }
            MoveStep::Undo => {
                self.undo(from, context, reach);
                Ok(DiskDone::Deleted(DeletedFiles::default()))
            }
            MoveStep::DeleteOld => Ok(DiskDone::Deleted(self.delete_old(from, context, reach))),
        }
    }

    /// Finds out which files have the suffix of incomplete files, as the real backend does.
    fn find_suffixes(&self, from: &Storage, context: &DiskContext<'_>) {
        for index in 0..self.to.file_count() {
            from.find_suffix(context, index, LookFor::Known);
            match self.step {
                MoveStep::Undo | MoveStep::DeleteOld => self.to.find_suffix(context, index, LookFor::Marked),
                _ if context.volume.file(&from.path_of(index)).is_none() => {
                    self.to.find_suffix(context, index, LookFor::Any);
                }
                MoveStep::Check | MoveStep::Copy => self.to.take_suffix(index, from),
            }
        }
    }

    /// Returns the files, and the part file, with their paths at both places.
    fn paths(&self, from: &Storage) -> Vec<(usize, PathBuf, PathBuf)> {
        let indexes = from.stored();
        let paths = indexes.map(|index| (index, from.path_of(index), self.to.path_of(index)));
        paths.collect()
    }

    /// Checks that no file at the new place belongs to another torrent or to the user.
    fn check(&self, from: &Storage, context: &DiskContext<'_>) -> Result<()> {
        for (index, source, target) in self.paths(from) {
            let is_foreign = |file: &File| source != target && !self.to.is_marked(index, file);
            if context.volume.file(&target).is_some_and(is_foreign) {
                return Err(DiskError::new(DiskAction::Create, target, Refusal::Taken.into()));
            }
        }
        Ok(())
    }

    fn copy(&self, from: &Storage, context: &mut DiskContext<'_>, reach: Reach) -> Result<()> {
        let mut count = 0;
        for (index, source, target) in self.paths(from) {
            let Some(file) = context.volume.file(&source).filter(|_| source != target).cloned() else {
                continue;
            };
            if !from.is_own(index, &file) && from.is_skipped(index) {
                continue;
            }
            if context
                .volume
                .file(&target)
                .is_some_and(|copy| copy.stamp == file.stamp)
            {
                continue;
            }
            context.volume.delete(&target);
            if file.extents.allocated() > context.volume.free() {
                return Err(DiskError::new(DiskAction::Write, target, Errno::NOSPC.into()));
            }
            let is_whole = reach != Reach::Files(count);
            let mut copy = File {
                identity: context.volume.next_identity(),
                ..file
            };
            copy.identity.mark = self.to.mark(index);
            if !is_whole {
                copy.extents.truncate(copy.stamp.len / 2);
                copy.stamp.modified_ns = context.now_ns;
            }
            context.volume.put(target, copy);
            if !is_whole {
                break;
            }
            count += 1;
        }
        Ok(())
    }

    fn undo(&self, from: &Storage, context: &mut DiskContext<'_>, reach: Reach) {
        let mut count = 0;
        for (index, source, target) in self.paths(from) {
            let is_copy = context
                .volume
                .file(&target)
                .is_some_and(|file| self.to.is_marked(index, file));
            if is_copy && source != target && context.volume.file(&source).is_some() {
                if reach == Reach::Files(count) {
                    break;
                }
                context.volume.delete(&target);
                count += 1;
            }
        }
    }

    fn delete_old(&self, from: &Storage, context: &mut DiskContext<'_>, reach: Reach) -> DeletedFiles {
        let mut report = DeletedFiles::default();
        for (index, source, target) in self.paths(from) {
            let (Some(old), Some(new)) = (context.volume.file(&source), context.volume.file(&target)) else {
                continue;
            };
            if source == target {
                continue;
            }
            let reason = match from.is_own(index, old) {
                true if old.stamp.len == new.stamp.len => None,
                true => Some(KeptReason::Replaced),
                false => Some(KeptReason::Found),
            };
            if let Some(reason) = reason {
                report.kept.push((index, reason));
                continue;
            }
            if reach == Reach::Files(report.deleted.len()) {
                break;
            }
            context.volume.suspect(&source, "deleted");
            context.volume.delete(&source);
            report.deleted.push(index);
        }
        report
    }

    /// Returns the files at the new place.
    fn found(&self, context: &DiskContext<'_>) -> FoundFiles {
        let file = |index: usize| {
            let file = context.volume.file(&self.to.path_of(index))?;
            Some(FoundFile {
                stamp: file.stamp.public(),
                id: file.id(),
                provenance: if file.identity.is_users {
                    Provenance::Found
                } else {
                    Provenance::Created
                },
            })
        };
        FoundFiles {
            root: self.to.root.as_path().into(),
            volume: Arc::new(disk::Volume {
                mount_point: super::storage::MOUNTED_AT.into(),
                id: None,
            }),
            folders: self.to.folders(),
            files: (0..self.to.file_count()).map(file).collect(),
        }
    }
}
