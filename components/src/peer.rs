//! A peer's components: one entity per connection, from the dial or accept to the end of the tick that closes it.

mod close_reason;
mod outbox;
mod pieces;
mod requests;
mod sink;
mod transport;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::extension::{ExtensionHandshake, MAX_EXTENSIONS};
use ecs_torrent_protocol::peer_id::PeerId;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::{FrameLimits, PeerCodec, Session};

pub use self::close_reason::{CloseReason, PluginReason, TimeoutKind};
pub use self::outbox::{FlushQueue, Outbox};
pub use self::pieces::{PeerPieces, PieceForm, UncheckedPieces};
pub use self::requests::{
    AllowedFast, EmptiedUploads, Pending, QueueDepth, RefillQueue, Requests, ServeQueue, UploadMemory, UploadQueue,
};
pub use self::sink::{RequestSink, SourceCommand, SourceQueue, SourceSink, SourceSinkItem, WaitingSources};
pub use self::transport::Transport;
use crate::candidates::{AllowedSources, CandidateSource};
use crate::ids::StreamId;
use crate::rate::Rate;
use crate::work_list::Listed;

/// The location of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Endpoint {
    /// An IP address and port.
    Ip(SocketAddr),
}

impl Endpoint {
    /// Returns the IP address and port, if the endpoint has them.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
        }
    }
}

/// The side that opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The peer opened it.
    Inbound,
    /// We opened it.
    Outbound,
}

/// The progress of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The connection is being established.
    Connecting,
    /// The peer's handshake is not complete.
    Handshaking,
    /// The handshake is complete; messages can be exchanged.
    Connected,
}

/// A connection to a peer. Every peer has one, from the first to the last tick.
#[derive(Component, Debug)]
pub struct Peer {
    /// The peer's location.
    pub endpoint: Endpoint,
    /// The connection's stream at the Net port.
    pub stream: StreamId,
    /// The protocol that carries the connection, once it is established.
    pub transport: Option<Transport>,
    /// The side that opened the connection.
    pub direction: Direction,
    /// The connection's stage.
    pub stage: Stage,
    /// When the connection entered this stage.
    pub since: Timestamp,
    /// The peer's id, once the handshake has arrived.
    pub peer_id: Option<PeerId>,
    /// Name and version of the peer's client, as far as known; human-readable.
    pub client: Arc<str>,
    /// Where the peer accepts connections, if known: the address that we dialed, or the port from its extension
    /// handshake.
    pub listens_at: Option<SocketAddr>,
}

/// The reading side of a connection.
#[derive(Component, Debug)]
pub struct Wire {
    /// Decoder with the bytes received and not decoded.
    pub codec: PeerCodec,
    /// Session state that decides which messages are valid.
    pub session: Session,
    /// The window, minus the credit that the stream has left; negative if the window has been enlarged. The port starts
    /// a stream without credit.
    pub ungranted_bytes: i64,
    /// Bytes left for the next tick, because the peer sent more messages than one tick decodes.
    pub held_bytes: u32,
    /// Whether the peer is listed as having bytes to decode.
    pub listed: Listed,
    /// Whether the peer waits for credit because downloads are limited.
    pub waits: Listed,
    /// When the peer last had to wait for credit.
    pub last_limited: Option<Timestamp>,
    /// When the incomplete frame at the front began to arrive.
    pub frame_since: Option<Timestamp>,
    /// When the last complete message arrived.
    pub last_message: Timestamp,
    /// How often the peer may say that it has all pieces, or none.
    pub whole_sets: Allowance,
    /// How often the peer may send a bitfield.
    pub bitfields: Allowance,
    /// How often the peer may withdraw a single piece or repeat its extension handshake.
    pub changes: Allowance,
    /// How often the peer may choke and unchoke us.
    pub chokes: Allowance,
}

/// A token bucket: a burst of actions that a peer may take at once, and a rate at which the bucket refills.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    most: u32,
    /// Time in which one token comes back.
    interval: Duration,
    left: u32,
    refilled: Timestamp,
}

impl Allowance {
    /// Creates a full allowance: `most` at once, and one more after each `interval`.
    #[must_use]
    pub fn new(now: Timestamp, most: u32, interval: Duration) -> Self {
        Self {
            most,
            interval,
            left: most,
            refilled: now,
        }
    }

    /// Uses one token; false if none is left.
    pub fn take(&mut self, now: Timestamp) -> bool {
        let interval = self.interval.as_nanos().max(1);
        let count = now.since(self.refilled).as_nanos() / interval;
        if count > 0 {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(count).min(self.most);
            // The remainder of an interval counts for the next one, unless the bucket is full.
            let is_full = self.left == self.most;
            self.refilled = if is_full {
                now
            } else {
                self.refilled + self.interval * count
            };
        }
        let taken = self.left > 0;
        self.left = self.left.saturating_sub(1);
        taken
    }
}

/// Burst of `HaveAll` and `HaveNone`, and the interval between two after the burst. Real clients send one in the life
/// of a connection, and each one makes the picker count all pieces again.
const WHOLE_SETS: (u32, Duration) = (8, Duration::from_secs(10));

/// Burst and interval of bitfields, whose cost is in proportion to their length. aria2 sends a bitfield in place of
/// many `Have`s: sixteen a second while it downloads 20 MB/s.
const BITFIELDS: (u32, Duration) = (512, Duration::from_millis(50));

/// Burst and interval of withdrawn pieces and of extension handshakes. A client may lose this many pieces with a file.
/// Each change is O(1).
const CHANGES: (u32, Duration) = (512, Duration::from_millis(50));

/// Burst and interval of chokes and unchokes. A choking round is 10 s long, and between rounds a slot may be refilled
/// every 100 ms. Each choke may make us cancel all requests to the peer, and send as many again.
const CHOKES: (u32, Duration) = (64, Duration::from_millis(100));

impl Wire {
    /// Returns the end of the time in which we read less than the peer may have sent, because downloads were limited:
    /// it is not late because of that. `now` if it still waits.
    #[must_use]
    pub fn limited_until(&self, now: Timestamp) -> Option<Timestamp> {
        match self.waits.is_listed() {
            true => Some(now),
            false => self.last_limited,
        }
    }

    /// Creates the state of a connection on which nothing has been read.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self {
            codec: PeerCodec::new(FrameLimits::default()),
            session: Session::default(),
            ungranted_bytes: 0,
            held_bytes: 0,
            listed: Listed::default(),
            frame_since: None,
            waits: Listed::default(),
            last_limited: None,
            last_message: now,
            whole_sets: Allowance::new(now, WHOLE_SETS.0, WHOLE_SETS.1),
            bitfields: Allowance::new(now, BITFIELDS.0, BITFIELDS.1),
            changes: Allowance::new(now, CHANGES.0, CHANGES.1),
            chokes: Allowance::new(now, CHOKES.0, CHOKES.1),
        }
    }
}

/// Choke and interest states of both sides (BEP 3). Every connected peer has one; features register their own peer
/// components as required by it.
#[derive(Component, Debug, Clone, Copy, PartialEq, Eq)]
#[require(PeerExtensions)]
pub struct PeerState {
    /// We choke the peer: we do not answer its requests.
    pub am_choking: bool,
    /// We are interested: the peer has something we want.
    pub am_interested: bool,
    /// The peer chokes us: it does not answer our requests.
    pub peer_choking: bool,
    /// The peer is interested: we have something it wants.
    pub peer_interested: bool,
    /// The peer does not want to download anything (BEP 21).
    pub upload_only: bool,
    /// The peer suggests pieces (BEP 6); it gets a `Have` for each of our pieces, even for pieces that it has too.
    pub suggests: bool,
    /// The peer owes us blocks and sends none.
    pub snubbed: bool,
    /// When we last changed `am_choking`.
    pub choke_changed: Timestamp,
}

impl PeerState {
    /// Creates the initial state of every connection (BEP 3): choked and not interested, both ways.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self {
            am_choking: true,
            am_interested: false,
            peer_choking: true,
            peer_interested: false,
            upload_only: false,
            suggests: false,
            snubbed: false,
            choke_changed: now,
        }
    }
}

/// A peer's transfer rates and totals, payload only.
#[derive(Component, Debug, Clone, Copy, Default)]
pub struct PeerRates {
    /// Rate from the peer to us.
    pub download: Rate,
    /// Rate from us to the peer.
    pub upload: Rate,
    /// Total bytes received.
    pub downloaded: u64,
    /// Total bytes sent.
    pub uploaded: u64,
    /// When the last requested block was transferred in either direction.
    pub last_payload: Option<Timestamp>,
}

/// Contents of a peer's extension handshakes (BEP 10).
#[derive(Component, Debug, Clone, Default)]
pub struct PeerExtensions {
    /// All handshakes merged; a later one overrides an earlier one.
    pub handshake: ExtensionHandshake,
    /// Whether the peer has sent one.
    pub is_known: bool,
}

impl PeerExtensions {
    /// Merges a handshake; a later one changes only the fields it names (BEP 10).
    pub fn merge(&mut self, later: ExtensionHandshake) {
        let known = &mut self.handshake;
        for (name, id) in later.extensions {
            if known.extensions.len() < MAX_EXTENSIONS || known.extensions.contains_key(&name) {
                known.extensions.insert(name, id);
            }
        }
        known.client = later.client.or(known.client.take());
        known.listen_port = later.listen_port.or(known.listen_port);
        known.request_queue = later.request_queue.or(known.request_queue);
        known.your_ip = later.your_ip.or(known.your_ip);
        known.ipv4 = later.ipv4.or(known.ipv4);
        known.ipv6 = later.ipv6.or(known.ipv6);
        known.upload_only = later.upload_only.or(known.upload_only);
        known.metadata_size = later.metadata_size.or(known.metadata_size);
        self.is_known = true;
    }

    /// Returns the message id under which the peer expects the extension `name`, if the peer supports it.
    #[must_use]
    pub fn id_of(&self, name: &str) -> Option<u8> {
        self.handshake.extensions.get(name).copied().filter(|&id| id != 0)
    }
}

/// The extensions that this engine supports, in the order of their message ids; plugins add theirs before the start.
#[derive(Resource, Debug, Default)]
pub struct ExtensionRegistry {
    /// The names, each with the torrents to whose peers the extension is announced.
    names: Vec<(&'static str, Audience)>,
}

/// The torrents to whose peers an extension is announced.
#[derive(Debug, Clone, Copy)]
enum Audience {
    /// All torrents.
    All,
    /// Torrents that may get peers from a source.
    Allowing(CandidateSource),
}

impl ExtensionRegistry {
    /// Makes the engine announce the extension `name`; its messages then arrive as
    /// [`ExtensionReceived`](crate::messages::ExtensionReceived). Registering twice changes nothing.
    ///
    /// # Panics
    /// Beyond 255 extensions, the limit of the message id.
    pub fn register(&mut self, name: &'static str) {
        self.add(name, Audience::All);
    }

    /// Makes the engine announce the extension `name` to the peers of torrents that may get peers from `source`.
    ///
    /// # Panics
    /// Beyond 255 extensions, the limit of the message id.
    pub fn register_for_source(&mut self, name: &'static str, source: CandidateSource) {
        self.add(name, Audience::Allowing(source));
    }

    fn add(&mut self, name: &'static str, audience: Audience) {
        if !self.names.iter().any(|(known, _)| *known == name) {
            assert!(self.names.len() < 255, "at most 255 extensions");
            self.names.push((name, audience));
        }
    }

    /// Returns the extension whose messages have `id`.
    #[must_use]
    pub fn name_of(&self, id: u8) -> Option<&'static str> {
        let (name, _) = self.names.get(usize::from(id).checked_sub(1)?)?;
        Some(name)
    }

    /// Returns all extensions with their ids for the handshake with a peer of a torrent. The ids count from 1; 0 stands
    /// for an extension that is not supported (BEP 10).
    pub fn iter(&self, allowed: AllowedSources) -> impl Iterator<Item = (&'static str, u8)> + '_ {
        self.names.iter().zip(1..).map(move |((name, audience), id)| {
            let is_announced = match *audience {
                Audience::All => true,
                Audience::Allowing(source) => allowed.has(source),
            };
            (*name, if is_announced { id } else { 0 })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_refills_with_time() {
        let at = |millis| Timestamp::ZERO + Duration::from_millis(millis);
        let mut allowance = Allowance::new(at(0), 16, Duration::from_secs(1));
        let count = |allowance: &mut Allowance, now| (0..100).filter(|_| allowance.take(now)).count();
        assert_eq!(count(&mut allowance, at(0)), 16);
        assert_eq!(count(&mut allowance, at(3_700)), 3);
        assert_eq!(count(&mut allowance, at(4_100)), 1, "parts of an interval add up");
        assert_eq!(count(&mut allowance, at(1_000_000)), 16);
        assert_eq!(count(&mut allowance, at(1_000_900)), 0, "and a full one holds no more");
    }

    #[test]
    fn extension_ids_count_from_one() {
        let mut registry = ExtensionRegistry::default();
        registry.register("a");
        registry.register("b");
        registry.register("a");
        registry.register_for_source("c", CandidateSource::PEER_EXCHANGE);
        let iter = |source: CandidateSource| registry.iter(AllowedSources(source.into())).collect::<Vec<_>>();
        assert_eq!(iter(CandidateSource::PEER_EXCHANGE), [("a", 1), ("b", 2), ("c", 3)]);
        assert_eq!(iter(CandidateSource::TRACKER), [("a", 1), ("b", 2), ("c", 0)]);
        assert_eq!(
            (registry.name_of(0), registry.name_of(2), registry.name_of(5)),
            (None, Some("b"), None)
        );
        let mut peer = PeerExtensions::default();
        peer.handshake.extensions = [("a".to_owned(), 0), ("b".to_owned(), 9)].into();
        assert_eq!(
            (peer.id_of("a"), peer.id_of("b")),
            (None, Some(9)),
            "0 takes an extension back"
        );
        peer.merge(ExtensionHandshake {
            upload_only: Some(true),
            ..ExtensionHandshake::default()
        });
        assert_eq!((peer.id_of("b"), peer.handshake.upload_only), (Some(9), Some(true)));
    }
}
