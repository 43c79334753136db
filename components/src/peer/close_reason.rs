//! Why a connection ended.

use std::sync::Arc;

use ecs_torrent_protocol::wire::WireError;

/// The reason why a connection ended; kept until the end, logged, and shown to users.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// The connection could not be established.
    #[error("cannot connect: {0}")]
    ConnectFailed(Arc<str>),
    /// The peer or the network closed the connection.
    #[error("closed by the peer: {0}")]
    Remote(Arc<str>),
    /// The peer violated the protocol.
    #[error("protocol error: {0}")]
    Wire(#[from] WireError),
    /// The peer took too long.
    #[error("timed out: {0}")]
    Timeout(TimeoutKind),
    /// The peer requested a torrent that is not here or not running.
    #[error("unknown torrent")]
    UnknownTorrent,
    /// The peer answered with another torrent than requested.
    #[error("answered for another torrent")]
    WrongTorrent,
    /// The peer is this engine.
    #[error("connected to ourselves")]
    Myself,
    /// The same peer is already connected.
    #[error("already connected")]
    Duplicate,
    /// There are too many connections.
    #[error("too many connections")]
    TooMany,
    /// A potentially more useful peer needed the slot.
    #[error("made room for another peer")]
    Evicted,
    /// The peer is banned.
    #[error("banned")]
    Banned,
    /// The peer sent data that fails its hash check.
    #[error("sent corrupt data")]
    Corrupt,
    /// The peer sent unsolicited blocks.
    #[error("sent blocks that nobody asked for")]
    Unsolicited,
    /// The peer's send queue exceeded its limit.
    #[error("does not read what is sent")]
    SendQueueFull,
    /// Both sides are complete.
    #[error("both sides are complete")]
    Redundant,
    /// The torrent is being stopped.
    #[error("the torrent stops")]
    Stopping,
}

impl CloseReason {
    /// Whether the failed attempt counts against the address, so that it is tried later or less often.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        !matches!(self, Self::Redundant | Self::Stopping | Self::Duplicate | Self::TooMany)
    }

    /// Whether the peer's outbox is flushed before the connection closes.
    #[must_use]
    pub fn is_orderly(&self) -> bool {
        matches!(self, Self::Redundant | Self::Stopping | Self::Myself)
    }
}

/// The event that did not happen in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TimeoutKind {
    /// The handshake did not arrive.
    #[error("no handshake")]
    Handshake,
    /// The rest of a message did not arrive.
    #[error("a message did not arrive whole")]
    Frame,
    /// No message arrived.
    #[error("no message")]
    Idle,
    /// The peer did not read.
    #[error("does not read what is sent")]
    Send,
}
