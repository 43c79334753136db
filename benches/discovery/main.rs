//! Times to the metadata of a magnet link, with real processes and a link of 100 ms: `cargo bench --bench discovery`.
//!
//! The other hosts, 60 nodes of the DHT and a client that has the torrents, are in one network namespace; the client
//! that is measured is in another. A relay joins both by a link of 100 Mbit/s and 50 ms each way. Prints the median of
//! [`RUNS`] for the engine and, if `tests/peers/install` has installed it, for libtorrent. Exits with 1 if the engine
//! misses a goal. Needs root or user namespaces, and `/dev/net/tun`.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench may fail as it likes, and its modules are seen by nobody else"
)]

mod client;
mod link;
#[path = "../../tests/support/namespace.rs"]
mod namespace;
mod nodes;
mod seed;

use std::env;
use std::net::SocketAddr;
use std::process::ExitCode;

use self::link::Link;
use self::namespace::Namespace;
use self::nodes::Nodes;
use self::seed::Seed;

/// Measurements of each row, each with a torrent of its own.
pub const RUNS: usize = 5;

/// The measured cases: the way of the client, bytes of metadata, and the goal in milliseconds.
const ROWS: [(&str, &str, usize, u64); 4] = [
    ("peer", "over one peer", 40_000, 520),
    ("peer", "over one peer", 400_000, 900),
    ("warm", "by the DHT alone, table warm", 40_000, 750),
    ("cold", "by the DHT alone, from one node", 40_000, 2000),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if arguments.first().is_some_and(|argument| argument == "client") {
        return client::run(&arguments[1..]);
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("times are measured with optimized code: cargo bench --bench discovery");
        return ExitCode::SUCCESS;
    }
    let addresses = nodes::addresses().into_iter().chain([seed::ADDRESS]);
    let addresses: Vec<_> = addresses.map(|address| address.ip()).collect();
    match namespace::enter("ECS_TORRENT_DISCOVERY_NAMESPACE", &addresses) {
        Namespace::Inside => measure(),
        Namespace::Ran(code) => code,
        Namespace::Unavailable(reason) => {
            println!("not measured: {reason}");
            ExitCode::SUCCESS
        }
    }
}

fn measure() -> ExitCode {
    let Some(link) = Link::new() else {
        println!("not measured: no interfaces can be created");
        return ExitCode::SUCCESS;
    };
    let nodes = Nodes::start();
    let lens: Vec<usize> = ROWS.iter().flat_map(|(_, _, len, _)| [*len; 2 * RUNS]).collect();
    let seed = Seed::start(&lens, nodes.first());
    let mut torrents = seed.links.iter();
    let has_libtorrent = Link::has_libtorrent();
    let mut is_good = true;
    for (mode, what, len, goal) in ROWS {
        let known: SocketAddr = if mode == "peer" { seed::ADDRESS } else { nodes.first() };
        let mut median = |program: fn(&Link, &str, &str, SocketAddr) -> Option<u64>, is_there| {
            let times: Option<Vec<u64>> = torrents
                .by_ref()
                .take(RUNS)
                .map(|torrent| {
                    if is_there {
                        program(&link, mode, torrent, known)
                    } else {
                        None
                    }
                })
                .collect();
            let mut times = times?;
            times.sort_unstable();
            Some((times[RUNS / 2], times[RUNS - 1]))
        };
        let ours = median(Link::run_engine, true);
        let theirs = median(Link::run_libtorrent, has_libtorrent);
        let show = |times: Option<(u64, u64)>| match times {
            Some((median, slowest)) => format!("{median} ms (slowest {slowest})"),
            None => "not measured".to_owned(),
        };
        println!(
            "{len} bytes {what}: {}, goal {goal} ms; libtorrent {}",
            show(ours),
            show(theirs)
        );
        is_good &= ours.is_some_and(|(median, _)| median < goal);
    }
    ExitCode::from(u8::from(!is_good))
}
