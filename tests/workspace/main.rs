//! Tests of the workspace's own rules: the dependencies between crates and between modules, the tick as shown in
//! ARCHITECTURE.md, the components of each kind of entity as shown in the plugin guide, the default configuration as
//! documented in the code, the length of functions, the fields of log lines, the spelling, and the programs of README
//! and guide in a package of their own.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may fail as it likes, and its modules are seen by nobody else"
)]

mod components;
#[cfg(feature = "daemon")]
mod config;
mod crates;
mod features;
mod fresh;
mod functions;
mod lifecycle;
mod log_lines;
mod log_peers;
mod modules;
mod private_torrents;
mod states;
#[cfg(feature = "daemon")]
mod tick;
mod words;
