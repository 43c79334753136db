//! A torrent's components.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
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

use crate::clock::Clock;
use crate::ids::StorageId;
use crate::lifecycle::{Blocked, Desired, Fault, Readiness};
pub use crate::lifecycle::{Lifecycle, StopPhase, Stopping};
use crate::rate::Rate;

/// The identity of a torrent: its hashes, name and peer id. Every torrent has one, from start to end.
#[derive(Component, Debug, Clone)]
#[require(
    Desired,
    Readiness,
    Fault,
    Blocked,
    Lifecycle,
    Counters,
    Activity,
    Dates,
    TorrentRates,
    Partials
)]
pub struct Torrent {
    /// The torrent's hashes.
    pub hashes: InfoHashes,
    /// The torrent's name, safe to print and safe as a path component.
    pub name: Arc<str>,
    /// Our peer id in this session of the torrent.
    pub peer_id: PeerId,
    /// Key that identifies us to trackers when our address changes (BEP 7).
    pub tracker_key: u32,
    /// Whether peers may come from trackers only (BEP 27).
    pub private: bool,
    /// When the torrent was added.
    pub added: Timestamp,
}

impl Torrent {
    /// The primary info-hash, shown to users.
    #[must_use]
    pub fn id(&self) -> InfoHash {
        self.hashes.primary()
    }

    /// Whether the torrent has only the trackers of its metainfo, because it is private (BEP 27).
    #[must_use]
    pub fn has_fixed_trackers(&self) -> bool {
        self.private
    }

    /// The torrent's name and the head of its info-hash, for the field `torrent` of a log line:
    /// `debian.iso (9a2b3c4d)`.
    #[must_use]
    pub fn label(&self) -> Label<'_> {
        Label::new(&self.name, self.id())
    }
}

/// A torrent as the log names it: by its name and the head of its info-hash. It is formatted only if the line is
/// written.
#[derive(Debug, Clone, Copy)]
pub struct Label<'n> {
    name: &'n str,
    id: InfoHash,
}

impl<'n> Label<'n> {
    /// Labels a torrent that is not in the world (yet, or any more). The name is safe to print.
    #[must_use]
    pub fn new(name: &'n str, id: InfoHash) -> Self {
        Self { name, id }
    }
}

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.id.0;
        write!(f, "{} ({:08x})", self.name, u32::from_be_bytes([a, b, c, d]))
    }
}

/// Sizes of a torrent's pieces; on a torrent as soon as its metadata is known.
#[derive(Component, Debug, Clone)]
pub struct Layout(pub Geometry);

/// A torrent's metadata: piece hashes and file table.
#[derive(Component, Debug, Clone)]
pub struct Content(pub Arc<Metainfo>);

/// The verified pieces on the disk. A bit is set after the write has completed, never before.
///
/// Read it as a [`Bitfield`]. Only one feature changes it, because every piece in it is announced to peers and served
/// from the disk.
#[derive(Component, Debug, Clone)]
pub struct Have(Bitfield);

impl std::ops::Deref for Have {
    type Target = Bitfield;

    fn deref(&self) -> &Bitfield {
        &self.0
    }
}

impl Have {
    /// Creates an empty set over `piece_count` pieces.
    #[must_use]
    pub fn none(piece_count: u32) -> Self {
        Self(Bitfield::new(piece_count))
    }

    /// Adds a piece whose write has completed; false if it was held already.
    pub fn record_stored(&mut self, piece: u32) -> bool {
        self.0.insert(piece)
    }

    /// Replaces the set by the pieces that an examination of the files found.
    pub fn record_found(&mut self, pieces: &Bitfield) {
        self.0.clone_from(pieces);
    }
}

/// Location of a torrent's files.
#[derive(Component, Debug, Clone)]
pub struct Storage {
    /// The id of the files at the Disk port.
    pub id: StorageId,
    /// The download folder.
    pub root: PathBuf,
}

/// Marks a torrent that must not download, because the user said that all of its data is present.
#[derive(Component, Debug)]
#[component(storage = "SparseSet")]
pub struct RequiresComplete;

/// Payload bytes transferred since the torrent was added.
///
/// The counters add up: every downloaded byte is in a held piece, in a piece in flight, corrupt, or dropped. The only
/// other held bytes are pieces that were on the disk before, and padding (BEP 47), which no peer sends.
#[derive(Component, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes sent to peers in blocks.
    pub uploaded: u64,
    /// Bytes received in requested and accepted blocks, even of pieces that failed or were dropped.
    pub downloaded: u64,
    /// Downloaded bytes in pieces that failed their hash.
    pub corrupt: u64,
    /// Downloaded bytes in pieces that were dropped before they were complete.
    pub dropped: u64,
    /// Received bytes not counted as downloaded: late, duplicate or unsolicited.
    pub wasted: u64,
}

/// Payload bytes transferred by all torrents since the engine started, removed ones included. The fields are those of
/// [`Counters`], where `wasted` contains `dropped`.
#[derive(Resource, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineCounters {
    /// Bytes received in requested and accepted blocks.
    pub downloaded: u64,
    /// Bytes sent to peers in blocks.
    pub uploaded: u64,
    /// Downloaded bytes in pieces that failed their hash.
    pub corrupt: u64,
    /// Other useless received bytes: late, duplicate, unsolicited, or in pieces that were dropped.
    pub wasted: u64,
}

/// Running time of a torrent: downloading or seeding.
#[derive(Component, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Activity {
    /// Running time before [`Activity::since`], earlier sessions included.
    pub before: Duration,
    /// Start of the current run, while the torrent is running.
    pub since: Option<Timestamp>,
}

impl Activity {
    /// Returns the total running time until `now`.
    #[must_use]
    pub fn total(&self, now: Timestamp) -> Duration {
        // A damaged session may claim any number of seconds.
        let current = self.since.map_or(Duration::ZERO, |since| now.since(since));
        self.before.saturating_add(current)
    }

    /// Records that the torrent is running from `now` on.
    pub fn start(&mut self, now: Timestamp) {
        self.since.get_or_insert(now);
    }

    /// Records that the torrent has stopped running.
    pub fn stop(&mut self, now: Timestamp) {
        *self = Self {
            before: self.total(now),
            since: None,
        };
    }
}

/// Dates of a torrent, in seconds since 1970 (UTC).
#[derive(Component, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dates {
    /// The torrent was first added.
    pub added: u64,
    /// The last wanted piece was stored. `None` if that has not happened since the torrent was added: something is
    /// missing, or everything was held from the start.
    pub completed: Option<u64>,
    /// The latest payload was received or sent in an earlier run. [`TorrentRates::last_payload`] is that of this run.
    pub active_before: Option<u64>,
}

impl Dates {
    /// Returns the date of the latest payload in either direction.
    #[must_use]
    pub fn active(&self, rates: &TorrentRates, clock: &Clock) -> Option<u64> {
        let this_run = rates.last_payload().map(|last| clock.unix_time_of(last).as_secs());
        this_run.or(self.active_before)
    }
}

/// A torrent's transfer rates. Most torrents are idle: they take no memory before the first byte.
#[derive(Component, Debug, Default)]
pub struct TorrentRates(Option<Box<Rates>>);

#[derive(Debug, Default)]
struct Rates {
    download: Rate,
    upload: Rate,
    last_payload: Timestamp,
}

impl TorrentRates {
    /// Returns the payload received from peers, in bytes per second at `now`.
    #[must_use]
    pub fn download(&self, now: Timestamp) -> u64 {
        self.0.as_ref().map_or(0, |rates| rates.download.at(now))
    }

    /// Returns the payload sent to peers, in bytes per second at `now`.
    #[must_use]
    pub fn upload(&self, now: Timestamp) -> u64 {
        self.0.as_ref().map_or(0, |rates| rates.upload.at(now))
    }

    /// Returns the time of the latest payload in either direction, in this run.
    #[must_use]
    pub fn last_payload(&self) -> Option<Timestamp> {
        self.0.as_ref().map(|rates| rates.last_payload)
    }

    /// Records `bytes` received at `now`.
    pub fn add_received(&mut self, now: Timestamp, bytes: u64) {
        let rates = self.0.get_or_insert_default();
        rates.download.add(now, bytes);
        rates.last_payload = now;
    }

    /// Records `bytes` sent at `now`.
    pub fn add_sent(&mut self, now: Timestamp, bytes: u64) {
        let rates = self.0.get_or_insert_default();
        rates.upload.add(now, bytes);
        rates.last_payload = now;
    }
}

/// The connections of a torrent.
#[derive(Component, Debug, Default)]
#[relationship_target(relationship = PeerOf, linked_spawn)]
pub struct TorrentPeers(BTreeSet<Entity>);

/// The torrent of a connection; absent until the handshake has named it.
#[derive(Component, Debug, Clone, Copy)]
#[relationship(relationship_target = TorrentPeers)]
pub struct PeerOf(pub Entity);

/// The trackers of a torrent.
#[derive(Component, Debug, Default)]
#[relationship_target(relationship = TrackerOf, linked_spawn)]
pub struct TorrentTrackers(Vec<Entity>);

/// The torrent that a tracker serves.
#[derive(Component, Debug, Clone, Copy)]
#[relationship(relationship_target = TorrentTrackers)]
pub struct TrackerOf(pub Entity);

/// The pieces of a torrent that are in flight, by index.
#[derive(Component, Debug, Default)]
pub struct ActivePieces {
    /// All pieces in flight.
    pub all: BTreeMap<u32, Entity>,
    /// Pieces with a block that can still be requested. May include pieces that have become full.
    pub open: BTreeSet<u32>,
}

/// Blocks on the disk whose piece is not complete or not verified, by piece. They are never served, and do not count
/// until the piece has passed its hash check.
#[derive(Component, Debug, Clone, Default, PartialEq, Eq)]
pub struct Partials(pub BTreeMap<u32, Bitfield>);

/// Index of all torrents by every hash that peers may use for them.
#[derive(Resource, Debug, Default)]
pub struct TorrentIndex {
    by_hash: HashMap<InfoHash, Entity>,
}

impl TorrentIndex {
    /// Returns the torrent that has `hash`.
    #[must_use]
    pub fn get(&self, hash: InfoHash) -> Option<Entity> {
        self.by_hash.get(&hash).copied()
    }

    /// Adds a torrent under all its hashes.
    pub fn insert(&mut self, hashes: &InfoHashes, torrent: Entity) {
        self.by_hash.extend(hashes.wire_hashes().map(|hash| (hash, torrent)));
    }

    /// Removes a torrent.
    pub fn remove(&mut self, hashes: &InfoHashes) {
        for hash in hashes.wire_hashes() {
            self.by_hash.remove(&hash);
        }
    }

    /// Number of hashes in the index.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    /// Whether the index is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_has_the_name_and_the_head_of_the_hash() {
        let id = "9a0b3c4d00000000000000000000000000000000".parse().unwrap();
        assert_eq!(Label::new("debian.iso", id).to_string(), "debian.iso (9a0b3c4d)");
    }

    #[test]
    fn the_date_of_the_latest_payload_is_that_of_this_run_or_of_an_earlier_one() {
        let mut clock = Clock::default();
        clock.set_epoch(Duration::from_secs(1000));
        let (mut rates, mut dates) = (TorrentRates::default(), Dates::default());
        assert_eq!(dates.active(&rates, &clock), None);
        dates.active_before = Some(500);
        assert_eq!(dates.active(&rates, &clock), Some(500));
        rates.add_sent(Timestamp::ZERO + Duration::from_secs(3), 1);
        clock.advance_to(Timestamp::ZERO + Duration::from_secs(60));
        assert_eq!(dates.active(&rates, &clock), Some(1003));
        // The date is the same at all later times.
        rates.add_sent(Timestamp::ZERO + Duration::from_millis(60_700), 1);
        for now in [60_900, 61_200, 61_900].map(Duration::from_millis) {
            clock.advance_to(Timestamp::ZERO + now);
            assert_eq!(dates.active(&rates, &clock), Some(1060));
        }
    }

    #[test]
    fn a_running_time_that_no_torrent_has_is_no_overflow() {
        let mut activity = Activity {
            before: Duration::from_secs(u64::MAX),
            since: Some(Timestamp::ZERO),
        };
        let now = Timestamp::ZERO + Duration::from_secs(5);
        assert_eq!(activity.total(now), Duration::MAX);
        activity.stop(now);
        assert_eq!(activity.before, Duration::MAX);
    }
}
