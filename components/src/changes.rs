//! Changes of the torrents since an earlier look, for clients that keep a copy of the list.

use ecs_torrent_protocol::hash::InfoHash;

use crate::commands::Reply;
use crate::stats::TorrentStats;

/// A place in the history of one run of an engine. Every change has a later one than the changes before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// The run. An engine that was rebuilt after a panic has another one, and knows nothing about revisions of the last.
    pub run: u64,
    /// The number of changes before.
    pub number: u64,
}

/// Gets the torrents that have changed since a revision. The cost depends on the number of changes, not of torrents.
///
/// A torrent counts as changed when its state, name, size, progress, counters, error, dates or number of peers change, and
/// once per second while it transfers data or is being checked. What the mere passing of time changes (the running time)
/// does not count, nor what the state of single peers, trackers and sources is.
#[derive(Debug)]
pub struct GetChanges {
    /// The revision of the last answer; `None` to get everything.
    pub since: Option<Revision>,
    /// Most torrents in the answer.
    pub max_count: usize,
    /// Answered with the changes.
    pub reply: Reply<Changes>,
}

/// Changes of the torrents: the removed ones first, then the changed ones, in order of their latest change.
#[derive(Debug, Clone, PartialEq)]
pub struct Changes {
    /// The changes up to this revision are known.
    pub revision: Revision,
    /// Whether the answer is not based on the requested revision, because that is of another run or too old: torrents that
    /// are not in this answer and the next ones are gone.
    pub is_reset: bool,
    /// Torrents that were removed or stopped.
    pub removed: Vec<InfoHash>,
    /// Torrents that were added or changed, without their peers, trackers and sources.
    pub changed: Vec<TorrentStats>,
    /// Whether there are more changes, after `revision`.
    pub has_more: bool,
}
