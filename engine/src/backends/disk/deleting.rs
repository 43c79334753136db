//! Deleting the files and folders that a torrent created.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::PoisonError;

use rustix::io::Errno;

use super::files::{Files, LookFor, Result};
use crate::backends::beneath::{self, Status};
use crate::ports::disk::{DeletedFiles, DiskAction, DiskError, KeptReason, Provenance};

impl Files {
    /// Deletes the files that this torrent created and that still have their names, except those in `keep`. Then
    /// deletes the folders above its files that it created and that are empty.
    ///
    /// # Errors
    /// The first file that could not be deleted. The other files are still deleted.
    pub fn delete(&self, keep: &[usize]) -> Result<DeletedFiles> {
        let mut is_deleted = self.is_deleted.write().unwrap_or_else(PoisonError::into_inner);
        *is_deleted = true;
        self.shared.cache.forget(self.storage);
        let mut report = DeletedFiles::default();
        // If the volume is not mounted, none of our files are there: whatever lies at the path belongs to somebody
        // else.
        self.find_volume()?;
        let root = match self.folder() {
            Ok(root) => root,
            // A torrent has no files in one of the engine's own folders.
            Err(error) if error.is_absence() || error.is_forbidden() => return Ok(report),
            Err(error) => return Err(error),
        };
        let keep: BTreeSet<usize> = keep.iter().copied().collect();
        let mut result = Ok(());
        let mut folders = BTreeSet::new();
        let is_looked_at = self.ledger().is_looked_at;
        let stored = (0..self.entries().len()).filter(|index| self.entries()[*index].is_stored());
        for index in stored {
            if !is_looked_at {
                self.find_suffix(root.as_fd(), index, LookFor::Known);
            }
            let entry = self.entry(index);
            let failed = |error| DiskError::new(DiskAction::Delete, self.path(entry), error);
            folders.extend(folders_of(&entry.path));
            if let Err(error) = self.check_folder(root.as_fd(), entry) {
                debug_assert!(error.is_forbidden());
                report.kept.push((index, KeptReason::EnginesOwn));
                continue;
            }
            let reason = match beneath::open(root.as_fd(), &entry.path, false) {
                Ok((file, status)) => self.reason_to_keep(index, &file, &status, keep.contains(&index)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if is_something_else(&error) => Some(KeptReason::Replaced),
                Err(error) => {
                    result = result.and(Err(failed(error)));
                    continue;
                }
            };
            if let Some(reason) = reason {
                report.kept.push((index, reason));
                continue;
            }
            match beneath::unlink(root.as_fd(), &entry.path) {
                Ok(()) => report.deleted.push(index),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => result = result.and(Err(failed(error))),
            }
        }
        result = result.and(self.drop_parts());
        self.remove_folders(&root, folders);
        result.map(|()| report)
    }

    /// Deletes folders below the download folder that a torrent created and that are empty.
    pub(super) fn remove_folders(&self, root: &OwnedFd, folders: BTreeSet<&str>) {
        beneath::clean(root.as_fd());
        // Deepest first: subfolders sort after their parent folder.
        for folder in folders.into_iter().rev() {
            let is_own = |folder: &OwnedFd| {
                let status = Status::of(folder);
                status.is_ok_and(|status| self.is_marked(None, folder, &status))
            };
            if beneath::open_folder_below(root.as_fd(), folder).is_ok_and(|folder| is_own(&folder)) {
                // A folder that is not empty stays. That is not an error.
                let _ = beneath::remove_folder(root.as_fd(), folder);
            }
        }
    }

    /// Returns the reason to keep an existing file, or `None` if it is to be deleted.
    fn reason_to_keep(&self, index: usize, file: &OwnedFd, status: &Status, is_shared: bool) -> Option<KeptReason> {
        let known = self.classify(index, file, status);
        let is_claimed = self.claims.created.contains_key(&index);
        match known.provenance {
            Provenance::Created if known.id != status.id => Some(KeptReason::Replaced),
            Provenance::Created if status.link_count > 1 => Some(KeptReason::HardLinked),
            Provenance::Created if is_shared => Some(KeptReason::SharedWithAnother),
            Provenance::Created => None,
            Provenance::Found if is_claimed && status.link_count > 1 => Some(KeptReason::HardLinked),
            Provenance::Found if is_claimed => Some(KeptReason::Replaced),
            Provenance::Found => Some(KeptReason::Found),
        }
    }
}

/// Returns the folders above a file, nearest first.
pub(super) fn folders_of(path: &str) -> impl Iterator<Item = &str> {
    let parents = std::iter::successors(path.rsplit_once('/'), |(folder, _)| folder.rsplit_once('/'));
    parents.map(|(folder, _)| folder)
}

/// Whether the path leads to a link, a folder or a device, or passes through a link. A torrent creates none of these.
pub(super) fn is_something_else(error: &io::Error) -> bool {
    let is_link = [Errno::LOOP, Errno::NOTDIR]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
    is_link || error.kind() == io::ErrorKind::InvalidInput
}
