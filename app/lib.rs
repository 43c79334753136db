//! A BitTorrent engine built as an entity-component-system.
//!
//! ```no_run
//! use ecs_torrent::{Engine, TorrentPlugins};
//!
//! # async fn example() -> Result<(), ecs_torrent::Error> {
//! let engine = Engine::builder().plugins(TorrentPlugins).start()?;
//! let torrents = engine.torrents();
//! let id = torrents.download("file.torrent").await?;
//! println!("{}", torrents.stats(id).await?.progress());
//! torrents.stop_all_and_serialize().await?;
//! # Ok(())
//! # }
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`Engine`], [`Torrents`] | starting an engine and managing its torrents |
//! | [`BlockingTorrents`] | the same operations for programs without async code |
//! | [`host`] | an engine inside a Bevy program |
//! | [`events`] | engine events, as they occur |
//! | [`prelude`] | items that most plugins need, derive macros included |
//! | [`folders`] | checking a download folder before a torrent is added |
//! | [`making`], [`verifying`] | creating a torrent from files, and verifying files, without an engine |
//! | `sim` (with the feature of that name) | simulating whole swarms in one process |
//! | [`components`], [`systems`] | the building blocks of plugins: data, messages, sets, features |
//! | [`mod@engine`] | the runtime: the tick, the ports |
//! | [`protocol`] | BitTorrent's formats and state machines |
//!
//! A plugin is a Bevy `Plugin` whose systems join the sets of [`TickSet`]; [`guide`] shows how to write one,
//! and [`prelude`] contains what it needs.

/// Compiles the README's code with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(feature = "daemon")]
pub mod archive;
#[cfg(feature = "daemon")]
pub mod automation;
mod blocking;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod daemon;
pub mod dht;
mod error;
pub mod events;
pub mod folders;
pub mod guide;
mod hashing;
pub mod host;
mod id;
pub mod making;
#[cfg(feature = "daemon")]
pub mod migration;
pub mod prelude;
mod reader;
mod running;
mod selection;
#[cfg(feature = "sim")]
pub mod sim;
mod source;
mod torrents;
pub mod verifying;

pub use bevy_app;
pub use bevy_ecs;
pub use ecs_torrent_components as components;
pub use ecs_torrent_components::commands::{
    AddError, AddOptions, KeptFile, MoveError, MovedFiles, RemoveError, RemoveOptions, Removed,
};
pub use ecs_torrent_components::labels::{Labels, LabelsPatch};
pub use ecs_torrent_components::lifecycle::{StopPhase, TorrentState};
pub use ecs_torrent_components::names::NewNames;
pub use ecs_torrent_components::queue::{QueueChange, QueueMove, QueueStats};
pub use ecs_torrent_components::rate_limit::{LimitsPatch, TransferLimits};
pub use ecs_torrent_components::seeding::{OwnLimit, SeedingLimit, SeedingLimits, SeedingPatch};
pub use ecs_torrent_components::settings::{ChangedSettings, SeedingAction, Settings, SettingsPatch};
pub use ecs_torrent_components::stats::{FileStats, PeerStats, StoppedTorrent, TorrentStats, TrackerStats};
pub use ecs_torrent_engine as engine;
pub use ecs_torrent_engine::schedule::{Tick, TickSet};
pub use ecs_torrent_protocol as protocol;
pub use ecs_torrent_protocol::hash::InfoHash;
pub use ecs_torrent_systems as systems;
pub use ecs_torrent_systems::TorrentPlugins;

pub use self::blocking::BlockingTorrents;
pub use self::error::Error;
pub use self::id::TorrentId;
pub use self::reader::{BlockingFileReader, FileReader};
pub use self::running::{Engine, EngineBuilder};
pub use self::selection::{Field, Selection};
pub use self::source::{ReadSource, Source};
pub use self::torrents::{SettingsReport, Torrents};
