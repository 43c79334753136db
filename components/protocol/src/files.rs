//! The files of a torrent and their byte ranges: the map between the torrent's address space and the disk.

use std::fmt;
use std::sync::Arc;

use crate::geometry::Span;

/// Attributes of a file (BEP 47, key `attr`) that decide whether its bytes are stored; other letters are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileAttributes {
    /// `p`: padding, zeros that only align the next file; never stored.
    pub pad: bool,
    /// `l`: a symbolic link. Links are not created: a torrent's author must not choose where our paths lead.
    pub symlink: bool,
}

impl FileAttributes {
    /// Parses the letters of key `attr`.
    #[must_use]
    pub(crate) fn from_letters(letters: &[u8]) -> Self {
        Self {
            pad: letters.contains(&b'p'),
            symlink: letters.contains(&b'l'),
        }
    }
}

/// One file of a torrent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Path relative to the download folder, components separated by `/`, safe on this machine (see
    /// [`safe_path`](crate::safe_path)).
    pub path: Box<str>,
    /// Length in bytes.
    pub len: u64,
    /// Offset of its first byte in the torrent.
    pub offset: u64,
    /// Attributes.
    pub attributes: FileAttributes,
}

impl FileEntry {
    /// Whether the file's bytes are stored on disk.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        !self.attributes.pad && !self.attributes.symlink
    }

    /// Whether some bytes are stored on disk: the file is stored and not empty.
    #[must_use]
    pub fn has_bytes(&self) -> bool {
        self.is_stored() && self.len > 0
    }

    /// Offset of the first byte after the file.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// A run of bytes inside one file, or of padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSlice {
    /// Where the bytes are stored. `None` for padding and gaps: zeros that are not stored.
    pub place: Option<FilePlace>,
    /// Length in bytes.
    pub len: u32,
}

/// A position in a file of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilePlace {
    /// Index of the file in the table.
    pub file: usize,
    /// Offset inside the file.
    pub offset: u64,
}

/// All files of a torrent, in byte order. Clones share one table.
///
/// Offsets are stored rather than summed, so the same table fits layouts with gaps (v2 file alignment, BEP 52). Gaps
/// are padding: they read as zeros and are not stored.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct FileTable {
    files: Arc<Vec<FileEntry>>,
    total_size: u64,
}

impl FileTable {
    /// A table of `files`, which must be sorted by offset and must not overlap.
    ///
    /// # Panics
    /// In debug builds, if the files are unsorted or overlap.
    #[must_use]
    pub fn new(files: Vec<FileEntry>) -> Self {
        debug_assert!(files.is_sorted_by(|a, b| a.end() <= b.offset));
        Self {
            total_size: files.last().map_or(0, FileEntry::end),
            files: Arc::new(files),
        }
    }

    /// The files.
    #[must_use]
    pub fn files(&self) -> &[FileEntry] {
        &self.files
    }

    /// Bytes of the torrent, padding included.
    #[must_use]
    pub fn total_size(&self) -> u64 {
        self.total_size
    }

    /// Cuts `span` at file boundaries. The slices are in order, adjacent, and none is empty; gaps between files are
    /// slices without a place. Bytes after the last file are left out.
    pub fn slices(&self, span: Span) -> impl Iterator<Item = FileSlice> + '_ {
        let (mut at, end) = (span.offset, span.end().min(self.total_size));
        let mut index = self.files.partition_point(|file| file.end() <= at);
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            while self
                .files
                .get(index)
                .is_some_and(|file| file.len == 0 || file.end() <= at)
            {
                index += 1;
            }
            let next = self.files.get(index);
            let file = next.filter(|file| file.offset <= at);
            let border = file.map(FileEntry::end).or(next.map(|next| next.offset));
            let start = std::mem::replace(&mut at, border.map_or(end, |border| border.min(end)));
            let place = file.filter(|file| file.is_stored()).map(|file| FilePlace {
                file: index,
                offset: start - file.offset,
            });
            let len = (at - start) as u32;
            Some(FileSlice { place, len })
        })
    }
}

impl fmt::Debug for FileTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileTable({} files, {} bytes)", self.files.len(), self.total_size)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(lengths: &[u64]) -> FileTable {
        let files: Vec<_> = lengths.iter().map(|&len| (0, len)).collect();
        table_with_gaps(&files)
    }

    /// Files, each with the length of the gap before it and its own.
    fn table_with_gaps(files: &[(u64, u64)]) -> FileTable {
        let mut end = 0;
        let files = files.iter().enumerate().map(|(i, &(gap, len))| {
            end += gap + len;
            FileEntry {
                path: i.to_string().into(),
                len,
                offset: end - len,
                attributes: FileAttributes::default(),
            }
        });
        FileTable::new(files.collect())
    }

    fn places(table: &FileTable, span: Span) -> Vec<(Option<(usize, u64)>, u32)> {
        let place = |slice: FileSlice| slice.place.map(|place| (place.file, place.offset));
        table.slices(span).map(|slice| (place(slice), slice.len)).collect()
    }

    #[test]
    fn spans_are_cut_at_file_borders() {
        let table = table(&[3, 0, 5, 1]);
        let slices = places(&table, Span { offset: 2, len: 100 });
        assert_eq!(slices, [(Some((0, 2)), 1), (Some((2, 0)), 5), (Some((3, 0)), 1)]);
        assert_eq!(table.slices(Span { offset: 9, len: 1 }).count(), 0);
        assert_eq!(table.slices(Span { offset: 4, len: 0 }).count(), 0);
    }

    #[test]
    fn gaps_between_files_are_padding() {
        let table = table_with_gaps(&[(2, 3), (0, 1), (4, 0), (5, 2)]);
        let slices = places(&table, Span { offset: 0, len: 100 });
        let gap = |len| (None, len);
        assert_eq!(slices[..3], [gap(2), (Some((0, 0)), 3), (Some((1, 0)), 1)]);
        assert_eq!(
            slices[3..],
            [gap(9), (Some((3, 0)), 2)],
            "an empty file does not split a gap"
        );
        assert_eq!(places(&table, Span { offset: 8, len: 3 }), [gap(3)]);
        assert_eq!(places(&table, Span { offset: 14, len: 2 }), [gap(1), (Some((3, 0)), 1)]);
    }

    #[test]
    fn slices_of_padding_and_links_are_not_stored() {
        let mut files = table(&[1, 1, 1]).files().to_vec();
        files[1].attributes.pad = true;
        files[2].attributes.symlink = true;
        let table = FileTable::new(files);
        let slices = places(&table, Span { offset: 0, len: 3 });
        assert_eq!(slices, [(Some((0, 0)), 1), (None, 1), (None, 1)]);
    }

    #[test]
    fn attributes_are_letters_in_any_order() {
        let all = FileAttributes::from_letters(b"xzph");
        assert!(all.pad && !all.symlink);
    }

    proptest! {
        /// Every byte of a span is in exactly one slice, whatever the file sizes: the valid case of Fault 15.
        #[test]
        fn slices_cover_a_span_once(
            files in proptest::collection::vec((0u64..3, 0u64..9), 1..40), offset in 0u64..200, len in 0u32..300,
        ) {
            let table = table_with_gaps(&files);
            let span = Span { offset, len };
            let mut at = offset;
            for slice in table.slices(span) {
                prop_assert!(slice.len > 0);
                let end = at + u64::from(slice.len);
                match slice.place {
                    Some(place) => {
                        let file = &table.files()[place.file];
                        prop_assert_eq!(file.offset + place.offset, at);
                        prop_assert!(end <= file.end());
                    }
                    None => prop_assert!(
                        table.files().iter().all(|file| file.len == 0 || file.end() <= at || file.offset >= end)
                    ),
                }
                at = end;
            }
            prop_assert_eq!(at, span.end().min(table.total_size()).max(offset));
        }
    }
}
