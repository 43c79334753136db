//! BitTorrent formats and protocol state machines, sans-I/O.
//!
//! Nothing here owns a socket, a clock, a thread or a file: functions take bytes and `now` and return values and
//! actions. That makes every line testable with plain data, fuzzable, and the same over real and simulated
//! backends.

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
