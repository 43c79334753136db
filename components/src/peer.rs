//! A peer's components: one entity per connection, from the dial or accept to the end of the tick that closes it.

mod close_reason;
mod outbox;
mod pieces;
mod requests;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::extension::{ExtensionHandshake, MAX_EXTENSIONS};
use ecs_torrent_protocol::peer_id::PeerId;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::{FrameLimits, PeerCodec, Session};

pub use self::close_reason::{CloseReason, TimeoutKind};
pub use self::outbox::{FlushQueue, Outbox};
pub use self::pieces::{PeerPieces, PieceForm};
pub use self::requests::{
    AllowedFast, EmptiedUploads, Pending, QueueDepth, RefillQueue, Requests, ServeQueue, UploadMemory, UploadQueue,
};
use crate::ids::LinkId;
use crate::rate::Rate;

/// Where a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Endpoint {
    /// At an IP address and port, over TCP.
    Ip(SocketAddr),
}

impl Endpoint {
    /// The address, where it has one.
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

/// Who opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The peer.
    Inbound,
    /// We.
    Outbound,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It is being made.
    Connecting,
    /// The peer's handshake has not arrived whole.
    Handshaking,
    /// Messages flow.
    Connected,
}

/// A connection to a peer. On every peer, from the first to the last tick.
#[derive(Component, Debug)]
pub struct Peer {
    /// Where it is.
    pub endpoint: Endpoint,
    /// Its connection at the Net port.
    pub link: LinkId,
    /// Who opened it.
    pub direction: Direction,
    /// How far it is.
    pub stage: Stage,
    /// When it entered this stage.
    pub since: Timestamp,
    /// How it names itself, once the handshake is here.
    pub peer_id: Option<PeerId>,
    /// Name and version of its program, as far as it told; for people.
    pub client: Arc<str>,
    /// Where it accepts connections, where that is known: dialed there, or told by extension handshake.
    pub listens_at: Option<SocketAddr>,
}

/// The reading side of a connection.
#[derive(Component, Debug)]
pub struct Wire {
    /// Bytes received and not decoded.
    pub codec: PeerCodec,
    /// What decides which messages are valid.
    pub session: Session,
    /// Credit that received bytes have taken of the link, less what was granted; below zero where the window has been
    /// opened wider.
    pub ungranted_bytes: i64,
    /// Bytes left for the next tick, since the peer has sent more messages than one takes.
    pub held_bytes: u32,
    /// Whether the peer is listed as having bytes to decode.
    pub is_listed: bool,
    /// Since when the frame at the front is incomplete.
    pub frame_since: Option<Timestamp>,
    /// When a whole message last came.
    pub last_message: Timestamp,
    /// How often all pieces may be told anew.
    pub bitfields: Allowance,
    /// How often single pieces may be taken back, and extension handshakes repeated.
    pub changes: Allowance,
    /// How often the peer may choke and unchoke us.
    pub chokes: Allowance,
}

/// Something that a peer may do so many times at once, and then at so many times a second: a token bucket.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    most: u32,
    /// Time in which one comes back.
    interval: Duration,
    left: u32,
    refilled: Timestamp,
}

impl Allowance {
    /// A full allowance: `most` at once, and one more after each `interval`.
    #[must_use]
    pub fn new(now: Timestamp, most: u32, interval: Duration) -> Self {
        Self {
            most,
            interval,
            left: most,
            refilled: now,
        }
    }

    /// Uses it once; false where it is used up.
    pub fn take(&mut self, now: Timestamp) -> bool {
        let interval = self.interval.as_nanos().max(1);
        let count = now.since(self.refilled).as_nanos() / interval;
        if count > 0 {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(count).min(self.most);
            // What is over of an interval counts for the next one, but not where the bucket has run over.
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

/// Bitfields at once, and the time between two after that: clients in use send one or two in a connection's life, and
/// each one has the picker count all pieces anew.
const BITFIELDS: (u32, Duration) = (8, Duration::from_secs(10));

/// Pieces taken back, and extension handshakes, at once: as many as a client may lose with a file. Each is O(1).
const CHANGES: (u32, Duration) = (512, Duration::from_millis(50));

/// Chokes and unchokes at once; a choking round is 10 s long, and a slot may be filled anew every 100 ms between. Each one
/// may have us take all requests to the peer back, and make as many again.
const CHOKES: (u32, Duration) = (64, Duration::from_millis(100));

impl Wire {
    /// A connection on which nothing has been read.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self {
            codec: PeerCodec::new(FrameLimits::default()),
            session: Session::default(),
            ungranted_bytes: 0,
            held_bytes: 0,
            is_listed: false,
            frame_since: None,
            last_message: now,
            bitfields: Allowance::new(now, BITFIELDS.0, BITFIELDS.1),
            changes: Allowance::new(now, CHANGES.0, CHANGES.1),
            chokes: Allowance::new(now, CHOKES.0, CHOKES.1),
        }
    }
}

/// Who chokes whom, and who wants something (BEP 3).
#[derive(Component, Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerState {
    /// We do not answer its requests.
    pub am_choking: bool,
    /// It has something we want.
    pub am_interested: bool,
    /// It does not answer our requests.
    pub peer_choking: bool,
    /// We have something it wants.
    pub peer_interested: bool,
    /// It does not want anything at all (BEP 21).
    pub upload_only: bool,
    /// It suggests pieces (BEP 6), and so hears of each that we have, though it has it too.
    pub suggests: bool,
    /// It owes us blocks and sends none.
    pub snubbed: bool,
    /// When we last changed `am_choking`.
    pub choke_changed: Timestamp,
}

impl PeerState {
    /// How every connection begins (BEP 3): choked and not interested, both ways.
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

/// A peer's speeds and totals, payload only.
#[derive(Component, Debug, Clone, Copy, Default)]
pub struct PeerRates {
    /// From it to us.
    pub download: Rate,
    /// From us to it.
    pub upload: Rate,
    /// Bytes received in all.
    pub downloaded: u64,
    /// Bytes sent in all.
    pub uploaded: u64,
    /// When a block that was asked for last went either way.
    pub last_payload: Option<Timestamp>,
}

/// What a peer told in its extension handshake (BEP 10).
#[derive(Component, Debug, Clone, Default)]
pub struct PeerExtensions {
    /// All handshakes together, the later over the earlier.
    pub handshake: ExtensionHandshake,
    /// Whether there was one.
    pub is_known: bool,
}

impl PeerExtensions {
    /// Takes a handshake in; a later one changes only what it names (BEP 10).
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
        known.upload_only = later.upload_only.or(known.upload_only);
        known.metadata_size = later.metadata_size.or(known.metadata_size);
        self.is_known = true;
    }

    /// The id under which the peer wants to hear messages of the extension `name`, if it speaks it.
    #[must_use]
    pub fn id_of(&self, name: &str) -> Option<u8> {
        self.handshake.extensions.get(name).copied().filter(|&id| id != 0)
    }
}

/// The extensions that this engine speaks, in the order of their message ids; plugins add theirs before the start.
#[derive(Resource, Debug, Default)]
pub struct ExtensionRegistry {
    names: Vec<&'static str>,
}

impl ExtensionRegistry {
    /// Makes the engine announce the extension `name`; its messages then arrive as
    /// [`ExtensionReceived`](crate::messages::ExtensionReceived). Registering twice changes nothing.
    ///
    /// # Panics
    /// Beyond 255 extensions, which is all that the message id can name.
    pub fn register(&mut self, name: &'static str) {
        if !self.names.contains(&name) {
            assert!(self.names.len() < 255, "at most 255 extensions");
            self.names.push(name);
        }
    }

    /// The extension whose messages come under `id`.
    #[must_use]
    pub fn name_of(&self, id: u8) -> Option<&'static str> {
        self.names.get(usize::from(id).checked_sub(1)?).copied()
    }

    /// All extensions with their ids, from 1.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u8)> + '_ {
        self.names.iter().copied().zip(1..)
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
        assert_eq!(registry.iter().collect::<Vec<_>>(), [("a", 1), ("b", 2)]);
        assert_eq!(
            (registry.name_of(0), registry.name_of(2), registry.name_of(3)),
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
