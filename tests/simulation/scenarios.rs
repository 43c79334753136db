//! Small swarms, each with its own disturbance; the seed determines the details.

mod files;
mod finding;

use std::time::Duration;

use ecs_torrent::components::settings::{SeedingAction, Settings};
use ecs_torrent::engine::sim::{DiskSpeed, NewContent, Path, TrackerMode};
use ecs_torrent::sim::hostile::Hostility;
use ecs_torrent::sim::{Act, Link, Scenario, When, Who};

/// A function that makes a scenario for a seed.
pub type Make = fn(&mut Dice) -> Scenario;

/// All scenarios small enough to run over many seeds.
pub const ALL: &[(&str, Make)] = &[
    ("flash crowd", flash_crowd),
    ("churn", churn),
    ("a seed leaves and comes back", seed_leaves),
    ("slow and fast", slow_and_fast),
    ("one hostile peer", one_hostile),
    ("a third is hostile", third_hostile),
    ("a silent majority", silent_majority),
    ("sybils in one subnet", sybils),
    ("stolen peer ids", stolen_ids),
    ("a partition that heals", partition),
    ("a power failure", power_failure),
    ("killed again and again", killed),
    ("stopped and started", stopped),
    ("paused and started", paused),
    ("paused in any trouble", paused_in_trouble),
    ("checked again", rechecked),
    ("moved to other folders", files::moved),
    ("renamed", files::renamed),
    ("files with a suffix", files::suffixed),
    ("a folder for incomplete torrents", files::in_another_folder),
    ("a full disk", full_disk),
    ("a broken disk", broken_disk),
    ("a failed sync", failed_sync),
    ("a slow disk", slow_disk),
    ("little memory", little_memory),
    ("the tracker goes", tracker_goes),
    ("sleeping and jumping clocks", clocks),
    ("addresses that change", moves),
    ("connections that break", breaking),
    ("peers that stop reading", stop_reading),
    ("odd pieces and files", odd),
    ("a swarm with magnet links", links),
    ("neighbors", neighbors),
    ("enough seeded", enough_seeded),
    ("more torrents than places", queue),
    ("a swarm with long pieces", long_pieces),
    ("a swarm found by the DHT alone", finding::by_dht),
    ("a private torrent beside public ones", finding::private_beside_public),
    ("a swarm whose tracker is gone for good", finding::after_the_tracker),
    ("a flash crowd with magnet links", finding::flash_crowd_with_links),
    ("hostile peers with metadata", finding::hostile_metadata),
];

/// Number of bytes in a MiB.
pub const MIB: usize = 1 << 20;

/// 1 MiB/s in both directions.
const LINK: Link = Link::symmetric(1 << 20);

/// Random numbers from a seed (splitmix64).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number from `low` up to but excluding `high`.
    pub fn within(&mut self, low: usize, high: usize) -> usize {
        low + (self.roll() as usize) % (high - low)
    }

    pub fn millis(&mut self, low: usize, high: usize) -> Duration {
        Duration::from_millis(self.within(low, high) as u64)
    }

    /// Returns a moment between two bounds in milliseconds. It can fall into any tick.
    fn moment(&mut self, low: usize, high: usize) -> Duration {
        Duration::from_micros(self.within(low * 1000, high * 1000) as u64)
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.within(0, of.len())]
    }

    fn torrent(&mut self) -> NewContent {
        NewContent {
            len: self.within(1, 4) * MIB + self.within(0, 70_000),
            piece_length: self.one(&[32 << 10, 64 << 10, 128 << 10, 256 << 10]),
            file_count: self.one(&[1, 1, 7]),
            ..NewContent::default()
        }
    }

    /// Returns the seed or one of `count` leechers.
    fn anybody(&mut self, count: usize) -> Who {
        match self.within(0, count + 1) {
            0 => Who::Seed(0),
            number => Who::Leech(number - 1),
        }
    }

    fn leech(&mut self, count: usize) -> Who {
        Who::Leech(self.within(0, count))
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn flash_crowd(dice: &mut Dice) -> Scenario {
    let count = dice.within(3, 15);
    let path = Path::new(dice.millis(1, 150)).with_jitter(dice.millis(0, 20));
    Scenario::new("flash crowd")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .path(path)
}

/// All nodes have a seeding limit. Seeds that pause may leave with pieces that no other peer has; seeds that only
/// super-seed may not.
fn enough_seeded(dice: &mut Dice) -> Scenario {
    let count = dice.within(3, 10);
    let mut settings = Settings::default();
    settings.dht.enabled = false;
    settings.seeding.ratio_percent = dice.within(0, 300) as u64;
    settings.seeding.time_s = dice.within(0, 300) as u64;
    settings.seeding.action = dice.one(&[SeedingAction::Pause, SeedingAction::SuperSeed, SeedingAction::SuperSeed]);
    let scenario = Scenario::new("enough seeded")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .settings(settings.clone())
        .within(4.0, seconds(60));
    let (who, time) = (dice.anybody(count), dice.moment(1, 20_000));
    let scenario = scenario
        .at(time, Act::Killed(who))
        .at(time + seconds(2), Act::Starts(who));
    match settings.seeding.action {
        SeedingAction::SuperSeed => scenario,
        _ => scenario.may_fail(),
    }
}

/// The seed has more torrents than may run, so that the leechers may get nothing.
fn queue(dice: &mut Dice) -> Scenario {
    let (count, idle_count) = (dice.within(2, 6), dice.within(2, 12));
    let mut settings = Settings::default();
    settings.dht.enabled = false;
    settings.queue.max_downloads = dice.within(1, 3);
    settings.queue.max_seeds = dice.within(1, idle_count + 2);
    settings.queue.max_active = dice.within(1, idle_count + 2);
    settings.queue.max_checks = dice.within(1, 4);
    settings.queue.slow_after_s = dice.within(10, 30) as u64;
    settings.queue.slow_upload_bytes_per_s = dice.one(&[0, 1000, 100_000]);
    settings.queue.slow_download_bytes_per_s = dice.one(&[0, 1000, 100_000]);
    let mut scenario = Scenario::new("more torrents than places")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .idle_torrents(idle_count)
        .settings(settings)
        .may_fail();
    for _ in 0..dice.within(0, 4) {
        let (who, time) = (dice.anybody(count), dice.moment(1, 20_000));
        let (away, back) = dice.one(&[
            (Act::Pauses as fn(Who) -> Act, Act::Unpauses as fn(Who) -> Act),
            (Act::Killed, Act::Starts),
            (Act::DiskFills, Act::DiskHasRoom),
        ]);
        scenario = scenario.at(time, away(who)).at(time + seconds(4), back(who));
    }
    scenario
}

/// The links name only the seed. Some leechers are killed, perhaps before they have the metadata.
fn links(dice: &mut Dice) -> Scenario {
    let count = dice.within(3, 10);
    let path = Path::new(dice.millis(1, 150)).with_jitter(dice.millis(0, 20));
    let mut scenario = Scenario::new("a swarm with magnet links")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .path(path)
        .introduced_by(Who::Seed(0))
        .by_magnet_links()
        .within(3.0, seconds(60));
    for _ in 0..dice.within(0, 3) {
        let (who, time) = (dice.leech(count), dice.moment(1, 3_000));
        scenario = scenario
            .at(time, Act::Killed(who))
            .at(time + seconds(2), Act::Starts(who));
    }
    scenario
}

/// A local network without a tracker.
fn neighbors(dice: &mut Dice) -> Scenario {
    let count = dice.within(2, 8);
    Scenario::new("neighbors")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .in_a_local_network()
        .path(Path::new(dice.millis(1, 20)))
}

/// A part of a piece is worth nothing to the swarm until the piece is whole, and each piece takes a second: all peers
/// have to finish pieces before they begin others.
fn long_pieces(dice: &mut Dice) -> Scenario {
    let link = Link::asymmetric(1 << 20, 4 << 20);
    let torrent = NewContent {
        len: 32 * MIB,
        piece_length: MIB as u32,
        ..NewContent::default()
    };
    let mut settings = Settings::default();
    // Batches events as on a busy machine, which makes the simulation faster.
    settings.tick.min_interval_us = 20_000;
    // Without optimization there is time for a small swarm only.
    let count = if cfg!(debug_assertions) { 6 } else { 20 };
    Scenario::new("a swarm with long pieces")
        .torrent(torrent)
        .settings(settings)
        .seeds(1, link)
        .leeches(count, link)
        .path(Path::new(dice.millis(5, 60)).with_jitter(dice.millis(0, 5)))
        .within(1.6, Duration::ZERO)
}

fn churn(dice: &mut Dice) -> Scenario {
    let count = dice.within(5, 13);
    let late = dice.within(1, 4);
    let mut scenario = Scenario::new("churn")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .late_leeches(late, LINK)
        .within(3.0, seconds(90));
    for number in count..count + late {
        scenario = scenario.at(dice.millis(500, 8_000), Act::Starts(Who::Leech(number)));
    }
    for _ in 0..dice.within(2, 8) {
        let who = dice.leech(count);
        let time = dice.millis(100, 10_000);
        let act = match dice.within(0, 3) {
            0 => Act::Killed(who),
            1 => Act::Stops(who),
            _ => Act::PowerFails(who),
        };
        scenario = scenario.at(time, act);
        if dice.within(0, 3) > 0 {
            scenario = scenario.at(time + dice.millis(10, 12_000), Act::Starts(who));
        }
    }
    scenario
}

fn seed_leaves(dice: &mut Dice) -> Scenario {
    let count = dice.within(2, 10);
    let back = seconds(20) + dice.millis(0, 10_000);
    let part = dice.within(20, 80) as f64 / 100.0;
    Scenario::new("a seed leaves and comes back")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .when(When::HasSent(Who::Seed(0), part), Act::PowerFails(Who::Seed(0)))
        .at(back, Act::Starts(Who::Seed(0)))
        .within(3.0, seconds(150))
}

fn slow_and_fast(dice: &mut Dice) -> Scenario {
    let (fast, slow) = (dice.within(2, 8), dice.within(1, 6));
    Scenario::new("slow and fast")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(fast, Link::asymmetric(2 << 20, 8 << 20))
        .leeches(slow, Link::asymmetric(64 << 10, 256 << 10))
        .within(3.0, seconds(30))
}

fn one_hostile(dice: &mut Dice) -> Scenario {
    let hostility = dice.one(&Hostility::ALL);
    Scenario::new("one hostile peer")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(dice.within(1, 6), LINK)
        .hostiles(1, hostility, Link::symmetric(4 << 20))
        .within(3.0, seconds(90))
}

fn third_hostile(dice: &mut Dice) -> Scenario {
    let mut scenario = Scenario::new("a third is hostile")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(dice.within(7, 10), LINK)
        .within(4.0, seconds(150));
    for _ in 0..4 {
        let hostility = dice.one(&Hostility::ALL);
        scenario = scenario.hostiles(1, hostility, Link::symmetric(2 << 20));
    }
    scenario
}

/// Peers that only hold slots outnumber the slots several times and connect before all others.
pub fn silent_majority(dice: &mut Dice) -> Scenario {
    crowded("a silent majority", dice, Hostility::Silent).within(4.0, seconds(60))
}

fn sybils(dice: &mut Dice) -> Scenario {
    crowded("sybils in one subnet", dice, Hostility::Sybil).within(4.0, seconds(60))
}

fn crowded(name: &str, dice: &mut Dice, hostility: Hostility) -> Scenario {
    let slots = dice.within(6, 13);
    let mut settings = Settings::default();
    settings.peers.max_per_torrent = slots;
    Scenario::new(name)
        .settings(settings)
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(dice.within(2, 6), LINK)
        .hostiles(slots * 3, hostility, LINK)
}

fn stolen_ids(dice: &mut Dice) -> Scenario {
    Scenario::new("stolen peer ids")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(dice.within(1, 6), LINK)
        .hostiles(dice.within(1, 5), Hostility::StealsId, LINK)
        .within(4.0, seconds(60))
}

fn partition(dice: &mut Dice) -> Scenario {
    let count = dice.within(4, 12);
    let (some, others): (Vec<Who>, Vec<Who>) = (0..count).map(Who::Leech).partition(|_| dice.within(0, 2) == 0);
    let begin = dice.millis(200, 3_000);
    Scenario::new("a partition that heals")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .at(begin, Act::Partition(some, [&others[..], &[Who::Seed(0)]].concat()))
        .at(begin + dice.millis(1_000, 40_000), Act::Heals)
        .within(3.0, seconds(200))
}

fn power_failure(dice: &mut Dice) -> Scenario {
    let count = dice.within(1, 6);
    let who = dice.anybody(count);
    let time = dice.moment(0, 6_000);
    Scenario::new("a power failure")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .at(time, Act::PowerFails(who))
        .at(time + dice.moment(10, 5_000), Act::Starts(who))
        .within(3.0, seconds(90))
}

fn killed(dice: &mut Dice) -> Scenario {
    let mut scenario = Scenario::new("killed again and again")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(1, LINK)
        .within(3.0, seconds(150));
    let mut time = Duration::ZERO;
    for _ in 0..dice.within(2, 8) {
        time += dice.moment(0, 2_500);
        let act = match dice.within(0, 2) {
            0 => Act::Killed(Who::Leech(0)),
            _ => Act::PowerFails(Who::Leech(0)),
        };
        scenario = scenario.at(time, act);
        time += dice.moment(1, 1_000);
        scenario = scenario.at(time, Act::Starts(Who::Leech(0)));
    }
    scenario
}

fn stopped(dice: &mut Dice) -> Scenario {
    let count = dice.within(1, 6);
    let mut scenario = Scenario::new("stopped and started")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .within(3.0, seconds(120));
    for _ in 0..dice.within(1, 4) {
        let who = dice.anybody(count);
        let time = dice.moment(0, 8_000);
        scenario = scenario.at(time, Act::Stops(who));
        scenario = scenario.at(time + seconds(10) + dice.moment(0, 5_000), Act::Starts(who));
    }
    scenario
}

fn paused(dice: &mut Dice) -> Scenario {
    let count = dice.within(1, 6);
    let mut scenario = Scenario::new("paused and started")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .within(3.0, seconds(120));
    for _ in 0..dice.within(1, 8) {
        let who = dice.anybody(count);
        let time = dice.moment(0, 8_000);
        scenario = scenario.at(time, Act::Pauses(who));
        // The start may come before the pause is over.
        scenario = scenario.at(time + dice.moment(0, 12_000), Act::Unpauses(who));
    }
    start_all(scenario, count, seconds(21))
}

/// Pauses meet full and broken disks, stops, and kills in any phase. A node that starts again is still paused.
fn paused_in_trouble(dice: &mut Dice) -> Scenario {
    let count = dice.within(1, 6);
    let mut scenario = Scenario::new("paused in any trouble")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .within(3.0, seconds(200));
    for _ in 0..dice.within(1, 5) {
        let who = dice.anybody(count);
        let time = dice.moment(0, 8_000);
        let near = time.saturating_sub(seconds(2)) + dice.moment(0, 4_000);
        let end = match dice.within(0, 6) {
            0 => Act::DiskFills(who),
            1 => Act::DiskFails(who, dice.millis(10, 3_000)),
            2 => Act::SyncsFail(who, 1),
            3 => Act::Killed(who),
            4 => Act::PowerFails(who),
            _ => Act::Stops(who),
        };
        scenario = scenario
            .at(time, Act::Pauses(who))
            .at(near, end)
            .at(near + dice.moment(0, 3_000), Act::Unpauses(who))
            .at(near + dice.moment(0, 3_000), Act::Pauses(who));
    }
    for who in everybody(count) {
        scenario = scenario
            .at(seconds(25), Act::DiskHasRoom(who))
            .at(seconds(25), Act::Starts(who));
    }
    start_all(scenario, count, seconds(35))
}

/// Checks meet each other, pauses, stops, kills and broken disks.
fn rechecked(dice: &mut Dice) -> Scenario {
    let count = dice.within(1, 6);
    let mut scenario = Scenario::new("checked again")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .within(3.0, seconds(200));
    for _ in 0..dice.within(1, 6) {
        let who = dice.anybody(count);
        let time = dice.moment(0, 8_000);
        let near = time.saturating_sub(seconds(1)) + dice.moment(0, 2_000);
        let other = match dice.within(0, 7) {
            0 => Act::Pauses(who),
            1 => Act::Unpauses(who),
            2 => Act::Killed(who),
            3 => Act::PowerFails(who),
            4 => Act::Stops(who),
            5 => Act::DiskFails(who, dice.millis(10, 1_000)),
            _ => Act::Rechecks(who),
        };
        scenario = scenario.at(time, Act::Rechecks(who)).at(near, other);
    }
    for who in everybody(count) {
        scenario = scenario.at(seconds(25), Act::Starts(who));
    }
    start_all(scenario, count, seconds(35))
}

/// Starts all paused torrents at the end.
fn start_all(scenario: Scenario, count: usize, time: Duration) -> Scenario {
    everybody(count).fold(scenario, |scenario, who| scenario.at(time, Act::Unpauses(who)))
}

fn everybody(count: usize) -> impl Iterator<Item = Who> {
    std::iter::once(Who::Seed(0)).chain((0..count).map(Who::Leech))
}

/// Returns the last of `count` leechers.
fn dice_leech(count: usize) -> Who {
    Who::Leech(count - 1)
}

fn full_disk(dice: &mut Dice) -> Scenario {
    let count = dice.within(1, 6);
    let who = dice.leech(count);
    let time = dice.millis(100, 3_000);
    Scenario::new("a full disk")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .at(time, Act::DiskFills(who))
        .at(time + dice.millis(500, 40_000), Act::DiskHasRoom(who))
        .within(3.0, seconds(150))
}

fn broken_disk(dice: &mut Dice) -> Scenario {
    let count = dice.within(1, 6);
    let who = dice.one(&[Who::Seed(0), dice_leech(count)]);
    Scenario::new("a broken disk")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .at(dice.millis(100, 3_000), Act::DiskFails(who, dice.millis(10, 3_000)))
        .within(3.0, seconds(150))
}

fn failed_sync(dice: &mut Dice) -> Scenario {
    let count = dice.within(1, 6);
    let who = dice.leech(count);
    let time = dice.millis(100, 4_000);
    let mut settings = Settings::default();
    settings.session.checkpoint_interval_s = 1;
    let end = match dice.within(0, 3) {
        0 => Act::Killed(who),
        1 => Act::Stops(who),
        _ => Act::PowerFails(who),
    };
    let late = time + dice.millis(1, 9_000);
    let dark = late + seconds(12) + dice.millis(0, 3_000);
    Scenario::new("a failed sync")
        .settings(settings)
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .at(time, Act::SyncsFail(who, dice.within(1, 3) as u32))
        .at(late, end)
        .at(late + seconds(10), Act::Starts(who))
        .at(dark, Act::PowerFails(who))
        .at(dark + seconds(1), Act::Starts(who))
        .within(3.0, seconds(150))
}

fn slow_disk(dice: &mut Dice) -> Scenario {
    let count = dice.within(1, 6);
    let disk = DiskSpeed {
        latency: dice.millis(1, 30),
        bytes_per_s: Some(dice.within(2, 20) as u64 * MIB as u64),
    };
    Scenario::new("a slow disk")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .disk(disk)
        .at(dice.millis(100, 2_000), Act::DiskSlows(Who::Leech(0), 8.0))
        .within(6.0, seconds(60))
}

/// Pieces of silent peers are dropped because other pieces need their memory.
fn little_memory(dice: &mut Dice) -> Scenario {
    let torrent = dice.torrent();
    let mut settings = Settings::default();
    settings.requests.piece_memory_bytes = u64::from(torrent.piece_length) * dice.within(1, 5) as u64;
    let silent = dice.one(&[Hostility::EmptyPromises, Hostility::LateData, Hostility::Trickles]);
    Scenario::new("little memory")
        .settings(settings)
        .torrent(torrent)
        .seeds(1, LINK)
        .leeches(dice.within(1, 6), LINK)
        .hostiles(dice.within(0, 3), silent, LINK)
        .within(8.0, seconds(200))
}

fn tracker_goes(dice: &mut Dice) -> Scenario {
    let count = dice.within(2, 8);
    let late = Who::Leech(count);
    let mode = dice.one(&[0, 1, 2, 3, 4, 5]);
    let mode = match mode {
        0 => TrackerMode::Down,
        1 => TrackerMode::Silent,
        2 => TrackerMode::Status(500),
        3 => TrackerMode::Garbage,
        4 => TrackerMode::Truncated,
        _ => TrackerMode::Failure("not now".into()),
    };
    let time = dice.millis(0, 3_000);
    Scenario::new("the tracker goes")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .late_leeches(1, LINK)
        .at(time, Act::Tracker(mode))
        .at(time + dice.millis(0, 1_000), Act::Starts(late))
        .at(time + dice.millis(5_000, 20_000), Act::Tracker(TrackerMode::Up))
        .within(3.0, seconds(200))
}

fn clocks(dice: &mut Dice) -> Scenario {
    let count = dice.within(2, 8);
    Scenario::new("sleeping and jumping clocks")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .at(
            dice.millis(100, 3_000),
            Act::Sleeps(dice.leech(count), dice.millis(100, 30_000)),
        )
        .at(
            dice.millis(100, 3_000),
            Act::ClockJumps(dice.leech(count), dice.millis(1_000, 7_200_000)),
        )
        .at(
            dice.millis(100, 3_000),
            Act::Sleeps(Who::Seed(0), dice.millis(100, 10_000)),
        )
        .within(3.0, seconds(200))
}

fn moves(dice: &mut Dice) -> Scenario {
    let count = dice.within(2, 8);
    let mut scenario = Scenario::new("addresses that change")
        .torrent(dice.torrent())
        .seeds(2, LINK)
        .leeches(count, LINK)
        .within(3.0, seconds(200));
    for _ in 0..dice.within(1, 4) {
        scenario = scenario.at(dice.millis(100, 4_000), Act::Moves(dice.anybody(count)));
    }
    scenario
}

fn breaking(dice: &mut Dice) -> Scenario {
    let count = dice.within(2, 8);
    let mut scenario = Scenario::new("connections that break")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .within(3.0, seconds(300));
    for _ in 0..dice.within(1, 6) {
        let (a, b) = (dice.leech(count), Who::Seed(0));
        let act = match dice.within(0, 2) {
            0 => Act::Reset(a, b),
            _ => Act::Sever(a, b),
        };
        scenario = scenario.at(dice.millis(100, 4_000), act);
    }
    scenario
}

fn stop_reading(dice: &mut Dice) -> Scenario {
    let count = dice.within(2, 8);
    let who = dice.anybody(count);
    let time = dice.millis(100, 3_000);
    Scenario::new("peers that stop reading")
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .at(time, Act::StopsReading(who))
        .at(time + dice.millis(1_000, 60_000), Act::ReadsAgain(who))
        .within(3.0, seconds(300))
}

fn odd(dice: &mut Dice) -> Scenario {
    let torrent = NewContent {
        len: dice.within(1, 400_000),
        piece_length: dice.one(&[1000, 16 << 10, 16_385, 50_000, 1 << 20]),
        file_count: dice.one(&[1, 2, 30]),
        ..NewContent::default()
    };
    Scenario::new("odd pieces and files")
        .torrent(torrent)
        .seeds(1, LINK)
        .leeches(dice.within(1, 8), LINK)
        .within(3.0, seconds(40))
}
