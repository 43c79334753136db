//! Simulates a swarm on a virtual clock, reports its progress, and plots it.
//!
//! ```sh
//! cargo run --release --example sim -- --peers 200 --seed 7 --svg swarm.svg
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a program")]

use std::cell::Cell;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use clap::error::ErrorKind;
use ecs_torrent::components::settings::Settings;
use ecs_torrent::engine::sim::{NewContent, Path};
use ecs_torrent::sim::hostile::Hostility;
use ecs_torrent::sim::{Act, Link, Look, Scenario, Who, plot};
use indicatif::{ProgressBar, ProgressStyle};

/// Simulates a swarm of ecs-torrent engines on a virtual clock, reports its progress, and plots it.
///
/// The same seed gives the same run. Exit codes: 0 if all leechers finished and no invariant was violated, 1 if not, 2
/// for wrong arguments.
#[derive(Debug, Parser)]
#[command(
    name = "sim",
    max_term_width = 100,
    after_help = "\
Examples:
  sim --peers 200 --seed 7                    a flash crowd
  sim --peers 40 --hostile 17 --size 16       a third does harm
  sim --peers 40 --crashes 10                 ten lose their power on the way
  sim --peers 30 --up 256 --down 2048         home lines
  sim --peers 500 --tick 20                   a large one, in ticks that batch more

With cargo: cargo run --release --example sim -- --peers 200 --seed 7"
)]
struct Options {
    /// Seed of all random decisions.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Leechers.
    #[arg(long, default_value_t = 50, value_parser = range(1, 10_000))]
    peers: usize,
    /// Seeds.
    #[arg(long, default_value_t = 1, value_parser = range(1, 10_000))]
    seeds: usize,
    /// Hostile peers, of all kinds in turn.
    #[arg(long, default_value_t = 0, value_parser = range(0, 10_000))]
    hostile: usize,
    /// MiB of the torrent.
    #[arg(long, default_value_t = 64, value_name = "MIB", value_parser = range(1, 16 << 10))]
    size: usize,
    /// KiB of a piece.
    #[arg(long, default_value_t = 256, value_name = "KIB", value_parser = range(1, 64 << 10))]
    piece: usize,
    /// KiB/s that each node can send.
    #[arg(long, default_value_t = 1024, value_name = "KIB", value_parser = range(1, 1 << 30))]
    up: usize,
    /// KiB/s that each node can receive.
    #[arg(long, default_value_t = 4096, value_name = "KIB", value_parser = range(1, 1 << 30))]
    down: usize,
    /// Milliseconds from one node to another.
    #[arg(long, default_value_t = 30, value_name = "MS", value_parser = range(0, 60_000))]
    latency: usize,
    /// Leechers that lose power during the download, one second apart, and start again 10 s later.
    #[arg(long, default_value_t = 0, value_parser = range(0, 10_000))]
    crashes: usize,
    /// Minimum number of milliseconds between two ticks of an engine; more is faster to simulate.
    #[arg(long, default_value_t = 1, value_name = "MS", value_parser = range(1, 1000))]
    tick: usize,
    /// Threads on which engines tick; by default one per processor. The result does not depend on it.
    #[arg(long, value_parser = range(1, 1024))]
    threads: Option<usize>,
    /// SVG file into which the progress of each leecher is drawn.
    #[arg(long, default_value = "sim.svg", value_name = "FILE")]
    svg: PathBuf,
}

fn range(least: u64, most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..=most)
}

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) if error.kind() == ErrorKind::DisplayHelp => error.exit(),
        Err(error) => {
            let text = error.to_string();
            eprintln!("{} (see --help)", text.lines().next().unwrap_or_default());
            return ExitCode::from(2);
        }
    };
    use_huge_pages();
    // Reports an unusable path now, not after the simulation.
    if let Err(error) = std::fs::write(&options.svg, "") {
        eprintln!("error: cannot draw to {}: {error}", options.svg.display());
        return ExitCode::from(2);
    }
    let begun = Instant::now();
    let outcome = swarm(&options).run();
    println!("{outcome}");
    println!(
        "{:.1} s of real time, {} ticks, {} events",
        begun.elapsed().as_secs_f64(),
        outcome.ticks,
        outcome.events
    );
    if let Err(error) = std::fs::write(&options.svg, plot::svg(&outcome)) {
        eprintln!("error: cannot draw to {}: {error}", options.svg.display());
        return ExitCode::FAILURE;
    }
    println!("drawn in {}", options.svg.display());
    match outcome.is_good() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Restarts the program with huge pages if the allocator supports them. Hundreds of worlds do not fit the processor's
/// caches, which costs a fifth of the time.
fn use_huge_pages() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use std::env;
        use std::os::unix::process::CommandExt;
        use std::process::Command;
        const TUNABLES: &str = "GLIBC_TUNABLES";
        let Ok(program) = env::current_exe() else { return };
        if env::var_os(TUNABLES).is_none() {
            // `exec` returns only on failure; the program then continues without huge pages.
            let _ = Command::new(program)
                .args(env::args_os().skip(1))
                .env(TUNABLES, "glibc.malloc.hugetlb=1")
                .exec();
        }
    }
}

fn swarm(options: &Options) -> Scenario {
    let line = Link::asymmetric((options.up as u64) << 10, (options.down as u64) << 10);
    let mut settings = Settings::default();
    settings.tick.min_interval_us = options.tick as u64 * 1000;
    let threads = options
        .threads
        .or_else(|| available_parallelism().ok().map(usize::from));
    let mut scenario = Scenario::new("simulated swarm")
        .seed(options.seed)
        .torrent(NewContent {
            len: options.size << 20,
            piece_length: (options.piece as u32) << 10,
            ..NewContent::default()
        })
        .settings(settings)
        // Engines that tick together share all threads.
        .tick_quantum(
            Duration::from_millis(options.tick.div_ceil(4) as u64),
            threads.unwrap_or(1),
        )
        .seeds(options.seeds, line)
        .leeches(options.peers, line)
        .path(Path::new(Duration::from_millis(options.latency as u64)).with_jitter(Duration::from_millis(2)))
        .within(4.0, Duration::from_secs(120))
        .untraced();
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
    println!(
        "{} MiB from {} to {} leechers{} with {} KiB/s up and {} KiB/s down; {:.1} s at least",
        options.size,
        plural(options.seeds, "seed"),
        options.peers,
        match options.hostile {
            0 => String::new(),
            count => format!(" and {}", plural(count, "hostile peer")),
        },
        options.up,
        options.down,
        scenario.ideal().as_secs_f64()
    );
    let reporter = ProgressReporter::new(scenario.ideal());
    scenario.watch(move |look| reporter.report(look))
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Reports a run in progress: a row for each twentieth of the ideal time, and a progress bar on a terminal.
struct ProgressReporter {
    step: Duration,
    next_row: Cell<Duration>,
    bar: ProgressBar,
}

impl ProgressReporter {
    fn new(ideal: Duration) -> Self {
        println!(
            "{:>9}  {:>6}  {:>6}  {:>6}  {:>6}",
            "simulated", "least", "median", "most", "done"
        );
        let style = ProgressStyle::with_template("{spinner} {bar:30} {msg}, {elapsed}");
        let bar = ProgressBar::new(1000).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self {
            step: ideal / 20,
            next_row: Cell::new(Duration::ZERO),
            bar,
        }
    }

    fn report(&self, look: &Look) {
        let mut parts: Vec<f64> = look.parts.values().copied().collect();
        parts.sort_by(f64::total_cmp);
        let (Some(least), Some(most)) = (parts.first(), parts.last()) else {
            return;
        };
        let done = parts.iter().filter(|part| **part >= 1.0).count();
        let mean = parts.iter().sum::<f64>() / parts.len() as f64;
        self.bar.set_position((mean * 1000.0) as u64);
        self.bar
            .set_message(format!("{:.1} s simulated", look.at.as_secs_f64()));
        self.bar.suspend(|| {
            for (at, what) in look.events {
                println!("{:>7.1} s  {what}", at.as_secs_f64());
            }
            if look.at >= self.next_row.get() {
                self.next_row.set(look.at + self.step);
                println!(
                    "{:>7.1} s  {:>4.0} %  {:>4.0} %  {:>4.0} %  {done:>6}",
                    look.at.as_secs_f64(),
                    least * 100.0,
                    parts[parts.len() / 2] * 100.0,
                    most * 100.0
                );
            }
        });
    }
}

impl Drop for ProgressReporter {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
