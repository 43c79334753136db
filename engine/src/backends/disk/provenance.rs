//! File ownership: each storage's knowledge of its files, and the storage that may write each file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bevy_platform::collections::HashMap;
use bevy_platform::collections::hash_map::Entry;
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_components::session::{FileId, FileStamp};
use rustix::fs::Stat;

use crate::backends::beneath::id_of;
use crate::ports::disk::{FileClaims, Provenance};

/// The storage that may write each file. Any other storage that reaches the same file, by whatever name, may only read
/// it.
#[derive(Default)]
pub(super) struct Owners(Mutex<HashMap<FileId, StorageId>>);

impl Owners {
    /// Makes a storage the writer of a file. Returns false if another storage already is.
    pub(super) fn take(&self, id: FileId, storage: StorageId) -> bool {
        match self.lock().entry(id) {
            Entry::Occupied(owner) => *owner.get() == storage,
            Entry::Vacant(place) => {
                place.insert(storage);
                true
            }
        }
    }

    /// Makes a storage the writer of a file it has just created. The previous file with this inode number no longer
    /// exists.
    pub(super) fn take_new(&self, id: FileId, storage: StorageId) {
        self.lock().insert(id, storage);
    }

    /// Ends a storage's right to write files.
    pub(super) fn let_go(&self, ids: impl IntoIterator<Item = FileId>, storage: StorageId) {
        let mut owners = self.lock();
        for id in ids {
            if let Entry::Occupied(owner) = owners.entry(id)
                && *owner.get() == storage
            {
                owner.remove();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FileId, StorageId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A storage's knowledge of a file that it created or may write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) id: FileId,
    pub(super) provenance: Provenance,
    /// The minimum length of the file, given the writes to it so far.
    pub(super) least: u64,
    /// The stamp as this storage left the file.
    pub(super) stamp: FileStamp,
    /// Whether somebody else has changed the file since the last sync.
    pub(super) is_in_doubt: bool,
}

impl Known {
    pub(super) fn new(stat: &Stat, provenance: Provenance) -> Self {
        Self {
            id: id_of(stat),
            provenance,
            least: 0,
            stamp: stamp_of(stat),
            is_in_doubt: false,
        }
    }
}

/// A storage's knowledge of its files.
#[derive(Default)]
pub(super) struct Ledger {
    /// Files that were written, or compared with the bytes to write, since the last sync.
    pub(super) unsynced: BTreeSet<usize>,
    pub(super) known: BTreeMap<usize, Known>,
    /// Whether the files have been looked at. A file that appears later belongs to somebody else, whatever the session
    /// claims.
    pub(super) is_looked_at: bool,
}

impl Ledger {
    /// Whether an existing file is the one that the session claims: it has the same inode, or is as the session left
    /// it. A file with a second name is not, because somebody may use it under that name.
    pub(super) fn is_claimed(&self, claims: &FileClaims, index: usize, stat: &Stat) -> bool {
        let claim = claims.created.get(&index).filter(|_| !self.is_looked_at);
        let saved = claims.stamps.get(index).copied().flatten();
        stat.st_nlink == 1
            && claim.is_some_and(|claim| claim.is_none_or(|id| id == id_of(stat)) || saved == Some(stamp_of(stat)))
    }

    /// Records that a file was written or compared up to `end`, and its state afterwards.
    pub(super) fn record(&mut self, index: usize, end: u64, stat: Option<&Stat>) {
        self.unsynced.insert(index);
        if let Some(known) = self.known.get_mut(&index) {
            known.least = end.max(known.least);
            known.stamp = stat.map_or(known.stamp, stamp_of);
        }
    }

    /// Compares a file with the state in which it was left. If the states differ, somebody else has changed the file.
    /// On a remote volume only the length is compared.
    pub(super) fn compare(&mut self, index: usize, stat: &Stat, is_remote: bool) {
        if let Some(known) = self.known.get_mut(&index) {
            let now = stamp_of(stat);
            known.is_in_doubt |= known.stamp.len != now.len || (!is_remote && known.stamp != now);
            known.stamp = now;
        }
    }
}

pub(super) fn stamp_of(stat: &Stat) -> FileStamp {
    FileStamp {
        len: stat.st_size.try_into().unwrap_or(0),
        seconds: stat.st_mtime,
        nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    }
}
