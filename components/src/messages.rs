//! Facts that features tell each other within a tick.
//!
//! Each is written once, by the feature that knows, and read by whoever cares, plugins included. A message lives
//! for two ticks: work that is owed longer is state on an entity.

use std::sync::Arc;

use bevy_ecs::prelude::*;
use bytes::Bytes;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::geometry::BlockRequest;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::wire::Block;

use crate::peer::CloseReason;

// ---- Torrents ----

/// A torrent is listed.
#[derive(Message, Debug, Clone)]
pub struct TorrentAdded {
    /// The torrent.
    pub torrent: Entity,
}

/// A torrent's existing data has been looked at, and it has begun to download or to seed.
#[derive(Message, Debug, Clone)]
pub struct TorrentStarted {
    /// The torrent.
    pub torrent: Entity,
}

/// The last missing piece of a torrent is on the disk.
#[derive(Message, Debug, Clone)]
pub struct TorrentCompleted {
    /// The torrent.
    pub torrent: Entity,
}

/// A torrent waits for something that is not there now, and will go on by itself.
#[derive(Message, Debug, Clone)]
pub struct TorrentBlocked {
    /// The torrent.
    pub torrent: Entity,
    /// What it waits for, for people.
    pub resource: Arc<str>,
}

/// A torrent has met a fault and will be tried again.
#[derive(Message, Debug, Clone)]
pub struct TorrentRestarting {
    /// The torrent.
    pub torrent: Entity,
    /// What it met, for people.
    pub reason: Arc<str>,
}

/// A torrent could not go on, and is not tried again.
#[derive(Message, Debug, Clone)]
pub struct TorrentFailed {
    /// The torrent.
    pub torrent: Entity,
    /// Why, for people.
    pub reason: Arc<str>,
}

/// A torrent is gone.
#[derive(Message, Debug, Clone)]
pub struct TorrentStopped {
    /// The hash it had.
    pub info_hash: InfoHash,
}

/// Fails a torrent: written by whoever meets a fault that belongs to it.
#[derive(Message, Debug, Clone)]
pub struct FailTorrent {
    /// The torrent.
    pub torrent: Entity,
    /// Why, for people.
    pub reason: Arc<str>,
    /// What may help.
    pub remedy: Remedy,
}

/// What may help after a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Starting again from what is saved.
    Restart,
    /// Waiting until something comes back, like a volume.
    Wait,
    /// Nothing that this program can do.
    None,
}

/// Stops a torrent, as a plugin may want.
#[derive(Message, Debug, Clone)]
pub struct RequestStop {
    /// The torrent.
    pub torrent: Entity,
}

// ---- Pieces ----

/// A block that was asked for has arrived and been placed.
#[derive(Message, Debug, Clone)]
pub struct BlockAccepted {
    /// The torrent.
    pub torrent: Entity,
    /// Who sent it.
    pub peer: Entity,
    /// Payload bytes.
    pub len: u32,
}

/// Payload arrived that is of no use: late, twice or unasked for.
#[derive(Message, Debug, Clone)]
pub struct BlockWasted {
    /// The torrent.
    pub torrent: Entity,
    /// Who sent it.
    pub peer: Entity,
    /// Payload bytes.
    pub len: u32,
}

/// A piece has the hash it should have; it is not on the disk yet.
#[derive(Message, Debug, Clone)]
pub struct PieceVerified {
    /// The torrent.
    pub torrent: Entity,
    /// The piece's index.
    pub index: u32,
}

/// A piece has another hash than it should have.
#[derive(Message, Debug, Clone)]
pub struct PieceRejected {
    /// The torrent.
    pub torrent: Entity,
    /// The piece's index.
    pub index: u32,
    /// Bytes of it that peers have sent, in this run or an earlier one: all but padding.
    pub received_bytes: u64,
    /// Who sent blocks of it, each peer once.
    pub contributors: Vec<Entity>,
    /// Who sent each block; nobody, where a block is padding.
    pub senders: Vec<Option<Entity>>,
    /// The bytes that failed.
    pub data: Vec<Bytes>,
}

/// A verified piece is on the disk: from now on it may be announced and served.
#[derive(Message, Debug, Clone)]
pub struct PieceStored {
    /// The torrent.
    pub torrent: Entity,
    /// The piece's index.
    pub index: u32,
    /// Its length in bytes.
    pub len: u32,
}

/// A block has left for a peer.
#[derive(Message, Debug, Clone)]
pub struct BlockSent {
    /// The torrent.
    pub torrent: Entity,
    /// Who gets it.
    pub peer: Entity,
    /// Payload bytes.
    pub len: u32,
}

// ---- Peers ----

/// A peer's handshake was accepted; messages flow.
#[derive(Message, Debug, Clone)]
pub struct PeerConnected {
    /// The torrent.
    pub torrent: Entity,
    /// The peer.
    pub peer: Entity,
}

/// A download has no peers, and knows no address that may be tried now: whoever finds peers may look for some.
#[derive(Message, Debug, Clone)]
pub struct PeersWanted {
    /// The torrent.
    pub torrent: Entity,
}

/// A connection has ended; its entity goes with this tick.
#[derive(Message, Debug, Clone)]
pub struct PeerDisconnected {
    /// The torrent, where the handshake had named it.
    pub torrent: Option<Entity>,
    /// The peer.
    pub peer: Entity,
    /// Why.
    pub reason: CloseReason,
}

/// A peer told what it has.
#[derive(Message, Debug, Clone)]
pub struct AvailabilityReceived {
    /// The peer.
    pub peer: Entity,
    /// What changed.
    pub change: Availability,
}

/// A change of what a peer has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Availability {
    /// These pieces.
    Bitfield(Bitfield),
    /// Every piece (BEP 6).
    All,
    /// No piece (BEP 6).
    None,
    /// This piece too.
    Have(u32),
    /// This piece no longer (BEP 54).
    DontHave(u32),
}

impl Availability {
    /// Whether the peer has less than before by it, as a message of an extension tells (BEP 54).
    #[must_use]
    pub fn is_taken_back(&self) -> bool {
        matches!(self, Self::DontHave(_))
    }
}

/// A peer choked or unchoked us.
#[derive(Message, Debug, Clone)]
pub struct ChokeReceived {
    /// The peer.
    pub peer: Entity,
    /// Whether our requests go unanswered.
    pub is_choking: bool,
}

/// A peer wants something of us, or no longer does.
#[derive(Message, Debug, Clone)]
pub struct InterestReceived {
    /// The peer.
    pub peer: Entity,
    /// Whether it does.
    pub is_interested: bool,
}

/// A peer asks for a block or takes that back.
#[derive(Message, Debug, Clone)]
pub struct UploadRequested {
    /// The peer.
    pub peer: Entity,
    /// The block.
    pub request: BlockRequest,
    /// Whether it takes the request back.
    pub is_cancel: bool,
}

/// A peer will not answer a request of ours (BEP 6).
#[derive(Message, Debug, Clone)]
pub struct RejectReceived {
    /// The peer.
    pub peer: Entity,
    /// The request.
    pub request: BlockRequest,
}

/// A peer lets us request a piece while it chokes us (BEP 6).
#[derive(Message, Debug, Clone)]
pub struct AllowedFastReceived {
    /// The peer.
    pub peer: Entity,
    /// The piece.
    pub piece: u32,
}

/// A peer would have us take a piece of it (BEP 6).
#[derive(Message, Debug, Clone)]
pub struct SuggestReceived {
    /// The peer.
    pub peer: Entity,
    /// The piece.
    pub piece: u32,
}

/// We have choked or unchoked a peer.
#[derive(Message, Debug, Clone)]
pub struct ChokeSent {
    /// The torrent.
    pub torrent: Entity,
    /// The peer.
    pub peer: Entity,
    /// Whether its requests go unanswered.
    pub is_choking: bool,
}

/// A message of a registered extension (BEP 10).
#[derive(Message, Debug, Clone)]
pub struct ExtensionReceived {
    /// The peer.
    pub peer: Entity,
    /// The extension's name, as registered.
    pub extension: &'static str,
    /// What it says.
    pub payload: Bytes,
}

/// Blocks that have arrived and not been looked at: the one bulk queue between sockets and pieces. Emptied in
/// every tick, so that nothing holds their memory but the pieces they belong to.
#[derive(Resource, Debug, Default)]
pub struct ReceivedBlocks(pub Vec<(Entity, Block)>);

// ---- Trackers ----

/// A tracker answered.
#[derive(Message, Debug, Clone)]
pub struct TrackerAnswered {
    /// The torrent.
    pub torrent: Entity,
    /// The tracker.
    pub tracker: Entity,
    /// Number of peers that it named.
    pub peer_count: usize,
}

/// A tracker did not answer, or refused.
#[derive(Message, Debug, Clone)]
pub struct TrackerFailed {
    /// The torrent.
    pub torrent: Entity,
    /// The tracker.
    pub tracker: Entity,
    /// Why, for people.
    pub reason: Arc<str>,
}
