//! A swarm on a virtual clock, drawn.
//!
//! ```sh
//! cargo run --release --example sim -- --peers 200 --seed 7 --svg swarm.svg
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a program")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use ecs_torrent::engine::sim::{NewContent, Path};
use ecs_torrent::sim::hostile::Hostility;
use ecs_torrent::sim::{Act, Line, Scenario, Who, plot};

/// Simulates a swarm of ecs-torrent engines, tells what happens, and draws it.
#[derive(Debug, Parser)]
struct Options {
    /// Decides everything that is chance.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Leechers.
    #[arg(long, default_value_t = 50)]
    peers: usize,
    /// Seeds.
    #[arg(long, default_value_t = 1)]
    seeds: usize,
    /// Hostile peers, of all kinds in turn.
    #[arg(long, default_value_t = 0)]
    hostile: usize,
    /// MiB of the torrent.
    #[arg(long, default_value_t = 64, value_name = "MIB")]
    size: usize,
    /// KiB of a piece.
    #[arg(long, default_value_t = 256, value_name = "KIB")]
    piece: u32,
    /// KiB/s that each node can send.
    #[arg(long, default_value_t = 1024, value_name = "KIB")]
    up: u64,
    /// KiB/s that each node can receive.
    #[arg(long, default_value_t = 4096, value_name = "KIB")]
    down: u64,
    /// Milliseconds from one node to another.
    #[arg(long, default_value_t = 30, value_name = "MS")]
    latency: u64,
    /// Leechers that lose their power on the way, a second apart from each other, and start again 10 s later.
    #[arg(long, default_value_t = 0)]
    crashes: usize,
    /// Where the progress of each leecher is drawn.
    #[arg(long, default_value = "sim.svg", value_name = "FILE")]
    svg: PathBuf,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let line = Line::asymmetric(options.up << 10, options.down << 10);
    let mut scenario = Scenario::new("simulated swarm")
        .seed(options.seed)
        .torrent(NewContent {
            len: options.size << 20,
            piece_length: options.piece << 10,
            ..NewContent::default()
        })
        .seeds(options.seeds, line)
        .leeches(options.peers, line)
        .path(Path::new(Duration::from_millis(options.latency)).with_jitter(Duration::from_millis(2)))
        .within(4.0, Duration::from_secs(120));
    for number in 0..options.hostile {
        let hostility = Hostility::ALL[number % Hostility::ALL.len()];
        scenario = scenario.hostiles(1, hostility, line);
    }
    for number in 0..options.crashes.min(options.peers) {
        let time = Duration::from_secs(number as u64 + 1);
        let who = Who::Leech(number);
        scenario = scenario
            .at(time, Act::PowerFails(who))
            .at(time + Duration::from_secs(10), Act::Starts(who));
    }
    let begun = Instant::now();
    let outcome = scenario.run();
    let took = begun.elapsed().as_secs_f64();

    println!(
        "{:>9}  {:>6}  {:>6}  {:>6}  {:>5}",
        "time", "least", "median", "most", "done"
    );
    let step = (outcome.progress.len() / 20).max(1);
    let mut acts = outcome.timeline.iter().peekable();
    for (at, parts) in outcome.progress.iter().step_by(step) {
        while let Some((when, what)) = acts.next_if(|(when, _)| when <= at) {
            println!("{:>7.1} s  {what}", when.as_secs_f64());
        }
        let mut sorted: Vec<f64> = parts.values().map(|part| part * 100.0).collect();
        sorted.sort_by(f64::total_cmp);
        let (Some(least), Some(most)) = (sorted.first(), sorted.last()) else {
            continue;
        };
        let median = sorted[sorted.len() / 2];
        let done = sorted.iter().filter(|part| **part >= 100.0).count();
        println!(
            "{:>7.1} s  {least:>4.0} %  {median:>4.0} %  {most:>4.0} %  {done:>5}",
            at.as_secs_f64()
        );
    }
    println!("{outcome}");
    println!(
        "{took:.1} s of real time, {} ticks, {} events",
        outcome.ticks, outcome.events
    );
    if let Err(error) = std::fs::write(&options.svg, plot::svg(&outcome)) {
        eprintln!("error: {}: {error}", options.svg.display());
        return ExitCode::FAILURE;
    }
    println!("drawn in {}", options.svg.display());
    match outcome.is_good() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
