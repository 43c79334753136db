//! The suffix of files that are not complete.
//!
//! A torrent whose claims say so ([`FileClaims::part_suffix`](super::FileClaims::part_suffix)) creates its files with a
//! suffix, and a [`Sync`](super::DiskRequest::Sync) renames a file without it once all of its pieces are held and its
//! bytes are synced. So a file without the suffix is complete, also after a loss of power. Nothing records which name a
//! file has: the torrent's own file is found by either name when the files are opened.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::files::{FileEntry, FileTable};

/// The suffix.
pub const PART_SUFFIX: &str = ".part";

/// Maximum length of a name on all usual file systems, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// The pieces that a torrent holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldPieces {
    /// The held pieces.
    pub held: Bitfield,
    /// The length of a piece.
    pub piece_length: u32,
}

impl HeldPieces {
    /// Whether all pieces of a file are held.
    pub(crate) fn has_all_of(&self, file: &FileEntry) -> bool {
        let length = u64::from(self.piece_length.max(1));
        let last = file.offset + file.len.saturating_sub(1);
        (file.offset / length..=last / length).all(|piece| self.held.contains(piece as u32))
    }
}

/// The names of a torrent's files with the suffix, and which files have it.
#[derive(Debug)]
pub(crate) struct PartNames {
    /// The files with the suffix, except those that can have none.
    table: FileTable,
    /// Whether each file has the suffix, or gets it when it is created.
    has_suffix: Vec<AtomicBool>,
    /// The files that exist with the suffix and have not been complete yet since they were opened.
    existing: Mutex<BTreeSet<usize>>,
}

impl PartNames {
    /// Returns the names for files of which none exists. Files whose name would be too long or that of another file or
    /// folder of the torrent never have the suffix; neither have empty files.
    pub(crate) fn new(files: &FileTable) -> Self {
        let folders = |path: &str| path.match_indices('/').map(|(end, _)| end).collect::<Vec<_>>();
        let paths = files.files().iter().map(|file| file.path.to_lowercase());
        let taken: HashSet<String> = paths
            .flat_map(|path| {
                let ends = folders(&path).into_iter().chain([path.len()]);
                let with_suffix = ends
                    .map(|end| path[..end].to_owned())
                    .filter(|path| path.ends_with(PART_SUFFIX));
                with_suffix.collect::<Vec<_>>()
            })
            .collect();
        let name = |file: &FileEntry| {
            let path = format!("{}{PART_SUFFIX}", file.path);
            let name_len = path.rsplit('/').next().map_or(0, str::len);
            let is_usable = file.is_stored() && file.len > 0 && name_len <= MAX_NAME_BYTES;
            (is_usable && !taken.contains(&path.to_lowercase())).then_some(path)
        };
        let names: Vec<Option<String>> = files.files().iter().map(name).collect();
        let has_suffix = names.iter().map(|name| AtomicBool::new(name.is_some())).collect();
        let entries = files.files().iter().zip(names).map(|(file, name)| FileEntry {
            path: name.map_or_else(|| file.path.clone(), Into::into),
            ..file.clone()
        });
        Self {
            table: FileTable::new(entries.collect()),
            has_suffix,
            existing: Mutex::default(),
        }
    }

    /// Returns a file with the suffix, if it can have one.
    pub(crate) fn with_suffix(&self, files: &FileTable, index: usize) -> Option<&FileEntry> {
        let file = self.table.files().get(index)?;
        (file.path != files.files().get(index)?.path).then_some(file)
    }

    /// Returns a file with the name that it has now, if that has the suffix.
    pub(crate) fn current(&self, index: usize) -> Option<&FileEntry> {
        let has_suffix = self.has_suffix.get(index)?.load(Ordering::Acquire);
        has_suffix.then(|| &self.table.files()[index])
    }

    /// Records whether a file has the suffix, or gets it when it is created.
    pub(crate) fn set(&self, files: &FileTable, index: usize, has_suffix: bool) {
        if self.with_suffix(files, index).is_some() {
            self.has_suffix[index].store(has_suffix, Ordering::Release);
        }
    }

    /// Records that a file exists with the name that it has now.
    pub(crate) fn record_existing(&self, index: usize) {
        if self.current(index).is_some() {
            self.existing().insert(index);
        }
    }

    /// Returns the existing files with the suffix of which all pieces are held. Each file is returned once: a file that
    /// cannot be renamed then keeps its suffix until it is opened again.
    pub(crate) fn take_complete(&self, held: &HeldPieces) -> Vec<usize> {
        let mut existing = self.existing();
        let files = self.table.files();
        existing
            .extract_if(.., |index| held.has_all_of(&files[*index]))
            .collect()
    }

    fn existing(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        self.existing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use ecs_torrent_protocol::files::FileAttributes;

    use super::*;

    fn table(files: &[(&str, u64)]) -> FileTable {
        let mut offset = 0;
        let entries = files.iter().map(|(path, len)| {
            offset += len;
            FileEntry {
                path: (*path).into(),
                len: *len,
                offset: offset - len,
                attributes: FileAttributes::default(),
            }
        });
        FileTable::new(entries.collect())
    }

    #[test]
    fn names_that_are_taken_or_too_long_get_no_suffix() {
        let long = format!("a/{}", "x".repeat(251));
        let files = table(&[
            ("a/x", 1),
            ("a/X.part", 1),
            ("a/y", 1),
            ("a/y.PART/z", 1),
            ("a/empty", 0),
            (&long, 1),
        ]);
        let names = PartNames::new(&files);
        let current: Vec<_> = (0..6)
            .map(|index| names.current(index).map(|file| &*file.path))
            .collect();
        let expected = [None, Some("a/X.part.part"), None, Some("a/y.PART/z.part"), None, None];
        assert_eq!(current, expected);
        let held = HeldPieces {
            held: Bitfield::full(1),
            piece_length: 100,
        };
        (0..6).for_each(|index| names.record_existing(index));
        assert_eq!(names.take_complete(&held), [1, 3]);
        assert!(names.take_complete(&held).is_empty(), "once");
        names.set(&files, 1, false);
        names.set(&files, 0, true);
        assert!(names.current(0).is_none() && names.current(1).is_none());
        assert!(names.current(6).is_none() && names.with_suffix(&files, 6).is_none());
    }

    #[test]
    fn a_file_is_complete_with_all_of_its_pieces() {
        let files = table(&[("a", 15), ("b", 5), ("c", 30)]);
        let held = |pieces: &[u32]| {
            let mut held = Bitfield::new(5);
            for piece in pieces {
                held.insert(*piece);
            }
            let held = HeldPieces { held, piece_length: 10 };
            files
                .files()
                .iter()
                .map(|file| held.has_all_of(file))
                .collect::<Vec<_>>()
        };
        assert_eq!(held(&[0]), [false, false, false]);
        assert_eq!(held(&[1]), [false, true, false]);
        assert_eq!(held(&[0, 1, 2, 3]), [true, true, false]);
        assert_eq!(held(&[2, 3, 4]), [false, false, true]);
    }
}
