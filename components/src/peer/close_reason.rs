//! Why a connection ended.

use std::net::SocketAddr;
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
    /// The peer is connected at another of its addresses, this one.
    #[error("the peer is connected at {0}")]
    OtherAddress(SocketAddr),
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
    #[error("sent unsolicited blocks")]
    Unsolicited,
    /// The peer's send queue exceeded its limit.
    #[error("does not read the data sent to it")]
    SendQueueFull,
    /// Both sides are complete.
    #[error("both sides are complete")]
    Redundant,
    /// A new connection to the same peer begins with a bitfield, which is shorter than many `Have`s.
    #[error("connecting again with a bitfield")]
    Reconnecting,
    /// The torrent is private, as its metadata says, and the peer comes from a source that serves no private torrents.
    #[error("the torrent is private")]
    Private,
    /// The torrent is being stopped.
    #[error("the torrent is being stopped")]
    Stopping,
    /// A plugin closed the connection for a reason of its own.
    #[error(transparent)]
    Plugin(#[from] PluginReason),
}

/// A plugin's reason for closing a connection.
///
/// ```
/// use ecs_torrent_components::peer::{CloseReason, PluginReason};
///
/// let reason = CloseReason::from(PluginReason::new("office hours", "it is past five"));
/// assert_eq!(reason.to_string(), "office hours: it is past five");
/// assert!(!reason.is_final());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{plugin}: {reason}")]
pub struct PluginReason {
    plugin: &'static str,
    reason: Arc<str>,
    is_final: bool,
}

impl PluginReason {
    /// Creates the reason of the plugin named `plugin`. The peer's address may be dialed again later, as after any
    /// failure.
    #[must_use]
    pub fn new(plugin: &'static str, reason: impl Into<Arc<str>>) -> Self {
        Self {
            plugin,
            reason: reason.into(),
            is_final: false,
        }
    }

    /// Makes the reason final: the address is dialed again only if a source reports it again.
    #[must_use]
    pub fn never_again(self) -> Self {
        Self { is_final: true, ..self }
    }

    /// Returns the plugin's name.
    #[must_use]
    pub fn plugin(&self) -> &'static str {
        self.plugin
    }
}

impl CloseReason {
    /// Whether the failed attempt counts against the address, so that it is tried later or less often.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        !matches!(
            self,
            Self::Redundant
                | Self::Reconnecting
                | Self::Stopping
                | Self::Duplicate
                | Self::OtherAddress(_)
                | Self::TooMany
        )
    }

    /// Whether it is useless to try the address again, unless a source reports it again.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Plugin(reason) => reason.is_final,
            _ => matches!(self, Self::Myself | Self::Corrupt | Self::Banned | Self::Private),
        }
    }

    /// Whether the peer's outbox is flushed before the connection closes.
    #[must_use]
    pub fn is_orderly(&self) -> bool {
        matches!(
            self,
            Self::Redundant | Self::Reconnecting | Self::Stopping | Self::Myself | Self::OtherAddress(_)
        )
    }
}

/// The event that did not happen in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TimeoutKind {
    /// The handshake did not arrive.
    #[error("no handshake")]
    Handshake,
    /// The rest of a message did not arrive.
    #[error("a message did not arrive completely")]
    Frame,
    /// No message arrived.
    #[error("no message")]
    Idle,
    /// The peer did not read.
    #[error("does not read the data sent to it")]
    Send,
}
