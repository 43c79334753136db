//! A torrent's components.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bevy_ecs::prelude::*;
use bevy_platform::collections::HashMap;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::geometry::Geometry;
use ecs_torrent_protocol::hash::{InfoHash, InfoHashes};
use ecs_torrent_protocol::metainfo::Metainfo;
use ecs_torrent_protocol::peer_id::PeerId;
use ecs_torrent_protocol::time::Timestamp;

use crate::ids::StorageId;
use crate::rate::Rate;

/// What a torrent is called, for itself, its peers and its trackers. On every torrent, from the start to the end.
#[derive(Component, Debug, Clone)]
pub struct Torrent {
    /// Its hashes.
    pub hashes: InfoHashes,
    /// Its name, safe to print and as a path component.
    pub name: Arc<str>,
    /// Who we are in this session of this torrent.
    pub peer_id: PeerId,
    /// Names us to trackers across changes of address (BEP 7).
    pub tracker_key: u32,
    /// Peers may come from trackers only (BEP 27).
    pub private: bool,
    /// When it was added.
    pub added: Timestamp,
}

impl Torrent {
    /// The hash that names it to people.
    #[must_use]
    pub fn id(&self) -> InfoHash {
        self.hashes.primary()
    }
}

/// Sizes of a torrent's pieces; on a torrent as soon as its metadata is known.
#[derive(Component, Debug, Clone, Copy)]
pub struct Layout(pub Geometry);

/// A torrent's metadata: piece hashes and file table.
#[derive(Component, Debug, Clone)]
pub struct Content(pub Arc<Metainfo>);

/// The pieces that are verified and on the disk. A bit is set after the write has completed, never before.
#[derive(Component, Debug, Clone)]
pub struct Have(pub Bitfield);

impl Have {
    /// Bytes of the pieces in the set.
    #[must_use]
    pub fn bytes(&self, geometry: &Geometry) -> u64 {
        let last = geometry.piece_count().saturating_sub(1);
        let whole = u64::from(self.0.count()) * u64::from(geometry.piece_length());
        match self.0.contains(last) {
            true => whole - u64::from(geometry.piece_length() - geometry.piece_size(last)),
            false => whole,
        }
    }
}

/// Where a torrent's files lie.
#[derive(Component, Debug, Clone)]
pub struct Storage {
    /// The files' name at the Disk port.
    pub id: StorageId,
    /// The download folder.
    pub root: PathBuf,
}

/// Payload bytes transferred since the torrent was added.
///
/// They add up: what was downloaded is in pieces that are had, in pieces in flight, corrupt, or dropped. Beside that are
/// only pieces that were on the disk before, and padding (BEP 47), which nobody sends.
#[derive(Component, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sent to peers, in blocks.
    pub uploaded: u64,
    /// Received from peers in blocks that were asked for and had their place, whatever became of their piece.
    pub downloaded: u64,
    /// Of the downloaded: in pieces that failed their hash.
    pub corrupt: u64,
    /// Of the downloaded: in pieces that were given up before they were whole.
    pub dropped: u64,
    /// Received beside that: late, twice or unasked for.
    pub wasted: u64,
}

/// How long a torrent has been running: downloading or seeding.
#[derive(Component, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Activity {
    /// Time before [`Activity::since`], earlier sessions included.
    pub before: Duration,
    /// When it last began to run, while it does.
    pub since: Option<Timestamp>,
}

impl Activity {
    /// All of it, until `now`.
    #[must_use]
    pub fn total(&self, now: Timestamp) -> Duration {
        self.before + self.since.map_or(Duration::ZERO, |since| now.since(since))
    }

    /// Notes that it runs from `now` on.
    pub fn start(&mut self, now: Timestamp) {
        self.since.get_or_insert(now);
    }

    /// Notes that it no longer runs.
    pub fn stop(&mut self, now: Timestamp) {
        *self = Self {
            before: self.total(now),
            since: None,
        };
    }
}

/// A torrent's speeds.
#[derive(Component, Debug, Clone, Copy, Default)]
pub struct TorrentRates {
    /// Payload received.
    pub download: Rate,
    /// Payload sent.
    pub upload: Rate,
}

/// Where a torrent is in its life.
#[derive(Component, Debug, Clone, PartialEq, Eq)]
pub enum Lifecycle {
    /// Its files are being looked at.
    Adding,
    /// Its files' content is being hashed.
    Checking,
    /// Something that is wanted is missing.
    Downloading,
    /// All there is, is here.
    Seeding,
    /// Something that it needs is not there now: a full disk, a volume that is not mounted. It goes on by itself.
    Blocked {
        /// What it waits for, for people.
        resource: Arc<str>,
    },
    /// It could not go on.
    Failed {
        /// Why, for people.
        reason: Arc<str>,
        /// When it is tried again; never, where it has been tried too often or trying cannot help.
        retry_at: Option<Timestamp>,
    },
    /// It is being stopped; see [`Stopping`].
    Stopping,
}

impl Lifecycle {
    /// Whether peers are wanted.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Downloading | Self::Seeding)
    }

    /// Whether what is here may be served: more than when peers are wanted, since a full disk can be read.
    #[must_use]
    pub fn may_serve(&self) -> bool {
        self.is_running() || matches!(self, Self::Blocked { .. })
    }
}

/// The connections of a torrent.
#[derive(Component, Debug, Default)]
#[relationship_target(relationship = PeerOf, linked_spawn)]
pub struct TorrentPeers(BTreeSet<Entity>);

/// The torrent that a connection is for; absent until the handshake has named it.
#[derive(Component, Debug, Clone, Copy)]
#[relationship(relationship_target = TorrentPeers)]
pub struct PeerOf(pub Entity);

/// The trackers of a torrent.
#[derive(Component, Debug, Default)]
#[relationship_target(relationship = TrackerOf, linked_spawn)]
pub struct TorrentTrackers(Vec<Entity>);

/// The torrent that a tracker is asked about.
#[derive(Component, Debug, Clone, Copy)]
#[relationship(relationship_target = TorrentTrackers)]
pub struct TrackerOf(pub Entity);

/// The pieces of a torrent that are in flight, by index.
#[derive(Component, Debug, Default)]
pub struct ActivePieces {
    /// All of them.
    pub all: BTreeMap<u32, Entity>,
    /// Those of which a block can be asked for, as far as known: may name some that are full by now.
    pub open: BTreeSet<u32>,
    /// Time from a request to its block, smoothed over all peers.
    answer_time: Duration,
}

/// Least [`ActivePieces::endgame_patience`].
const LEAST_PATIENCE: Duration = Duration::from_millis(20);

impl ActivePieces {
    /// Notes that a block took so long to come.
    pub fn note_answer(&mut self, took: Duration) {
        self.answer_time = (self.answer_time * 15 + took) / 16;
    }

    /// How old a request has to be before somebody else is asked too: twice what answers take. Where our own line is what
    /// they wait for, asking twice would only make it longer.
    #[must_use]
    pub fn endgame_patience(&self) -> Duration {
        (self.answer_time * 2).max(LEAST_PATIENCE)
    }
}

/// Blocks that lie on the disk though their piece is neither whole nor verified, by piece: they are never served, and
/// count for nothing until the piece has passed.
#[derive(Component, Debug, Clone, Default, PartialEq, Eq)]
pub struct Partials(pub BTreeMap<u32, Bitfield>);

/// Every torrent by every hash that peers may name it with.
#[derive(Resource, Debug, Default)]
pub struct TorrentIndex {
    by_hash: HashMap<InfoHash, Entity>,
}

impl TorrentIndex {
    /// The torrent that `hash` names.
    #[must_use]
    pub fn get(&self, hash: InfoHash) -> Option<Entity> {
        self.by_hash.get(&hash).copied()
    }

    /// Makes a torrent known under all its hashes.
    pub fn insert(&mut self, hashes: &InfoHashes, torrent: Entity) {
        self.by_hash.extend(hashes.wire_hashes().map(|hash| (hash, torrent)));
    }

    /// Forgets a torrent.
    pub fn remove(&mut self, hashes: &InfoHashes) {
        for hash in hashes.wire_hashes() {
            self.by_hash.remove(&hash);
        }
    }

    /// Number of hashes known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    /// Whether there is no torrent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }
}

/// The phases of a stop, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopPhase {
    /// No new requests; pieces being hashed or written finish.
    HaltDownloads,
    /// Peers are told and closed.
    DisconnectPeers,
    /// Trackers hear `stopped`.
    AnnounceStopped,
    /// The session is written; or deleted, with the data where that was asked for, if the torrent is removed. After it
    /// the torrent is gone, and whoever asked is answered.
    WriteSession,
}

/// On a torrent that is being stopped: how far it has come.
#[derive(Component, Debug)]
pub struct Stopping {
    /// The phase that is running.
    pub phase: StopPhase,
    /// When it gives way to the next, finished or not.
    pub deadline: Timestamp,
    /// Whether what it has to do has been begun.
    pub has_begun: bool,
}
