//! One torrent's files.

use std::io::{self, IoSlice};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bevy_platform::collections::HashMap;
use bytes::Bytes;
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_protocol::files::{FileEntry, FileSlice, FileTable};
use ecs_torrent_protocol::geometry::Span;
use lru::LruCache;

use super::failure;
use crate::backends::beneath;
use crate::backends::buffers::FileBuffers;
use crate::ports::disk::{DiskAction, DiskError};

/// Most slices in one vectored write; what POSIX guarantees is 16, what every system of today allows is 1024.
const MAX_SLICES: usize = 1024;

type Result<T> = std::result::Result<T, DiskError>;

/// Open files, the ones not used for longest closed first; shared by all torrents.
pub struct FileCache {
    open: Mutex<LruCache<(StorageId, usize), OpenFile>>,
}

#[derive(Clone)]
struct OpenFile {
    fd: Arc<OwnedFd>,
    is_writable: bool,
}

impl FileCache {
    /// A cache of at most `max_open` files.
    #[must_use]
    pub fn new(max_open: usize) -> Self {
        let max_open = NonZeroUsize::new(max_open).unwrap_or(NonZeroUsize::MIN);
        Self {
            open: Mutex::new(LruCache::new(max_open)),
        }
    }

    /// Closes a torrent's files.
    pub fn forget(&self, storage: StorageId) {
        let mut open = self.lock();
        let keys: Vec<_> = open
            .iter()
            .map(|(key, _)| *key)
            .filter(|(owner, _)| *owner == storage)
            .collect();
        for key in keys {
            open.pop(&key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<(StorageId, usize), OpenFile>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One torrent's files below its download folder. Every call may block.
pub struct Files {
    storage: StorageId,
    root: PathBuf,
    table: FileTable,
    cache: Arc<FileCache>,
    /// Files written since the last sync.
    unsynced: Mutex<HashMap<usize, Arc<OwnedFd>>>,
}

impl Files {
    /// Files by their table, below `root`; `storage` names them in the cache. Nothing is opened yet.
    #[must_use]
    pub fn new(storage: StorageId, root: PathBuf, table: FileTable, cache: Arc<FileCache>) -> Self {
        Self {
            storage,
            root,
            table,
            cache,
            unsynced: Mutex::default(),
        }
    }

    /// The download folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The length of each file that is there.
    ///
    /// # Errors
    /// Where one is there and is no plain file, or cannot be looked at.
    pub fn look(&self) -> Result<Vec<Option<u64>>> {
        let root = match beneath::open_root(&self.root) {
            Ok(root) => root,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![None; self.entries().len()]),
            Err(error) => return Err(failure(DiskAction::Open, self.root.clone(), error)),
        };
        let lengths = self.entries().iter().map(|entry| {
            if !entry.is_stored() {
                return Ok(None);
            }
            let length = beneath::open(root.as_fd(), &entry.path, false).and_then(|file| file_length(&file));
            match length {
                Ok(length) => Ok(Some(length)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(failure(DiskAction::Open, self.path(entry), error)),
            }
        });
        lengths.collect()
    }

    /// Creates the files without bytes, which no write will, and reserves the others' space where asked to.
    ///
    /// # Errors
    /// Where a file cannot be created, or there is no space to reserve.
    pub fn prepare(&self, is_preallocated: bool) -> Result<()> {
        for (index, entry) in self.entries().iter().enumerate() {
            if !entry.is_stored() || (entry.len > 0 && !is_preallocated) {
                continue;
            }
            let file = self.file(index, true)?;
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
        for slice in self.slices(span) {
            let (part, rest) = unfilled.split_at_mut(slice.len as usize);
            unfilled = rest;
            if slice.pad {
                part.fill(0);
                continue;
            }
            let file = self.file(slice.file, false)?;
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
        debug_assert_eq!(blocks.iter().map(Bytes::len).sum::<usize>(), span.len as usize);
        let mut unwritten = Cursor { blocks, offset: 0 };
        for slice in self.slices(span) {
            let part = unwritten.take(slice.len as usize);
            if slice.pad {
                continue;
            }
            let file = self.file(slice.file, true)?;
            write_all(&file, slice.offset, part)
                .map_err(|error| failure(DiskAction::Write, self.path(&self.entries()[slice.file]), error))?;
            self.lock_unsynced().insert(slice.file, file);
        }
        Ok(())
    }

    /// Brings to the platter what was written before the call.
    ///
    /// # Errors
    /// Where the system could not.
    pub fn sync(&self) -> Result<()> {
        let unsynced = std::mem::take(&mut *self.lock_unsynced());
        for (index, file) in unsynced {
            rustix::fs::fdatasync(&file)
                .map_err(|error| failure(DiskAction::Sync, self.path(&self.entries()[index]), error.into()))?;
        }
        Ok(())
    }

    /// The open file `index`, out of the cache or opened now.
    fn file(&self, index: usize, is_writable: bool) -> Result<Arc<OwnedFd>> {
        let key = (self.storage, index);
        if let Some(open) = self.cache.lock().get(&key)
            && (open.is_writable || !is_writable)
        {
            return Ok(open.fd.clone());
        }
        let entry = &self.entries()[index];
        let open = || {
            if is_writable {
                std::fs::create_dir_all(&self.root)?;
            }
            let root = beneath::open_root(&self.root)?;
            if is_writable {
                beneath::create(root.as_fd(), &entry.path)
            } else {
                beneath::open(root.as_fd(), &entry.path, false)
            }
        };
        let fd = Arc::new(open().map_err(|error| failure(DiskAction::Open, self.path(entry), error))?);
        let open = OpenFile {
            fd: fd.clone(),
            is_writable,
        };
        self.cache.lock().put(key, open);
        Ok(fd)
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

    fn lock_unsynced(&self) -> MutexGuard<'_, HashMap<usize, Arc<OwnedFd>>> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn file_length(file: &OwnedFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(file)?.st_size.try_into().unwrap_or(0))
}

fn read_exactly(file: &OwnedFd, mut offset: u64, mut part: &mut [u8]) -> io::Result<()> {
    while !part.is_empty() {
        match rustix::io::pread(file, &mut *part, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                offset += read as u64;
                part = &mut part[read..];
            }
            Err(rustix::io::Errno::INTR) => {}
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
            Err(rustix::io::Errno::INTR) => {}
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
        let mut offset = 0;
        let entries = (0..).zip(lengths).map(|(i, &len)| {
            offset += len;
            FileEntry {
                path: format!("t/d/{i}").into(),
                len,
                offset: offset - len,
                attributes: FileAttributes::default(),
            }
        });
        FileTable::new(entries.collect())
    }

    fn files(root: &Path, lengths: &[u64]) -> Files {
        let cache = Arc::new(FileCache::new(2));
        Files::new(StorageId(1), root.to_owned(), table(lengths), cache)
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
        assert_eq!(files.look().unwrap(), [None; 5]);
        assert!(!root.exists(), "looking creates nothing");
        files.write(Span { offset: 0, len: 4009 }, &blocks(&data, 7)).unwrap();
        files.prepare(false).unwrap();
        assert_eq!(files.look().unwrap(), [5, 0, 3, 4000, 1].map(Some));
        assert_eq!(fs::read(root.join("t/d/2")).unwrap(), data[5..8]);
        let buffers = FileBuffers::default();
        for (offset, len) in [(0, 4009), (4, 2), (7, 4001), (4008, 1)] {
            let read = files.read(Span { offset, len }, &buffers).unwrap();
            assert_eq!(read, data[offset as usize..][..len as usize]);
        }
        files.sync().unwrap();
        assert!(files.lock_unsynced().is_empty());
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
        assert_eq!(files.look().unwrap(), [None], "sparse by default");
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
}
