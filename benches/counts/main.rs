//! Instructions and allocations of the engine's work, compared with `baseline.json`:
//! `cargo bench --workspace --bench counts`.
//!
//! Counts are reproducible and times are not, so CI compares counts. The bench fails if a count has grown by more than
//! 5 %; `UPDATE=1` rewrites the baseline. Arguments select scenarios by name. The allocator counts allocations and
//! valgrind counts instructions, both without each scenario's preparation. Without `--workspace`, dependencies have
//! fewer features and counts differ by one percent.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench may fail as it likes, and its modules are seen by nobody else"
)]

mod baseline;
mod meter;
mod pair;
mod process;
mod scenarios;
mod sockets;

#[path = "../support/engines.rs"]
mod engines;
#[path = "../support/streams.rs"]
mod streams;
#[path = "../support/torrents.rs"]
mod torrents;

use std::env;
use std::process::ExitCode;

use self::baseline::{Baseline, Counts};
use self::process::Child;
use self::scenarios::{SCENARIOS, Scenario};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [flag, name] = &arguments[..]
        && flag == process::SCENARIO
    {
        process::run_here(scenarios::named(name));
        return ExitCode::SUCCESS;
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("counts are of optimized code: cargo bench --workspace --bench counts");
        return ExitCode::SUCCESS;
    }
    let names: Vec<&String> = arguments.iter().filter(|name| !name.starts_with("--")).collect();
    let mut chosen: Vec<&Scenario> = names.into_iter().map(|name| scenarios::named(name)).collect();
    if chosen.is_empty() {
        chosen.extend(&SCENARIOS);
    }
    match run(&chosen) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

fn run(scenarios: &[&Scenario]) -> Result<(), String> {
    let has_valgrind = process::has_valgrind();
    let is_update = env::var_os("UPDATE").is_some();
    if !has_valgrind {
        let missing = "valgrind is not installed: instructions are not counted";
        let is_set = |variable| env::var(variable).is_ok_and(|value| value == "1");
        if is_update || is_set("REQUIRE_ALL") || is_set("REQUIRE_PEERS") {
            return Err(missing.into());
        }
        println!("{missing}");
    }
    // All scenarios run at once: other load does not change counts.
    let children: Vec<(&Scenario, Child)> = scenarios
        .iter()
        .map(|&scenario| (scenario, Child::spawn(scenario, has_valgrind)))
        .collect();
    let mut counts = Counts::new();
    for (scenario, child) in children {
        counts.insert(scenario.name.to_owned(), child.counts(scenario)?);
    }
    if is_update {
        return Baseline::update(counts);
    }
    let grown = Baseline::read()?.compare(&counts);
    if grown.is_empty() {
        Ok(())
    } else {
        Err(grown.join("\n"))
    }
}
