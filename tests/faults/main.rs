//! Tests of a running engine against hostile or broken peers, trackers and torrents. Each test names the fault that it
//! covers: the input and the required outcome.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may fail as it likes, and its modules are seen by nobody else"
)]

mod adding;
mod bed;
mod carriers;
mod child;
#[path = "../support/content.rs"]
mod content;
mod disk;
mod floods;
mod http_tracker;
mod limits;
#[path = "../support/masking.rs"]
mod masking;
mod memory;
mod network;
mod passkeys;
mod pausing;
mod peer;
mod phases;
mod poison;
mod reading;
mod removing;
#[path = "../support/skipping.rs"]
mod skipping;
mod slots;
mod stop_times;
mod stopping;
mod supervision;
mod swarm;
mod udp_tracker;
mod wire;
