//! A peer's pieces before the number of pieces is known.

use super::codec::WireError;
use super::message::id;
use crate::bitfield::{Bitfield, BitfieldError, wire_len};

/// A peer's claims about its pieces while the torrent's metadata is not known (BEP 9). They are checked as far as
/// possible at first, and completely when the number of pieces is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RawPieces {
    /// The peer has every piece. Otherwise it has those in `bits`.
    is_all: bool,
    /// Pieces in wire form.
    bits: Vec<u8>,
    /// Whether `bits` is from a bitfield message, whose length must match the number of pieces.
    is_bitfield: bool,
}

/// A peer's pieces, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KnownPieces {
    /// Every piece.
    All,
    /// These pieces.
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
            is_all: false,
            bits: bytes.to_vec(),
            is_bitfield: true,
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
        let byte = (piece / 8) as usize;
        if self.is_all {
            return Ok(());
        }
        if byte >= self.bits.len() {
            if self.is_bitfield || byte >= max_bytes {
                let (id, begin) = (id::HAVE, 0);
                return Err(WireError::OutOfRange { id, piece, begin });
            }
            self.bits.resize(byte + 1, 0);
        }
        self.bits[byte] |= 0x80 >> (piece % 8);
        Ok(())
    }

    /// Removes a piece (BEP 54). A peer that announced all pieces at once keeps them all here; it rejects requests for
    /// the removed piece.
    pub fn remove(&mut self, piece: u32) {
        if let Some(byte) = self.bits.get_mut((piece / 8) as usize) {
            *byte &= !(0x80 >> (piece % 8));
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
            if self.bits.len() > wire_len(piece_count) {
                return Err(BitfieldError::SpareBits.into());
            }
            self.bits.resize(wire_len(piece_count), 0);
        }
        Ok(KnownPieces::Some(Bitfield::from_wire(&self.bits, piece_count)?))
    }
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

    proptest! {
        /// Pieces that arrive one by one give what the same pieces give in a bitfield.
        #[test]
        fn haves_equal_a_bitfield(pieces in proptest::collection::vec(0u32..32, 0..20), count in 1u32..40) {
            let mut raw = RawPieces::default();
            let mut known = Bitfield::new(count);
            for piece in &pieces {
                raw.insert(*piece, MAX).unwrap();
                known.insert(*piece);
            }
            let is_valid = pieces.iter().all(|piece| *piece < count);
            prop_assert_eq!(raw.resolve(count).ok(), is_valid.then_some(KnownPieces::Some(known)));
        }
    }
}
