//! The runtime of ecs-torrent: what makes a world of torrents tick, and the doors it has to the outside.
//!
//! | module | holds |
//! |---|---|
//! | [`schedule`] | the one schedule and its chain of sets: the order of the whole program |
//! | [`core`] | a world with its ports, one step at a time |
//! | [`runner`] | the thread that steps it in real time |
//! | [`port`], [`ports`] | what systems ask of the network, the disk, the hashers, HTTP servers and the state folder |
//! | [`backends`] | the real ones: tokio, a disk pool, rayon, reqwest, a folder |
//! | [`mailbox`] | how the outside talks to the world |
//! | `sim` (feature `sim`) | simulated backends and a virtual clock |
//!
//! No feature of BitTorrent is here: those are plugins, in the `systems` crate and in yours.

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
