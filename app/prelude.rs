//! The items that most plugins need, derive macros included.
//!
//! ```
//! use ecs_torrent::prelude::*;
//!
//! /// Number of pieces that each torrent has completed in this run.
//! #[derive(Component, Default)]
//! struct Completed(u32);
//!
//! fn count(mut stored: MessageReader<PieceStored>, mut torrents: Query<&mut Completed>) {
//!     for message in stored.read() {
//!         if let Ok(mut completed) = torrents.get_mut(message.torrent) {
//!             completed.0 += 1;
//!         }
//!     }
//! }
//!
//! fn plugin(app: &mut App) {
//!     app.register_required_components::<Torrent, Completed>();
//!     app.add_systems(Tick, count.in_set(TickSet::Decide));
//! }
//! # let _ = ecs_torrent::Engine::builder().plugins(TorrentPlugins).plugins(plugin);
//! ```
//!
//! A package needs no other dependency than `ecs-torrent`. Bevy's derive macros (`Component`, `Resource`, `Message`,
//! `SystemSet`, ...) name the crate `bevy_ecs` in their output. Where `Cargo.toml` lists neither `bevy_ecs` nor `bevy`,
//! that name has to be in scope at the derive: this module contains it, so the glob import above is enough in every
//! module that derives. A package that lists `bevy_ecs` or `bevy` has to use the version that ecs-torrent uses.

pub use bevy_app::{self, App, Plugin, PluginGroup};
pub use bevy_ecs::{self, prelude::*};
pub use ecs_torrent_components::candidates::{
    AllowedSources, CandidateFlags, CandidateSource, CandidateSources, CandidatesFound, FoundPeer,
};
pub use ecs_torrent_components::clock::{Clock, Wakeup};
pub use ecs_torrent_components::commands::{AddOptions, CommandQueue, RemoveOptions, Reply};
pub use ecs_torrent_components::deadlines::Deadlines;
pub use ecs_torrent_components::lifecycle::StopPhase;
pub use ecs_torrent_components::messages::*;
pub use ecs_torrent_components::peer::{
    CloseReason, Peer, PeerRates, PeerState, PluginReason, ServeQueue, UploadQueue,
};
pub use ecs_torrent_components::random::Random;
pub use ecs_torrent_components::reaper::Reaper;
pub use ecs_torrent_components::settings::Settings;
pub use ecs_torrent_components::torrent::{
    ActivePieces, Content, Counters, Have, Layout, Lifecycle, PeerOf, Torrent, TorrentIndex, TorrentPeers,
    TorrentRates, TorrentTrackers, TrackerOf,
};
pub use ecs_torrent_components::tracker::Tracker;
pub use ecs_torrent_engine::schedule::{Tick, TickSet};
pub use ecs_torrent_protocol::time::Timestamp;
pub use ecs_torrent_systems::picking::Picker;
pub use ecs_torrent_systems::picking::rarity::NORMAL_PRIORITY;
pub use ecs_torrent_systems::stop_participants::{AddStopParticipant, Ending, StopDuty, StopTurn};
pub use ecs_torrent_systems::{DecideSet, ReapSet, TorrentPlugins};

pub use crate::id::TorrentId;
pub use crate::running::Engine;
pub use crate::torrents::Torrents;
