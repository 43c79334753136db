//! The State port: sessions of torrents, kept between runs.

use std::sync::Arc;

use bytes::Bytes;
use ecs_torrent_components::session::{Salvage, Session};
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::metainfo::Metainfo;

use crate::port::{JobTag, Port, PortEvent, Purpose};

/// The State port.
pub type StatePort = Port<StateRequest, StateEvent>;

/// A request from a world to the state folder.
#[derive(Debug)]
pub enum StateRequest {
    /// Lists the stored torrents.
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
        /// Leave unusable files in place. Otherwise they are renamed, with the reason in the name.
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
}

/// An event from the state folder to a world.
#[derive(Debug)]
pub struct StateEvent {
    /// From the request.
    pub tag: JobTag,
    /// The result.
    pub outcome: Result<StateDone, StateError>,
}

/// The result of a successful request.
#[derive(Debug)]
pub enum StateDone {
    /// The stored torrents, in the order of their info-hashes.
    Listed(Vec<InfoHash>),
    /// The stored data of a torrent.
    Loaded(Box<Loaded>),
    /// The session is on stable storage.
    Saved,
    /// The session and the `.torrent` file are deleted.
    Removed,
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

impl PortEvent for StateEvent {
    fn purpose(&self) -> Purpose {
        self.tag.purpose
    }
}
