//! The daemon, its API and its clients as seen from outside: real processes on loopback ports.
//!
//! Fault numbers refer to the list of faults that a client has to survive.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may fail as it likes, and its modules are seen by nobody else"
)]

mod adding;
mod api;
mod automation;
mod bed;
mod capture;
mod choosing;
#[path = "../support/command.rs"]
mod command;
mod commands;
mod configuration;
#[path = "../support/content.rs"]
mod content;
mod damage;
mod dht;
mod doctor;
mod dual_stack;
mod ending;
mod extremes;
mod faults;
mod fetching_metadata;
mod fields;
mod flooding;
mod formats;
mod handing;
mod impostors;
mod incomplete;
mod labels;
mod limits;
mod lists;
mod local_network;
mod logins;
mod metrics;
mod migration;
mod moving;
mod output;
mod ownership;
mod peers;
mod private_torrents;
mod process;
mod queue;
mod quiet;
mod reading;
mod rechecking;
mod renaming;
mod seeding;
mod settings;
#[path = "../support/skipping.rs"]
mod skipping;
mod state;
mod streams_of_events;
mod trackers;
#[path = "../support/unshare.rs"]
mod unshare;
mod unverified;
