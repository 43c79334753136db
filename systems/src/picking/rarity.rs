//! The order in which pieces are begun: by priority, then the rarest first, ties at random.

use std::collections::BTreeMap;

use ecs_torrent_components::peer::PeerPieces;
use ecs_torrent_components::random::Random;

/// Urgency of a piece; higher is earlier, 0 is not wanted.
pub type Priority = u8;

/// What pieces have that nobody asked for anything else.
pub const NORMAL_PRIORITY: Priority = 4;

/// Not in any bucket.
const OUT: u32 = u32::MAX;

/// The pieces that can be begun, in buckets of equal priority and availability.
///
/// Every change touches one piece and at most two buckets. A pick looks at buckets from the front, each from a
/// random place on, so that equal peers do not all begin with the same piece.
#[derive(Debug, Clone)]
pub struct RarityOrder {
    pieces: Box<[PieceRank]>,
    /// Peers that have every piece: they make none rarer than another.
    complete_peer_count: u32,
    buckets: BTreeMap<Key, Vec<u32>>,
    pickable_count: u32,
}

/// Lower keys are picked first.
type Key = (std::cmp::Reverse<Priority>, u16);

#[derive(Debug, Clone, Copy)]
struct PieceRank {
    availability: u16,
    priority: Priority,
    /// Place in its bucket, or [`OUT`].
    place: u32,
}

impl RarityOrder {
    /// All pieces for which `is_missing` holds can be picked; no peer has any yet.
    pub fn new(piece_count: u32, is_missing: impl Fn(u32) -> bool, random: &mut Random) -> Self {
        let rank = PieceRank {
            availability: 0,
            priority: NORMAL_PRIORITY,
            place: OUT,
        };
        let mut order = Self {
            pieces: vec![rank; piece_count as usize].into_boxed_slice(),
            complete_peer_count: 0,
            buckets: BTreeMap::new(),
            pickable_count: 0,
        };
        (0..piece_count)
            .filter(|piece| is_missing(*piece))
            .for_each(|piece| order.insert(piece, random));
        order
    }

    /// Number of pieces that can be picked.
    #[must_use]
    pub fn pickable_count(&self) -> u32 {
        self.pickable_count
    }

    /// Number of peers that have `piece`.
    #[must_use]
    pub fn availability(&self, piece: u32) -> u32 {
        let single = self
            .pieces
            .get(piece as usize)
            .map_or(0, |rank| u32::from(rank.availability));
        single + self.complete_peer_count
    }

    /// Makes a piece pickable, if it was not: it is missing, and not in flight.
    pub fn insert(&mut self, piece: u32, random: &mut Random) {
        let Some(rank) = self.pieces.get(piece as usize) else {
            return;
        };
        if rank.place == OUT && rank.priority > 0 {
            self.enter(piece, random);
            self.pickable_count += 1;
        }
    }

    /// Makes a piece not pickable, if it was: it is in flight or here.
    pub fn remove(&mut self, piece: u32) {
        if self.leave(piece) {
            self.pickable_count -= 1;
        }
    }

    /// Sets a piece's priority; at 0 it is not picked.
    pub fn set_priority(&mut self, piece: u32, priority: Priority, is_missing: bool, random: &mut Random) {
        if (piece as usize) < self.pieces.len() {
            self.remove(piece);
            self.pieces[piece as usize].priority = priority;
            if is_missing {
                self.insert(piece, random);
            }
        }
    }

    /// Counts a peer that has these pieces in.
    pub fn add_peer(&mut self, pieces: &PeerPieces, random: &mut Random) {
        match pieces.bits() {
            None => self.complete_peer_count += 1,
            Some(bits) => bits.iter().for_each(|piece| self.add_copy(piece, random)),
        }
    }

    /// Counts a peer that has these pieces out.
    pub fn remove_peer(&mut self, pieces: &PeerPieces, random: &mut Random) {
        match pieces.bits() {
            None => self.complete_peer_count = self.complete_peer_count.saturating_sub(1),
            Some(bits) => bits.iter().for_each(|piece| self.remove_copy(piece, random)),
        }
    }

    /// Counts one more peer that has `piece`.
    pub fn add_copy(&mut self, piece: u32, random: &mut Random) {
        self.recount(piece, |count| count.saturating_add(1), random);
    }

    /// Counts one peer less that has `piece`.
    pub fn remove_copy(&mut self, piece: u32, random: &mut Random) {
        self.recount(piece, |count| count.saturating_sub(1), random);
    }

    /// The piece to begin next with a peer that has `pieces`, among those that `accepts` takes. Of the best ones it is
    /// the first of `preferred` that is one of them, otherwise any.
    pub fn pick(
        &self,
        pieces: &PeerPieces,
        preferred: impl IntoIterator<Item = u32>,
        random: &mut Random,
        accepts: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        let is_candidate = |piece: u32| pieces.has(piece) && accepts(piece);
        let preferred = preferred
            .into_iter()
            .filter(|piece| self.is_pickable(*piece) && is_candidate(*piece))
            .min_by_key(|piece| self.key(*piece));
        let preferred_key = preferred.map(|piece| self.key(piece));
        // Where the peer has little, its own pieces are the shorter list.
        if let Some(bits) = pieces.bits().filter(|bits| bits.count() < self.pickable_count / 8) {
            let mut best: Option<(Key, u32)> = None;
            let mut ties = 0;
            for piece in bits.iter().filter(|piece| self.is_pickable(*piece) && accepts(*piece)) {
                let key = self.key(piece);
                ties = match best {
                    Some((other, _)) if key > other => continue,
                    Some((other, _)) if key == other => ties + 1,
                    _ => 1,
                };
                // Each of n equal pieces stays with the chance of one in n.
                if random.below(ties) == 0 || ties == 1 {
                    best = Some((key, piece));
                }
            }
            return match best {
                Some((key, _)) if Some(key) == preferred_key => preferred,
                best => best.map(|(_, piece)| piece),
            };
        }
        self.buckets.iter().find_map(|(key, bucket)| {
            if Some(*key) == preferred_key {
                return preferred;
            }
            let (early, late) = bucket.split_at(random.below(bucket.len()));
            late.iter().chain(early).copied().find(|piece| is_candidate(*piece))
        })
    }

    /// Whether a piece can be picked.
    #[must_use]
    pub fn is_pickable(&self, piece: u32) -> bool {
        self.pieces.get(piece as usize).is_some_and(|rank| rank.place != OUT)
    }

    fn recount(&mut self, piece: u32, change: impl Fn(u16) -> u16, random: &mut Random) {
        if (piece as usize) < self.pieces.len() {
            let was_in = self.leave(piece);
            let rank = &mut self.pieces[piece as usize];
            rank.availability = change(rank.availability);
            if was_in {
                self.enter(piece, random);
            }
        }
    }

    fn key(&self, piece: u32) -> Key {
        let rank = self.pieces[piece as usize];
        (std::cmp::Reverse(rank.priority), rank.availability)
    }

    /// Puts a piece at a random place of its bucket.
    fn enter(&mut self, piece: u32, random: &mut Random) {
        let bucket = self.buckets.entry(self.key(piece)).or_default();
        let place = random.below(bucket.len() + 1);
        bucket.push(piece);
        let last = bucket.len() - 1;
        bucket.swap(place, last);
        self.pieces[bucket[last] as usize].place = last as u32;
        self.pieces[piece as usize].place = place as u32;
    }

    fn leave(&mut self, piece: u32) -> bool {
        let Some(place) = self
            .pieces
            .get(piece as usize)
            .map(|rank| rank.place)
            .filter(|place| *place != OUT)
        else {
            return false;
        };
        let key = self.key(piece);
        if let Some(bucket) = self.buckets.get_mut(&key) {
            bucket.swap_remove(place as usize);
            if let Some(&moved) = bucket.get(place as usize) {
                self.pieces[moved as usize].place = place;
            }
            if bucket.is_empty() {
                self.buckets.remove(&key);
            }
        }
        self.pieces[piece as usize].place = OUT;
        true
    }
}

#[cfg(test)]
mod tests {
    use ecs_torrent_protocol::bitfield::Bitfield;
    use proptest::prelude::*;

    use super::*;

    fn random() -> Random {
        Random::from_seed([5; 32])
    }

    fn pieces(count: u32, indexes: &[u32]) -> PeerPieces {
        let mut bits = Bitfield::new(count);
        for index in indexes {
            bits.insert(*index);
        }
        bits.into()
    }

    #[test]
    fn the_rarest_piece_of_the_highest_priority_comes_first() {
        let mut random = random();
        let mut order = RarityOrder::new(4, |_| true, &mut random);
        order.add_peer(&pieces(4, &[0, 1, 2]), &mut random);
        order.add_peer(&pieces(4, &[0, 2]), &mut random);
        let all = PeerPieces::all(4);
        order.remove(3);
        assert_eq!(order.pick(&all, None, &mut random, |_| true), Some(1));
        assert_eq!(
            order
                .pick(&all, None, &mut random, |piece| piece != 1)
                .map(|p| p == 0 || p == 2),
            Some(true)
        );
        order.set_priority(2, 7, true, &mut random);
        assert_eq!(order.pick(&all, None, &mut random, |_| true), Some(2));
        order.set_priority(2, 0, true, &mut random);
        assert!(!order.is_pickable(2));
        assert_eq!(order.pick(&pieces(4, &[3]), None, &mut random, |_| true), None);
        assert_eq!((order.availability(0), order.pickable_count()), (2, 2));
    }

    #[test]
    fn ties_are_broken_at_random() {
        let mut random = random();
        let order = RarityOrder::new(64, |_| true, &mut random);
        for peer in [PeerPieces::all(64), pieces(64, &[3, 9, 40])] {
            let picks: std::collections::BTreeSet<u32> = (0..200)
                .filter_map(|_| order.pick(&peer, None, &mut random, |_| true))
                .collect();
            let expected = peer.bits().map_or(40, |_| 3);
            assert!(picks.len() >= expected, "{picks:?}");
        }
    }

    proptest! {
        /// Against a model that scans everything: a pick is always one of the pieces that are best.
        #[test]
        fn picks_are_minimal(
            count in 1u32..60,
            peers in proptest::collection::vec(proptest::collection::vec(0u32..60, 0..30), 1..6),
            gone in proptest::collection::vec(0u32..60, 0..20),
            urgent in proptest::collection::vec((0u32..60, 0u8..8), 0..6),
            leaver in any::<prop::sample::Index>(),
        ) {
            let mut random = random();
            let mut order = RarityOrder::new(count, |_| true, &mut random);
            let mut peers: Vec<PeerPieces> = peers
                .iter()
                .map(|list| pieces(count, &list.iter().copied().filter(|i| *i < count).collect::<Vec<_>>()))
                .collect();
            peers.iter().for_each(|peer| order.add_peer(peer, &mut random));
            let mut priorities = vec![NORMAL_PRIORITY; count as usize];
            for (piece, priority) in urgent {
                if piece < count {
                    order.set_priority(piece, priority, true, &mut random);
                    priorities[piece as usize] = priority;
                }
            }
            let left = peers.remove(leaver.index(peers.len()));
            order.remove_peer(&left, &mut random);
            gone.iter().for_each(|piece| order.remove(*piece));
            let is_in = |piece: u32| !gone.contains(&piece) && priorities[piece as usize] > 0;
            let copies = |piece: u32| peers.iter().filter(|peer| peer.has(piece)).count();
            let rank = |piece: u32| (std::cmp::Reverse(priorities[piece as usize]), copies(piece) - peers.iter().filter(|p| p.is_complete()).count());
            for peer in &peers {
                let best = (0..count).filter(|p| is_in(*p) && peer.has(*p)).map(rank).min();
                let picked = order.pick(peer, None, &mut random, |_| true);
                prop_assert_eq!(picked.map(rank), best);
                for neighbour in 0..count {
                    let picked = order.pick(peer, Some(neighbour), &mut random, |_| true);
                    let is_best = is_in(neighbour) && peer.has(neighbour) && Some(rank(neighbour)) == best;
                    prop_assert_eq!(picked.map(rank), best);
                    prop_assert!(!is_best || picked == Some(neighbour));
                }
            }
            prop_assert_eq!(order.pickable_count() as usize, (0..count).filter(|p| is_in(*p)).count());
            for piece in 0..count {
                prop_assert_eq!(order.availability(piece) as usize, copies(piece));
            }
        }
    }
}
