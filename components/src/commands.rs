//! What is asked of the engine from outside, by facade or plugin.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::metainfo::Metainfo;
use ecs_torrent_protocol::tracker::ScrapeCounts;

use crate::stats::{FileStats, TorrentStats};

/// Commands of one type that have arrived and not been carried out. A feature that takes commands initializes its
/// queue; the mailbox fills it in Intake.
#[derive(Resource, Debug)]
pub struct CommandQueue<C: Send + Sync + 'static>(pub VecDeque<C>);

impl<C: Send + Sync + 'static> Default for CommandQueue<C> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

/// Where an answer goes. Dropped unused, it tells the caller that the engine has gone.
pub struct Reply<T>(Box<dyn FnOnce(T) + Send + Sync>);

impl<T> Reply<T> {
    /// Hands the answer to `deliver`.
    #[must_use]
    pub fn new(deliver: impl FnOnce(T) + Send + Sync + 'static) -> Self {
        Self(Box::new(deliver))
    }

    /// For who does not wait for an answer.
    #[must_use]
    pub fn ignored() -> Self
    where
        T: 'static,
    {
        Self::new(drop)
    }

    /// Answers.
    pub fn send(self, answer: T) {
        (self.0)(answer);
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// How a torrent is to be added.
#[derive(Debug, Clone, Default)]
pub struct AddOptions {
    /// The download folder; where none is named, that of the settings.
    pub root: Option<PathBuf>,
    /// Peers to connect to, beside those that trackers name.
    pub peers: Vec<SocketAddr>,
    /// Fail the torrent if its data is not all there already, instead of downloading what is missing.
    pub require_complete: bool,
}

/// Adds a torrent. Adding one that is there answers with its hash and changes nothing.
#[derive(Debug)]
pub struct AddTorrent {
    /// What to add.
    pub metainfo: Arc<Metainfo>,
    /// How.
    pub options: AddOptions,
    /// Nobody has asked for it in this run: what its session says of its user's wishes holds.
    pub is_resumed: bool,
    /// Answered when the torrent is listed.
    pub reply: Reply<InfoHash>,
}

/// Stops a torrent. Stopping one that is not there, or is stopping, is no error.
#[derive(Debug)]
pub struct StopTorrent {
    /// Which.
    pub torrent: InfoHash,
    /// Answered when it is gone.
    pub reply: Reply<Result<(), StopError>>,
}

/// Stops all torrents.
#[derive(Debug)]
pub struct StopAll {
    /// Answered when all are gone, or with the first that is not.
    pub reply: Reply<Result<(), StopError>>,
}

/// A torrent's peers and trackers have been told, but its session could not be written. It stays listed, as failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} was stopped, but its state is not saved: {reason}")]
pub struct StopError {
    /// Which.
    pub torrent: InfoHash,
    /// Its name.
    pub name: Arc<str>,
    /// Why its session could not be written.
    pub reason: Arc<str>,
}

/// What goes with a torrent that is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RemoveOptions {
    /// Delete the files that this torrent created or wrote, and folders that become empty by that.
    pub delete_data: bool,
}

/// Stops a torrent and forgets it, session and all.
#[derive(Debug)]
pub struct RemoveTorrent {
    /// Which.
    pub torrent: InfoHash,
    /// What goes with it.
    pub options: RemoveOptions,
    /// Answered when it is gone.
    pub reply: Reply<Result<(), RemoveError>>,
}

/// Why a torrent was not removed, or not all of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoveError {
    /// No such torrent.
    #[error(transparent)]
    NotFound(#[from] TorrentNotFound),
    /// The torrent is gone, but something of it is still on the disk.
    #[error("{name} was removed, but {reason}")]
    Incomplete {
        /// Its name.
        name: Arc<str>,
        /// What is left, and why.
        reason: Arc<str>,
    },
}

/// Adds every torrent that has a saved session.
#[derive(Debug)]
pub struct ResumeAll {
    /// Answered with their number when all are listed, or with why the state folder cannot be read.
    pub reply: Reply<Result<usize, ResumeError>>,
}

/// Why saved sessions cannot be resumed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot resume: {0}")]
pub struct ResumeError(pub Arc<str>);

/// No torrent has this hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no torrent {0}")]
pub struct TorrentNotFound(pub InfoHash);

/// Asks for the hashes of all torrents.
#[derive(Debug)]
pub struct ListTorrents {
    /// Answered with the hashes, in the order in which the torrents were added.
    pub reply: Reply<Vec<InfoHash>>,
}

/// Asks for a torrent's state.
#[derive(Debug)]
pub struct GetStats {
    /// Which.
    pub torrent: InfoHash,
    /// Answered with it.
    pub reply: Reply<Result<TorrentStats, TorrentNotFound>>,
}

/// Asks for a torrent's files.
#[derive(Debug)]
pub struct GetFiles {
    /// Which.
    pub torrent: InfoHash,
    /// Answered with them, pads left out.
    pub reply: Reply<Result<Vec<FileStats>, TorrentNotFound>>,
}

/// Asks a torrent's trackers for the size of its swarm (BEP 48), without announcing.
#[derive(Debug)]
pub struct ScrapeTorrent {
    /// Which.
    pub torrent: InfoHash,
    /// Answered by the first tracker that knows, or with why none does.
    pub reply: Reply<Result<ScrapeCounts, ScrapeError>>,
}

/// Why a scrape told nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScrapeError {
    /// No such torrent.
    #[error(transparent)]
    NotFound(#[from] TorrentNotFound),
    /// No tracker told.
    #[error("no tracker of this torrent could be scraped: {0}")]
    NoTracker(String),
}

/// Adds addresses of peers to a torrent.
#[derive(Debug)]
pub struct AddPeers {
    /// Which.
    pub torrent: InfoHash,
    /// Where they are.
    pub peers: Vec<SocketAddr>,
}
