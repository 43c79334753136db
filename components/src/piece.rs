//! A piece in flight: an entity from its first request to the end of its write.

use std::time::Duration;

use bevy_ecs::prelude::*;
use bytes::Bytes;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::geometry::{BLOCK_SIZE, BlockRequest, Geometry, Span};
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::Payload;
use smallvec::SmallVec;

use crate::settings::RequestSettings;
use crate::work_list::{Listed, WorkList};

/// The phase of a piece in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PiecePhase {
    /// Blocks from an earlier run are being read back from the disk.
    Restoring,
    /// Blocks are missing.
    Filling,
    /// All blocks have arrived and are being hashed.
    Hashing,
    /// The hash matched, and the write is under way.
    Writing,
}

/// Time for which a peer that failed to send an exclusively assigned piece does not get it again.
pub const FAILED_PAUSE: Duration = Duration::from_secs(60);

/// One block of a piece in flight.
#[derive(Debug, Default)]
pub struct BlockSlot {
    /// The block's bytes, from their arrival until they are written.
    pub data: Payload,
    /// The peer that sent the block.
    pub from: Option<Entity>,
    /// Peers with a request in flight for the block that has not timed out.
    pub requested_from: SmallVec<[Entity; 2]>,
    /// When the block was last requested.
    pub requested_at: Timestamp,
    /// When the block is expected, by the speed of the fastest requested peer at the time of the request.
    pub expected_at: Timestamp,
    /// Peers whose request for the block timed out or was a probe. The block is still accepted from them, and may also
    /// be requested from others.
    pub late: SmallVec<[Entity; 1]>,
    /// The block has arrived.
    pub received: bool,
}

impl BlockSlot {
    /// Whether the block is missing and no unexpired request for it is in flight.
    #[must_use]
    pub fn is_free(&self) -> bool {
        !self.received && self.requested_from.is_empty()
    }
}

/// A piece in flight.
#[derive(Component, Debug)]
pub struct ActivePiece {
    /// The torrent.
    pub torrent: Entity,
    /// Index of the piece.
    pub index: u32,
    /// The byte range of the piece in the torrent.
    pub span: Span,
    /// The piece's phase.
    pub phase: PiecePhase,
    /// The piece's blocks.
    pub blocks: Vec<BlockSlot>,
    /// Number of blocks that have not arrived.
    pub missing_count: u32,
    /// Number of blocks that have not arrived and are not requested.
    pub free_count: u32,
    /// Number of requests for the piece's blocks that have not timed out.
    pub requested_count: u32,
    /// Lower bound of the first free block: no free block precedes it.
    free_from: u32,
    /// The only peer that may send blocks after a failed hash, so that the next failure has a single cause.
    pub exclusive: Option<Entity>,
    /// Whether the piece has failed before and needs an exclusive sender.
    pub is_suspect: bool,
    /// Peers that had the piece exclusively and failed to send it, and when; other peers are preferred.
    failed: SmallVec<[(Entity, Timestamp); 2]>,
    /// Whether some blocks came from the disk; if the piece fails, perhaps no peer is to blame.
    pub is_restored: bool,
    /// Whether the piece is listed as idle.
    pub idle: Listed,
    /// Whether the piece is listed as full.
    full: Listed,
    /// The bytes of a verified piece, until they are written.
    data: Vec<Bytes>,
    /// Whether the piece is listed as verified.
    verified: Listed,
}

impl ActivePiece {
    /// Creates a piece without requests.
    #[must_use]
    pub fn new(torrent: Entity, index: u32, geometry: &Geometry) -> Self {
        let count = geometry.block_count(index);
        Self {
            torrent,
            index,
            span: geometry.piece_span(index),
            phase: PiecePhase::Filling,
            blocks: (0..count).map(|_| BlockSlot::default()).collect(),
            missing_count: count,
            free_count: count,
            requested_count: 0,
            free_from: 0,
            exclusive: None,
            is_suspect: false,
            failed: SmallVec::new(),
            is_restored: false,
            idle: Listed::default(),
            full: Listed::default(),
            data: Vec::new(),
            verified: Listed::default(),
        }
    }

    /// Returns the first block that has not arrived, is not requested, and is not already owed by `peer`.
    #[must_use]
    pub fn next_free(&self, peer: Entity) -> Option<u32> {
        if self.free_count == 0 {
            return None;
        }
        let rest = (self.free_from..).zip(&self.blocks[self.free_from as usize..]);
        rest.filter(|(_, slot)| slot.is_free() && !slot.late.contains(&peer))
            .map(|(block, _)| block)
            .next()
    }

    /// Records a request for `block` to `peer`, whose block is expected at `expected_at`.
    pub fn mark_requested(&mut self, block: u32, peer: Entity, now: Timestamp, expected_at: Timestamp) {
        let slot = &mut self.blocks[block as usize];
        let was_free = slot.is_free();
        slot.expected_at = match was_free {
            true => expected_at,
            false => slot.expected_at.min(expected_at),
        };
        slot.requested_from.push(peer);
        slot.requested_at = now;
        self.requested_count += 1;
        if was_free {
            self.count_taken();
        }
    }

    /// Records a probe, a request that measures the speed of `peer`. The block stays as free as before.
    pub fn mark_probed(&mut self, block: u32, peer: Entity) {
        self.blocks[block as usize].late.push(peer);
    }

    /// Counts a block that was free until now.
    fn count_taken(&mut self) {
        self.free_count -= 1;
        let is_taken = |slot: &BlockSlot| !slot.is_free();
        while self.blocks.get(self.free_from as usize).is_some_and(is_taken) {
            self.free_from += 1;
        }
    }

    /// Records that `peer` will not send `block`; true if this makes the block free.
    pub fn release(&mut self, block: u32, peer: Entity) -> bool {
        let Some(slot) = self.blocks.get_mut(block as usize) else {
            return false;
        };
        slot.late.retain(|late| *late != peer);
        let Some(position) = slot.requested_from.iter().position(|&other| other == peer) else {
            return false;
        };
        slot.requested_from.remove(position);
        self.requested_count -= 1;
        let free = slot.is_free();
        if free {
            self.free_count += 1;
            self.free_from = self.free_from.min(block);
        }
        free
    }

    /// Records that the request for `block` to `peer` timed out; true if this makes the block free for others.
    pub fn expire(&mut self, block: u32, peer: Entity) -> bool {
        let free = self.release(block, peer);
        if let Some(slot) = self.blocks.get_mut(block as usize).filter(|slot| !slot.received) {
            slot.late.push(peer);
        }
        free
    }

    /// Stores a block. Returns the other peers it was requested from, so that they get a `Cancel`.
    pub fn receive(&mut self, block: u32, from: Option<Entity>, data: Payload) -> SmallVec<[Entity; 2]> {
        let slot = &mut self.blocks[block as usize];
        debug_assert!(!slot.received, "a block is received once");
        let was_free = slot.is_free();
        self.missing_count -= 1;
        slot.received = true;
        slot.data = data;
        slot.from = from;
        let mut others = std::mem::take(&mut slot.requested_from);
        self.requested_count -= others.len() as u32;
        others.extend(std::mem::take(&mut slot.late));
        others.retain(|peer| Some(*peer) != from);
        if was_free {
            self.count_taken();
        }
        others
    }

    /// Whether every block has arrived.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.missing_count == 0
    }

    /// Whether blocks are missing and no peer is expected to send one.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.phase == PiecePhase::Filling && self.requested_count == 0 && !self.is_full()
    }

    /// Number of bytes in blocks received from peers, in this run or an earlier one.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes_without(None)
    }

    /// Number of bytes in blocks received from peers, without those of the `saved` blocks, which are on the disk.
    #[must_use]
    pub fn received_bytes_without(&self, saved: Option<&Bitfield>) -> u64 {
        let is_sent = |slot: &BlockSlot| slot.received && (slot.from.is_some() || self.is_restored);
        let is_saved = |block: u32| saved.is_some_and(|blocks| blocks.contains(block));
        let sent = (0..).zip(&self.blocks).filter(|(_, slot)| is_sent(slot));
        let unsaved = sent.map(|(block, _)| block).filter(|block| !is_saved(*block));
        unsaved.map(|block| u64::from(self.block_len(block))).sum()
    }

    /// Drops all blocks, for another try; returns the number of their bytes that peers had sent.
    pub fn clear(&mut self) -> u64 {
        let dropped = self.received_bytes();
        self.blocks.iter_mut().for_each(|slot| *slot = BlockSlot::default());
        self.missing_count = self.blocks.len() as u32;
        self.free_count = self.missing_count;
        self.requested_count = 0;
        self.free_from = 0;
        self.phase = PiecePhase::Filling;
        self.exclusive = None;
        self.is_restored = false;
        dropped
    }

    /// Records that the exclusive sender failed, and drops the blocks it has sent; returns the number of their bytes.
    pub fn give_up_exclusive(&mut self, now: Timestamp) -> u64 {
        if let Some(peer) = self.exclusive {
            self.failed.retain(|(other, _)| *other != peer);
            self.failed.push((peer, now));
        }
        self.clear()
    }

    /// Whether `peer` may get the piece exclusively: no other peer has it, and this peer has not failed to send it for
    /// [`FAILED_PAUSE`].
    #[must_use]
    pub fn may_have_exclusively(&self, peer: Entity, now: Timestamp) -> bool {
        match self.exclusive {
            Some(owner) => owner == peer,
            None => !self.has_failed_to_send(peer, now),
        }
    }

    /// Whether `peer` may replace the exclusive sender of the piece: `peer` has not failed to send the piece for
    /// [`FAILED_PAUSE`].
    #[must_use]
    pub fn may_change_hands(&self, peer: Entity, now: Timestamp) -> bool {
        self.exclusive.is_some_and(|owner| owner != peer) && !self.has_failed_to_send(peer, now)
    }

    /// Whether `peer` failed to send the piece exclusively within [`FAILED_PAUSE`].
    fn has_failed_to_send(&self, peer: Entity, now: Timestamp) -> bool {
        let failed = self.failed.iter().find(|(other, _)| *other == peer);
        failed.is_some_and(|(_, at)| now.since(*at) < FAILED_PAUSE)
    }

    /// Returns the peers that sent the blocks, each one once.
    #[must_use]
    pub fn contributors(&self) -> Vec<Entity> {
        let mut peers: Vec<Entity> = self.blocks.iter().filter_map(|slot| slot.from).collect();
        peers.sort_unstable();
        peers.dedup();
        peers
    }

    /// Returns the request for `block`.
    #[must_use]
    pub fn request(&self, block: u32) -> BlockRequest {
        BlockRequest {
            piece: self.index,
            begin: block * BLOCK_SIZE,
            len: self.block_len(block),
        }
    }

    /// Returns the length of `block` in bytes.
    #[must_use]
    pub fn block_len(&self, block: u32) -> u32 {
        (self.span.len - block * BLOCK_SIZE).min(BLOCK_SIZE)
    }
}

/// Pieces that have all their blocks and are not being hashed yet.
#[derive(Resource, Debug, Default)]
pub struct FullPieces(WorkList<ActivePiece>);

impl FullPieces {
    /// Lists a piece whose last block has arrived, at most once.
    pub fn add(&mut self, entity: Entity, piece: &mut ActivePiece) {
        self.0.add(entity, &mut piece.full);
    }

    /// Removes and returns the next piece; call [`ActivePiece::begin_hashing`] on it.
    pub fn pop(&mut self) -> Option<Entity> {
        self.0.pop()
    }
}

impl ActivePiece {
    /// Takes the bytes out of a full piece, to be hashed, and records that the piece is no longer listed as full.
    pub fn begin_hashing(&mut self) -> Vec<Bytes> {
        self.full.clear();
        self.phase = PiecePhase::Hashing;
        let mut spans = Vec::with_capacity(self.blocks.len() + self.blocks.len() / 8);
        let slots = self.blocks.iter_mut();
        slots.for_each(|slot| spans.extend(std::mem::take(&mut slot.data)));
        spans
    }
}

/// Pieces that passed their hash check and are not being written yet.
#[derive(Resource, Debug, Default)]
pub struct VerifiedPieces(WorkList<ActivePiece>);

impl VerifiedPieces {
    /// Lists a verified piece with its bytes, at most once.
    pub fn add(&mut self, entity: Entity, piece: &mut ActivePiece, data: Vec<Bytes>) {
        piece.data = data;
        self.0.add(entity, &mut piece.verified);
    }

    /// Removes and returns the next piece; call [`PieceMemory::begin_writing`] with it.
    pub fn pop(&mut self) -> Option<Entity> {
        self.0.pop()
    }

    /// Returns the pieces in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Entity> + '_ {
        self.0.iter()
    }
}

impl ActivePiece {
    /// Returns the bytes of a verified piece that is not being written yet.
    #[must_use]
    pub fn verified_data(&self) -> &[Bytes] {
        &self.data
    }

    /// Takes the bytes out of a verified piece, to be written, and records that the piece is no longer listed as
    /// verified.
    fn begin_writing(&mut self) -> Vec<Bytes> {
        self.verified.clear();
        self.phase = PiecePhase::Writing;
        std::mem::take(&mut self.data)
    }
}

/// Memory of pieces in flight over all torrents, limited by
/// [`piece_memory_bytes`](RequestSettings::piece_memory_bytes) and
/// [`unwritten_bytes`](RequestSettings::unwritten_bytes).
#[derive(Resource, Debug, Default)]
pub struct PieceMemory {
    used_bytes: u64,
    writing_bytes: u64,
    writing_count: usize,
}

impl PieceMemory {
    /// Whether a piece of `len` bytes may be begun. One piece always may, and one piece may always be written
    /// meanwhile.
    #[must_use]
    pub fn fits(&self, len: u32, settings: &RequestSettings) -> bool {
        let is_disk_behind = self.writing_count > 1 && self.writing_bytes > settings.unwritten_bytes;
        let has_memory = self.used_bytes + u64::from(len) <= settings.piece_memory_bytes;
        self.used_bytes == 0 || (has_memory && !is_disk_behind)
    }

    /// Reserves `len` bytes for a piece, if it may be begun.
    pub fn reserve(&mut self, len: u32, settings: &RequestSettings) -> bool {
        let fits = self.fits(len, settings);
        if fits {
            self.used_bytes += u64::from(len);
        }
        fits
    }

    /// Takes the bytes out of a verified piece, to be written.
    pub fn begin_writing(&mut self, piece: &mut ActivePiece) -> Vec<Bytes> {
        if piece.phase != PiecePhase::Writing {
            self.writing_count += 1;
            self.writing_bytes += u64::from(piece.span.len);
        }
        piece.begin_writing()
    }

    /// Releases the bytes of a piece.
    pub fn release(&mut self, piece: &ActivePiece) {
        let len = u64::from(piece.span.len);
        self.used_bytes = self.used_bytes.saturating_sub(len);
        if piece.phase == PiecePhase::Writing {
            self.writing_count = self.writing_count.saturating_sub(1);
            self.writing_bytes = self.writing_bytes.saturating_sub(len);
        }
    }

    /// Number of reserved bytes.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// Number of bytes of pieces that are being written.
    #[must_use]
    pub fn writing_bytes(&self) -> u64 {
        self.writing_bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(id: u32) -> Entity {
        Entity::from_raw_u32(id).unwrap()
    }

    fn piece() -> ActivePiece {
        let geometry = Geometry::new(u64::from(BLOCK_SIZE) * 3 + 5, BLOCK_SIZE * 4).unwrap();
        ActivePiece::new(peer(0), 0, &geometry)
    }

    #[test]
    fn blocks_are_requested_in_order_and_again_when_released() {
        let mut piece = piece();
        assert_eq!((piece.blocks.len(), piece.block_len(3)), (4, 5));
        for expected in 0..4 {
            let block = piece.next_free(peer(1)).unwrap();
            assert_eq!(block, expected);
            piece.mark_requested(block, peer(1), Timestamp::ZERO, Timestamp::ZERO);
        }
        assert_eq!(piece.next_free(peer(1)), None);
        piece.mark_requested(2, peer(2), Timestamp::ZERO, Timestamp::ZERO);
        assert!(!piece.release(2, peer(1)), "another peer still owes it");
        assert!(!piece.release(2, peer(1)), "released once");
        assert!(piece.release(2, peer(2)));
        assert_eq!((piece.next_free(peer(1)), piece.free_count), (Some(2), 1));
        assert!(!piece.release(9, peer(1)), "out of range is nobody's");
    }

    #[test]
    fn a_late_peer_delays_no_other_and_is_accepted() {
        let mut piece = piece();
        piece.mark_requested(0, peer(1), Timestamp::ZERO, Timestamp::ZERO);
        assert!(piece.expire(0, peer(1)));
        assert_eq!(
            (piece.next_free(peer(2)), piece.next_free(peer(1))),
            (Some(0), Some(1)),
            "nobody is asked twice"
        );
        piece.mark_requested(0, peer(2), Timestamp::ZERO, Timestamp::ZERO);
        assert_eq!(&piece.receive(0, Some(peer(1)), Payload::new())[..], [peer(2)]);
        piece.mark_requested(1, peer(1), Timestamp::ZERO, Timestamp::ZERO);
        piece.expire(1, peer(1));
        piece.mark_requested(1, peer(2), Timestamp::ZERO, Timestamp::ZERO);
        assert_eq!(
            &piece.receive(1, Some(peer(2)), Payload::new())[..],
            [peer(1)],
            "the other peer is to be canceled"
        );
        assert!(!piece.expire(1, peer(1)));
        assert!(piece.blocks[1].late.is_empty());
    }

    #[test]
    fn receiving_a_block_returns_other_requested_peers() {
        let mut piece = piece();
        piece.mark_requested(0, peer(1), Timestamp::ZERO, Timestamp::ZERO);
        piece.mark_requested(0, peer(2), Timestamp::ZERO, Timestamp::ZERO);
        let others = piece.receive(0, Some(peer(2)), Payload::new());
        assert_eq!(&others[..], [peer(1)]);
        assert_eq!(
            (piece.missing_count, piece.free_count, piece.requested_count),
            (3, 3, 0)
        );
        piece.receive(1, None, Payload::new());
        assert_eq!(piece.contributors(), [peer(2)]);
        assert_eq!(piece.received_bytes(), u64::from(BLOCK_SIZE), "nobody sends padding");
        piece.receive(3, Some(peer(2)), Payload::new());
        assert_eq!(piece.clear(), u64::from(BLOCK_SIZE) + 5);
        assert_eq!(
            (piece.missing_count, piece.free_count, piece.next_free(peer(1))),
            (4, 4, Some(0))
        );
    }

    proptest! {
        /// `free_from` only saves time: the first free block is the one that a scan of all blocks finds.
        #[test]
        fn the_first_free_block_is_found(steps in proptest::collection::vec((0u32..4, 0u32..4, 1u32..3), 0..60)) {
            let mut piece = piece();
            for (step, block, id) in steps {
                let slot = &piece.blocks[block as usize];
                let is_mine = slot.requested_from.contains(&peer(id)) || slot.late.contains(&peer(id));
                match step {
                    0 if !slot.received && !is_mine => piece.mark_requested(block, peer(id), Timestamp::ZERO, Timestamp::ZERO),
                    1 => drop(piece.release(block, peer(id))),
                    2 if slot.requested_from.contains(&peer(id)) => drop(piece.expire(block, peer(id))),
                    3 if !slot.received => drop(piece.receive(block, Some(peer(id)), Payload::new())),
                    _ => {}
                }
                let is_next = |slot: &BlockSlot| slot.is_free() && !slot.late.contains(&peer(1));
                let expected = piece.blocks.iter().position(is_next).map(|block| block as u32);
                prop_assert_eq!(piece.next_free(peer(1)), expected);
                let free = piece.blocks.iter().filter(|slot| slot.is_free()).count();
                prop_assert_eq!(piece.free_count as usize, free);
            }
        }
    }

    #[test]
    fn memory_is_bounded_but_never_too_small_for_one() {
        let mut memory = PieceMemory::default();
        let piece = piece();
        let len = piece.span.len;
        let settings = |pieces: u64| RequestSettings {
            piece_memory_bytes: pieces * u64::from(len),
            ..RequestSettings::default()
        };
        assert!(memory.reserve(len, &settings(0)), "the only piece");
        assert!(!memory.reserve(1, &settings(0)));
        memory.release(&piece);
        assert!(memory.reserve(len, &settings(2)) && memory.reserve(len, &settings(2)));
        assert!(!memory.reserve(1, &settings(2)));
        assert_eq!(memory.used_bytes(), 2 * u64::from(len));
    }

    /// A second write waits already, so a further piece would wait as well.
    #[test]
    fn no_piece_is_begun_while_the_disk_is_behind() {
        let mut memory = PieceMemory::default();
        let mut pieces = [piece(), piece(), piece()];
        let len = pieces[0].span.len;
        let settings = RequestSettings {
            unwritten_bytes: u64::from(len),
            ..RequestSettings::default()
        };
        for piece in &mut pieces {
            assert!(memory.reserve(len, &settings));
            piece.phase = PiecePhase::Hashing;
        }
        let [first, second, third] = &mut pieces;
        memory.begin_writing(first);
        assert!(memory.fits(len, &settings), "one piece is written");
        memory.begin_writing(second);
        memory.begin_writing(second);
        assert!(!memory.fits(len, &settings));
        assert_eq!(
            memory.writing_bytes(),
            2 * u64::from(len),
            "a second attempt counts once"
        );
        memory.release(first);
        assert!(memory.fits(len, &settings));
        memory.release(third);
        memory.release(second);
        assert_eq!((memory.used_bytes(), memory.writing_bytes()), (0, 0));
    }
}
