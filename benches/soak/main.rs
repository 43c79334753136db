//! Runs a daemon under all attacks at once, during an honest transfer.
//!
//! The daemon is the real binary, in a process of its own. One honest seed serves it a torrent that it downloads,
//! removes with its data, and downloads again, as long as the soak lasts. Meanwhile, attackers on loopback addresses
//! attack its peer port, its API and its torrents. Each minute, the soak prints memory, processor time, throughput and
//! the API's response time. At the end it prints a verdict and, with `--json` and `--plot`, writes the whole curve.
//!
//! ```sh
//! cargo bench --bench soak                                   # an hour
//! cargo bench --bench soak -- --minutes 2 --attacks flip-flop,tiny
//! ```

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a program of its own, whose modules are seen by nobody else"
)]

mod attacks;
#[path = "../../tests/support/content.rs"]
mod content;
mod curve;
mod daemon;
mod honest;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

use crate::curve::{Curve, Sample};
use crate::daemon::Daemon;
use crate::honest::Honest;

/// Time between two samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug, Parser)]
#[command(about = "Runs a daemon under attack beside an honest transfer")]
struct Options {
    /// Duration of the attacks.
    #[arg(long, default_value_t = 60.0, value_name = "MINUTES")]
    minutes: f64,
    /// MiB of the torrent that is downloaded repeatedly.
    #[arg(long, default_value_t = 128, value_name = "MIB")]
    size: usize,
    /// Attacks to run, by the beginning of their name; all by default.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    attacks: Vec<String>,
    /// Lists the attacks.
    #[arg(long)]
    list: bool,
    /// A folder for the data and the state.
    #[arg(long, default_value = "/dev/shm", value_name = "DIR")]
    dir: PathBuf,
    /// Writes all samples as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draws memory and throughput as SVG.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        for attack in attacks::ATTACKS {
            println!("{:<16} {}", attack.name, attack.what);
        }
        return ExitCode::SUCCESS;
    }
    let folder = tempfile::Builder::new()
        .prefix("ecs-torrent-soak-")
        .tempdir_in(&options.dir);
    let folder = match folder {
        Ok(folder) => folder,
        Err(error) => {
            eprintln!("error: {}: {error}", options.dir.display());
            return ExitCode::FAILURE;
        }
    };
    let curve = soak(&options, folder.path());
    if let Some(path) = &options.json {
        std::fs::write(path, curve.to_json()).expect("the JSON file can be written");
    }
    if let Some(path) = &options.plot {
        std::fs::write(path, curve.to_svg()).expect("the plot can be written");
    }
    match curve.verdict() {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(failures) => {
            failures.iter().for_each(|failure| eprintln!("error: {failure}"));
            ExitCode::FAILURE
        }
    }
}

fn soak(options: &Options, folder: &std::path::Path) -> Curve {
    let daemon = Arc::new(Daemon::start(folder));
    let honest = Honest::start(folder, options.size << 20, &daemon);
    // The first minute, or a tenth of the whole, is without attacks: it shows the undisturbed transfer rate.
    let total = Duration::from_secs_f64(options.minutes * 60.0);
    let quiet = total.div_f64(10.0).min(Duration::from_secs(60));
    let stop = Arc::new(AtomicBool::new(false));
    let mut curve = Curve::new(quiet);
    println!("{}", Sample::HEADING);
    let begun = Instant::now();
    let mut attackers = Vec::new();
    let mut printed = 0;
    while begun.elapsed() < quiet + total {
        if attackers.is_empty() && begun.elapsed() >= quiet {
            println!("the attacks begin");
            attackers = attacks::start(&options.attacks, &daemon, &honest.target(), &stop);
        }
        thread::sleep(SAMPLE_INTERVAL);
        let sample = Sample::take(begun.elapsed(), &daemon, honest.bytes());
        curve.push(sample);
        let minute = begun.elapsed().as_secs() / 60;
        if minute != printed || total < Duration::from_secs(300) {
            printed = minute;
            println!("{}", curve.last_line());
        }
    }
    stop.store(true, Ordering::Relaxed);
    attackers.into_iter().for_each(|attacker| drop(attacker.join()));
    println!("the attacks end");
    // Memory that grew in a burst has to be returned.
    thread::sleep(SAMPLE_INTERVAL * 4);
    curve.push_after(Sample::take(begun.elapsed(), &daemon, honest.bytes()));
    curve
}
