//! The name of a torrent in the library.

use std::fmt;
use std::str::FromStr;

use ecs_torrent_protocol::hash::{InfoHash, InfoHashError};

/// Identifies a torrent, by its info-hash. [`Torrents`](crate::Torrents) and [`Event`](crate::events::Event) name
/// torrents by it; an [`InfoHash`] is accepted too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TorrentId(pub InfoHash);

impl From<InfoHash> for TorrentId {
    fn from(hash: InfoHash) -> Self {
        Self(hash)
    }
}

impl From<TorrentId> for InfoHash {
    fn from(id: TorrentId) -> Self {
        id.0
    }
}

impl FromStr for TorrentId {
    type Err = InfoHashError;

    fn from_str(text: &str) -> Result<Self, InfoHashError> {
        text.parse().map(Self)
    }
}

impl fmt::Display for TorrentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
