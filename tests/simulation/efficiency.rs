//! The time of a swarm compared with the minimum that its links allow.

use std::time::Duration;

use ecs_torrent::engine::sim::NewContent;
use ecs_torrent::sim::{Link, Scenario};

use crate::skipping::is_unoptimized;

/// A flash crowd: one seed, and thirty leechers that start at once. It took three times as long when the seed's link
/// carried pieces twice before each had been sent once, or was shared by all peers that requested unassigned pieces.
#[test]
fn a_flash_crowd_is_near_the_bound() {
    if is_unoptimized("a_flash_crowd_is_near_the_bound", "takes a minute without optimization") {
        return;
    }
    let link = Link::symmetric(1_000_000);
    let torrent = NewContent {
        len: 16 << 20,
        piece_length: 64 << 10,
        ..NewContent::default()
    };
    let outcome = Scenario::new("efficiency")
        .torrent(torrent)
        .seeds(1, link)
        .leeches(30, link)
        .within(3.0, Duration::from_secs(20))
        .untraced()
        .run();
    assert!(outcome.is_good(), "{outcome}");
    let efficiency = outcome.efficiency();
    assert!(efficiency < 1.75, "{efficiency:.2} x the bound");
}
