//! Files with the suffix of incomplete files, see `ports/disk/suffix.rs`.

use super::LookFor;
use super::file::File;
use super::storage::{DiskContext, Storage};
use crate::ports::disk::{HeldPieces, SyncedFile};

impl Storage {
    /// Takes the suffix from the complete files, as the real backend does.
    pub(super) fn drop_suffixes(&self, context: &mut DiskContext<'_>, synced: &mut Vec<SyncedFile>, held: &HeldPieces) {
        let Some(names) = &self.names else { return };
        for index in names.take_complete(held) {
            let place = synced.iter().position(|file| file.index == index);
            let is_in_doubt = place.is_some_and(|place| synced[place].stamp.is_none());
            let (from, to) = (self.named(index), self.path(&self.table.files()[index]));
            let is_as_left = context
                .volume
                .file(&from)
                .is_some_and(|file| self.is_as_left(index, file));
            if is_in_doubt || !is_as_left || context.volume.file(&to).is_some() {
                continue;
            }
            context.volume.rename(&from, &to);
            names.set(&self.table, index, false);
            if place.is_none() {
                synced.extend(self.synced(context, index, &to));
            }
        }
    }

    /// Finds out whether a file has the suffix of incomplete files, as the real backend does.
    pub(super) fn find_suffix(&self, context: &DiskContext<'_>, index: usize, which: LookFor) {
        let Some(names) = &self.names else { return };
        let Some(with_suffix) = names.with_suffix(&self.table, index) else {
            return;
        };
        let is_own = |file: &File| match which {
            LookFor::Known => self.is_own(index, file),
            LookFor::Marked => self.is_marked(index, file),
            LookFor::Any => true,
        };
        let found = context.volume.file(&self.path(with_suffix));
        let is_new = || context.volume.file(&self.path(&self.table.files()[index])).is_none();
        names.set(&self.table, index, found.map_or_else(is_new, is_own));
        if found.is_some() {
            names.record_existing(index);
        }
    }

    /// Gives a file that does not exist here the name that it has in another storage.
    pub(super) fn take_suffix(&self, index: usize, other: &Self) {
        if let (Some(names), Some(others)) = (&self.names, &other.names) {
            names.set(&self.table, index, others.current(index).is_some());
        }
    }
}
