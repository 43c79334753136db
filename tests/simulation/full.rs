//! Large swarms, once each. They take a while, and without optimisation too long.

use std::time::Duration;

use ecs_torrent::components::settings::{Settings, TickSettings};
use ecs_torrent::engine::sim::NewContent;
use ecs_torrent::sim::hostile::Hostility;
use ecs_torrent::sim::{Act, Line, Scenario, Who};

use crate::scenarios::MIB;

const LINE: Line = Line::symmetric(2 << 20);

/// Ticks that batch more: what happens in 20 ms is heard of together.
fn coarse() -> Settings {
    Settings {
        tick: TickSettings {
            min_interval_us: 20_000,
            ..TickSettings::default()
        },
        ..Settings::default()
    }
}

fn large(name: &str, mib: usize) -> Scenario {
    Scenario::new(name).seed(1).settings(coarse()).torrent(NewContent {
        len: mib * MIB,
        piece_length: 256 << 10,
        ..NewContent::default()
    })
}

#[track_caller]
fn expect_good(scenario: &Scenario) {
    let outcome = scenario.run();
    eprintln!("{outcome}");
    assert!(outcome.is_good(), "{outcome}");
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes without optimisation")]
fn a_crowd() {
    let crowd = large("a crowd", 16).seeds(1, LINE).leeches(100, LINE);
    expect_good(&crowd.within(6.0, Duration::from_secs(30)));
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes without optimisation")]
fn a_crowd_of_which_a_third_is_hostile() {
    let mut crowd = large("a hostile crowd", 8).seeds(1, LINE).leeches(16, LINE);
    for hostility in Hostility::ALL {
        crowd = crowd.hostiles(1, hostility, LINE);
    }
    expect_good(&crowd.within(6.0, Duration::from_secs(240)));
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes without optimisation")]
fn a_crowd_that_comes_and_goes() {
    let mut crowd = large("a restless crowd", 8)
        .seeds(1, LINE)
        .leeches(40, LINE)
        .late_leeches(20, LINE);
    for number in 0..20 {
        let time = Duration::from_millis(500 + 400 * number as u64);
        let (leaver, late) = (Who::Leech(2 * number), Who::Leech(40 + number));
        crowd = crowd
            .at(time, Act::PowerFails(leaver))
            .at(time + Duration::from_secs(6), Act::Starts(leaver))
            .at(time, Act::Starts(late));
    }
    expect_good(&crowd.within(6.0, Duration::from_secs(120)));
}

/// Torrents that nobody wants cost nothing while another one is moved.
#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes without optimisation")]
fn ten_thousand_idle_torrents() {
    let scenario = large("ten thousand idle torrents", 8)
        .seeds(1, LINE)
        .leeches(5, LINE)
        .idle_torrents(10_000);
    expect_good(&scenario.within(6.0, Duration::from_secs(120)));
}
