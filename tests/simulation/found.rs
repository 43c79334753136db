//! Regressions found by the simulator, each as the smallest scenario that shows the fault.

use std::time::Duration;

use ecs_torrent::components::settings::Settings;
use ecs_torrent::engine::sim::{DiskSpeed, NewContent};
use ecs_torrent::sim::hostile::Hostility;
use ecs_torrent::sim::{Act, Link, Scenario, When, Who};

use crate::scenarios::{ALL, MIB};
use crate::sweep::run;

const LINK: Link = Link::symmetric(1 << 20);

fn torrent(mib: usize) -> NewContent {
    NewContent {
        len: mib * MIB,
        ..NewContent::default()
    }
}

/// Asserts that the scenario succeeds with each of `seeds` seeds.
#[track_caller]
fn expect_good(seeds: u64, make: impl Fn() -> Scenario) {
    for seed in 1..=seeds {
        let outcome = make().seed(seed).run();
        assert!(outcome.is_good(), "{outcome}");
    }
}

/// Pieces announced while the disk was full were recorded but had no effect: the engine did not send `Interested`.
#[test]
fn interest_outlives_a_full_disk() {
    expect_good(2, || {
        Scenario::new("interest and a full disk")
            .torrent(torrent(2))
            .seeds(1, LINK)
            .leeches(3, LINK)
            .at(Duration::from_secs(1), Act::DiskFills(Who::Leech(0)))
            .at(Duration::from_secs(4), Act::DiskHasRoom(Who::Leech(0)))
            .within(3.0, Duration::from_secs(90))
    });
}

/// The write of the last missing piece was blocked by a full disk. When it succeeded, the torrent was blocked rather
/// than downloading, so it never completed.
#[test]
fn the_last_piece_meets_a_full_disk() {
    let who = Who::Leech(0);
    expect_good(3, || {
        Scenario::new("the last piece and a full disk")
            .seeds(1, Link::symmetric(64 << 10))
            .leeches(1, LINK)
            .when(When::Has(who, 0.9), Act::DiskFills(who))
            .at(Duration::from_secs(60), Act::DiskHasRoom(who))
            .within(3.0, Duration::from_secs(90))
    });
}

/// Verified pieces that do not fit in the memory for writes on a full disk are dropped and downloaded again.
#[test]
fn more_pieces_than_memory_meet_a_full_disk() {
    let who = Who::Leech(0);
    let mut settings = Settings::default();
    settings.requests.piece_memory_bytes = 512 << 10;
    let slow = DiskSpeed {
        latency: Duration::from_millis(30),
        bytes_per_s: Some(256 << 10),
    };
    expect_good(2, || {
        Scenario::new("more pieces than memory and a full disk")
            .settings(settings.clone())
            .torrent(torrent(2))
            .seeds(3, LINK)
            .leeches(1, Link::symmetric(4 << 20))
            .disk(slow)
            .when(When::Has(who, 0.3), Act::DiskFills(who))
            .at(Duration::from_secs(30), Act::DiskHasRoom(who))
            .within(3.0, Duration::from_secs(90))
    });
}

/// A failed sync was followed by a successful one, after a check that read bytes present only in the page cache. The
/// session recorded the piece as saved, and a power failure lost it.
#[test]
fn data_lost_by_a_failed_sync_is_written_again() {
    let who = Who::Leech(0);
    let make = |second: Act| {
        let mut settings = Settings::default();
        settings.session.checkpoint_interval_s = 1;
        Scenario::new("a failed sync")
            .settings(settings)
            .torrent(torrent(3))
            .seeds(1, LINK)
            .leeches(2, LINK)
            .when(When::Has(who, 0.3), Act::SyncsFail(who, 1))
            .at(Duration::from_secs(9), second)
            .at(Duration::from_secs(20), Act::Starts(who))
            .within(3.0, Duration::from_secs(90))
    };
    // Within the same process, and after a stop whose own sync fails.
    expect_good(3, || make(Act::PowerFails(who)));
    expect_good(3, || {
        make(Act::Killed(who))
            .when(When::Has(who, 0.5), Act::SyncsFail(who, 1))
            .when(When::Has(who, 0.5), Act::Stops(who))
            .at(Duration::from_secs(30), Act::PowerFails(who))
            .at(Duration::from_secs(31), Act::Starts(who))
    });
}

/// A piece dropped to free memory was restarted while a peer still owed blocks of it. The same blocks were requested
/// twice from that peer, and the engine looped when they timed out again.
#[test]
fn dropped_pieces_are_started_again() {
    expect_good(2, || {
        let mut settings = Settings::default();
        settings.requests.piece_memory_bytes = 3 * (64 << 10);
        Scenario::new("given up and begun again")
            .settings(settings)
            .torrent(torrent(2))
            .seeds(1, Link::symmetric(128 << 10))
            .leeches(1, LINK)
            .hostiles(2, Hostility::EmptyPromises, LINK)
            .within(3.0, Duration::from_secs(200))
    });
}

/// A peer that had a suspect piece to itself and timed out was recorded as owing blocks whose requests had been
/// withdrawn. They were never requested from it again.
#[test]
fn withdrawn_pieces_are_not_owed() {
    expect_good(2, || {
        let torrent = NewContent {
            piece_length: 256 << 10,
            ..torrent(2)
        };
        Scenario::new("a suspect piece and silence")
            .torrent(torrent)
            .seeds(1, LINK)
            .leeches(8, LINK)
            .hostiles(2, Hostility::SomeBadData, LINK)
            .hostiles(3, Hostility::EmptyPromises, LINK)
            .within(3.0, Duration::from_secs(90))
    });
}

/// A seed revoked a slot after 200 ms without a request. With a longer round trip, no peer ever received a block.
#[test]
fn a_long_round_trip_starves_no_peer() {
    let (_, flash_crowd) = ALL.iter().find(|(name, _)| *name == "flash crowd").unwrap();
    for seed in [18, 82] {
        let outcome = run(*flash_crowd, seed);
        assert!(outcome.is_good(), "{outcome}");
    }
}

/// A sync failed, and the stop's own sync covered other files only. The stop dropped the claims to files whose identity
/// no sync had reported, so that they became the user's and the torrent failed at the next start.
#[test]
fn files_of_a_failed_sync_stay_the_torrents() {
    let (_, failed_sync) = ALL.iter().find(|(name, _)| *name == "a failed sync").unwrap();
    let outcome = run(*failed_sync, 37);
    assert!(outcome.is_good(), "{outcome}");
}

/// A leecher that had moved, or knew only a peer that had moved, announced again only after half an hour.
#[test]
fn a_torrent_that_lost_all_peers_announces_again() {
    for early in [186, 102] {
        expect_good(1, || {
            Scenario::new("early moves")
                .torrent(torrent(1))
                .seeds(2, LINK)
                .leeches(2, LINK)
                .at(Duration::from_millis(early), Act::Moves(Who::Leech(0)))
                .at(Duration::from_millis(early), Act::Moves(Who::Leech(1)))
                .within(3.0, Duration::from_secs(200))
        });
    }
}

/// All peers whose handshakes arrived in one tick were accepted, because each was checked before the others were
/// counted.
#[test]
fn many_handshakes_at_once_keep_to_the_limit() {
    expect_good(2, || {
        let mut settings = Settings::default();
        settings.peers.max_per_torrent = 4;
        settings.tick.min_interval_us = 200_000;
        Scenario::new("many handshakes at once")
            .settings(settings)
            .torrent(torrent(1))
            .seeds(1, LINK)
            .leeches(16, LINK)
            .within(8.0, Duration::from_secs(120))
    });
}
