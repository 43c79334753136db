//! Messages that features exchange within a tick.
//!
//! One feature writes each message; any feature may read it, plugins included. A message lives for two ticks: work
//! that takes longer is state on an entity.

use std::path::PathBuf;
use std::sync::Arc;

use bevy_ecs::prelude::*;
use bytes::Bytes;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::geometry::BlockRequest;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::wire::Block;

use crate::hints::LinkHints;
use crate::labels::Labels;
use crate::lifecycle::Lifecycle;
use crate::peer::CloseReason;
use crate::queue::QueueMove;
use crate::rate_limit::TransferLimits;
use crate::seeding::{SeedingLimit, SeedingLimits};
use crate::selection::FileSelection;
use crate::session::Session;
use crate::settings::SeedingAction;
use crate::wanted::PieceOrder;

// ---- Torrents ----

/// A torrent was added and is listed.
#[derive(Message, Debug, Clone)]
pub struct TorrentAdded {
    /// The torrent.
    pub torrent: Entity,
    /// Whether the torrent was listed before, in this run or in an earlier one.
    pub is_resumed: bool,
}

/// A torrent was added with these trackers, or gets them later. It keeps those that it has, in front of the new ones.
/// An event for observers.
#[derive(EntityEvent, Debug, Clone)]
pub struct TrackersGiven {
    /// The torrent.
    #[event_target]
    pub torrent: Entity,
    /// The announce URLs, by tier.
    pub tiers: Vec<Vec<String>>,
}

/// A torrent without metadata was added by a magnet link with these hints. It keeps those of earlier links. An event
/// for observers.
#[derive(EntityEvent, Debug, Clone)]
pub struct HintsGiven {
    /// The torrent.
    #[event_target]
    pub torrent: Entity,
    /// The hints, not empty.
    pub hints: LinkHints,
}

/// The user edited the trackers of a torrent. An event for observers.
#[derive(EntityEvent, Debug, Clone)]
pub struct TrackersEdited {
    /// The torrent.
    #[event_target]
    pub torrent: Entity,
}

/// A torrent is known to be private (BEP 27), though its metadata is not known: it cannot be used, or could not in an
/// earlier run. An event for observers.
#[derive(EntityEvent, Debug, Clone)]
pub struct PrivacyKnown {
    /// The torrent.
    #[event_target]
    pub torrent: Entity,
}

/// The saved session of a newly added torrent has been read. Each feature restores its own state from the session.
///
/// An event for observers, not a message, so that features restore their state before the torrent's files are opened.
#[derive(EntityEvent, Debug, Clone)]
pub struct SessionLoaded {
    /// The torrent.
    #[event_target]
    pub torrent: Entity,
    /// The session.
    pub session: Arc<Session>,
}

/// A new torrent of which no file exists begins in the folder for incomplete torrents.
#[derive(EntityEvent, Debug, Clone)]
pub struct PlacedIncomplete {
    /// The torrent.
    #[event_target]
    pub torrent: Entity,
    /// The download folder, to which its files go when it is complete.
    pub complete_root: PathBuf,
}

/// The files of a torrent that has completed have their final folder and names. If they cannot be moved there, they
/// stay where they are.
#[derive(Message, Debug, Clone)]
pub struct FilesSettled {
    /// The torrent.
    pub torrent: Entity,
}

/// A torrent's files have another download folder now, and go to no other one by themselves.
#[derive(EntityEvent, Debug, Clone)]
pub struct FilesPlaced {
    /// The torrent.
    #[event_target]
    pub torrent: Entity,
}

/// The state of a torrent has changed.
#[derive(Message, Debug, Clone)]
pub struct LifecycleChanged {
    /// The torrent.
    pub torrent: Entity,
    /// The state before.
    pub from: Lifecycle,
    /// The state now.
    pub to: Lifecycle,
}

/// A torrent has begun to download or to seed; its existing data has been examined.
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

/// A torrent is blocked by an unavailable resource and will continue by itself.
#[derive(Message, Debug, Clone)]
pub struct TorrentBlocked {
    /// The torrent.
    pub torrent: Entity,
    /// The missing resource, human-readable.
    pub resource: Arc<str>,
}

/// A torrent failed and will be tried again.
#[derive(Message, Debug, Clone)]
pub struct TorrentRestarting {
    /// The torrent.
    pub torrent: Entity,
    /// The failure, human-readable.
    pub reason: Arc<str>,
}

/// A torrent failed and is not tried again.
#[derive(Message, Debug, Clone)]
pub struct TorrentFailed {
    /// The torrent.
    pub torrent: Entity,
    /// The reason, human-readable.
    pub reason: Arc<str>,
}

/// A torrent is paused: it has left its peers and trackers, and its files are closed.
#[derive(Message, Debug, Clone)]
pub struct TorrentPaused {
    /// The torrent.
    pub torrent: Entity,
}

/// A torrent has reached a seeding limit.
#[derive(Message, Debug, Clone, Copy)]
pub struct SeedingLimitReached {
    /// The torrent.
    pub torrent: Entity,
    /// The limit.
    pub limit: SeedingLimit,
    /// The effect on the torrent.
    pub action: SeedingAction,
}

/// A torrent was stopped and is no longer listed.
#[derive(Message, Debug, Clone)]
pub struct TorrentStopped {
    /// The torrent's hash.
    pub info_hash: InfoHash,
    /// Whether a user removed the torrent, so that nothing of it is saved.
    pub is_removed: bool,
}

/// Fails a torrent. Written by the feature that detects the fault.
#[derive(Message, Debug, Clone)]
pub struct FailTorrent {
    /// The torrent.
    pub torrent: Entity,
    /// The reason, human-readable.
    pub reason: Arc<str>,
    /// The possible remedy.
    pub remedy: Remedy,
}

/// Possible remedies for a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Restart from the saved session.
    Restart,
    /// Wait until a resource such as a volume is available again.
    Wait,
    /// No remedy: this program can do nothing.
    None,
}

/// Stops a torrent at the request of a plugin.
#[derive(Message, Debug, Clone)]
pub struct RequestStop {
    /// The torrent.
    pub torrent: Entity,
}

// ---- Pieces ----

/// A requested block has arrived and was stored in its piece.
#[derive(Message, Debug, Clone)]
pub struct BlockAccepted {
    /// The torrent.
    pub torrent: Entity,
    /// The peer that sent the block.
    pub peer: Entity,
    /// Payload bytes.
    pub len: u32,
}

/// Useless payload arrived: late, duplicate or unsolicited.
#[derive(Message, Debug, Clone)]
pub struct BlockWasted {
    /// The torrent.
    pub torrent: Entity,
    /// The peer that sent it.
    pub peer: Entity,
    /// Payload bytes.
    pub len: u32,
}

/// A piece passed its hash check; it is not on the disk yet.
#[derive(Message, Debug, Clone)]
pub struct PieceVerified {
    /// The torrent.
    pub torrent: Entity,
    /// The piece's index.
    pub index: u32,
}

/// A piece failed its hash check.
#[derive(Message, Debug, Clone)]
pub struct PieceRejected {
    /// The torrent.
    pub torrent: Entity,
    /// The piece's index.
    pub index: u32,
    /// Bytes of the piece received from peers, in this run or an earlier one: all but padding.
    pub received_bytes: u64,
    /// The peers that sent blocks of the piece, each one once.
    pub contributors: Vec<Entity>,
    /// The sender of each block; `None` for a block of padding.
    pub senders: Vec<Option<Entity>>,
    /// The bytes that failed the check.
    pub data: Vec<Bytes>,
}

impl LifecycleChanged {
    /// Whether the torrent now connects to peers and did not before. A torrent that runs keeps its connections while
    /// it is blocked.
    #[must_use]
    pub fn begins_to_connect(&self) -> bool {
        match &self.to {
            Lifecycle::FetchingMetadata => true,
            to => to.is_running() && !self.from.may_serve(),
        }
    }

    /// Whether a torrent that had everything it wanted downloads again: the user wants more.
    #[must_use]
    pub fn wants_more(&self) -> bool {
        self.to == Lifecycle::Downloading && self.from.is_finished()
    }

    /// Whether every wanted piece is held from now on.
    #[must_use]
    pub fn finishes(&self) -> bool {
        self.to.is_finished() && !self.from.is_finished()
    }
}

/// The held pieces of a torrent have been determined from its session and its files.
#[derive(Message, Debug, Clone)]
pub struct PiecesKnown {
    /// The torrent.
    pub torrent: Entity,
    /// The held pieces.
    pub have: Bitfield,
    /// Whether no other piece is in doubt.
    pub is_final: bool,
}

/// The metadata of a torrent that was added by its info-hash is known: the torrent has its [`Layout`], [`Content`] and
/// [`Have`]. A torrent that is added with its metadata has them from the start.
///
/// [`Layout`]: crate::torrent::Layout
/// [`Content`]: crate::torrent::Content
/// [`Have`]: crate::torrent::Have
#[derive(Message, Debug, Clone)]
pub struct MetadataKnown {
    /// The torrent.
    pub torrent: Entity,
}

/// The metadata of a torrent that was added by its info-hash is saved: a later run knows it. Follows
/// [`MetadataKnown`], perhaps after the torrent has started.
#[derive(Message, Debug, Clone)]
pub struct MetadataSaved {
    /// The torrent.
    pub torrent: Entity,
}

/// A torrent was added with a selection of files, which replaces an earlier choice, or with an order of its pieces. An
/// event for observers.
#[derive(EntityEvent, Debug, Clone)]
pub struct FilesSelected {
    /// The torrent.
    #[event_target]
    pub torrent: Entity,
    /// The selection.
    pub selection: FileSelection,
    /// The order of the pieces.
    pub order: PieceOrder,
}

/// A torrent was added with limits of its transfer rates. An event for observers.
#[derive(EntityEvent, Debug, Clone)]
pub struct LimitsGiven {
    /// The torrent.
    #[event_target]
    pub torrent: Entity,
    /// The limits.
    pub limits: TransferLimits,
}

/// A torrent was added by a user who wants to skip the check of existing data. An event for observers.
#[derive(EntityEvent, Debug, Clone, Copy)]
pub struct CheckSkipped {
    /// The torrent.
    #[event_target]
    pub torrent: Entity,
}

/// A torrent was added with seeding limits of its own. An event for observers.
#[derive(EntityEvent, Debug, Clone)]
pub struct SeedingGiven {
    /// The torrent.
    #[event_target]
    pub torrent: Entity,
    /// The limits.
    pub limits: SeedingLimits,
}

/// A torrent was added with labels or a category. An event for observers.
#[derive(EntityEvent, Debug, Clone)]
pub struct LabelsGiven {
    /// The torrent.
    #[event_target]
    pub torrent: Entity,
    /// The labels and the category.
    pub labels: Labels,
}

/// A torrent was added with a place in the queue. An event for observers.
#[derive(EntityEvent, Debug, Clone, Copy)]
pub struct PlaceGiven {
    /// The torrent.
    #[event_target]
    pub torrent: Entity,
    /// The place.
    pub movement: QueueMove,
}

/// The place of a torrent in the queue has changed. An event for observers.
#[derive(EntityEvent, Debug, Clone)]
pub struct PlaceChanged {
    /// The torrent.
    #[event_target]
    pub torrent: Entity,
}

/// The user has changed the priorities of files or the order of pieces, and the change is durable. The torrent has its
/// new [`FileChoice`](crate::wanted::FileChoice) and [`WantedPieces`](crate::wanted::WantedPieces).
#[derive(Message, Debug, Clone)]
pub struct WantedChanged {
    /// The torrent.
    pub torrent: Entity,
    /// The pieces whose priority has changed, or that are at an end of a file and have become more or less important
    /// by that, ascending.
    pub pieces: Arc<[u32]>,
}

/// A verified piece is on the disk; it may be announced and served now.
#[derive(Message, Debug, Clone)]
pub struct PieceStored {
    /// The torrent.
    pub torrent: Entity,
    /// The piece's index.
    pub index: u32,
    /// The piece's length in bytes.
    pub len: u32,
}

/// A piece that was held without a check is verified; it may be served now.
#[derive(Message, Debug, Clone)]
pub struct PieceConfirmed {
    /// The torrent.
    pub torrent: Entity,
    /// The piece's index.
    pub piece: u32,
}

/// All bytes of a block have left for a peer: the system has taken them.
#[derive(Message, Debug, Clone)]
pub struct BlockSent {
    /// The torrent.
    pub torrent: Entity,
    /// The receiving peer.
    pub peer: Entity,
    /// Payload bytes.
    pub len: u32,
}

/// An outbox has the room that a feature has waited for ([`Outbox::await_room`](crate::peer::Outbox::await_room)).
#[derive(Message, Debug, Clone)]
pub struct OutboxDrained {
    /// The receiving peer.
    pub peer: Entity,
}

// ---- Peers ----

/// A peer's handshake was accepted; messages can be exchanged.
#[derive(Message, Debug, Clone)]
pub struct PeerConnected {
    /// The torrent.
    pub torrent: Entity,
    /// The peer.
    pub peer: Entity,
}

/// A download has no peers and no address to dial now. Sources of peers may search for some.
#[derive(Message, Debug, Clone)]
pub struct PeersWanted {
    /// The torrent.
    pub torrent: Entity,
}

/// A connection has ended; its entity is despawned at the end of this tick.
#[derive(Message, Debug, Clone)]
pub struct PeerDisconnected {
    /// The torrent, if the handshake named one.
    pub torrent: Option<Entity>,
    /// The peer.
    pub peer: Entity,
    /// Why the connection ended.
    pub reason: CloseReason,
}

/// A peer's set of pieces has changed.
#[derive(Message, Debug, Clone)]
pub struct AvailabilityReceived {
    /// The peer.
    pub peer: Entity,
    /// The change.
    pub change: Availability,
}

/// A change of a peer's set of pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Availability {
    /// The peer has exactly these pieces.
    Bitfield(Bitfield),
    /// The peer has exactly these pieces, of a torrent whose number of pieces is not known.
    Raw(Bytes),
    /// The peer has every piece (BEP 6).
    All,
    /// The peer has no piece (BEP 6).
    None,
    /// The peer now has this piece too.
    Have(u32),
    /// The peer no longer has this piece (BEP 54).
    DontHave(u32),
}

impl Availability {
    /// Whether the change takes a piece away; an extension message announces this (BEP 54).
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
    /// Whether the peer chokes us, so that our requests go unanswered.
    pub is_choking: bool,
}

/// A peer became interested or not interested.
#[derive(Message, Debug, Clone)]
pub struct InterestReceived {
    /// The peer.
    pub peer: Entity,
    /// Whether the peer is interested.
    pub is_interested: bool,
}

/// A peer requests a block or cancels a request.
#[derive(Message, Debug, Clone)]
pub struct UploadRequested {
    /// The peer.
    pub peer: Entity,
    /// The block.
    pub request: BlockRequest,
    /// Whether the message is a cancel.
    pub is_cancel: bool,
}

/// A peer requests the first or the last block of a piece, and the request is accepted. Peers request the blocks of a
/// piece in order, so these requests show when a piece is begun and when its last bytes are on their way.
#[derive(Message, Debug, Clone)]
pub struct PieceRequested {
    /// The torrent.
    pub torrent: Entity,
    /// The peer.
    pub peer: Entity,
    /// The piece.
    pub piece: u32,
    /// Whether the first block was requested.
    pub is_begun: bool,
    /// Whether the last block was requested.
    pub is_ended: bool,
}

/// A peer rejects one of our requests (BEP 6).
#[derive(Message, Debug, Clone)]
pub struct RejectReceived {
    /// The peer.
    pub peer: Entity,
    /// The request.
    pub request: BlockRequest,
}

/// A peer allows us to request a piece while it chokes us (BEP 6).
#[derive(Message, Debug, Clone)]
pub struct AllowedFastReceived {
    /// The peer.
    pub peer: Entity,
    /// The piece.
    pub piece: u32,
}

/// A peer suggests a piece for us to request (BEP 6).
#[derive(Message, Debug, Clone)]
pub struct SuggestReceived {
    /// The peer.
    pub peer: Entity,
    /// The piece.
    pub piece: u32,
}

/// We choked or unchoked a peer.
#[derive(Message, Debug, Clone)]
pub struct ChokeSent {
    /// The torrent.
    pub torrent: Entity,
    /// The peer.
    pub peer: Entity,
    /// Whether the peer is choked, so that its requests go unanswered.
    pub is_choking: bool,
}

/// An extension handshake has arrived (BEP 10). A peer may send more than one. After
/// `DecideSet::Extensions`, its content is part of [`Peer`](crate::peer::Peer) and
/// [`PeerExtensions`](crate::peer::PeerExtensions).
#[derive(Message, Debug, Clone)]
pub struct ExtensionHandshakeReceived {
    /// The peer.
    pub peer: Entity,
    /// The handshake as it was received.
    pub payload: Bytes,
}

/// A peer has named the port of its node of the DHT (BEP 5).
#[derive(Message, Debug, Clone)]
pub struct PortReceived {
    /// The peer.
    pub peer: Entity,
    /// The UDP port.
    pub port: u16,
}

/// A message of a registered extension has arrived (BEP 10).
#[derive(Message, Debug, Clone)]
pub struct ExtensionReceived {
    /// The peer.
    pub peer: Entity,
    /// The extension's name, as registered.
    pub extension: &'static str,
    /// The message's payload.
    pub payload: Bytes,
}

/// Received blocks that are not processed yet: the only bulk queue between sockets and pieces. It is emptied in every
/// tick, so that only the pieces hold the memory of their blocks.
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
    /// Number of peers in the answer.
    pub peer_count: usize,
}

/// A tracker did not answer, or returned an error.
#[derive(Message, Debug, Clone)]
pub struct TrackerFailed {
    /// The torrent.
    pub torrent: Entity,
    /// The tracker.
    pub tracker: Entity,
    /// The reason, human-readable.
    pub reason: Arc<str>,
}
