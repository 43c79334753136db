//! Tests of requests and pieces in flight, one system at a time.

use bevy_ecs::system::RunSystemOnce;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::lifecycle::Readiness;
use ecs_torrent_components::messages::WantedChanged;
use ecs_torrent_components::piece::{BlockSlot, FAILED_PAUSE, PiecePhase};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::settings::{RequestSettings, Settings};
use ecs_torrent_components::torrent::{Content, Lifecycle, Partials};
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::geometry::BLOCK_SIZE;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::Message;

use super::*;
use crate::testing::{Bed, NOW};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Returns a torrent that downloads, with nothing begun.
fn bed() -> Bed {
    let mut bed = Bed::new(PickingPlugin);
    let order = RarityOrder::new(3, |_| true, &mut bed.world.resource_mut::<Random>());
    let parts = (Picker::new(order), crate::testing::torrent(), Readiness::Ready);
    bed.world.entity_mut(bed.torrent).insert(parts);
    bed
}

/// Begins a piece as the picker does.
fn begin(bed: &mut Bed, index: u32) -> Entity {
    bed.get_mut::<Picker>(bed.torrent).order.remove(index);
    let len = bed.geometry.piece_size(index);
    let settings = RequestSettings {
        piece_memory_bytes: u64::MAX,
        ..RequestSettings::default()
    };
    bed.world.resource_mut::<PieceMemory>().reserve(len, &settings);
    bed.piece(index)
}

/// Gives a piece to a peer alone, with the first block received and the second requested.
fn begin_alone(bed: &mut Bed, peer: Entity) -> Entity {
    let piece = begin(bed, 0);
    bed.request(peer, piece, 1);
    let mut active = bed.get_mut::<ActivePiece>(piece);
    active.receive(0, Some(peer), Default::default());
    (active.is_suspect, active.exclusive) = (true, Some(peer));
    bed.get_mut::<Requests>(peer).current = Some(piece);
    piece
}

/// Returns the number of bytes wasted since the last call.
fn wasted(bed: &mut Bed) -> u64 {
    let dropped = std::mem::take(&mut bed.world.resource_mut::<Supply>().dropped);
    dropped.into_iter().map(|(_, bytes)| bytes).sum()
}

/// Whether a peer is in the refill queue. Empties the queue.
fn is_listed(bed: &mut Bed, peer: Entity) -> bool {
    let mut queue = bed.world.resource_mut::<RefillQueue>();
    let listed: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
    listed.iter().for_each(|peer| bed.get_mut::<Requests>(*peer).unlist());
    listed.contains(&peer)
}

#[test]
fn a_reject_frees_the_block_for_others() {
    let mut bed = bed();
    let peer = bed.peer();
    let piece = begin(&mut bed, 0);
    let request = bed.request(peer, piece, 0);
    bed.request(peer, piece, 1);
    bed.get_mut::<ActivePieces>(bed.torrent).open.clear();
    bed.run_after(RejectReceived { peer, request }, handle_rejects);
    let requests: &Requests = bed.get(peer);
    assert_eq!(requests.pending().len(), 1);
    assert_eq!(requests.paused_until, NOW + REJECT_PAUSE);
    assert!(requests.withheld_until < NOW, "nothing is withheld");
    assert!(bed.get::<ActivePiece>(piece).blocks[0].is_free());
    assert!(bed.get::<ActivePieces>(bed.torrent).open.contains(&0));
    assert!(bed.has_sent(peer, &[]));
}

/// A piece that its exclusive sender rejects goes to another peer, and not to the same one for a minute.
#[test]
fn a_reject_of_an_exclusive_piece_takes_all_of_it_away() {
    let mut bed = bed();
    let peer = bed.peer();
    let piece = begin(&mut bed, 0);
    let [first, second] = [0, 1].map(|block| bed.request(peer, piece, block));
    bed.get_mut::<ActivePiece>(piece).exclusive = Some(peer);
    bed.run_after(RejectReceived { peer, request: first }, handle_rejects);
    assert!(bed.has_sent(peer, &[Message::Cancel(second)]));
    let requests: &Requests = bed.get(peer);
    assert!(requests.pending().is_empty());
    assert_eq!(requests.withheld_until, NOW + FAILED_PAUSE);
    let piece: &ActivePiece = bed.get(piece);
    assert_eq!((piece.exclusive, piece.free_count), (None, 2));
    assert!(!piece.may_have_exclusively(peer, NOW));
}

#[test]
fn a_choking_peer_that_rejects_an_allowed_piece_is_not_asked_for_it_again() {
    let mut bed = bed();
    let peer = bed.peer();
    let piece = begin(&mut bed, 1);
    let request = bed.request(peer, piece, 0);
    bed.get_mut::<PeerState>(peer).peer_choking = true;
    bed.get_mut::<Requests>(peer).allowed_fast = vec![0, 1, 2];
    bed.run_after(RejectReceived { peer, request }, handle_rejects);
    let requests: &Requests = bed.get(peer);
    assert_eq!(requests.allowed_fast, [0, 2]);
    assert!(requests.paused_until < NOW);
}

#[test]
fn allowed_fast_pieces_are_kept_once_and_up_to_a_limit() {
    let mut bed = bed();
    let peer = bed.peer();
    for piece in [1, 1].into_iter().chain(100..300) {
        bed.run_after(AllowedFastReceived { peer, piece }, handle_allowed_fast);
    }
    let kept = &bed.get::<Requests>(peer).allowed_fast;
    assert_eq!((kept.len(), kept[..3].to_vec()), (MAX_ALLOWED_FAST, vec![1, 100, 101]));
    assert!(is_listed(&mut bed, peer));
}

/// BEP 54.
#[test]
fn requests_for_a_piece_that_the_peer_lost_are_canceled_and_no_others() {
    let mut bed = bed();
    let peer = bed.peer();
    let [lost, kept] = [0, 1].map(|index| begin(&mut bed, index));
    let canceled = [0, 1].map(|block| bed.request(peer, lost, block));
    let request = bed.request(peer, kept, 0);
    bed.get_mut::<ActivePieces>(bed.torrent).open.clear();
    bed.world.resource_mut::<DroppedRequests>().0.push((peer, 0));
    bed.run(drop_requests);
    assert!(bed.has_sent(peer, &canceled.map(Message::Cancel)));
    let pending = bed.get::<Requests>(peer).pending();
    assert_eq!(
        pending.iter().map(|pending| pending.request).collect::<Vec<_>>(),
        [request]
    );
    assert_eq!(bed.get::<ActivePiece>(lost).free_count, 2);
    assert_eq!(bed.get::<ActivePieces>(bed.torrent).open, [0].into());
}

#[test]
fn what_a_gone_peer_sent_alone_is_begun_again() {
    for is_full in [false, true] {
        let mut bed = bed();
        let peer = bed.peer();
        let piece = begin_alone(&mut bed, peer);
        if is_full {
            bed.get_mut::<ActivePiece>(piece)
                .receive(1, Some(peer), Default::default());
            bed.get_mut::<Requests>(peer).cancel_all();
        }
        bed.get_mut::<ActivePieces>(bed.torrent).open.clear();
        disconnect(&mut bed, peer);
        let expected = if is_full { (0, 0) } else { (BLOCK, 2) };
        assert_eq!((wasted(&mut bed), bed.get::<ActivePiece>(piece).free_count), expected);
        assert_eq!(bed.get::<ActivePieces>(bed.torrent).open.len(), usize::from(!is_full));
    }
}

/// A choke drops all requests (BEP 3), so that no request for the piece is in flight.
#[test]
fn what_a_gone_peer_sent_alone_before_a_choke_is_begun_again() {
    let mut bed = bed();
    let peer = bed.peer();
    let piece = begin_alone(&mut bed, peer);
    bed.get_mut::<Requests>(peer).cancel_all();
    bed.get_mut::<ActivePiece>(piece).release(1, peer);
    bed.get_mut::<ActivePieces>(bed.torrent).open.clear();
    disconnect(&mut bed, peer);
    assert_eq!(
        (wasted(&mut bed), bed.get::<ActivePiece>(piece).exclusive),
        (BLOCK, None)
    );
    assert_eq!(bed.get::<ActivePieces>(bed.torrent).open, [0].into());
}

fn disconnect(bed: &mut Bed, peer: Entity) {
    let gone = PeerDisconnected {
        torrent: Some(bed.torrent),
        peer,
        reason: ecs_torrent_components::peer::CloseReason::Evicted,
    };
    bed.run_after(gone, release_requests);
}

#[test]
fn peers_that_wait_go_on_waiting_when_another_one_leaves() {
    let mut bed = bed();
    let [gone, for_block, gone_too, for_memory] = [bed.peer(), bed.peer(), bed.peer(), bed.peer()];
    starve_of_blocks(&mut bed, gone);
    starve_of_blocks(&mut bed, for_block);
    starve_of_memory(&mut bed, gone_too);
    starve_of_memory(&mut bed, for_memory);
    disconnect(&mut bed, gone);
    disconnect(&mut bed, gone_too);
    assert!(bed.get::<Picker>(bed.torrent).starved.iter().eq([for_block]));
    assert!(bed.world.resource::<Supply>().starved.iter().eq([for_memory]));
}

/// Lists a peer that waits for a free block of the torrent.
fn starve_of_blocks(bed: &mut Bed, peer: Entity) {
    let mut listed = std::mem::take(&mut bed.get_mut::<Requests>(peer).starved);
    bed.get_mut::<Picker>(bed.torrent).starved.add(peer, &mut listed);
    bed.get_mut::<Requests>(peer).starved = listed;
}

/// Lists a peer that waits for memory.
fn starve_of_memory(bed: &mut Bed, peer: Entity) {
    let mut listed = std::mem::take(&mut bed.get_mut::<Requests>(peer).starved);
    bed.world.resource_mut::<Supply>().starved.add(peer, &mut listed);
    bed.get_mut::<Requests>(peer).starved = listed;
}

/// Uses up the piece memory with an idle piece, while `peer` waits for the memory of a piece.
fn starve(bed: &mut Bed, peer: Entity) -> Entity {
    let piece = begin(bed, 0);
    bed.get_mut::<ActivePiece>(piece)
        .receive(0, Some(peer), Default::default());
    bed.world.resource_mut::<Settings>().requests.piece_memory_bytes = 2 * BLOCK;
    starve_of_memory(bed, peer);
    bed.world.resource_scope(|world, mut supply: Mut<Supply>| {
        supply.wanted_bytes = 2 * BLOCK;
        let mut active = world.get_mut::<ActivePiece>(piece).unwrap();
        supply.mark_idle(piece, &mut active);
    });
    piece
}

#[test]
fn an_idle_piece_makes_room_for_another_one() {
    let mut bed = bed();
    let [peer, late] = [bed.peer(), bed.peer()];
    let piece = starve(&mut bed, peer);
    let request = bed.request(late, piece, 1);
    bed.get_mut::<ActivePiece>(piece).expire(1, late);
    bed.run(refill::evict_idle);
    assert!(bed.has_sent(late, &[Message::Cancel(request)]), "it may be asked again");
    assert!(bed.get::<Requests>(late).pending().is_empty());
    assert!(bed.world.get_entity(piece).is_err());
    assert_eq!(bed.world.resource::<PieceMemory>().used_bytes(), 0);
    assert!(bed.get::<Picker>(bed.torrent).order.is_pickable(0));
    let active: &ActivePieces = bed.get(bed.torrent);
    assert!(active.all.is_empty() && active.open.is_empty());
    assert_eq!(wasted(&mut bed), BLOCK);
    bed.run(refill::recall_starved);
    assert!(is_listed(&mut bed, peer));
}

#[test]
fn an_idle_piece_stays_while_there_is_memory_or_nobody_waits() {
    let mut bed = bed();
    let peer = bed.peer();
    let piece = starve(&mut bed, peer);
    let limit = |bed: &mut Bed, bytes| bed.world.resource_mut::<Settings>().requests.piece_memory_bytes = bytes;
    limit(&mut bed, 4 * BLOCK);
    bed.run(refill::evict_idle);
    assert!(bed.world.get_entity(piece).is_ok(), "both fit");
    limit(&mut bed, 4 * BLOCK - 1);
    let waiting = std::mem::take(&mut bed.world.resource_mut::<Supply>().starved);
    bed.run(refill::evict_idle);
    assert!(bed.world.get_entity(piece).is_ok(), "nobody waits");
    bed.world.resource_mut::<Supply>().starved = waiting;
    bed.run(refill::evict_idle);
    assert!(bed.world.get_entity(piece).is_err());
}

#[test]
fn a_piece_that_is_sent_again_is_not_dropped() {
    let mut bed = bed();
    let peer = bed.peer();
    let piece = starve(&mut bed, peer);
    bed.request(peer, piece, 1);
    bed.run(refill::evict_idle);
    assert!(bed.world.get_entity(piece).is_ok());
}

/// Moves the torrent from `Downloading` to `to`.
fn change(bed: &mut Bed, to: Lifecycle) {
    let changed = LifecycleChanged {
        torrent: bed.torrent,
        from: Lifecycle::Downloading,
        to,
    };
    bed.run_after(changed, flight::follow_lifecycle);
}

/// A torrent that has everything it wants may want more later, from the same peers.
#[test]
fn peers_that_wait_for_a_block_can_wait_again_after_the_torrent_was_finished() {
    let mut bed = bed();
    let peer = bed.peer();
    starve_of_blocks(&mut bed, peer);
    change(&mut bed, Lifecycle::Finished);
    assert!(bed.world.get::<Picker>(bed.torrent).is_none());
    change(&mut bed, Lifecycle::Downloading);
    starve_of_blocks(&mut bed, peer);
    assert!(bed.get::<Picker>(bed.torrent).starved.iter().eq([peer]));
}

fn failed() -> Lifecycle {
    Lifecycle::Failed {
        reason: "a fault".into(),
        retry_at: None,
    }
}

/// Blocks that are on the disk are not wasted. Neither is a piece that is being written, if the torrent may find it
/// when it is opened again; the session of a torrent that stops lists no such piece.
#[test]
fn a_torrent_counts_the_bytes_that_it_drops() {
    let phase = StopPhase::DisconnectPeers;
    for (lifecycle, block_count) in [(failed(), 2), (Lifecycle::Stopping { phase }, 4)] {
        let mut bed = bed();
        let peer = bed.peer();
        for index in 0..3 {
            let piece = begin(&mut bed, index);
            let mut piece = bed.get_mut::<ActivePiece>(piece);
            piece.receive(0, Some(peer), Default::default());
            if index > 0 {
                piece.receive(1, Some(peer), Default::default());
            }
            if index == 1 {
                piece.phase = PiecePhase::Writing;
            }
        }
        let mut saved = Bitfield::new(2);
        saved.insert(1);
        bed.get_mut::<Partials>(bed.torrent).0.insert(2, saved);
        change(&mut bed, lifecycle);
        assert_eq!(wasted(&mut bed), block_count * BLOCK);
        assert!(bed.get::<ActivePieces>(bed.torrent).all.is_empty());
        assert_eq!(bed.world.resource::<PieceMemory>().used_bytes(), 0);
        assert!(bed.world.get::<Picker>(bed.torrent).is_none());
    }
}

/// A torrent on a full disk keeps its pieces in flight; a torrent that waits for its files has none.
#[test]
fn a_blocked_torrent_keeps_its_pieces_while_its_files_are_open() {
    for (readiness, count) in [(Readiness::Ready, 1), (Readiness::Unopened, 0)] {
        let mut bed = bed();
        begin(&mut bed, 0);
        *bed.get_mut::<Readiness>(bed.torrent) = readiness;
        change(
            &mut bed,
            Lifecycle::Blocked {
                resource: "space".into(),
            },
        );
        assert_eq!(bed.get::<ActivePieces>(bed.torrent).all.len(), count);
        assert_eq!(bed.world.get::<Picker>(bed.torrent).is_some(), count == 1);
    }
}

#[test]
fn the_latest_suggestions_are_kept() {
    let mut bed = bed();
    let peer = bed.peer();
    let count = MAX_SUGGESTED as u32;
    for piece in [0, 1, 0].into_iter().chain(2..count + 2) {
        bed.run_after(SuggestReceived { peer, piece }, handle_suggestions);
    }
    let kept = bed.get::<Requests>(peer).suggested.iter().copied();
    assert_eq!(kept.collect::<Vec<_>>(), (2..count + 2).collect::<Vec<_>>());
    assert!(bed.get::<PeerState>(peer).suggests);
}

/// Fills a peer's pipeline. Returns the pieces of all its requests in flight.
fn refill(bed: &mut Bed, peer: Entity) -> Vec<u32> {
    if bed.world.get::<Content>(bed.torrent).is_none() {
        bed.world.entity_mut(bed.torrent).insert(crate::testing::content());
    }
    let mut queue = std::mem::take(&mut *bed.world.resource_mut::<RefillQueue>());
    queue.add(peer, &mut bed.get_mut::<Requests>(peer));
    bed.world.insert_resource(queue);
    bed.run(refill::refill_requests);
    let pending = bed.get::<Requests>(peer).pending();
    pending.iter().map(|pending| pending.request.piece).collect()
}

fn set_depth(bed: &mut Bed, depth: u32) {
    bed.world.resource_mut::<Settings>().requests.initial_depth = depth;
}

#[test]
fn a_peer_is_asked_for_as_many_blocks_as_its_pipeline_holds() {
    for depth in [1, 3, 4, 99] {
        let mut bed = bed();
        set_depth(&mut bed, depth);
        let peer = bed.peer();
        assert_eq!(refill(&mut bed, peer).len(), depth.min(6) as usize);
        let sent = bed
            .get_mut::<ecs_torrent_components::peer::Outbox>(peer)
            .take()
            .concat();
        assert_eq!(sent.len(), 17 * depth.min(6) as usize);
        let is_starved = bed.get::<Requests>(peer).starved.is_listed();
        assert_eq!(
            bed.get::<Picker>(bed.torrent).starved.front() == Some(peer),
            depth == 99
        );
        assert_eq!(is_starved, depth == 99, "nothing is left to request");
    }
}

/// Nothing is requested from a peer that chokes us, is not interesting, or owes too many blocks.
#[test]
fn a_peer_that_cannot_be_asked_is_not() {
    let asks = |change: fn(&mut Bed, Entity)| {
        let mut bed = bed();
        let peer = bed.peer();
        change(&mut bed, peer);
        let before = bed.get::<Requests>(peer).pending().len();
        refill(&mut bed, peer).len() > before
    };
    assert!(asks(|_, _| {}));
    assert!(!asks(|bed, peer| bed.get_mut::<PeerState>(peer).am_interested = false));
    assert!(!asks(|bed, peer| bed.get_mut::<PeerState>(peer).peer_choking = true));
    assert!(asks(|bed, peer| {
        bed.get_mut::<PeerState>(peer).peer_choking = true;
        bed.get_mut::<Requests>(peer).allowed_fast.push(1);
    }));
    let owe = |bed: &mut Bed, peer: Entity, count: usize| {
        let piece = Entity::PLACEHOLDER;
        for block in 0..count as u32 {
            let request = ecs_torrent_protocol::geometry::BlockRequest {
                piece: 9,
                begin: block,
                len: 1,
            };
            let (requested_at, is_late) = (NOW, true);
            bed.get_mut::<Requests>(peer).add(Pending {
                piece,
                block,
                request,
                requested_at,
                is_late,
            });
        }
    };
    let mut bed = bed();
    let [some, many] = [bed.peer(), bed.peer()];
    owe(&mut bed, some, 31);
    owe(&mut bed, many, 32);
    assert_eq!(refill(&mut bed, many).len(), 32);
    assert!(refill(&mut bed, some).len() > 31);
    assert!(asks(|bed, peer| bed.get_mut::<Requests>(peer).paused_until = NOW));
    assert!(!asks(|bed, peer| {
        bed.get_mut::<Requests>(peer).paused_until = NOW + Duration::from_nanos(1);
    }));
}

/// A piece that failed is sent by one peer alone, and never by a peer that recently owed blocks.
#[test]
fn a_suspect_piece_is_given_to_trusted_peers() {
    let gets = |change: fn(&mut Requests)| {
        let mut bed = bed();
        let peer = bed.peer();
        *bed.get_mut::<PeerPieces>(peer) = PeerPieces::none(3);
        bed.get_mut::<PeerPieces>(peer).insert(0);
        let piece = begin(&mut bed, 0);
        bed.get_mut::<ActivePiece>(piece).is_suspect = true;
        change(&mut bed.get_mut::<Requests>(peer));
        let is_requested = !refill(&mut bed, peer).is_empty();
        assert_eq!(bed.get::<ActivePiece>(piece).exclusive, is_requested.then_some(peer));
        is_requested
    };
    assert!(gets(|requests| requests.distrusted_until = NOW));
    assert!(!gets(
        |requests| requests.distrusted_until = NOW + Duration::from_nanos(1)
    ));
}

/// A peer from which a piece is withheld is looked at again when it may have it.
#[test]
fn a_withheld_piece_is_considered_again() {
    for (wait, is_scheduled) in [(Duration::ZERO, false), (Duration::from_secs(5), true)] {
        let mut bed = bed();
        let peer = bed.peer();
        *bed.get_mut::<PeerPieces>(peer) = PeerPieces::none(3);
        bed.get_mut::<Requests>(peer).withheld_until = NOW + wait;
        refill(&mut bed, peer);
        let at = bed.world.resource::<Deadlines<Resume>>().next();
        assert_eq!(at, is_scheduled.then_some(NOW + wait));
    }
}

/// Once no piece is left to begin, starved peers get requests for blocks that others owe.
#[test]
fn the_endgame_calls_the_peers_that_wait() {
    let mut bed = bed();
    let [waits, begins] = [bed.peer(), bed.peer()];
    for index in 0..2 {
        begin(&mut bed, index);
    }
    starve_of_blocks(&mut bed, waits);
    set_depth(&mut bed, 1);
    bed.get_mut::<PeerPieces>(begins).remove(0);
    bed.get_mut::<PeerPieces>(begins).remove(1);
    assert_eq!(refill(&mut bed, begins), [2]);
    bed.run(refill::recall_starved);
    assert!(is_listed(&mut bed, waits));
}

/// One block that another peer owes is requested from a peer of unknown speed, as a probe.
#[test]
fn an_unknown_peer_is_probed_in_the_endgame() {
    for has_answered in [false, true] {
        let mut bed = bed();
        let [slow, other] = [bed.peer(), bed.peer()];
        let pieces = [0, 1, 2].map(|index| begin(&mut bed, index));
        for piece in pieces {
            for block in 0..2 {
                bed.request(slow, piece, block);
            }
        }
        bed.get_mut::<ActivePieces>(bed.torrent).open.clear();
        let long_ago = Timestamp::ZERO;
        for piece in pieces {
            let mut active = bed.get_mut::<ActivePiece>(piece);
            active.blocks.iter_mut().for_each(|slot| slot.requested_at = long_ago);
        }
        if has_answered {
            let pending = *bed.get::<Requests>(slow).pending().front().unwrap();
            bed.get_mut::<Requests>(other).record_block(NOW, &pending);
        }
        let requested = refill(&mut bed, other);
        assert_eq!(requested.len(), 1, "a block is earned by a block");
        let is_late = bed.get::<Requests>(other).pending()[0].is_late;
        assert_eq!(is_late, !has_answered);
        let slots = pieces.map(|piece| bed.get::<ActivePiece>(piece));
        let mut slots = slots.iter().flat_map(|piece| &piece.blocks);
        let is_in = |slot: &BlockSlot| {
            if has_answered {
                slot.requested_from.contains(&other)
            } else {
                slot.late.contains(&other)
            }
        };
        assert!(slots.any(is_in));
    }
}

/// Pieces of a stopping torrent end after the phase in which those being written finish.
#[test]
fn a_stop_drops_pieces_after_they_had_time_to_finish() {
    for (phase, count) in [
        (StopPhase::HaltDownloads, 1),
        (StopPhase::DisconnectPeers, 0),
        (StopPhase::WriteSession, 0),
    ] {
        let mut bed = bed();
        begin(&mut bed, 0);
        change(&mut bed, Lifecycle::Stopping { phase });
        assert_eq!(bed.get::<ActivePieces>(bed.torrent).all.len(), count, "{phase:?}");
    }
}

fn expire(bed: &mut Bed, peer: Entity) {
    let mut requests = std::mem::take(&mut *bed.get_mut::<Requests>(peer));
    bed.world
        .run_system_once(move |mut timers: PeerTimers| {
            timers.watch(peer, &mut requests, 0);
            std::mem::take(&mut requests)
        })
        .map(|requests| *bed.get_mut::<Requests>(peer) = requests)
        .unwrap();
    let at = bed.world.resource::<Deadlines<LateCheck>>().next().expect("a deadline");
    bed.world.resource_mut::<Clock>().advance_to(at);
    bed.run(expire_requests);
}

/// Fault 33.
#[test]
fn a_silent_peer_gives_its_blocks_to_others_and_is_snubbed_in_time() {
    let mut bed = bed();
    let [peer, other] = [bed.peer(), bed.peer()];
    let piece = begin(&mut bed, 0);
    let request = bed.request(peer, piece, 0);
    bed.get_mut::<ActivePieces>(bed.torrent).open.clear();
    starve_of_blocks(&mut bed, other);
    expire(&mut bed, peer);
    assert_eq!(bed.get::<Requests>(peer).late_count(), 1);
    assert!(is_listed(&mut bed, peer), "it is asked for one more, as a test");
    assert!(bed.get::<ActivePiece>(piece).blocks[0].is_free());
    assert!(bed.get::<ActivePieces>(bed.torrent).open.contains(&0));
    assert!(!bed.get::<PeerState>(peer).snubbed, "not yet");
    let resumes = bed.world.resource::<Deadlines<Resume>>().next();
    assert_eq!(resumes, Some(bed.get::<Requests>(peer).withheld_until));
    bed.run(refill::recall_starved);
    assert!(is_listed(&mut bed, other));
    // The peer still owes the block.
    let snub = bed.world.resource::<Settings>().requests.snub_s;
    bed.request(peer, piece, 1);
    bed.world
        .resource_mut::<Clock>()
        .advance_to(NOW + Duration::from_secs(snub));
    bed.get_mut::<Requests>(peer).has_deadline = false;
    expire(&mut bed, peer);
    assert!(bed.get::<PeerState>(peer).snubbed);
    assert!(
        bed.get::<Requests>(peer)
            .pending()
            .iter()
            .any(|pending| pending.request == request)
    );
}

#[test]
fn a_piece_is_taken_from_a_slow_exclusive_sender() {
    for is_full in [false, true] {
        let mut bed = bed();
        let peer = bed.peer();
        let piece = begin_alone(&mut bed, peer);
        let request = bed.get::<ActivePiece>(piece).request(1);
        if is_full {
            bed.get_mut::<ActivePiece>(piece)
                .receive(1, Some(peer), Default::default());
            bed.get_mut::<Requests>(peer).answer(request);
        }
        bed.world.resource_mut::<Supply>().overtaken.push(piece);
        bed.run(withdraw_overtaken);
        assert!(bed.has_sent(peer, &[Message::Cancel(request)][..usize::from(!is_full)]));
        assert_eq!(wasted(&mut bed), if is_full { 0 } else { BLOCK });
        assert_eq!(bed.get::<ActivePiece>(piece).exclusive.is_some(), is_full);
    }
}

/// The functions that the other tests call run in the tick, where memory is short or a sender is slow.
#[test]
fn a_tick_evicts_and_withdraws() {
    let mut bed = bed();
    bed.world.init_resource::<Messages<LifecycleChanged>>();
    bed.world.init_resource::<Messages<WantedChanged>>();
    let peer = bed.peer();
    let alone = begin(&mut bed, 1);
    bed.get_mut::<ActivePiece>(alone).exclusive = Some(peer);
    bed.world.resource_mut::<Supply>().overtaken.push(alone);
    bed.world.init_resource::<Messages<ChokeReceived>>();
    bed.world.init_resource::<Messages<RejectReceived>>();
    bed.world.init_resource::<Messages<AllowedFastReceived>>();
    bed.world.init_resource::<Messages<SuggestReceived>>();
    bed.world.init_resource::<Messages<PeerDisconnected>>();
    bed.world.run_schedule(Tick);
    assert_eq!(bed.get::<ActivePiece>(alone).exclusive, None);
    let idle = starve(&mut bed, peer);
    bed.world.run_schedule(Tick);
    assert!(bed.world.get_entity(idle).is_err());
    for piece in [0, 1] {
        bed.world.write_message(AllowedFastReceived { peer, piece });
        bed.world.run_schedule(Tick);
    }
    bed.world.write_message(SuggestReceived { peer, piece: 1 });
    bed.world.run_schedule(Tick);
    let requests: &Requests = bed.get(peer);
    assert_eq!((&requests.allowed_fast[..], requests.suggested.len()), (&[0, 1][..], 1));
    bed.world.resource_mut::<DroppedRequests>().0.push((peer, 2));
    bed.world.run_schedule(Tick);
    assert!(bed.world.resource::<DroppedRequests>().0.is_empty());
}

/// Memory that becomes free is offered to the peers that wait for it.
#[test]
fn a_dropped_piece_makes_room_for_those_that_wait() {
    let mut bed = bed();
    let peer = bed.peer();
    let piece = begin(&mut bed, 0);
    starve_of_memory(&mut bed, peer);
    bed.world.resource_mut::<Supply>().put_back(piece);
    bed.run(flight::put_back_dropped);
    assert!(bed.get::<Picker>(bed.torrent).order.is_pickable(0));
    bed.run(refill::recall_starved);
    assert!(is_listed(&mut bed, peer) && !bed.get::<Requests>(peer).starved.is_listed());
}

/// Slow peers share pieces with others; fast ones begin their own.
#[test]
fn a_peer_too_slow_for_a_piece_shares_it() {
    for (bytes, is_shared) in [(0u32, true), (1_500, true), (1_700, false), (20_000, false)] {
        let mut bed = bed();
        let [other, peer] = [bed.peer(), bed.peer()];
        let piece = begin(&mut bed, 1);
        bed.request(other, piece, 0);
        set_depth(&mut bed, 1);
        let mut rates = bed.get_mut::<ecs_torrent_components::peer::PeerRates>(peer);
        for tenth in (0..200).rev() {
            let at = NOW.as_nanos() - tenth * 100_000_000;
            rates.download.add(Timestamp::from_nanos(at), u64::from(bytes) / 10);
        }
        let rate = rates.download.at(NOW);
        assert_eq!(rate * 20 < 32768, is_shared, "{rate}");
        assert_eq!(refill(&mut bed, peer)[0] == 1, is_shared, "{rate}");
        let is_open = bed.get::<ActivePieces>(bed.torrent).open.contains(&1);
        assert_eq!(is_open, !is_shared, "its second block was free");
    }
}

#[test]
fn nothing_runs_while_peers_say_nothing() {
    let mut bed = bed();
    bed.world.init_resource::<Messages<ChokeReceived>>();
    bed.world.init_resource::<Messages<RejectReceived>>();
    bed.world.init_resource::<Messages<AllowedFastReceived>>();
    bed.world.init_resource::<Messages<SuggestReceived>>();
    assert!(!bed.holds(has_changes));
    let peer = bed.peer();
    bed.world.resource_mut::<DroppedRequests>().0.push((peer, 0));
    assert!(bed.holds(has_changes));
}

/// A peer that finds no memory waits for it, listed once.
#[test]
fn a_peer_without_memory_for_a_piece_waits_for_it() {
    let mut bed = bed();
    let peer = bed.peer();
    begin(&mut bed, 0);
    *bed.get_mut::<PeerPieces>(peer) = PeerPieces::none(3);
    bed.get_mut::<PeerPieces>(peer).insert(1);
    bed.world.resource_mut::<Settings>().requests.piece_memory_bytes = 2 * BLOCK;
    for _ in 0..2 {
        assert_eq!(refill(&mut bed, peer), Vec::<u32>::new());
        let supply = bed.world.resource::<Supply>();
        assert_eq!((supply.starved.front(), supply.wanted_bytes), (Some(peer), 2 * BLOCK));
    }
    assert!(bed.get::<Requests>(peer).starved.is_listed());
}
