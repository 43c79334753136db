//! Why a connection ended.

use std::sync::Arc;

use ecs_torrent_protocol::wire::WireError;

/// Why a connection ended; kept to the end, logged, and told to users.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// It could not be made.
    #[error("cannot connect: {0}")]
    ConnectFailed(Arc<str>),
    /// The other side closed it, or the network did.
    #[error("closed by the peer: {0}")]
    Remote(Arc<str>),
    /// It broke the protocol.
    #[error("protocol error: {0}")]
    Wire(#[from] WireError),
    /// It took too long.
    #[error("timed out: {0}")]
    Timeout(TimeoutKind),
    /// It asked for a torrent that is not here, or not running.
    #[error("unknown torrent")]
    UnknownTorrent,
    /// It answered for another torrent than the one it was asked for.
    #[error("answered for another torrent")]
    WrongTorrent,
    /// It is this engine.
    #[error("connected to ourselves")]
    Myself,
    /// The same peer is connected already.
    #[error("already connected")]
    Duplicate,
    /// Too many connections.
    #[error("too many connections")]
    TooMany,
    /// Its place was wanted by a peer that may be of more use.
    #[error("made room for another peer")]
    Evicted,
    /// It is banned.
    #[error("banned")]
    Banned,
    /// It sent data that fails its hash.
    #[error("sent corrupt data")]
    Corrupt,
    /// It sent blocks that nobody asked for.
    #[error("sent blocks that nobody asked for")]
    Unsolicited,
    /// More was waiting to be sent to it than is allowed.
    #[error("does not read what is sent")]
    SendQueueFull,
    /// Neither side has anything for the other.
    #[error("both sides are complete")]
    Redundant,
    /// The torrent is being stopped.
    #[error("the torrent stops")]
    Stopping,
}

impl CloseReason {
    /// Whether the address is to blame for a failed attempt, and should be tried later or less.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        !matches!(self, Self::Redundant | Self::Stopping | Self::Duplicate | Self::TooMany)
    }

    /// Whether the peer has to be told everything that is in its outbox before the connection goes.
    #[must_use]
    pub fn is_orderly(&self) -> bool {
        matches!(self, Self::Redundant | Self::Stopping | Self::Myself)
    }
}

/// What did not happen in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TimeoutKind {
    /// The handshake.
    #[error("no handshake")]
    Handshake,
    /// The rest of a message.
    #[error("a message did not arrive whole")]
    Frame,
    /// Any message.
    #[error("no message")]
    Idle,
    /// The peer's reading.
    #[error("does not read what is sent")]
    Send,
}
