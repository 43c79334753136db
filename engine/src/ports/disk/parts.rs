//! Part files: the bytes of skipped files in pieces that a wanted file needs too.
//!
//! A skipped file is not created. The pieces at its borders may be wanted for the files beside it; such a piece is
//! written as a whole, and the bytes of the skipped file go to the torrent's part file, a hidden file in the download
//! folder. The part file has a slot of one piece for each border piece, in order, so that a slot never moves; slots
//! that were never written take no space on file systems with sparse files.
//!
//! When the user wants the file, its bytes are copied from the part file, and the world records in the session that
//! they are there. Until the world confirms that the session is durable, reads use the part file and writes go to both.
//! So a kill at any moment leaves a session and files that belong together.

use std::sync::Arc;

use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::files::{FileAttributes, FileEntry, FilePlace, FileSlice, FileTable};
use ecs_torrent_protocol::hash::InfoHash;

/// The files of a torrent that the user wants, for the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileNeeds {
    /// The torrent's info-hash, which names the part file.
    pub torrent: InfoHash,
    /// The length of a piece.
    pub piece_length: u32,
    /// The files that are not to be created.
    pub skipped: Bitfield,
    /// The files whose bytes in border pieces are in the part file, as the durable session says.
    pub parted: Bitfield,
    /// The held pieces.
    pub held: Bitfield,
}

/// A torrent's part file, and the files whose bytes it has. Its index is the number of the torrent's files.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    /// The part file.
    pub(crate) entry: FileEntry,
    pub(crate) index: usize,
    piece_length: u64,
    /// The pieces at borders of files, ascending.
    borders: Arc<[u32]>,
    /// The files that are not to be created.
    pub(crate) skipped: Bitfield,
    /// The files whose bytes in border pieces are in the part file.
    pub(crate) parted: Bitfield,
    /// The files of `parted` that have these bytes too.
    pub(crate) moved: Bitfield,
}

/// A run of bytes inside one file of the torrent, and where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Where the bytes are read and written.
    pub(crate) slice: FileSlice,
    /// Where they are written too.
    pub(crate) copy: Option<FilePlace>,
    /// Nothing may be written: the piece lies within a skipped file.
    pub(crate) is_refused: bool,
}

impl Parts {
    /// The part file of a torrent with these files.
    pub(crate) fn new(files: &FileTable, needs: &FileNeeds) -> Self {
        let piece_length = u64::from(needs.piece_length.max(1));
        let count = files.files().len();
        let mut borders: Vec<u32> = Vec::new();
        for file in files.files().iter().filter(|file| file.has_bytes()) {
            borders.extend(border_pieces(file, piece_length, files.total_size()));
        }
        borders.sort_unstable();
        borders.dedup();
        Self {
            entry: FileEntry {
                path: part_name(needs.torrent).into(),
                len: borders.len() as u64 * piece_length,
                offset: files.total_size(),
                attributes: FileAttributes::default(),
            },
            index: count,
            piece_length,
            borders: borders.into(),
            skipped: needs.skipped.clone(),
            parted: needs.parted.clone(),
            moved: Bitfield::new(count as u32),
        }
    }

    /// Cuts a slice of a file where its bytes are in different files.
    pub(crate) fn cut(&self, files: &FileTable, slice: FileSlice) -> Vec<Cut> {
        let whole = Cut {
            slice,
            copy: None,
            is_refused: false,
        };
        let Some(place) = slice.place.filter(|place| self.parted.contains(place.file as u32)) else {
            return vec![whole];
        };
        let is_skipped = self.skipped.contains(place.file as u32);
        let is_moved = self.moved.contains(place.file as u32);
        let start = files.files()[place.file].offset + place.offset;
        let (mut at, end) = (start, start + u64::from(slice.len));
        let mut cuts = Vec::new();
        while at < end {
            let piece = at / self.piece_length;
            let until = ((piece + 1) * self.piece_length).min(end);
            let own = FilePlace {
                file: place.file,
                offset: place.offset + (at - start),
            };
            let part = self.place(piece as u32, at % self.piece_length);
            cuts.push(Cut {
                slice: FileSlice {
                    place: Some(part.unwrap_or(own)),
                    len: (until - at) as u32,
                },
                copy: part.filter(|_| is_moved).map(|_| own),
                is_refused: part.is_none() && is_skipped,
            });
            at = until;
        }
        cuts
    }

    /// Returns the place of a byte of a border piece in the part file.
    fn place(&self, piece: u32, offset: u64) -> Option<FilePlace> {
        let number = self.borders.binary_search(&piece).ok()?;
        Some(FilePlace {
            file: self.index,
            offset: number as u64 * self.piece_length + offset,
        })
    }

    /// Returns the runs of bytes of a file that are in the part file: the piece, the place there, the place in the
    /// file, and the length.
    pub(crate) fn runs_of(&self, files: &FileTable, index: usize) -> Vec<(u32, FilePlace, FilePlace, u32)> {
        let file = &files.files()[index];
        let run = |piece: u32| {
            let begin = u64::from(piece) * self.piece_length;
            let (start, end) = (begin.max(file.offset), (begin + self.piece_length).min(file.end()));
            let part = self.place(piece, start - begin)?;
            let own = FilePlace {
                file: index,
                offset: start - file.offset,
            };
            Some((piece, part, own, (end - start) as u32))
        };
        let pieces = border_pieces(file, self.piece_length, files.total_size());
        pieces.filter(|_| file.len > 0).filter_map(run).collect()
    }

    /// Takes over which files are skipped, and ends the moves that the session knows of.
    pub(crate) fn adopt(&mut self, needs: &FileNeeds) {
        self.skipped.clone_from(&needs.skipped);
        let confirmed: Vec<u32> = self.moved.iter_without(&needs.parted).collect();
        for file in confirmed {
            self.moved.remove(file);
            self.parted.remove(file);
        }
    }

    /// Returns the files that have their bytes, while the session may say that the part file has them alone.
    pub(crate) fn settled(&self, needs: &FileNeeds) -> Vec<u32> {
        let mut settled = needs.parted.without(&self.parted);
        self.moved.iter().for_each(|file| {
            settled.insert(file);
        });
        settled.iter().collect()
    }

    /// Returns the files that are wanted now and whose bytes are still in the part file only.
    pub(crate) fn to_move(&self) -> Vec<u32> {
        let wanted = self.parted.without(&self.skipped);
        wanted.iter_without(&self.moved).collect()
    }
}

/// Returns the name of a torrent's part file. The names of torrents never begin with a dot.
pub(crate) fn part_name(torrent: InfoHash) -> String {
    format!(".{torrent}.parts")
}

/// Returns the pieces that a file shares with its neighbors: at most two, and each once.
pub fn border_pieces(file: &FileEntry, piece_length: u64, total_size: u64) -> impl Iterator<Item = u32> + use<> {
    let first = (!file.offset.is_multiple_of(piece_length)).then(|| (file.offset / piece_length) as u32);
    let ends_inside = file.end() < total_size && !file.end().is_multiple_of(piece_length);
    let last = ends_inside.then(|| (file.end() / piece_length) as u32);
    let last = last.filter(|last| Some(*last) != first);
    first.into_iter().chain(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of these lengths in pieces of 10 bytes.
    fn parts(lengths: &[u64], parted: &[u32], skipped: &[u32]) -> (FileTable, Parts) {
        let mut offset = 0;
        let entries = lengths.iter().enumerate().map(|(index, &len)| {
            offset += len;
            FileEntry {
                path: index.to_string().into(),
                len,
                offset: offset - len,
                attributes: FileAttributes::default(),
            }
        });
        let table = FileTable::new(entries.collect());
        let set = |files: &[u32]| {
            let mut set = Bitfield::new(lengths.len() as u32);
            for file in files {
                set.insert(*file);
            }
            set
        };
        let needs = FileNeeds {
            torrent: InfoHash([7; 20]),
            piece_length: 10,
            skipped: set(skipped),
            parted: set(parted),
            held: Bitfield::default(),
        };
        let parts = Parts::new(&table, &needs);
        (table, parts)
    }

    fn place(file: usize, offset: u64) -> FilePlace {
        FilePlace { file, offset }
    }

    #[test]
    fn border_pieces_have_places_in_the_part_file() {
        // Borders at 15, 20, 52, 53: pieces 1 and 5.
        let (table, mut parts) = parts(&[15, 5, 32, 1, 9], &[2], &[2]);
        assert_eq!((&*parts.borders, parts.entry.len, parts.index), (&[1, 5][..], 20, 5));
        assert_eq!(&*parts.entry.path, format!(".{}.parts", "07".repeat(20)));
        let slice = FileSlice {
            place: Some(place(2, 8)),
            len: 24,
        };
        let cuts = parts.cut(&table, slice);
        let found: Vec<_> = cuts
            .iter()
            .map(|cut| (cut.slice.place.unwrap(), cut.slice.len, cut.is_refused))
            .collect();
        assert_eq!(
            found,
            [
                (place(2, 8), 2, true),
                (place(2, 10), 10, true),
                (place(2, 20), 10, true),
                (place(5, 10), 2, false)
            ]
        );
        assert_eq!(parts.runs_of(&table, 2), [(5, place(5, 10), place(2, 30), 2)]);
        // The bytes of a neighboring file stay where they were.
        let other = FileSlice {
            place: Some(place(3, 0)),
            len: 1,
        };
        assert_eq!(parts.cut(&table, other).len(), 1);
        assert_eq!(parts.cut(&table, other)[0].slice, other);

        parts.skipped.remove(2);
        assert_eq!(parts.to_move(), [2]);
        parts.moved.insert(2);
        let cuts = parts.cut(&table, slice);
        assert!(cuts.iter().all(|cut| !cut.is_refused));
        assert_eq!(cuts[3].copy, Some(place(2, 30)));
        let mut needs = FileNeeds {
            torrent: InfoHash([7; 20]),
            piece_length: 10,
            skipped: Bitfield::new(5),
            parted: parts.parted.clone(),
            held: Bitfield::default(),
        };
        parts.adopt(&needs);
        assert!(parts.moved.contains(2), "the session does not know of it yet");
        needs.parted = Bitfield::new(5);
        parts.adopt(&needs);
        assert!(parts.moved.is_empty() && parts.parted.is_empty());
    }
}
