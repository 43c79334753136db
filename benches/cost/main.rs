//! Cost of untrusted input per byte: `cargo bench --bench cost`.
//!
//! Measures CPU time and peak memory per byte for each wire message, tracker reply, extension message, query of the
//! DHT, and for each torrent file, magnet link and request head sent to the API. Exits with 1 if a row exceeds 100 ns
//! or 64 bytes per byte, unless the row names another bound. Wire messages pass through a whole engine over the
//! simulator, on many connections at once; tick times exclude the simulated backends. Panics if an input is not read or
//! refused as its row says. Needs Linux. Arguments select rows by parts of their names. `--json` prints JSON.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench may fail as it likes, and its modules are seen by nobody else"
)]

mod api;
mod dht;
mod formats;
mod meter;
mod report;
mod stranger;
mod wire;

#[allow(dead_code, reason = "another bench watches the daemon for an hour")]
#[path = "../soak/daemon.rs"]
mod daemon;
#[allow(dead_code, reason = "other benches use idle engines")]
#[path = "../support/engines.rs"]
mod engines;
#[path = "../../tests/support/shapes.rs"]
mod shapes;
#[allow(dead_code, reason = "other benches use described torrents")]
#[path = "../support/torrents.rs"]
mod torrents;

use std::env;
use std::process::ExitCode;

use self::report::Row;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("costs are measured on optimized code: cargo bench --bench cost");
        return ExitCode::SUCCESS;
    }
    let names: Vec<&String> = arguments.iter().filter(|name| !name.starts_with("--")).collect();
    let is_wanted = |group: &str, name: &str| {
        let text = format!("{group} {name}");
        names.is_empty() || names.iter().any(|part| text.contains(*part))
    };
    let mut rows: Vec<Row> = Vec::new();
    wire::measure(&is_wanted, &mut rows);
    formats::measure(&is_wanted, &mut rows);
    api::measure(&is_wanted, &mut rows);
    dht::measure(&is_wanted, &mut rows);
    let excesses = report::report(&rows, arguments.iter().any(|argument| argument == "--json"));
    for excess in &excesses {
        eprintln!("too much: {excess}");
    }
    match excesses.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Decides by group and name whether a row is selected.
pub type IsWanted<'a> = &'a dyn Fn(&str, &str) -> bool;
