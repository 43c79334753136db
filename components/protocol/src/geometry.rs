//! The division of a torrent's bytes into pieces and blocks.

use std::ops::Range;
use std::sync::Arc;

use crate::bitfield::Bitfield;

/// Bytes of a block, the unit of requests: the size that all current clients request (BEP 3 note on request length).
pub const BLOCK_SIZE: u32 = 16 * 1024;

/// A run of bytes in the torrent's address space: all files concatenated, padding included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// Offset of the first byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u32,
}

impl Span {
    /// Offset of the first byte after the span.
    #[must_use]
    pub fn end(self) -> u64 {
        self.offset + u64::from(self.len)
    }
}

/// One block of one piece, as named in requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockRequest {
    /// Piece index.
    pub piece: u32,
    /// Offset inside the piece, in bytes.
    pub begin: u32,
    /// Length in bytes.
    pub len: u32,
}

/// Sizes of a torrent's pieces and blocks.
///
/// Pieces lie at multiples of the piece length. In v1, files follow each other and only the last piece can be shorter
/// ([`Geometry::new`]). In v2, each file begins a piece, and its last piece ends with the file ([`Geometry::aligned`],
/// BEP 52): the gap up to the next file belongs to no piece.
///
/// ```
/// use ecs_torrent_protocol::geometry::Geometry;
///
/// // 100 000 bytes in pieces of 64 KiB: the second piece is shorter.
/// let geometry = Geometry::new(100_000, 65_536).unwrap();
/// assert_eq!((geometry.piece_count(), geometry.piece_size(1)), (2, 34_464));
/// // The last block of the second piece, as a request names it.
/// let last = geometry.block(1, geometry.block_count(1) - 1);
/// assert_eq!((last.begin, last.len), (32_768, 1_696));
/// assert!(geometry.contains(last));
/// assert_eq!(geometry.span(last).end(), geometry.total_size());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    total_size: u64,
    piece_length: u32,
    piece_count: u32,
    /// The shorter pieces of files that are not the last, by index. `None` where there are none, as always in v1.
    short: Option<Arc<[ShortPiece]>>,
}

/// A piece that ends with its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ShortPiece {
    index: u32,
    size: u32,
}

impl Geometry {
    /// The geometry of `total_size` bytes in pieces of `piece_length`. `None` if `piece_length` is zero or the piece
    /// count exceeds the range of an index.
    #[must_use]
    pub fn new(total_size: u64, piece_length: u32) -> Option<Self> {
        if piece_length == 0 {
            return None;
        }
        let piece_count = u32::try_from(total_size.div_ceil(u64::from(piece_length))).ok()?;
        Some(Self {
            total_size,
            piece_length,
            piece_count,
            short: None,
        })
    }

    /// The geometry of files that each begin a piece (BEP 52), from their lengths in order. `None` as in
    /// [`Geometry::new`], or if the sum of the lengths is out of range.
    #[must_use]
    pub fn aligned(file_lengths: impl IntoIterator<Item = u64>, piece_length: u32) -> Option<Self> {
        let mut short = Vec::new();
        let mut end = 0u64;
        for len in file_lengths.into_iter().filter(|len| *len > 0) {
            let length = u64::from(piece_length);
            let begin = end.checked_next_multiple_of(length)?;
            if begin != end {
                short.push(ShortPiece {
                    index: u32::try_from(end / length).ok()?,
                    size: (end % length) as u32,
                });
            }
            end = begin.checked_add(len)?;
        }
        let short = (!short.is_empty()).then(|| short.into());
        Some(Self {
            short,
            ..Self::new(end, piece_length)?
        })
    }

    /// Offset of the first byte after the last file: all files, with padding and the gaps between them.
    #[must_use]
    pub fn total_size(&self) -> u64 {
        self.total_size
    }

    /// Bytes of all pieces: [`Geometry::total_size`] without the gaps, which belong to no piece.
    #[must_use]
    pub fn pieces_size(&self) -> u64 {
        let gaps = self.short.iter().flat_map(|short| short.iter());
        self.total_size - gaps.map(|piece| u64::from(self.piece_length - piece.size)).sum::<u64>()
    }

    /// Bytes of the pieces in `set`.
    #[must_use]
    pub fn size_of(&self, set: &Bitfield) -> u64 {
        let whole = u64::from(set.count()) * u64::from(self.piece_length);
        let last = self.piece_count.saturating_sub(1);
        let short = self
            .short
            .iter()
            .flat_map(|short| short.iter().map(|piece| piece.index));
        let shorter = short.chain([last]).filter(|index| set.contains(*index));
        whole
            - shorter
                .map(|index| u64::from(self.piece_length - self.piece_size(index)))
                .sum::<u64>()
    }

    /// Bytes of each piece except the last, and in v2 the last of each file.
    #[must_use]
    pub fn piece_length(&self) -> u32 {
        self.piece_length
    }

    /// Number of pieces.
    #[must_use]
    pub fn piece_count(&self) -> u32 {
        self.piece_count
    }

    /// Bytes of piece `index`; the last piece may be shorter, and in v2 the last piece of each file. 0 if the index is
    /// out of range.
    #[must_use]
    pub fn piece_size(&self, index: u32) -> u32 {
        if index >= self.piece_count {
            return 0;
        }
        if let Some(short) = &self.short
            && let Ok(found) = short.binary_search_by_key(&index, |piece| piece.index)
        {
            return short[found].size;
        }
        let left = self.total_size - self.piece_offset(index);
        left.min(u64::from(self.piece_length)) as u32
    }

    /// Offset of piece `index` in the torrent.
    #[must_use]
    pub fn piece_offset(&self, index: u32) -> u64 {
        u64::from(index) * u64::from(self.piece_length)
    }

    /// The span of piece `index` in the torrent.
    #[must_use]
    pub fn piece_span(&self, index: u32) -> Span {
        Span {
            offset: self.piece_offset(index),
            len: self.piece_size(index),
        }
    }

    /// The pieces that overlap `bytes`, a range of offsets in the torrent.
    #[must_use]
    pub fn pieces_of(&self, bytes: Range<u64>) -> Range<u32> {
        let end = bytes.end.min(self.total_size);
        if bytes.start >= end {
            return 0..0;
        }
        let length = u64::from(self.piece_length);
        (bytes.start / length) as u32..end.div_ceil(length) as u32
    }

    /// Number of blocks of piece `index`.
    #[must_use]
    pub fn block_count(&self, index: u32) -> u32 {
        self.piece_size(index).div_ceil(BLOCK_SIZE)
    }

    /// The request for block number `block` of piece `index`, truncated at the end of the piece.
    #[must_use]
    pub fn block(&self, index: u32, block: u32) -> BlockRequest {
        let begin = block.saturating_mul(BLOCK_SIZE);
        BlockRequest {
            piece: index,
            begin,
            len: self.piece_size(index).saturating_sub(begin).min(BLOCK_SIZE),
        }
    }

    /// Whether `request` is nonempty and lies inside its piece.
    #[must_use]
    pub fn contains(&self, request: BlockRequest) -> bool {
        let end = u64::from(request.begin) + u64::from(request.len);
        request.len > 0 && end <= u64::from(self.piece_size(request.piece))
    }

    /// Returns whether `request` ends at the end of its piece.
    #[must_use]
    pub fn is_end_of_piece(&self, request: BlockRequest) -> bool {
        u64::from(request.begin) + u64::from(request.len) == u64::from(self.piece_size(request.piece))
    }

    /// The span of `request` in the torrent.
    #[must_use]
    pub fn span(&self, request: BlockRequest) -> Span {
        Span {
            offset: self.piece_offset(request.piece) + u64::from(request.begin),
            len: request.len,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn odd_sizes() {
        let one = Geometry::new(1, 16384).unwrap();
        assert_eq!((one.piece_count(), one.piece_size(0), one.block_count(0)), (1, 1, 1));
        assert_eq!(one.block(0, 0).len, 1);

        let odd = Geometry::new(100_001, 40_000).unwrap();
        assert_eq!(
            (odd.total_size(), odd.piece_length(), odd.piece_count()),
            (100_001, 40_000, 3)
        );
        assert_eq!(
            (odd.piece_size(1), odd.piece_size(2), odd.piece_size(3)),
            (40_000, 20_001, 0)
        );
        assert_eq!(odd.block_count(0), 3);
        assert_eq!(odd.block(0, 2).len, 40_000 - 2 * BLOCK_SIZE);
        assert_eq!(odd.block(2, 1).len, 20_001 - BLOCK_SIZE);

        let empty = Geometry::new(0, 16384).unwrap();
        assert_eq!((empty.piece_count(), empty.block_count(0)), (0, 0));
        assert_eq!(Geometry::new(1, 0), None);
        assert_eq!(Geometry::new(u64::MAX, 1), None);
    }

    #[test]
    fn foreign_requests_are_no_blocks() {
        let geometry = Geometry::new(100_000, 40_000).unwrap();
        let request = |piece, begin, len| BlockRequest { piece, begin, len };
        assert!(geometry.contains(request(2, 19_999, 1)));
        assert!(!geometry.contains(request(2, 20_000, 1)));
        assert!(!geometry.contains(request(2, u32::MAX, u32::MAX)));
        assert!(!geometry.contains(request(0, 0, 0)));
    }

    #[test]
    fn pieces_of_aligned_files_end_with_their_files() {
        let geometry = Geometry::aligned([50_000, 0, 32_768, 1, 32_769], 32_768).unwrap();
        let sizes: Vec<u32> = (0..7).map(|piece| geometry.piece_size(piece)).collect();
        assert_eq!(sizes, [32_768, 17_232, 32_768, 1, 32_768, 1, 0]);
        assert_eq!((geometry.total_size(), geometry.piece_count()), (5 * 32_768 + 1, 6));
        assert_eq!(geometry.pieces_size(), 50_000 + 32_768 + 1 + 32_769);
        assert_eq!((geometry.block_count(1), geometry.block_count(3)), (2, 1));
        assert_eq!(geometry.block(1, 1).len, 17_232 - BLOCK_SIZE);
        assert!(!geometry.contains(BlockRequest {
            piece: 3,
            begin: 0,
            len: 2
        }));
        let mut set = Bitfield::new(6);
        assert!([0, 1, 5].iter().all(|piece| set.insert(*piece)));
        assert_eq!(geometry.size_of(&set), 50_000 + 1);
        assert_eq!(geometry.pieces_of(65_536..98_304), 2..3, "the second file's piece");
        assert_eq!(Geometry::aligned([u64::MAX, 1], 16_384), None);
        assert_eq!(Geometry::aligned([7, 1], 0), None);
    }

    proptest! {
        /// The same files have the same bytes in pieces, whether they are aligned or not; where each file fills its
        /// pieces, the geometries are equal.
        #[test]
        fn aligned_pieces_cover_each_file_once(
            lengths in proptest::collection::vec(0u64..20_000, 0..20), length in 1u32..5_000,
        ) {
            let geometry = Geometry::aligned(lengths.iter().copied(), length).unwrap();
            let total: u64 = lengths.iter().sum();
            let sizes: u64 = (0..geometry.piece_count()).map(|piece| u64::from(geometry.piece_size(piece))).sum();
            prop_assert_eq!((geometry.pieces_size(), sizes), (total, total));
            let mut all = Bitfield::new(geometry.piece_count());
            prop_assert!((0..geometry.piece_count()).all(|piece| all.insert(piece)));
            prop_assert_eq!(geometry.size_of(&all), total);
            let mut piece = 0;
            for len in lengths {
                let mut left = len;
                while left > 0 {
                    let size = left.min(u64::from(length));
                    prop_assert_eq!(u64::from(geometry.piece_size(piece)), size);
                    (left, piece) = (left - size, piece + 1);
                }
            }
            let whole = Geometry::aligned([u64::from(length) * 3, u64::from(length), 5], length);
            prop_assert_eq!(whole, Geometry::new(u64::from(length) * 4 + 5, length));
        }

        /// Blocks tile pieces and pieces tile the torrent, each byte exactly once.
        #[test]
        fn blocks_tile_the_torrent(total in 0u64..400_000, length in 1u32..70_000) {
            let geometry = Geometry::new(total, length).unwrap();
            let mut offset = 0;
            for piece in 0..geometry.piece_count() {
                prop_assert_eq!(geometry.piece_offset(piece), offset);
                for block in 0..geometry.block_count(piece) {
                    let request = geometry.block(piece, block);
                    prop_assert!(request.len > 0 && request.len <= BLOCK_SIZE);
                    prop_assert!(geometry.contains(request));
                    prop_assert_eq!(geometry.span(request).offset, offset);
                    offset = geometry.span(request).end();
                }
                prop_assert_eq!(geometry.piece_span(piece).end(), offset);
            }
            prop_assert_eq!(offset, total);
        }

        #[test]
        fn pieces_of_a_range_are_those_it_touches(
            total in 1u64..100_000, length in 1u32..5_000, a in 0u64..110_000, b in 0u64..110_000,
        ) {
            let geometry = Geometry::new(total, length).unwrap();
            let (start, end) = (a.min(b), a.max(b));
            let touched: Vec<u32> = (0..geometry.piece_count())
                .filter(|&p| {
                    let span = geometry.piece_span(p);
                    span.offset < end && start < span.end() && start < end
                })
                .collect();
            prop_assert_eq!(geometry.pieces_of(start..end).collect::<Vec<_>>(), touched);
        }
    }
}
