//! What a peer has.

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::bitfield::Bitfield;

/// The pieces that a peer has told it has. A peer that has everything costs no bitfield.
#[derive(Component, Debug, Clone)]
pub struct PeerPieces {
    set: Set,
    /// How many of them we want and do not have: what our interest follows.
    pub wanted_count: u32,
}

#[derive(Debug, Clone)]
enum Set {
    Some(Bitfield),
    All { piece_count: u32 },
}

impl PeerPieces {
    /// No piece of `piece_count`.
    #[must_use]
    pub fn none(piece_count: u32) -> Self {
        Self::from(Bitfield::new(piece_count))
    }

    /// Every piece of `piece_count`.
    #[must_use]
    pub fn all(piece_count: u32) -> Self {
        Self {
            set: Set::All { piece_count },
            wanted_count: 0,
        }
    }

    /// Whether the peer has piece `index`.
    #[must_use]
    pub fn has(&self, index: u32) -> bool {
        match &self.set {
            Set::Some(bits) => bits.contains(index),
            Set::All { piece_count } => index < *piece_count,
        }
    }

    /// Whether it has every piece.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        matches!(self.set, Set::All { .. })
    }

    /// Number of pieces of the torrent.
    #[must_use]
    pub fn len(&self) -> u32 {
        match &self.set {
            Set::Some(bits) => bits.len(),
            Set::All { piece_count } => *piece_count,
        }
    }

    /// Whether it has no piece.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// Number of pieces it has.
    #[must_use]
    pub fn count(&self) -> u32 {
        match &self.set {
            Set::Some(bits) => bits.count(),
            Set::All { piece_count } => *piece_count,
        }
    }

    /// The single pieces, where they are not simply all.
    #[must_use]
    pub fn bits(&self) -> Option<&Bitfield> {
        match &self.set {
            Set::Some(bits) => Some(bits),
            Set::All { .. } => None,
        }
    }

    /// Adds a piece; false if the peer had it.
    pub fn insert(&mut self, index: u32) -> bool {
        let Set::Some(bits) = &mut self.set else {
            return false;
        };
        let new = bits.insert(index);
        if bits.is_full() {
            self.set = Set::All {
                piece_count: bits.len(),
            };
        }
        new
    }

    /// Takes a piece out (BEP 54); false if the peer did not have it.
    pub fn remove(&mut self, index: u32) -> bool {
        if let Set::All { piece_count } = self.set {
            self.set = Set::Some(Bitfield::full(piece_count));
        }
        match &mut self.set {
            Set::Some(bits) => bits.remove(index),
            Set::All { .. } => false,
        }
    }

    /// How many of its pieces are not in `have`.
    #[must_use]
    pub fn count_missing_in(&self, have: &Bitfield) -> u32 {
        match &self.set {
            Set::Some(bits) => bits.count_without(have),
            Set::All { .. } => have.len() - have.count(),
        }
    }
}

impl From<Bitfield> for PeerPieces {
    fn from(bits: Bitfield) -> Self {
        let set = if bits.is_full() {
            Set::All {
                piece_count: bits.len(),
            }
        } else {
            Set::Some(bits)
        };
        Self { set, wanted_count: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_piece_makes_it_complete_and_losing_one_undoes_it() {
        let mut pieces = PeerPieces::none(3);
        assert!(pieces.insert(0) && !pieces.insert(0) && pieces.insert(1));
        assert!(!pieces.is_complete() && pieces.bits().is_some());
        assert!(pieces.insert(2));
        assert!(pieces.is_complete() && pieces.bits().is_none() && !pieces.has(3));
        let mut have = Bitfield::new(3);
        have.insert(1);
        assert_eq!(pieces.count_missing_in(&have), 2);
        assert!(pieces.remove(1) && !pieces.remove(1));
        assert_eq!((pieces.count(), pieces.has(1), pieces.has(2)), (2, false, true));
        assert_eq!(pieces.count_missing_in(&have), 2);
    }
}
