//! The plain data of ecs-torrent: the components of torrents, peers, pieces and trackers, and the messages, commands
//! and settings that features share.
//!
//! The crate holds components, resources, messages and settings, with the operations that keep each of them consistent,
//! but no systems. The systems that act on the data are in the `systems` crate, one feature per file. Nothing here does
//! I/O or reads a clock.
//!
//! | module | holds |
//! |---|---|
//! | [`torrent`], [`peer`], [`piece`], [`tracker`] | the components of the four kinds of entities |
//! | [`lifecycle`], [`intent_and_facts`] | a torrent's intent, facts and state |
//! | [`messages`] | messages that features exchange |
//! | [`commands`], [`stats`], [`dht`], [`links`] | commands to the engine from outside, and their answers |
//! | [`session`] | the saved state of a torrent between runs, and its file format |
//! | [`settings`] | all limits and defaults |
//! | [`clock`], [`deadlines`], [`random`] | time and randomness, as systems see them |
//! | [`tick_times`] | durations of ticks |
//! | [`candidates`], [`bans`], [`reaper`] | peers to connect to, banned peers, and entities to despawn |
//! | [`wanted`], [`selection`] | the files that the user wants, and the pieces that follow |
//! | [`unverified`] | pieces that are held without a check |
//! | [`work_list`] | lists of entities with work to do |
//! | [`queue`] | positions of torrents in the queue |
//! | [`readers`] | readers of files, and the pieces that they need next |
//! | [`seeding`] | limits on how much a torrent seeds |
//! | [`super_seeding`] | the turns of super-seeding |
//! | [`connections`], [`prefix`], [`scope`] | connection counts by torrent and network, and kinds of networks |

pub mod bans;
pub mod buckets;
pub mod candidates;
pub mod changes;
pub mod clock;
pub mod commands;
pub mod connections;
pub mod deadlines;
pub mod dht;
pub mod hints;
pub mod ids;
pub mod incomplete;
pub mod intent_and_facts;
pub mod labels;
pub mod lifecycle;
pub mod links;
pub mod messages;
pub mod names;
pub mod networks;
pub mod peer;
pub mod piece;
pub mod queue;
pub mod random;
pub mod rate;
pub mod rate_limit;
pub mod readers;
pub mod reaper;
pub mod scope;
pub mod seeding;
pub mod selection;
pub mod session;
pub mod settings;
pub mod stats;
pub mod super_seeding;
pub mod tick_times;
pub mod torrent;
pub mod tracker;
pub mod unverified;
pub mod wanted;
pub mod week;
pub mod work_list;

pub use ecs_torrent_protocol::prefix;
