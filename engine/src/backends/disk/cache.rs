//! A cache of open files.

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ecs_torrent_components::ids::StorageId;
use lru::LruCache;

/// A key for a torrent's file: the storage and the file's index.
pub(super) type FileKey = (StorageId, usize);

/// A cache of open files, shared by all torrents. It closes the least recently used files first.
pub(super) struct FileCache {
    open: Mutex<LruCache<FileKey, OpenFile>>,
}

struct OpenFile {
    fd: Arc<OwnedFd>,
    is_writable: bool,
}

impl FileCache {
    /// Creates a cache of at most `max_open` files.
    pub(super) fn new(max_open: usize) -> Self {
        let max_open = NonZeroUsize::new(max_open).unwrap_or(NonZeroUsize::MIN);
        Self {
            open: Mutex::new(LruCache::new(max_open)),
        }
    }

    /// Returns the file if it is open with sufficient access.
    pub(super) fn get(&self, key: FileKey, is_writable: bool) -> Option<Arc<OwnedFd>> {
        let mut open = self.lock();
        let file = open.get(&key)?;
        (file.is_writable || !is_writable).then(|| file.fd.clone())
    }

    /// Keeps a file open, and closes the least recently used one if there are too many.
    pub(super) fn put(&self, key: FileKey, fd: Arc<OwnedFd>, is_writable: bool) {
        let displaced = self.lock().push(key, OpenFile { fd, is_writable });
        // Closing may take long, so it happens without the lock.
        drop(displaced);
    }

    /// Closes the least recently used half of the files. Returns false if there is nothing to close.
    pub(super) fn shrink(&self) -> bool {
        let mut open = self.lock();
        let count = open.len().div_ceil(2);
        (0..count).for_each(|_| drop(open.pop_lru()));
        count > 0
    }

    /// Closes a torrent's files.
    pub(super) fn forget(&self, storage: StorageId) {
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

    fn lock(&self) -> MutexGuard<'_, LruCache<FileKey, OpenFile>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
