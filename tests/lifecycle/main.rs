//! Torrents over more than one run: killed, stopped, resumed or removed, with folders that are full, missing or
//! damaged. Each test names the fault that it covers. Some tests mount small volumes, which requires root or user
//! namespaces. Elsewhere they print SKIPPED with their names, and fail under `REQUIRE_ALL=1`.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test may fail as it likes, and its modules are seen by nobody else"
)]

mod another_volume;
mod bed;
mod child;
#[path = "../support/command.rs"]
mod command;
#[path = "../support/content.rs"]
mod content;
mod disk_faults;
mod downloaded;
mod incomplete;
mod killing;
mod moving;
mod optional;
mod ownership;
mod pausing;
#[path = "../faults/peer.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod peer;
mod provenance;
mod rechecking;
mod registry;
mod removing;
mod renaming;
mod resuming;
mod seed;
#[path = "../support/skipping.rs"]
mod skipping;
mod state_faults;
mod suffixes;
#[path = "../support/unshare.rs"]
mod unshare;
mod unverified;
mod volumes;
