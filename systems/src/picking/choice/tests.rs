//! Tests of the choice of blocks.

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
    is_limited: bool,
    deadlines: Option<PieceDeadlines>,
    best_answer_time: Duration,
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
            deadlines: None,
            best_answer_time: Duration::ZERO,
            is_limited: false,
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
            is_limited: self.is_limited,
            deadlines: self.deadlines.as_ref(),
            best_answer_time: self.best_answer_time,
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

fn pending(requested_at: Timestamp) -> Pending {
    Pending {
        piece: entity(99),
        block: 0,
        request: BlockRequest {
            piece: 9,
            begin: 0,
            len: BLOCK_SIZE,
        },
        requested_at,
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

/// A block that arrives within the time that this peer takes is not requested twice.
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

/// A second copy of a block that waits for the limit on downloads would only be wasted.
#[test]
fn while_downloads_are_limited_there_is_no_endgame() {
    let mut table = endgame();
    assert!(table.choose().pick.is_some());
    table.is_limited = true;
    let choice = table.choose();
    assert_eq!((choice.pick, choice.again), (None, Some(table.now + LIMITED_PAUSE)));
}

/// The pieces that readers need come first, in the order of their deadlines, shared among all peers.
#[test]
fn the_pieces_that_readers_need_come_before_all_others() {
    let mut table = Table::new();
    table.begin(0, Some(1));
    table.requests.current = Some(entity(100));
    table.deadlines = Some(PieceDeadlines::new([(at(105), 2), (at(106), 3)]));
    assert_eq!(table.pick(), new(2, Reason::Deadline));
    table.begin(2, Some(2));
    assert_eq!(table.pick(), block(2, 1, Reason::Deadline), "shared with another peer");
    table
        .pieces
        .get_mut(&entity(102))
        .unwrap()
        .mark_requested(1, entity(2), at(100), at(100));
    assert_eq!(table.pick(), new(3, Reason::Deadline));
    table.has = PeerPieces::none(PIECES);
    table.has.insert(0);
    assert_eq!(table.pick(), block(0, 1, Reason::Current), "the peer has none of them");
}

/// A block of a piece that is due is requested from a second peer, before pieces that are due later.
#[test]
fn a_block_that_a_slow_peer_owes_a_reader_is_requested_from_a_second_peer() {
    let mut table = Table::new();
    table.deadlines = Some(PieceDeadlines::new([(at(100), 2), (at(101), 3)]));
    let piece = table.begin(2, Some(2));
    piece.mark_requested(1, entity(2), at(100), at(103));
    // The peer takes 100 ms for a block.
    let pending = Pending {
        piece: entity(102),
        block: 0,
        request: piece.request(0),
        requested_at: at(99),
        is_late: false,
    };
    table
        .requests
        .record_block(at(99) + Duration::from_millis(100), &pending);
    table.best_answer_time = Duration::from_millis(100);
    assert_eq!(
        table.pick(),
        block(2, 0, Reason::Endgame),
        "it was requested a second ago"
    );
    table.deadlines = Some(PieceDeadlines::new([(at(110), 2), (at(111), 3)]));
    assert_eq!(table.pick(), new(3, Reason::Deadline), "there is time");
    table.deadlines = Some(PieceDeadlines::new([(at(100), 2)]));
    table.is_limited = true;
    assert_ne!(table.pick(), block(2, 0, Reason::Endgame), "it would not come sooner");
}

/// A slow peer leaves a piece that is due to faster ones, unless the piece is overdue or rare.
#[test]
fn a_slow_peer_gets_the_pieces_that_are_due_later() {
    let mut table = Table::new();
    let mut random = Random::from_seed([2; 32]);
    for _ in 0..3 {
        table.order.add_peer(&PeerPieces::all(PIECES), &mut random);
    }
    let request = BlockRequest {
        piece: 0,
        begin: 0,
        len: BLOCK_SIZE,
    };
    let pending = Pending {
        piece: entity(100),
        block: 0,
        request,
        requested_at: at(90),
        is_late: false,
    };
    // The peer takes three seconds for a block.
    table.requests.record_block(at(93), &pending);
    table.best_answer_time = Duration::from_millis(100);
    table.deadlines = Some(PieceDeadlines::new([(at(100), 2), (at(104), 3)]));
    assert_eq!(table.pick(), new(3, Reason::Deadline));
    table.deadlines = Some(PieceDeadlines::new([(at(99), 2), (at(104), 3)]));
    assert_eq!(table.pick(), new(2, Reason::Deadline), "overdue");
    table.deadlines = Some(PieceDeadlines::new([(at(100), 2), (at(104), 3)]));
    table.order.remove_copy(2, &mut random);
    assert_eq!(table.pick(), new(2, Reason::Deadline), "rare");
}
