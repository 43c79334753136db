//! How to write a plugin.
//!
//! A plugin is a Bevy `Plugin` that is added behind the engine's own:
//! `Engine::builder().plugins(TorrentPlugins).plugins(YourPlugin)`. It must be `Clone + Send`: the engine is built
//! again after a panic, from a clone, and its resources begin again with their first values. Its package depends on
//! `ecs-torrent` only, and imports [`prelude`](crate::prelude).
//!
//! | a plugin | by |
//! |---|---|
//! | observes | reading [`messages`](crate::components::messages): past facts, which live for two ticks |
//! | keeps state | components of its own on torrents, peers, pieces and trackers; resources for the rest |
//! | runs at the right time | joining a set of the [`Tick`](crate::Tick), or running between two: see [`TickSet`](crate::TickSet) |
//! | acts | writing messages and work lists that a feature reads, such as `RequestStop`, `FailTorrent`, `Reaper` |
//! | finds peers | a source of its own in the [`CandidateSources`](crate::components::candidates::CandidateSources), and [`CandidatesFound`](crate::components::candidates::CandidatesFound) |
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
//! - All memory that a stranger can make grow has a limit.
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
//! # Sources of peers
//!
//! A system names addresses of possible peers; the engine decides which of them it dials. It runs in
//! [`DecideSet::Discovery`](crate::systems::DecideSet::Discovery): the torrents that start in this tick are known, and
//! the addresses are dialed in the same tick. `informant` is the host that named the peers, such as a server that the
//! plugin asked: that host may not name peers in a more private network than its own. `None` stands for a host in the
//! Internet, and permits addresses in the Internet and in the network to which the engine's listen addresses belong.
//! The plugin may come before `TorrentPlugins`, which keep an existing registry of sources; an extension is registered
//! after them.
//!
#![doc = concat!("```\n", include_str!("guide/peer_list.rs"), "```")]
//!
//! # Picking
//!
//! The picker of a torrent orders pieces by priority, then by rarity. An observer changes priorities as soon as there
//! is a picker.
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
//! # Testing a plugin
//!
//! Any number of engines run in one process. On port 0, each listens on a port that is free;
//! [`Engine::local_addresses`](crate::Engine::local_addresses) returns it, and
//! [`Torrents::add_peers`](crate::Torrents::add_peers) gives it to another engine. A test waits for events, never for a
//! time.
//!
//! ```
//! # mod client_stats { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/guide/client_stats.rs")); }
//! # use client_stats::{ClientBytes, ClientStatsPlugin};
//! use std::error::Error;
//! use std::fs;
//! use std::path::PathBuf;
//!
//! use ecs_torrent::events::{Event, Subscription};
//! use ecs_torrent::making::{MakeOptions, Plan};
//! use ecs_torrent::prelude::*;
//!
//! fn settings(download_dir: PathBuf) -> Settings {
//!     let mut settings = Settings::default();
//!     settings.net.listen = vec![([127, 0, 0, 1], 0).into()];
//!     settings.session.state_dir = None; // nothing is kept between runs
//!     settings.storage.download_dir = download_dir;
//!     settings
//! }
//!
//! fn wait_for(mut events: Subscription, awaited: Event) {
//!     while events.next_blocking().expect("the engine runs") != awaited {}
//! }
//!
//! # fn main() -> Result<(), Box<dyn Error>> {
//! let folder = tempfile::tempdir()?;
//! let [there, here] = ["there", "here"].map(|name| folder.path().join(name));
//! fs::create_dir(&there)?;
//! fs::write(there.join("song"), vec![7; 200_000])?;
//! let torrent = folder.path().join("song.torrent");
//! fs::write(&torrent, Plan::new(&there.join("song"), MakeOptions::default())?.make(&|_| {})?)?;
//!
//! let seeder = Engine::builder().plugins(TorrentPlugins).settings(settings(there)).start()?;
//! let events = seeder.torrents().subscribe();
//! let id = seeder.torrents().blocking().download(torrent.clone())?;
//! wait_for(events, Event::AlreadyComplete(id));
//!
//! let builder = Engine::builder().plugins(TorrentPlugins).plugins(ClientStatsPlugin);
//! let leecher = builder.settings(settings(here)).start()?;
//! let events = leecher.torrents().subscribe();
//! leecher.torrents().blocking().download(torrent)?;
//! leecher.torrents().blocking().add_peers(id, seeder.local_addresses().to_vec())?;
//! wait_for(events, Event::Completed(id));
//!
//! let count = |world: &mut World| world.resource::<ClientBytes>().0.values().sum::<u64>();
//! assert_eq!(leecher.torrents().blocking().with_world(count)?, 200_000);
//! # Ok(())
//! # }
//! ```
//!
//! The simulator (`ecs_torrent::sim`, with the feature `sim`) runs whole swarms on a virtual clock, without sockets and
//! files: the same seed repeats a run, event for event, and a power failure is one line. Invariants of the engine are
//! checked after every tick. `ecs_torrent::engine::sim` is the level below, with access to each engine's world.
//!
//! ```
//! # mod client_stats { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/guide/client_stats.rs")); }
//! # use client_stats::{ClientBytes, ClientStatsPlugin};
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU64, Ordering};
//!
//! use ecs_torrent::prelude::*;
//! use ecs_torrent::sim::{Link, Scenario};
//!
//! // The most bytes that one of the engines has counted.
//! let most = Arc::new(AtomicU64::new(0));
//! let counted = most.clone();
//! let observe = move |app: &mut App| {
//!     let counted = counted.clone();
//!     let look = move |clients: Res<ClientBytes>| {
//!         counted.fetch_max(clients.0.values().sum(), Ordering::Relaxed);
//!     };
//!     app.add_systems(Tick, look.in_set(TickSet::Reap));
//! };
//! let outcome = Scenario::new("two leechers count their bytes")
//!     .seeds(1, Link::symmetric(1 << 20))
//!     .leeches(2, Link::symmetric(1 << 20))
//!     .plugins((ClientStatsPlugin, observe))
//!     .run();
//! assert!(outcome.is_good(), "{outcome}");
//! assert!(most.load(Ordering::Relaxed) >= 1 << 20); // the size of the torrent
//! ```
//!
//! # Components
//!
//! Not every component is on an entity in every state: only a torrent that downloads has a picker, and only a peer
//! whose handshake is complete has requests. A query for a component that is not there silently skips the entity. A
//! test writes this table from running engines, as a system sees them in Decide and at the end of a tick; a state may
//! have changed a moment before its components follow, and "always" means in every swarm that the test simulates.
//!
#![doc = include_str!("guide/components.md")]
