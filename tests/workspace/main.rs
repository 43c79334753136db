//! The house's own rules: which crate may know which, and that the tick is what ARCHITECTURE.md says, and the default
//! configuration what the code says.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may fail as it likes, and its modules are seen by nobody else"
)]

#[cfg(feature = "daemon")]
mod config;
mod crates;
mod tick;
