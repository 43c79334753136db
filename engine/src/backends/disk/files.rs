//! One torrent's files.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_components::session::{FileId, FileStamp};
use ecs_torrent_protocol::files::{FileEntry, FileSlice, FileTable};
use ecs_torrent_protocol::geometry::Span;
use rustix::fs::Stat;
use rustix::io::Errno;

use super::cache::{FileCache, FileKey};
use super::root::Root;
use super::{failure, volume};
use crate::backends::beneath;
use crate::backends::buffers::FileBuffers;
use crate::ports::disk::{
    DeletedFiles, DiskAction, DiskError, FileClaims, FoundFile, FoundFiles, Provenance, SyncedFile, is_out_of_files,
};

/// Most slices in one vectored write; what POSIX guarantees is 16, what every system of today allows is 1024.
const MAX_SLICES: usize = 1024;

type Result<T> = std::result::Result<T, DiskError>;

/// One torrent's files below its download folder. Every call may block.
pub struct Files {
    storage: StorageId,
    root: PathBuf,
    table: FileTable,
    cache: Arc<FileCache>,
    /// Where the volume is expected to be mounted, and its device once it has been seen.
    volume: Mutex<Volume>,
    /// What this torrent has written.
    written: Mutex<Written>,
    /// Held to write, and exclusively to delete: what is deleted stays deleted.
    is_deleted: RwLock<bool>,
    claims: FileClaims,
}

#[derive(Default)]
struct Volume {
    mounted_at: Option<PathBuf>,
    device: Option<u64>,
}

#[derive(Default)]
struct Written {
    /// Files written since the last sync.
    unsynced: BTreeSet<usize>,
    created: BTreeSet<usize>,
    /// Files created or written since they were made known, and how long they have to be by that.
    ever: BTreeMap<usize, u64>,
}

impl Files {
    /// Files by their table, below `root`; `storage` names them in the cache. `volume` is where the folder's volume
    /// is to be mounted, where that is known. Nothing is opened yet.
    #[must_use]
    pub fn new(
        storage: StorageId,
        root: PathBuf,
        volume: Option<PathBuf>,
        table: FileTable,
        cache: Arc<FileCache>,
    ) -> Self {
        let volume = Volume {
            mounted_at: volume,
            device: None,
        };
        Self {
            storage,
            root,
            table,
            cache,
            volume: Mutex::new(volume),
            written: Mutex::default(),
            is_deleted: RwLock::default(),
            claims: FileClaims::default(),
        }
    }

    /// What the session says of the files.
    #[must_use]
    pub fn with_claims(self, claims: FileClaims) -> Self {
        Self { claims, ..self }
    }

    /// The download folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Each file that is there, and where the volume is mounted.
    ///
    /// # Errors
    /// Where one is there and is no plain file, or cannot be looked at; where the volume is not the one expected.
    pub fn look(&self) -> Result<FoundFiles> {
        let volume = self.find_volume()?;
        let files = match beneath::open_root(&self.root) {
            Ok(root) => self.found(root.as_fd())?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => vec![None; self.entries().len()],
            Err(error) => return Err(failure(DiskAction::Open, self.root.clone(), error)),
        };
        Ok(FoundFiles {
            root: self.root.clone(),
            volume,
            files,
        })
    }

    fn found(&self, root: BorrowedFd<'_>) -> Result<Vec<Option<FoundFile>>> {
        let mut files = vec![None; self.entries().len()];
        // The folder of the last file that was not there: where it is not there either, none of its files is.
        let mut looked_at = "";
        let mut is_there = true;
        for (index, (file, entry)) in files.iter_mut().zip(self.entries()).enumerate() {
            let folder = entry.path.rsplit_once('/').map_or("", |(folder, _)| folder);
            if !entry.is_stored() || (folder == looked_at && !is_there) {
                continue;
            }
            *file = self.stamp(root, entry)?.map(|stat| FoundFile {
                stamp: stamp_of(&stat),
                id: id_of(&stat),
                provenance: self.provenance(index),
            });
            if file.is_none() && folder != looked_at {
                looked_at = folder;
                is_there = beneath::may_hold(root, folder);
            }
        }
        Ok(files)
    }

    fn provenance(&self, index: usize) -> Provenance {
        match self.claims.created.contains_key(&index) || self.lock_written().created.contains(&index) {
            true => Provenance::Created,
            false => Provenance::Found,
        }
    }

    fn stamp(&self, root: BorrowedFd<'_>, entry: &FileEntry) -> Result<Option<Stat>> {
        match beneath::open(root, &entry.path, false) {
            Ok((_, stat)) => Ok(Some(stat)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failure(DiskAction::Open, self.path(entry), error)),
        }
    }

    /// Where the volume of the download folder is mounted; remembers its device.
    fn find_volume(&self) -> Result<PathBuf> {
        let failed = |error| failure(DiskAction::FindVolume, self.root.clone(), error);
        let (found, device) = volume::of(&self.root).map_err(failed)?;
        let mut volume = self.lock_volume();
        match &volume.mounted_at {
            // Another volume mounted further down is somebody's decision; none at all is what is looked for.
            Some(expected) if *expected != found && expected.starts_with(&found) => {
                let reason = format!("nothing is mounted at {}", expected.display());
                return Err(failed(io::Error::other(reason)));
            }
            _ => volume.mounted_at = Some(found.clone()),
        }
        volume.device = Some(device);
        Ok(found)
    }

    /// Fault 75: before anything is created, the volume has to be the one that was there at the start.
    fn check_volume(&self) -> Result<()> {
        let Some(expected) = self.lock_volume().device else {
            return self.find_volume().map(drop);
        };
        let found = volume::device_of(&self.root);
        if found.is_ok_and(|found| found == expected) {
            return Ok(());
        }
        // Another device may be the same volume, mounted again.
        self.find_volume().map(drop)
    }

    /// Creates the files without bytes, which no write will, and reserves the others' space where asked to.
    ///
    /// # Errors
    /// Where a file cannot be created, or there is no space to reserve.
    pub fn prepare(&self, is_preallocated: bool) -> Result<()> {
        let mut root = Root::new(&self.root);
        for (index, entry) in self.entries().iter().enumerate() {
            if !entry.is_stored() || (entry.len > 0 && !is_preallocated) {
                continue;
            }
            self.check_volume()?;
            let (file, len) = self.writable(index, &mut root)?;
            if entry.len == 0 && len > 0 {
                // A longer file of somebody else's, which keeps its end.
                continue;
            }
            self.note_written(index, 0);
            if entry.len > 0 {
                let flags = rustix::fs::FallocateFlags::empty();
                rustix::fs::fallocate(&file, flags, 0, entry.len)
                    .map_err(|error| failure(DiskAction::Allocate, self.path(entry), error.into()))?;
            }
        }
        Ok(())
    }

    /// Reads a run of bytes, over as many files as it spans; padding reads as zeros.
    ///
    /// # Errors
    /// Where a file is not there ([`DiskError::is_absence`]), is too short, or cannot be read.
    pub fn read(&self, span: Span, buffers: &FileBuffers) -> Result<Bytes> {
        let mut buffer = buffers.take(span.len as usize);
        let mut unfilled = buffer.as_mut_slice();
        let mut root = Root::new(&self.root);
        for slice in self.slices(span) {
            let (part, rest) = unfilled.split_at_mut(slice.len as usize);
            unfilled = rest;
            if slice.pad {
                part.fill(0);
                continue;
            }
            let file = self.readable(slice.file, &mut root)?;
            read_exactly(&file, slice.offset, part)
                .map_err(|error| failure(DiskAction::Read, self.path(&self.entries()[slice.file]), error))?;
        }
        Ok(buffer.freeze())
    }

    /// Writes a run of bytes, given in slices, over as many files as it spans; padding is left out.
    ///
    /// # Errors
    /// Where a file cannot be created or written. Part of the bytes may have been.
    pub fn write(&self, span: Span, blocks: &[Bytes]) -> Result<()> {
        let is_deleted = self.is_deleted.read().unwrap_or_else(PoisonError::into_inner);
        if *is_deleted {
            return Err(failure(
                DiskAction::Write,
                self.root.clone(),
                io::Error::other("it is being deleted"),
            ));
        }
        debug_assert_eq!(blocks.iter().map(Bytes::len).sum::<usize>(), span.len as usize);
        self.check_volume()?;
        let mut unwritten = Cursor { blocks, offset: 0 };
        let mut root = Root::new(&self.root);
        for slice in self.slices(span) {
            let part = unwritten.take(slice.len as usize);
            if slice.pad {
                continue;
            }
            let (file, _) = self.writable(slice.file, &mut root)?;
            write_all(&file, slice.offset, part)
                .map_err(|error| failure(DiskAction::Write, self.path(&self.entries()[slice.file]), error))?;
            self.note_written(slice.file, slice.offset + u64::from(slice.len));
        }
        Ok(())
    }

    /// Brings to the platter what was written before the call, and tells which files that were; without a stamp where
    /// somebody has deleted or cut one meanwhile. With `is_for_all` the other files that are there too, untold.
    ///
    /// # Errors
    /// Where the system could not.
    pub fn sync(&self, is_for_all: bool) -> Result<Vec<SyncedFile>> {
        let unsynced = std::mem::take(&mut self.lock_written().unsynced);
        let mut stamps = Vec::with_capacity(unsynced.len());
        let mut root = Root::new(&self.root);
        for index in unsynced {
            let stat = match self.sync_file(index, &mut root) {
                Ok(stat) => Some(stat),
                Err(error) if error.is_absence() => None,
                Err(error) => return Err(error),
            };
            stamps.push(SyncedFile {
                index,
                stamp: stat.as_ref().map(stamp_of),
                id: stat.as_ref().map(id_of),
                provenance: self.provenance(index),
            });
        }
        if is_for_all {
            let synced = |index: &usize| stamps.binary_search_by_key(index, |file| file.index).is_ok();
            let stored = (0..self.entries().len()).filter(|index| self.entries()[*index].is_stored());
            for index in stored.filter(|index| !synced(index)) {
                match self.sync_file(index, &mut root) {
                    Err(error) if !error.is_absence() => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(stamps)
    }

    /// Where the file has been closed since, the system still has what was written to it. It is opened for a moment
    /// then, and displaces none that is in use.
    fn sync_file(&self, index: usize, root: &mut Root<'_>) -> Result<Stat> {
        let file = match self.cache.get(self.key(index), false) {
            Some(file) => file,
            None => Arc::new(self.open(index, root, Root::open)?.0),
        };
        let failed = |error| failure(DiskAction::Sync, self.path(&self.entries()[index]), error);
        rustix::fs::fdatasync(&file).map_err(|error| failed(error.into()))?;
        let least = self.written_len(index).unwrap_or(0);
        let stat = rustix::fs::fstat(&file).map_err(|error| failed(error.into()))?;
        self.check_file(index, &stat, least)?;
        Ok(stat)
    }

    /// Deletes the files that were written, now or earlier, and not to be kept; then folders that are empty by that.
    ///
    /// # Errors
    /// The first file that could not be deleted; the others are.
    pub fn delete(&self, keep: &[usize]) -> Result<DeletedFiles> {
        let mut is_deleted = self.is_deleted.write().unwrap_or_else(PoisonError::into_inner);
        *is_deleted = true;
        self.cache.forget(self.storage);
        let mut doomed = std::mem::take(&mut *self.lock_written()).created;
        doomed.extend(self.claims.created.keys().copied());
        let mut report = DeletedFiles::default();
        // On a volume that is not there is nothing of ours; what lies there now is somebody else's.
        self.find_volume()?;
        let root = match beneath::open_root(&self.root) {
            Ok(root) => root,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(report),
            Err(error) => return Err(failure(DiskAction::Delete, self.root.clone(), error)),
        };
        let mut result = Ok(());
        let mut folders = BTreeSet::new();
        for index in doomed.into_iter().filter(|index| !keep.contains(index)) {
            let Some(entry) = self.entries().get(index).filter(|entry| entry.is_stored()) else {
                continue;
            };
            match beneath::unlink(root.as_fd(), &entry.path) {
                Ok(()) => report.deleted.push(index),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if result.is_ok() => result = Err(failure(DiskAction::Delete, self.path(entry), error)),
                Err(_) => {}
            }
            let parents = std::iter::successors(entry.path.rsplit_once('/'), |(folder, _)| folder.rsplit_once('/'));
            folders.extend(parents.map(|(folder, _)| folder));
        }
        // The deepest first: behind a folder in the order of names come those inside it.
        for folder in folders.into_iter().rev() {
            // One that is not empty stays, and that is no failure.
            let _ = beneath::remove_folder(root.as_fd(), folder);
        }
        result.map(|()| report)
    }

    fn note_written(&self, index: usize, end: u64) {
        let mut written = self.lock_written();
        written.unsynced.insert(index);
        let len = written.ever.entry(index).or_default();
        *len = end.max(*len);
    }

    /// How long a file has to be by what was written to it; nothing where nothing was.
    fn written_len(&self, index: usize) -> Option<u64> {
        self.lock_written().ever.get(&index).copied()
    }

    /// Fault 73: what is written to an open file that somebody has deleted is nowhere, and in one that somebody has cut,
    /// what was there before is not.
    fn check_file(&self, index: usize, stat: &Stat, least: u64) -> Result<()> {
        let reason = match stat.st_nlink {
            0 => "it was deleted meanwhile",
            _ if stamp_of(stat).len >= least => return Ok(()),
            _ => "it was cut meanwhile",
        };
        self.cache.forget(self.storage);
        // An absence: bytes that were there are not.
        let error = io::Error::new(io::ErrorKind::UnexpectedEof, reason);
        Err(failure(DiskAction::Write, self.path(&self.entries()[index]), error))
    }

    /// A file to be read, out of the cache or opened now.
    fn readable(&self, index: usize, root: &mut Root<'_>) -> Result<Arc<OwnedFd>> {
        if let Some(file) = self.cache.get(self.key(index), false) {
            return Ok(file);
        }
        let (file, _) = self.open(index, root, Root::open)?;
        let file = Arc::new(file);
        self.cache.put(self.key(index), file.clone(), false);
        Ok(file)
    }

    /// A file to be written, out of the cache, opened or created now, and its length. It is the one that was written
    /// before, and whole.
    fn writable(&self, index: usize, root: &mut Root<'_>) -> Result<(Arc<OwnedFd>, u64)> {
        // Before anything is looked at: another thread may be making it longer.
        let least = self.written_len(index);
        let (file, stat) = match self.cache.get(self.key(index), true) {
            Some(file) => {
                let failed = |error: Errno| failure(DiskAction::Write, self.path(&self.entries()[index]), error.into());
                let stat = rustix::fs::fstat(&file).map_err(failed)?;
                (file, Some(stat))
            }
            None => {
                let (file, stat) = self.open(index, root, |root, path| match least {
                    None => root.create(path),
                    Some(_) => root.open_or_create(path).map(|(file, stat)| (file, Some(stat))),
                })?;
                let file = Arc::new(file);
                self.cache.put(self.key(index), file.clone(), true);
                (file, stat)
            }
        };
        // One that has just been created needs no look.
        let Some(stat) = stat else {
            self.lock_written().created.insert(index);
            return Ok((file, 0));
        };
        self.check_file(index, &stat, least.unwrap_or(0))?;
        Ok((file, stamp_of(&stat).len))
    }

    /// Opens a file, whatever that takes.
    fn open<'r, T>(
        &self,
        index: usize,
        root: &mut Root<'r>,
        mut open: impl FnMut(&mut Root<'r>, &str) -> io::Result<T>,
    ) -> Result<T> {
        let entry = &self.entries()[index];
        let mut opened = open(root, &entry.path);
        // Fault 99: there are more files open than the system lets us; some that are not in use are closed.
        while let Err(error) = &opened
            && is_out_of_files(error)
            && self.cache.shrink()
        {
            opened = open(root, &entry.path);
        }
        opened.map_err(|error| failure(DiskAction::Open, self.path(entry), error))
    }

    fn key(&self, index: usize) -> FileKey {
        (self.storage, index)
    }

    fn slices(&self, span: Span) -> impl Iterator<Item = FileSlice> + '_ {
        self.table.slices(span)
    }

    fn entries(&self) -> &[FileEntry] {
        self.table.files()
    }

    fn path(&self, entry: &FileEntry) -> PathBuf {
        self.root.join(&*entry.path)
    }

    fn lock_written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_volume(&self) -> MutexGuard<'_, Volume> {
        self.volume.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stamp_of(stat: &Stat) -> FileStamp {
    FileStamp {
        len: stat.st_size.try_into().unwrap_or(0),
        seconds: stat.st_mtime,
        nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    }
}

fn id_of(stat: &Stat) -> FileId {
    FileId {
        device: stat.st_dev,
        inode: stat.st_ino,
    }
}

fn read_exactly(file: &OwnedFd, mut offset: u64, mut part: &mut [u8]) -> io::Result<()> {
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

fn write_all<'b>(file: &OwnedFd, mut offset: u64, parts: impl Iterator<Item = &'b [u8]>) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'b>> = parts.map(IoSlice::new).collect();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(MAX_SLICES)];
        match rustix::io::pwritev(file, batch, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Walks along blocks as if they were one run of bytes.
struct Cursor<'b> {
    blocks: &'b [Bytes],
    offset: usize,
}

impl<'b> Cursor<'b> {
    /// The next `len` bytes, as slices.
    fn take(&mut self, len: usize) -> impl Iterator<Item = &'b [u8]> + use<'b> {
        let (mut blocks, mut offset) = (self.blocks, self.offset);
        let mut skip = len;
        while let Some(first) = self.blocks.first() {
            if self.offset + skip < first.len() {
                self.offset += skip;
                break;
            }
            skip -= first.len() - self.offset;
            self.blocks = &self.blocks[1..];
            self.offset = 0;
        }
        let mut left = len;
        std::iter::from_fn(move || {
            let first = blocks.first().filter(|_| left > 0)?;
            let part = &first[offset..first.len().min(offset + left)];
            left -= part.len();
            blocks = &blocks[1..];
            offset = 0;
            Some(part)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use ecs_torrent_protocol::files::FileAttributes;

    use super::*;

    fn table(lengths: &[u64]) -> FileTable {
        let paths = (0..).map(|i| format!("t/d/{i}"));
        table_of(paths.zip(lengths.iter().copied()))
    }

    fn table_of(files: impl IntoIterator<Item = (String, u64)>) -> FileTable {
        let mut offset = 0;
        let entries = files.into_iter().map(|(path, len)| {
            offset += len;
            FileEntry {
                path: path.into(),
                len,
                offset: offset - len,
                attributes: FileAttributes::default(),
            }
        });
        FileTable::new(entries.collect())
    }

    fn files(root: &Path, lengths: &[u64]) -> Files {
        let cache = Arc::new(FileCache::new(2));
        Files::new(StorageId(1), root.to_owned(), None, table(lengths), cache)
    }

    fn lengths(files: &Files) -> Vec<Option<u64>> {
        let found = files.look().unwrap().files;
        found.into_iter().map(|file| file.map(|file| file.stamp.len)).collect()
    }

    fn blocks(data: &[u8], sizes: usize) -> Vec<Bytes> {
        data.chunks(sizes).map(Bytes::copy_from_slice).collect()
    }

    #[test]
    fn spans_go_to_their_files_and_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("not/there/yet");
        let files = files(&root, &[5, 0, 3, 4000, 1]);
        let data: Vec<u8> = (0..4009u32).map(|i| i as u8).collect();
        assert_eq!(lengths(&files), [None; 5]);
        assert!(!root.exists(), "looking creates nothing");
        files.write(Span { offset: 0, len: 4009 }, &blocks(&data, 7)).unwrap();
        files.prepare(false).unwrap();
        assert_eq!(lengths(&files), [5, 0, 3, 4000, 1].map(Some));
        assert_eq!(fs::read(root.join("t/d/2")).unwrap(), data[5..8]);
        let buffers = FileBuffers::default();
        for (offset, len) in [(0, 4009), (4, 2), (7, 4001), (4008, 1)] {
            let read = files.read(Span { offset, len }, &buffers).unwrap();
            assert_eq!(read, data[offset as usize..][..len as usize]);
        }
        let synced: BTreeSet<usize> = files.sync(false).unwrap().into_iter().map(|file| file.index).collect();
        assert_eq!(synced, BTreeSet::from([0, 1, 2, 3, 4]));
        assert_eq!(files.sync(false).unwrap(), [], "once");
    }

    #[test]
    fn files_are_found_beside_folders_that_are_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a/0", "a/1", "b/0", "b/1", "a/2", "b/c/0", "d", "b/2", "e/0"];
        for (index, path) in paths.iter().enumerate().filter(|(_, path)| !path.starts_with('b')) {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![0; index]).unwrap();
        }
        fs::remove_file(folder.path().join("a/1")).unwrap();
        let table = table_of(paths.iter().map(|path| ((*path).to_owned(), 9)));
        let cache = Arc::new(FileCache::new(2));
        let files = Files::new(StorageId(1), folder.path().to_owned(), None, table, cache);
        assert_eq!(
            lengths(&files),
            [Some(0), None, None, None, Some(4), None, Some(6), None, Some(8)]
        );
    }

    /// Fault 73: files that somebody deletes or cuts are found out, whether they are still open or were closed.
    #[test]
    fn files_are_missed_when_they_are_written_again() {
        for open_count in [1, 3] {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path();
            let cache = Arc::new(FileCache::new(open_count));
            let files = Files::new(StorageId(1), root.to_owned(), None, table(&[8, 8, 8]), cache);
            let write = |offset| files.write(Span { offset, len: 4 }, &blocks(&[1; 4], 4));
            for offset in [0, 8, 16] {
                write(offset).unwrap();
            }
            fs::remove_file(root.join("t/d/0")).unwrap();
            fs::File::options()
                .write(true)
                .open(root.join("t/d/1"))
                .unwrap()
                .set_len(3)
                .unwrap();
            let found = files.sync(false).unwrap().into_iter();
            let found: Vec<_> = found.map(|file| file.stamp.map(|stamp| stamp.len)).collect();
            assert_eq!(found, [None, None, Some(4)]);
            for (offset, is_whole) in [(4, false), (12, false), (20, true)] {
                assert_eq!(write(offset).is_ok(), is_whole, "{offset} of {open_count}");
            }
        }
    }

    /// Fault 77: a longer file that is there already keeps its end.
    #[test]
    fn longer_files_are_not_cut() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("t/d")).unwrap();
        fs::write(folder.path().join("t/d/0"), [9; 10]).unwrap();
        let files = files(folder.path(), &[4]);
        files.write(Span { offset: 0, len: 4 }, &blocks(&[1; 4], 4)).unwrap();
        assert_eq!(
            fs::read(folder.path().join("t/d/0")).unwrap(),
            [1, 1, 1, 1, 9, 9, 9, 9, 9, 9]
        );
    }

    #[test]
    fn absence_is_told_from_failure() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path(), &[4, 4]);
        let buffers = FileBuffers::default();
        let error = files.read(Span { offset: 0, len: 4 }, &buffers).unwrap_err();
        assert!(error.is_absence(), "{error}");
        files.write(Span { offset: 0, len: 2 }, &blocks(&[1; 2], 2)).unwrap();
        let error = files.read(Span { offset: 0, len: 4 }, &buffers).unwrap_err();
        assert!(error.is_absence(), "{error}");

        symlink("/etc/passwd", folder.path().join("t/d/1")).unwrap();
        let error = files.read(Span { offset: 4, len: 4 }, &buffers).unwrap_err();
        assert!(!error.is_absence());
        let shown = error.to_string();
        assert!(shown.starts_with("cannot open ") && shown.contains("t/d/1"), "{shown}");
        assert!(files.look().is_err());
    }

    #[test]
    fn preallocation_reserves_space() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path(), &[1 << 20]);
        files.prepare(false).unwrap();
        assert_eq!(lengths(&files), [None], "sparse by default");
        files.prepare(true).unwrap();
        let metadata = fs::metadata(folder.path().join("t/d/0")).unwrap();
        assert_eq!((metadata.len(), metadata.blocks() * 512 >= 1 << 20), (1 << 20, true));
    }

    #[test]
    fn vectored_writes_go_beyond_the_slice_limit() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path(), &[3000]);
        let data: Vec<u8> = (0..3000u32).map(|i| (i % 251) as u8).collect();
        files.write(Span { offset: 0, len: 3000 }, &blocks(&data, 1)).unwrap();
        assert_eq!(fs::read(folder.path().join("t/d/0")).unwrap(), data);
    }

    /// Fault 78: what others wrote stays, links stay where they lead, and nothing comes back.
    #[test]
    fn only_what_was_written_is_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("t/d")).unwrap();
        fs::write(root.join("t/d/1"), [1; 4]).unwrap();
        fs::write(root.join("t/sibling"), "mine").unwrap();
        let files = files(root, &[4, 4, 4]);
        let four = |offset| Span { offset, len: 4 };
        files.write(four(0), &blocks(&[1; 4], 4)).unwrap();
        files.write(four(8), &blocks(&[1; 4], 4)).unwrap();
        files.delete(&[2]).unwrap();
        let left = |name: &str| root.join(name).exists();
        assert!(!left("t/d/0") && left("t/d/1") && left("t/d/2") && left("t/sibling"));
        // Fault 105: a job in flight.
        assert!(files.write(four(0), &blocks(&[1; 4], 4)).is_err());
        assert!(!left("t/d/0"));

        let claims = FileClaims {
            created: [(1, None), (2, None)].into(),
            ..FileClaims::default()
        };
        let other = self::files(root, &[4, 4, 4]).with_claims(claims);
        other.delete(&[]).unwrap();
        assert!(!left("t/d") && left("t/sibling"), "folders go when they are empty");
    }

    #[test]
    fn deleting_follows_no_link() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("0"), "safe").unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("t")).unwrap();
        symlink(outside.path(), folder.path().join("t/d")).unwrap();
        let claims = FileClaims {
            created: [(0, None)].into(),
            ..FileClaims::default()
        };
        assert!(files(folder.path(), &[4]).with_claims(claims).delete(&[]).is_err());
        assert!(outside.path().join("0").exists());
    }

    /// Fault 75.
    #[test]
    fn nothing_is_written_where_another_volume_was() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Arc::new(FileCache::new(2));
        let root = folder.path().join("downloads");
        let files = Files::new(
            StorageId(1),
            root.clone(),
            Some("/not/mounted".into()),
            table(&[4]),
            cache,
        );
        let error = files
            .write(Span { offset: 0, len: 4 }, &blocks(&[1; 4], 4))
            .unwrap_err();
        assert!(error.is_volume_gone() && !error.is_absence(), "{error}");
        assert!(
            error.to_string().contains("nothing is mounted at /not/mounted"),
            "{error}"
        );
        assert!(!root.exists());
        assert!(files.look().unwrap_err().is_volume_gone());
    }
}
