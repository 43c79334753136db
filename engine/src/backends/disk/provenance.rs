//! File ownership: each storage's knowledge of its files, and the storage that may write each file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bevy_platform::collections::hash_map::Entry;
use bevy_platform::collections::{HashMap, HashSet};
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_components::session::{FileId, FileStamp, OwnerKey};

use crate::backends::beneath::Status;
use crate::ports::disk::Provenance;

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

/// The files and folders that torrents created on volumes without extended attributes in this run. A file leaves the
/// list when its identity has been reported, so that a session can record it.
#[derive(Default)]
pub(super) struct Unmarked(Mutex<HashSet<(OwnerKey, FileId)>>);

impl Unmarked {
    pub(super) fn insert(&self, key: OwnerKey, id: FileId) {
        self.lock().insert((key, id));
    }

    pub(super) fn contains(&self, key: OwnerKey, id: FileId) -> bool {
        self.lock().contains(&(key, id))
    }

    pub(super) fn remove(&self, key: OwnerKey, id: FileId) {
        self.lock().remove(&(key, id));
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<(OwnerKey, FileId)>> {
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
    pub(super) fn new(status: &Status, provenance: Provenance) -> Self {
        Self {
            id: status.id,
            provenance,
            least: 0,
            stamp: status.stamp,
            is_in_doubt: false,
        }
    }
}

/// Interval at which a served file is examined: short enough that bad bytes reach few peers, long enough that the cost
/// is negligible beside reading.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// State of an existing file when its bytes were last known to be correct.
#[derive(Clone, Copy)]
struct Seen {
    inode: u64,
    stamp: FileStamp,
    /// When the file was last examined for serving.
    at: Option<Instant>,
}

impl Seen {
    fn new(status: &Status) -> Self {
        Self {
            inode: status.id.inode,
            stamp: status.stamp,
            at: None,
        }
    }
}

/// A storage's knowledge of its files.
pub(super) struct Ledger {
    file_count: usize,
    /// Files that were written, or compared with the bytes to write, since the last sync.
    pub(super) unsynced: BTreeSet<usize>,
    pub(super) known: BTreeMap<usize, Known>,
    /// Existing files, by index, for as long as they are read.
    seen: Vec<Option<Seen>>,
    /// Whether the files have been examined. A file that appears later belongs to somebody else, even if the session
    /// claims it.
    pub(super) is_looked_at: bool,
}

impl Ledger {
    pub(super) fn new(file_count: usize) -> Self {
        Self {
            file_count,
            unsynced: BTreeSet::new(),
            known: BTreeMap::new(),
            seen: Vec::new(),
            is_looked_at: false,
        }
    }

    /// Records that a file was written or compared up to `end`, and its state afterward.
    pub(super) fn record(&mut self, index: usize, end: u64, status: Option<&Status>) {
        self.unsynced.insert(index);
        if let Some(known) = self.known.get_mut(&index) {
            known.least = end.max(known.least);
            known.stamp = status.map_or(known.stamp, |status| status.stamp);
        }
    }

    /// Compares a file with the state in which it was left. If the states differ, somebody else has changed the file.
    /// On a remote volume only the length is compared.
    pub(super) fn compare(&mut self, index: usize, status: &Status, is_remote: bool) {
        if let Some(known) = self.known.get_mut(&index) {
            let now = status.stamp;
            known.is_in_doubt |= known.stamp.len != now.len || (!is_remote && !known.stamp.matches(&now));
            known.stamp = now;
        }
    }

    /// Records the state of an existing file.
    pub(super) fn see(&mut self, index: usize, status: &Status) {
        *self.seen_slot(index) = Some(Seen::new(status));
    }

    fn seen_slot(&mut self, index: usize) -> &mut Option<Seen> {
        if index >= self.seen.len() {
            // Space for all files and no more: most torrents have one.
            self.seen.reserve_exact(self.file_count.saturating_sub(self.seen.len()));
            self.seen.resize(index + 1, None);
        }
        &mut self.seen[index]
    }

    /// Whether it is time to look at a file that is served.
    pub(super) fn is_look_due(&self, index: usize, now: Instant) -> bool {
        let at = self.seen.get(index).and_then(|seen| (*seen)?.at);
        at.is_none_or(|at| now.saturating_duration_since(at) >= LOOK_INTERVAL)
    }

    /// Records a look at a file that is served. Returns false if somebody else has changed, replaced or deleted the
    /// file. New names and other permissions are no change: they are common, and the next start checks such a file.
    pub(super) fn look(&mut self, index: usize, status: &Status, is_remote: bool, now: Instant) -> bool {
        let known = self.known.get(&index).copied();
        let seen = self.seen_slot(index).get_or_insert(Seen::new(status));
        let (inode, stamp) = known
            .as_ref()
            .map_or((seen.inode, seen.stamp), |known| (known.id.inode, known.stamp));
        let is_same = status.link_count > 0
            && status.id.inode == inode
            && match is_remote {
                true => stamp.len == status.stamp.len,
                false => stamp.has_same_data_as(&status.stamp),
            };
        let is_in_order = is_same && !known.is_some_and(|known| known.is_in_doubt);
        seen.at = is_in_order.then_some(now);
        is_in_order
    }
}
