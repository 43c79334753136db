//! Tests of when rounds run, of what they see of the peers, and of what follows from their decisions.

use bevy_ecs::system::SystemState;
use ecs_torrent_protocol::geometry::BlockRequest;

use super::width::IDLE_AFTER;
use super::*;
use crate::testing::{Bed, NOW};

const SECOND: Duration = Duration::from_secs(1);

fn bed() -> Bed {
    let mut bed = Bed::new(ChokingPlugin);
    bed.world.init_resource::<EmptiedUploads>();
    bed.world.entity_mut(bed.torrent).insert(Choker::default());
    bed
}

fn before(time: Duration) -> Timestamp {
    Timestamp::from_nanos(NOW.as_nanos() - time.as_nanos() as u64)
}

fn next_round(bed: &mut Bed) -> Option<Timestamp> {
    bed.get_mut::<Choker>(bed.torrent).next_round.take()
}

/// A free slot is filled at once; a peer that has to wait changes nothing before the next round.
#[test]
fn interest_matters_at_once_where_it_changes_a_slot() {
    let mut bed = bed();
    let interval = seconds(bed.world.resource::<Settings>().uploads.choke_interval_s);
    let peer = bed.peer();
    for (is_interested, is_full, am_choking, is_urgent) in [
        (true, false, true, true),
        (true, true, true, false),
        (true, true, false, false),
        (false, true, false, true),
        (false, false, false, true),
        (false, false, true, false),
    ] {
        bed.get_mut::<Choker>(bed.torrent).is_full = is_full;
        bed.get_mut::<PeerState>(peer).am_choking = am_choking;
        bed.run_after(InterestReceived { peer, is_interested }, handle_interest);
        let expected = if is_urgent { NOW } else { NOW + interval };
        assert_eq!(
            next_round(&mut bed),
            Some(expected),
            "{is_interested} {is_full} {am_choking}"
        );
        assert_eq!(bed.get::<PeerState>(peer).peer_interested, is_interested);
    }
    bed.get_mut::<Choker>(bed.torrent).is_full = false;
    bed.get_mut::<Choker>(bed.torrent).filled = NOW;
    let is_interested = true;
    bed.run_after(InterestReceived { peer, is_interested }, handle_interest);
    assert_eq!(next_round(&mut bed), Some(NOW + FILL_PAUSE), "slots were just filled");
}

#[test]
fn the_earliest_time_of_a_round_counts() {
    let torrent = Entity::PLACEHOLDER;
    let mut choker = Choker::default();
    let mut rounds = Deadlines::default();
    for (due, count) in [(5, 1), (9, 1), (5, 1), (3, 2)] {
        choker.look_at(Timestamp::ZERO + SECOND * due, torrent, &mut rounds);
        assert_eq!(rounds.len(), count);
    }
    assert_eq!(choker.next_round, Some(Timestamp::ZERO + SECOND * 3));
}

#[test]
fn a_peer_that_requests_nothing_more_gives_its_slot_to_a_waiting_one() {
    let mut bed = bed();
    let peer = bed.peer();
    let spent = SuperSeedingTurn {
        is_spent: true,
        awaits_pieces: false,
    };
    for (has_waiting, turn, expected) in [
        (false, None, None),
        (true, None, Some(NOW + IDLE_AFTER)),
        (true, Some(SuperSeedingTurn::default()), Some(NOW + IDLE_AFTER)),
        (true, Some(spent), Some(NOW)),
    ] {
        bed.get_mut::<Choker>(bed.torrent).has_waiting = has_waiting;
        if let Some(turn) = turn {
            bed.world.entity_mut(bed.torrent).insert(SuperSeeding::default());
            bed.world.entity_mut(peer).insert(turn);
        }
        bed.world.resource_mut::<EmptiedUploads>().0.push(peer);
        bed.run(handle_emptied);
        assert_eq!(next_round(&mut bed), expected);
    }
}

/// Describes a peer, for a round in the given phase.
fn look(bed: &mut Bed, phase: Option<SuperSeedingPhase>) -> Contender {
    let mut state = SystemState::<(RoundParams, Query<&TorrentPeers>)>::new(&mut bed.world);
    let (params, torrents) = state.get_mut(&mut bed.world).unwrap();
    let contenders = params.gather(torrents.get(bed.torrent).ok(), phase, bed.geometry.piece_length());
    assert_eq!(contenders.len(), 1);
    contenders[0]
}

const REQUEST: BlockRequest = BlockRequest {
    piece: 0,
    begin: 0,
    len: 1,
};

#[test]
fn an_unchoked_peer_without_requests_is_idle_after_a_while() {
    let mut bed = bed();
    let peer = bed.peer();
    let moment = Duration::from_nanos(1);
    let mut idle_since = |am_choking, has_requests: bool, emptied, choke_changed| {
        let mut state = bed.get_mut::<PeerState>(peer);
        (state.am_choking, state.choke_changed) = (am_choking, choke_changed);
        let mut uploads = bed.get_mut::<UploadQueue>(peer);
        uploads.waiting = has_requests.then_some(REQUEST).into_iter().collect();
        uploads.emptied = emptied;
        let contender = look(&mut bed, None);
        (contender.idle_since, contender.may_begin)
    };
    let long_ago = before(SECOND * 100);
    let just_idle = before(IDLE_AFTER);
    assert_eq!(idle_since(false, false, just_idle, long_ago), (Some(just_idle), false));
    assert_eq!(idle_since(false, false, just_idle + moment, long_ago), (None, false));
    assert_eq!(idle_since(false, false, long_ago, just_idle + moment).0, None);
    assert_eq!(idle_since(true, false, just_idle, long_ago).0, None);
    assert_eq!(idle_since(false, true, just_idle, long_ago).0, None);
    // A peer that was just unchoked has time for its first request.
    let begun = before(BEGIN_WITHIN) + moment;
    assert!(idle_since(false, false, long_ago, begun).1);
    assert!(idle_since(false, false, begun, begun).1);
    assert!(
        !idle_since(false, false, begun + moment, begun).1,
        "it has requested something"
    );
    assert!(!idle_since(false, false, long_ago, before(BEGIN_WITHIN)).1);
}

/// A peer may still be receiving the blocks that it has requested.
#[test]
fn a_peer_in_the_middle_of_a_piece_is_idle_later() {
    let mut bed = bed();
    let peer = bed.peer();
    bed.get_mut::<PeerState>(peer).am_choking = false;
    bed.get_mut::<PeerState>(peer).choke_changed = before(SECOND * 100);
    let piece_length = bed.geometry.piece_length();
    let longest = patience(true, piece_length);
    assert!(longest > IDLE_AFTER);
    for (since, is_mid_piece, is_idle) in [
        (IDLE_AFTER, false, true),
        (IDLE_AFTER, true, false),
        (longest, true, true),
    ] {
        let mut uploads = bed.get_mut::<UploadQueue>(peer);
        (uploads.emptied, uploads.is_mid_piece) = (before(since), is_mid_piece);
        let contender = look(&mut bed, None);
        assert_eq!(contender.idle_since.is_some(), is_idle, "{since:?} {is_mid_piece}");
        assert_eq!(contender.idle_at, (!is_idle).then(|| before(since) + longest));
    }
}

#[test]
fn a_turn_ends_with_its_pieces_or_its_time() {
    let finishing = SuperSeedingPhase::Finishing { until: NOW + SECOND };
    let spent = SuperSeedingTurn {
        is_spent: true,
        awaits_pieces: true,
    };
    let waits = SuperSeedingTurn {
        is_spent: false,
        awaits_pieces: true,
    };
    let done = SuperSeedingTurn::default();
    for (phase, turn, has_requests, is_long, is_over) in [
        (SuperSeedingPhase::Assigning, spent, false, false, true),
        (SuperSeedingPhase::Assigning, spent, true, false, false),
        (SuperSeedingPhase::Assigning, waits, false, false, false),
        (SuperSeedingPhase::Assigning, waits, true, true, true),
        (finishing, done, true, false, true),
        (finishing, waits, false, false, false),
        (finishing, waits, false, true, true),
    ] {
        let mut bed = bed();
        let peer = bed.peer();
        bed.world.entity_mut(peer).insert(turn);
        let length = seconds(bed.world.resource::<Settings>().uploads.seeding_turn_s);
        let moment = Duration::from_nanos(u64::from(!is_long));
        bed.get_mut::<PeerState>(peer).choke_changed = before(length) + moment;
        bed.get_mut::<UploadQueue>(peer).waiting = has_requests.then_some(REQUEST).into_iter().collect();
        assert_eq!(look(&mut bed, Some(phase)).has_had_turn, is_over, "{phase:?} {turn:?}");
    }
}

#[test]
fn a_download_rewards_and_a_seed_takes_turns() {
    let limits = UploadSettings::default();
    assert_eq!(goal(&Lifecycle::Downloading, &limits), Goal::Download);
    let turn = seconds(limits.seeding_turn_s);
    assert_eq!(goal(&Lifecycle::Seeding, &limits), Goal::Seed { turn });
}

/// Runs a round with one slot.
fn run_round(bed: &mut Bed) {
    let limits = &mut bed.world.resource_mut::<Settings>().uploads;
    (limits.slots, limits.optimistic_slots) = (1, 0);
    *bed.get_mut::<Lifecycle>(bed.torrent) = Lifecycle::Seeding;
    let torrent = bed.torrent;
    bed.world
        .resource_scope(|world, mut rounds: Mut<Deadlines<ChokeRound>>| {
            let mut choker = world.get_mut::<Choker>(torrent).unwrap();
            choker.next_round = None;
            choker.look_at(NOW, torrent, &mut rounds);
        });
    bed.run(run_rounds);
}

#[test]
fn a_choked_peer_loses_its_requests() {
    for is_fast in [true, false] {
        let mut bed = bed();
        let peer = bed.peer();
        bed.get_mut::<PeerState>(peer).peer_interested = false;
        bed.get_mut::<Wire>(peer).session.fast = is_fast;
        bed.get_mut::<UploadQueue>(peer).waiting.push_back(REQUEST);
        run_round(&mut bed);
        assert!(bed.get::<PeerState>(peer).am_choking);
        assert!(bed.get::<UploadQueue>(peer).waiting.is_empty());
        let messages = [Message::Choke, Message::RejectRequest(REQUEST)];
        assert!(bed.has_sent(peer, &messages[..1 + usize::from(is_fast)]));
        assert!(!bed.get::<Choker>(bed.torrent).has_waiting());
    }
}

#[test]
fn an_interested_peer_is_unchoked_and_another_one_waits() {
    let mut bed = bed();
    let peers = [bed.peer(), bed.peer()];
    for peer in peers {
        bed.get_mut::<PeerState>(peer).am_choking = true;
    }
    run_round(&mut bed);
    let is_served = peers.map(|peer| !bed.get::<PeerState>(peer).am_choking);
    assert_eq!(is_served.iter().filter(|is_served| **is_served).count(), 1);
    for (peer, is_served) in peers.into_iter().zip(is_served) {
        assert!(bed.has_sent(peer, &[Message::Unchoke][..usize::from(is_served)]));
    }
    let choker: &Choker = bed.get(bed.torrent);
    assert!(choker.has_waiting() && choker.is_contended() && choker.is_full);
}

/// The functions that the other tests call run in the tick.
#[test]
fn a_tick_handles_interest_and_emptied_queues() {
    let mut bed = bed();
    bed.world.init_resource::<Messages<InterestReceived>>();
    let peer = bed.peer();
    bed.get_mut::<Choker>(bed.torrent).has_waiting = true;
    bed.world.resource_mut::<EmptiedUploads>().0.push(peer);
    bed.world.run_schedule(Tick);
    assert_eq!(next_round(&mut bed), Some(NOW + IDLE_AFTER));
    let is_interested = true;
    bed.world.write_message(InterestReceived { peer, is_interested });
    bed.world.run_schedule(Tick);
    assert!(!bed.get::<PeerState>(peer).am_choking, "a round has run");
}
