//! What users are told of a torrent.

use std::net::SocketAddr;
use std::path::PathBuf;

use ecs_torrent_protocol::hash::InfoHash;
use serde::{Serialize, Serializer};

/// A torrent's state at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TorrentStats {
    /// Its hash.
    #[serde(serialize_with = "as_text")]
    pub info_hash: InfoHash,
    /// Its name.
    pub name: String,
    /// Where it is in its life: `adding`, `checking`, `downloading`, `seeding`, `blocked`, `stopping/…`, `failed`.
    pub lifecycle: String,
    /// Why it failed or waits, where it does.
    pub error: Option<String>,
    /// Payload speeds.
    pub speed: Speed,
    /// Payload bytes received since it was first added.
    pub downloaded: u64,
    /// Payload bytes sent since it was first added.
    pub uploaded: u64,
    /// Of the bytes received: in pieces that failed their hash.
    pub corrupt: u64,
    /// Bytes received in vain otherwise: late, twice, unasked for, or in pieces that were given up.
    pub wasted: u64,
    /// Bytes of all files.
    pub bytes_size: u64,
    /// Bytes that are verified and on the disk.
    pub bytes_completed: u64,
    /// Bytes hashed so far while existing data is checked.
    pub bytes_checked: u64,
    /// Number of pieces.
    pub pieces: u32,
    /// Pieces that are verified and on the disk.
    pub pieces_completed: u32,
    /// Seconds that it has been running, over all sessions.
    pub seconds_active: u64,
    /// The download folder.
    pub root: PathBuf,
    /// Connected peers.
    pub peers: Vec<PeerStats>,
    /// Trackers.
    pub trackers: Vec<TrackerStats>,
}

impl TorrentStats {
    /// Share of the bytes that is verified and on the disk, 0 to 1.
    #[must_use]
    pub fn progress(&self) -> f64 {
        self.bytes_completed as f64 / self.bytes_size.max(1) as f64
    }

    /// Whether everything is there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.pieces > 0 && self.pieces_completed == self.pieces
    }
}

/// Payload bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Speed {
    /// Received.
    pub download: u64,
    /// Sent.
    pub upload: u64,
}

/// A connected peer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PeerStats {
    /// Where it is.
    pub address: Option<SocketAddr>,
    /// Its program.
    pub client: String,
    /// Pieces that it has.
    pub pieces: u32,
    /// Payload speeds.
    pub speed: Speed,
    /// We do not answer its requests.
    pub am_choking: bool,
    /// It does not answer ours.
    pub peer_choking: bool,
    /// It has something we want.
    pub am_interested: bool,
    /// We have something it wants.
    pub peer_interested: bool,
}

/// A tracker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrackerStats {
    /// Its URL without anything that could be a passkey.
    pub url: String,
    /// Number of its tier.
    pub tier: usize,
    /// `idle`, `announcing`, `working`, `failed`, `disabled`.
    pub status: &'static str,
    /// Why it failed, where it has, or what it warned of.
    pub message: Option<String>,
    /// Peers with all of it, as it last told.
    pub seeders: Option<u32>,
    /// Peers without all of it, as it last told.
    pub leechers: Option<u32>,
}

/// A file of a torrent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileStats {
    /// Path below the download folder.
    pub path: String,
    /// Length in bytes.
    pub len: u64,
    /// Bytes of it that are verified and on the disk.
    pub completed: u64,
}

fn as_text<S: Serializer>(hash: &InfoHash, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(hash)
}
