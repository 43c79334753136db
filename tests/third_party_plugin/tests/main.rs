//! Plugins and a Bevy host from outside, in a package that depends on ecs-torrent only.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may fail as it likes, and its modules are seen by nobody else"
)]

mod blobs;
mod diary;
mod extensions;
mod guide;
mod host;
mod sources;
mod swarm;
