//! The runtime of ecs-torrent: the schedule that drives a world of torrents, and its ports to the outside.
//!
//! | module | holds |
//! |---|---|
//! | [`schedule`] | the one schedule and its chain of sets: the order of the whole program |
//! | [`core`] | a world with its ports, advanced one step at a time |
//! | [`runner`] | the thread that steps it in real time |
//! | [`port`], [`ports`] | the requests of systems to the network, disk, hashers, HTTP servers and state folder |
//! | [`jobs`] | data that a feature keeps about its requests until the results arrive |
//! | [`backends`] | the real backends: tokio, a disk pool, rayon, reqwest, a folder |
//! | [`mailbox`] | the channel through which host programs send commands to the world |
//! | `sim` (feature `sim`) | simulated backends and a virtual clock |
//!
//! ```
//! use ecs_torrent_components::settings::Settings;
//! use ecs_torrent_engine::runner::Runner;
//!
//! let mut settings = Settings::default();
//! settings.session.state_dir = None;
//! settings.net.listen = vec![([127, 0, 0, 1], 0).into()];
//! // An engine without plugins listens and does nothing else.
//! let runner = Runner::start(settings, |_app| {}).unwrap();
//! assert_ne!(runner.local_addresses().0[0].port(), 0);
//! ```
//!
//! This crate holds no BitTorrent features. Features are plugins, in the `systems` crate and in yours.

pub mod backends;
pub mod core;
pub mod jobs;
mod layers;
pub mod mailbox;
pub mod port;
pub mod ports;
pub mod runner;
pub mod schedule;
#[cfg(feature = "sim")]
pub mod sim;

pub mod wake;
pub mod wall;
