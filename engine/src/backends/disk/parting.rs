//! The part file of a torrent with skipped files, see `ports/disk/parts.rs`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ecs_torrent_protocol::files::FileSlice;
use rustix::fs::fdatasync;

use super::files::{Files, Result, read_exactly};
use super::part_file::PartFile;
use crate::backends::beneath::{self, Parent};
use crate::ports::disk::{Cut, DiskAction, DiskError, FileNeeds, FoundFile, Parts, Provenance, Refusal};

impl Files {
    /// Takes over which files are skipped, before the writes that are submitted later.
    pub(crate) fn take_needs(&self, needs: &FileNeeds) {
        let mut is_new = false;
        self.parts.get_or_init(|| {
            is_new = true;
            Box::new(PartFile::new(Parts::new(&self.table, needs)))
        });
        if !is_new {
            self.change_parts(|parts| parts.skipped.clone_from(&needs.skipped));
        }
    }

    /// Returns what is in the part file, if the torrent may have one.
    pub(super) fn parts(&self) -> Option<Arc<Parts>> {
        self.parts.get().map(|part| part.parts())
    }

    fn change_parts(&self, change: impl FnOnce(&mut Parts)) {
        if let Some(part) = self.parts.get() {
            part.change(change);
        }
    }

    /// Records that the bytes of skipped files that do not exist are in the part file.
    pub(super) fn part_absent(&self, found: &[Option<FoundFile>]) {
        self.change_parts(|parts| {
            let skipped: Vec<u32> = parts.skipped.iter().collect();
            let absent = skipped.into_iter().filter(|file| found[*file as usize].is_none());
            for file in absent {
                parts.parted.insert(file);
            }
        });
    }

    /// Cuts a slice that is to be written. The bytes of a skipped file that does not exist go to the part file.
    pub(super) fn cuts(&self, slice: FileSlice) -> Vec<Cut> {
        let Some(parts) = self.parts() else { return Vec::new() };
        let file = slice.place.map(|place| place.file);
        let is_new = |file: &usize| {
            let index = *file as u32;
            parts.skipped.contains(index) && !parts.parted.contains(index) && !self.exists(*file)
        };
        let Some(file) = file.filter(is_new) else {
            return parts.cut(&self.table, slice);
        };
        // The state is changed in place if nobody else holds it.
        drop(parts);
        self.change_parts(|parts| {
            parts.parted.insert(file as u32);
        });
        self.parts()
            .map_or_else(Vec::new, |parts| parts.cut(&self.table, slice))
    }

    /// Whether a file exists, so that its bytes are there and not in the part file.
    fn exists(&self, index: usize) -> bool {
        let is_known = self.ledger().known.contains_key(&index);
        is_known || !self.open(index, false).is_err_and(|error| error.is_absence())
    }

    /// Returns the error of a write within a skipped file.
    pub(super) fn unwanted(&self, slice: FileSlice) -> DiskError {
        let path = slice.place.map(|place| self.path(self.entry(place.file)));
        DiskError::new(DiskAction::Write, path.unwrap_or_default(), Refusal::Skipped.into())
    }

    /// Takes over which files are wanted, and copies the bytes of those that are wanted now from the part file. Returns
    /// the files of which the session is to say that they have their bytes. Called while nothing is written.
    pub(super) fn move_parts(&self, needs: &FileNeeds) -> Result<Vec<u32>> {
        self.change_parts(|parts| parts.adopt(needs));
        let Some(parts) = self.parts() else {
            return Ok(Vec::new());
        };
        let (moved, result) = self.move_each(&parts, needs);
        drop(parts);
        self.change_parts(|parts| {
            moved.iter().for_each(|file| {
                parts.moved.insert(*file);
            });
        });
        result?;
        let Some(parts) = self.parts() else {
            return Ok(Vec::new());
        };
        if parts.parted.is_empty() {
            self.delete_part(&parts)?;
        }
        Ok(parts.settled(needs))
    }

    /// Copies the bytes of the files that are wanted now. Returns the files that have them, and the first failure.
    fn move_each(&self, parts: &Parts, needs: &FileNeeds) -> (Vec<u32>, Result<()>) {
        let to_move = parts.to_move();
        if to_move.is_empty() {
            return (to_move, Ok(()));
        }
        let part = match self.readable(parts.index) {
            Ok(part) => part,
            // Nothing was ever written to it.
            Err(error) if error.is_absence() => return (to_move, Ok(())),
            Err(error) => return (Vec::new(), Err(error)),
        };
        let mut moved = Vec::new();
        for file in to_move {
            if let Err(error) = self.move_part(&part, parts, file as usize, needs) {
                return (moved, Err(error));
            }
            moved.push(file);
        }
        (moved, Ok(()))
    }

    /// Copies the bytes of a file from the part file, and syncs the file. In a file of the user, the bytes of held
    /// pieces are compared.
    fn move_part(&self, part: &OwnedFd, parts: &Parts, index: usize, needs: &FileNeeds) -> Result<()> {
        let root = self.created_folder()?;
        let mut parent = Parent::new(root.as_fd());
        let mut buffer = Vec::new();
        let known = self.ledger().known.get(&index).copied();
        let is_own = known.is_some_and(|known| known.provenance == Provenance::Created) || !self.exists(index);
        for (piece, from, to, len) in parts.runs_of(&self.table, index) {
            // Bytes of unfinished pieces may be wrong. They do no harm in a file of the torrent.
            if !is_own && !needs.held.contains(piece) {
                continue;
            }
            buffer.resize(len as usize, 0);
            match read_exactly(part, from.offset, &mut buffer) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
                Err(error) => return Err(DiskError::new(DiskAction::Read, self.path(&parts.entry), error)),
            }
            let slice = FileSlice { place: Some(to), len };
            self.write_slice(&mut parent, slice, std::iter::once(&buffer[..]))?;
        }
        let file = match self.readable(index) {
            Ok(file) => file,
            Err(error) if error.is_absence() => return Ok(()),
            Err(error) => return Err(error),
        };
        let failed =
            |error: rustix::io::Errno| DiskError::new(DiskAction::Sync, self.path(self.entry(index)), error.into());
        fdatasync(&file).map_err(failed)
    }

    /// Deletes the part file, if there is one.
    pub(crate) fn drop_parts(&self) -> Result<()> {
        self.parts().map_or(Ok(()), |parts| self.delete_part(&parts))
    }

    /// Deletes the part file, if it is this torrent's.
    fn delete_part(&self, parts: &Parts) -> Result<()> {
        let (index, entry) = (parts.index, &parts.entry);
        let failed = |error| DiskError::new(DiskAction::Delete, self.path(entry), error);
        let root = match self.folder() {
            Ok(root) => root,
            Err(error) if error.is_absence() => return Ok(()),
            Err(error) => return Err(error),
        };
        let (file, status) = match beneath::open(root.as_fd(), &entry.path, false) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let known = self.classify(index, &file, &status);
        if known.provenance == Provenance::Created && known.id == status.id && status.link_count == 1 {
            beneath::unlink(root.as_fd(), &entry.path).map_err(failed)?;
            self.shared.cache.forget(self.storage);
            let mut ledger = self.ledger();
            ledger.known.remove(&index);
            ledger.unsynced.remove(&index);
            drop(ledger);
            self.shared.owners.let_go([status.id], self.storage);
        }
        Ok(())
    }
}
