//! The state of a torrent's part file, see `ports/disk/parts.rs`.

use std::sync::{Arc, PoisonError, RwLock};

use ecs_torrent_protocol::files::FileEntry;

use crate::ports::disk::Parts;

/// A torrent's part file.
pub(super) struct PartFile {
    pub(super) entry: FileEntry,
    state: RwLock<Arc<Parts>>,
}

impl PartFile {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            entry: parts.entry.clone(),
            state: RwLock::new(Arc::new(parts)),
        }
    }

    /// Returns what is in the part file now.
    pub(super) fn parts(&self) -> Arc<Parts> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Parts)) {
        change(Arc::make_mut(
            &mut self.state.write().unwrap_or_else(PoisonError::into_inner),
        ));
    }
}
