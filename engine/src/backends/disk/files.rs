//! One torrent's files.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, TryLockError};
use std::time::Instant;

use bevy_platform::collections::HashSet;
use bytes::Bytes;
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_components::session::{FileId, OwnerKey};
use ecs_torrent_protocol::files::{FileEntry, FilePlace, FileSlice, FileTable};
use ecs_torrent_protocol::geometry::Span;
use rustix::io::Errno;

use super::cache::{FileCache, FileKey};
use super::part_file::PartFile;
use super::protected::Protected;
use super::provenance::{Known, Ledger, Owners, Unmarked};
use super::roots::{Found, Root, Roots};
use super::volume;
use crate::backends::beneath::{self, Status};
use crate::backends::buffers::FileBuffers;
use crate::ports::disk::{
    DiskAction, DiskError, FileClaims, FileNeeds, FolderIds, FoundFile, FoundFiles, PartNames, Provenance, ReadPurpose,
    Refusal, Volume, is_out_of_files,
};

/// The key of the marks on folders. It is no secret: a forged mark on an empty folder costs that folder at most.
const FOLDERS: OwnerKey = OwnerKey(*b"ecs-torrent dirs");

pub(super) type Result<T> = std::result::Result<T, DiskError>;

/// Where a file is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LookFor {
    /// A file of the session.
    Known,
    /// A file of the session, at the old place of a move.
    Moved,
    /// A file with the torrent's mark, at the new place of a move.
    Marked,
    /// Any file, at the new place of a move of a file that the old place does not have.
    Any,
}

/// State shared by all torrents' files: open files, download folders, and the storage that may write each file.
pub struct SharedFiles {
    pub(super) cache: FileCache,
    pub(super) owners: Owners,
    pub(super) unmarked: Unmarked,
    pub(super) roots: Roots,
}

impl SharedFiles {
    /// Creates the state. At most `max_open` files are open at a time.
    #[must_use]
    pub fn new(max_open: usize) -> Self {
        Self {
            cache: FileCache::new(max_open),
            owners: Owners::default(),
            unmarked: Unmarked::default(),
            roots: Roots::default(),
        }
    }

    /// Adds the engine's own folders, into which no torrent's path may lead.
    ///
    /// # Errors
    /// If one of these folders cannot be opened.
    pub(crate) fn protecting(self, protected: &[&Path]) -> io::Result<Self> {
        Ok(Self {
            roots: Roots::new(Protected::open(protected)?),
            ..self
        })
    }
}

/// One torrent's files below its download folder. Every call may block.
pub struct Files {
    pub(super) storage: StorageId,
    pub(super) root: Arc<Root>,
    pub(super) table: FileTable,
    pub(super) shared: Arc<SharedFiles>,
    pub(super) claims: FileClaims,
    /// The names of incomplete files, if these have a suffix.
    pub(super) names: Option<PartNames>,
    /// Held shared to open a file by its name, and exclusively to rename one.
    pub(super) renaming: RwLock<()>,
    /// The part file, once a file is or was skipped.
    pub(super) parts: OnceLock<Box<PartFile>>,
    /// The volume that is expected, once it is known.
    volume: Mutex<Option<Arc<Volume>>>,
    ledger: Mutex<Ledger>,
    /// Folders known not to be the engine's own.
    permitted: Mutex<HashSet<Box<str>>>,
    /// Held while files are created and written, so that changes by others are distinguished from this storage's own.
    pub(super) writing: Mutex<()>,
    /// Set once no more files may be created.
    pub(super) is_closed: AtomicBool,
    /// Held shared to write and exclusively to delete, so that no write brings a deleted file back.
    pub(super) is_deleted: RwLock<bool>,
}

/// Closes the download folder too: a pinned one stays known, and would keep its volume from being unmounted. Torrents
/// that still use the folder open it again. Lets other storages write the files, also those that a job has found since
/// they were closed.
impl Drop for Files {
    fn drop(&mut self) {
        self.let_go_of_owned();
        self.root.let_go();
    }
}

impl Files {
    /// Creates a storage for the files of `table`, below `root`. `storage` is its name in `shared`. `volume` is the
    /// expected volume of the folder, if known. Opens nothing yet.
    #[must_use]
    pub fn new(
        storage: StorageId,
        root: &Path,
        volume: Option<Volume>,
        table: FileTable,
        shared: Arc<SharedFiles>,
    ) -> Self {
        Self {
            storage,
            root: shared.roots.get(root),
            ledger: Mutex::new(Ledger::new(table.files().len())),
            table,
            shared,
            claims: FileClaims::default(),
            names: None,
            renaming: RwLock::default(),
            parts: OnceLock::new(),
            volume: Mutex::new(volume.map(Arc::new)),
            permitted: Mutex::default(),
            writing: Mutex::default(),
            is_closed: AtomicBool::new(false),
            is_deleted: RwLock::default(),
        }
    }

    /// Adds the session's claims about the files.
    #[must_use]
    pub(crate) fn with_claims(mut self, claims: FileClaims) -> Self {
        self.names = claims.part_suffix.then(|| PartNames::new(&self.table));
        self.claims = claims;
        self
    }

    /// Adds the wanted files.
    #[must_use]
    pub(crate) fn with_needs(self, needs: Option<&FileNeeds>) -> Self {
        if let Some(needs) = needs {
            self.take_needs(needs);
        }
        self
    }

    /// The download folder.
    #[must_use]
    pub fn root(&self) -> Arc<Path> {
        self.root.path()
    }

    /// Closes the files, and lets other storages write them. Requests in progress are carried out but create no file,
    /// because the next storage to open the files would take such a file for the user's.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.shared.cache.forget(self.storage);
        self.let_go_of_owned();
    }

    fn let_go_of_owned(&self) {
        let ids: Vec<_> = self.ledger().known.values().map(|known| known.id).collect();
        self.shared.owners.let_go(ids, self.storage);
    }

    /// Finds the existing files and the volume.
    ///
    /// # Errors
    /// If an existing entry is not a regular file or cannot be inspected, if the volume is not the expected one, or if
    /// a path leads into one of the engine's own folders.
    pub fn look(&self) -> Result<FoundFiles> {
        let volume = self.find_volume()?;
        let (files, below) = match self.folder() {
            Ok(root) => (self.found(root.as_fd())?, self.folders_below(root.as_fd())),
            Err(error) if error.is_absence() => (vec![None; self.entries().len()], BTreeMap::new()),
            Err(error) => return Err(error),
        };
        self.part_absent(&files);
        let above = self.root.folders_above();
        self.ledger().is_looked_at = true;
        Ok(FoundFiles {
            root: self.root(),
            volume,
            folders: FolderIds { above, below },
            files,
        })
    }

    fn found(&self, root: BorrowedFd<'_>) -> Result<Vec<Option<FoundFile>>> {
        let mut files = vec![None; self.entries().len()];
        // The folder of the last missing file. If the folder is missing too, so are all its files.
        let mut looked_at = "";
        let mut is_there = true;
        for (index, (file, entry)) in files.iter_mut().zip(self.entries()).enumerate() {
            let folder = entry.path.rsplit_once('/').map_or("", |(folder, _)| folder);
            if !entry.is_stored() || (folder == looked_at && !is_there) {
                continue;
            }
            self.check_folder(root, entry)?;
            self.find_suffix(root, index, LookFor::Known);
            *file = self.find(root, index, self.entry(index))?;
            if file.is_none() && folder != looked_at {
                looked_at = folder;
                is_there = beneath::may_hold(root, folder);
            }
        }
        if let Some(part) = self.parts.get() {
            files.push(self.find(root, self.entries().len(), &part.entry)?);
        }
        Ok(files)
    }

    /// Returns the existing folders of the files, by path below the download folder.
    pub(super) fn folders_below(&self, root: BorrowedFd<'_>) -> BTreeMap<String, FileId> {
        let mut folders: BTreeMap<String, Option<FileId>> = BTreeMap::new();
        for entry in self.entries().iter().filter(|entry| entry.is_stored()) {
            if let Some((folder, _)) = entry.path.rsplit_once('/')
                && folders.contains_key(folder)
            {
                continue;
            }
            for (end, _) in entry.path.match_indices('/') {
                let folder = &entry.path[..end];
                let status = || Status::at(root, folder).ok().filter(Status::is_folder);
                let known = folders.get(folder).copied();
                let id = known.unwrap_or_else(|| status().map(|status| status.id));
                folders.insert(folder.into(), id);
                if id.is_none() {
                    break;
                }
            }
        }
        let existing = folders.into_iter().filter_map(|(folder, id)| Some((folder, id?)));
        existing.collect()
    }

    fn find(&self, root: BorrowedFd<'_>, index: usize, entry: &FileEntry) -> Result<Option<FoundFile>> {
        let (file, status) = match beneath::open(root, &entry.path, false) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(DiskError::new(DiskAction::Open, self.path(entry), error)),
        };
        let status = self.believable(status);
        let known = self.classify(index, &file, &status);
        self.ledger().see(index, &status);
        Ok(Some(FoundFile {
            stamp: status.stamp,
            id: status.id,
            provenance: known.provenance,
        }))
    }

    /// Returns what is known about an existing file. When the files are first examined, a file belongs to this torrent
    /// if the session claims it and it has no second hard link. A file that appears later belongs to somebody else,
    /// even if the session claims it. A file that the torrent found and may not change is not recorded.
    pub(super) fn classify(&self, index: usize, file: &OwnedFd, status: &Status) -> Known {
        let mut ledger = self.ledger();
        if let Some(known) = ledger.known.get(&index) {
            return *known;
        }
        let found = (status.id, status.stamp);
        let is_first = !ledger.is_looked_at;
        let is_ours = is_first
            && status.link_count == 1
            && self
                .claims
                .is_own(index, found, || self.is_marked(Some(index), file, status))
            && self.shared.owners.take(status.id, self.storage);
        let provenance = if is_ours {
            Provenance::Created
        } else {
            Provenance::Found
        };
        let known = Known::new(status, provenance);
        if is_ours || (is_first && self.claims.may_change(index, found)) {
            ledger.known.insert(index, known);
        }
        known
    }

    /// Whether a file carries the mark of this torrent, or a folder (where `index` is `None`) that of any torrent, or
    /// was created in this run on a volume without marks.
    pub(super) fn is_marked(&self, index: Option<usize>, file: &OwnedFd, status: &Status) -> bool {
        self.key_of(index).is_some_and(|key| {
            beneath::has_mark(file, &key.mark(index, status.id)) || self.shared.unmarked.contains(key, status.id)
        })
    }

    /// Marks a new file, or a new folder where `index` is `None`, before anything is written into it.
    pub(super) fn mark(&self, index: Option<usize>, file: &OwnedFd, status: &Status) {
        if let Some(key) = self.key_of(index)
            && beneath::set_mark(file, &key.mark(index, status.id)).is_err()
        {
            self.shared.unmarked.insert(key, status.id);
        }
    }

    /// Returns the key for the mark of a file, or of a folder. Torrents share folders, and the last one deletes them.
    fn key_of(&self, index: Option<usize>) -> Option<OwnerKey> {
        match index {
            Some(_) => self.claims.key,
            None => Some(FOLDERS),
        }
    }

    /// Returns the metadata of an open file.
    pub(super) fn status_of(&self, file: &OwnedFd) -> io::Result<Status> {
        Status::of(file).map(|status| self.believable(status))
    }

    /// Removes the time of the last change if the volume is remote.
    pub(super) fn believable(&self, mut status: Status) -> Status {
        if self.root.is_remote() {
            status.stamp.changed_ns = None;
        }
        status
    }

    /// Checks that a file does not lie in one of the engine's own folders. Compares folders by identity, not by name.
    /// Each folder is checked once.
    pub(super) fn check_folder(&self, root: BorrowedFd<'_>, entry: &FileEntry) -> Result<()> {
        let protected = self.shared.roots.protected();
        if protected.is_empty() {
            return Ok(());
        }
        let mut permitted = self.permitted.lock().unwrap_or_else(PoisonError::into_inner);
        let folders = entry.path.match_indices('/').map(|(end, _)| &entry.path[..end]);
        if let Some((folder, _)) = entry.path.rsplit_once('/')
            && permitted.contains(folder)
        {
            return Ok(());
        }
        for folder in folders {
            match Status::at(root, folder) {
                Ok(status) if protected.contains(status.id) => {
                    return Err(DiskError::new(
                        DiskAction::Open,
                        self.path(entry),
                        Refusal::Forbidden.into(),
                    ));
                }
                Ok(status) if status.is_folder() => drop(permitted.insert(folder.into())),
                // A missing folder is checked when it is created. An entry that is not a folder fails when the file is
                // opened.
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    /// Finds the download folder's volume, and checks that it is the expected one.
    pub(super) fn find_volume(&self) -> Result<Arc<Volume>> {
        let path = self.root();
        let failed = |error| {
            // An open handle would keep the volume from being mounted again.
            self.root.let_go();
            DiskError::new(DiskAction::FindVolume, path.to_path_buf(), error)
        };
        let found = volume::of(&path).map_err(failed)?;
        let mut volume = self.volume.lock().unwrap_or_else(PoisonError::into_inner);
        let found = found
            .check(volume.as_deref())
            .map_err(|error| failed(io::Error::other(error)))?;
        Ok(volume.insert(self.root.share_volume(found)).clone())
    }

    /// Returns the download folder: the same folder, on the same volume, as when it was first opened.
    pub(super) fn folder(&self) -> Result<Arc<OwnedFd>> {
        self.folder_with(Root::reopen)
    }

    /// Like [`Files::folder`], but creates the folder if it is missing.
    pub(super) fn created_folder(&self) -> Result<Arc<OwnedFd>> {
        self.folder_with(Root::create)
    }

    fn folder_with(&self, open: fn(&Arc<Root>, &Roots) -> io::Result<Arc<OwnedFd>>) -> Result<Arc<OwnedFd>> {
        let failed = |error| DiskError::new(DiskAction::Open, self.root().to_path_buf(), error);
        if let Found::Same(folder) = self.root.look().map_err(failed)? {
            return Ok(folder);
        }
        // Before anything is opened or created, the volume must be the original one.
        self.find_volume()?;
        open(&self.root, &self.shared.roots).map_err(failed)
    }

    /// Reads a run of bytes, across as many files as it spans. Padding and gaps read as zeros.
    ///
    /// # Errors
    /// If a file is missing ([`DiskError::is_absence`]), too short or unreadable, or was changed by somebody else and
    /// may not be served ([`DiskError::is_changed`]).
    pub fn read(&self, span: Span, purpose: ReadPurpose, buffers: &FileBuffers) -> Result<Bytes> {
        let mut buffer = buffers.take(span.len as usize);
        let mut unfilled = buffer.as_mut_slice();
        let parts = self.parts();
        for slice in self.slices(span) {
            let (mut part, rest) = unfilled.split_at_mut(slice.len as usize);
            unfilled = rest;
            let Some(parts) = &parts else {
                self.read_slice(slice, part, purpose)?;
                continue;
            };
            for cut in parts.cut(&self.table, slice) {
                let (head, tail) = part.split_at_mut(cut.slice.len as usize);
                part = tail;
                self.read_slice(cut.slice, head, purpose)?;
            }
        }
        Ok(buffer.freeze())
    }

    fn read_slice(&self, slice: FileSlice, part: &mut [u8], purpose: ReadPurpose) -> Result<()> {
        let Some(FilePlace { file: index, offset }) = slice.place else {
            part.fill(0);
            return Ok(());
        };
        let file = self.readable(index)?;
        if purpose == ReadPurpose::Serve {
            self.check_unchanged(index, &file)?;
        }
        read_exactly(&file, offset, part)
            .map_err(|error| DiskError::new(DiskAction::Read, self.path(self.entry(index)), error))
    }

    /// Checks, at most once a second, that no other program has changed a file that is served.
    fn check_unchanged(&self, index: usize, file: &OwnedFd) -> Result<()> {
        let now = Instant::now();
        if !self.ledger().is_look_due(index, now) {
            return Ok(());
        }
        // While a write is under way, the recorded state is not the newest. The write compares it too.
        let _writing = match self.writing.try_lock() {
            Ok(writing) => writing,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        let failed = |error| DiskError::new(DiskAction::Read, self.path(self.entry(index)), error);
        let status = self.status_of(file).map_err(failed)?;
        match self.ledger().look(index, &status, self.root.is_remote(), now) {
            true => Ok(()),
            false => Err(failed(Refusal::Changed.into())),
        }
    }

    /// Returns a file for reading, from the cache or newly opened.
    pub(super) fn readable(&self, index: usize) -> Result<Arc<OwnedFd>> {
        if let Some(file) = self.shared.cache.get(self.key(index), false) {
            return Ok(file);
        }
        let (file, _) = self.open(index, false)?;
        let file = Arc::new(file);
        self.shared.cache.put(self.key(index), file.clone(), false);
        Ok(file)
    }

    /// Opens an existing file, and returns its metadata.
    pub(super) fn open(&self, index: usize, is_writable: bool) -> Result<(OwnedFd, Status)> {
        self.open_below(&*self.folder()?, index, is_writable)
    }

    /// Opens an existing file below the download folder.
    pub(super) fn open_below(&self, root: &OwnedFd, index: usize, is_writable: bool) -> Result<(OwnedFd, Status)> {
        self.open_with(root, index, |root, path| beneath::open(root, path, is_writable))
            .map(|(file, status)| (file, self.believable(status)))
    }

    /// Opens a file below the download folder with `open`.
    pub(super) fn open_with<T>(
        &self,
        root: &OwnedFd,
        index: usize,
        open: impl Fn(BorrowedFd<'_>, &str) -> io::Result<T>,
    ) -> Result<T> {
        let _renaming = self.renaming.read().unwrap_or_else(PoisonError::into_inner);
        let entry = self.entry(index);
        self.check_folder(root.as_fd(), entry)?;
        self.whatever_it_takes(|| open(root.as_fd(), &entry.path))
            .map_err(|error| DiskError::new(DiskAction::Open, self.path(entry), error))
    }

    /// Opens a file, closing unused files when the system's limit on open files is reached.
    pub(super) fn whatever_it_takes<T>(&self, mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut opened = open();
        while let Err(error) = &opened
            && is_out_of_files(error)
            && self.shared.cache.shrink()
        {
            opened = open();
        }
        opened
    }

    pub(super) fn key(&self, index: usize) -> FileKey {
        (self.storage, index)
    }

    pub(super) fn slices(&self, span: Span) -> impl Iterator<Item = FileSlice> + '_ {
        self.table.slices(span)
    }

    pub(super) fn entries(&self) -> &[FileEntry] {
        self.table.files()
    }

    /// Returns a file of the table with the name that it has now, or the part file.
    pub(super) fn entry(&self, index: usize) -> &FileEntry {
        match self.parts.get() {
            Some(part) if index == self.entries().len() => &part.entry,
            _ => {
                let current = self.names.as_ref().and_then(|names| names.current(index));
                current.unwrap_or_else(|| &self.entries()[index])
            }
        }
    }

    pub(super) fn path(&self, entry: &FileEntry) -> PathBuf {
        self.root().join(&*entry.path)
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn read_exactly(file: &OwnedFd, mut offset: u64, mut part: &mut [u8]) -> io::Result<()> {
    while !part.is_empty() {
        match rustix::io::pread(file, &mut *part, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                offset += read as u64;
                part = &mut part[read..];
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
