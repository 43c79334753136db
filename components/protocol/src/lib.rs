//! BitTorrent formats and protocol state machines, sans-I/O.
//!
//! Nothing here owns a socket, clock, thread or file: functions take bytes and `now`, and return values and actions. So
//! all of the code can be tested with plain data, can be fuzzed, and behaves the same over real and simulated backends.

pub mod bencode;
pub mod bitfield;
pub mod compact;
pub mod create;
pub mod extension;
pub mod fast;
pub mod files;
pub mod geometry;
pub mod hash;
pub mod metainfo;
pub mod peer_id;
pub mod priority;
pub mod safe_path;
pub mod sha1_pair;
pub mod text;
pub mod time;
pub mod tracker;
pub mod urls;
pub mod wire;
