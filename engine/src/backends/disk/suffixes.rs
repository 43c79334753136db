//! Files with the suffix of incomplete files, see `ports/disk/suffix.rs`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::PoisonError;

use super::files::{Files, LookFor, Result};
use crate::backends::beneath::{self, Parent, Status};
use crate::ports::disk::{DiskAction, DiskError, HeldPieces, Provenance, SyncedFile};

impl Files {
    /// Finds out whether a file has the suffix, or gets it when it is created. `which` says which file may have it: a
    /// file of somebody else with that name is not used.
    pub(super) fn find_suffix(&self, root: BorrowedFd<'_>, index: usize, which: LookFor) {
        let Some(names) = &self.names else { return };
        let Some(with_suffix) = names.with_suffix(&self.table, index) else {
            return;
        };
        let plain = &self.entries()[index].path;
        let found = beneath::open(root, &with_suffix.path, false);
        let is_there = found.is_ok();
        let has_suffix = match found {
            Ok((file, status)) => {
                let is_own = self.is_own_part(index, &file, self.believable(status), which);
                let is_half_renamed = || which == LookFor::Known && end_rename(root, &with_suffix.path, plain, &status);
                is_own && !is_half_renamed()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let found = beneath::open(root, plain, false);
                found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
            }
            Err(_) => false,
        };
        names.set(&self.table, index, has_suffix);
        if is_there {
            names.record_existing(index);
        }
    }

    fn is_own_part(&self, index: usize, file: &OwnedFd, status: Status, which: LookFor) -> bool {
        let is_marked = || self.is_marked(Some(index), file, &status);
        match which {
            LookFor::Any => true,
            LookFor::Marked => is_marked(),
            LookFor::Known | LookFor::Moved => self.claims.is_own(index, (status.id, status.stamp), is_marked),
        }
    }

    /// Takes the suffix from the complete files. Their bytes are synced: held pieces that this run has not written were
    /// synced by an earlier run, or by a sync of all files after they were checked.
    pub(super) fn drop_suffixes(&self, synced: &mut Vec<SyncedFile>, held: &HeldPieces) {
        let Some(names) = &self.names else { return };
        for index in names.take_complete(held) {
            // The bytes of a file without a stamp are in doubt.
            let known = synced.iter().position(|file| file.index == index);
            if known.is_some_and(|position| synced[position].stamp.is_none()) {
                continue;
            }
            match (self.drop_suffix(index), known) {
                (Ok(Some(status)), Some(position)) => synced[position].stamp = Some(status.stamp),
                (Ok(Some(status)), None) => synced.push(SyncedFile {
                    index,
                    stamp: Some(status.stamp),
                    id: Some(status.id),
                    provenance: Provenance::Created,
                }),
                (Ok(None), _) => {}
                (Err(error), _) => tracing::warn!("a complete file keeps its suffix: {error}"),
            }
        }
    }

    /// Renames a file of this torrent without its suffix. Returns its new state, or `None` if it is not there.
    fn drop_suffix(&self, index: usize) -> Result<Option<Status>> {
        // No write and no opening of the file comes between the rename and the record of it.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let _renaming = self.renaming.write().unwrap_or_else(PoisonError::into_inner);
        let Some(names) = &self.names else { return Ok(None) };
        let Some(from) = names.current(index) else {
            return Ok(None);
        };
        let to = &self.entries()[index];
        let failed = |error| DiskError::new(DiskAction::Create, self.path(to), error);
        let root = self.folder()?;
        let (file, status) = match beneath::open(root.as_fd(), &from.path, false) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        // A change by another program is found by the next comparison, not hidden by this one.
        let known = self.ledger().known.get(&index).copied();
        let is_as_left = known.is_some_and(|known| {
            let is_same = known.id == status.id && known.stamp.matches(&self.believable(status).stamp);
            is_same && known.provenance == Provenance::Created
        });
        if !is_as_left {
            return Ok(None);
        }
        let mut parent = Parent::new(root.as_fd());
        beneath::rename_new(&file, &mut parent, &from.path, &to.path).map_err(failed)?;
        names.set(&self.table, index, false);
        let status = self.status_of(&file).map_err(failed)?;
        if let Some(known) = self.ledger().known.get_mut(&index) {
            known.stamp = status.stamp;
        }
        // After a loss of power, either name is right.
        let folder = to.path.rsplit_once('/').map_or(".", |(folder, _)| folder);
        let _ = beneath::sync_folder(root.as_fd(), folder);
        Ok(Some(status))
    }
}

/// Ends the rename of a file that has both names: it was losing its suffix in two steps, and a kill came between
/// them. Returns false if the file has one name.
fn end_rename(root: BorrowedFd<'_>, with_suffix: &str, plain: &str, status: &Status) -> bool {
    let is_same = || beneath::open(root, plain, false).is_ok_and(|(_, other)| other.id == status.id);
    status.link_count == 2 && is_same() && beneath::unlink(root, with_suffix).is_ok()
}
