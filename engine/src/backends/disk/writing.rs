//! Writing a torrent's files, and syncing written bytes to stable storage.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use ecs_torrent_protocol::files::{FileEntry, FilePlace, FileSlice};
use ecs_torrent_protocol::geometry::Span;
use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::Errno;

use super::files::{Files, Result, read_exactly};
use super::provenance::Known;
use crate::backends::beneath::{self, Parent, Status};
use crate::ports::disk::{
    DiskAction, DiskError, FileNeeds, HeldPieces, Provenance, Refusal, SyncedFile, check_padding,
};

/// Maximum number of slices in one vectored write. POSIX guarantees 16; all current systems allow 1024.
const MAX_SLICES: usize = 1024;

/// Bytes read at a time to be compared with the bytes to write.
const COMPARE_BYTES: usize = 64 << 10;

/// A file, and the way in which a write may use it.
enum Target {
    Write(Arc<OwnedFd>),
    /// The user's file, which the user allowed the torrent to change. Bytes that are already correct are not written.
    Overwrite(Arc<OwnedFd>),
    /// Not this torrent's file: the bytes to write must already be there.
    Compare(Arc<OwnedFd>),
}

impl Files {
    /// Creates files of length zero, which no write creates, and reserves space for the others on request. Files that
    /// this torrent did not create are left unchanged. Takes over which files are wanted; returns the files whose bytes
    /// are no longer in the part file alone.
    ///
    /// # Errors
    /// If a file cannot be created, or there is no space to reserve.
    pub fn prepare(&self, is_preallocated: bool, needs: Option<&FileNeeds>) -> Result<Vec<u32>> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let moved = needs.map_or(Ok(Vec::new()), |needs| self.move_parts(needs))?;
        self.create_wanted(is_preallocated).map(|()| moved)
    }

    fn create_wanted(&self, is_preallocated: bool) -> Result<()> {
        let parts = self.parts();
        let is_skipped = |index: usize| parts.as_ref().is_some_and(|parts| parts.skipped.contains(index as u32));
        let is_wanted = |entry: &FileEntry| entry.is_stored() && (entry.len == 0 || is_preallocated);
        if !self.entries().iter().any(is_wanted) {
            return Ok(());
        }
        let root = self.created_folder()?;
        let mut parent = Parent::new(root.as_fd());
        let entries = self.entries().iter().enumerate();
        for (index, entry) in entries.filter(|(index, entry)| is_wanted(entry) && !is_skipped(*index)) {
            let Target::Write(file) = self.target(&mut parent, index)? else {
                continue;
            };
            let reserved = match entry.len {
                0 => Ok(()),
                len => fallocate(&file, FallocateFlags::empty(), 0, len),
            };
            // Also after a failure: the file may be new.
            self.record(index, 0, &file)?;
            reserved.map_err(|error| DiskError::new(DiskAction::Allocate, self.path(entry), error.into()))?;
        }
        Ok(())
    }

    /// Writes a run of bytes, given in slices, across as many files as it spans, and skips padding and gaps. In files
    /// that are not this torrent's, compares the bytes with the existing ones.
    ///
    /// # Errors
    /// If a file cannot be created or written, or is not this torrent's and differs ([`DiskError::is_foreign`]), or
    /// padding is not zero ([`DiskError::is_bad_padding`]). Some of the bytes may have been written.
    pub fn write(&self, span: Span, blocks: &[Bytes]) -> Result<()> {
        let is_deleted = self.is_deleted.read().unwrap_or_else(PoisonError::into_inner);
        if *is_deleted {
            return Err(DiskError::new(
                DiskAction::Write,
                self.root().to_path_buf(),
                io::Error::other("it is being deleted"),
            ));
        }
        debug_assert_eq!(blocks.iter().map(Bytes::len).sum::<usize>(), span.len as usize);
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let root = self.created_folder()?;
        let mut parent = Parent::new(root.as_fd());
        let mut unwritten = Cursor { blocks, offset: 0 };
        for slice in self.slices(span) {
            if self.parts.get().is_none() {
                self.write_slice(&mut parent, slice, unwritten.take(slice.len as usize))?;
                continue;
            }
            for cut in self.cuts(slice) {
                let part = unwritten.take(cut.slice.len as usize);
                if cut.is_refused {
                    return Err(self.unwanted(cut.slice));
                }
                let copy = cut.copy.map(|place| FileSlice {
                    place: Some(place),
                    ..cut.slice
                });
                for slice in std::iter::once(cut.slice).chain(copy) {
                    self.write_slice(&mut parent, slice, part.clone())?;
                }
            }
        }
        Ok(())
    }

    /// Writes the bytes of a slice.
    pub(super) fn write_slice<'b>(
        &self,
        parent: &mut Parent<'_>,
        slice: FileSlice,
        part: impl Iterator<Item = &'b [u8]> + Clone,
    ) -> Result<()> {
        let Some(FilePlace { file: index, offset }) = slice.place else {
            return check_padding(&self.root(), part);
        };
        let end = offset + u64::from(slice.len);
        let failed = |error| DiskError::new(DiskAction::Write, self.path(self.entry(index)), error);
        let file = match self.target(parent, index)? {
            Target::Write(file) => file,
            Target::Overwrite(file) => match compare_all(&file, offset, part.clone()) {
                Ok(()) => {
                    self.ledger().record(index, end, None);
                    return Ok(());
                }
                Err(_) => file,
            },
            Target::Compare(file) => {
                compare_all(&file, offset, part).map_err(failed)?;
                self.ledger().record(index, end, None);
                return Ok(());
            }
        };
        let written = write_all(&file, offset, part);
        // Also after a failure: some of the bytes may have been written.
        self.record(index, if written.is_ok() { end } else { 0 }, &file)?;
        written.map_err(failed)
    }

    /// Records that a file was written, and its state afterward.
    fn record(&self, index: usize, end: u64, file: &OwnedFd) -> Result<()> {
        let status = self
            .status_of(file)
            .map_err(|error| DiskError::new(DiskAction::Write, self.path(self.entry(index)), error))?;
        self.ledger().record(index, end, Some(&status));
        Ok(())
    }

    /// Returns a file for writing, from the cache, opened or created below `parent`'s root. Checks that it is the same
    /// file as before, and intact. A file that was created is to be recorded after its first use, whether that succeeds
    /// or not.
    fn target(&self, parent: &mut Parent<'_>, index: usize) -> Result<Target> {
        let known = self.ledger().known.get(&index).copied();
        if let (Some(known), Some(file)) = (known, self.shared.cache.get(self.key(index), true)) {
            let entry = self.entry(index);
            let status = self
                .status_of(&file)
                .map_err(|error| DiskError::new(DiskAction::Write, self.path(entry), error))?;
            self.check_writable(index, &known, &status)?;
            return Ok(writable(&known, file));
        }
        match known {
            Some(known) => self.open_known(index, known),
            None => self.open_unknown(parent, index),
        }
    }

    /// Opens a file that this storage created or may write.
    fn open_known(&self, index: usize, known: Known) -> Result<Target> {
        let may_write = known.provenance == Provenance::Created || self.shared.owners.take(known.id, self.storage);
        if !may_write {
            return self.readable(index).map(Target::Compare);
        }
        let (file, status) = self.open(index, true)?;
        self.check_writable(index, &known, &status)?;
        Ok(writable(&known, self.keep_open(index, file, true)))
    }

    /// Creates a file, or opens the existing one, which may not be this torrent's.
    fn open_unknown(&self, parent: &mut Parent<'_>, index: usize) -> Result<Target> {
        match self.create(parent, index) {
            Ok((file, status)) => {
                self.shared.owners.take_new(status.id, self.storage);
                let known = Known::new(&self.believable(status), Provenance::Created);
                self.ledger().known.insert(index, known);
                if let Some(names) = &self.names {
                    names.record_existing(index);
                }
                return Ok(Target::Write(self.keep_open(index, file, true)));
            }
            Err(error) if is_in_the_way(&error) => {}
            Err(error) => return Err(error),
        }
        if let Some(file) = self.shared.cache.get(self.key(index), false) {
            return Ok(Target::Compare(file));
        }
        let (file, status) = self.open(index, false)?;
        let known = self.classify(index, &file, &status);
        match self.ledger().known.contains_key(&index) {
            true => self.open_known(index, known),
            false => Ok(Target::Compare(self.keep_open(index, file, false))),
        }
    }

    /// Creates a file with the torrent's mark, and the folders above it.
    pub(super) fn create(&self, parent: &mut Parent<'_>, index: usize) -> Result<(OwnedFd, Status)> {
        let mark = |file: &OwnedFd, status: &Status| self.mark(Some(index), file, status);
        self.make(parent, index, |parent, path| beneath::create_new(parent, path, mark))
    }

    /// Makes a name for a file with `make`, and the folders above it.
    pub(super) fn make<T>(
        &self,
        parent: &mut Parent<'_>,
        index: usize,
        make: impl Fn(&mut Parent<'_>, &str) -> io::Result<T>,
    ) -> Result<T> {
        let entry = self.entry(index);
        if self.is_closed.load(Ordering::Relaxed) {
            let error = io::Error::other("these files are closed");
            return Err(DiskError::new(DiskAction::Use, self.path(entry), error));
        }
        let root = parent.root();
        self.check_folder(root, entry)?;
        let created = self.whatever_it_takes(|| match make(parent, &entry.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                parent.close();
                beneath::create_folders(root, &entry.path, |folder| {
                    if let Ok(status) = Status::of(folder) {
                        self.mark(None, folder, &status);
                    }
                })?;
                Err(error)
            }
            result => result,
        });
        match created {
            // The folders exist now, but somebody may have put them there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.check_folder(root, entry)?;
                self.whatever_it_takes(|| make(parent, &entry.path))
            }
            result => result,
        }
        .map_err(|error| DiskError::new(DiskAction::Open, self.path(entry), error))
    }

    fn keep_open(&self, index: usize, file: OwnedFd, is_writable: bool) -> Arc<OwnedFd> {
        let file = Arc::new(file);
        self.shared.cache.put(self.key(index), file.clone(), is_writable);
        file
    }

    /// Checks that a file may be written: like [`Files::check_file`], and a file of this torrent has no second hard
    /// link.
    fn check_writable(&self, index: usize, known: &Known, status: &Status) -> Result<()> {
        if status.link_count > 1 && known.id == status.id && known.provenance == Provenance::Created {
            let path = self.path(self.entry(index));
            return Err(DiskError::new(DiskAction::Write, path, Refusal::Linked.into()));
        }
        self.check_file(index, known, status)
    }

    /// Checks that an open file was not deleted, replaced or truncated: bytes written to a deleted file are lost, and
    /// so are the bytes beyond the end of a truncated one. If somebody else has written to the file since our last
    /// write, marks its bytes as in doubt.
    fn check_file(&self, index: usize, known: &Known, status: &Status) -> Result<()> {
        let is_remote = self.root.is_remote();
        // Where files have no time of creation, another file may have the same number.
        let may_be_another =
            status.id.born_ns.is_none() && !is_remote && !known.stamp.matches(&status.stamp) && known.least > 0;
        let reason = match status.link_count {
            0 => "it was deleted meanwhile",
            _ if known.id != status.id || (may_be_another && known.provenance == Provenance::Created) => {
                "it was replaced meanwhile"
            }
            _ if status.stamp.len < known.least => "it was cut meanwhile",
            _ => {
                self.ledger().compare(index, status, is_remote);
                return Ok(());
            }
        };
        self.shared.cache.forget(self.storage);
        // Reported as an absence: bytes that existed are gone.
        let error = io::Error::new(io::ErrorKind::UnexpectedEof, reason);
        Err(DiskError::new(DiskAction::Write, self.path(self.entry(index)), error))
    }

    /// Syncs all bytes written before the call to stable storage, and returns the files that were written. A file that
    /// somebody else has deleted, truncated or changed in the meantime has no stamp. With `is_for_all`, also syncs the
    /// other existing files, without returning them.
    ///
    /// # Errors
    /// If the system fails to sync a file.
    pub fn sync(&self, is_for_all: bool) -> Result<Vec<SyncedFile>> {
        let unsynced = std::mem::take(&mut self.ledger().unsynced);
        let mut synced = Vec::with_capacity(unsynced.len());
        // Looked at once, when the first file has to be opened.
        let mut root = None;
        for index in unsynced {
            match self.sync_file(index, &mut root) {
                Ok(file) => synced.push(file),
                Err(error) if error.is_absence() => {
                    let known = self.ledger().known.get(&index).copied();
                    // A truncated file is still the same one.
                    let is_there =
                        |known: &Known| self.open(index, false).is_ok_and(|(_, status)| status.id == known.id);
                    synced.push(SyncedFile {
                        index,
                        stamp: None,
                        id: known.filter(is_there).map(|known| known.id),
                        provenance: known.map_or(Provenance::Found, |known| known.provenance),
                    });
                }
                Err(error) => return Err(error),
            }
        }
        if is_for_all {
            let is_synced = |index: &usize| synced.binary_search_by_key(index, |file| file.index).is_ok();
            let stored = (0..self.entries().len()).filter(|index| self.entries()[*index].is_stored());
            for index in stored.filter(|index| !is_synced(index)) {
                match self.sync_file(index, &mut root) {
                    Err(error) if !error.is_absence() => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(synced)
    }

    /// Syncs as [`Files::sync`], and takes the suffix of incomplete files from the files that are complete.
    pub(crate) fn sync_complete(&self, is_for_all: bool, held: Option<&HeldPieces>) -> Result<Vec<SyncedFile>> {
        let mut synced = self.sync(is_for_all)?;
        if let Some(held) = held {
            self.drop_suffixes(&mut synced, held);
        }
        Ok(synced)
    }

    /// Syncs a file. If it has been closed since the write, the system still holds the written bytes: the file is
    /// opened briefly, without displacing another file from the cache.
    fn sync_file(&self, index: usize, root: &mut Option<Arc<OwnedFd>>) -> Result<SyncedFile> {
        let file = match self.shared.cache.get(self.key(index), false) {
            Some(file) => file,
            None => {
                let root = match root {
                    Some(root) => root,
                    None => root.insert(self.folder()?),
                };
                // Examined after the sync.
                Arc::new(self.open_with(root, index, beneath::open_unexamined)?)
            }
        };
        let failed = |error: Errno| DiskError::new(DiskAction::Sync, self.path(self.entry(index)), error.into());
        fdatasync(&file).map_err(failed)?;
        // Not while a write has changed the file but not recorded it yet.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let status = self.status_of(&file).and_then(Status::regular);
        let status = status.map_err(|error| DiskError::new(DiskAction::Sync, self.path(self.entry(index)), error))?;
        let known = self.ledger().known.get(&index).copied();
        if let Some(known) = known {
            self.check_file(index, &known, &status)?;
        }
        // From now on the session knows the file.
        if let Some(key) = self.claims.key {
            self.shared.unmarked.remove(key, status.id);
        }
        let mut ledger = self.ledger();
        let known = ledger.known.get_mut(&index);
        let is_in_doubt = known.is_some_and(|known| std::mem::take(&mut known.is_in_doubt));
        let known = ledger.known.get(&index);
        Ok(SyncedFile {
            index,
            stamp: (!is_in_doubt).then_some(status.stamp),
            id: Some(status.id),
            provenance: known.map_or(Provenance::Found, |known| known.provenance),
        })
    }
}

fn writable(known: &Known, file: Arc<OwnedFd>) -> Target {
    match known.provenance {
        Provenance::Created => Target::Write(file),
        Provenance::Found => Target::Overwrite(file),
    }
}

/// Whether an entry with the name of the new file already exists.
fn is_in_the_way(error: &DiskError) -> bool {
    error.error.kind() == io::ErrorKind::AlreadyExists
}

/// Checks that the file already contains the bytes.
fn compare_all<'b>(file: &OwnedFd, mut offset: u64, parts: impl Iterator<Item = &'b [u8]>) -> io::Result<()> {
    let mut buffer = vec![0; COMPARE_BYTES];
    for part in parts.flat_map(|part| part.chunks(COMPARE_BYTES)) {
        let found = &mut buffer[..part.len()];
        match read_exactly(file, offset, found) {
            Ok(()) if found == part => offset += part.len() as u64,
            // A file that ends earlier would have to grow.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            _ => return Err(Refusal::Foreign.into()),
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

/// A cursor over blocks as if they were one run of bytes.
struct Cursor<'b> {
    blocks: &'b [Bytes],
    offset: usize,
}

impl<'b> Cursor<'b> {
    /// Takes the next `len` bytes, as slices.
    fn take(&mut self, len: usize) -> impl Iterator<Item = &'b [u8]> + Clone + use<'b> {
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
