//! BitTorrent formats and protocol state machines, sans-I/O.
//!
//! Nothing here owns a socket, clock, thread or file: functions take bytes and `now`, and return values and actions. So
//! all of the code can be tested with plain data, can be fuzzed, and behaves the same over real and simulated backends.
//!
//! ```
//! use bytes::Bytes;
//! use ecs_torrent_protocol::metainfo::{Metainfo, MetainfoLimits};
//!
//! let file = Bytes::from_static(
//!     b"d4:infod6:lengthi40000e4:name8:song.ogg12:piece lengthi32768e6:pieces40:aaaaaaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbbbbbee",
//! );
//! let metainfo = Metainfo::parse(&file, &MetainfoLimits::default()).unwrap();
//! assert_eq!(metainfo.info.name, "song.ogg");
//!
//! let geometry = metainfo.info.geometry;
//! assert_eq!((geometry.piece_count(), geometry.piece_size(1)), (2, 7232));
//! // Blocks are at most 16 KiB, and the last one is shorter.
//! assert_eq!(geometry.block_count(0), 2);
//! assert_eq!(geometry.block(1, 0).len, 7232);
//! ```

pub mod bencode;
pub mod bitfield;
pub mod compact;
pub mod create;
pub mod dht;
pub mod extension;
pub mod fast;
pub mod files;
pub mod geometry;
pub mod hash;
pub mod host_port;
pub mod lsd;
pub mod magnet;
pub mod merkle;
pub mod metadata;
pub mod metainfo;
pub mod peer_id;
pub mod pex;
pub mod prefix;
pub mod priority;
pub mod safe_path;
pub mod sha1_pair;
pub mod tally;
pub mod text;
pub mod time;
pub mod tracker;
pub mod urls;
pub mod wire;
