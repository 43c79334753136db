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
    /// A folder below the download folder to use in its place, so that the torrent meets no file of another's.
    pub into: Option<PathBuf>,
    /// The name of the torrent's file or folder on the disk, in the place of the one in its metainfo.
    pub name: Option<String>,
    /// Files which are there may be changed and completed. They stay the user's: they are never deleted with the torrent.
    pub overwrite: bool,
    /// Peers to connect to, beside those that trackers name.
    pub peers: Vec<SocketAddr>,
    /// Fail the torrent if its data is not all there already, instead of downloading what is missing.
    pub require_complete: bool,
}

/// Adds a torrent.
///
/// Adding one that is there gives it the peers of the options, and answers with its hash. One that has failed is tried
/// again with the new options. One that is being stopped or removed is added when that is over.
#[derive(Debug)]
pub struct AddTorrent {
    /// What to add.
    pub metainfo: Arc<Metainfo>,
    /// How.
    pub options: AddOptions,
    /// Nobody has asked for it in this run: what its session says of its user's wishes holds.
    pub is_resumed: bool,
    /// Answered when the torrent is listed and its session is durable, or with why it is refused.
    pub reply: Reply<Result<InfoHash, AddError>>,
}

/// Why a torrent is not added. Nothing of it is kept then, and no file has been touched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// Another torrent has a file of the same path, with other content or not all of it.
    #[error("{torrent}: {}", self.reason())]
    FilesTaken {
        /// The torrent.
        torrent: Arc<str>,
        /// The torrent that has the file.
        other: Arc<str>,
        /// The file, below the download folder.
        path: Box<str>,
    },
    /// A file that was there before would have to be changed.
    #[error("{torrent}: {}", self.reason())]
    WouldChange {
        /// The torrent.
        torrent: Arc<str>,
        /// The file, below the download folder.
        path: Box<str>,
    },
    /// A file would lie in a folder of the engine's own.
    #[error("{torrent}: {reason}")]
    Forbidden {
        /// The torrent.
        torrent: Arc<str>,
        /// Which file, and why not.
        reason: Arc<str>,
    },
    /// The torrent's session cannot be written.
    #[error("{torrent} is not added: its state is not saved: {reason}")]
    Unsaved {
        /// The torrent.
        torrent: Arc<str>,
        /// Why.
        reason: Arc<str>,
    },
    /// The torrent was removed before it was added.
    #[error("{torrent} was removed meanwhile")]
    Removed {
        /// The torrent.
        torrent: Arc<str>,
    },
    /// A name that cannot be one of a file or folder.
    #[error("{name:?} cannot be the name of a torrent's files: {reason}")]
    BadName {
        /// The name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// A folder that does not lie below the download folder.
    #[error("{} is not a folder below the download folder", into.display())]
    BadFolder {
        /// The folder.
        into: PathBuf,
    },
}

/// What a user can do where a file is not the torrent's own.
pub const CHOICE: &str = "add it into another folder (--into NEW_FOLDER), under another name (--name NAME), or let it \
                          change the file (--overwrite)";

impl AddError {
    /// The reason alone, without the torrent's name.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::FilesTaken { other, path, .. } => format!(
                "{path} is a file of the torrent {other}, with other content or incomplete; add it into another folder \
                 (--into NEW_FOLDER) or under another name (--name NAME)"
            ),
            Self::WouldChange { path, .. } => {
                format!("{path} is there already, and would have to be changed; {CHOICE}")
            }
            Self::Forbidden { reason, .. } | Self::Unsaved { reason, .. } => reason.to_string(),
            Self::Removed { .. } | Self::BadName { .. } | Self::BadFolder { .. } => self.to_string(),
        }
    }
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
    /// Delete the files that this torrent created, and folders that become empty by that.
    pub delete_data: bool,
}

/// Most files that [`Removed`] names of each kind: a longer list serves nobody, and would be held in memory several times.
pub const MAX_REMOVED_NAMES: usize = 1000;

/// What became of the files of a removed torrent. Empty where its data was not to be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removed {
    /// Files that were deleted, below the download folder; at most [`MAX_REMOVED_NAMES`].
    pub deleted: Vec<Box<str>>,
    /// Number of files that were deleted.
    pub deleted_count: usize,
    /// Files that were kept; at most [`MAX_REMOVED_NAMES`].
    pub kept: Vec<KeptFile>,
    /// Number of files that were kept.
    pub kept_count: usize,
}

/// A file that stays when its torrent is removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFile {
    /// Path below the download folder.
    pub path: Box<str>,
    /// Why it stays.
    pub reason: Arc<str>,
}

/// Stops a torrent and forgets it, session and all. A torrent that is stopped, and has only a session, is removed too.
#[derive(Debug)]
pub struct RemoveTorrent {
    /// Which.
    pub torrent: InfoHash,
    /// What goes with it.
    pub options: RemoveOptions,
    /// Answered when it is gone, with what became of its files.
    pub reply: Reply<Result<Removed, RemoveError>>,
}

/// Why a torrent was not removed, or not all of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoveError {
    /// No such torrent.
    #[error(transparent)]
    NotFound(#[from] TorrentNotFound),
    /// What is saved of a stopped torrent cannot be read.
    #[error("cannot remove {torrent}: {reason}")]
    Unreadable {
        /// The torrent.
        torrent: InfoHash,
        /// Why.
        reason: Arc<str>,
    },
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
