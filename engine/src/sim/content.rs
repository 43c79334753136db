//! Torrents for simulations: pseudo-random bytes in memory that all nodes share.

use std::sync::Arc;

use bytes::Bytes;
use ecs_torrent_components::names::NewNames;
use ecs_torrent_protocol::create::{NewFile, NewTorrent};
use ecs_torrent_protocol::files::FileTable;
use ecs_torrent_protocol::geometry::Span;
use ecs_torrent_protocol::hash::{InfoHash, sha1};
use ecs_torrent_protocol::host_port::HostPort;
use ecs_torrent_protocol::metainfo::{Metainfo, MetainfoLimits};

/// A torrent and its correct bytes. Clones share both.
#[derive(Debug, Clone)]
pub struct Content {
    metainfo: Arc<Metainfo>,
    bytes: Bytes,
}

/// Parameters of a torrent. [`NewContent::make`] is deterministic: equal parameters make equal torrents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewContent {
    /// Name of the file or of the folder. Default `content`.
    pub name: String,
    /// Seed of the bytes. Default 0.
    pub seed: u64,
    /// Total bytes. Default 1 MiB.
    pub len: usize,
    /// Bytes per piece. Default 64 KiB.
    pub piece_length: u32,
    /// Number of files, of about equal lengths; 1 makes a single-file torrent. Default 1.
    pub file_count: usize,
    /// Announce URLs in tiers. Default none.
    pub trackers: Vec<Vec<String>>,
    /// Nodes of the DHT that the torrent names. Default none.
    pub nodes: Vec<HostPort>,
    /// Whether the torrent is private: peers come from its trackers only. Default false.
    pub is_private: bool,
}

impl Default for NewContent {
    fn default() -> Self {
        Self {
            name: "content".into(),
            seed: 0,
            len: 1 << 20,
            piece_length: 64 << 10,
            file_count: 1,
            trackers: Vec::new(),
            nodes: Vec::new(),
            is_private: false,
        }
    }
}

impl NewContent {
    /// Generates the bytes, hashes them, and builds the metainfo.
    ///
    /// # Panics
    /// If these values do not make a valid torrent: no bytes, a piece length that is 0 or invalid, or an invalid name.
    #[must_use]
    pub fn make(&self) -> Content {
        let bytes = Bytes::from(noise(self.seed, self.len));
        let files = match self.file_count {
            0 | 1 => vec![NewFile {
                path: Vec::new(),
                len: self.len as u64,
            }],
            count => self.files(count),
        };
        let torrent = NewTorrent {
            name: self.name.clone(),
            files,
            piece_length: self.piece_length,
            pieces: bytes
                .chunks(self.piece_length as usize)
                .map(|piece| sha1([piece]))
                .collect(),
            trackers: self.trackers.clone(),
            nodes: self.nodes.clone(),
            private: self.is_private,
            ..NewTorrent::default()
        };
        let encoded = torrent.encode().expect("a torrent can always be encoded");
        let parsed = Metainfo::parse(&encoded.into(), &MetainfoLimits::default());
        Content::new(Arc::new(parsed.expect("these values make a torrent")), bytes)
    }

    /// Files with unaligned lengths, with an empty one among them if there are many.
    fn files(&self, count: usize) -> Vec<NewFile> {
        let mut left = self.len;
        let file = |number: usize| {
            let share = left / (count - number);
            let len = match number {
                _ if number + 1 == count => left,
                3 => 0,
                _ => left.min((share + number * 7) | 1),
            };
            left -= len;
            NewFile {
                path: vec![format!("part {}", number / 10), format!("file {number:03}")],
                len: len as u64,
            }
        };
        (0..count).map(file).collect()
    }
}

impl Content {
    /// Wraps an existing torrent and its bytes.
    #[must_use]
    pub fn new(metainfo: Arc<Metainfo>, bytes: Bytes) -> Self {
        Self { metainfo, bytes }
    }

    /// The metainfo.
    #[must_use]
    pub fn metainfo(&self) -> &Arc<Metainfo> {
        &self.metainfo
    }

    /// The same torrent and bytes with other names of files.
    #[must_use]
    pub fn renamed(&self, names: &NewNames) -> Self {
        Self::new(names.apply(&self.metainfo), self.bytes.clone())
    }

    /// The torrent's primary info-hash.
    #[must_use]
    pub fn info_hash(&self) -> InfoHash {
        self.metainfo.hashes.primary()
    }

    /// The files.
    #[must_use]
    pub fn files(&self) -> &FileTable {
        &self.metainfo.info.files
    }

    /// All bytes of the torrent.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Number of pieces.
    #[must_use]
    pub fn piece_count(&self) -> u32 {
        self.metainfo.info.geometry.piece_count()
    }

    /// The span of a piece.
    #[must_use]
    pub fn piece_span(&self, piece: u32) -> Span {
        self.metainfo.info.geometry.piece_span(piece)
    }

    /// The bytes of a span; shares memory.
    ///
    /// # Panics
    /// If the span is not inside the torrent.
    #[must_use]
    pub fn slice(&self, span: Span) -> Bytes {
        self.bytes.slice(span.offset as usize..span.end() as usize)
    }
}

/// Pseudo-random bytes that do not repeat.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = (seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let mut bytes: Vec<u8> = words.take(len.div_ceil(8)).flatten().collect();
    bytes.truncate(len);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torrent_is_made_of_what_is_asked_for() {
        for (file_count, piece_length) in [(1, 16 << 10), (7, 32 << 10)] {
            let new = NewContent {
                len: 100_001,
                file_count,
                piece_length,
                ..NewContent::default()
            };
            let content = new.make();
            assert_eq!(content.files().files().len(), file_count);
            assert_eq!(content.files().total_size(), 100_001);
            for piece in 0..content.piece_count() {
                let digest = sha1([&content.slice(content.piece_span(piece))[..]]);
                assert_eq!(content.metainfo().info.pieces.get(piece), Some(&digest));
            }
            assert_eq!(new.make().info_hash(), content.info_hash());
            let other = NewContent { seed: 1, ..new };
            assert_ne!(other.make().info_hash(), content.info_hash());
        }
    }
}
