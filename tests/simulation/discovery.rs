//! Swarms whose peers find each other without a tracker.

use std::net::SocketAddr;
use std::time::Duration;

use ecs_torrent::components::settings::Settings;
use ecs_torrent::engine::sim::{NewContent, TrackerMode};
use ecs_torrent::protocol::priority::peer_priority;
use ecs_torrent::sim::hostile::Hostility;
use ecs_torrent::sim::{Act, Link, Scenario, Who};

use crate::scenarios::MIB;
use crate::skipping::is_unoptimized;

const LINK: Link = Link::symmetric(1 << 20);

fn settings(has_pex: bool) -> Settings {
    let mut settings = Settings::default();
    settings.pex.enabled = has_pex;
    settings.dht.enabled = false;
    settings
}

/// A seed with a slow link, and 19 leechers that know no other peer.
fn one_known_peer(has_pex: bool) -> Scenario {
    Scenario::new("one known peer")
        .settings(settings(has_pex))
        .torrent(NewContent {
            len: 2 * MIB,
            ..NewContent::default()
        })
        .seeds(1, Link::symmetric(256 << 10))
        .leeches(19, LINK)
        .introduced_by(Who::Seed(0))
        .within(2.0, Duration::from_secs(20))
}

/// The seed alone would need two and a half minutes.
#[test]
fn a_swarm_of_twenty_lives_by_peer_exchange_from_one_known_peer() {
    if is_unoptimized(
        "a_swarm_of_twenty_lives_by_peer_exchange_from_one_known_peer",
        "takes long without optimization",
    ) {
        return;
    }
    let outcome = one_known_peer(true).run();
    assert!(outcome.is_good(), "{outcome}");
    let outcome = one_known_peer(false).run();
    assert!(!outcome.is_good(), "the test needs peer exchange to pass: {outcome}");
}

/// The metadata has two pieces. Leechers get them from the seed, which the link names, and from each other.
#[test]
fn a_crowd_with_magnet_links_lives_from_one_peer_with_the_metadata() {
    let outcome = Scenario::new("a swarm with links")
        .settings(settings(true))
        .torrent(NewContent {
            len: 420 << 10,
            piece_length: 512,
            ..NewContent::default()
        })
        .seeds(1, Link::symmetric(64 << 10))
        .leeches(10, LINK)
        .introduced_by(Who::Seed(0))
        .by_magnet_links()
        .run();
    assert!(outcome.is_good(), "{outcome}");
}

/// The only known peer leaves as soon as the leechers know each other.
#[test]
fn a_swarm_outlives_the_peer_that_introduced_it() {
    let outcome = Scenario::new("the known peer leaves")
        .torrent(NewContent {
            len: 2 * MIB,
            ..NewContent::default()
        })
        .seeds(2, LINK)
        .leeches(8, LINK)
        .introduced_by(Who::Leech(0))
        .at(Duration::from_secs(8), Act::Killed(Who::Leech(0)))
        .at(
            Duration::from_millis(500),
            Act::LinkIs(Who::Seed(0), Link::symmetric(64 << 10)),
        )
        .at(
            Duration::from_millis(500),
            Act::LinkIs(Who::Seed(1), Link::symmetric(64 << 10)),
        )
        .within(8.0, Duration::from_secs(60))
        .run();
    assert!(outcome.is_good(), "{outcome}");
}

/// The tracker names only one peer to all others and dies; then that peer leaves.
#[test]
fn a_swarm_goes_on_when_the_tracker_dies() {
    let known = SocketAddr::from(([10, 0, 0, 3], 6881));
    let slow = Link::symmetric(64 << 10);
    let scenario = |has_pex| {
        Scenario::new("the tracker dies")
            .settings(settings(has_pex))
            .torrent(NewContent {
                len: 2 * MIB,
                ..NewContent::default()
            })
            .seeds(2, LINK)
            .leeches(8, LINK)
            .at(Duration::ZERO, Act::Tracker(TrackerMode::Peers(vec![known])))
            .at(Duration::from_millis(500), Act::LinkIs(Who::Seed(0), slow))
            .at(Duration::from_millis(500), Act::LinkIs(Who::Seed(1), slow))
            .at(Duration::from_secs(4), Act::Tracker(TrackerMode::Down))
            .at(Duration::from_secs(8), Act::Killed(Who::Leech(0)))
            .within(8.0, Duration::from_secs(60))
            .run()
    };
    let outcome = scenario(true);
    assert!(outcome.is_good(), "{outcome}");
    let outcome = scenario(false);
    assert!(!outcome.is_good(), "the test needs peer exchange to pass: {outcome}");
}

/// Hostile peers name thousands of addresses where nobody answers.
#[test]
fn named_garbage_does_not_slow_a_swarm() {
    if is_unoptimized("named_garbage_does_not_slow_a_swarm", "takes long without optimization") {
        return;
    }
    let scenario = |hostiles| {
        Scenario::new(format!("{hostiles} name garbage"))
            .torrent(NewContent {
                len: 2 * MIB,
                ..NewContent::default()
            })
            .seeds(1, Link::symmetric(256 << 10))
            .leeches(12, LINK)
            .hostiles(hostiles, Hostility::NamesGarbage, LINK)
            .introduced_by(Who::Seed(0))
            .within(2.0, Duration::from_secs(20))
    };
    let [clean, hostile] = [0, 6].map(|hostiles| scenario(hostiles).run());
    assert!(clean.is_good() && hostile.is_good(), "{clean} {hostile}");
    let [clean, hostile] = [clean, hostile].map(|outcome| outcome.efficiency());
    eprintln!("without garbage {clean:.2}, with {hostile:.2} x the ideal time");
    assert!(
        hostile < 1.3 * clean,
        "{hostile:.2} x the ideal time, and {clean:.2} without"
    );
}

/// Peers of a private torrent are not exchanged (BEP 27): everything comes from the known peer.
#[test]
fn a_private_torrent_has_only_the_peers_that_the_user_named() {
    let outcome = Scenario::new("private")
        .torrent(NewContent {
            is_private: true,
            ..NewContent::default()
        })
        .seeds(1, LINK)
        .leeches(5, LINK)
        .introduced_by(Who::Seed(0))
        .within(6.0, Duration::from_secs(30))
        .run();
    assert!(outcome.is_good(), "{outcome}");
    assert!(outcome.efficiency() > 4.0, "five copies come from one seed: {outcome}");
}

/// Returns 200 addresses where nobody answers, and a good one of a lower priority (BEP 40) than all of them.
fn many_dead_addresses() -> Vec<SocketAddr> {
    let [good, own]: [SocketAddr; 2] = [([10, 0, 0, 1], 6881).into(), ([10, 0, 0, 2], 6881).into()];
    let priority = |of: &SocketAddr| peer_priority(own, *of);
    let dead = (0..=u16::MAX).map(|number| SocketAddr::from(([10, 200, (number >> 8) as u8, number as u8], 6881)));
    let mut named: Vec<_> = dead.filter(|dead| priority(dead) > priority(&good)).take(200).collect();
    assert_eq!(named.len(), 200);
    named.push(good);
    named
}

/// With attempts of 10 s, 64 at a time, the good address would be dialed after half a minute.
#[test]
fn one_good_peer_among_many_dead_addresses_is_found_in_seconds() {
    let scenario = |first_attempt_ms| {
        let mut settings = settings(true);
        settings.peers.first_attempt_ms = first_attempt_ms;
        Scenario::new("many dead addresses")
            .settings(settings)
            .seeds(1, LINK)
            .leeches(1, LINK)
            .at(Duration::ZERO, Act::Tracker(TrackerMode::Peers(many_dead_addresses())))
            .within(1.0, Duration::from_secs(13))
            .run()
    };
    let outcome = scenario(Settings::default().peers.first_attempt_ms);
    assert!(outcome.is_good(), "{outcome}");
    let outcome = scenario(3_600_000);
    assert!(!outcome.is_good(), "the test needs short attempts to pass: {outcome}");
}

/// A seed and five leechers in a local network, without a tracker.
fn neighbors(is_private: bool, has_lsd: bool) -> Scenario {
    let mut settings = settings(true);
    settings.lsd.enabled = has_lsd;
    Scenario::new("neighbors")
        .settings(settings)
        .torrent(NewContent {
            is_private,
            ..NewContent::default()
        })
        .seeds(1, LINK)
        .leeches(5, LINK)
        .in_a_local_network()
        .within(2.0, Duration::from_secs(20))
}

#[test]
fn neighbors_find_each_other_without_a_tracker() {
    let outcome = neighbors(false, true).run();
    assert!(outcome.is_good(), "{outcome}");
}

/// The only seed gets another address in the middle of the transfer. Its old connections are dead without notice.
#[test]
fn a_neighbor_whose_address_changes_comes_back_in_seconds() {
    let outcome = Scenario::new("a neighbor that moves")
        .settings(settings(true))
        .torrent(NewContent {
            len: 16 * MIB,
            ..NewContent::default()
        })
        .seeds(1, LINK)
        .leeches(2, LINK)
        .in_a_local_network()
        .at(Duration::from_secs(8), Act::Moves(Who::Seed(0)))
        .within(2.0, Duration::from_secs(20))
        .run();
    assert!(outcome.is_good(), "{outcome}");
}

#[test]
fn neighbors_do_not_find_each_other_by_a_private_torrent_or_without_local_discovery() {
    for (is_private, has_lsd) in [(true, true), (false, false)] {
        let outcome = neighbors(is_private, has_lsd).may_fail().run();
        assert!(outcome.is_good() && outcome.finished.is_empty(), "{outcome}");
    }
}
