//! Swarms whose peers find each other without a tracker.

use std::time::Duration;

use ecs_torrent::components::settings::Settings;
use ecs_torrent::engine::sim::{NewContent, TrackerMode, TrackerOptions};
use ecs_torrent::sim::hostile::Hostility;
use ecs_torrent::sim::{Act, Link, Scenario, Who};

use crate::scenarios::MIB;

const LINK: Link = Link::symmetric(1 << 20);

fn settings(has_pex: bool) -> Settings {
    let mut settings = Settings::default();
    settings.pex.enabled = has_pex;
    settings.dht.enabled = false;
    settings
}

/// A seed with a slow link, and 19 leechers that know nobody else.
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
    let outcome = one_known_peer(true).run();
    assert!(outcome.is_good(), "{outcome}");
    let outcome = one_known_peer(false).run();
    assert!(!outcome.is_good(), "the test needs peer exchange to pass: {outcome}");
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

/// The tracker names two peers to each peer, and dies.
#[test]
fn a_swarm_goes_on_when_the_tracker_dies() {
    let scenario = |has_pex| {
        Scenario::new("the tracker dies")
            .settings(settings(has_pex))
            .torrent(NewContent {
                len: 4 * MIB,
                ..NewContent::default()
            })
            .seeds(1, Link::symmetric(256 << 10))
            .leeches(12, LINK)
            .tracker(TrackerOptions {
                max_peers: 1,
                ..TrackerOptions::default()
            })
            .at(Duration::from_secs(1), Act::Tracker(TrackerMode::Down))
            .within(2.0, Duration::from_secs(20))
    };
    let [with, without] = [true, false].map(|has_pex| scenario(has_pex).run());
    assert!(with.is_good(), "{with}");
    let [with, without] = [with, without].map(|outcome| outcome.efficiency());
    eprintln!("with peer exchange {with:.2}, without {without:.2} x the ideal time");
}

/// Hostile peers name thousands of addresses where nobody answers.
#[test]
fn named_garbage_does_not_slow_a_swarm() {
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

#[test]
fn neighbors_do_not_find_each_other_by_a_private_torrent_or_without_local_discovery() {
    for (is_private, has_lsd) in [(true, true), (false, false)] {
        let outcome = neighbors(is_private, has_lsd).may_fail().run();
        assert!(outcome.is_good() && outcome.finished.is_empty(), "{outcome}");
    }
}
