//! The files of a torrent and their byte ranges: the map between the torrent's address space and the disk.

use std::fmt;
use std::sync::Arc;

use crate::geometry::Span;

/// Attributes of a file (BEP 47, key `attr`); unknown letters are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileAttributes {
    /// `p`: padding, zeros that only align the next file; never stored.
    pub pad: bool,
    /// `x`: executable.
    pub executable: bool,
    /// `h`: hidden.
    pub hidden: bool,
    /// `l`: a symbolic link. Links are not created: a torrent's author must not choose where our paths lead.
    pub symlink: bool,
}

impl FileAttributes {
    /// Parses the letters of key `attr`.
    #[must_use]
    pub fn from_letters(letters: &[u8]) -> Self {
        Self {
            pad: letters.contains(&b'p'),
            executable: letters.contains(&b'x'),
            hidden: letters.contains(&b'h'),
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

    /// Offset of the first byte after the file.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// A run of bytes inside one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSlice {
    /// Index of the file in the table.
    pub file: usize,
    /// Offset inside the file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the bytes are padding: zeros that are not stored.
    pub pad: bool,
}

/// All files of a torrent, in byte order. Clones share one table.
///
/// Offsets are stored rather than summed, so the same table fits layouts with gaps (v2 file alignment, BEP 52). A gap
/// reads as zeros.
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

    /// Cuts `span` at file boundaries. Bytes in gaps and after the last file are left out. The slices are in order, and
    /// none is empty.
    pub fn slices(&self, span: Span) -> impl Iterator<Item = FileSlice> + '_ {
        let first = self.files.partition_point(|file| file.end() <= span.offset);
        let touched = self.files[first..].iter().enumerate();
        touched
            .take_while(move |(_, file)| file.offset < span.end())
            .filter_map(move |(position, file)| {
                let start = file.offset.max(span.offset);
                let len = file.end().min(span.end()).checked_sub(start).filter(|&len| len > 0)?;
                Some(FileSlice {
                    file: first + position,
                    offset: start - file.offset,
                    len: len as u32,
                    pad: !file.is_stored(),
                })
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
        let mut offset = 0;
        let files = lengths.iter().enumerate().map(|(i, &len)| {
            let entry = FileEntry {
                path: i.to_string().into(),
                len,
                offset,
                attributes: FileAttributes::default(),
            };
            offset += len;
            entry
        });
        FileTable::new(files.collect())
    }

    #[test]
    fn spans_are_cut_at_file_borders() {
        let table = table(&[3, 0, 5, 1]);
        let slices: Vec<_> = table
            .slices(Span { offset: 2, len: 100 })
            .map(|s| (s.file, s.offset, s.len))
            .collect();
        assert_eq!(slices, [(0, 2, 1), (2, 0, 5), (3, 0, 1)]);
        assert_eq!(table.slices(Span { offset: 9, len: 1 }).count(), 0);
        assert_eq!(table.slices(Span { offset: 4, len: 0 }).count(), 0);
    }

    #[test]
    fn slices_of_padding_and_links_are_not_stored() {
        let mut files = table(&[1, 1, 1]).files().to_vec();
        files[1].attributes.pad = true;
        files[2].attributes.symlink = true;
        let table = FileTable::new(files);
        let pads: Vec<bool> = table
            .slices(Span { offset: 0, len: 3 })
            .map(|slice| slice.pad)
            .collect();
        assert_eq!(pads, [false, true, true]);
    }

    #[test]
    fn attributes_are_letters_in_any_order() {
        let all = FileAttributes::from_letters(b"xzph");
        assert!(all.pad && all.executable && all.hidden && !all.symlink);
    }

    proptest! {
        /// Every byte of a span is in exactly one slice, whatever the file sizes: the valid case of Fault 15.
        #[test]
        fn slices_cover_a_span_once(
            lengths in proptest::collection::vec(0u64..9, 1..40), offset in 0u64..200, len in 0u32..300,
        ) {
            let table = table(&lengths);
            let span = Span { offset, len };
            let mut bytes = Vec::new();
            for slice in table.slices(span) {
                prop_assert!(slice.len > 0);
                let file = &table.files()[slice.file];
                prop_assert!(slice.offset + u64::from(slice.len) <= file.len);
                bytes.extend((0..u64::from(slice.len)).map(|i| file.offset + slice.offset + i));
            }
            let expected: Vec<u64> = (span.offset..span.end().min(table.total_size())).collect();
            prop_assert_eq!(bytes, expected);
        }
    }
}
