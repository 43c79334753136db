//! The State port: sessions of torrents, kept between runs.

use std::sync::Arc;

use bytes::Bytes;
use ecs_torrent_components::session::{Salvage, Session};
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::metainfo::Metainfo;

use crate::port::{JobTag, Port, PortEvent, Purpose};

/// The State port.
pub type StatePort = Port<StateRequest, StateEvent>;

/// What a world asks of the state folder.
#[derive(Debug)]
pub enum StateRequest {
    /// Which torrents have a session.
    List {
        /// Comes back with the answer.
        tag: JobTag,
    },
    /// Reads a torrent's session.
    Load {
        /// Comes back with the answer.
        tag: JobTag,
        /// Whose.
        torrent: InfoHash,
        /// Read the `.torrent` beside it too.
        with_metainfo: bool,
        /// Only look: what cannot be used stays in its place. Otherwise it is set aside under a name that says why.
        is_peek: bool,
    },
    /// Writes a torrent's session so that the old one stays whole until the new one is.
    Save {
        /// Comes back when it is safe.
        tag: JobTag,
        /// Whose; boxed, as it is much larger than the rest.
        session: Box<Session>,
        /// The `.torrent`, where it is not known to be there.
        metainfo: Option<Bytes>,
    },
    /// Deletes a torrent's session and `.torrent`.
    Remove {
        /// Comes back when it is done.
        tag: JobTag,
        /// Whose.
        torrent: InfoHash,
    },
}

/// What the state folder tells a world.
#[derive(Debug)]
pub struct StateEvent {
    /// From the request.
    pub tag: JobTag,
    /// How it went.
    pub outcome: Result<StateDone, StateError>,
}

/// What was done.
#[derive(Debug)]
pub enum StateDone {
    /// The torrents that have a session, in order of their hashes.
    Listed(Vec<InfoHash>),
    /// What there was of a torrent.
    Loaded(Box<Loaded>),
    /// On the platter.
    Saved,
    /// Gone.
    Removed,
}

/// What there was of a torrent.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Its session, if there was one that can be used.
    pub session: Option<Session>,
    /// Whether there is a `.torrent` beside it.
    pub has_metainfo: bool,
    /// Where there was one that cannot be used: why, for people.
    pub set_aside: Option<String>,
    /// What such a one still tells.
    pub salvage: Salvage,
    /// Its metainfo, where it was asked for: or why it cannot be used.
    pub metainfo: Option<Result<Arc<Metainfo>, String>>,
}

/// A failed request: doing what, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StateError(pub Arc<str>);

impl PortEvent for StateEvent {
    fn purpose(&self) -> Purpose {
        self.tag.purpose
    }
}
