//! A peer's components: one entity per connection, from the dial or accept to the end of the tick that closes it.

mod close_reason;
mod outbox;
mod pieces;
mod requests;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::extension::{ExtensionHandshake, MAX_EXTENSIONS};
use ecs_torrent_protocol::peer_id::PeerId;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::{FrameLimits, PeerCodec, Session};

pub use self::close_reason::{CloseReason, TimeoutKind};
pub use self::outbox::{FlushQueue, Outbox};
pub use self::pieces::PeerPieces;
pub use self::requests::{
    EmptiedUploads, Pending, QueueDepth, RefillQueue, Requests, ServeQueue, UploadMemory, UploadQueue,
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
    /// Bytes taken from the link and not granted again.
    pub ungranted_bytes: u32,
    /// Whether the peer is listed as having bytes to decode.
    pub is_listed: bool,
    /// Since when the frame at the front is incomplete.
    pub frame_since: Option<Timestamp>,
    /// When a whole message last came.
    pub last_message: Timestamp,
    /// How often all pieces may be told anew.
    pub bitfields: Allowance,
}

/// Something that a peer may do so many times at once, and then once a second.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    left: u32,
    refilled: Timestamp,
}

impl Allowance {
    /// Times at once.
    const MOST: u32 = 16;

    /// A full allowance.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self {
            left: Self::MOST,
            refilled: now,
        }
    }

    /// Uses it once; false where it is used up.
    pub fn take(&mut self, now: Timestamp) -> bool {
        let seconds = now.since(self.refilled).as_secs();
        if seconds > 0 {
            self.left = self
                .left
                .saturating_add(u32::try_from(seconds).unwrap_or(u32::MAX))
                .min(Self::MOST);
            self.refilled = now;
        }
        let taken = self.left > 0;
        self.left = self.left.saturating_sub(1);
        taken
    }
}

impl Wire {
    /// A connection on which nothing has been read.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self {
            codec: PeerCodec::new(FrameLimits::default()),
            session: Session::default(),
            ungranted_bytes: 0,
            is_listed: false,
            frame_since: None,
            last_message: now,
            bitfields: Allowance::new(now),
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
        let at = |seconds| Timestamp::ZERO + std::time::Duration::from_secs(seconds);
        let mut allowance = Allowance::new(at(0));
        let count = |allowance: &mut Allowance, now| (0..100).filter(|_| allowance.take(now)).count();
        assert_eq!(count(&mut allowance, at(0)), 16);
        assert_eq!(count(&mut allowance, at(3)), 3);
        assert_eq!(count(&mut allowance, at(1000)), 16);
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
