//! Compares ecs-torrent with every other installed client and with a minimal client.
//!
//! ```sh
//! cargo bench --bench swarm                             # every row, five runs each
//! cargo bench --bench swarm -- leech seed-1 --runs 3     # some rows
//! cargo bench --bench swarm -- --json out.json --plot out.svg
//! ```
//!
//! Everything runs in its own network namespace, with the data in memory (`/dev/shm`). The clients of a row take turns,
//! so that a noisy minute affects all of them. The report shows medians, and prefers CPU seconds to elapsed times.
//! Measured clients transfer to or from the [`lower_bound`] program, whose own cost is low.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a program of its own, whose modules are seen by nobody else"
)]

mod clients;
mod content;
mod engine;
mod lab;
mod lower_bound;
mod many_peers;
#[path = "../../tests/support/namespace.rs"]
mod namespace;
mod options;
mod plot;
mod process;
mod report;
mod rows;
mod small;
mod work;

use std::process::ExitCode;

use clap::Parser;

use self::options::{Mode, Options};

fn main() -> ExitCode {
    let options = Options::parse();
    match options.mode {
        Some(Mode::LowerBound(command)) => lower_bound::run(command),
        Some(Mode::Engine(command)) => engine::run(command),
        None => match namespace::enter("ECS_TORRENT_BENCH_NAMESPACE", &lab::addresses()) {
            namespace::Namespace::Inside => measure(&options),
            namespace::Namespace::Ran(code) => code,
            namespace::Namespace::Unavailable(reason) => {
                eprintln!("error: no network namespace to measure in: {reason}");
                ExitCode::FAILURE
            }
        },
    }
}

fn measure(options: &Options) -> ExitCode {
    let lab = match lab::Lab::new(options) {
        Ok(lab) => lab,
        Err(error) => {
            eprintln!("error: {}: {error}", options.dir.display());
            return ExitCode::FAILURE;
        }
    };
    let clients = clients::found(options);
    let rows: Vec<_> = rows::ROWS.iter().filter(|row| options.wants(row.name)).collect();
    let results = work::measure_all(&lab, &rows, &clients, options);
    let report = report::Report::new(&rows, &clients, results, options);
    report.print();
    let written = report.write_json(options.json.as_deref());
    let written = written.and_then(|()| plot::write(&report, options.plot.as_deref()));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
