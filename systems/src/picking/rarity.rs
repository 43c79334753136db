//! The order in which pieces are begun: by priority, then rarest first, with ties broken at random; or by priority,
//! then in the order of the files.

use std::collections::BTreeMap;

use ecs_torrent_components::peer::{PeerPieces, PieceForm};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::wanted::{FilePriority, WantedPieces};
use ecs_torrent_protocol::bitfield::Bitfield;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt, SeedableRng};

/// Priority of a piece: higher is earlier, 0 is not wanted.
pub type Priority = u8;

/// Priority of a piece unless another one is set.
pub const NORMAL_PRIORITY: Priority = 4;

/// Returns the priority of pieces of files with a priority.
#[must_use]
pub fn priority_of(file: FilePriority) -> Priority {
    match file {
        FilePriority::Skip => 0,
        FilePriority::Low => NORMAL_PRIORITY - 2,
        FilePriority::Normal => NORMAL_PRIORITY,
        FilePriority::High => NORMAL_PRIORITY + 2,
    }
}

/// Returns the priority of a piece, as a user's choice of files determines it. The ends of files come before other
/// pieces of files with the same priority.
#[must_use]
pub fn priority_in(wanted: &WantedPieces, piece: u32) -> Priority {
    let priority = priority_of(wanted.priority(piece));
    priority + u8::from(wanted.is_end(piece))
}

/// Place of a piece that is in no bucket.
const OUT: u32 = u32::MAX;

/// The pieces that can be begun, in buckets of equal priority and availability.
///
/// A change of one piece touches at most two buckets. A change of many pieces passes over the buckets once, at a few
/// nanoseconds per piece. A pick scans the buckets from the front, each from a random position, so that equal peers do
/// not all begin with the same piece.
///
/// ```
/// use ecs_torrent_components::peer::PeerPieces;
/// use ecs_torrent_components::random::Random;
/// use ecs_torrent_systems::picking::rarity::{NORMAL_PRIORITY, RarityOrder};
///
/// let mut random = Random::from_seed([7; 32]);
/// let mut order = RarityOrder::new(4, |_| true, &mut random);
/// // Three peers have all pieces, and a fourth peer has piece 1 only.
/// let seed = PeerPieces::all(4);
/// (0..3).for_each(|_| order.add_peer(&seed, &mut random));
/// order.add_copy(1, &mut random);
/// assert_eq!((order.availability(1), order.availability(2)), (4, 3));
///
/// assert_eq!(order.copies(), 3.25);
///
/// // Priority comes before rarity, and priority 0 excludes a piece.
/// order.set_priority(1, NORMAL_PRIORITY + 1, true, &mut random);
/// order.set_priority(2, 0, true, &mut random);
/// assert_eq!(order.pickable_count(), 3);
/// assert_eq!(order.pick(&seed, [], &mut random, |_| true), Some(1));
/// ```
#[derive(Debug, Clone)]
pub struct RarityOrder {
    pieces: Box<[PieceRank]>,
    /// Peers that announced all pieces at once ([`PieceForm::AllBut`]). They do not affect the order, except for the
    /// few pieces that one of them no longer has.
    complete_peer_count: u32,
    buckets: BTreeMap<Key, Vec<u32>>,
    /// The pieces that are in buckets.
    pickable: Bitfield,
    /// The pieces in buckets by priority, highest first, if pieces of equal priority are picked in ascending order.
    sequence: Option<BTreeMap<std::cmp::Reverse<Priority>, Bitfield>>,
}

/// Sort key of a bucket; lower keys are picked first.
type Key = (std::cmp::Reverse<Priority>, i16);

#[derive(Debug, Clone, Copy)]
struct PieceRank {
    /// Peers that announced this piece individually, minus peers that announced all pieces and no longer have this one.
    /// Saturates at 32 767 peers of one torrent; beyond that, pieces are no longer distinguished.
    availability: i16,
    priority: Priority,
    /// Index in its bucket, or [`OUT`].
    place: u32,
}

impl RarityOrder {
    /// Makes all pieces pickable for which `is_missing` holds, with no copies counted yet.
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
            pickable: Bitfield::new(piece_count),
            sequence: None,
        };
        (0..piece_count)
            .filter(|piece| is_missing(*piece))
            .for_each(|piece| order.insert(piece, random));
        order
    }

    /// Returns the number of pieces that can be picked.
    #[must_use]
    pub fn pickable_count(&self) -> u32 {
        self.pickable.count()
    }

    /// Returns the number of peers that have `piece`.
    #[must_use]
    pub fn availability(&self, piece: u32) -> u32 {
        let single = self
            .pieces
            .get(piece as usize)
            .map_or(0, |rank| i32::from(rank.availability));
        self.complete_peer_count.saturating_add_signed(single)
    }

    /// Returns the number of copies that the peers have together: those of the rarest piece, and as the fraction the
    /// share of pieces that more peers have. Takes time in proportion to the number of pieces.
    #[must_use]
    pub fn copies(&self) -> f64 {
        let fewest = self
            .pieces
            .iter()
            .map(|rank| rank.availability)
            .min()
            .unwrap_or_default();
        let more = self.pieces.iter().filter(|rank| rank.availability > fewest).count();
        let whole = self.complete_peer_count.saturating_add_signed(fewest.into());
        f64::from(whole) + more as f64 / self.pieces.len().max(1) as f64
    }

    /// Makes a piece pickable, if it was not. The piece must be missing and not in flight.
    pub fn insert(&mut self, piece: u32, random: &mut Random) {
        let Some(rank) = self.pieces.get(piece as usize) else {
            return;
        };
        if rank.place == OUT && rank.priority > 0 {
            let priority = rank.priority;
            self.enter(piece, random);
            self.pickable.insert(piece);
            if let Some(sequence) = &mut self.sequence {
                let class = sequence.entry(std::cmp::Reverse(priority));
                class
                    .or_insert_with(|| Bitfield::new(self.pieces.len() as u32))
                    .insert(piece);
            }
        }
    }

    /// Makes a piece unpickable, if it was pickable: it is in flight or held.
    pub fn remove(&mut self, piece: u32) {
        if self.leave(piece) {
            self.pickable.remove(piece);
            let class = std::cmp::Reverse(self.priority(piece));
            if let Some(pieces) = self.sequence.as_mut().and_then(|sequence| sequence.get_mut(&class)) {
                pieces.remove(piece);
            }
        }
    }

    /// Sets whether pieces of equal priority are picked in ascending order, instead of the rarest first.
    ///
    /// ```
    /// use ecs_torrent_components::peer::PeerPieces;
    /// use ecs_torrent_components::random::Random;
    /// use ecs_torrent_systems::picking::rarity::RarityOrder;
    ///
    /// let mut random = Random::from_seed([7; 32]);
    /// let mut order = RarityOrder::new(100, |_| true, &mut random);
    /// order.set_sequential(true);
    /// let seed = PeerPieces::all(100);
    /// assert_eq!(order.pick(&seed, [], &mut random, |_| true), Some(0));
    /// assert_eq!(order.pick(&seed, [], &mut random, |piece| piece > 6), Some(7));
    /// ```
    pub fn set_sequential(&mut self, is_sequential: bool) {
        if is_sequential == self.sequence.is_some() {
            return;
        }
        self.sequence = is_sequential.then(|| {
            let mut sequence: BTreeMap<_, Bitfield> = BTreeMap::new();
            for piece in self.pickable.iter() {
                let class = sequence.entry(std::cmp::Reverse(self.priority(piece)));
                class
                    .or_insert_with(|| Bitfield::new(self.pieces.len() as u32))
                    .insert(piece);
            }
            sequence
        });
    }

    /// Sets a piece's priority. Pieces of a higher priority are picked first, however rare others are; a piece of
    /// priority 0 is not picked, and a torrent without it stays incomplete. Blocks that are requested already are not
    /// affected.
    ///
    /// `is_missing` says whether the piece is missing and not in flight, so that it can be picked. A piece in flight
    /// has the priority when it is put back. Peers that wait because there was nothing to pick learn of a raised piece
    /// by [`Supply::offer`](super::Supply::offer).
    ///
    /// ```
    /// use ecs_torrent_components::peer::PeerPieces;
    /// use ecs_torrent_components::random::Random;
    /// use ecs_torrent_systems::picking::rarity::{NORMAL_PRIORITY, RarityOrder};
    ///
    /// let mut random = Random::from_seed([7; 32]);
    /// let mut order = RarityOrder::new(100, |_| true, &mut random);
    /// // The first and the last piece come first, and piece 50 never.
    /// for (piece, priority) in [(0, NORMAL_PRIORITY + 1), (99, NORMAL_PRIORITY + 1), (50, 0)] {
    ///     order.set_priority(piece, priority, true, &mut random);
    /// }
    /// let seed = PeerPieces::all(100);
    /// let mut picked = Vec::new();
    /// while let Some(piece) = order.pick(&seed, [], &mut random, |_| true) {
    ///     order.remove(piece);
    ///     picked.push(piece);
    /// }
    /// picked[..2].sort_unstable();
    /// assert_eq!((&picked[..2], picked.len()), (&[0, 99][..], 99));
    /// ```
    pub fn set_priority(&mut self, piece: u32, priority: Priority, is_missing: bool, random: &mut Random) {
        if (piece as usize) < self.pieces.len() {
            self.remove(piece);
            self.pieces[piece as usize].priority = priority;
            if is_missing {
                self.insert(piece, random);
            }
        }
    }

    /// Returns a piece's priority.
    #[must_use]
    pub fn priority(&self, piece: u32) -> Priority {
        self.pieces.get(piece as usize).map_or(0, |rank| rank.priority)
    }

    /// Adds a peer's pieces to the availability counts.
    pub fn add_peer(&mut self, pieces: &PeerPieces, random: &mut Random) {
        match pieces.form() {
            PieceForm::Listed(bits) => self.add_copies(bits, random),
            PieceForm::AllBut(lacking) => {
                self.complete_peer_count += 1;
                lacking
                    .into_iter()
                    .for_each(|lacking| self.remove_copies(lacking, random));
            }
        }
    }

    /// Removes a peer's pieces from the availability counts.
    pub fn remove_peer(&mut self, pieces: &PeerPieces, random: &mut Random) {
        match pieces.form() {
            PieceForm::Listed(bits) => self.remove_copies(bits, random),
            PieceForm::AllBut(lacking) => {
                self.complete_peer_count = self.complete_peer_count.saturating_sub(1);
                lacking.into_iter().for_each(|lacking| self.add_copies(lacking, random));
            }
        }
    }

    /// Counts one more peer for each of `pieces`.
    pub fn add_copies(&mut self, pieces: &Bitfield, random: &mut Random) {
        self.recount_all(pieces, 1, random);
    }

    /// Counts one peer less for each of `pieces`.
    pub fn remove_copies(&mut self, pieces: &Bitfield, random: &mut Random) {
        self.recount_all(pieces, -1, random);
    }

    /// Counts one more peer that has `piece`.
    pub fn add_copy(&mut self, piece: u32, random: &mut Random) {
        self.recount(piece, 1, random);
    }

    /// Counts one peer less that has `piece`.
    pub fn remove_copy(&mut self, piece: u32, random: &mut Random) {
        self.recount(piece, -1, random);
    }

    /// Picks the next piece for a peer that has `pieces`, among the pieces that `accepts` allows. Among equally good
    /// pieces, the first one in `preferred` wins; otherwise the choice is arbitrary. In a sequential order the lowest
    /// piece of the highest priority is picked.
    pub fn pick(
        &self,
        pieces: &PeerPieces,
        preferred: impl IntoIterator<Item = u32>,
        random: &mut Random,
        accepts: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        if let Some(sequence) = &self.sequence {
            return sequence
                .values()
                .find_map(|class| pieces.iter_in(class).find(|piece| accepts(*piece)));
        }
        let is_candidate = |piece: u32| pieces.has(piece) && accepts(piece);
        let preferred = preferred
            .into_iter()
            .filter(|piece| self.is_pickable(*piece) && is_candidate(*piece))
            .min_by_key(|piece| self.key(*piece));
        let preferred_key = preferred.map(|piece| self.key(piece));
        // If the peer has few pieces, its own pieces are the shorter list.
        if pieces.count() < self.pickable_count() / 8 {
            let mut best: Option<(Key, u32)> = None;
            let mut ties = 0;
            for piece in pieces.iter_in(&self.pickable).filter(|piece| accepts(*piece)) {
                let key = self.key(piece);
                ties = match best {
                    Some((other, _)) if key > other => continue,
                    Some((other, _)) if key == other => ties + 1,
                    _ => 1,
                };
                // Reservoir sampling: each of n equal pieces is kept with probability 1/n.
                if random.below(ties) == 0 {
                    best = Some((key, piece));
                }
            }
            return match best {
                Some((key, _)) if Some(key) == preferred_key => preferred,
                best => best.map(|(_, piece)| piece),
            };
        }
        // Whole-word comparison finds peers without useful pieces faster than a scan of single pieces.
        if !pieces.is_complete() && pieces.iter_in(&self.pickable).next().is_none() {
            return None;
        }
        self.buckets.iter().find_map(|(key, bucket)| {
            if Some(*key) == preferred_key {
                return preferred;
            }
            let (early, late) = bucket.split_at(random.below(bucket.len()));
            late.iter().chain(early).copied().find(|piece| is_candidate(*piece))
        })
    }

    /// Returns whether a piece can be picked.
    #[must_use]
    pub fn is_pickable(&self, piece: u32) -> bool {
        self.pieces.get(piece as usize).is_some_and(|rank| rank.place != OUT)
    }

    fn recount(&mut self, piece: u32, change: i16, random: &mut Random) {
        if (piece as usize) < self.pieces.len() {
            let was_in = self.leave(piece);
            let rank = &mut self.pieces[piece as usize];
            rank.availability = rank.availability.saturating_add(change);
            if was_in {
                self.enter(piece, random);
            }
        }
    }

    /// Changes the counts of many pieces. A single change costs about as much as a pass over eight pieces in their
    /// buckets.
    fn recount_all(&mut self, pieces: &Bitfield, change: i16, random: &mut Random) {
        if pieces.count() < self.pickable_count() / 8 {
            pieces.iter().for_each(|piece| self.recount(piece, change, random));
            return;
        }
        for piece in pieces.iter() {
            if let Some(rank) = self.pieces.get_mut(piece as usize) {
                rank.availability = rank.availability.saturating_add(change);
            }
        }
        // A number for each piece is drawn: a generator that is good enough for that costs a nanosecond per number.
        let mut cheap = Xoshiro256PlusPlus::seed_from_u64(random.generator().next_u64());
        for (key, bucket) in std::mem::take(&mut self.buckets) {
            let (moved, stayed): (Vec<u32>, Vec<u32>) = bucket.into_iter().partition(|piece| pieces.contains(*piece));
            // Pieces of one bucket have equal counts before and after the same change.
            if let Some(first) = moved.first() {
                let key = self.key(*first);
                merge(self.buckets.entry(key).or_default(), moved, &mut cheap);
            }
            if !stayed.is_empty() {
                merge(self.buckets.entry(key).or_default(), stayed, &mut cheap);
            }
        }
        for bucket in self.buckets.values() {
            for (place, piece) in (0..).zip(bucket) {
                self.pieces[*piece as usize].place = place;
            }
        }
    }

    fn key(&self, piece: u32) -> Key {
        let rank = self.pieces[piece as usize];
        (std::cmp::Reverse(rank.priority), rank.availability)
    }

    /// Puts a piece at a random position in its bucket.
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

/// Merges `others` into `bucket`. Both are in random order, and so is the result.
fn merge(bucket: &mut Vec<u32>, others: Vec<u32>, random: &mut impl Rng) {
    if bucket.is_empty() {
        *bucket = others;
        return;
    }
    let (mut mine, mut theirs) = (std::mem::take(bucket).into_iter(), others.into_iter());
    bucket.reserve_exact(mine.len() + theirs.len());
    while mine.len() + theirs.len() > 0 {
        let is_mine = random.random_range(..mine.len() + theirs.len()) < mine.len();
        bucket.extend(if is_mine { mine.next() } else { theirs.next() });
    }
}

#[cfg(test)]
mod tests {
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
        order.set_priority(4, 7, true, &mut random);
        order.add_copy(4, &mut random);
        assert_eq!(order.pickable_count(), 2, "there is no piece 4");
    }

    #[test]
    fn a_peer_with_few_pieces_sends_the_rarest_of_them() {
        let mut random = random();
        let mut order = RarityOrder::new(64, |_| true, &mut random);
        for common in [3, 40] {
            order.add_copy(common, &mut random);
        }
        let peer = pieces(64, &[3, 9, 40]);
        let mut picks = (0..100).map(|_| order.pick(&peer, None, &mut random, |_| true));
        assert!(picks.all(|piece| piece == Some(9)));
    }

    #[test]
    fn ties_are_broken_at_random() {
        let mut random = random();
        let order = RarityOrder::new(64, |_| true, &mut random);
        for peer in [PeerPieces::all(64), pieces(64, &[3, 9, 40])] {
            let picks: std::collections::BTreeSet<u32> = (0..200)
                .filter_map(|_| order.pick(&peer, None, &mut random, |_| true))
                .collect();
            let expected = if peer.is_complete() { 40 } else { 3 };
            assert!(picks.len() >= expected, "{picks:?}");
        }
    }

    proptest! {
        /// Compares picks with a model that scans all pieces: a pick is always one of the best pieces.
        #[test]
        fn picks_are_minimal(
            count in 1u32..60,
            peers in proptest::collection::vec(proptest::collection::vec(0u32..60, 0..30), 1..6),
            gone in proptest::collection::vec(0u32..60, 0..20),
            urgent in proptest::collection::vec((0u32..60, 0u8..8), 0..6),
            seeds in 0usize..3,
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>(), 0u32..60), 0..40),
            leaver in any::<prop::sample::Index>(),
        ) {
            let mut random = random();
            let mut order = RarityOrder::new(count, |_| true, &mut random);
            let mut sequential = order.clone();
            sequential.set_sequential(true);
            let mut peers: Vec<PeerPieces> = peers
                .iter()
                .map(|list| pieces(count, &list.iter().copied().filter(|i| *i < count).collect::<Vec<_>>()))
                .collect();
            peers.extend(std::iter::repeat_n(PeerPieces::all(count), seeds));
            peers.iter().for_each(|peer| order.add_peer(peer, &mut random));
            peers.iter().for_each(|peer| sequential.add_peer(peer, &mut random));
            for (peer, came, piece) in changes {
                let peer = peer.get_mut(&mut peers);
                match came {
                    true if peer.insert(piece % count) => order.add_copy(piece % count, &mut random),
                    false if peer.remove(piece % count) => order.remove_copy(piece % count, &mut random),
                    _ => {}
                }
            }
            let mut priorities = vec![NORMAL_PRIORITY; count as usize];
            for (piece, priority) in urgent {
                if piece < count {
                    order.set_priority(piece, priority, true, &mut random);
                    sequential.set_priority(piece, priority, true, &mut random);
                    priorities[piece as usize] = priority;
                }
            }
            let left = peers.remove(leaver.index(peers.len()));
            order.remove_peer(&left, &mut random);
            gone.iter().for_each(|piece| order.remove(*piece));
            gone.iter().for_each(|piece| sequential.remove(*piece));
            let is_in = |piece: u32| !gone.contains(&piece) && priorities[piece as usize] > 0;
            let copies = |piece: u32| peers.iter().filter(|peer| peer.has(piece)).count();
            let rank = |piece: u32| (std::cmp::Reverse(priorities[piece as usize]), copies(piece));
            for peer in &peers {
                let best = (0..count).filter(|p| is_in(*p) && peer.has(*p)).map(rank).min();
                let picked = order.pick(peer, None, &mut random, |_| true);
                prop_assert_eq!(picked.map(rank), best);
                let candidates = (0..count).filter(|p| is_in(*p) && peer.has(*p));
                let first = candidates.min_by_key(|piece| (std::cmp::Reverse(priorities[*piece as usize]), *piece));
                prop_assert_eq!(sequential.pick(peer, [], &mut random, |_| true), first);
                for neighbor in 0..count {
                    let picked = order.pick(peer, Some(neighbor), &mut random, |_| true);
                    let is_best = is_in(neighbor) && peer.has(neighbor) && Some(rank(neighbor)) == best;
                    prop_assert_eq!(picked.map(rank), best);
                    prop_assert!(!is_best || picked == Some(neighbor));
                }
            }
            prop_assert_eq!(order.pickable_count() as usize, (0..count).filter(|p| is_in(*p)).count());
            for piece in 0..count {
                prop_assert_eq!(order.availability(piece) as usize, copies(piece));
            }
        }
    }

    #[test]
    fn a_piece_enters_at_any_place() {
        let orders = (0..40).map(|seed| {
            let mut random = Random::from_seed([seed; 32]);
            let mut order = RarityOrder::new(2, |_| true, &mut random);
            order.remove(1);
            order.insert(1, &mut random);
            order.buckets.values().next().unwrap().clone()
        });
        let orders: std::collections::BTreeSet<_> = orders.collect();
        assert_eq!(orders.len(), 2);
    }
}
