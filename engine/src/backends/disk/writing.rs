//! Writing a torrent's files, and bringing what was written to stable storage.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use ecs_torrent_protocol::files::FileEntry;
use ecs_torrent_protocol::geometry::Span;
use rustix::fs::{FallocateFlags, Stat, fallocate, fdatasync, fstat};
use rustix::io::Errno;

use super::failure;
use super::files::{Files, Result, read_exactly};
use super::provenance::{Known, stamp_of};
use crate::backends::beneath::{self, id_of};
use crate::ports::disk::{DiskAction, DiskError, Provenance, Refusal, SyncedFile};

/// Most slices in one vectored write; what POSIX guarantees is 16, what every system of today allows is 1024.
const MAX_SLICES: usize = 1024;

/// Bytes that are read at a time to be compared with what was to be written.
const COMPARE_BYTES: usize = 64 << 10;

/// A file, and what a write may do to it.
enum Target {
    Write(Arc<OwnedFd>),
    /// It is the user's, who allowed to change it; where it is right already, it stays as it is.
    Overwrite(Arc<OwnedFd>),
    /// It is not this torrent's: what is to be written has to be there already.
    Compare(Arc<OwnedFd>),
}

impl Files {
    /// Creates the files without bytes, which no write will, and reserves the others' space where asked to. Files that
    /// this torrent did not create stay as they are.
    ///
    /// # Errors
    /// Where a file cannot be created, or there is no space to reserve.
    pub fn prepare(&self, is_preallocated: bool) -> Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, entry) in self.entries().iter().enumerate() {
            if !entry.is_stored() || (entry.len > 0 && !is_preallocated) {
                continue;
            }
            let Target::Write(file) = self.target(index)? else {
                continue;
            };
            if entry.len > 0 {
                fallocate(&file, FallocateFlags::empty(), 0, entry.len)
                    .map_err(|error| failure(DiskAction::Allocate, self.path(entry), error.into()))?;
            }
            self.record(index, 0, &file)?;
        }
        Ok(())
    }

    /// Writes a run of bytes, given in slices, over as many files as it spans; padding is left out. Bytes of files that
    /// are not this torrent's are compared with what is there.
    ///
    /// # Errors
    /// Where a file cannot be created or written, or is not this torrent's and differs ([`DiskError::is_foreign`]). Part
    /// of the bytes may have been written.
    pub fn write(&self, span: Span, blocks: &[Bytes]) -> Result<()> {
        let is_deleted = self.is_deleted.read().unwrap_or_else(PoisonError::into_inner);
        if *is_deleted {
            return Err(failure(
                DiskAction::Write,
                self.root().to_path_buf(),
                io::Error::other("it is being deleted"),
            ));
        }
        debug_assert_eq!(blocks.iter().map(Bytes::len).sum::<usize>(), span.len as usize);
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.created_folder()?;
        let mut unwritten = Cursor { blocks, offset: 0 };
        for slice in self.slices(span) {
            let part = unwritten.take(slice.len as usize);
            if slice.pad {
                continue;
            }
            let end = slice.offset + u64::from(slice.len);
            let failed = |error| failure(DiskAction::Write, self.path(&self.entries()[slice.file]), error);
            let file = match self.target(slice.file)? {
                Target::Write(file) => file,
                Target::Overwrite(file) => match compare_all(&file, slice.offset, part.clone()) {
                    Ok(()) => {
                        self.ledger().record(slice.file, end, None);
                        continue;
                    }
                    Err(_) => file,
                },
                Target::Compare(file) => {
                    compare_all(&file, slice.offset, part).map_err(failed)?;
                    self.ledger().record(slice.file, end, None);
                    continue;
                }
            };
            let written = write_all(&file, slice.offset, part);
            // Also where it failed: a part may be there.
            self.record(slice.file, if written.is_ok() { end } else { 0 }, &file)?;
            written.map_err(failed)?;
        }
        Ok(())
    }

    /// Records that a file was written, and how it looks by that.
    fn record(&self, index: usize, end: u64, file: &OwnedFd) -> Result<()> {
        let stat =
            fstat(file).map_err(|error| failure(DiskAction::Write, self.path(&self.entries()[index]), error.into()))?;
        self.ledger().record(index, end, Some(&stat));
        Ok(())
    }

    /// A file to be written, out of the cache, opened or created now. It is the one that was written before, and whole.
    fn target(&self, index: usize) -> Result<Target> {
        let known = self.ledger().known.get(&index).copied();
        if let (Some(known), Some(file)) = (known, self.shared.cache.get(self.key(index), true)) {
            let entry = &self.entries()[index];
            let stat = fstat(&file).map_err(|error| failure(DiskAction::Write, self.path(entry), error.into()))?;
            self.check_file(index, &known, &stat)?;
            return Ok(writable(&known, file));
        }
        match known {
            Some(known) => self.open_known(index, known),
            None => self.open_unknown(index),
        }
    }

    /// A file that this storage has created, or may write.
    fn open_known(&self, index: usize, known: Known) -> Result<Target> {
        let may_write = known.provenance == Provenance::Created || self.shared.owners.take(known.id, self.storage);
        if !may_write {
            return self.readable(index).map(Target::Compare);
        }
        let (file, stat) = self.open(index, true)?;
        self.check_file(index, &known, &stat)?;
        Ok(writable(&known, self.keep_open(index, file, true)))
    }

    /// A file that was not there, or is not this torrent's. It is created only where there is nothing.
    fn open_unknown(&self, index: usize) -> Result<Target> {
        let entry = &self.entries()[index];
        let failed = |error| failure(DiskAction::Open, self.path(entry), error);
        match self.create(entry) {
            Ok(file) => {
                let stat = fstat(&file).map_err(|error| failed(error.into()))?;
                self.shared.owners.take_new(id_of(&stat), self.storage);
                let known = Known::new(&stat, Provenance::Created);
                self.ledger().known.insert(index, known);
                return Ok(Target::Write(self.keep_open(index, file, true)));
            }
            Err(error) if is_in_the_way(&error) => {}
            Err(error) => return Err(error),
        }
        if let Some(file) = self.shared.cache.get(self.key(index), false) {
            return Ok(Target::Compare(file));
        }
        let (file, stat) = self.open(index, false)?;
        let known = self.classify(index, &stat);
        match self.ledger().known.contains_key(&index) {
            true => self.open_known(index, known),
            false => Ok(Target::Compare(self.keep_open(index, file, false))),
        }
    }

    fn create(&self, entry: &FileEntry) -> Result<OwnedFd> {
        if self.is_closed.load(Ordering::Relaxed) {
            let error = io::Error::other("these files are closed");
            return Err(failure(DiskAction::Use, self.path(entry), error));
        }
        let root = self.created_folder()?;
        self.check_folder(root.as_fd(), entry)?;
        let created = self.whatever_it_takes(|| match beneath::create_new(root.as_fd(), &entry.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                beneath::create_folders(root.as_fd(), &entry.path)?;
                Err(error)
            }
            result => result,
        });
        match created {
            // The folders are there now, but may have been there all the time, or have been put there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.check_folder(root.as_fd(), entry)?;
                self.whatever_it_takes(|| beneath::create_new(root.as_fd(), &entry.path))
            }
            result => result,
        }
        .map_err(|error| failure(DiskAction::Open, self.path(entry), error))
    }

    fn keep_open(&self, index: usize, file: OwnedFd, is_writable: bool) -> Arc<OwnedFd> {
        let file = Arc::new(file);
        self.shared.cache.put(self.key(index), file.clone(), is_writable);
        file
    }

    /// What is written to an open file that somebody has deleted is nowhere, and in one that somebody has cut, what was
    /// there before is not. What somebody else has written to it since it was last written here is in doubt.
    fn check_file(&self, index: usize, known: &Known, stat: &Stat) -> Result<()> {
        let reason = match stat.st_nlink {
            0 => "it was deleted meanwhile",
            _ if known.id != id_of(stat) => "it was replaced meanwhile",
            _ if stamp_of(stat).len < known.least => "it was cut meanwhile",
            _ => {
                self.ledger().compare(index, stat, self.root.is_remote());
                return Ok(());
            }
        };
        self.shared.cache.forget(self.storage);
        // An absence: bytes that were there are not.
        let error = io::Error::new(io::ErrorKind::UnexpectedEof, reason);
        Err(failure(DiskAction::Write, self.path(&self.entries()[index]), error))
    }

    /// Brings to stable storage what was written before the call, and tells which files that were; without a stamp where
    /// somebody has deleted, cut or changed one meanwhile. With `is_for_all` the other files that are there too, untold.
    ///
    /// # Errors
    /// Where the system could not.
    pub fn sync(&self, is_for_all: bool) -> Result<Vec<SyncedFile>> {
        let unsynced = std::mem::take(&mut self.ledger().unsynced);
        let mut synced = Vec::with_capacity(unsynced.len());
        for index in unsynced {
            match self.sync_file(index) {
                Ok(file) => synced.push(file),
                Err(error) if error.is_absence() => {
                    let known = self.ledger().known.get(&index).copied();
                    synced.push(SyncedFile {
                        index,
                        stamp: None,
                        id: None,
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
                match self.sync_file(index) {
                    Err(error) if !error.is_absence() => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(synced)
    }

    /// Where the file has been closed since, the system still has what was written to it. It is opened for a moment
    /// then, and displaces none that is in use.
    fn sync_file(&self, index: usize) -> Result<SyncedFile> {
        let file = match self.shared.cache.get(self.key(index), false) {
            Some(file) => file,
            None => Arc::new(self.open(index, false)?.0),
        };
        let failed = |error: Errno| failure(DiskAction::Sync, self.path(&self.entries()[index]), error.into());
        fdatasync(&file).map_err(failed)?;
        // Not while a write has changed the file and has not told yet.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let stat = fstat(&file).map_err(failed)?;
        let known = self.ledger().known.get(&index).copied();
        if let Some(known) = known {
            self.check_file(index, &known, &stat)?;
        }
        let mut ledger = self.ledger();
        let known = ledger.known.get_mut(&index);
        let is_in_doubt = known.is_some_and(|known| std::mem::take(&mut known.is_in_doubt));
        let known = ledger.known.get(&index);
        Ok(SyncedFile {
            index,
            stamp: (!is_in_doubt).then(|| stamp_of(&stat)),
            id: Some(id_of(&stat)),
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

/// Whether something has the name of a file that was to be created.
fn is_in_the_way(error: &DiskError) -> bool {
    error.error.kind() == io::ErrorKind::AlreadyExists
}

/// Looks whether what was to be written is there.
fn compare_all<'b>(file: &OwnedFd, mut offset: u64, parts: impl Iterator<Item = &'b [u8]>) -> io::Result<()> {
    let mut buffer = vec![0; COMPARE_BYTES];
    for part in parts.flat_map(|part| part.chunks(COMPARE_BYTES)) {
        let found = &mut buffer[..part.len()];
        match read_exactly(file, offset, found) {
            Ok(()) if found == part => offset += part.len() as u64,
            // Where it ends before, it would have to grow.
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

/// Walks along blocks as if they were one run of bytes.
struct Cursor<'b> {
    blocks: &'b [Bytes],
    offset: usize,
}

impl<'b> Cursor<'b> {
    /// The next `len` bytes, as slices.
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
