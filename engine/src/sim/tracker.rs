//! A simulated tracker, over HTTP (BEP 3, 7, 23, 48) and UDP (BEP 15) on one address, with many failure modes.

mod http;
mod swarms;
#[cfg(test)]
mod tests;
mod udp;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ecs_torrent_components::random::Random;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::tracker::AnnounceEvent;

use self::swarms::Swarms;

/// How a tracker reacts to requests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TrackerMode {
    /// Answers normally.
    #[default]
    Up,
    /// Refuses connections and drops datagrams.
    Down,
    /// Accepts requests and never answers.
    Silent,
    /// Answers after a delay; the announce counts at once.
    Slow(Duration),
    /// Answers with an HTTP status and a body that is not bencoded; over UDP with an error.
    Status(u16),
    /// Answers with meaningless bytes.
    Garbage,
    /// Rejects requests with a reason (BEP 3 `failure reason`, BEP 15 error).
    Failure(String),
    /// Cuts its answers off in the middle.
    Truncated,
    /// Answers over UDP with a wrong transaction id; over HTTP normally.
    WrongTransaction,
    /// Answers with these addresses in place of the peers.
    Peers(Vec<SocketAddr>),
}

/// Options of a tracker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackerOptions {
    /// Announce interval. Default 30 min.
    pub interval: Duration,
    /// Minimum announce interval, sent over HTTP only. Default none.
    pub min_interval: Option<Duration>,
    /// Maximum number of peers in an answer. Default 50, as in most trackers.
    pub max_peers: usize,
    /// Time after which a peer that does not announce is dropped. Default 45 min.
    pub expiry: Duration,
}

impl Default for TrackerOptions {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(30 * 60),
            min_interval: None,
            max_peers: 50,
            expiry: Duration::from_secs(45 * 60),
        }
    }
}

/// An announce that a tracker received, answered or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announced {
    /// Time of the announce.
    pub at: Timestamp,
    /// Info-hash of the torrent.
    pub info_hash: InfoHash,
    /// Address at which the peer accepts connections.
    pub peer: SocketAddr,
    /// Event of the announce.
    pub event: AnnounceEvent,
    /// Bytes that the peer still wants.
    pub left: u64,
    /// Payload bytes that the peer has downloaded.
    pub downloaded: u64,
    /// Payload bytes that the peer has uploaded.
    pub uploaded: u64,
}

/// Number of announces by event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AnnounceCounts {
    /// With `started`.
    pub started: usize,
    /// With `completed`.
    pub completed: usize,
    /// With `stopped`.
    pub stopped: usize,
    /// Regular announces, without an event.
    pub regular: usize,
}

/// A tracker of a simulation; clones share it.
#[derive(Clone)]
pub struct SimTracker {
    address: SocketAddr,
    shared: Arc<Mutex<Tracker>>,
}

/// State of a tracker.
struct Tracker {
    options: TrackerOptions,
    /// Modes with their start times, in order of time.
    modes: Vec<(Timestamp, TrackerMode)>,
    swarms: Swarms,
    random: Random,
    announces: Vec<Announced>,
    connections: BTreeMap<u64, (SocketAddr, Timestamp)>,
}

impl SimTracker {
    pub(super) fn new(address: SocketAddr, options: TrackerOptions, random: Random) -> Self {
        let tracker = Tracker {
            options,
            modes: Vec::new(),
            swarms: Swarms::default(),
            random,
            announces: Vec::new(),
            connections: BTreeMap::new(),
        };
        Self {
            address,
            shared: Arc::new(Mutex::new(tracker)),
        }
    }

    /// Address of the tracker, for HTTP and UDP.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Announce URL over HTTP.
    #[must_use]
    pub fn http_url(&self) -> String {
        format!("http://{}/announce", self.address)
    }

    /// Announce URL over UDP.
    #[must_use]
    pub fn udp_url(&self) -> String {
        format!("udp://{}/announce", self.address)
    }

    /// Sets the mode from `at` on; modes set for later times stay. To set it at once, pass the beginning of time.
    pub fn set_mode(&self, at: Timestamp, mode: TrackerMode) {
        let modes = &mut self.lock().modes;
        let position = modes.partition_point(|(time, _)| *time <= at);
        modes.insert(position, (at, mode));
    }

    /// All announces that the tracker received, in order.
    #[must_use]
    pub fn announces(&self) -> Vec<Announced> {
        self.lock().announces.clone()
    }

    /// Announces of a torrent, counted by peer.
    #[must_use]
    pub fn counts(&self, info_hash: InfoHash) -> BTreeMap<SocketAddr, AnnounceCounts> {
        let mut counts = BTreeMap::<_, AnnounceCounts>::new();
        for announced in self
            .lock()
            .announces
            .iter()
            .filter(|announced| announced.info_hash == info_hash)
        {
            let count = counts.entry(announced.peer).or_default();
            *match announced.event {
                AnnounceEvent::None | AnnounceEvent::Paused => &mut count.regular,
                AnnounceEvent::Started => &mut count.started,
                AnnounceEvent::Completed => &mut count.completed,
                AnnounceEvent::Stopped => &mut count.stopped,
            } += 1;
        }
        counts
    }

    /// The peers of a torrent that the tracker knows, each with the bytes that it still wants.
    #[must_use]
    pub fn peers(&self, info_hash: InfoHash) -> Vec<(SocketAddr, u64)> {
        self.lock().swarms.peers(info_hash)
    }

    fn lock(&self) -> MutexGuard<'_, Tracker> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tracker {
    fn mode(&self, now: Timestamp) -> TrackerMode {
        let begun = self.modes.iter().rev().find(|(at, _)| *at <= now);
        begun.map_or(TrackerMode::Up, |(_, mode)| mode.clone())
    }

    /// Records an announce and selects peers for its answer.
    fn announce(&mut self, announced: Announced, num_want: Option<usize>) -> Vec<SocketAddr> {
        self.announces.push(announced);
        self.swarms
            .expire(announced.info_hash, announced.at, self.options.expiry);
        self.swarms.handle(&announced);
        if announced.event == AnnounceEvent::Stopped {
            return Vec::new();
        }
        if let TrackerMode::Peers(peers) = self.mode(announced.at) {
            return peers;
        }
        let most = num_want.unwrap_or(self.options.max_peers).min(self.options.max_peers);
        self.swarms
            .choose(announced.info_hash, announced.peer, most, &mut self.random)
    }
}
