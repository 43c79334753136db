//! A peer's pieces before the number of pieces is known.

use super::codec::WireError;
use super::message::id;
use crate::bitfield::{Bitfield, BitfieldError, wire_len};

/// A peer's claims about its pieces while the torrent's metadata is not known (BEP 9). They are checked as far as
/// possible at first, and completely when the number of pieces is known.
///
/// Its memory is at most that of the messages that it records, so that no short message makes it allocate much.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RawPieces {
    /// The peer has every piece. Otherwise it has those in `bits` and in `few`.
    is_all: bool,
    /// Pieces in wire form.
    bits: Vec<u8>,
    /// Whether `bits` is from a bitfield message, whose length must match the number of pieces.
    is_bitfield: bool,
    /// Pieces beyond `bits`, in the order of their arrival, while the bits up to them would take more memory.
    few: Vec<u32>,
    /// The length of `bits` that has room for all pieces.
    needed: usize,
}

/// A peer's pieces, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KnownPieces {
    /// Every piece.
    All,
    /// The listed pieces.
    Some(Bitfield),
}

impl RawPieces {
    /// Replaces everything by a bitfield of at most `max_bytes`.
    ///
    /// # Errors
    /// If the bitfield is longer.
    pub fn set_bitfield(&mut self, bytes: &[u8], max_bytes: usize) -> Result<(), WireError> {
        if bytes.len() > max_bytes {
            return Err(WireError::TooLong {
                id: id::BITFIELD,
                len: bytes.len() as u32 + 1,
                max: max_bytes as u32 + 1,
            });
        }
        *self = Self {
            bits: bytes.to_vec(),
            is_bitfield: true,
            ..Self::default()
        };
        Ok(())
    }

    /// Replaces everything by all pieces (BEP 6).
    pub fn set_all(&mut self) {
        *self = Self {
            is_all: true,
            ..Self::default()
        };
    }

    /// Replaces everything by no piece (BEP 6).
    pub fn set_none(&mut self) {
        *self = Self::default();
    }

    /// Adds a piece.
    ///
    /// # Errors
    /// If the peer's bitfield has no such piece, or the set would need more than `max_bytes`.
    pub fn insert(&mut self, piece: u32, max_bytes: usize) -> Result<(), WireError> {
        let byte = byte_of(piece);
        if self.is_all {
            return Ok(());
        }
        if byte < self.bits.len() {
            set_bit(&mut self.bits, piece);
            return Ok(());
        }
        if self.is_bitfield || byte >= max_bytes {
            let (id, begin) = (id::HAVE, 0);
            return Err(WireError::OutOfRange { id, piece, begin });
        }
        self.few.push(piece);
        self.needed = self.needed.max(byte + 1);
        if self.needed <= self.bits.len() + size_of_val(self.few.as_slice()) {
            self.grow(self.needed);
        }
        Ok(())
    }

    /// Moves all pieces into the bits, which are long enough for them then.
    fn grow(&mut self, len: usize) {
        self.bits.resize(len, 0);
        for piece in std::mem::take(&mut self.few) {
            set_bit(&mut self.bits, piece);
        }
    }

    /// Removes a piece (BEP 54). A peer that announced all pieces at once keeps them all here; it rejects requests for
    /// the removed piece.
    pub fn remove(&mut self, piece: u32) {
        match self.bits.get_mut(byte_of(piece)) {
            Some(byte) => *byte &= !bit_of(piece),
            None => self.few.retain(|other| *other != piece),
        }
    }

    /// Checks the pieces against their number.
    ///
    /// # Errors
    /// If the bitfield has the wrong length, or a piece does not exist.
    pub fn resolve(mut self, piece_count: u32) -> Result<KnownPieces, WireError> {
        if self.is_all {
            return Ok(KnownPieces::All);
        }
        if !self.is_bitfield {
            let len = wire_len(piece_count);
            let has_more = self.bits.iter().skip(len).any(|byte| *byte != 0);
            if has_more || self.few.iter().any(|piece| byte_of(*piece) >= len) {
                return Err(BitfieldError::SpareBits.into());
            }
            self.grow(len);
        }
        Ok(KnownPieces::Some(Bitfield::from_wire(&self.bits, piece_count)?))
    }
}

fn byte_of(piece: u32) -> usize {
    (piece / 8) as usize
}

fn bit_of(piece: u32) -> u8 {
    0x80 >> (piece % 8)
}

fn set_bit(bits: &mut [u8], piece: u32) {
    bits[byte_of(piece)] |= bit_of(piece);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 4;

    fn set(pieces: &[u32], count: u32) -> KnownPieces {
        let mut set = Bitfield::new(count);
        assert!(pieces.iter().all(|piece| set.insert(*piece)));
        KnownPieces::Some(set)
    }

    #[test]
    fn a_bitfield_must_have_the_right_length_and_no_spare_bits() {
        let mut raw = RawPieces::default();
        raw.set_bitfield(&[0x80, 0x40], MAX).unwrap();
        assert_eq!(raw.clone().resolve(10), Ok(set(&[0, 9], 10)));
        assert_eq!(raw.clone().resolve(9), Err(BitfieldError::SpareBits.into()));
        assert!(raw.clone().resolve(8).is_err() && raw.clone().resolve(17).is_err());
        assert!(raw.insert(16, MAX).is_err(), "beyond its own bitfield");
        raw.insert(1, MAX).unwrap();
        raw.remove(9);
        assert_eq!(raw.clone().resolve(10), Ok(set(&[0, 1], 10)));
        assert!(raw.set_bitfield(&[0; MAX + 1], MAX).is_err());
    }

    #[test]
    fn haves_are_bounded_and_checked_later() {
        let mut raw = RawPieces::default();
        assert_eq!(
            raw.clone().resolve(3),
            Ok(set(&[], 3)),
            "a peer that says nothing has nothing"
        );
        for piece in [0, 7, 8] {
            raw.insert(piece, MAX).unwrap();
        }
        assert!(raw.insert(8 * MAX as u32, MAX).is_err() && raw.insert(u32::MAX, MAX).is_err());
        assert_eq!(raw.clone().resolve(9), Ok(set(&[0, 7, 8], 9)));
        assert_eq!(raw.clone().resolve(100), Ok(set(&[0, 7, 8], 100)));
        assert!(raw.clone().resolve(8).is_err());
        raw.set_all();
        raw.insert(5, MAX).unwrap();
        assert_eq!(raw.clone().resolve(3), Ok(KnownPieces::All));
        raw.set_none();
        assert_eq!(raw.resolve(3), Ok(set(&[], 3)));
    }

    /// A `Have` takes nine bytes on the wire.
    #[test]
    fn a_have_takes_no_more_memory_than_its_message() {
        const LARGE: usize = 500_000;
        let memory = |raw: &RawPieces| raw.bits.capacity() + raw.few.capacity() * size_of::<u32>();
        let last = 8 * LARGE as u32 - 1;
        let far = |count: u32| (0..count).map(move |piece| last - piece * 100).collect::<Vec<_>>();
        let near = (0..9999).collect();
        let mixed = (0..9999)
            .map(|number| if number % 2 == 0 { number } else { last })
            .collect();
        for pieces in [vec![last], vec![0, last], vec![last; 9999], far(9999), near, mixed] {
            let mut raw = RawPieces::default();
            for (piece, count) in pieces.iter().zip(1..) {
                raw.insert(*piece, LARGE).unwrap();
                // A vector begins with a few elements.
                assert!(
                    memory(&raw) <= 9 * count + 64,
                    "{} after {count} messages",
                    memory(&raw)
                );
            }
            let known = raw.resolve(8 * LARGE as u32).unwrap();
            let KnownPieces::Some(known) = known else {
                panic!("{known:?}")
            };
            let expected: std::collections::BTreeSet<u32> = pieces.into_iter().collect();
            assert!(known.iter().eq(expected));
        }
    }

    proptest! {
        /// Pieces that arrive one by one have the same result as the same pieces in a bitfield.
        #[test]
        fn haves_equal_a_bitfield(
            pieces in proptest::collection::vec((0u32..32 * 8, any::<bool>()), 0..40),
            count in 1u32..33 * 8,
        ) {
            let mut raw = RawPieces::default();
            let mut model = std::collections::BTreeSet::new();
            for (piece, is_removed) in pieces {
                raw.insert(piece, 32).unwrap();
                model.insert(piece);
                if is_removed {
                    raw.remove(piece);
                    model.remove(&piece);
                }
            }
            let pieces: Vec<u32> = model.into_iter().collect();
            let mut known = Bitfield::new(count);
            for piece in &pieces {
                known.insert(*piece);
            }
            let is_valid = pieces.iter().all(|piece| *piece < count);
            prop_assert_eq!(raw.resolve(count).ok(), is_valid.then_some(KnownPieces::Some(known)));
        }
    }
}
