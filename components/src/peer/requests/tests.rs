//! Tests of requests to peers.

use super::*;

fn request(begin: u32) -> BlockRequest {
    BlockRequest {
        piece: 0,
        begin,
        len: BLOCK_SIZE,
    }
}

fn pending(begin: u32) -> Pending {
    Pending {
        piece: Entity::from_raw_u32(1).unwrap(),
        block: begin / BLOCK_SIZE,
        request: request(begin),
        requested_at: Timestamp::ZERO,
        is_late: false,
    }
}

/// Fault 25: the peers read none of the blocks that were read from the disk for them.
#[test]
fn peers_that_come_one_after_the_other_leave_memory_to_others() {
    let settings = UploadSettings::default();
    let mut memory = UploadMemory::default();
    for peer in 0..20 {
        let mut uploads = UploadQueue::default();
        let mut held = 0;
        while let Some(most) = memory.room_for(&uploads, &settings) {
            let bytes = u64::from(most.max(BLOCK_SIZE));
            memory.charge(&mut uploads, bytes);
            held += bytes;
        }
        assert!(held > 0, "nothing for peer {peer}");
        assert!(held <= settings.peer_memory_bytes);
    }
    assert!(memory.used_bytes() < settings.memory_bytes);
}

#[test]
fn a_choked_peer_gets_each_block_of_few_pieces_a_few_times() {
    let mut allowed = AllowedFast::new(&[0, 7]);
    let ask = |piece, begin, len| BlockRequest { piece, begin, len };
    let mut count = |request| (0..100).filter(|_| allowed.take(request, 2)).count();
    assert_eq!(count(ask(1, 0, BLOCK_SIZE)), 0, "not allowed");
    assert_eq!(count(ask(0, 0, BLOCK_SIZE)), 2);
    assert_eq!(count(ask(7, 0, BLOCK_SIZE)), 2, "each piece by itself");
    assert_eq!(count(ask(0, BLOCK_SIZE, 1)), 2);
    assert_eq!(count(ask(0, BLOCK_SIZE + 1, 1)), 0, "parts count as blocks");
    assert_eq!(count(ask(0, 0, 4 * BLOCK_SIZE)), 0, "and so do several at once");
    assert_eq!(count(ask(0, 3 * BLOCK_SIZE - 1, 2)), 2);
    assert_eq!(count(ask(0, 2 * BLOCK_SIZE, BLOCK_SIZE)), 0);
}

/// Fault 28: the answer to a canceled request is recognized, once.
#[test]
fn late_answers_are_recognized_once() {
    let mut requests = Requests::default();
    requests.pending.extend([pending(0), pending(BLOCK_SIZE)]);
    assert_eq!(requests.cancel(request(BLOCK_SIZE)), Some(pending(BLOCK_SIZE)));
    assert_eq!(requests.answer(request(BLOCK_SIZE)), None);
    assert_eq!(requests.answer_canceled(request(BLOCK_SIZE)), Some(pending(BLOCK_SIZE)));
    assert_eq!(requests.answer_canceled(request(BLOCK_SIZE)), None);
    assert_eq!(requests.cancel_all(), [pending(0)]);
    assert_eq!(requests.answer_canceled(request(0)), Some(pending(0)));
}

/// A peer that has become fast counts as fast, although others have sent the blocks that it owed.
#[test]
fn blocks_of_canceled_requests_show_the_speed_of_a_peer() {
    let at = |millis: u64| Timestamp::ZERO + Duration::from_millis(millis);
    let mut requests = Requests::default();
    let first = pending(0);
    let asked = first.requested_at;
    requests.record_block(asked + Duration::from_secs(2), &first);
    let now = asked + Duration::from_secs(10);
    assert_eq!(requests.answer_time(now), Duration::from_secs(2));
    for number in 0..20 {
        let sent = Pending {
            requested_at: at(10_000 + number),
            ..pending(BLOCK_SIZE)
        };
        requests.add(sent);
        assert!(requests.cancel_overtaken(sent.request, sent.requested_at));
        let canceled = requests.answer_canceled(sent.request).unwrap();
        requests.record_canceled_block(canceled.requested_at + Duration::from_millis(100), &canceled);
    }
    assert!(requests.answer_time(at(20_000)) < Duration::from_millis(300));
}

#[test]
fn a_peer_has_one_timer() {
    let at = |seconds: u64| Timestamp::ZERO + Duration::from_secs(seconds);
    let mut requests = Requests::default();
    assert!(requests.schedule_resume(at(60)));
    assert!(!requests.schedule_resume(at(60)) && !requests.schedule_resume(at(61)));
    assert!(requests.schedule_resume(at(1)), "an earlier one takes its place");
    assert!(requests.resume(at(1)));
    assert!(!requests.resume(at(60)), "the timer that was replaced does nothing");
    assert!(requests.schedule_resume(at(90)));
}

#[test]
fn suggestions_are_followed_until_one_is_overdue_and_no_block_is_owed() {
    let at = |seconds: u64| Timestamp::ZERO + Duration::from_secs(seconds);
    let mut requests = Requests::default();
    requests.record_suggested_request(at(0));
    requests.expire_suggestions(at(0));
    assert!(requests.follows_suggestions());
    requests.add(pending(0));
    requests.expire_suggestions(at(5));
    assert!(requests.follows_suggestions(), "the peer owes a block");
    assert!(
        requests.mark_late(&pending(0)) && !requests.mark_late(&pending(0)),
        "late once"
    );
    requests.expire_suggestions(at(5));
    assert!(!requests.follows_suggestions());
    requests.add(pending(BLOCK_SIZE));
    requests.expire_suggestions(at(5));
    assert!(!requests.follows_suggestions(), "other requests do not bring it back");
}

#[test]
fn silent_peers_are_refilled_last() {
    let peers = [1, 2, 3].map(|id| Entity::from_raw_u32(id).unwrap());
    let mut requests: [Requests; 3] = Default::default();
    requests[0].is_silent = true;
    let mut queue = RefillQueue::default();
    for _ in 0..2 {
        peers
            .iter()
            .zip(&mut requests)
            .for_each(|(peer, requests)| queue.add(*peer, requests));
    }
    let order: Vec<Entity> = std::iter::from_fn(|| queue.pop()).collect();
    assert_eq!(order, [peers[1], peers[2], peers[0]], "each once");
    queue.add(peers[1], &mut requests[1]);
    assert_eq!(queue.pop(), None, "not unlisted");
    requests[1].unlist();
    queue.add(peers[1], &mut requests[1]);
    assert_eq!(queue.pop(), Some(peers[1]));
}

#[test]
fn slow_peers_get_a_longer_timeout() {
    let settings = RequestSettings::default();
    let at = |seconds: u64| Timestamp::ZERO + Duration::from_secs(seconds);
    let mut requests = Requests::default();
    requests.pending.push_back(pending(0));
    assert_eq!(requests.silent_since(), Some(at(0)));
    assert_eq!(requests.silence_limit(&settings), seconds(settings.silence_s));
    for number in 1..20 {
        requests.record_block(at(number * 3), &pending(0));
    }
    assert_eq!(requests.silent_since(), Some(at(57)));
    let limit = requests.silence_limit(&settings);
    assert!(limit > seconds(11) && limit < seconds(13), "{limit:?}");
    requests.record_block(at(1000), &pending(0));
    assert_eq!(requests.silence_limit(&settings), seconds(settings.block_timeout_s));
    requests.pending[0].is_late = true;
    assert_eq!(requests.silent_since(), None, "it has let its time pass");
}

#[test]
fn depth_grows_until_the_speed_does_not() {
    let settings = RequestSettings::default();
    let mut depth = QueueDepth::default();
    assert_eq!(depth.target(&settings), 16);
    let at = |millis: u64| Timestamp::ZERO + Duration::from_millis(millis);
    (0..10).for_each(|i| depth.on_block(at(i), 0, &settings));
    assert_eq!(depth.target(&settings), 26);
    depth.on_block(at(1000), 1_000_000, &settings);
    depth.on_block(at(2000), 2_000_000, &settings);
    assert_eq!(depth.target(&settings), 28, "still growing");
    depth.on_block(at(3000), 2_000_000, &settings);
    // 2 MB/s for 1.5 s are 184 blocks.
    assert_eq!(depth.target(&settings), 184);
    depth.on_block(at(4000), 1000, &settings);
    assert_eq!(depth.target(&settings), settings.min_depth);
    depth.on_block(at(5000), u64::MAX, &settings);
    assert_eq!(depth.target(&settings), settings.max_depth);
    depth.shrink(&settings);
    assert_eq!(depth.target(&settings), settings.min_depth);
}
