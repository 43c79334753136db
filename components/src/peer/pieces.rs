//! A peer's set of pieces.

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::wire::RawPieces;

/// The pieces that a peer has announced. A peer with every piece costs no bitfield.
///
/// Every change of one piece is O(1), also between complete and incomplete. A peer that announced its pieces one by one
/// stays [`PieceForm::Listed`] when the last one arrives. A peer that announced all of them at once stays
/// [`PieceForm::AllBut`] when it withdraws some.
#[derive(Component, Debug, Clone)]
pub struct PeerPieces {
    set: Set,
    /// Number of the peer's pieces that we want and do not have; it determines our interest.
    pub wanted_count: u32,
}

#[derive(Debug, Clone)]
enum Set {
    Listed(Bitfield),
    AllBut {
        piece_count: u32,
        /// Allocated when the first piece is withdrawn.
        lacking: Option<Bitfield>,
    },
}

/// A peer's claims about its pieces, while the torrent's metadata is not known.
#[derive(Component, Debug, Clone, Default)]
pub struct UncheckedPieces(pub RawPieces);

/// The representation of a peer's pieces, in storage and in the picker's counts.
#[derive(Debug, Clone, Copy)]
pub enum PieceForm<'a> {
    /// The pieces in the bitfield.
    Listed(&'a Bitfield),
    /// All pieces, except those in the bitfield.
    AllBut(Option<&'a Bitfield>),
}

impl PeerPieces {
    /// Creates an empty set over `piece_count` pieces.
    #[must_use]
    pub fn none(piece_count: u32) -> Self {
        Self::from(Bitfield::new(piece_count))
    }

    /// Creates a full set over `piece_count` pieces.
    #[must_use]
    pub fn all(piece_count: u32) -> Self {
        Self {
            set: Set::AllBut {
                piece_count,
                lacking: None,
            },
            wanted_count: 0,
        }
    }

    /// Returns the representation of the set.
    #[must_use]
    pub fn form(&self) -> PieceForm<'_> {
        match &self.set {
            Set::Listed(bits) => PieceForm::Listed(bits),
            Set::AllBut { lacking, .. } => PieceForm::AllBut(lacking.as_ref()),
        }
    }

    /// Whether the peer has piece `index`.
    #[must_use]
    pub fn has(&self, index: u32) -> bool {
        match &self.set {
            Set::Listed(bits) => bits.contains(index),
            Set::AllBut { piece_count, lacking } => {
                index < *piece_count && !lacking.as_ref().is_some_and(|lacking| lacking.contains(index))
            }
        }
    }

    /// Whether the peer has every piece. False while the number of pieces is not known.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.count() == self.len() && !self.is_empty()
    }

    /// Number of pieces of the torrent.
    #[must_use]
    pub fn len(&self) -> u32 {
        match &self.set {
            Set::Listed(bits) => bits.len(),
            Set::AllBut { piece_count, .. } => *piece_count,
        }
    }

    /// Whether the peer has no piece.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// Number of the peer's pieces.
    #[must_use]
    pub fn count(&self) -> u32 {
        match &self.set {
            Set::Listed(bits) => bits.count(),
            Set::AllBut { piece_count, lacking } => piece_count - lacking.as_ref().map_or(0, Bitfield::count),
        }
    }

    /// Adds a piece; false if the peer had it already.
    pub fn insert(&mut self, index: u32) -> bool {
        match &mut self.set {
            Set::Listed(bits) => bits.insert(index),
            Set::AllBut { lacking, .. } => lacking.as_mut().is_some_and(|lacking| lacking.remove(index)),
        }
    }

    /// Removes a piece (BEP 54); false if the peer did not have it.
    pub fn remove(&mut self, index: u32) -> bool {
        match &mut self.set {
            Set::Listed(bits) => bits.remove(index),
            Set::AllBut { piece_count, lacking } => {
                lacking.get_or_insert_with(|| Bitfield::new(*piece_count)).insert(index)
            }
        }
    }

    /// Number of the peer's pieces that are not in `have`.
    #[must_use]
    pub fn count_missing_in(&self, have: &Bitfield) -> u32 {
        match &self.set {
            Set::Listed(bits) => bits.count_without(have),
            Set::AllBut { lacking, .. } => {
                let missing = have.len() - have.count();
                missing - lacking.as_ref().map_or(0, |lacking| lacking.count_without(have))
            }
        }
    }

    /// Returns the peer's pieces that are in `others`, ascending.
    pub fn iter_in<'a>(&'a self, others: &'a Bitfield) -> Box<dyn Iterator<Item = u32> + 'a> {
        match &self.set {
            Set::Listed(bits) => Box::new(bits.iter_common(others)),
            Set::AllBut {
                lacking: Some(lacking), ..
            } => Box::new(others.iter_without(lacking)),
            Set::AllBut { lacking: None, .. } => Box::new(others.iter()),
        }
    }
}

impl From<Bitfield> for PeerPieces {
    fn from(bits: Bitfield) -> Self {
        if bits.is_full() {
            return Self::all(bits.len());
        }
        Self {
            set: Set::Listed(bits),
            wanted_count: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_piece_makes_it_complete_and_losing_one_undoes_it() {
        let mut pieces = PeerPieces::none(3);
        assert!(pieces.insert(0) && !pieces.insert(0) && pieces.insert(1) && !pieces.is_complete());
        assert!(pieces.insert(2) && pieces.is_complete() && !pieces.has(3));
        let mut all = PeerPieces::all(3);
        let mut have = Bitfield::new(3);
        have.insert(1);
        for pieces in [&mut pieces, &mut all] {
            assert_eq!(pieces.count_missing_in(&have), 2);
            assert!(pieces.remove(1) && !pieces.remove(1) && !pieces.is_complete());
            assert_eq!((pieces.count(), pieces.has(1), pieces.has(2)), (2, false, true));
            assert_eq!(pieces.count_missing_in(&have), 2);
        }
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(
            is_all in any::<bool>(),
            changes in proptest::collection::vec((any::<bool>(), 0u32..70), 0..100),
            others in proptest::collection::vec(0u32..70, 0..70),
        ) {
            let mut pieces = if is_all { PeerPieces::all(70) } else { PeerPieces::none(70) };
            let mut model: std::collections::BTreeSet<u32> = (0..70).filter(|_| is_all).collect();
            for (came, index) in changes {
                match came {
                    true => prop_assert_eq!(pieces.insert(index), model.insert(index)),
                    false => prop_assert_eq!(pieces.remove(index), model.remove(&index)),
                }
            }
            let mut have = Bitfield::new(70);
            for index in others {
                have.insert(index);
            }
            prop_assert_eq!(pieces.count() as usize, model.len());
            prop_assert_eq!(pieces.is_complete(), model.len() == 70);
            prop_assert!((0..71).all(|index| pieces.has(index) == model.contains(&index)));
            let missing = model.iter().filter(|index| !have.contains(**index)).count();
            prop_assert_eq!(pieces.count_missing_in(&have) as usize, missing);
            let common: Vec<u32> = model.iter().copied().filter(|index| have.contains(*index)).collect();
            prop_assert_eq!(pieces.iter_in(&have).collect::<Vec<_>>(), common);
        }
    }
}
