//! Compares download times of simulated swarms with the minimum that their links allow, and prints how much each class
//! of peers uploads and downloads. A table shows swarms of several sizes with several piece lengths.
//!
//! ```sh
//! cargo bench --bench efficiency
//! EFFICIENCY_SEEDS=3 EFFICIENCY_PEERS=30 EFFICIENCY_MIB=16 cargo bench --bench efficiency
//! EFFICIENCY_SEEDS=0 EFFICIENCY_LATENCY=300 cargo bench --bench efficiency     # the tables alone
//! EFFICIENCY_SEEDS=0 EFFICIENCY_MIXED=0 EFFICIENCY_SWARMS=20x32x1024,50x64x256 EFFICIENCY_SWARM_SEEDS=3 \
//!     cargo bench --bench efficiency                       # some rows: leechers, MiB, KiB of a piece
//! ```

#![allow(clippy::print_stdout, reason = "it is a program")]

use std::time::{Duration, Instant};

use ecs_torrent::components::settings::Settings;
use ecs_torrent::engine::sim::{NewContent, Path, TrackerOptions};
use ecs_torrent::sim::{Link, Outcome, Scenario, Who};

/// Default torrent size in MiB. Connecting, the first pieces and the last ones take some seconds at any size.
const MIB: u64 = 128;

/// Maximum number of peers in a tracker reply, as in opentracker. With 50, the last peers to announce know fewer peers
/// than the others.
const NAMED: usize = 200;

/// Capacity of the equal links in bytes per second.
const EQUAL: u64 = 2_500_000;

/// Downlink of every peer and uplink of the seed in the mixed swarm, in bytes per second.
const FAST: u64 = 16_000_000;

/// Uplinks of the classes of the mixed swarm in bytes per second, with four leechers in each class.
const CLASSES: [u64; 5] = [500_000, 1_000_000, 2_000_000, 4_000_000, 8_000_000];
const OF_EACH: usize = 4;

/// Links of the table: 1 MiB/s up and 4 MiB/s down.
const HOME: Link = Link::asymmetric(1 << 20, 4 << 20);

/// Leechers and MiB of the rows of the table.
const SWARMS: [(usize, u64); 4] = [(10, 32), (20, 32), (50, 64), (100, 64)];

/// Piece lengths of the rows of the table, in KiB.
const PIECES: [u32; 5] = [64, 128, 256, 512, 1024];

fn main() {
    let seeds = number_from("EFFICIENCY_SEEDS", 10);
    let peers = number_from("EFFICIENCY_PEERS", 100) as usize;
    let mib = number_from("EFFICIENCY_MIB", MIB);
    let line = Link::symmetric(EQUAL);

    println!("flash crowd: 1 seed, {peers} leechers, equal links of {EQUAL} B/s, {mib} MiB");
    let mut ratios: Vec<f64> = (1..=seeds)
        .map(|seed| {
            let begun = Instant::now();
            let outcome = swarm(seed, mib, 64).seeds(1, line).leeches(peers, line).run();
            report(&outcome, begun.elapsed());
            outcome.efficiency()
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    if let (Some(median), Some(worst)) = (ratios.get(ratios.len() / 2), ratios.last()) {
        println!("  median {median:.2} x the bound, worst {worst:.2} x");
    }

    if number_from("EFFICIENCY_MIXED", 1) > 0 {
        print_mixed(mib);
    }
    print_swarms();
}

/// Prints when the members of each class of a mixed swarm finish, and what they send and receive.
fn print_mixed(mib: u64) {
    let piece_kib = number_from("EFFICIENCY_PIECE", 64) as u32;
    println!("mixed swarm: 1 seed, {OF_EACH} leechers of each class, {mib} MiB in pieces of {piece_kib} KiB");
    let mut mixed = swarm(1, mib, piece_kib).seeds(1, Link::symmetric(FAST));
    for up in CLASSES {
        mixed = mixed.leeches(OF_EACH, Link::asymmetric(up, FAST));
    }
    let begun = Instant::now();
    let outcome = mixed.run();
    report(&outcome, begun.elapsed());
    println!("  uplink kB/s   done s   download kB/s   sent / received");
    for (class, up) in CLASSES.iter().enumerate() {
        let members = (class * OF_EACH..(class + 1) * OF_EACH).map(Who::Leech);
        let (mut done, mut sent, mut received) = (0.0, 0.0, 0.0);
        for who in members {
            let (up, down) = outcome.traffic[&who];
            let took = outcome.finished.get(&who).unwrap_or(&outcome.took);
            done += took.as_secs_f64() / OF_EACH as f64;
            sent += up as f64;
            received += down as f64;
        }
        let speed = (mib << 20) as f64 / done / 1000.0;
        println!(
            "  {:>11}  {done:>7.1}  {speed:>14.0}  {:>16.2}",
            up / 1000,
            sent / received
        );
    }
}

/// Leechers, MiB and piece length in KiB of the rows of the table.
fn rows() -> Vec<(usize, u64, u32)> {
    let Ok(text) = std::env::var("EFFICIENCY_SWARMS") else {
        let row = |(leechers, mib)| PIECES.map(|piece_kib| (leechers, mib, piece_kib));
        return SWARMS.into_iter().flat_map(row).collect();
    };
    let row = |text: &str| {
        let mut numbers = text.split('x').map(|number| number.parse().ok());
        let mut next = || numbers.next().flatten();
        Some((next()? as usize, next()?, u32::try_from(next()?).ok()?))
    };
    let rows = text
        .split(',')
        .map(|text: &str| row(text).unwrap_or_else(|| panic!("not a row: {text}")));
    rows.collect()
}

/// Prints the last leecher's time of swarms of several sizes with several piece lengths, over both bounds.
fn print_swarms() {
    let latency = number_from("EFFICIENCY_LATENCY", 30);
    println!("flash crowds: 1 seed, equal links of 1 MiB/s up and 4 MiB/s down, {latency} ms");
    println!("  leechers   MiB  piece KiB  done s  x fluid bound  x bound of whole pieces  real s");
    let seeds = number_from("EFFICIENCY_SWARM_SEEDS", 1);
    for (leechers, mib, piece_kib) in rows() {
        for seed in 1..=seeds {
            let begun = Instant::now();
            let path = Path::new(Duration::from_millis(latency)).with_jitter(Duration::from_millis(2));
            let scenario = swarm(seed, mib, piece_kib).seeds(1, HOME).leeches(leechers, HOME);
            let outcome = scenario.path(path).run();
            println!(
                "  {leechers:>8}  {mib:>4}  {piece_kib:>9}  {:>6.1}  {:>13.2}  {:>23.2}  {:>6.0}",
                outcome.last().as_secs_f64(),
                outcome.efficiency(),
                outcome.last().as_secs_f64() / outcome.store_and_forward.as_secs_f64(),
                begun.elapsed().as_secs_f64()
            );
            for trouble in &outcome.troubles {
                println!("    {trouble}");
            }
        }
    }
}

fn swarm(seed: u64, mib: u64, piece_kib: u32) -> Scenario {
    let torrent = NewContent {
        len: (mib as usize) << 20,
        piece_length: piece_kib << 10,
        ..NewContent::default()
    };
    let mut settings = Settings::default();
    // Batches events as on a busy machine.
    settings.tick.min_interval_us = 20_000;
    Scenario::new("efficiency")
        .seed(seed)
        .torrent(torrent)
        .tracker(TrackerOptions {
            max_peers: NAMED,
            ..TrackerOptions::default()
        })
        .settings(settings)
        .within(6.0, Duration::from_secs(60))
        .untraced()
}

fn report(outcome: &Outcome, real: Duration) {
    println!(
        "  seed {:>2}: {:>5.1} s, bound {:.1} s: {:.2} x   ({:.0} s of real time)",
        outcome.seed,
        outcome.last().as_secs_f64(),
        outcome.ideal.as_secs_f64(),
        outcome.efficiency(),
        real.as_secs_f64()
    );
    for trouble in &outcome.troubles {
        println!("    {trouble}");
    }
}

fn number_from(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}
