//! Tests of the table of addresses.

use super::*;

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 6881))
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::ZERO + Duration::from_secs(seconds)
}

fn retry(is_failure: bool) -> Retry {
    Retry {
        is_failure,
        backoff: Duration::from_secs(10),
        max_backoff: Duration::from_secs(25),
        max_user_backoff: Duration::from_secs(15),
        max_failures: 4,
    }
}

fn candidates(priorities: &[u32]) -> Candidates {
    let mut candidates = Candidates::default();
    for (last, priority) in (1..).zip(priorities) {
        assert!(candidates.add(address(last), CandidateSource::TRACKER, *priority, 10));
    }
    candidates
}

#[test]
fn a_redundant_address_waits_without_a_failure_until_it_is_recalled() {
    let mut candidates = candidates(&[5, 9]);
    let taken = candidates.take_best(at(0)).unwrap();
    candidates.set_redundant(taken);
    candidates.set_redundant(address(1));
    assert_eq!(
        candidates.take_best(at(999)),
        Some(address(1)),
        "an idle address stays ready"
    );
    assert!(!candidates.add(taken, CandidateSource::TRACKER, 9, 10), "known");
    assert_eq!(candidates.next_ready(at(999)), None);
    assert_eq!((candidates.len(), candidates.idle_count()), (2, 0));
    assert_eq!(candidates.best(9), [address(1), taken]);
    candidates.recall_redundant();
    assert_eq!(candidates.take_best(at(0)), Some(taken));
    // The first failure waits the shortest time.
    candidates.release(taken, at(0), retry(true));
    assert_eq!(candidates.next_ready(at(0)), Some(at(10)));
}

#[test]
fn a_redundant_address_makes_room_unless_a_user_named_it() {
    let mut candidates = candidates(&[5, 9]);
    let taken = candidates.take_best(at(0)).unwrap();
    candidates.set_redundant(taken);
    assert!(candidates.add(address(3), CandidateSource::TRACKER, 1, 2));
    assert_eq!(candidates.get(taken), None);
    assert!(candidates.add(address(4), CandidateSource::USER, 1, 3));
    assert_eq!(candidates.take_best(at(0)), Some(address(4)));
    candidates.set_redundant(address(4));
    assert_eq!(candidates.idle_user_count(), 0, "it keeps no slot");
    assert!(!candidates.add(address(5), CandidateSource::TRACKER, 1, 3));
}

fn set(sources: &[CandidateSource]) -> SourceSet {
    sources.iter().copied().collect()
}

/// BEP 27: an address that a tracker reports too stays.
#[test]
fn an_address_stays_if_one_of_its_sources_is_allowed() {
    use CandidateSource as Source;
    let mut candidates = Candidates::default();
    for (last, sources) in [
        (1, &[Source::DHT, Source::TRACKER][..]),
        (2, &[Source::USER, Source::PEER_EXCHANGE]),
        (3, &[Source::DHT, Source::INCOMING]),
        (4, &[Source::INCOMING]),
        (5, &[Source::MAGNET]),
    ] {
        for source in sources {
            candidates.add(address(last), *source, 0, 10);
        }
        assert_eq!(candidates.get(address(last)).unwrap().0, set(sources));
    }
    let forgotten = candidates.retain_sources(CandidateSources::default().serving(true));
    assert_eq!(forgotten, [address(3), address(5)].into());
    assert_eq!(candidates.get(address(1)).unwrap().0, set(&[Source::TRACKER]));
    assert!(candidates.is_user_named(address(2)) && candidates.len() == 3);
    assert_eq!(candidates.retain_sources(SourceSet::default()).len(), 3);
}

#[test]
fn sources_are_counted_with_what_became_of_their_addresses() {
    use CandidateSource as Source;
    let mut candidates = candidates(&[1, 2]);
    candidates.add(address(2), Source::DHT, 2, 10);
    candidates.add(address(2), Source::DHT, 2, 10);
    let taken = candidates.take_best(at(0)).unwrap();
    assert_eq!(taken, address(2));
    candidates.forgive(taken);
    candidates.release(taken, at(0), retry(false));
    candidates.add(address(2), Source::PEER_EXCHANGE, 2, 10);
    candidates.add(address(7), Source::PEER_EXCHANGE, 2, 2);
    candidates.take_best(at(100));
    candidates.forgive(taken);
    let counts = |found, refused, connected| SourceCounts {
        found,
        refused,
        connected,
    };
    let expected = [
        (Source::TRACKER, counts(2, 0, 1)),
        (Source::PEER_EXCHANGE, counts(1, 1, 1)),
        (Source::DHT, counts(1, 0, 1)),
    ];
    assert!(candidates.counts().eq(expected));
}

/// Adds an address that a peer at `by` names.
fn add_named(candidates: &mut Candidates, by: u8, last: u8) -> bool {
    let by = Some([9, 9, 9, by].into());
    candidates.add_from(address(last), CandidateSource::PEER_EXCHANGE, by, at(0), 100, 1000)
}

/// Addresses that nobody has confirmed or named again for ten minutes keep no newer ones out.
#[test]
fn old_unconfirmed_addresses_make_room() {
    let mut candidates = Candidates::default();
    let add = |candidates: &mut Candidates, last, now| {
        let by = Some([9, 9, 9, last].into());
        candidates.add_from(address(last), CandidateSource::PEER_EXCHANGE, by, at(now), 100, 4)
    };
    assert!(add(&mut candidates, 3, 0));
    candidates.take_best(at(0));
    candidates.forgive(address(3));
    candidates.release(address(3), at(0), retry(false));
    assert!(add(&mut candidates, 1, 0) && add(&mut candidates, 2, 0));
    candidates.add(address(4), CandidateSource::TRACKER, 0, 4);
    assert!(!add(&mut candidates, 2, 500), "it is named again");
    assert!(!add(&mut candidates, 10, 599), "all are recent");
    assert!(add(&mut candidates, 10, 600));
    let addresses = |candidates: &Candidates| candidates.iter().collect::<Vec<_>>();
    assert_eq!(
        addresses(&candidates),
        [2, 3, 4, 10].map(address),
        "the oldest made room"
    );
    assert!(!add(&mut candidates, 11, 1099) && add(&mut candidates, 11, 1100));
    assert_eq!(addresses(&candidates), [3, 4, 10, 11].map(address));
    assert!(add(&mut candidates, 12, 1200) && !add(&mut candidates, 13, 1200));
    assert_eq!(
        addresses(&candidates),
        [3, 4, 11, 12].map(address),
        "one has answered, one is a tracker's"
    );
}

#[test]
fn addresses_likelier_to_answer_are_dialed_first() {
    use CandidateSource as Source;
    let mut candidates = candidates(&[90, 80]);
    candidates.add(address(7), Source::DHT, 10, 99);
    candidates.add(address(8), Source::DHT, 20, 99);
    candidates.add(address(7), Source::TRACKER, 10, 99);
    candidates.add(address(9), Source::MAGNET, 5, 99);
    candidates.add(address(10), Source::LOCAL_DISCOVERY, 1, 99);
    candidates.add(address(8), Source::INCOMING, 20, 99);
    assert_eq!(candidates.take_best(at(0)), Some(address(7)), "two sources name it");
    candidates.forgive(address(7));
    candidates.release(address(7), at(0), retry(false));
    candidates.wake(at(10));
    let order: Vec<_> = std::iter::from_fn(|| candidates.take_best(at(10))).collect();
    assert_eq!(order, [7, 9, 10, 1, 2, 8].map(address), "it has answered before");
}

/// The addresses of a liar do not keep those of others waiting.
#[test]
fn addresses_of_a_host_whose_addresses_fail_come_last() {
    let mut candidates = Candidates::default();
    assert!((0..50).all(|last| add_named(&mut candidates, 1, last)));
    assert!(!add_named(&mut candidates, 1, 99), "it has named enough");
    for _ in 0..8 {
        let taken = candidates.take_best(at(0)).unwrap();
        candidates.release(taken, at(0), retry(true));
    }
    let taken = candidates.take_best(at(0)).unwrap();
    candidates.remove(taken);
    assert!(add_named(&mut candidates, 1, 99) && add_named(&mut candidates, 2, 200));
    candidates.add(address(201), CandidateSource::TRACKER, 0, 1000);
    let counts: BTreeMap<_, _> = candidates.counts().collect();
    assert_eq!(counts[&CandidateSource::PEER_EXCHANGE].refused, 1);
    // Addresses that are ready already keep their places, and have a higher priority than the tracker's.
    let order: Vec<_> = std::iter::from_fn(|| candidates.take_best(at(0))).collect();
    let position = |last| order.iter().position(|taken| *taken == address(last)).unwrap();
    assert!(position(200) < position(99) && position(201) < position(99));
}

#[test]
fn a_host_whose_addresses_answer_may_name_more() {
    let mut candidates = Candidates::default();
    for last in 0..200 {
        assert!(add_named(&mut candidates, 1, last), "{last}");
        let taken = candidates.take_best(at(0)).unwrap();
        candidates.forgive(taken);
    }
}

#[test]
fn unconfirmed_candidates_are_forgotten_soon() {
    for (source, attempts) in [(CandidateSource::DHT, 3), (CandidateSource::TRACKER, 4)] {
        let mut candidates = Candidates::default();
        candidates.add(address(1), source, 0, 10);
        let mut count = 0;
        while let Some(taken) = candidates.take_best(at(count * 100)) {
            candidates.release(taken, at(count * 100), retry(true));
            count += 1;
        }
        assert_eq!(count, attempts);
    }
}

#[test]
fn our_own_address_is_refused_once_it_is_known() {
    let mut candidates = candidates(&[1]);
    candidates.set_own(address(1));
    assert!(candidates.is_empty() && !candidates.add(address(1), CandidateSource::TRACKER, 1, 10));
    assert!(
        candidates.add(address(1), CandidateSource::USER, 1, 10),
        "a user may insist"
    );
}

#[test]
fn a_complete_torrent_defers_the_addresses_of_seeds() {
    let mut candidates = candidates(&[1]);
    candidates.defer(address(1));
    assert_eq!(candidates.next_ready(at(0)), None);
    candidates.recall_redundant();
    assert_eq!(candidates.next_ready(at(0)), Some(at(0)));
}

#[test]
fn addresses_with_the_same_ip_are_counted_up_to_a_limit() {
    let mut candidates = candidates(&[1, 2]);
    for port in [1, 2, u16::MAX] {
        candidates.add(SocketAddr::from(([10, 0, 0, 1], port)), CandidateSource::DHT, 0, 10);
    }
    assert_eq!(candidates.count_of_ip([10, 0, 0, 1].into(), 9), 4);
    assert_eq!(candidates.count_of_ip([10, 0, 0, 1].into(), 3), 3);
    assert_eq!(candidates.count_of_ip([10, 0, 0, 3].into(), 9), 0);
}

#[test]
fn the_highest_priority_is_dialed_first_and_once() {
    let mut candidates = candidates(&[5, 9, 7]);
    assert!(!candidates.add(address(1), CandidateSource::TRACKER, 99, 10), "known");
    let order: Vec<_> = std::iter::from_fn(|| candidates.take_best(at(0))).collect();
    assert_eq!(order, [address(2), address(3), address(1)]);
    assert_eq!(candidates.next_ready(at(0)), None);
}

#[test]
fn failures_wait_longer_and_longer_and_are_forgotten() {
    let mut candidates = candidates(&[1]);
    let mut now = at(0);
    let mut waits = Vec::new();
    while let Some(address) = candidates.take_best(now) {
        candidates.release(address, now, retry(true));
        assert_eq!(candidates.take_best(now), None, "not at once");
        let Some(next) = candidates.next_ready(now) else { break };
        waits.push(next.since(now).as_secs());
        now = next;
    }
    assert_eq!(waits, [10, 20, 25]);
    assert!(candidates.is_empty());
}

#[test]
fn success_resets_the_backoff() {
    let mut candidates = candidates(&[1]);
    let first = candidates.take_best(at(0)).unwrap();
    candidates.release(first, at(0), retry(true));
    candidates.take_best(at(10)).unwrap();
    candidates.forgive(first);
    candidates.release(first, at(20), retry(true));
    assert_eq!(candidates.next_ready(at(20)), Some(at(30)));
}

#[test]
fn a_users_address_is_never_forgotten() {
    let mut candidates = Candidates::default();
    candidates.add(address(1), CandidateSource::USER, 0, 10);
    for round in 0..20 {
        candidates.take_best(at(round * 100)).unwrap();
        candidates.release(address(1), at(round * 100), retry(true));
    }
    assert_eq!(candidates.len(), 1);
}

#[test]
fn flags_of_several_sources_add_up() {
    let mut candidates = candidates(&[1]);
    let found = |flags| FoundPeer {
        address: address(1),
        flags,
    };
    candidates.take_best(at(0));
    candidates.add(found(CandidateFlags::SEED), CandidateSource::PEER_EXCHANGE, 1, 10);
    candidates.add(found(CandidateFlags::UTP), CandidateSource::DHT, 1, 10);
    let both = CandidateFlags::SEED | CandidateFlags::UTP;
    let sources = [
        CandidateSource::TRACKER,
        CandidateSource::PEER_EXCHANGE,
        CandidateSource::DHT,
    ];
    assert_eq!(candidates.get(address(1)), Some((set(&sources), both)));
    assert_eq!(candidates.get(address(2)), None);
}

#[test]
fn the_table_is_bounded_and_prefers_the_unfailed() {
    let mut candidates = Candidates::default();
    assert!(candidates.add(address(1), CandidateSource::TRACKER, 1, 2));
    assert!(candidates.add(address(2), CandidateSource::TRACKER, 1, 2));
    assert!(!candidates.add(address(3), CandidateSource::TRACKER, 1, 2));
    let failed = candidates.take_best(at(0)).unwrap();
    candidates.release(failed, at(0), retry(true));
    assert!(candidates.add(address(3), CandidateSource::TRACKER, 1, 2));
    assert!(!candidates.iter().any(|address| address == failed));
}

#[test]
fn undialable_addresses_are_not_taken() {
    let mut candidates = Candidates::default();
    for bad in ["1.2.3.4:0", "0.0.0.0:1", "[::]:1", "224.0.0.1:5"] {
        assert!(
            !candidates.add(bad.parse::<SocketAddr>().unwrap(), CandidateSource::TRACKER, 1, 10),
            "{bad}"
        );
    }
}

#[test]
fn an_address_that_connected_to_us_is_not_dialed() {
    let mut candidates = candidates(&[1, 2]);
    assert!(candidates.claim(address(2), 10));
    assert!(!candidates.claim(address(2), 10), "it is claimed already");
    assert_eq!(candidates.take_best(at(0)), Some(address(1)));
    assert!(!candidates.claim(address(1), 10), "it is being dialed");
    candidates.release(address(2), at(0), retry(false));
    assert_eq!(candidates.next_ready(at(0)), Some(at(10)));
    assert!(!candidates.remove_claimed(address(2)), "a tracker knows of it");
    candidates.remove(address(2));
    assert_eq!(candidates.next_ready(at(0)), None);
    assert!(candidates.claim(address(3), 10) && candidates.remove_claimed(address(3)));
}

/// A peer behind the same gateway as another one can name the other one's port.
#[test]
fn a_user_named_address_cannot_be_claimed() {
    let mut candidates = candidates(&[9]);
    candidates.add(address(5), CandidateSource::USER, 0, 10);
    assert!(!candidates.claim(address(5), 10));
    assert_eq!(candidates.take_best(at(0)), Some(address(5)));
}

#[test]
fn an_address_that_a_user_names_comes_first_and_is_tried_again_soon() {
    let mut candidates = candidates(&[7, 9]);
    candidates.take_best(at(0)).unwrap();
    candidates.release(address(2), at(0), retry(true));
    assert!(!candidates.is_next_user_named());
    candidates.add(address(2), CandidateSource::USER, 0, 10);
    assert!(candidates.is_next_user_named(), "however often it has failed");
    assert_eq!((candidates.idle_user_count(), candidates.idle_count()), (1, 2));
    assert_eq!(candidates.take_best(at(0)), Some(address(2)));
    assert_eq!(candidates.idle_user_count(), 0);
    for _ in 0..9 {
        candidates.release(address(2), at(0), retry(true));
        candidates.occupy(address(2));
    }
    candidates.release(address(2), at(0), retry(true));
    candidates.wake(at(14));
    assert!(!candidates.is_next_user_named());
    candidates.wake(at(15));
    assert!(candidates.is_next_user_named());
}

#[test]
fn a_full_table_has_room_for_what_a_user_names() {
    let mut candidates = Candidates::default();
    for last in 1..=5 {
        candidates.add(address(last), CandidateSource::TRACKER, 1, 5);
    }
    assert!(candidates.add(address(9), CandidateSource::USER, 0, 5) && candidates.len() == 5);
    assert_eq!(candidates.take_best(at(0)), Some(address(9)));
}

/// A peer that is connected at one of its addresses is not dialed at the other one until that connection ends.
#[test]
fn a_further_address_of_a_connected_peer_waits_for_the_end_of_the_connection() {
    let both = || {
        let mut candidates = candidates(&[5, 9]);
        let [one, other] = [(); 2].map(|()| candidates.take_best(at(0)).expect("two addresses"));
        assert!(candidates.set_elsewhere(other, one));
        assert_eq!((candidates.take_best(at(1_000_000)), candidates.len()), (None, 2));
        // It is listed again.
        candidates.add(other, CandidateSource::DHT, 0, 10);
        assert_eq!(candidates.take_best(at(1_000_000)), None);
        (candidates, one, other)
    };
    let (mut candidates, one, other) = both();
    candidates.release(one, at(0), retry(false));
    assert_eq!(candidates.take_best(at(1)), Some(other));
    let (mut candidates, one, other) = both();
    candidates.remove(one);
    assert_eq!(candidates.take_best(at(1)), Some(other));
    let (mut candidates, one, _) = both();
    candidates.set_redundant(one);
    assert_eq!(candidates.take_best(at(1)), None);
    candidates.recall_redundant();
    assert_eq!(candidates.idle_count(), 2);
    // Of two addresses, one has to be connected.
    let (mut candidates, one, other) = both();
    assert!(!candidates.set_elsewhere(one, other) && !candidates.set_elsewhere(one, one));
}
