//! A disk's files, its space, and its state after a power failure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ecs_torrent_components::random::Random;

use super::file::{Entry, File, Identity};

/// The files of one machine.
pub(in super::super) struct Volume {
    files: BTreeMap<PathBuf, Entry>,
    /// Capacity in bytes; `None` is unlimited.
    pub(super) capacity: Option<u64>,
    used: u64,
    /// Number of the newest file.
    last_born: u64,
    /// Inode numbers of deleted files, which new files get first, as on ext4.
    free_inodes: Vec<u64>,
    /// Files whose deletion is not durable.
    deleted: Vec<PathBuf>,
    pub(super) is_mounted: bool,
    /// Changes that engines made to files they do not own.
    trespasses: Vec<String>,
}

/// Maximum number of recorded trespasses; the first ones are enough to find the cause.
const MAX_TRESPASSES: usize = 10;

impl Default for Volume {
    fn default() -> Self {
        Self {
            files: BTreeMap::new(),
            capacity: None,
            used: 0,
            last_born: 0,
            free_inodes: Vec::new(),
            deleted: Vec::new(),
            is_mounted: true,
            trespasses: Vec::new(),
        }
    }
}

impl Volume {
    pub(super) fn file(&self, path: &Path) -> Option<&File> {
        self.files.get(path)?.seen.as_ref()
    }

    pub(super) fn durable_file(&self, path: &Path) -> Option<&File> {
        self.files.get(path)?.durable_len()
    }

    /// The entry at a path, including one of a deleted file.
    pub(super) fn entry(&mut self, path: &Path) -> Option<&mut Entry> {
        self.files.get_mut(path)
    }

    /// The entry of a path, with a new file if there is none.
    pub(super) fn create(&mut self, path: &Path, now_ns: u64) -> &mut Entry {
        let identity = match self.file(path) {
            Some(file) => file.identity,
            None => self.next_identity(),
        };
        let entry = self.files.entry(path.to_owned()).or_default();
        entry.create(now_ns, identity);
        entry
    }

    /// The identity of a new file.
    pub(super) fn next_identity(&mut self) -> Identity {
        self.last_born += 1;
        Identity {
            inode: self.free_inodes.pop().unwrap_or(self.last_born),
            born: self.last_born,
            ..Identity::default()
        }
    }

    /// Puts a durable file at a path.
    pub(super) fn put(&mut self, path: PathBuf, file: File) {
        let old = self.file(&path).map_or(0, |file| file.extents.allocated());
        self.used = self.used - old + file.extents.allocated();
        self.files.insert(path, Entry::durable(file));
    }

    /// Free space in bytes.
    pub(super) fn free(&self) -> u64 {
        self.capacity
            .map_or(u64::MAX, |capacity| capacity.saturating_sub(self.used))
    }

    pub(super) fn take_space(&mut self, bytes: u64) {
        self.used += bytes;
    }

    /// Records an engine's change to a file, if the file is the user's.
    pub(super) fn suspect(&mut self, path: &Path, deed: &str) {
        let is_users = self.file(path).is_some_and(|file| file.identity.is_users);
        if is_users && self.trespasses.len() < MAX_TRESPASSES {
            self.trespasses
                .push(format!("{} is the user's, and was {deed}", path.display()));
        }
    }

    pub(super) fn take_trespasses(&mut self) -> Vec<String> {
        std::mem::take(&mut self.trespasses)
    }

    /// Deletes a file; returns false if there is none.
    pub(super) fn delete(&mut self, path: &Path) -> bool {
        let Some(entry) = self.files.get_mut(path) else {
            return false;
        };
        let Some(file) = &entry.seen else { return false };
        self.used -= file.extents.allocated();
        self.free_inodes.push(file.identity.inode);
        entry.delete();
        if entry.is_nothing() {
            self.files.remove(path);
        } else {
            self.deleted.push(path.to_owned());
        }
        true
    }

    /// Gives a durable file another name, at once and durably: either name is right after a crash.
    pub(super) fn rename(&mut self, from: &Path, to: &Path) {
        if let Some(entry) = self.files.remove(from) {
            self.files.insert(to.to_owned(), entry);
        }
    }

    /// Truncates a file, as another program does.
    pub(super) fn truncate(&mut self, path: &Path, len: u64, now_ns: u64) {
        if let Some(entry) = self.files.get_mut(path) {
            let allocated = |entry: &Entry| entry.seen.as_ref().map_or(0, |file| file.extents.allocated());
            let before = allocated(entry);
            entry.truncate(now_ns, len);
            self.used -= before - allocated(entry);
        }
    }

    /// Makes a file durable, and with it all earlier deletions: a journal keeps its order.
    pub(super) fn sync(&mut self, path: &Path) {
        if let Some(entry) = self.files.get_mut(path) {
            entry.sync();
        }
        for path in std::mem::take(&mut self.deleted) {
            if let Some(entry) = self.files.get_mut(&path).filter(|entry| entry.seen.is_none()) {
                entry.sync();
                self.files.remove(&path);
            }
        }
    }

    /// Applies a power failure.
    pub(super) fn crash(&mut self, luck: &mut Random) {
        for entry in self.files.values_mut() {
            entry.crash(luck);
        }
        self.files.retain(|_, entry| !entry.is_nothing());
        self.deleted.clear();
        let allocated = self.files.values().filter_map(|entry| entry.seen.as_ref());
        self.used = allocated.map(|file| file.extents.allocated()).sum();
    }
}
