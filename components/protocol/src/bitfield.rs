//! Sets of pieces, and their wire form (BEP 3, message `bitfield`).

use std::fmt;

/// A set of piece indexes below a fixed length.
///
/// Bit 0 is the highest bit of the first word, as on the wire. Bits beyond the length are always zero.
///
/// ```
/// use ecs_torrent_protocol::bitfield::Bitfield;
///
/// // A peer has pieces 0 and 9 of ten; we have piece 0.
/// let theirs = Bitfield::from_wire(&[0b1000_0000, 0b0100_0000], 10).unwrap();
/// let mut ours = Bitfield::new(10);
/// ours.insert(0);
/// assert_eq!(theirs.iter_without(&ours).collect::<Vec<_>>(), [9]);
/// assert_eq!((theirs.count(), theirs.is_full()), (2, false));
/// // A bit beyond the last piece is an error.
/// assert!(Bitfield::from_wire(&[0, 0b0010_0000], 10).is_err());
/// ```
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Bitfield {
    words: Box<[u64]>,
    len: u32,
    count: u32,
}

/// The reason bytes are not a bitfield of a torrent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BitfieldError {
    /// The length is not one bit per piece, rounded up to bytes.
    #[error("bitfield of {got} bytes for {pieces} pieces")]
    Length {
        /// Bytes received.
        got: usize,
        /// Pieces of the torrent.
        pieces: u32,
    },
    /// A bit after the last piece is set.
    #[error("spare bits set in bitfield")]
    SpareBits,
}

impl Bitfield {
    /// The empty set over `len` pieces.
    #[must_use]
    pub fn new(len: u32) -> Self {
        Self {
            words: vec![0; (len as usize).div_ceil(64)].into_boxed_slice(),
            len,
            count: 0,
        }
    }

    /// The set of all `len` pieces.
    #[must_use]
    pub fn full(len: u32) -> Self {
        let mut set = Self::new(len);
        set.words.fill(u64::MAX);
        let used = len % 64;
        if let (Some(last), 1..) = (set.words.last_mut(), used) {
            *last = u64::MAX << (64 - used);
        }
        set.count = len;
        set
    }

    /// Reads the wire form for a torrent of `len` pieces.
    ///
    /// # Errors
    /// Returns an error if the number of bytes is wrong or spare bits are set: BEP 3 lets both end the connection.
    pub fn from_wire(bytes: &[u8], len: u32) -> Result<Self, BitfieldError> {
        if bytes.len() != wire_len(len) {
            return Err(BitfieldError::Length {
                got: bytes.len(),
                pieces: len,
            });
        }
        let mut set = Self::new(len);
        for (word, chunk) in set.words.iter_mut().zip(bytes.chunks(8)) {
            let mut wide = [0; 8];
            wide[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_be_bytes(wide);
        }
        let used = len % 64;
        if used != 0 && set.words.last().is_some_and(|last| last << used != 0) {
            return Err(BitfieldError::SpareBits);
        }
        set.count = set.words.iter().map(|word| word.count_ones()).sum();
        Ok(set)
    }

    /// Appends the wire form, `wire_len(len)` bytes.
    pub fn write_wire(&self, out: &mut impl Extend<u8>) {
        let bytes = self.words.iter().flat_map(|word| word.to_be_bytes());
        out.extend(bytes.take(wire_len(self.len)));
    }

    /// Number of pieces of the torrent, in the set or not.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether no piece is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Number of pieces in the set.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether every piece is in the set.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.count == self.len
    }

    /// Whether `index` is in the set; false if it is out of range.
    #[must_use]
    pub fn contains(&self, index: u32) -> bool {
        index < self.len && self.words[(index / 64) as usize] & bit(index) != 0
    }

    /// Adds `index`; returns false if it was present or is out of range.
    pub fn insert(&mut self, index: u32) -> bool {
        let new = index < self.len && !self.contains(index);
        if new {
            self.words[(index / 64) as usize] |= bit(index);
            self.count += 1;
        }
        new
    }

    /// Removes `index`; returns false if it was absent.
    pub fn remove(&mut self, index: u32) -> bool {
        let there = self.contains(index);
        if there {
            self.words[(index / 64) as usize] &= !bit(index);
            self.count -= 1;
        }
        there
    }

    /// The indexes in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.combine(self, |mine, _| mine)
    }

    /// The indexes that are not in the set, ascending.
    pub fn iter_missing(&self) -> impl Iterator<Item = u32> + '_ {
        self.combine(self, |mine, _| !mine)
            .take_while(|&index| index < self.len)
    }

    /// The indexes in this set and not in `other`, ascending: the pieces of a peer that we lack.
    pub fn iter_without<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = u32> + 'a {
        self.combine(other, |mine, theirs| mine & !theirs)
    }

    /// The indexes in both sets, ascending.
    pub fn iter_common<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = u32> + 'a {
        self.combine(other, |mine, theirs| mine & theirs)
    }

    /// Adds all indexes of `other`, which must have the same length.
    pub fn insert_all(&mut self, other: &Self) {
        self.count = 0;
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine |= theirs;
            self.count += mine.count_ones();
        }
    }

    /// The set of indexes in this set and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let words: Box<[u64]> = self.words.iter().zip(&other.words).map(|(a, b)| a & !b).collect();
        Self {
            count: words.iter().map(|word| word.count_ones()).sum(),
            len: self.len,
            words,
        }
    }

    /// Number of indexes in this set and not in `other`.
    #[must_use]
    pub fn count_without(&self, other: &Self) -> u32 {
        self.words
            .iter()
            .zip(&other.words)
            .map(|(a, b)| (a & !b).count_ones())
            .sum()
    }

    fn combine<'a>(&'a self, other: &'a Self, op: impl Fn(u64, u64) -> u64 + 'a) -> impl Iterator<Item = u32> + 'a {
        let words = self.words.iter().zip(&other.words).enumerate();
        words.flat_map(move |(position, (&a, &b))| {
            let mut rest = op(a, b);
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let lead = rest.leading_zeros();
                    rest &= !(1 << (63 - lead));
                    position as u32 * 64 + lead
                })
            })
        })
    }
}

/// Bytes of the wire form of a set over `len` pieces.
#[must_use]
pub(crate) fn wire_len(len: u32) -> usize {
    (len as usize).div_ceil(8)
}

fn bit(index: u32) -> u64 {
    1 << (63 - index % 64)
}

impl fmt::Debug for Bitfield {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bitfield({}/{})", self.count, self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_out_of_range_is_never_in_the_set() {
        for len in [0, 63, 64, 65, 128] {
            let mut set = Bitfield::full(len);
            assert!(!set.contains(len) && !set.insert(len) && !set.remove(len), "of {len}");
            assert_eq!(set.count(), len);
        }
    }

    #[test]
    fn wire_form_puts_piece_0_in_the_high_bit() {
        let mut set = Bitfield::new(10);
        set.insert(0);
        set.insert(9);
        let mut wire = Vec::new();
        set.write_wire(&mut wire);
        assert_eq!(wire, [0b1000_0000, 0b0100_0000]);
    }

    /// Fault 22: wrong length and spare bits are refused.
    #[test]
    fn malformed_wire_forms_are_refused() {
        assert_eq!(
            Bitfield::from_wire(&[0; 3], 10),
            Err(BitfieldError::Length { got: 3, pieces: 10 })
        );
        assert_eq!(
            Bitfield::from_wire(&[0, 0b0010_0000], 10),
            Err(BitfieldError::SpareBits)
        );
        assert_eq!(Bitfield::from_wire(&[0, 0b0100_0000], 10).unwrap().count(), 1);
        assert_eq!(Bitfield::from_wire(&[], 0).unwrap().count(), 0);
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(len in 0u32..300, ops in proptest::collection::vec((any::<bool>(), 0u32..310), 0..200)) {
            let mut set = Bitfield::new(len);
            let mut model = BTreeSet::new();
            for (add, index) in ops {
                if add {
                    prop_assert_eq!(set.insert(index), index < len && model.insert(index));
                } else {
                    prop_assert_eq!(set.remove(index), model.remove(&index));
                }
            }
            prop_assert_eq!(set.count() as usize, model.len());
            prop_assert_eq!((set.len(), set.is_empty()), (len, model.is_empty()));
            prop_assert_eq!(set.is_full(), model.len() == len as usize);
            for index in 0..310 {
                prop_assert_eq!(set.contains(index), model.contains(&index));
            }
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            let missing: Vec<u32> = (0..len).filter(|i| !model.contains(i)).collect();
            prop_assert_eq!(set.iter_missing().collect::<Vec<_>>(), missing);
            let full = Bitfield::full(len);
            prop_assert_eq!(full.count_without(&set), len - set.count());
            prop_assert_eq!(full.iter_without(&set).collect::<Vec<_>>(), set.iter_missing().collect::<Vec<_>>());
            prop_assert!(full.is_full() && full.iter().eq(0..len));
            prop_assert_eq!(full.without(&set).iter().collect::<Vec<_>>(), set.iter_missing().collect::<Vec<_>>());
            prop_assert_eq!(full.without(&set).count(), len - set.count());
            let mut other = Bitfield::new(len);
            for index in (0..len).step_by(3) {
                other.insert(index);
            }
            let common: Vec<u32> = (0..len).step_by(3).filter(|index| model.contains(index)).collect();
            prop_assert_eq!(set.iter_common(&other).collect::<Vec<_>>(), common);
            set.insert_all(&other);
            model.extend((0..len).step_by(3));
            prop_assert_eq!((set.count() as usize, set.iter().collect::<BTreeSet<_>>()), (model.len(), model));
        }

        #[test]
        fn wire_form_round_trips(len in 0u32..300, indexes in proptest::collection::vec(0u32..300, 0..50)) {
            let mut set = Bitfield::new(len);
            for index in indexes {
                set.insert(index);
            }
            let mut wire = Vec::new();
            set.write_wire(&mut wire);
            prop_assert_eq!(wire.len(), wire_len(len));
            prop_assert_eq!(Bitfield::from_wire(&wire, len).unwrap(), set);
        }
    }
}
