use proptest::prelude::*;

use super::*;
use crate::metadata::PIECE_LEN;

/// A peer of a simulated fetch.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Honest,
    /// Sends wrong bytes in pieces whose index is divisible by this number.
    Corrupts(u32),
    /// Claims another size, and sends zeros.
    Inflates(u32),
    Silent,
    Rejects,
    /// Answers one request at a time, and waits long before it does.
    Drips,
    /// Claims a size that is larger by this, and sends zeros, one piece at a time, after a long time each.
    Stalls(u32),
    /// Answers with the wrong total size.
    Contradicts,
}

fn info(len: usize) -> Bytes {
    (0..len).map(|index| (index * 31 % 251) as u8).collect()
}

fn at(millis: u64) -> Timestamp {
    Timestamp::ZERO + Duration::from_millis(millis)
}

fn part(info: &Bytes, piece: u32) -> Bytes {
    let begin = (piece * PIECE_LEN) as usize;
    info.slice(begin..begin + piece_len(info.len() as u32, piece) as usize)
}

fn fetch_of(info: &Bytes) -> Fetch<usize> {
    Fetch::new(InfoHash(sha1([&info[..]])), FetchLimits::default())
}

/// Runs a fetch against peers. Returns when it was complete, and the peers that it identified as liars.
fn run(info: &Bytes, kinds: &[Kind]) -> (Option<Timestamp>, Vec<usize>) {
    let mut fetch = fetch_of(info);
    let size = info.len() as u32;
    for (peer, kind) in kinds.iter().enumerate() {
        let claim = match kind {
            Kind::Inflates(more) | Kind::Stalls(more) => size + more,
            _ => size,
        };
        fetch.add_source(peer, claim);
    }
    let (mut liars, mut answers): (Vec<usize>, Vec<(Timestamp, usize, u32)>) = (vec![], vec![]);
    let mut now = Timestamp::ZERO;
    while now < at(1_200_000) {
        for (peer, piece) in fetch.requests(now) {
            let waiting = answers.iter().filter(|(_, other, _)| *other == peer).count() as u32;
            let delay = match kinds[peer] {
                Kind::Silent => continue,
                Kind::Drips | Kind::Stalls(_) => Duration::from_millis(1900) * (waiting + 1),
                _ => Duration::from_millis(100),
            };
            answers.push((now + delay, peer, piece));
        }
        answers.sort_by_key(|(at, peer, piece)| (*at, *peer, *piece));
        let next = answers.first().map(|(at, ..)| *at);
        let Some(then) = next.into_iter().chain(fetch.next_deadline(now)).min() else {
            return (None, liars);
        };
        assert!(then >= now);
        now = then.max(now + Duration::from_nanos(1));
        while answers.first().is_some_and(|(at, ..)| *at <= now) {
            let (_, peer, piece) = answers.remove(0);
            let good = if piece < piece_count(size) {
                part(info, piece)
            } else {
                Bytes::new()
            };
            let (claim, data) = match kinds[peer] {
                Kind::Rejects => {
                    assert!(fetch.reject(peer, piece, now));
                    continue;
                }
                Kind::Corrupts(every) if piece % every == 0 => (size, Bytes::from(vec![0; good.len()])),
                Kind::Inflates(more) | Kind::Stalls(more) => {
                    (size + more, vec![0; piece_len(size + more, piece) as usize].into())
                }
                Kind::Contradicts => (size + 1, good),
                _ => (size, good),
            };
            match fetch.receive(peer, piece, claim, data, now) {
                Outcome::Complete {
                    info: found,
                    senders_of_bad_metadata: late,
                } => {
                    assert_eq!(found, info);
                    liars.extend(late);
                    return (Some(now), liars);
                }
                Outcome::Failed {
                    senders_of_bad_metadata: found,
                } => liars.extend(found),
                Outcome::Contradiction => assert_eq!(kinds[peer], Kind::Contradicts),
                Outcome::Kept | Outcome::Unsolicited => {}
            }
        }
    }
    (None, liars)
}

#[test]
fn one_peer_is_asked_for_everything_at_once() {
    let info = info(400_000);
    let (done, liars) = run(&info, &[Kind::Honest]);
    assert_eq!((done, liars), (Some(at(100)), vec![]));
}

#[test]
fn several_peers_share_the_pieces() {
    let info = info(400_000);
    let mut fetch = fetch_of(&info);
    (0..5).for_each(|peer| assert!(fetch.add_source(peer, 400_000)));
    let requests = fetch.requests(at(0));
    assert_eq!(requests.len(), 25);
    for peer in 0..5 {
        assert_eq!(requests.iter().filter(|(requested, _)| *requested == peer).count(), 5);
    }
    assert_eq!(fetch.requests(at(1)), [], "each piece is requested once");
    assert_eq!(fetch.progress(), Some((0, 25)));
    fetch.remove_source(3);
    let again = fetch.requests(at(2));
    assert_eq!(again.len(), 5, "those of a peer that has left");
}

#[test]
fn a_peer_has_at_most_so_many_requests() {
    let info = info(16 << 20);
    let mut fetch = fetch_of(&info);
    fetch.add_source(1, info.len() as u32);
    let first = fetch.requests(at(0));
    assert_eq!(first.len(), 64);
    assert_eq!(
        fetch.receive(1, 0, info.len() as u32, part(&info, 0), at(1)),
        Outcome::Kept
    );
    assert_eq!(fetch.requests(at(1)), [(1, 64)]);
}

#[test]
fn claims_beyond_the_limits_are_ignored() {
    let mut fetch = fetch_of(&info(10));
    assert!(!fetch.add_source(1, 0) && !fetch.add_source(2, (16 << 20) + 1) && !fetch.add_source(3, u32::MAX));
    assert!(fetch.requests(at(0)).is_empty() && fetch.progress().is_none());
    assert!(
        fetch.add_source(1, 16 << 20) && !fetch.add_source(1, 0) && !fetch.has_source(1),
        "a later claim counts"
    );
}

#[test]
fn what_was_not_requested_is_not_taken() {
    let info = info(20_000);
    let mut fetch = fetch_of(&info);
    fetch.add_source(1, 20_000);
    let unsolicited = fetch.receive(1, 0, 20_000, part(&info, 0), at(0));
    assert_eq!(unsolicited, Outcome::Unsolicited);
    fetch.requests(at(0));
    assert_eq!(
        fetch.receive(2, 0, 20_000, part(&info, 0), at(0)),
        Outcome::Unsolicited,
        "another peer"
    );
    assert_eq!(fetch.receive(1, 0, 20_000, part(&info, 0), at(0)), Outcome::Kept);
    assert_eq!(
        fetch.receive(1, 0, 20_000, part(&info, 0), at(0)),
        Outcome::Unsolicited,
        "twice"
    );
    assert_eq!(
        fetch.receive(1, 1, 20_000, part(&info, 0), at(0)),
        Outcome::Contradiction,
        "too long"
    );
    assert!(!fetch.has_source(1));
}

#[test]
fn a_single_liar_is_named_at_once_and_several_by_their_pieces() {
    let info = info(100_000);
    assert_eq!(run(&info, &[Kind::Corrupts(1)]), (None, vec![0]));
    let (done, liars) = run(&info, &[Kind::Corrupts(1), Kind::Honest, Kind::Honest]);
    assert!(done.is_some());
    assert!(liars.iter().all(|liar| *liar == 0) && !liars.is_empty(), "{liars:?}");
    let (done, mut liars) = run(
        &info,
        &[Kind::Honest, Kind::Corrupts(3), Kind::Corrupts(1), Kind::Honest],
    );
    liars.sort_unstable();
    assert!(done.unwrap() < at(1000));
    assert!(
        liars.iter().all(|liar| [1, 2].contains(liar)) && !liars.is_empty(),
        "{liars:?}"
    );
}

#[test]
fn a_slow_peer_is_overtaken_and_one_that_answers_late_goes_on() {
    let info = info(100_000);
    let (done, liars) = run(&info, &[Kind::Silent, Kind::Honest]);
    assert_eq!((done, liars), (Some(at(2100)), vec![]));
    let (done, _) = run(&info, &[Kind::Drips, Kind::Honest]);
    assert!(done.unwrap() <= at(10_100), "{done:?}");
    let (done, _) = run(&info, &[Kind::Drips]);
    assert_eq!(done, Some(at(7 * 1900)), "alone, a slow peer is better than none");
}

#[test]
fn sizes_that_many_peers_claim_do_not_hold_up_the_true_one() {
    let info = info(50_000);
    let mut kinds = vec![
        Kind::Inflates(1),
        Kind::Inflates(1),
        Kind::Inflates(20_000),
        Kind::Inflates(20_000),
    ];
    kinds.extend([Kind::Inflates(3), Kind::Honest]);
    let (done, liars) = run(&info, &kinds);
    assert!(done.unwrap() < at(2000), "{done:?}");
    assert!(!liars.contains(&5));
}

/// Peers that send zeros as slowly as allowed hold up the others for a while only: neither with large sizes, which most
/// peers claim, nor with the right size, which makes the peers take turns.
#[test]
fn liars_that_take_their_time_do_not_hold_up_the_true_size() {
    let info = info(50_000);
    let large = |less: u32| Kind::Stalls((16 << 20) - info.len() as u32 - less);
    let done = run(&info, &[large(0), large(0), large(1), large(1), Kind::Honest]).0;
    assert!(done.is_some_and(|done| done <= at(15_000)), "two sizes: {done:?}");
    let mut kinds: Vec<Kind> = (0..40).map(|n| Kind::Stalls(500_000 + n)).collect();
    kinds.push(Kind::Honest);
    let done = run(&info, &kinds).0;
    assert_eq!(done, Some(at(100)), "the smallest of many sizes");
}

#[test]
fn every_peer_gets_its_turn() {
    let info = info(800_000);
    let kinds = [Kind::Stalls(0), Kind::Stalls(0), Kind::Honest, Kind::Stalls(0)];
    let (done, liars) = run(&info, &kinds);
    assert!(done.is_some_and(|done| done <= at(90_000)), "{done:?}");
    assert!(!liars.contains(&2));
}

/// Sixty peers send wrong bytes, each piece just in time. The honest peer still gets its requests at once, not after
/// them.
#[test]
fn slow_liars_of_the_right_size_do_not_delay_an_honest_peer() {
    let mut kinds = vec![Kind::Stalls(0); 60];
    kinds.push(Kind::Honest);
    // All attempts fit into the memory, or sixteen at a time.
    for (bytes, most) in [(100_000, 5000), (2 << 20, 30_000)] {
        let (done, liars) = run(&info(bytes), &kinds);
        assert!(done.is_some_and(|done| done <= at(most)), "{bytes} bytes: {done:?}");
        assert!(!liars.contains(&60));
    }
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Honest),
        (1u32..4).prop_map(Kind::Corrupts),
        (1u32..40_000).prop_map(Kind::Inflates),
        Just(Kind::Silent),
        Just(Kind::Rejects),
        Just(Kind::Drips),
        (0u32..(15 << 20)).prop_map(Kind::Stalls),
        Just(Kind::Contradicts),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// With one honest peer, a fetch ends, and it never identifies an honest peer as a liar.
    #[test]
    fn an_honest_peer_is_enough(len in 1usize..120_000, mut kinds in proptest::collection::vec(kinds(), 0..8), place: usize) {
        kinds.insert(place % (kinds.len() + 1), Kind::Honest);
        let (done, liars) = run(&info(len), &kinds);
        prop_assert!(done.is_some(), "not done");
        for liar in liars {
            let is_liar = matches!(kinds[liar], Kind::Corrupts(_) | Kind::Inflates(_) | Kind::Stalls(_));
            prop_assert!(is_liar, "{liar} is no liar");
        }
    }
}

#[test]
fn nothing_is_requested_after_the_end() {
    let info = info(40_000);
    let mut fetch = fetch_of(&info);
    assert!(fetch.add_source(0, 40_000));
    let requests = fetch.requests(at(0));
    let outcomes = requests
        .iter()
        .map(|(peer, piece)| fetch.receive(*peer, *piece, 40_000, part(&info, *piece), at(1)));
    assert!(matches!(outcomes.last(), Some(Outcome::Complete { .. })));
    assert!(fetch.add_source(1, 40_000));
    assert_eq!((fetch.requests(at(2)), fetch.next_deadline(at(2))), (vec![], None));
}
