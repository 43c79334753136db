//! The State port: sessions of torrents, and named blobs of features and plugins, kept between runs.

use std::sync::Arc;

use bytes::Bytes;
use ecs_torrent_components::commands::{TorrentSource, UnfetchedTorrent};
use ecs_torrent_components::session::{Salvage, Session};
use ecs_torrent_protocol::geometry::Geometry;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::metainfo::Metainfo;

use crate::port::{JobTag, Port, PortEvent, Purpose};

/// The State port.
pub type StatePort = Port<StateRequest, StateEvent>;

/// A request from a world to the state folder.
#[derive(Debug)]
pub enum StateRequest {
    /// Lists the stored torrents: those with a session or a `.torrent` file. Reads no file.
    List {
        /// Returned with the answer.
        tag: JobTag,
    },
    /// Reads a torrent's session.
    Load {
        /// Returned with the answer.
        tag: JobTag,
        /// The torrent's info-hash.
        torrent: InfoHash,
        /// Also read the `.torrent` file next to the session.
        with_metainfo: bool,
        /// Leave unusable files as they are. Otherwise they get a name that contains the reason. An unusable session
        /// also keeps its own name until another session is saved, so that its intact parts stay recoverable.
        is_peek: bool,
    },
    /// Writes a torrent's session atomically: the old session stays intact until the new one is complete.
    Save {
        /// Returned when the session is durable.
        tag: JobTag,
        /// The session. Boxed because it is much larger than the other fields.
        session: Box<Session>,
        /// The `.torrent` file, unless it is known to be stored.
        metainfo: Option<Bytes>,
    },
    /// Deletes a torrent's session and `.torrent` file.
    Remove {
        /// Returned when the deletion is done.
        tag: JobTag,
        /// The torrent's info-hash.
        torrent: InfoHash,
    },
    /// Writes a blob atomically: the old one stays intact until the new one is complete. Blobs hold state that a
    /// feature or a plugin keeps between runs and can do without: a blob may be lost.
    SaveBlob {
        /// Returned when the blob is durable.
        tag: JobTag,
        /// The blob's name.
        name: BlobName,
        /// The content, at most [`MAX_BLOB_BYTES`].
        bytes: Bytes,
    },
    /// Reads a blob.
    LoadBlob {
        /// Returned with the answer.
        tag: JobTag,
        /// The blob's name.
        name: BlobName,
    },
}

/// Maximum size of a blob. The largest planned one, a DHT routing table with its cached nodes, takes less than a tenth
/// of it. A blob is written and read as a whole.
pub const MAX_BLOB_BYTES: usize = 4 << 20;

/// The name of a blob: 1 to 64 lower-case ASCII letters, digits, `-` and `_`. A plugin begins it with its own name.
///
/// ```
/// use ecs_torrent_engine::ports::state::BlobName;
///
/// assert_eq!(BlobName::new("my-plugin_counts").unwrap().as_str(), "my-plugin_counts");
/// assert!(BlobName::new("../escape").is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobName(Box<str>);

/// Returns the name of the blob that holds the changes of settings ([`SettingChanges`]), as JSON.
///
/// [`SettingChanges`]: ecs_torrent_components::settings::SettingChanges
#[must_use]
pub fn settings_blob() -> BlobName {
    BlobName("settings".into())
}

/// The text cannot be the name of a blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a blob: 1 to 64 lower-case letters, digits, - and _")]
pub struct BlobNameError(Box<str>);

impl BlobName {
    /// Maximum length of a name.
    const MAX_LEN: usize = 64;

    /// Creates a name.
    ///
    /// # Errors
    /// If the text is empty, too long, or has other characters.
    pub fn new(name: &str) -> Result<Self, BlobNameError> {
        let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
        if (1..=Self::MAX_LEN).contains(&name.len()) && name.bytes().all(is_allowed) {
            Ok(Self(name.into()))
        } else {
            Err(BlobNameError(name.chars().take(Self::MAX_LEN).collect()))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An event from the state folder to a world.
#[derive(Debug)]
pub struct StateEvent {
    /// The tag of the request.
    pub tag: JobTag,
    /// The result.
    pub outcome: Result<StateDone, StateError>,
}

/// The result of a successful request.
#[derive(Debug)]
pub enum StateDone {
    /// The stored torrents, in the order of their info-hashes.
    Listed(Vec<StoredTorrent>),
    /// The stored data of a torrent.
    Loaded(Box<Loaded>),
    /// The session or blob is on stable storage.
    Saved,
    /// The session and the `.torrent` file are deleted.
    Removed,
    /// The content of a blob. `None` if it does not exist.
    BlobLoaded(Option<Bytes>),
}

/// A torrent in the state folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredTorrent {
    /// The torrent's info-hash.
    pub torrent: InfoHash,
    /// Whether there is a session. A torrent whose session was lost is checked again.
    pub has_session: bool,
    /// Whether there is a `.torrent` file. A torrent whose metadata was not known when it stopped has none.
    pub has_metainfo: bool,
}

/// The stored data of a torrent.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The session, if a usable one exists.
    pub session: Option<Session>,
    /// Whether a `.torrent` file exists next to the session.
    pub has_metainfo: bool,
    /// The human-readable reason why an existing session is unusable.
    pub set_aside: Option<String>,
    /// The data recovered from an unusable session.
    pub salvage: Salvage,
    /// The metainfo, if requested, or the reason why it is unusable.
    pub metainfo: Option<Result<Arc<Metainfo>, String>>,
}

/// A failed request: the operation and the cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StateError(pub Arc<str>);

impl Loaded {
    /// Uses the data recovered from a damaged session as the session. `geometry` is the torrent's, if it is known;
    /// otherwise that of the loaded metainfo is used.
    pub fn repair(&mut self, geometry: Option<&Geometry>) {
        if self.session.is_none() {
            let metainfo = self.metainfo.as_ref().and_then(|metainfo| metainfo.as_ref().ok());
            let loaded = metainfo.map(|metainfo| &metainfo.info.geometry);
            self.session = self.salvage.session(geometry.or(loaded));
        }
    }

    /// Takes the source with which the torrent can be added: its metainfo, or its info-hash if its session lacks
    /// metadata. `None` without either; the reason if the metainfo is unusable.
    pub fn source(&mut self) -> Option<Result<TorrentSource, String>> {
        let unfetched = self
            .session
            .as_ref()
            .filter(|session| session.lacks_metadata)
            .map(|session| {
                TorrentSource::InfoHash(UnfetchedTorrent {
                    info_hash: session.info_hash,
                    name: Some(session.name.clone()),
                    // In the order of announces.
                    trackers: session
                        .trackers
                        .iter()
                        .map(|tracker| vec![tracker.url.clone()])
                        .collect(),
                    peers: Vec::new(),
                    hints: session.hints.clone(),
                })
            });
        match (self.metainfo.take()?, unfetched) {
            (Ok(metainfo), _) => Some(Ok(metainfo.into())),
            (Err(_), Some(unfetched)) => Some(Ok(unfetched)),
            (Err(reason), None) => Some(Err(reason)),
        }
    }
}

impl PortEvent for StateEvent {
    fn purpose(&self) -> Purpose {
        self.tag.purpose
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_blobs_are_safe_as_file_names() {
        for name in ["dht", "dht-6", "my_plugin-2", &"x".repeat(64)] {
            assert_eq!(BlobName::new(name).unwrap().as_str(), name);
        }
        for name in ["", ".", "..", "a/b", "a.b", "A", "ä", "a b", "a\0", &"x".repeat(65)] {
            assert!(BlobName::new(name).is_err(), "{name:?}");
        }
        let long = BlobName::new(&"/".repeat(10_000)).unwrap_err();
        assert!(long.to_string().len() < 200);
    }
}
