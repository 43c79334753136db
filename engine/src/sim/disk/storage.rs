//! A torrent's files on a simulated disk: the real backend's behavior, applied to a simulated volume.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_components::session::{FileId, NearestFolder, OwnerKey};
use ecs_torrent_protocol::files::{FileEntry, FilePlace, FileSlice, FileTable};
use ecs_torrent_protocol::geometry::Span;
use rustix::io::Errno;

use super::super::contents::{Contents, Gathering};
use super::LookFor;
use super::extents::Data;
use super::faults::DiskFault;
use super::file::{File, Stamp};
use super::volume::Volume;
use crate::ports::disk::{
    self, Cut, DeletedFiles, DiskAction, DiskError, FileClaims, FileNeeds, FolderIds, FoundFile, FoundFiles,
    HeldPieces, KeptReason, PartNames, Parts, Provenance, ReadPurpose, Refusal, SyncedFile, check_padding,
};

type Result<T> = std::result::Result<T, DiskError>;

/// The storage of an engine that may write a file, by the file's identity.
pub(super) type Owners = Arc<Mutex<BTreeMap<FileId, StorageId>>>;

/// One torrent's files below its download folder, opened by one engine.
pub(super) struct Storage {
    id: StorageId,
    pub(super) root: PathBuf,
    /// Expected mount point of the volume.
    volume: Option<PathBuf>,
    pub(super) table: FileTable,
    claims: FileClaims,
    /// The names of incomplete files, if these have a suffix.
    pub(super) names: Option<PartNames>,
    owners: Owners,
    state: Mutex<State>,
    /// The part file, once a file is or was skipped.
    parts: Mutex<Option<Parts>>,
}

#[derive(Default)]
struct State {
    /// Files written since the last sync.
    unsynced: BTreeSet<usize>,
    /// Files that this storage has created, claimed or written.
    known: BTreeMap<usize, Known>,
    /// The files have been checked: files that appear later are foreign, whatever the session claims.
    is_looked_at: bool,
    is_deleted: bool,
}

/// A file that a storage has opened, created or checked.
#[derive(Clone, Copy)]
struct Known {
    id: FileId,
    provenance: Provenance,
    /// The user allowed the torrent to change the file.
    may_change: bool,
    /// Minimum length, by the writes so far.
    least: u64,
    /// Stamp after this storage's last change.
    stamp: Stamp,
    /// Another program has changed the file since the last sync.
    is_in_doubt: bool,
}

/// The way in which a write may use a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Write,
    Compare,
}

/// The disk, while an operation is carried out on it.
pub(super) struct DiskContext<'d> {
    pub(super) volume: &'d mut Volume,
    pub(super) contents: &'d Contents,
    pub(super) now_ns: u64,
}

/// Mount point of every simulated disk.
pub(super) const MOUNTED_AT: &str = "/";

/// A job may have found files since the storage was closed.
impl Drop for Storage {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl Storage {
    pub(super) fn new(
        id: StorageId,
        root: PathBuf,
        volume: Option<disk::Volume>,
        table: FileTable,
        claims: FileClaims,
        owners: Owners,
    ) -> Self {
        Self {
            id,
            root,
            volume: volume.map(|volume| volume.mount_point),
            names: claims.part_suffix.then(|| PartNames::new(&table)),
            table,
            claims,
            owners,
            state: Mutex::default(),
            parts: Mutex::default(),
        }
    }

    pub(super) fn look(&self, context: &DiskContext<'_>) -> Result<FoundFiles> {
        self.find_volume(context)?;
        let files = self.table.files().iter().enumerate().map(|(index, entry)| {
            self.find_suffix(context, index, LookFor::Known);
            let file = context.volume.file(&self.named(index)).filter(|_| entry.is_stored())?;
            let known = self.known(index, file);
            Some(FoundFile {
                stamp: file.stamp.public(),
                id: known.id,
                provenance: known.provenance,
            })
        });
        let mut files: Vec<_> = files.collect();
        if let Some(parts) = &mut *self.parts() {
            let skipped: Vec<u32> = parts.skipped.iter().collect();
            let absent = skipped.into_iter().filter(|file| files[*file as usize].is_none());
            for file in absent {
                parts.parted.insert(file);
            }
            files.push(context.volume.file(&self.path(&parts.entry)).map(|file| {
                let known = self.known(parts.index, file);
                FoundFile {
                    stamp: file.stamp.public(),
                    id: known.id,
                    provenance: known.provenance,
                }
            }));
        }
        self.lock().is_looked_at = true;
        Ok(FoundFiles {
            root: self.root.as_path().into(),
            volume: Arc::new(disk::Volume {
                mount_point: MOUNTED_AT.into(),
                // A machine has one disk.
                id: None,
            }),
            folders: self.folders(),
            files,
        })
    }

    /// The folder at which the disk is mounted, the only one that exists from the start.
    pub(super) fn folders(&self) -> FolderIds {
        let rest = self.root.strip_prefix(MOUNTED_AT).unwrap_or(&self.root);
        let id = FileId {
            device: 0,
            inode: 0,
            born_ns: None,
        };
        FolderIds {
            above: Arc::new([NearestFolder {
                id,
                rest: rest.to_string_lossy().into_owned(),
            }]),
            below: BTreeMap::new(),
        }
    }

    /// State of an existing file. At the first check, the file is this torrent's if the session claims it and it is
    /// still the same file.
    fn known(&self, index: usize, file: &File) -> Known {
        let mut state = self.lock();
        if let Some(known) = state.known.get(&index) {
            return *known;
        }
        let (is_first, found) = (!state.is_looked_at, (file.id(), file.stamp.public()));
        let is_marked = || self.is_marked(index, file);
        let is_ours = is_first && self.claims.is_own(index, found, is_marked) && self.take_ownership(file.id());
        let known = Known {
            id: file.id(),
            provenance: if is_ours {
                Provenance::Created
            } else {
                Provenance::Found
            },
            may_change: is_first && self.claims.may_change(index, found),
            least: 0,
            stamp: file.stamp,
            is_in_doubt: false,
        };
        state.known.insert(index, known);
        known
    }

    /// Makes this storage the only writer of a file; returns false if another storage is.
    fn take_ownership(&self, id: FileId) -> bool {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        *owners.entry(id).or_insert(self.id) == self.id
    }

    /// Returns the mark of a file that this torrent creates.
    pub(super) fn mark(&self, index: usize) -> Option<(OwnerKey, usize)> {
        self.claims.key.map(|key| (key, index))
    }

    /// Whether a file has this torrent's mark.
    pub(super) fn is_marked(&self, index: usize, file: &File) -> bool {
        file.identity.mark.is_some() && file.identity.mark == self.mark(index)
    }

    /// Whether a file is the one that the session claims.
    pub(super) fn is_own(&self, index: usize, file: &File) -> bool {
        let found = (file.id(), file.stamp.public());
        self.claims.is_own(index, found, || self.is_marked(index, file))
    }

    /// Whether the user does not want a file.
    pub(super) fn is_skipped(&self, index: usize) -> bool {
        let parts = self.parts();
        let is_skipped = |parts: &Parts| index != parts.index && parts.skipped.contains(index as u32);
        parts.as_ref().is_some_and(is_skipped)
    }

    /// Number of files, with the part file.
    pub(super) fn file_count(&self) -> usize {
        self.table.files().len() + usize::from(self.parts().is_some())
    }

    /// Returns the indexes of the stored files, and of the part file.
    pub(super) fn stored(&self) -> impl Iterator<Item = usize> {
        let files = self.table.files();
        (0..self.file_count()).filter(move |index| files.get(*index).is_none_or(FileEntry::is_stored))
    }

    /// Releases the ownership of all files, so that other storages may write them.
    pub(super) fn let_go(&self) {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.retain(|_, owner| *owner != self.id);
    }

    pub(super) fn find_volume(&self, context: &DiskContext<'_>) -> Result<()> {
        let is_there = |expected: &PathBuf| expected.as_path() == Path::new(MOUNTED_AT);
        if context.volume.is_mounted && self.volume.as_ref().is_none_or(is_there) {
            return Ok(());
        }
        let expected = self.volume.as_deref().unwrap_or(Path::new(MOUNTED_AT));
        let reason = format!("nothing is mounted at {}", expected.display());
        Err(DiskError::new(
            DiskAction::FindVolume,
            self.root.clone(),
            io::Error::other(reason),
        ))
    }

    pub(super) fn prepare(
        &self,
        context: &mut DiskContext<'_>,
        is_preallocated: bool,
        needs: Option<&FileNeeds>,
    ) -> Result<Vec<u32>> {
        let moved = needs.map_or(Ok(Vec::new()), |needs| self.move_parts(context, needs))?;
        self.create_wanted(context, is_preallocated).map(|()| moved)
    }

    fn create_wanted(&self, context: &mut DiskContext<'_>, is_preallocated: bool) -> Result<()> {
        let is_skipped = |index: usize| {
            let parts = self.parts();
            parts.as_ref().is_some_and(|parts| parts.skipped.contains(index as u32))
        };
        for (index, entry) in self.table.files().iter().enumerate() {
            if !entry.is_stored() || (entry.len > 0 && !is_preallocated) || is_skipped(index) {
                continue;
            }
            self.find_volume(context)?;
            let path = self.named(index);
            // Files that this storage did not create stay as they are.
            let (known, _) = self.open_or_create(context, index, &path)?;
            if known.provenance == Provenance::Found {
                continue;
            }
            let found = context.volume.file(&path);
            let missing = found.map_or(0, |found| found.extents.unallocated(0, entry.len));
            if missing > context.volume.free() {
                return Err(DiskError::new(DiskAction::Allocate, path, Errno::NOSPC.into()));
            }
            let now_ns = context.now_ns;
            let found = context.volume.create(&path, now_ns);
            found.reserve(entry.len);
            context.volume.take_space(missing);
            self.record_written(context, index, &path, 0);
        }
        Ok(())
    }

    /// Opens a file for writing, creating it if it is missing, and returns how it may be used. Fails if a known file
    /// was deleted, replaced or shortened meanwhile.
    fn open_or_create(&self, context: &mut DiskContext<'_>, index: usize, path: &Path) -> Result<(Known, Access)> {
        let before = self.lock().known.get(&index).copied();
        let gone = |reason| {
            let error = io::Error::new(io::ErrorKind::UnexpectedEof, reason);
            Err(DiskError::new(DiskAction::Write, path.to_owned(), error))
        };
        let Some(file) = context.volume.file(path) else {
            if before.is_some() {
                return gone("it was deleted meanwhile");
            }
            return Ok((self.create(context, index, path), Access::Write));
        };
        let mut known = self.known(index, file);
        if known.id != file.id() {
            return gone("it was replaced meanwhile");
        }
        if file.stamp.len < known.least {
            return gone("it was cut meanwhile");
        }
        if file.stamp != known.stamp {
            known.is_in_doubt = true;
            known.stamp = file.stamp;
            self.lock().known.insert(index, known);
        }
        let may_write = match known.provenance {
            Provenance::Created => true,
            Provenance::Found => known.may_change && self.take_ownership(known.id),
        };
        Ok((known, if may_write { Access::Write } else { Access::Compare }))
    }

    fn create(&self, context: &mut DiskContext<'_>, index: usize, path: &Path) -> Known {
        let now_ns = context.now_ns;
        let entry = context.volume.create(path, now_ns);
        if let Some(file) = &mut entry.seen {
            file.identity.mark = self.mark(index);
        }
        let file = context.volume.file(path);
        let known = Known {
            id: file.map(File::id).expect("it was just created"),
            provenance: Provenance::Created,
            may_change: false,
            least: 0,
            stamp: file.map(|file| file.stamp).unwrap_or_default(),
            is_in_doubt: false,
        };
        self.take_ownership(known.id);
        self.lock().known.insert(index, known);
        if let Some(names) = &self.names {
            names.record_existing(index);
        }
        known
    }

    pub(super) fn read(&self, context: &DiskContext<'_>, span: Span, purpose: ReadPurpose) -> Result<Bytes> {
        let mut gathering = Gathering::default();
        for slice in self.table.slices(span).flat_map(|slice| self.places(slice)) {
            let Some(place) = slice.place else {
                gathering.zeros(context.contents, slice.len as usize);
                continue;
            };
            let path = self.path_of(place.file);
            let Some(file) = context.volume.file(&path) else {
                return Err(DiskError::new(DiskAction::Open, path, Errno::NOENT.into()));
            };
            if purpose == ReadPurpose::Serve && self.is_changed(place.file, file) {
                return Err(DiskError::new(DiskAction::Read, path, Refusal::Changed.into()));
            }
            if file.stamp.len < place.offset + u64::from(slice.len) {
                return Err(DiskError::new(
                    DiskAction::Read,
                    path,
                    io::ErrorKind::UnexpectedEof.into(),
                ));
            }
            let len = u64::from(slice.len);
            file.extents.read(context.contents, place.offset, len, &mut gathering);
        }
        Ok(gathering.finish(context.contents))
    }

    /// Whether somebody else has changed a file since it was opened or written.
    fn is_changed(&self, index: usize, file: &File) -> bool {
        let state = self.lock();
        let known = state.known.get(&index);
        known.is_some_and(|known| known.is_in_doubt || known.id != file.id() || known.stamp != file.stamp)
    }

    /// Writes as many bytes as fit: all of them, half of them with [`DiskFault::Short`], or none with another fault.
    pub(super) fn write(
        &self,
        context: &mut DiskContext<'_>,
        span: Span,
        blocks: &[Bytes],
        fault: Option<DiskFault>,
    ) -> Result<()> {
        if self.lock().is_deleted {
            let error = io::Error::other("it is being deleted");
            return Err(DiskError::new(DiskAction::Write, self.root.clone(), error));
        }
        self.find_volume(context)?;
        let mut left = match fault {
            None => u64::MAX,
            Some(DiskFault::Short) => u64::from(span.len) / 2,
            Some(_) => 0,
        };
        let mut unwritten = blocks.iter().cloned().collect();
        for cut in self
            .table
            .slices(span)
            .flat_map(|slice| self.cuts(context, slice))
            .collect::<Vec<_>>()
        {
            let slice = cut.slice;
            let part = take(&mut unwritten, slice.len as usize);
            if cut.is_refused {
                let path = slice.place.map(|place| self.path_of(place.file)).unwrap_or_default();
                return Err(DiskError::new(DiskAction::Write, path, Refusal::Skipped.into()));
            }
            if let Some(FilePlace { file, offset }) = cut.copy {
                self.write_copy(context, (file, offset), &part)?;
            }
            let Some(FilePlace { file, offset }) = slice.place else {
                check_padding(&self.root, part.iter().map(|block| &block[..]))?;
                continue;
            };
            let path = self.path_of(file);
            let end = offset + u64::from(slice.len);
            let (known, access) = self.open_or_create(context, file, &path)?;
            if access == Access::Compare {
                compare(context, &path, offset, &part)?;
                self.record_written(context, file, &path, end);
                continue;
            }
            if !known.may_change {
                context.volume.suspect(&path, "written");
            }
            let written = write_run(context, &path, offset, part, left);
            left -= written.min(left);
            // A write of no bytes does not make the file longer.
            let end = if written > 0 { offset + written } else { 0 };
            self.record_written(context, file, &path, end);
            if written < u64::from(slice.len) {
                let error = fault.unwrap_or(DiskFault::Full).error();
                return Err(DiskError::new(DiskAction::Write, path, error));
            }
        }
        Ok(())
    }

    pub(super) fn sync(
        &self,
        context: &mut DiskContext<'_>,
        fault: Option<DiskFault>,
        is_for_all: bool,
        held: Option<&HeldPieces>,
    ) -> Result<Vec<SyncedFile>> {
        let unsynced = std::mem::take(&mut self.lock().unsynced);
        let mut synced = Vec::with_capacity(unsynced.len());
        for index in unsynced {
            let path = self.path_of(index);
            if let Some(fault) = fault {
                if let Some(entry) = context.volume.entry(&path) {
                    entry.forget_unsynced();
                }
                return Err(DiskError::new(DiskAction::Sync, path, fault.error()));
            }
            context.volume.sync(&path);
            synced.extend(self.synced(context, index, &path));
        }
        if is_for_all {
            for index in (0..self.table.files().len()).filter(|index| self.table.files()[*index].is_stored()) {
                let path = self.named(index);
                if context.volume.file(&path).is_some() {
                    context.volume.sync(&path);
                }
            }
        }
        if let Some(held) = held {
            self.drop_suffixes(context, &mut synced, held);
        }
        Ok(synced)
    }

    /// Whether a file is as this storage left it, and was created by this torrent.
    pub(super) fn is_as_left(&self, index: usize, file: &File) -> bool {
        let known = self.lock().known.get(&index).copied();
        known.is_some_and(|known| {
            (known.id, known.stamp, known.provenance) == (file.id(), file.stamp, Provenance::Created)
        })
    }

    /// Result of syncing a file.
    pub(super) fn synced(&self, context: &DiskContext<'_>, index: usize, path: &Path) -> Option<SyncedFile> {
        let mut state = self.lock();
        let known = state.known.get_mut(&index)?;
        let is_in_doubt = std::mem::take(&mut known.is_in_doubt);
        let file = context.volume.file(path).filter(|file| file.id() == known.id);
        let as_left = file.filter(|file| file.stamp == known.stamp && !is_in_doubt);
        known.stamp = file.map_or(known.stamp, |file| file.stamp);
        Some(SyncedFile {
            index,
            stamp: as_left.map(|file| file.stamp.public()),
            id: file.map(File::id),
            provenance: known.provenance,
        })
    }

    pub(super) fn delete(&self, context: &mut DiskContext<'_>, keep: &[usize]) -> Result<DeletedFiles> {
        self.lock().is_deleted = true;
        self.find_volume(context)?;
        let mut report = DeletedFiles::default();
        let is_looked_at = self.lock().is_looked_at;
        for (index, entry) in self.table.files().iter().enumerate() {
            if !is_looked_at {
                self.find_suffix(context, index, LookFor::Known);
            }
            let path = self.named(index);
            let Some(file) = context.volume.file(&path).filter(|_| entry.is_stored()) else {
                continue;
            };
            let known = self.known(index, file);
            let reason = match known.provenance {
                Provenance::Found => KeptReason::Found,
                Provenance::Created if known.id != file.id() => KeptReason::Replaced,
                Provenance::Created if keep.contains(&index) => KeptReason::SharedWithAnother,
                Provenance::Created => {
                    context.volume.suspect(&path, "deleted");
                    context.volume.delete(&path);
                    report.deleted.push(index);
                    continue;
                }
            };
            report.kept.push((index, reason));
        }
        self.drop_parts(context);
        Ok(report)
    }

    fn record_written(&self, context: &DiskContext<'_>, index: usize, path: &Path, end: u64) {
        let mut state = self.lock();
        state.unsynced.insert(index);
        if let (Some(known), Some(file)) = (state.known.get_mut(&index), context.volume.file(path)) {
            known.least = end.max(known.least);
            known.stamp = file.stamp;
        }
    }

    /// Takes over which files are skipped, before the writes that are submitted later.
    pub(super) fn take_needs(&self, needs: &FileNeeds) {
        let mut parts = self.parts();
        match &mut *parts {
            Some(parts) => parts.skipped.clone_from(&needs.skipped),
            None => *parts = Some(Parts::new(&self.table, needs)),
        }
    }

    fn parts(&self) -> MutexGuard<'_, Option<Parts>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns where the bytes of a slice are read.
    fn places(&self, slice: FileSlice) -> Vec<FileSlice> {
        match &*self.parts() {
            Some(parts) => parts.cut(&self.table, slice).into_iter().map(|cut| cut.slice).collect(),
            None => vec![slice],
        }
    }

    /// Returns where the bytes of a slice are written. Bytes of a skipped file that does not exist go to the part file.
    fn cuts(&self, context: &DiskContext<'_>, slice: FileSlice) -> Vec<Cut> {
        let mut parts = self.parts();
        let Some(parts) = &mut *parts else {
            return vec![Cut {
                slice,
                copy: None,
                is_refused: false,
            }];
        };
        if let Some(place) = slice.place
            && parts.skipped.contains(place.file as u32)
            && context.volume.file(&self.named(place.file)).is_none()
        {
            parts.parted.insert(place.file as u32);
        }
        parts.cut(&self.table, slice)
    }

    /// Takes over which files are wanted, and copies the bytes of those that are wanted now from the part file.
    fn move_parts(&self, context: &mut DiskContext<'_>, needs: &FileNeeds) -> Result<Vec<u32>> {
        let (to_move, entry, runs) = {
            let mut parts = self.parts();
            let Some(parts) = &mut *parts else {
                return Ok(Vec::new());
            };
            parts.adopt(needs);
            let to_move = parts.to_move();
            let runs: Vec<_> = to_move
                .iter()
                .map(|file| parts.runs_of(&self.table, *file as usize))
                .collect();
            (to_move, parts.entry.clone(), runs)
        };
        let from = self.path(&entry);
        for (file, runs) in to_move.into_iter().zip(runs) {
            let to = self.path_of(file as usize);
            for (_, part, own, len) in runs {
                let len = u64::from(len);
                let Some(found) = context
                    .volume
                    .file(&from)
                    .filter(|found| found.extents.covers(part.offset, len))
                else {
                    continue;
                };
                let mut gathering = Gathering::default();
                found.extents.read(context.contents, part.offset, len, &mut gathering);
                let bytes = gathering.finish(context.contents);
                self.write_copy(context, (own.file, own.offset), &[bytes])?;
            }
            if context.volume.file(&to).is_some() {
                context.volume.sync(&to);
            }
            if let Some(parts) = &mut *self.parts() {
                parts.moved.insert(file);
            }
        }
        let parts = self.parts();
        let Some(parts) = &*parts else { return Ok(Vec::new()) };
        if parts.parted.is_empty() {
            self.delete_part(context, parts);
        }
        Ok(parts.settled(needs))
    }

    /// Writes bytes of the part file into the file that they belong to.
    fn write_copy(&self, context: &mut DiskContext<'_>, (file, offset): (usize, u64), part: &[Bytes]) -> Result<()> {
        let path = self.path_of(file);
        let len: u64 = part.iter().map(|block| block.len() as u64).sum();
        let (_, access) = self.open_or_create(context, file, &path)?;
        if access == Access::Compare {
            return compare(context, &path, offset, part);
        }
        let written = write_run(context, &path, offset, part.to_vec(), u64::MAX);
        self.record_written(context, file, &path, offset + written);
        match written < len {
            true => Err(DiskError::new(DiskAction::Write, path, DiskFault::Full.error())),
            false => Ok(()),
        }
    }

    /// Deletes the part file, if there is one.
    pub(super) fn drop_parts(&self, context: &mut DiskContext<'_>) {
        if let Some(parts) = &*self.parts() {
            self.delete_part(context, parts);
        }
    }

    fn delete_part(&self, context: &mut DiskContext<'_>, parts: &Parts) {
        let path = self.path(&parts.entry);
        let is_own = context
            .volume
            .file(&path)
            .is_some_and(|file| self.known(parts.index, file).provenance == Provenance::Created);
        if is_own {
            context.volume.delete(&path);
            let mut state = self.lock();
            state.known.remove(&parts.index);
            state.unsynced.remove(&parts.index);
        }
    }

    /// Returns the path of a file of the table, or of the part file.
    pub(super) fn path_of(&self, index: usize) -> PathBuf {
        match (self.table.files().get(index), &*self.parts()) {
            (Some(_), _) => self.named(index),
            (None, Some(parts)) => self.path(&parts.entry),
            (None, None) => self.root.clone(),
        }
    }

    /// Returns the path that a file of the table has now.
    pub(super) fn named(&self, index: usize) -> PathBuf {
        let current = self.names.as_ref().and_then(|names| names.current(index));
        self.path(current.unwrap_or_else(|| &self.table.files()[index]))
    }

    pub(super) fn path(&self, entry: &FileEntry) -> PathBuf {
        self.root.join(&*entry.path)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Compares a user's file with the data that was to be written to it.
fn compare(context: &DiskContext<'_>, path: &Path, offset: u64, blocks: &[Bytes]) -> Result<()> {
    let len: usize = blocks.iter().map(Bytes::len).sum();
    let mut gathering = Gathering::default();
    let is_equal = context.volume.file(path).is_some_and(|file| {
        file.extents.read(context.contents, offset, len as u64, &mut gathering);
        let found = gathering.finish(context.contents);
        let mut rest = &found[..];
        file.stamp.len >= offset + len as u64
            && blocks.iter().all(|block| {
                let (part, next) = rest.split_at(block.len());
                rest = next;
                part == block
            })
    });
    if is_equal {
        return Ok(());
    }
    Err(DiskError::new(
        DiskAction::Write,
        path.to_owned(),
        Refusal::Foreign.into(),
    ))
}

/// Writes contiguous blocks, at most `left` bytes and as many as there is space for; returns the number of bytes.
fn write_run(context: &mut DiskContext<'_>, path: &Path, offset: u64, blocks: Vec<Bytes>, left: u64) -> u64 {
    let now_ns = context.now_ns;
    let mut written = 0;
    for mut block in joined(context.contents, blocks) {
        let at = offset + written;
        block.truncate((left - written).min(block.len() as u64) as usize);
        let free = context.volume.free();
        let taken_by = |context: &DiskContext<'_>, len| {
            let file = context.volume.file(path);
            file.map_or(len, |file| file.extents.unallocated(at, len))
        };
        let is_too_long = taken_by(context, block.len() as u64) > free;
        if is_too_long {
            // Counts as if the allocated part came last.
            block.truncate(free.min(block.len() as u64) as usize);
        }
        let len = block.len() as u64;
        if len > 0 {
            let taken = taken_by(context, len);
            let data = Data::of(context.contents, block);
            context.volume.create(path, now_ns).write(now_ns, at, len, data);
            context.volume.take_space(taken);
            written += len;
        }
        if is_too_long || written == left {
            break;
        }
    }
    written
}

/// Merges blocks that are contiguous in one content.
fn joined(contents: &Contents, blocks: Vec<Bytes>) -> Vec<Bytes> {
    let is_run = |pair: &[Bytes]| match (contents.locate(&pair[0]), contents.locate(&pair[1])) {
        (Some(a), Some(b)) => a.content == b.content && a.offset + pair[0].len() as u64 == b.offset,
        _ => false,
    };
    if blocks.len() < 2 || !blocks.windows(2).all(is_run) {
        return blocks;
    }
    let len = blocks.iter().map(Bytes::len).sum();
    let place = contents.locate(&blocks[0]);
    place.map_or(blocks, |place| vec![contents.slice(place, len)])
}

/// Removes the first `len` bytes from the blocks.
fn take(blocks: &mut std::collections::VecDeque<Bytes>, len: usize) -> Vec<Bytes> {
    let mut left = len;
    let mut taken = Vec::new();
    while left > 0
        && let Some(mut block) = blocks.pop_front()
    {
        if block.len() > left {
            blocks.push_front(block.split_off(left));
        }
        left -= block.len();
        taken.push(block);
    }
    taken
}
