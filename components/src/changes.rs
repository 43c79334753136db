//! Changes of the torrents since an earlier look, for clients that keep a copy of the list.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use ecs_torrent_protocol::hash::InfoHash;

use crate::commands::Reply;
use crate::stats::TorrentStats;

/// A position in the history of one run of an engine. Every change has a later one than the changes before it.
///
/// Clients see it as text:
///
/// ```
/// use ecs_torrent_components::changes::Revision;
///
/// let revision = Revision { run: 255, number: 7 };
/// assert_eq!(revision.to_string(), "ff-7");
/// assert_eq!("ff-7".parse(), Ok(revision));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// The run. An engine that was rebuilt after a panic has another one, and knows nothing about revisions of the
    /// last.
    pub run: u64,
    /// The number of changes before.
    pub number: u64,
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{}", self.run, self.number)
    }
}

/// The text is not a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a revision, such as ff-7")]
pub struct NotARevision;

impl FromStr for Revision {
    type Err = NotARevision;

    fn from_str(text: &str) -> Result<Self, NotARevision> {
        let (run, number) = text.split_once('-').ok_or(NotARevision)?;
        Ok(Self {
            run: u64::from_str_radix(run, 16).map_err(|_| NotARevision)?,
            number: number.parse().map_err(|_| NotARevision)?,
        })
    }
}

/// The latest removed torrents, in order of their removal.
#[derive(Debug, Default)]
pub struct RemovedTorrents {
    /// The number of the change, and the torrent.
    kept: VecDeque<(u64, InfoHash)>,
    /// The number of the latest removal that is not remembered any more.
    forgotten: u64,
}

impl RemovedTorrents {
    /// Maximum number of removed torrents that are remembered. A client that asks every second misses some, and gets
    /// the whole list again, if more are removed in a second.
    pub const MAX: usize = 10_000;

    /// Creates a list without the removals before a change.
    #[must_use]
    pub fn since(number: u64) -> Self {
        Self {
            kept: VecDeque::new(),
            forgotten: number,
        }
    }

    /// Adds a torrent that was removed by the change with this number.
    pub fn push(&mut self, number: u64, torrent: InfoHash) {
        self.kept.push_back((number, torrent));
        if self.kept.len() > Self::MAX
            && let Some((number, _)) = self.kept.pop_front()
        {
            self.forgotten = number;
        }
    }

    /// Whether all removals after a change are remembered.
    #[must_use]
    pub fn is_complete_after(&self, number: u64) -> bool {
        self.forgotten <= number
    }

    /// Returns the torrents that were removed after the change `from`, up to the change `until`.
    #[must_use]
    pub fn between(&self, from: u64, until: u64) -> Vec<InfoHash> {
        let first = self.kept.partition_point(|(number, _)| *number <= from);
        let removed = self.kept.range(first..).take_while(|(number, _)| *number <= until);
        removed.map(|(_, torrent)| *torrent).collect()
    }

    /// Number of remembered torrents.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether no torrent is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }
}

/// Gets the torrents that have changed since a revision. The cost depends on the number of changes, not of torrents.
///
/// A torrent counts as changed when its state, name, size, progress, counters, error, dates or number of peers change,
/// and once per second while it transfers data or is being checked. Values that change with time alone (the running
/// time) do not count, nor does the state of single peers, trackers and sources.
#[derive(Debug)]
pub struct GetChanges {
    /// The revision of the last answer; `None` to get everything.
    pub since: Option<Revision>,
    /// Maximum number of torrents in the answer.
    pub max_count: usize,
    /// Answered with the changes.
    pub reply: Reply<Changes>,
}

/// Changes of the torrents: the removed ones first, then the changed ones, in order of their latest change.
#[derive(Debug, Clone, PartialEq)]
pub struct Changes {
    /// The changes up to this revision are known.
    pub revision: Revision,
    /// Whether the answer is not based on the requested revision, because that belongs to another run or is too old:
    /// torrents that are in neither this answer nor the following ones are gone.
    pub is_reset: bool,
    /// Torrents that were removed or stopped.
    pub removed: Vec<InfoHash>,
    /// Torrents that were added or changed, without their peers, trackers and sources.
    pub changed: Vec<TorrentStats>,
    /// Whether there are more changes, after `revision`.
    pub has_more: bool,
}
