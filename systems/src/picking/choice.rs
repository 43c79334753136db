//! The choice of the next block to request from a peer, as a plain function.

use std::time::Duration;

use bevy_ecs::entity::Entity;
use ecs_torrent_components::peer::{PeerPieces, Requests};
use ecs_torrent_components::piece::{ActivePiece, PiecePhase};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::settings::RequestSettings;
use ecs_torrent_components::torrent::ActivePieces;
use ecs_torrent_protocol::geometry::Geometry;
use ecs_torrent_protocol::time::Timestamp;

use super::rarity::RarityOrder;

/// Most requests outstanding to a peer that is also asked for blocks requested from other peers.
const ENDGAME_DEPTH: usize = 64;

/// If a block was requested this many times longer ago than a peer's patience, the peers that owe the block are much
/// slower than this peer.
const SLOW_FACTOR: u32 = 2;

/// Minimum time for which a peer keeps an exclusive piece, because its blocks are dropped when it loses the piece.
const LEAST_HOLD: Duration = Duration::from_secs(1);

/// The data of a peer that the choice uses.
#[derive(Debug, Clone, Copy)]
pub struct PeerView<'a> {
    /// The peer.
    pub peer: Entity,
    /// The peer's pieces.
    pub has: &'a PeerPieces,
    /// Our requests to the peer.
    pub requests: &'a Requests,
    /// The peer chokes us.
    pub is_choked: bool,
    /// The peer has no late requests and has not recently been silent.
    pub is_trusted: bool,
    /// The peer is so slow that it shares pieces with other peers.
    pub prefers_sharing: bool,
}

/// The data of a torrent that the choice uses.
#[derive(Debug, Clone, Copy)]
pub struct TorrentView<'a, P, M> {
    /// The time of the choice.
    pub now: Timestamp,
    /// Sizes of the torrent's pieces.
    pub geometry: &'a Geometry,
    /// The pieces that can be begun.
    pub order: &'a RarityOrder,
    /// The pieces in flight.
    pub active: &'a ActivePieces,
    /// Returns a piece in flight.
    pub piece: P,
    /// Whether there is memory for a piece of this length.
    pub has_memory: M,
    /// Limits of requests.
    pub settings: &'a RequestSettings,
}

/// The decision for one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Choice {
    /// The blocks to request.
    pub pick: Option<Pick>,
    /// Length of a piece that would have been begun if there were memory for it.
    pub wants_memory: Option<u32>,
    /// The peer waits for blocks to become free.
    pub is_starved: bool,
    /// When a block may become available for the peer, if there is none now.
    pub again: Option<Timestamp>,
    /// A piece that a much slower peer sends exclusively, and that this peer gets if it is taken away.
    pub overtaken: Option<Entity>,
}

/// Blocks to request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// A block of a piece in flight, and the free blocks after it.
    Active {
        /// The piece.
        piece: Entity,
        /// The block.
        block: u32,
        /// Why the block was picked.
        reason: Reason,
    },
    /// The blocks of a piece that is to be begun.
    New {
        /// Index of the piece.
        index: u32,
        /// Why the piece was picked.
        reason: Reason,
    },
}

/// Why a block is requested from a peer, in the order of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The peer sends it even while it chokes us (BEP 6).
    AllowedFast,
    /// The peer's current piece continues.
    Current,
    /// The peer suggested the piece, and no rarer one exists.
    Suggested,
    /// The piece was begun with another peer.
    Open,
    /// The piece is the rarest that can be begun.
    Rarest,
    /// The block is outstanding at other peers, and no piece can be begun: none is left, or there is no memory.
    Endgame,
}

/// The open pieces that are considered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    /// Pieces that no peer is downloading.
    Abandoned,
    /// All open pieces.
    Any,
}

/// Chooses what is requested next from a peer.
pub fn choose<'a, P, M>(peer: &PeerView<'_>, torrent: &TorrentView<'_, P, M>, random: &mut Random) -> Choice
where
    P: Fn(Entity) -> Option<&'a ActivePiece>,
    M: Fn(u32) -> bool,
{
    let chooser = Chooser { peer, torrent };
    match peer.is_choked {
        true => chooser.allowed_fast(),
        false => chooser.by_preference(random),
    }
}

struct Chooser<'v, 'p, 't, P, M> {
    peer: &'v PeerView<'p>,
    torrent: &'v TorrentView<'t, P, M>,
}

impl<'a, P, M> Chooser<'_, '_, '_, P, M>
where
    P: Fn(Entity) -> Option<&'a ActivePiece>,
    M: Fn(u32) -> bool,
{
    fn by_preference(&self, random: &mut Random) -> Choice {
        let requests = self.peer.requests;
        if let Some(piece) = requests.current
            && let Some(block) = self.free_block(piece)
        {
            return active(piece, block, Reason::Current).into();
        }
        let mut choice = Choice::default();
        let order = self.torrent.order;
        let mut rarest = None;
        if requests.suggested.iter().any(|piece| order.is_pickable(*piece)) {
            rarest = self.rarest_piece(random);
        }
        let suggested = rarest.filter(|index| requests.suggested.contains(index));
        if let Some(index) = suggested
            && self.begin(index, Reason::Suggested, &mut choice)
        {
            return choice;
        }
        if requests.follows_suggestions() {
            return choice;
        }
        let first = match self.peer.prefers_sharing {
            true => Open::Any,
            false => Open::Abandoned,
        };
        choice.pick = self.open_block(first);
        if choice.pick.is_some() {
            return choice;
        }
        if let Some(index) = rarest.or_else(|| self.rarest_piece(random))
            && self.begin(index, Reason::Rarest, &mut choice)
        {
            return choice;
        }
        choice.pick = self.open_block(Open::Any);
        if choice.pick.is_none() {
            choice.pick = self.endgame(choice.wants_memory.is_some(), &mut choice.again);
            choice.is_starved = choice.pick.is_none();
            if choice.is_starved {
                choice.overtaken = self.overtaken(&mut choice.again);
            }
        }
        choice
    }

    /// Picks a piece to begin. Returns false if there is no memory for it.
    fn begin(&self, index: u32, reason: Reason, choice: &mut Choice) -> bool {
        let len = self.torrent.geometry.piece_size(index);
        let has_memory = (self.torrent.has_memory)(len);
        match has_memory {
            true => choice.pick = Some(Pick::New { index, reason }),
            false => choice.wants_memory = Some(len),
        }
        has_memory
    }

    /// Returns the next free block of a piece, if this peer may send it.
    fn free_block(&self, piece: Entity) -> Option<u32> {
        let piece = (self.torrent.piece)(piece)?;
        let is_open = piece.phase == PiecePhase::Filling && self.may_send(piece);
        if is_open { piece.next_free(self.peer.peer) } else { None }
    }

    /// Finds a free block of a piece that has already been begun.
    fn open_block(&self, which: Open) -> Option<Pick> {
        let pieces = self.torrent.active.open.iter();
        let mut pieces = pieces.filter_map(|index| self.torrent.active.all.get(index));
        pieces.find_map(|&entity| {
            let piece = (self.torrent.piece)(entity)?;
            if which == Open::Abandoned && piece.asked_count > 0 {
                return None;
            }
            Some(active(entity, self.free_block(entity)?, Reason::Open))
        })
    }

    /// Returns the rarest pickable piece. Among equals it prefers suggested pieces, then the one after the last one
    /// begun.
    fn rarest_piece(&self, random: &mut Random) -> Option<u32> {
        let requests = self.peer.requests;
        let accepts = |piece: u32| !requests.refused_pieces.contains(&piece);
        let extent = self.torrent.settings.extent_bytes;
        let neighbor = requests
            .last_begun
            .and_then(|last| next_in_extent(last, self.torrent.geometry, extent));
        let preferred = requests.suggested.iter().copied().chain(neighbor);
        self.torrent.order.pick(self.peer.has, preferred, random, accepts)
    }

    /// Finds a block of an allowed-fast piece, which the peer sends even while it chokes us (BEP 6).
    fn allowed_fast(&self) -> Choice {
        let mut choice = Choice::default();
        for &index in &self.peer.requests.allowed_fast {
            if !self.offers(index) {
                continue;
            }
            match self.torrent.active.all.get(&index) {
                Some(&piece) => {
                    let block = self.free_block(piece);
                    choice.pick = block.map(|block| active(piece, block, Reason::AllowedFast));
                }
                None if self.torrent.order.is_pickable(index) => {
                    self.begin(index, Reason::AllowedFast, &mut choice);
                }
                None => {}
            }
            if choice.pick.is_some() {
                break;
            }
        }
        choice
    }

    /// Finds a block to request from one more peer, once no piece can be begun. The block must take longer than this
    /// peer's own blocks, because the second copy is wasted, and must be requested from fewer peers than allowed; peers
    /// that are much slower than this one do not count. So a slow peer never keeps a block from a fast one for long.
    fn endgame(&self, wants_memory: bool, again: &mut Option<Timestamp>) -> Option<Pick> {
        let (peer, torrent) = (self.peer, self.torrent);
        let is_endgame = wants_memory || torrent.order.pickable_count() == 0;
        if !is_endgame || peer.requests.pending().len() >= self.endgame_depth() {
            return None;
        }
        let patience = peer.requests.endgame_patience(torrent.now);
        let slow = patience * SLOW_FACTOR;
        let mut best: Option<(Entity, u32, usize)> = None;
        for &entity in torrent.active.all.values() {
            let Some(piece) = (torrent.piece)(entity) else { continue };
            if piece.phase != PiecePhase::Filling || piece.is_suspect || !self.may_send(piece) {
                continue;
            }
            for (block, slot) in (0..).zip(&piece.blocks) {
                if slot.received || slot.asked.contains(&peer.peer) || slot.late.contains(&peer.peer) {
                    continue;
                }
                // The peers that owe the block are much slower than this one, by what they showed before or show now.
                let is_slow = slot.expected_at > torrent.now + patience || slot.asked_at + slow <= torrent.now;
                let copies = if is_slow { 0 } else { slot.asked.len() };
                if best.is_some_and(|(_, _, least)| copies >= least) {
                    continue;
                }
                // While pieces can be begun as soon as there is memory, only slow peers are helped.
                let waits = match copies >= torrent.settings.endgame_copies || wants_memory {
                    true => slow,
                    false => patience,
                };
                let due = slot.asked_at + waits;
                if copies > 0 && due > torrent.now {
                    *again = Some(again.map_or(due, |other| other.min(due)));
                } else {
                    best = Some((entity, block, copies));
                }
            }
        }
        if best.is_some() {
            *again = None;
        }
        best.map(|(piece, block, _)| active(piece, block, Reason::Endgame))
    }

    /// Finds a piece that another peer sends exclusively, and so slowly that this peer is much faster. Blocks of such a
    /// piece are requested from no second peer, so the whole piece has to be taken away.
    fn overtaken(&self, again: &mut Option<Timestamp>) -> Option<Entity> {
        let (peer, torrent) = (self.peer, self.torrent);
        let is_endgame = torrent.order.pickable_count() == 0;
        if !is_endgame || !peer.is_trusted || !peer.requests.has_answered() {
            return None;
        }
        let slow = (peer.requests.endgame_patience(torrent.now) * SLOW_FACTOR).max(LEAST_HOLD);
        for &entity in torrent.active.all.values() {
            let Some(piece) = (torrent.piece)(entity) else { continue };
            let is_open = piece.phase == PiecePhase::Filling && self.offers(piece.index);
            if !is_open || !piece.may_change_hands(peer.peer, torrent.now) {
                continue;
            }
            let owed = piece
                .blocks
                .iter()
                .filter(|slot| !slot.received && !slot.asked.is_empty());
            let Some((asked_at, expected_at)) = owed.map(|slot| (slot.asked_at, slot.expected_at)).min() else {
                continue;
            };
            let due = asked_at + slow;
            if due <= torrent.now || expected_at > torrent.now + slow {
                return Some(entity);
            }
            *again = Some(again.map_or(due, |other| other.min(due)));
        }
        None
    }

    /// Most requests outstanding to the peer, if it is asked for blocks that other peers owe: a peer earns each one with
    /// a block that it has sent.
    fn endgame_depth(&self) -> usize {
        let earned = usize::try_from(self.peer.requests.answered_count()).unwrap_or(usize::MAX);
        earned.clamp(1, ENDGAME_DEPTH)
    }

    /// Whether the peer has the piece and may be asked for it.
    fn may_send(&self, piece: &ActivePiece) -> bool {
        let peer = self.peer;
        // An exclusive piece is not given to a peer that keeps us waiting.
        let is_trusted = || peer.is_trusted && piece.may_have_exclusively(peer.peer, self.torrent.now);
        (!piece.is_suspect || is_trusted()) && self.offers(piece.index)
    }

    /// Whether the peer has the piece, and has not sent a corrupt block of it.
    fn offers(&self, piece: u32) -> bool {
        self.peer.has.has(piece) && !self.peer.requests.refused_pieces.contains(&piece)
    }
}

fn active(piece: Entity, block: u32, reason: Reason) -> Pick {
    Pick::Active { piece, block, reason }
}

impl From<Pick> for Choice {
    fn from(pick: Pick) -> Self {
        Self {
            pick: Some(pick),
            ..Self::default()
        }
    }
}

/// Returns the piece after `piece`, unless it begins another extent.
fn next_in_extent(piece: u32, geometry: &Geometry, extent_bytes: u32) -> Option<u32> {
    let next = piece + 1;
    let is_inside = extent_bytes > 0
        && next < geometry.piece_count()
        && !geometry.piece_offset(next).is_multiple_of(extent_bytes.into());
    is_inside.then_some(next)
}

#[cfg(test)]
mod tests {
    use bevy_ecs::entity::EntityHashMap;
    use ecs_torrent_components::peer::Pending;
    use ecs_torrent_components::piece::{BlockSlot, FAILED_PAUSE};
    use ecs_torrent_protocol::geometry::{BLOCK_SIZE, BlockRequest};

    use super::*;

    const PIECES: u32 = 4;

    fn entity(id: u32) -> Entity {
        Entity::from_raw_u32(id).unwrap()
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    /// A torrent of four pieces of two blocks, and the peer 1, which has all of them.
    struct Table {
        geometry: Geometry,
        order: RarityOrder,
        active: ActivePieces,
        pieces: EntityHashMap<ActivePiece>,
        settings: RequestSettings,
        has: PeerPieces,
        requests: Requests,
        is_choked: bool,
        is_trusted: bool,
        prefers_sharing: bool,
        has_memory: bool,
        now: Timestamp,
    }

    impl Table {
        fn new() -> Self {
            let mut random = Random::from_seed([1; 32]);
            Self {
                geometry: Geometry::new(u64::from(2 * BLOCK_SIZE * PIECES), 2 * BLOCK_SIZE).unwrap(),
                order: RarityOrder::new(PIECES, |_| true, &mut random),
                active: ActivePieces::default(),
                pieces: EntityHashMap::default(),
                settings: RequestSettings::default(),
                has: PeerPieces::all(PIECES),
                requests: Requests::default(),
                is_choked: false,
                is_trusted: true,
                prefers_sharing: false,
                has_memory: true,
                now: at(100),
            }
        }

        /// Begins a piece; its entity is 100 more than its index. Its first block is requested from `from`.
        fn begin(&mut self, index: u32, from: Option<u32>) -> &mut ActivePiece {
            let mut piece = ActivePiece::new(entity(99), index, &self.geometry);
            from.into_iter()
                .for_each(|peer| piece.mark_requested(0, entity(peer), at(99), at(99)));
            self.order.remove(index);
            self.active.all.insert(index, entity(100 + index));
            self.active.open.insert(index);
            self.pieces.entry(entity(100 + index)).or_insert(piece)
        }

        fn choose(&self) -> Choice {
            let peer = PeerView {
                peer: entity(1),
                has: &self.has,
                requests: &self.requests,
                is_choked: self.is_choked,
                is_trusted: self.is_trusted,
                prefers_sharing: self.prefers_sharing,
            };
            let torrent = TorrentView {
                now: self.now,
                geometry: &self.geometry,
                order: &self.order,
                active: &self.active,
                piece: |entity| self.pieces.get(&entity),
                has_memory: |_| self.has_memory,
                settings: &self.settings,
            };
            choose(&peer, &torrent, &mut Random::from_seed([1; 32]))
        }

        fn pick(&self) -> Option<Pick> {
            self.choose().pick
        }
    }

    fn block(index: u32, block: u32, reason: Reason) -> Option<Pick> {
        Some(active(entity(100 + index), block, reason))
    }

    fn new(index: u32, reason: Reason) -> Option<Pick> {
        Some(Pick::New { index, reason })
    }

    #[test]
    fn the_current_piece_comes_before_all_others() {
        let mut table = Table::new();
        table.begin(2, Some(1));
        table.begin(0, None);
        table.requests.current = Some(entity(102));
        assert_eq!(table.pick(), block(2, 1, Reason::Current));
        table
            .pieces
            .get_mut(&entity(102))
            .unwrap()
            .mark_requested(1, entity(1), at(99), at(99));
        assert_eq!(
            table.pick(),
            block(0, 0, Reason::Open),
            "the piece has no free block left"
        );
    }

    #[test]
    fn abandoned_pieces_come_before_new_ones_and_new_ones_before_shared_ones() {
        let mut table = Table::new();
        table.begin(3, Some(2));
        assert!(matches!(
            table.pick(),
            Some(Pick::New {
                reason: Reason::Rarest,
                ..
            })
        ));
        table.prefers_sharing = true;
        assert_eq!(table.pick(), block(3, 1, Reason::Open), "a slow peer shares");
        table.prefers_sharing = false;
        table.begin(1, None);
        assert_eq!(table.pick(), block(1, 0, Reason::Open));
        table.begin(1, None).mark_requested(0, entity(2), at(99), at(99));
        [0, 2].iter().for_each(|index| table.order.remove(*index));
        assert_eq!(table.pick(), block(1, 1, Reason::Open), "nothing is left to begin");
    }

    #[test]
    fn the_rarest_piece_is_begun_unless_the_peer_sent_it_corrupt() {
        let mut table = Table::new();
        let mut random = Random::from_seed([1; 32]);
        [0, 1, 3]
            .iter()
            .for_each(|piece| table.order.add_copy(*piece, &mut random));
        table.order.add_copy(3, &mut random);
        assert_eq!(table.pick(), new(2, Reason::Rarest));
        table.requests.last_begun = Some(0);
        table.requests.refused_pieces.push(2);
        assert_eq!(
            table.pick(),
            new(1, Reason::Rarest),
            "among equals, the neighbor of the last one"
        );
        table.has.remove(0);
        table.has.remove(1);
        assert_eq!(table.pick(), new(3, Reason::Rarest));
        table.has.remove(3);
        assert_eq!(
            table.choose(),
            Choice {
                is_starved: true,
                ..Choice::default()
            }
        );
    }

    #[test]
    fn suggestions_are_followed_unless_a_rarer_piece_exists() {
        let mut table = Table::new();
        let mut random = Random::from_seed([1; 32]);
        table.begin(1, None);
        table.requests.suggested.push_back(3);
        assert_eq!(table.pick(), new(3, Reason::Suggested), "before abandoned pieces");
        table.order.add_copy(3, &mut random);
        assert_eq!(table.pick(), block(1, 0, Reason::Open));
        table.requests.record_suggested_request(table.now);
        assert_eq!(
            table.choose(),
            Choice::default(),
            "the peer suggests: only that is requested"
        );
        table.requests.suggested.clear();
        assert_eq!(table.choose(), Choice::default());
    }

    #[test]
    fn without_memory_only_pieces_in_flight_are_continued() {
        let mut table = Table::new();
        table.has_memory = false;
        let wants_memory = Some(2 * BLOCK_SIZE);
        assert_eq!(
            table.choose(),
            Choice {
                wants_memory,
                is_starved: true,
                ..Choice::default()
            }
        );
        table.begin(3, Some(2));
        let choice = table.choose();
        assert_eq!(
            (choice.pick, choice.wants_memory),
            (block(3, 1, Reason::Open), wants_memory)
        );
    }

    #[test]
    fn a_choked_peer_is_asked_only_for_allowed_fast_pieces() {
        let mut table = Table::new();
        table.is_choked = true;
        assert_eq!(table.choose(), Choice::default());
        table.requests.allowed_fast.extend([1, 2]);
        assert_eq!(table.pick(), new(1, Reason::AllowedFast));
        table.begin(1, Some(1)).mark_requested(1, entity(1), at(99), at(99));
        assert_eq!(table.pick(), new(2, Reason::AllowedFast));
        table.requests.refused_pieces.push(2);
        assert_eq!(table.pick(), None, "the peer has sent a corrupt block of it");
        table.requests.refused_pieces.clear();
        table.order.remove(2);
        assert_eq!(table.pick(), None, "held already");
    }

    #[test]
    fn a_suspect_piece_goes_to_one_trusted_peer() {
        let mut table = Table::new();
        (0..PIECES).for_each(|index| table.order.remove(index));
        table.begin(0, None).is_suspect = true;
        assert_eq!(table.pick(), block(0, 0, Reason::Open));
        table.is_trusted = false;
        assert_eq!(table.pick(), None);
        table.is_trusted = true;
        table.pieces.get_mut(&entity(100)).unwrap().exclusive = Some(entity(2));
        assert_eq!(table.pick(), None, "another peer has it");
        let piece = table.pieces.get_mut(&entity(100)).unwrap();
        piece.exclusive = Some(entity(1));
        piece.give_up_exclusive(at(100));
        assert_eq!(table.pick(), None, "the peer failed to send it");
        table.now = at(100) + FAILED_PAUSE;
        assert_eq!(table.pick(), block(0, 0, Reason::Open));
    }

    /// A table in the endgame: a piece of two blocks, the first of them requested from peer 2 and the second from peer 3
    /// at second 99, and a peer whose blocks take 8 s.
    fn slow_endgame() -> (Table, Duration) {
        let mut table = Table::new();
        table.begin(0, Some(2)).mark_requested(1, entity(3), at(99), at(99));
        assert!(!table.choose().is_starved, "there are new pieces");
        (1..PIECES).for_each(|index| table.order.remove(index));
        table.requests.record_block(at(99), &pending(at(91)));
        let patience = table.requests.endgame_patience(table.now);
        assert_eq!(patience, Duration::from_secs(16));
        (table, patience)
    }

    fn pending(asked: Timestamp) -> Pending {
        Pending {
            piece: entity(99),
            block: 0,
            request: BlockRequest {
                piece: 9,
                begin: 0,
                len: BLOCK_SIZE,
            },
            asked,
            is_late: false,
        }
    }

    fn waits_until(again: Timestamp) -> Choice {
        Choice {
            is_starved: true,
            again: Some(again),
            ..Choice::default()
        }
    }

    #[test]
    fn in_the_endgame_a_block_is_requested_again_when_it_takes_long() {
        let (mut table, patience) = slow_endgame();
        assert_eq!(table.choose(), waits_until(at(99) + patience));
        table.now = at(99) + patience;
        assert_eq!(table.pick(), block(0, 0, Reason::Endgame));
        let piece = table.pieces.get_mut(&entity(100)).unwrap();
        piece.mark_requested(0, entity(1), table.now, table.now);
        assert_eq!(
            table.pick(),
            block(0, 1, Reason::Endgame),
            "no block twice from one peer"
        );
    }

    #[test]
    fn slow_peers_do_not_use_up_the_copies_of_a_block() {
        let (mut table, patience) = slow_endgame();
        table.settings.endgame_copies = 1;
        table.now = at(99) + patience;
        assert_eq!(table.choose(), waits_until(at(99) + patience * SLOW_FACTOR));
        table.now = at(99) + patience * SLOW_FACTOR;
        assert_eq!(table.pick(), block(0, 0, Reason::Endgame));
        // A peer that was known to be slow does not even delay it.
        table.now = at(100);
        table.pieces.get_mut(&entity(100)).unwrap().blocks[1].expected_at = at(101) + patience;
        assert_eq!(table.pick(), block(0, 1, Reason::Endgame));
        // A peer that is as slow waits longer.
        table.requests.record_block(at(999), &pending(at(0)));
        assert_eq!(table.pick(), None);
    }

    #[test]
    fn a_peer_that_has_sent_nothing_gets_one_block_of_the_endgame() {
        let (mut table, _) = slow_endgame();
        table.requests = Requests::default();
        table.now = at(102);
        assert_eq!(table.pick(), block(0, 0, Reason::Endgame));
        table.requests.add(pending(at(102)));
        assert_eq!(table.choose().again, None, "the next one follows the first");
        assert_eq!(table.pick(), None);
    }

    #[test]
    fn without_memory_for_new_pieces_blocks_of_slow_peers_are_requested_again() {
        let (mut table, patience) = slow_endgame();
        table.order.insert(1, &mut Random::from_seed([1; 32]));
        table.has_memory = false;
        table.now = at(99) + patience;
        let choice = table.choose();
        assert_eq!(choice.wants_memory, Some(2 * BLOCK_SIZE));
        assert_eq!(
            (choice.pick, choice.again),
            (None, Some(at(99) + patience * SLOW_FACTOR))
        );
        table.now = at(99) + patience * SLOW_FACTOR;
        assert_eq!(table.pick(), block(0, 0, Reason::Endgame));
        table.has_memory = true;
        assert_eq!(table.pick(), new(1, Reason::Rarest));
    }

    /// A table in the endgame: both blocks of piece 0 are requested from other peers and take long.
    fn endgame() -> Table {
        let mut table = Table::new();
        table.begin(0, Some(2)).mark_requested(1, entity(3), at(99), at(99));
        (1..PIECES).for_each(|index| table.order.remove(index));
        assert_eq!(table.pick(), block(0, 0, Reason::Endgame));
        table
    }

    #[test]
    fn the_endgame_begins_when_every_piece_is_begun() {
        let mut table = endgame();
        table.order.insert(3, &mut Random::from_seed([1; 32]));
        table.has.remove(3);
        assert_eq!(table.pick(), None, "another peer can begin piece 3");
    }

    #[test]
    fn the_endgame_requests_the_block_with_the_fewest_copies() {
        let mut table = endgame();
        table.settings.endgame_copies = 3;
        let piece = table.pieces.get_mut(&entity(100)).unwrap();
        piece.mark_requested(0, entity(4), at(99), at(99));
        assert_eq!(table.pick(), block(0, 1, Reason::Endgame));
        let piece = table.pieces.get_mut(&entity(100)).unwrap();
        piece.blocks[1].received = true;
        assert_eq!(table.pick(), block(0, 0, Reason::Endgame), "block 1 has arrived");
        let piece = table.pieces.get_mut(&entity(100)).unwrap();
        piece.blocks[0].late.push(entity(1));
        assert_eq!(table.pick(), None, "the peer was late with block 0");
    }

    #[test]
    fn the_endgame_leaves_out_pieces_that_the_peer_may_not_send() {
        let mut table = endgame();
        table.requests.refused_pieces.push(0);
        assert_eq!(table.pick(), None, "the peer has sent a corrupt block of it");
        let mut table = endgame();
        table.has.remove(0);
        assert_eq!(table.pick(), None);
        let mut table = endgame();
        table.pieces.get_mut(&entity(100)).unwrap().is_suspect = true;
        assert_eq!(table.pick(), None, "one peer sends a suspect piece alone");
        let mut table = endgame();
        table.pieces.get_mut(&entity(100)).unwrap().phase = PiecePhase::Hashing;
        assert_eq!(table.pick(), None);
    }

    #[test]
    fn a_suspect_piece_is_taken_from_a_much_slower_peer() {
        let mut table = endgame();
        let piece = table.pieces.get_mut(&entity(100)).unwrap();
        piece.is_suspect = true;
        piece.exclusive = Some(entity(2));
        assert_eq!(
            table.choose().overtaken,
            None,
            "this peer has not shown that it is faster"
        );
        table.requests.record_block(at(99), &pending(at(98)));
        let due = at(99) + table.requests.endgame_patience(table.now) * SLOW_FACTOR;
        assert_eq!(table.choose(), waits_until(due));
        table.now = due;
        assert_eq!(table.choose().overtaken, Some(entity(100)));
        table.is_trusted = false;
        assert_eq!(table.choose().overtaken, None);
        table.is_trusted = true;
        let piece = table.pieces.get_mut(&entity(100)).unwrap();
        piece.exclusive = Some(entity(1));
        piece.give_up_exclusive(due);
        piece.exclusive = Some(entity(2));
        piece.mark_requested(0, entity(2), at(99), at(99));
        assert_eq!(table.choose().overtaken, None, "this peer failed to send it before");
    }

    #[test]
    fn begun_extents_are_continued_to_their_end() {
        let geometry = Geometry::new(64 << 10, 16 << 10).unwrap();
        assert_eq!(next_in_extent(0, &geometry, 32 << 10), Some(1));
        assert_eq!(next_in_extent(1, &geometry, 32 << 10), None, "another extent");
        assert_eq!(next_in_extent(3, &geometry, 1 << 20), None, "the last piece");
        assert_eq!(next_in_extent(0, &geometry, 0), None);
    }

    /// A block that comes in just the time that this peer takes is not requested twice.
    #[test]
    fn a_peer_that_is_as_fast_is_not_helped() {
        let (mut table, patience) = slow_endgame();
        table.settings.endgame_copies = 1;
        let expect = |table: &mut Table, at| table.pieces.get_mut(&entity(100)).unwrap().blocks[1].expected_at = at;
        let just = table.now + patience;
        expect(&mut table, just);
        assert_eq!(table.pick(), None);
        expect(&mut table, just + Duration::from_nanos(1));
        assert_eq!(table.pick(), block(0, 1, Reason::Endgame));
    }

    /// Returns a table in which the peer 2 sends piece 0 alone and its first block is due.
    fn held_alone() -> (Table, Duration) {
        let mut table = Table::new();
        let piece = table.begin(0, Some(2));
        (piece.is_suspect, piece.exclusive) = (true, Some(entity(2)));
        (1..PIECES).for_each(|index| table.order.remove(index));
        table.requests.record_block(at(99), &pending(at(91)));
        let slow = (table.requests.endgame_patience(table.now) * SLOW_FACTOR).max(LEAST_HOLD);
        (table, slow)
    }

    /// A piece that a much slower peer sends alone is taken away as a whole.
    #[test]
    fn a_piece_of_a_slow_peer_alone_is_overtaken() {
        let (mut table, slow) = held_alone();
        let overtaken = |table: &Table| table.choose().overtaken;
        assert_eq!(overtaken(&table), None);
        table.now = at(99) + slow;
        assert_eq!(overtaken(&table), Some(entity(100)), "it takes too long");
        table.now = at(100);
        let just = table.now + slow;
        let slot = |table: &mut Table, change: &dyn Fn(&mut BlockSlot)| {
            change(&mut table.pieces.get_mut(&entity(100)).unwrap().blocks[0]);
        };
        slot(&mut table, &|slot| slot.expected_at = just);
        assert_eq!(overtaken(&table), None);
        slot(&mut table, &|slot| slot.expected_at = just + Duration::from_nanos(1));
        assert_eq!(overtaken(&table), Some(entity(100)), "it will take too long");
        table.has.remove(0);
        assert_eq!(overtaken(&table), None, "the peer does not have it");
        table.has = PeerPieces::all(PIECES);
        table.pieces.get_mut(&entity(100)).unwrap().phase = PiecePhase::Hashing;
        assert_eq!(overtaken(&table), None, "it has arrived");
        table.pieces.get_mut(&entity(100)).unwrap().phase = PiecePhase::Filling;
        slot(&mut table, &|slot| slot.received = true);
        assert_eq!(overtaken(&table), None, "nothing is owed");
    }
}
