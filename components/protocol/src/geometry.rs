//! The division of a torrent's bytes into pieces and blocks.

use std::ops::Range;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    total_size: u64,
    piece_length: u32,
    piece_count: u32,
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
        })
    }

    /// Total bytes of all files, padding included.
    #[must_use]
    pub fn total_size(&self) -> u64 {
        self.total_size
    }

    /// Bytes of each piece except the last.
    #[must_use]
    pub fn piece_length(&self) -> u32 {
        self.piece_length
    }

    /// Number of pieces.
    #[must_use]
    pub fn piece_count(&self) -> u32 {
        self.piece_count
    }

    /// Bytes of piece `index`; the last piece may be shorter. 0 if the index is out of range.
    #[must_use]
    pub fn piece_size(&self, index: u32) -> u32 {
        if index >= self.piece_count {
            return 0;
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

    proptest! {
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
