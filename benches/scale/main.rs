//! Cost per torrent and per peer as their number grows: `cargo bench --workspace --bench scale`.
//!
//! Prints the tables of ARCHITECTURE.md (section "Scale"). Runs one engine in the simulator on one thread. Times are
//! the engine's tick times without its backends; bytes are the memory that ticks have allocated and not freed. The
//! argument `torrents` or `peers` selects one table, numbers select rows.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench may fail as it likes, and its modules are seen by nobody else"
)]

mod peer_table;
mod torrent_table;

#[path = "../support/engines.rs"]
mod engines;
#[path = "../support/many_peers.rs"]
mod many_peers;
#[path = "../support/peers.rs"]
mod peers;
#[allow(dead_code, reason = "torrents that are only described are for other benches")]
#[path = "../support/torrents.rs"]
mod torrents;
#[path = "../support/watch.rs"]
mod watch;

use std::alloc::System;
use std::env;
use std::sync::Arc;
use std::time::Duration;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

use self::watch::Stopwatch;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        return println!("times are of optimized code: cargo bench --workspace --bench scale");
    }
    let wants = |table: &str| {
        let has = |name: &str| arguments.iter().any(|argument| argument == name);
        has(table) || !(has("torrents") || has("peers"))
    };
    let rows: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    let choose = |all: &[usize]| if rows.is_empty() { all.to_vec() } else { rows.clone() };
    if wants("torrents") {
        torrent_table::table(&choose(&[1, 10, 100, 1_000, 10_000, 100_000]));
    }
    if wants("peers") {
        peer_table::table(&choose(&[1, 10, 100, 500, 2_000, 5_000]));
    }
}

/// Creates a stopwatch that also measures the memory allocated by ticks.
fn watch() -> Arc<Stopwatch> {
    Arc::new(Stopwatch::weighing(|| {
        let stats = ALLOCATOR.stats();
        stats.bytes_allocated - stats.bytes_deallocated
    }))
}

/// Returns the median of the times that `run` returns over `rounds` calls.
fn median(rounds: usize, mut run: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<Duration> = (0..rounds).map(|_| run()).collect();
    times.sort();
    times[rounds / 2]
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
