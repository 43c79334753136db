//! Whose a file is: what each storage knows of its files, and which storage may write which file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bevy_platform::collections::HashMap;
use bevy_platform::collections::hash_map::Entry;
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_components::session::{FileId, FileStamp};
use rustix::fs::Stat;

use crate::backends::beneath::id_of;
use crate::ports::disk::{FileClaims, Provenance};

/// Which storage may write a file. Every other storage that comes to the same file, by whatever name, may only read it.
#[derive(Default)]
pub(super) struct Owners(Mutex<HashMap<FileId, StorageId>>);

impl Owners {
    /// Makes a storage the one that may write a file; false where another one is.
    pub(super) fn take(&self, id: FileId, storage: StorageId) -> bool {
        match self.lock().entry(id) {
            Entry::Occupied(owner) => *owner.get() == storage,
            Entry::Vacant(place) => {
                place.insert(storage);
                true
            }
        }
    }

    /// The same for a file that the storage has just created: whoever had its number before has lost that file.
    pub(super) fn take_new(&self, id: FileId, storage: StorageId) {
        self.lock().insert(id, storage);
    }

    /// Ends a storage's claim to files.
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

/// What a storage knows of a file that it created or may write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) id: FileId,
    pub(super) provenance: Provenance,
    /// How long it has to be by what was written to it.
    pub(super) least: u64,
    /// As this storage left it.
    pub(super) stamp: FileStamp,
    /// Somebody else has changed it since the last sync.
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

/// What a storage knows of its files.
#[derive(Default)]
pub(super) struct Ledger {
    /// Files written, or compared with what was to be written, since the last sync.
    pub(super) unsynced: BTreeSet<usize>,
    pub(super) known: BTreeMap<usize, Known>,
    /// The files have been looked at: what appears since then is somebody else's, whatever the session claims.
    pub(super) is_looked_at: bool,
}

impl Ledger {
    /// Whether a file that is there is the one that the session claims: the same inode, or as the session left it. One
    /// with a second name may be used by somebody under that name.
    pub(super) fn is_claimed(&self, claims: &FileClaims, index: usize, stat: &Stat) -> bool {
        let claim = claims.created.get(&index).filter(|_| !self.is_looked_at);
        let saved = claims.stamps.get(index).copied().flatten();
        stat.st_nlink == 1
            && claim.is_some_and(|claim| claim.is_none_or(|id| id == id_of(stat)) || saved == Some(stamp_of(stat)))
    }

    /// Records that a file was written, or compared, up to `end`, and how it was left.
    pub(super) fn record(&mut self, index: usize, end: u64, stat: Option<&Stat>) {
        self.unsynced.insert(index);
        if let Some(known) = self.known.get_mut(&index) {
            known.least = end.max(known.least);
            known.stamp = stat.map_or(known.stamp, stamp_of);
        }
    }

    /// Compares a file with how it was left: what differs was changed by somebody else. On a remote volume only the length
    /// tells.
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
