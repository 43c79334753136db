//! How to write a plugin.
//!
//! A plugin is a Bevy `Plugin` that is added behind the engine's own:
//! `Engine::builder().plugins(TorrentPlugins).plugins(YourPlugin)`. Its package depends on `ecs-torrent` only, and
//! imports [`prelude`](crate::prelude).
//!
//! | a plugin | by |
//! |---|---|
//! | observes | reading [`messages`](crate::components::messages): past facts, which live for two ticks |
//! | keeps state | components of its own on torrents, peers, pieces and trackers; resources for the rest |
//! | runs at the right time | joining a set of the [`Tick`](crate::Tick), or running between two: see [`TickSet`](crate::TickSet) |
//! | acts | writing messages and work lists that a feature reads, such as `RequestStop`, `FailTorrent`, `Reaper` |
//! | takes part in a stop | [`add_stop_participant`](crate::systems::stop_participants::AddStopParticipant) |
//! | waits | [`Deadlines`](crate::components::deadlines::Deadlines) of its own, and `Wakeup` for the next of them; never `std::time` |
//! | takes commands from the host program | a [`CommandQueue`](crate::components::commands::CommandQueue) of its own, to which [`Torrents::ask`](crate::Torrents::ask) sends |
//! | talks to other clients | an extension of its own (BEP 10) in the [`ExtensionRegistry`](crate::components::peer::ExtensionRegistry); its messages arrive as [`ExtensionReceived`](crate::components::messages::ExtensionReceived) |
//! | shows its state to the host program | [`Torrents::with_world`](crate::Torrents::with_world) |
//!
//! Four rules keep an engine fast and correct:
//!
//! - Work is proportional to change. Read messages and work lists; do not visit all torrents or all peers in a tick.
//! - A plugin adds and removes only components of its own. Required components
//!   (`app.register_required_components::<Torrent, Yours>()`) put them on every entity of a kind.
//! - A tick never blocks. Slow work goes to a thread of the plugin's own, and its result comes back as a command.
//! - Everything that a stranger can make grow has a limit.
//!
//! Each of the following examples is a whole file. They compile as documentation tests, and
//! `tests/third_party_plugin` runs them in engines that transfer a torrent.
//!
//! # Statistics
//!
//! A system reads messages and counts. [`Torrents::with_world`](crate::Torrents::with_world) reads the resource from
//! outside.
//!
#![doc = concat!("```\n", include_str!("guide/client_stats.rs"), "```")]
//!
//! # Commands
//!
//! A system answers commands of the host program. [`Torrents::ask`](crate::Torrents::ask) sends them.
//!
#![doc = concat!("```\n", include_str!("guide/client_count.rs"), "```")]
//!
//! # Policy
//!
//! A system closes connections, with the plugin's own reason.
//!
#![doc = concat!("```\n", include_str!("guide/client_block.rs"), "```")]
//!
//! # Picking
//!
//! The picker of a torrent orders pieces by priority, then by rarity. An observer changes priorities as soon as there is
//! a picker.
//!
#![doc = concat!("```\n", include_str!("guide/ends_first.rs"), "```")]
//!
//! # Rates
//!
//! Uploading serves the peers in a work list. A system that runs before it decides which of them are served.
//!
#![doc = concat!("```\n", include_str!("guide/upload_limit.rs"), "```")]
//!
//! # Stops
//!
//! A stop has five phases, each of which waits for its participants. A participant takes the torrents whose stop has
//! reached its phase, works for as many ticks as it needs, and reports the end. The stop does not wait for a
//! participant that exceeds its limit; it logs a warning. This example also shows how a plugin accesses a file: through
//! its own thread.
//!
#![doc = concat!("```\n", include_str!("guide/stop_log.rs"), "```")]
//!
//! # Components
//!
//! Not every component is on an entity in every state: only a torrent that downloads has a picker, and only a peer
//! whose handshake is complete has requests. A query for a component that is not there silently skips the entity. A
//! test writes this table from running engines, as a system sees them in Decide and at the end of a tick; a state may
//! have changed a moment before its components follow, and "always" means in every swarm that the test simulates.
//!
#![doc = include_str!("guide/components.md")]
