//! What a byte of a stranger costs: `cargo bench --bench cost`.
//!
//! For each message of the wire, each reply of a tracker, each extension message and each body that the API takes:
//! nanoseconds of a processor, and bytes of memory held at once, for each byte that was sent. Fails above 100 ns or 64
//! bytes, but for rows that say what else bounds them. Messages go through a whole engine over the simulator, on many
//! connections at once; ticks are timed without its backends. Parts of names as arguments choose rows, `--json` prints
//! JSON.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench may fail as it likes, and its modules are seen by nobody else"
)]

mod formats;
mod meter;
mod report;
mod stranger;
mod wire;

#[allow(dead_code, reason = "idle engines are for other benches")]
#[path = "../support/engines.rs"]
mod engines;
#[path = "../../tests/support/shapes.rs"]
mod shapes;
#[allow(dead_code, reason = "torrents that are only described are for other benches")]
#[path = "../support/torrents.rs"]
mod torrents;

use std::env;
use std::process::ExitCode;

use self::report::Row;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("costs are of optimised code: cargo bench --bench cost");
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
    let excesses = report::report(&rows, arguments.iter().any(|argument| argument == "--json"));
    for excess in &excesses {
        eprintln!("too much: {excess}");
    }
    match excesses.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Whether a row is wanted, by its group and name.
pub type IsWanted<'a> = &'a dyn Fn(&str, &str) -> bool;
