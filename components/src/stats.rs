//! Statistics of a torrent, shown to users.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::time::Timestamp;
use serde::{Serialize, Serializer};

use crate::lifecycle::{Moving, TorrentState};
use crate::queue::QueueStats;
use crate::rate_limit::TransferLimits;
use crate::seeding::{SeedingLimit, SeedingLimits, ratio_basis};
use crate::wanted::FilePriority;

/// A stopped torrent, of which only the saved state exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoppedTorrent {
    /// Info-hash.
    pub info_hash: InfoHash,
    /// Name. `None` if the saved state cannot be read.
    pub name: Option<Arc<str>>,
}

/// A snapshot of a torrent's state.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TorrentStats {
    /// The torrent's info-hash.
    #[serde(serialize_with = "as_text")]
    pub info_hash: InfoHash,
    /// The torrent's name.
    pub name: String,
    /// The torrent's state.
    pub state: TorrentState,
    /// Why the torrent failed or is blocked, if it is.
    pub error: Option<String>,
    /// Whether peers may come from trackers and users only (BEP 27).
    pub private: bool,
    /// Date on which the torrent was first added, in seconds since 1970 (UTC).
    pub added_at: u64,
    /// Date on which the last wanted piece was stored, in seconds since 1970 (UTC). `None` while a wanted piece is
    /// missing, and if all were there when the torrent was added.
    pub completed_at: Option<u64>,
    /// Date of the latest payload in either direction, in seconds since 1970 (UTC). `None` if there was none.
    pub active_at: Option<u64>,
    /// Payload rates.
    pub speed: Speed,
    /// Payload bytes received since the torrent was first added.
    pub downloaded: u64,
    /// Payload bytes sent since the torrent was first added.
    pub uploaded: u64,
    /// Received bytes in pieces that failed their hash.
    pub corrupt: u64,
    /// Other useless received bytes: late, duplicate, unsolicited, or in pieces that were dropped.
    pub wasted: u64,
    /// Size of all files in bytes. `None` while the metadata is not known.
    pub size: Option<u64>,
    /// Number of bytes on the disk that are verified, or count as verified without a check
    /// ([`unverified`](Self::unverified)).
    pub completed: u64,
    /// Number of these bytes that were never hashed, because the user skipped the check. They are hashed before they
    /// are first sent to anybody.
    pub unverified: u64,
    /// Size in bytes of all pieces that have a part of a wanted file. `None` while the metadata is not known.
    pub wanted: Option<u64>,
    /// Number of bytes of wanted pieces that are not verified and on the disk. `None` while the metadata is not known.
    pub left: Option<u64>,
    /// Bytes hashed so far while existing data is checked.
    pub checked: u64,
    /// The progress of a move of the files. `None` if they are not being moved.
    pub moving: Option<MoveStats>,
    /// The torrent's pieces. `None` while the metadata is not known.
    pub pieces: Option<PieceCounts>,
    /// Pieces of the metadata that have arrived, and all of them, while metadata is fetched and a peer has offered it.
    pub metadata: Option<MetadataProgress>,
    /// The torrent's labels, in alphabetic order.
    pub labels: Vec<String>,
    /// The torrent's category.
    pub category: Option<String>,
    /// The torrent's own limits on transfer rates.
    pub limits: TransferLimits,
    /// The torrent's own seeding limits.
    pub seeding: SeedingLimits,
    /// The seeding limit that the torrent has reached, if it is paused or super-seeds because of one.
    pub limit_reached: Option<SeedingLimit>,
    /// The torrent's place in the queue.
    pub queue: QueueStats,
    /// Running time in seconds, over all sessions.
    pub seconds_active: u64,
    /// The part of that time in which all wanted data was held.
    pub seconds_seeding: u64,
    /// Whether pieces of equal priority are requested in the order of the files.
    pub sequential: bool,
    /// Whether the first and last pieces of each file are requested first.
    pub ends_first: bool,
    /// The folder in which the files are.
    pub root: PathBuf,
    /// The download folder to which the files go when the torrent is complete. `None` if they are there already.
    pub complete_root: Option<PathBuf>,
    /// Number of connected peers.
    pub peer_count: u32,
    /// When the torrent was listed in this run, which orders lists.
    #[serde(skip)]
    pub order: Timestamp,
    /// Number of copies of the torrent that the connected peers have together: those of the rarest piece, and as the
    /// fraction the share of pieces that more peers have. `None` unless the torrent is downloading.
    pub availability: Option<f64>,
    /// Connected peers.
    pub peers: Vec<PeerStats>,
    /// Trackers.
    pub trackers: Vec<TrackerStats>,
    /// Sources that have reported peers.
    pub sources: Vec<SourceStats>,
}

impl TorrentStats {
    /// Fraction of the wanted bytes that are verified and on the disk, 0 to 1. 1 if no file is wanted.
    #[must_use]
    pub fn progress(&self) -> f64 {
        match self.wanted.zip(self.left) {
            None => 0.0,
            Some((0, _)) => 1.0,
            Some((wanted, left)) => wanted.saturating_sub(left) as f64 / wanted as f64,
        }
    }

    /// Sent payload divided by received payload; by the data on the disk if less than a hundredth of it was received.
    /// `None` while there is neither.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        let basis = ratio_basis(self.downloaded, self.completed);
        (basis > 0).then(|| self.uploaded as f64 / basis as f64)
    }

    /// Seconds until the last wanted byte is held, at the current rate. `None` unless the torrent is downloading and
    /// receives something.
    #[must_use]
    pub fn eta(&self) -> Option<u64> {
        let left = self.left.filter(|_| self.state == TorrentState::Downloading)?;
        (self.speed.download > 0).then(|| left.div_ceil(self.speed.download))
    }

    /// Number of verified pieces on the disk.
    #[must_use]
    pub fn held_pieces(&self) -> u32 {
        self.pieces.map_or(0, |pieces| pieces.held)
    }

    /// Whether the torrent is complete.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.pieces
            .is_some_and(|pieces| pieces.total > 0 && pieces.held == pieces.total)
    }
}

/// A torrent's pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PieceCounts {
    /// Number of pieces.
    pub total: u32,
    /// Number of verified pieces on the disk.
    pub held: u32,
    /// Length of a piece in bytes; the last piece may be shorter.
    pub size: u32,
}

/// A move of a torrent's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MoveStats {
    /// The download folder to which the files go.
    pub root: PathBuf,
    /// Number of bytes at the new place.
    pub moved: u64,
    /// Number of bytes to move.
    pub size: u64,
}

impl From<&Moving> for MoveStats {
    fn from(moving: &Moving) -> Self {
        Self {
            root: moving.root.to_path_buf(),
            moved: moving.moved,
            size: moving.size,
        }
    }
}

/// The progress of fetching a torrent's metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MetadataProgress {
    /// Pieces of 16 KiB that have arrived.
    pub received: u32,
    /// All pieces.
    pub pieces: u32,
}

/// Payload rates in bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Speed {
    /// Download rate.
    pub download: u64,
    /// Upload rate.
    pub upload: u64,
}

/// A connected peer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PeerStats {
    /// The peer's address.
    pub address: Option<SocketAddr>,
    /// The transport of the connection: `tcp`, `utp`, or the name of an added carrier.
    pub transport: Option<&'static str>,
    /// Whether the peer opened the connection.
    pub is_incoming: bool,
    /// The peer's client.
    pub client: String,
    /// Number of the peer's pieces.
    pub pieces: u32,
    /// Share of all pieces that the peer has, from 0 to 1. `None` while the metadata is not known.
    pub progress: Option<f64>,
    /// Payload bytes received from the peer on this connection.
    pub downloaded: u64,
    /// Payload bytes sent to the peer on this connection.
    pub uploaded: u64,
    /// Payload rates.
    pub speed: Speed,
    /// We choke the peer: we do not answer its requests.
    pub am_choking: bool,
    /// The peer chokes us: it does not answer our requests.
    pub peer_choking: bool,
    /// We are interested: the peer has something we want.
    pub am_interested: bool,
    /// The peer is interested: we have something it wants.
    pub peer_interested: bool,
}

/// A tracker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrackerStats {
    /// The tracker's URL without anything that could be a passkey.
    pub url: String,
    /// Number of the tracker's tier.
    pub tier: usize,
    /// The status: `idle`, `announcing`, `working`, `failed`, `disabled`.
    pub status: &'static str,
    /// The last error or warning, if there is one.
    pub message: Option<String>,
    /// Number of peers with all pieces, as last reported.
    pub seeders: Option<u32>,
    /// Number of peers without all pieces, as last reported.
    pub leechers: Option<u32>,
    /// Number of completed downloads, as last reported.
    pub completed: Option<u32>,
    /// Number of peers that the last answer named.
    pub peers: Option<u32>,
    /// Seconds until the next announce: `None` before the first one, and while the torrent does not run.
    pub next_announce_seconds: Option<u64>,
    /// Number of failed announces since the last successful one.
    pub failures: u32,
}

/// A source of peers, with counts of the addresses that it reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceStats {
    /// The source: `user`, `tracker`, `session`, `incoming`, `pex`, `dht`, `lsd`, `magnet`, `unfetched_session`, or the
    /// name that a plugin gave it.
    pub source: &'static str,
    /// Number of addresses that the source reported, each one counted once while it is remembered.
    pub found: u64,
    /// Number of reported addresses that were refused. The torrent refuses banned addresses, our own addresses,
    /// addresses in a more private network than that of the host that reported them, addresses from sources that it
    /// does not allow, and addresses for which it has no room.
    pub refused: u64,
    /// Number of these addresses at which a peer completed its handshake.
    pub connected: u64,
}

/// A file of a torrent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileStats {
    /// The file's index among all files of the metainfo, pad files included, counted from 0.
    pub index: u32,
    /// Path below the download folder.
    pub path: String,
    /// Length in bytes.
    pub length: u64,
    /// Number of the file's bytes that are verified and on the disk.
    pub completed: u64,
    /// The file's priority.
    pub priority: FilePriority,
}

fn as_text<S: Serializer>(hash: &InfoHash, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(hash)
}
