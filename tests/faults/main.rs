//! A running engine against everything that hostile or broken peers, trackers and torrents do. Each test names the
//! fault that it covers: the input, and the outcome that it must have.

#![allow(unreachable_pub, missing_docs, reason = "a test's modules are seen by nobody else")]

#[path = "../support/content.rs"]
mod content;
mod bed;
mod disk;
mod http_tracker;
mod limits;
mod peer;
mod poison;
mod swarm;
mod udp_tracker;
mod wire;
