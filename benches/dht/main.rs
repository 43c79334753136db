//! A node of the DHT under load: `cargo bench --bench dht`.
//!
//! Sends 2 000 queries a second from 256 addresses to the daemon, and the same to libtorrent if `tests/peers/install`
//! has installed it. Prints the CPU time and resident memory of both, and their ratio. Then fills a node with whole
//! routing tables of IPv4 and IPv6, and 10 000 peers of each, and prints its heap memory. Exits with 1 if the daemon
//! takes more than 5 % of a core, or the node more than 8 MiB. Needs Linux. `--daemon PATH` measures another binary,
//! `--memory` the heap memory only.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench may fail as it likes, and its modules are seen by nobody else"
)]

mod load;
mod memory;
mod nodes;

use std::env;
use std::process::ExitCode;

use self::nodes::RunningNode;

/// The share of a core that the daemon may take, in percent.
const MAX_CPU_PERCENT: f64 = 5.0;

/// The memory that a full node may take, in bytes.
const MAX_MEMORY: usize = 8 << 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("a node is measured with optimized code: cargo bench --bench dht");
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|argument| argument == "--memory") {
        return ExitCode::from(u8::from(measure_memory() >= MAX_MEMORY));
    }
    let path = arguments.iter().position(|argument| argument == "--daemon");
    let daemon = path.map_or(env!("CARGO_BIN_EXE_ecs-torrent"), |at| &arguments[at + 1]);
    let ours = measure("ecs-torrent", &RunningNode::ours(daemon));
    let theirs = RunningNode::libtorrent().map(|node| measure("libtorrent", &node));
    match theirs {
        Some(theirs) => println!(
            "ecs-torrent takes {:.2} of libtorrent's CPU time and {:.2} of its memory",
            ours.cpu_percent / theirs.cpu_percent,
            ours.memory as f64 / theirs.memory as f64
        ),
        None => println!("libtorrent is missing; tests/peers/install brings it"),
    }
    let is_good = ours.cpu_percent < MAX_CPU_PERCENT && measure_memory() < MAX_MEMORY;
    ExitCode::from(u8::from(!is_good))
}

fn measure_memory() -> usize {
    let memory = memory::of_full_node();
    println!("a full node takes {:.2} MiB", memory as f64 / 1024.0 / 1024.0);
    memory
}

struct Cost {
    cpu_percent: f64,
    memory: usize,
}

fn measure(name: &str, node: &RunningNode) -> Cost {
    let (cpu, idle) = (node.cpu_time(), node.memory());
    let outcome = load::send(node.address);
    let cpu_percent = 100.0 * (node.cpu_time() - cpu).as_secs_f64() / outcome.time.as_secs_f64();
    let memory = node.memory();
    println!(
        "{name}: {cpu_percent:.1} % of a core for {:.0} queries a second, {:.1} % answered; {:.1} MiB resident, {:.1} MiB before",
        outcome.sent as f64 / outcome.time.as_secs_f64(),
        100.0 * outcome.answered as f64 / outcome.sent as f64,
        memory as f64 / 1024.0 / 1024.0,
        idle as f64 / 1024.0 / 1024.0,
    );
    Cost { cpu_percent, memory }
}
