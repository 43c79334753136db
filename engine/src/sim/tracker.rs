//! A simulated tracker, over HTTP (BEP 3, 7, 23, 48) and UDP (BEP 15) on one address, that can fail in many ways.

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

/// What a tracker does with requests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TrackerMode {
    /// Answers.
    #[default]
    Up,
    /// Refuses connections; datagrams are lost.
    Down,
    /// Takes requests and says nothing.
    Silent,
    /// Answers after a while, in which it has counted the announce.
    Slow(Duration),
    /// Answers with an HTTP status and no bencode; over UDP with an error.
    Status(u16),
    /// Answers with bytes that are nothing.
    Garbage,
    /// Refuses with a reason (BEP 3 `failure reason`, BEP 15 error).
    Failure(String),
    /// Breaks off in the middle of its answer.
    Truncated,
    /// Answers over UDP with another transaction's number; over HTTP as if it were up.
    WrongTransaction,
    /// Answers, with these addresses in the place of the peers.
    Peers(Vec<SocketAddr>),
}

/// How a tracker is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackerOptions {
    /// Time that it wants between announces. Default 30 min.
    pub interval: Duration,
    /// Least time that it allows, told over HTTP. Default none.
    pub min_interval: Option<Duration>,
    /// Most peers in an answer. Default 50, as in most trackers.
    pub max_peers: usize,
    /// Time after which a peer that does not announce is forgotten. Default 45 min.
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

/// An announce that a tracker has heard, whatever it answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announced {
    /// When.
    pub at: Timestamp,
    /// For which torrent.
    pub info_hash: InfoHash,
    /// By whom: where it accepts connections.
    pub peer: SocketAddr,
    /// Why.
    pub event: AnnounceEvent,
    /// Bytes that it still wants.
    pub left: u64,
    /// Payload bytes that it has received.
    pub downloaded: u64,
    /// Payload bytes that it has sent.
    pub uploaded: u64,
}

/// Announces by their event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AnnounceCounts {
    /// With `started`.
    pub started: usize,
    /// With `completed`.
    pub completed: usize,
    /// With `stopped`.
    pub stopped: usize,
    /// Because the interval had passed.
    pub regular: usize,
}

/// A tracker of a simulation; clones are the same one.
#[derive(Clone)]
pub struct SimTracker {
    address: SocketAddr,
    shared: Arc<Mutex<Tracker>>,
}

/// What it knows.
struct Tracker {
    options: TrackerOptions,
    /// What it does, from when on; in order of time.
    modes: Vec<(Timestamp, TrackerMode)>,
    swarms: Swarms,
    random: Random,
    heard: Vec<Announced>,
    connections: BTreeMap<u64, (SocketAddr, Timestamp)>,
}

impl SimTracker {
    pub(super) fn new(address: SocketAddr, options: TrackerOptions, random: Random) -> Self {
        let tracker = Tracker {
            options,
            modes: Vec::new(),
            swarms: Swarms::default(),
            random,
            heard: Vec::new(),
            connections: BTreeMap::new(),
        };
        Self {
            address,
            shared: Arc::new(Mutex::new(tracker)),
        }
    }

    /// Where it listens, for HTTP and for UDP.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its announce URL over HTTP.
    #[must_use]
    pub fn http_url(&self) -> String {
        format!("http://{}/announce", self.address)
    }

    /// Its announce URL over UDP.
    #[must_use]
    pub fn udp_url(&self) -> String {
        format!("udp://{}/announce", self.address)
    }

    /// Sets what it does from `at` on; what was set for later stays. The beginning of time is a way to say now.
    pub fn set_mode(&self, at: Timestamp, mode: TrackerMode) {
        let modes = &mut self.lock().modes;
        let position = modes.partition_point(|(time, _)| *time <= at);
        modes.insert(position, (at, mode));
    }

    /// All announces that it has heard, in their order.
    #[must_use]
    pub fn announces(&self) -> Vec<Announced> {
        self.lock().heard.clone()
    }

    /// The announces of a torrent, by peer.
    #[must_use]
    pub fn counts(&self, info_hash: InfoHash) -> BTreeMap<SocketAddr, AnnounceCounts> {
        let mut counts = BTreeMap::<_, AnnounceCounts>::new();
        for announced in self
            .lock()
            .heard
            .iter()
            .filter(|announced| announced.info_hash == info_hash)
        {
            let count = counts.entry(announced.peer).or_default();
            *match announced.event {
                AnnounceEvent::None => &mut count.regular,
                AnnounceEvent::Started => &mut count.started,
                AnnounceEvent::Completed => &mut count.completed,
                AnnounceEvent::Stopped => &mut count.stopped,
            } += 1;
        }
        counts
    }

    /// The peers of a torrent that it knows, each with the bytes that it still wants.
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

    /// Hears an announce, and chooses peers for its answer.
    fn announce(&mut self, announced: Announced, num_want: Option<usize>) -> Vec<SocketAddr> {
        self.heard.push(announced);
        self.swarms
            .expire(announced.info_hash, announced.at, self.options.expiry);
        self.swarms.hear(&announced);
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
