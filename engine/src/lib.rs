//! The runtime of ecs-torrent: the schedule that drives a world of torrents, and its ports to the outside.
//!
//! | module | holds |
//! |---|---|
//! | [`schedule`] | the one schedule and its chain of sets: the order of the whole program |
//! | [`core`] | a world with its ports, advanced one step at a time |
//! | [`runner`] | the thread that steps it in real time |
//! | [`port`], [`ports`] | the requests of systems to the network, disk, hashers, HTTP servers and state folder |
//! | [`backends`] | the real backends: tokio, a disk pool, rayon, reqwest, a folder |
//! | [`mailbox`] | the way host programs send commands to the world |
//! | `sim` (feature `sim`) | simulated backends and a virtual clock |
//!
//! This crate holds no BitTorrent features. Features are plugins, in the `systems` crate and in yours.

pub mod backends;
pub mod core;
pub mod mailbox;
pub mod port;
pub mod ports;
pub mod runner;
pub mod schedule;
#[cfg(feature = "sim")]
pub mod sim;

pub mod wake;
