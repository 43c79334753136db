//! Swarms at full size, once each. `SIM_SCENARIO` and `SIM_SEED` repeat one, as with the small scenarios. They take a
//! while, and too long without optimization.

use std::time::Duration;

use ecs_torrent::components::settings::{Settings, TickSettings};
use ecs_torrent::engine::sim::{NewContent, TrackerMode};
use ecs_torrent::sim::hostile::Hostility;
use ecs_torrent::sim::{Act, Link, Scenario, When, Who};

use crate::scenarios::{Dice, MIB, Make};
use crate::skipping::is_unoptimized;
use crate::sweep;

/// All scenarios at full size, longest first.
pub const ALL: &[(&str, Make)] = &[
    ("a swarm of 500", flash_crowd),
    ("ten thousand idle torrents", idle_torrents),
    ("a hostile swarm", hostile_swarm),
    ("a restless swarm", churn),
    ("a swarm whose seed leaves at half a copy", seed_leaves),
    ("a swarm on slow and fast links", slow_and_fast),
    ("a swarm in two parts", partition),
    ("a swarm that loses its power", power_failures),
    ("a swarm that stops and starts", stops),
    ("a swarm with full disks", full_disks),
    ("a swarm without its tracker", tracker_goes),
    ("a swarm with jumping clocks", clocks),
];

/// 2 MiB/s in both directions.
const LINK: Link = Link::symmetric(2 << 20);

#[test]
fn full_size_scenarios_hold() {
    if is_unoptimized("full_size_scenarios_hold", "takes minutes without optimization") {
        return;
    }
    let chosen = sweep::chosen(ALL);
    let seed = sweep::number_from("SIM_SEED").unwrap_or(1);
    let runs: Vec<_> = chosen.into_iter().map(|(name, make)| (*name, *make, seed)).collect();
    sweep::expect_good(&runs);
}

/// A torrent of `mib` MiB, with ticks that batch more: events of 20 ms are processed together.
fn large(name: &str, mib: usize) -> Scenario {
    let settings = Settings {
        tick: TickSettings {
            min_interval_us: 20_000,
            ..TickSettings::default()
        },
        ..Settings::default()
    };
    Scenario::new(name).settings(settings).torrent(NewContent {
        len: mib * MIB,
        piece_length: 256 << 10,
        ..NewContent::default()
    })
}

fn swarm(name: &str, leeches: usize) -> Scenario {
    large(name, 8).seeds(1, LINK).leeches(leeches, LINK)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn flash_crowd(_: &mut Dice) -> Scenario {
    let swarm = large("a swarm of 500", 16).seeds(1, LINK).leeches(500, LINK);
    swarm.within(6.0, seconds(30))
}

/// Idle torrents cost nothing while another torrent is transferred.
fn idle_torrents(_: &mut Dice) -> Scenario {
    let swarm = swarm("ten thousand idle torrents", 5).idle_torrents(10_000);
    swarm.within(6.0, seconds(120))
}

/// Two hostile peers of each kind among fifty peers: three tenths of the peers are hostile. A failed piece is assigned
/// to one peer at a time, and a peer that answers each request after 45 s takes minutes for it, which the allowance
/// covers.
fn hostile_swarm(_: &mut Dice) -> Scenario {
    let honest = 2 * Hostility::ALL.len() * 7 / 3;
    let mut swarm = swarm("a hostile swarm", honest);
    for hostility in Hostility::ALL {
        swarm = swarm.hostiles(2, hostility, LINK);
    }
    swarm.within(6.0, seconds(480))
}

fn churn(dice: &mut Dice) -> Scenario {
    let mut swarm = swarm("a restless swarm", 40).late_leeches(20, LINK);
    for number in 0..20 {
        let time = dice.millis(200, 10_000);
        let (leaver, late) = (Who::Leech(2 * number), Who::Leech(40 + number));
        let leaves = match number % 3 {
            0 => Act::Killed(leaver),
            1 => Act::Stops(leaver),
            _ => Act::PowerFails(leaver),
        };
        swarm = swarm.at(time, leaves).at(time, Act::Starts(late));
        // A quarter of the leavers never return.
        if number % 4 > 0 {
            swarm = swarm.at(time + seconds(11), Act::Starts(leaver));
        }
    }
    swarm.within(6.0, seconds(120))
}

/// The only seed leaves after half a copy is sent. No peer can complete until it is back.
fn seed_leaves(dice: &mut Dice) -> Scenario {
    let seed = Who::Seed(0);
    swarm("a swarm whose seed leaves at half a copy", 50)
        .when(When::HasSent(seed, 0.5), Act::PowerFails(seed))
        .at(seconds(30) + dice.millis(0, 10_000), Act::Starts(seed))
        .within(6.0, seconds(120))
}

fn slow_and_fast(_: &mut Dice) -> Scenario {
    large("a swarm on slow and fast links", 8)
        .seeds(1, LINK)
        .leeches(25, Link::asymmetric(2 << 20, 8 << 20))
        .leeches(25, Link::asymmetric(64 << 10, 256 << 10))
        .within(4.0, seconds(60))
}

fn partition(dice: &mut Dice) -> Scenario {
    let (some, mut others): (Vec<Who>, Vec<Who>) = (0..50).map(Who::Leech).partition(|_| dice.within(0, 2) == 0);
    others.push(Who::Seed(0));
    let begin = dice.millis(500, 4_000);
    swarm("a swarm in two parts", 50)
        .at(begin, Act::Partition(some, others))
        .at(begin + seconds(40), Act::Heals)
        .within(6.0, seconds(200))
}

/// All peers, including the seed, lose power, each at its own time.
fn power_failures(dice: &mut Dice) -> Scenario {
    let mut swarm = swarm("a swarm that loses its power", 40);
    for who in (0..40).map(Who::Leech).chain([Who::Seed(0)]) {
        let time = dice.millis(50, 12_000);
        swarm = swarm
            .at(time, Act::PowerFails(who))
            .at(time + dice.millis(10, 6_000), Act::Starts(who));
    }
    swarm.within(6.0, seconds(150))
}

/// All peers, including the seed, stop in order (stop-and-serialize) and restart.
fn stops(dice: &mut Dice) -> Scenario {
    let mut swarm = swarm("a swarm that stops and starts", 40);
    for who in (0..40).map(Who::Leech).chain([Who::Seed(0)]) {
        let time = dice.millis(50, 12_000);
        swarm = swarm
            .at(time, Act::Stops(who))
            .at(time + seconds(10) + dice.millis(0, 4_000), Act::Starts(who));
    }
    swarm.within(6.0, seconds(150))
}

fn full_disks(dice: &mut Dice) -> Scenario {
    let mut swarm = swarm("a swarm with full disks", 40);
    for who in (0..20).map(Who::Leech) {
        let time = dice.millis(100, 6_000);
        swarm = swarm
            .at(time, Act::DiskFills(who))
            .at(time + dice.millis(1_000, 30_000), Act::DiskHasRoom(who));
    }
    swarm.within(6.0, seconds(150))
}

/// Half the swarm joins while the tracker is down.
fn tracker_goes(dice: &mut Dice) -> Scenario {
    let mut swarm = swarm("a swarm without its tracker", 20)
        .late_leeches(20, LINK)
        .at(seconds(1), Act::Tracker(TrackerMode::Down))
        .at(seconds(30), Act::Tracker(TrackerMode::Up));
    for who in (20..40).map(Who::Leech) {
        swarm = swarm.at(dice.millis(1_500, 8_000), Act::Starts(who));
    }
    swarm.within(6.0, seconds(240))
}

fn clocks(dice: &mut Dice) -> Scenario {
    let mut swarm = swarm("a swarm with jumping clocks", 40);
    for number in 0..20 {
        let time = dice.millis(100, 8_000);
        let (jumper, sleeper) = (Who::Leech(number), Who::Leech(20 + number));
        swarm = swarm
            .at(time, Act::ClockJumps(jumper, dice.millis(1_000, 7_200_000)))
            .at(time, Act::Sleeps(sleeper, dice.millis(100, 20_000)));
    }
    let seed = Who::Seed(0);
    let swarm = swarm.at(seconds(2), Act::ClockJumps(seed, seconds(3_600)));
    swarm.within(6.0, seconds(200))
}
