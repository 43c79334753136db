//! The plain data of ecs-torrent: what torrents, peers, pieces and trackers are made of.
//!
//! Components, resources, messages and settings, with the operations that keep each of them consistent, and no
//! system: who acts on the data is in the `systems` crate, one feature per file. Nothing here does I/O or reads a
//! clock.
//!
//! | module | holds |
//! |---|---|
//! | [`torrent`], [`peer`], [`piece`], [`tracker`] | the components of the four kinds of entities |
//! | [`messages`] | facts that features tell each other |
//! | [`commands`], [`stats`] | what is asked of the engine from outside, and answered |
//! | [`session`] | what is kept of a torrent between runs, and its form on the disk |
//! | [`settings`] | every bound and default |
//! | [`clock`], [`deadlines`], [`random`] | time and chance, as systems see them |
//! | [`tick_times`] | how long ticks take |
//! | [`candidates`], [`bans`], [`reaper`] | who to connect to, who not to, and who goes |
//! | [`connections`], [`prefix`] | how many connections there are, of which torrents and networks |

pub mod bans;
pub mod candidates;
pub mod clock;
pub mod commands;
pub mod connections;
pub mod deadlines;
pub mod ids;
pub mod messages;
pub mod peer;
pub mod piece;
pub mod prefix;
pub mod random;
pub mod rate;
pub mod reaper;
pub mod session;
pub mod settings;
pub mod stats;
pub mod tick_times;
pub mod torrent;
pub mod tracker;
