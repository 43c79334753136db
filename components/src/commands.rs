//! Commands to the engine from outside, sent by the facade or a plugin.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bevy_ecs::prelude::*;
use bytes::Bytes;
use ecs_torrent_protocol::hash::{InfoHash, InfoHashes};
use ecs_torrent_protocol::metainfo::{Metainfo, MetainfoError};
use ecs_torrent_protocol::tracker::ScrapeCounts;
use ecs_torrent_protocol::urls::UrlError;

use crate::hints::LinkHints;
use crate::labels::{LabelError, Labels, LabelsPatch};
use crate::names::{NameError, NewNames};
use crate::queue::{QueueChange, QueueMove};
use crate::rate_limit::{LimitError, LimitsPatch, TransferLimits};
use crate::seeding::{SeedingLimits, SeedingPatch};
use crate::selection::FileSelection;
use crate::settings::SettingError;
use crate::stats::{FileStats, StoppedTorrent, TorrentStats};
use crate::wanted::{FilePriority, PieceOrder, PieceOrderChange};

/// Queue of received commands of one type. A feature that takes commands initializes its queue; the mailbox fills it in
/// Intake.
///
/// ```
/// use bevy_ecs::prelude::*;
/// use ecs_torrent_components::commands::{CommandQueue, Reply};
/// use ecs_torrent_components::torrent::TorrentIndex;
///
/// /// A plugin's own command.
/// struct CountTorrents {
///     reply: Reply<usize>,
/// }
///
/// fn answer(mut queue: ResMut<CommandQueue<CountTorrents>>, index: Res<TorrentIndex>) {
///     for command in queue.0.drain(..) {
///         command.reply.send(index.len());
///     }
/// }
///
/// let mut world = World::new();
/// world.init_resource::<TorrentIndex>();
/// world.init_resource::<CommandQueue<CountTorrents>>();
/// let (sender, receiver) = std::sync::mpsc::channel();
/// let reply = Reply::new(move |count| sender.send(count).unwrap());
/// world.resource_mut::<CommandQueue<CountTorrents>>().0.push_back(CountTorrents { reply });
/// world.run_system_cached(answer).unwrap();
/// assert_eq!(receiver.recv(), Ok(0));
/// ```
#[derive(Resource, Debug)]
pub struct CommandQueue<C: Send + Sync + 'static>(pub VecDeque<C>);

impl<C: Send + Sync + 'static> Default for CommandQueue<C> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

/// A command about a single torrent.
pub trait AboutTorrent: Send + Sync + 'static {
    /// Returns the torrent's info-hash, as the caller named it.
    fn torrent(&self) -> InfoHash;
}

/// Return channel of a command. When a reply is dropped without an answer, the caller learns that the engine is gone.
pub struct Reply<T>(Box<dyn FnOnce(T) + Send + Sync>);

impl<T> Reply<T> {
    /// Creates a reply that hands the answer to `deliver`.
    #[must_use]
    pub fn new(deliver: impl FnOnce(T) + Send + Sync + 'static) -> Self {
        Self(Box::new(deliver))
    }

    /// Creates a reply that discards the answer.
    #[must_use]
    pub fn ignored() -> Self
    where
        T: 'static,
    {
        Self::new(drop)
    }

    /// Delivers the answer.
    pub fn send(self, answer: T) {
        (self.0)(answer);
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

impl<E: Send + 'static> Reply<Result<(), E>> {
    /// Splits the reply into `count` parts. When every part is answered, the caller gets the first error, or else a
    /// success; with no parts, a success at once.
    #[must_use]
    pub fn split(self, count: usize) -> Vec<Self> {
        if count == 0 {
            self.send(Ok(()));
            return Vec::new();
        }
        let parts = Arc::new(Mutex::new((count, Ok(()), Some(self))));
        let part = || {
            let parts = parts.clone();
            Self::new(move |answer| {
                // Nothing panics while the lock is held.
                let mut parts = parts.lock().unwrap_or_else(PoisonError::into_inner);
                let (left, result, whole) = &mut *parts;
                *left -= 1;
                if result.is_ok() {
                    *result = answer;
                }
                if *left == 0
                    && let Some(whole) = whole.take()
                {
                    whole.send(std::mem::replace(result, Ok(())));
                }
            })
        };
        (0..count).map(|_| part()).collect()
    }
}

/// Options for adding a torrent.
#[derive(Debug, Clone, Default)]
pub struct AddOptions {
    /// The download folder; `None` takes the one from the settings.
    pub root: Option<PathBuf>,
    /// A folder below the download folder to use instead of it, so that the torrent's files cannot collide with others.
    pub into: Option<PathBuf>,
    /// The name of the torrent's file or folder on the disk, instead of the name in its metainfo.
    pub name: Option<String>,
    /// Whether existing files may be changed and completed. They stay the user's: they are never deleted with the
    /// torrent.
    pub overwrite: bool,
    /// Time of the request in nanoseconds since 1970. `overwrite` covers no file that was created or changed later,
    /// even if the files are examined much later, when the metadata is known. `None` sets no limit.
    pub requested_ns: Option<i64>,
    /// The files to download; the others are skipped. An empty selection selects all files. It may name files before
    /// they are known, as a magnet link does (BEP 53).
    pub select: FileSelection,
    /// The order of pieces of equal priority.
    pub order: PieceOrder,
    /// The limits of the torrent's transfer rates. A torrent that is listed already keeps its own.
    pub limits: TransferLimits,
    /// The torrent's own seeding limits. A torrent that is listed already keeps its own.
    pub seeding: SeedingLimits,
    /// The labels and the category of the torrent. A torrent that is listed already gets the labels in addition to its
    /// own, and the category instead of its own; its files stay where they are. Without `root`, a category of the
    /// settings decides the download folder of a new torrent.
    pub labels: Labels,
    /// Whether the torrent is listed as paused: it contacts no tracker and no peer before it is started. A torrent that
    /// is listed already stays as it is.
    pub paused: bool,
    /// The torrent's place in the queue; `None` is the last place, or that of an earlier run. A torrent that is listed
    /// already keeps its place.
    pub queue: Option<QueueMove>,
    /// Peers to connect to, in addition to those from trackers.
    pub peers: Vec<SocketAddr>,
    /// Existing files of the right length count as complete without a check, if the torrent has no saved state. The
    /// statistics count their bytes as unverified. Each of their pieces is hashed before it is first sent to a peer or
    /// a reader; after a bad one, all of them are checked.
    pub skip_checking: bool,
    /// Fail the torrent if its data is incomplete, instead of downloading the missing pieces.
    pub require_complete: bool,
}

impl AddOptions {
    /// Whether the options say which files are wanted, or in which order.
    #[must_use]
    pub fn has_choice(&self) -> bool {
        !self.select.is_empty() || self.order != PieceOrder::default()
    }
}

/// The data of a torrent that is added: its metadata, or only its info-hash.
#[derive(Debug, Clone)]
pub enum TorrentSource {
    /// All of the torrent's metadata.
    Metainfo(Arc<Metainfo>),
    /// Only the info-hash, as in a magnet link. The torrent fetches its metadata: it connects to peers and waits for
    /// [`SupplyMetadata`].
    InfoHash(UnfetchedTorrent),
}

/// A torrent whose metadata is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnfetchedTorrent {
    /// The info-hash (v1).
    pub info_hash: InfoHash,
    /// The name shown until the metadata is known; without one, the info-hash.
    pub name: Option<String>,
    /// Announce URLs in tiers.
    pub trackers: Vec<Vec<String>>,
    /// Addresses of peers that the link contains. The user has not examined them: they are strangers like those that
    /// trackers return.
    pub peers: Vec<SocketAddr>,
    /// Other hints in the link.
    pub hints: LinkHints,
}

impl TorrentSource {
    /// Returns the hash that identifies the torrent to users.
    #[must_use]
    pub fn id(&self) -> InfoHash {
        self.hashes().primary()
    }

    /// Returns the announce URLs, in tiers.
    #[must_use]
    pub fn trackers(&self) -> &Vec<Vec<String>> {
        match self {
            Self::Metainfo(metainfo) => &metainfo.trackers,
            Self::InfoHash(unfetched) => &unfetched.trackers,
        }
    }

    /// Returns the other hints of a magnet link.
    #[must_use]
    pub fn hints(&self) -> Option<&LinkHints> {
        match self {
            Self::Metainfo(_) => None,
            Self::InfoHash(unfetched) => Some(&unfetched.hints),
        }
    }

    /// Returns the known hashes of the torrent.
    #[must_use]
    pub fn hashes(&self) -> InfoHashes {
        match self {
            Self::Metainfo(metainfo) => metainfo.hashes,
            Self::InfoHash(unfetched) => InfoHashes {
                v1: Some(unfetched.info_hash),
                v2: None,
            },
        }
    }
}

impl From<Arc<Metainfo>> for TorrentSource {
    fn from(metainfo: Arc<Metainfo>) -> Self {
        Self::Metainfo(metainfo)
    }
}

/// Supplies the metadata of a torrent that was added by its info-hash. The torrent is saved at once, and then opened; a
/// paused one is opened when it is started.
#[derive(Debug)]
pub struct SupplyMetadata {
    /// The torrent.
    pub torrent: InfoHash,
    /// The bytes of the info dictionary, whose SHA-1 is the info-hash.
    pub info: Bytes,
    /// Answered when the metadata is accepted, or with the reason for the refusal.
    pub reply: Reply<Result<(), SupplyError>>,
}

impl AboutTorrent for SupplyMetadata {
    fn torrent(&self) -> InfoHash {
        self.torrent
    }
}

/// Reasons to refuse metadata.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SupplyError {
    /// The torrent does not exist.
    #[error(transparent)]
    NotFound(#[from] TorrentNotFound),
    /// The torrent has its metadata already, or is being stopped.
    #[error("{0} needs no metadata")]
    NotNeeded(InfoHash),
    /// The metadata is another torrent's, or damaged.
    #[error("the metadata is not that of {0}")]
    WrongHash(InfoHash),
    /// The metadata has the right hash and describes no torrent that this engine can use.
    #[error("the metadata of {torrent} cannot be used: {error}")]
    Invalid {
        /// The torrent.
        torrent: InfoHash,
        /// The reason.
        error: MetainfoError,
    },
}

/// Adds a torrent.
///
/// If the torrent exists, it receives the peers of the options, the trackers that it does not have yet unless it is
/// private (BEP 27), and its metadata if that was not known; the reply is its hash. A failed torrent is tried again
/// with the new options, a torrent without metadata takes them, and a paused one stays paused. A torrent that is being
/// stopped or removed is added when that is over. A stopped torrent runs, even if it was paused before, unless the
/// options say that it is paused.
#[derive(Debug)]
pub struct AddTorrent {
    /// The torrent: its metadata, or its info-hash.
    pub source: TorrentSource,
    /// The options.
    pub options: AddOptions,
    /// Whether the engine adds the torrent by itself when it resumes; the user's options in its session stay in force
    /// then.
    pub is_resumed: bool,
    /// Answered when the torrent is listed, may use its files, and is saved with all data of this add, or with the
    /// reason for the refusal.
    pub reply: Reply<Result<InfoHash, AddError>>,
}

/// Reasons to refuse a torrent. No state of a refused torrent is kept, and no file has been touched. A torrent that was
/// listed before stays listed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// Another torrent has a file of the same path, with different or incomplete content.
    #[error("{torrent}: {}", self.reason())]
    FilesTaken {
        /// The torrent.
        torrent: Arc<str>,
        /// The torrent that owns the file.
        other: Arc<str>,
        /// The file, below the download folder.
        path: Box<str>,
    },
    /// An existing file would have to be changed.
    #[error("{torrent}: {}", self.reason())]
    WouldChange {
        /// The torrent.
        torrent: Arc<str>,
        /// The file, below the download folder.
        path: Box<str>,
    },
    /// A file would lie in one of the engine's own folders.
    #[error("{torrent}: {reason}")]
    Forbidden {
        /// The torrent.
        torrent: Arc<str>,
        /// The file and the reason.
        reason: Arc<str>,
    },
    /// The torrent's session cannot be written.
    #[error("{name} is not added: {0}", name = .0.name)]
    Unsaved(Unsaved),
    /// None of the torrent's files is selected.
    #[error("{torrent}: none of its files is selected")]
    NothingSelected {
        /// The torrent.
        torrent: Arc<str>,
    },
    /// The torrent was removed before it was added.
    #[error("{torrent} was removed meanwhile")]
    Removed {
        /// The torrent.
        torrent: Arc<str>,
    },
    /// The name is not valid for a file or folder.
    #[error("{name:?} cannot be the name of a torrent's files: {reason}")]
    BadName {
        /// The name.
        name: String,
        /// The reason.
        reason: &'static str,
    },
    /// A label or the category cannot be used.
    #[error(transparent)]
    BadLabel(#[from] LabelError),
    /// The folder does not lie below the download folder.
    #[error("{}: a new subfolder (--into) has to be below the download folder", into.display())]
    BadFolder {
        /// The folder.
        into: PathBuf,
    },
}

/// The user's options when an existing file is not the torrent's own.
pub const CHOICE: &str = "add it into another folder (--into NEW_FOLDER), under another name (--name NAME), or let it \
                          change the file (--overwrite)";

impl AddError {
    /// Returns the reason alone, without the torrent's name.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::FilesTaken { other, path, .. } => format!(
                "{path} is a file of the torrent {other}, with other content or incomplete; add it into another folder \
                 (--into NEW_FOLDER) or under another name (--name NAME)"
            ),
            Self::WouldChange { path, .. } => {
                format!(
                    "{path} already exists and would have to be changed; if an unfinished download wrote it, continue \
                     with that download's --state-dir, otherwise {CHOICE}"
                )
            }
            Self::Forbidden { reason, .. } | Self::Unsaved(Unsaved { reason, .. }) => reason.to_string(),
            Self::NothingSelected { .. } => "none of its files is selected".to_owned(),
            Self::Removed { .. } | Self::BadName { .. } | Self::BadFolder { .. } | Self::BadLabel(_) => {
                self.to_string()
            }
        }
    }
}

/// The state of a torrent could not be saved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its state is not saved: {reason}")]
pub struct Unsaved {
    /// The torrent's name.
    pub name: Arc<str>,
    /// Why the session could not be written.
    pub reason: Arc<str>,
}

impl Unsaved {
    /// Creates the error of a torrent.
    #[must_use]
    pub fn new(name: &Arc<str>, reason: &Arc<str>) -> Self {
        let (name, reason) = (name.clone(), reason.clone());
        Self { name, reason }
    }
}

/// Stops a torrent. Stopping a torrent that does not exist or is already stopping is not an error. The torrent stays
/// stopped over restarts of the engine until it is resumed or added.
#[derive(Debug)]
pub struct StopTorrent {
    /// The torrent.
    pub torrent: InfoHash,
    /// Answered when the torrent is gone.
    pub reply: Reply<Result<(), StopError>>,
}

impl AboutTorrent for StopTorrent {
    fn torrent(&self) -> InfoHash {
        self.torrent
    }
}

/// Stops all torrents.
#[derive(Debug)]
pub struct StopAll {
    /// Whether the torrents stay stopped over restarts until they are resumed. Otherwise [`ResumeAll`] lists them
    /// again, whether it includes stopped torrents or not.
    pub until_resumed: bool,
    /// Answered when all torrents are gone, or with the first error.
    pub reply: Reply<Result<(), StopError>>,
}

/// A torrent was stopped, but its session could not be written. Its peers and trackers have been notified. It stays
/// listed, as failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} was stopped, but {0}", name = .0.name)]
pub struct StopError(pub Unsaved);

/// Pauses, starts or checks torrents. Commands about the same torrent take effect in the order in which they arrive:
/// one of them waits while an earlier one waits.
#[derive(Debug)]
pub enum PauseOrStart {
    /// Pauses a torrent.
    Pause(PauseTorrent),
    /// Pauses all torrents.
    PauseAll(PauseAll),
    /// Starts a torrent.
    Start(StartTorrent),
    /// Starts all torrents.
    StartAll(StartAll),
    /// Checks the data of a torrent again.
    Recheck(RecheckTorrent),
    /// Moves the files of a torrent.
    Move(MoveTorrent),
}

impl From<MoveTorrent> for PauseOrStart {
    fn from(command: MoveTorrent) -> Self {
        Self::Move(command)
    }
}

impl From<RecheckTorrent> for PauseOrStart {
    fn from(command: RecheckTorrent) -> Self {
        Self::Recheck(command)
    }
}

impl From<PauseTorrent> for PauseOrStart {
    fn from(command: PauseTorrent) -> Self {
        Self::Pause(command)
    }
}

impl From<PauseAll> for PauseOrStart {
    fn from(command: PauseAll) -> Self {
        Self::PauseAll(command)
    }
}

impl From<StartTorrent> for PauseOrStart {
    fn from(command: StartTorrent) -> Self {
        Self::Start(command)
    }
}

impl From<StartAll> for PauseOrStart {
    fn from(command: StartAll) -> Self {
        Self::StartAll(command)
    }
}

/// Pauses a torrent: its session is saved, it leaves its peers and trackers, its files are closed, and it stays listed.
/// Pausing a torrent that is paused is not an error. A pause waits for a running stop or removal of the torrent. Sent
/// as a [`PauseOrStart`].
#[derive(Debug)]
pub struct PauseTorrent {
    /// The torrent.
    pub torrent: InfoHash,
    /// Answered when the torrent is paused, durably.
    pub reply: Reply<Result<(), PauseError>>,
}

/// Pauses all torrents that are listed now. Sent as a [`PauseOrStart`].
#[derive(Debug)]
pub struct PauseAll {
    /// Answered when all are paused, or with the first error.
    pub reply: Reply<Result<(), PauseError>>,
}

/// Reasons why a torrent is not paused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PauseError {
    /// The torrent does not exist, or it was removed meanwhile.
    #[error(transparent)]
    NotFound(#[from] TorrentNotFound),
    /// The session could not be written. The torrent has left its peers and trackers, and stays listed, as failed.
    #[error("{name} was paused, but {0}", name = .0.name)]
    Unsaved(Unsaved),
}

/// Starts a paused torrent, and tries a failed or blocked one again at once. Starting a torrent that runs is not an
/// error, and changes nothing. A torrent that is being paused is started when that is over. Sent as a [`PauseOrStart`].
#[derive(Debug)]
pub struct StartTorrent {
    /// The torrent.
    pub torrent: InfoHash,
    /// Answered when the intent is durable and the torrent is being opened.
    pub reply: Reply<Result<(), StartTorrentError>>,
}

/// Starts all torrents that are listed now, as [`StartTorrent`] starts one. Sent as a [`PauseOrStart`].
#[derive(Debug)]
pub struct StartAll {
    /// Answered when all are being opened, or with the first error.
    pub reply: Reply<Result<(), StartTorrentError>>,
}

/// Reasons why a torrent is not started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartTorrentError {
    /// The torrent does not exist, or it was removed meanwhile.
    #[error(transparent)]
    NotFound(#[from] TorrentNotFound),
    /// The session could not be written. The torrent stays paused, or has failed if it was being stopped.
    #[error("{name} is not started: {0}", name = .0.name)]
    Unsaved(Unsaved),
}

/// The data that is checked again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum CheckScope {
    /// All data.
    #[default]
    All,
    /// The pieces that have bytes of the selected files.
    Files(FileSelection),
    /// The pieces that are held without a check.
    Unverified,
}

/// Checks data of a torrent again: no piece of it counts as held before it is hashed. The torrent leaves its peers and
/// trackers as in a pause, its session records the check, and the files are opened again. Then the torrent continues as
/// before: it downloads the pieces that are missing or bad, or is paused again. A kill during the check repeats it in
/// the next run. Sent as a [`PauseOrStart`].
#[derive(Debug)]
pub struct RecheckTorrent {
    /// The torrent.
    pub torrent: InfoHash,
    /// The data to check. All other pieces stay held if their files have not changed.
    pub scope: CheckScope,
    /// Answered when the check is recorded durably and the files are being opened.
    pub reply: Reply<Result<(), RecheckError>>,
}

/// Reasons why a torrent is not checked again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecheckError {
    /// The torrent does not exist, or it was removed meanwhile.
    #[error(transparent)]
    NotFound(#[from] TorrentNotFound),
    /// Data of the torrent is being checked already.
    #[error("{0} is being checked already")]
    Running(Arc<str>),
    /// No piece is held without a check.
    #[error("{0} is not checked: all that it holds is verified")]
    Verified(Arc<str>),
    /// The selected files have no data, or the torrent has none of them.
    #[error("{0} is not checked: none of its files that have data is selected")]
    NothingSelected(Arc<str>),
    /// The metadata of the torrent is not known, and so there is nothing to check.
    #[error("{0} has no data to check: its metadata is not known yet")]
    NoMetadata(Arc<str>),
    /// The session could not be written. The torrent has left its peers and trackers, and stays listed, as failed.
    #[error("{name} is not checked: {0}", name = .0.name)]
    Unsaved(Unsaved),
}

/// Moves a torrent's files to another download folder, gives them other names, or both. The torrent leaves its peers
/// and trackers as in a pause, and its files are closed meanwhile. On the same file system each file gets a second
/// name; otherwise it is copied, verified and synced. Then the session names the new place, and after that the files
/// are deleted at the old one, except those that the torrent did not create. So a kill at any moment leaves the whole
/// data at one of the two places, and the next run ends the move. A pause or a stop interrupts the move until the next
/// start. A move to the place where the files are ends an unfinished move by undoing it. Of a torrent whose metadata is
/// not known, only the download folder changes. Sent as a [`PauseOrStart`].
#[derive(Debug)]
pub struct MoveTorrent {
    /// The torrent.
    pub torrent: InfoHash,
    /// The new download folder; `None` keeps the one that the torrent has.
    pub root: Option<PathBuf>,
    /// The new names of the files.
    pub names: NewNames,
    /// The files are in the new folder already, and stay there: only the session changes. For example, their volume is
    /// mounted at another path now. Every file that the torrent has must be there with its length; files that differ
    /// from the session otherwise are hashed.
    pub is_there: bool,
    /// Answered when the move has ended, or is interrupted or undone.
    pub reply: Reply<Result<MovedFiles, MoveError>>,
}

/// The result of a move.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MovedFiles {
    /// The download folder.
    pub root: PathBuf,
    /// Files that were copied and kept at the old place too; at most [`MAX_REMOVED_NAMES`].
    pub kept: Vec<KeptFile>,
    /// Number of these files.
    pub kept_count: usize,
}

/// Reasons why a torrent's files are not moved. They stay, whole, where they were.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoveError {
    /// The torrent does not exist, or it was removed meanwhile.
    #[error(transparent)]
    NotFound(#[from] TorrentNotFound),
    /// The files are being moved already.
    #[error("{0} is being moved already")]
    Running(Arc<str>),
    /// A name cannot be used.
    #[error("{name} is not renamed: {error}")]
    BadName {
        /// The torrent's name.
        name: Arc<str>,
        /// The name and the reason.
        error: NameError,
    },
    /// The metadata of the torrent is not known, and so there are no files to rename.
    #[error("{0} has no files to rename: its metadata is not known yet")]
    NoMetadata(Arc<str>),
    /// The new folder lies in the torrent's own folder.
    #[error("{name} is not moved: {} is in its own folder", root.display())]
    IntoItself {
        /// The torrent's name.
        name: Arc<str>,
        /// The new folder.
        root: PathBuf,
    },
    /// Another torrent uses a file of the same path in the new folder.
    #[error("{name} is not moved: {other} uses {path} there")]
    FilesTaken {
        /// The torrent's name.
        name: Arc<str>,
        /// The name of the other torrent.
        other: Arc<str>,
        /// The file's path below the new folder.
        path: Box<str>,
    },
    /// The new folder has a file of the same path that is not the torrent's. Nothing was moved.
    #[error("{name} is not moved: {reason}")]
    FileExists {
        /// The torrent's name.
        name: Arc<str>,
        /// The file and the reason.
        reason: Arc<str>,
    },
    /// A file of the torrent is not in the folder that is said to have its files.
    #[error("{name} is not relocated: {} is not there, or has another length", path.display())]
    NotThere {
        /// The torrent's name.
        name: Arc<str>,
        /// The file.
        path: PathBuf,
    },
    /// The disk failed or is full. All files that had been moved were moved back.
    #[error("{name} is not moved: {reason}")]
    Failed {
        /// The torrent's name.
        name: Arc<str>,
        /// The file and the reason.
        reason: Arc<str>,
    },
    /// The torrent was paused or stopped meanwhile, or the disk is not reachable. The move goes on when the torrent
    /// starts.
    #[error("the move of {0} is interrupted; it continues when the torrent starts")]
    Interrupted(Arc<str>),
    /// The session could not be written. The torrent has left its peers and trackers, and stays listed, as failed.
    #[error("{name} is not moved: {0}", name = .0.name)]
    Unsaved(Unsaved),
}

/// Options for removing a torrent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RemoveOptions {
    /// Delete the files that this torrent created, and the folders that become empty.
    pub delete_data: bool,
}

/// Maximum number of files that [`Removed`] names of each kind. A longer list is of no use, and several copies of it
/// would be in memory.
pub const MAX_REMOVED_NAMES: usize = 1000;

/// The deleted and kept files of a removed torrent. Empty if the data was not to be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removed {
    /// Deleted files, below the download folder; at most [`MAX_REMOVED_NAMES`].
    pub deleted: Vec<Box<str>>,
    /// Number of deleted files.
    pub deleted_count: usize,
    /// Kept files; at most [`MAX_REMOVED_NAMES`].
    pub kept: Vec<KeptFile>,
    /// Number of kept files.
    pub kept_count: usize,
}

/// A file that is kept when its torrent is removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFile {
    /// Path below the download folder.
    pub path: Box<str>,
    /// Why the file is kept.
    pub reason: Arc<str>,
}

/// Stops a torrent and deletes its session. Also removes a stopped torrent of which only the session exists.
#[derive(Debug)]
pub struct RemoveTorrent {
    /// The torrent.
    pub torrent: InfoHash,
    /// The options.
    pub options: RemoveOptions,
    /// Answered when the torrent is gone, with its deleted and kept files.
    pub reply: Reply<Result<Removed, RemoveError>>,
}

impl AboutTorrent for RemoveTorrent {
    fn torrent(&self) -> InfoHash {
        self.torrent
    }
}

/// Reasons why a torrent was not removed, or only in part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoveError {
    /// The torrent does not exist.
    #[error(transparent)]
    NotFound(#[from] TorrentNotFound),
    /// The saved session of a stopped torrent cannot be read.
    #[error("cannot remove {torrent}: {reason}")]
    Unreadable {
        /// The torrent.
        torrent: InfoHash,
        /// The reason.
        reason: Arc<str>,
    },
    /// The torrent is unchanged, because the data to delete cannot be reached.
    #[error("{name} was not removed: {reason}; it can be removed without its data")]
    Kept {
        /// The torrent's name.
        name: Arc<str>,
        /// Why the data cannot be reached.
        reason: Arc<str>,
    },
    /// The torrent is gone, but part of it is still on the disk.
    #[error("{name} was removed, but {reason}")]
    Incomplete {
        /// The torrent's name.
        name: Arc<str>,
        /// The remaining parts and the reason.
        reason: Arc<str>,
    },
}

/// Adds every torrent that has a saved session, as it was: a paused torrent is listed as paused.
#[derive(Debug)]
pub struct ResumeAll {
    /// Whether torrents that the user stopped are added too.
    pub include_stopped: bool,
    /// Answered with the number of torrents when all are listed, or with the first error.
    pub reply: Reply<Result<usize, ResumeError>>,
}

/// Gets the stopped torrents, which have a saved session and are not listed.
#[derive(Debug)]
pub struct ListStopped {
    /// Answered with the torrents in the order of their hashes, or with the reason why the state folder cannot be read.
    pub reply: Reply<Result<Vec<StoppedTorrent>, ListStoppedError>>,
}

/// The reason why the stopped torrents cannot be listed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot list the stopped torrents: {0}")]
pub struct ListStoppedError(pub Arc<str>);

/// The reason why saved sessions are not resumed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResumeError {
    /// The state folder cannot be listed. No torrent is resumed.
    #[error("cannot resume: {0}")]
    Unreadable(Arc<str>),
    /// The session of a stopped torrent cannot be replaced by one without the mark `stopped`. The other torrents are
    /// resumed.
    #[error("{name} stays stopped: {0}", name = .0.name)]
    Unsaved(Unsaved),
}

/// Adds a stopped torrent again, from its saved session and as it was: a paused torrent is listed as paused. A torrent
/// that is listed stays as it is.
#[derive(Debug)]
pub struct ResumeTorrent {
    /// The torrent.
    pub torrent: InfoHash,
    /// Answered when the torrent is listed, durably.
    pub reply: Reply<Result<(), ResumeTorrentError>>,
}

impl AboutTorrent for ResumeTorrent {
    fn torrent(&self) -> InfoHash {
        self.torrent
    }
}

/// Reasons why a stopped torrent cannot be resumed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResumeTorrentError {
    /// There is no saved session of the torrent.
    #[error(transparent)]
    NotFound(#[from] TorrentNotFound),
    /// The saved session cannot be read.
    #[error("cannot resume {torrent}: {reason}")]
    Unreadable {
        /// The torrent.
        torrent: InfoHash,
        /// The reason.
        reason: Arc<str>,
    },
    /// The saved session cannot be replaced by one without the mark `stopped`.
    #[error("{name} stays stopped: {0}", name = .0.name)]
    Unsaved(Unsaved),
}

/// The torrent does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no torrent {0}")]
pub struct TorrentNotFound(pub InfoHash);

/// Gets the hashes of all torrents.
#[derive(Debug)]
pub struct ListTorrents {
    /// Answered with the hashes, in the order in which the torrents were added.
    pub reply: Reply<Vec<InfoHash>>,
}

/// Gets a torrent's state.
#[derive(Debug)]
pub struct GetStats {
    /// The torrent.
    pub torrent: InfoHash,
    /// Answered with the state.
    pub reply: Reply<Result<TorrentStats, TorrentNotFound>>,
}

/// Sets priorities of a torrent's files, and the order of its pieces. Files that are not named keep their priority; of
/// several priorities for one file, the last one applies.
#[derive(Debug)]
pub struct SetFiles {
    /// The torrent.
    pub torrent: InfoHash,
    /// Ranges of files, by index, and their priority. They need the torrent's metadata.
    pub priorities: Vec<(RangeInclusive<u32>, FilePriority)>,
    /// The new order of pieces of equal priority. It needs no metadata.
    pub order: PieceOrderChange,
    /// Answered when the changes are durable and in force, or with the reason for the refusal.
    pub reply: Reply<Result<(), SetFilesError>>,
}

impl AboutTorrent for SetFiles {
    fn torrent(&self) -> InfoHash {
        self.torrent
    }
}

/// Reasons why neither the priorities of files nor the order of pieces are changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetFilesError {
    /// The torrent does not exist.
    #[error(transparent)]
    NotFound(#[from] TorrentNotFound),
    /// The files are not known yet.
    #[error("{0}: its files are not known before its metadata is")]
    NoMetadata(Arc<str>),
    /// A file does not exist.
    #[error("{torrent}: there is no file {file}; its {count} files are counted from 0")]
    NoSuchFile {
        /// The torrent.
        torrent: Arc<str>,
        /// The index that was named.
        file: u32,
        /// Number of the torrent's files.
        count: u64,
    },
    /// The ranges name the same files too often.
    #[error("{0}: the ranges name its files too often")]
    TooMany(Arc<str>),
    /// The torrent's session cannot be written. Priorities and order are unchanged.
    #[error("{name} is unchanged: {0}", name = .0.name)]
    Unsaved(Unsaved),
}

/// Changes the limits of a torrent's transfer rates.
#[derive(Debug)]
pub struct SetLimits {
    /// The torrent.
    pub torrent: InfoHash,
    /// The changes.
    pub patch: LimitsPatch,
    /// Answered when the limits are durable and in force, or with the reason for the refusal.
    pub reply: Reply<Result<(), SetLimitsError>>,
}

impl AboutTorrent for SetLimits {
    fn torrent(&self) -> InfoHash {
        self.torrent
    }
}

/// Reasons why the limits of a torrent are not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetLimitsError {
    /// The torrent does not exist.
    #[error(transparent)]
    NotFound(#[from] TorrentNotFound),
    /// A limit is outside its range.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The torrent's session cannot be written. The limits are unchanged.
    #[error("{name} is unchanged: {0}", name = .0.name)]
    Unsaved(Unsaved),
}

/// Changes the seeding limits of a torrent.
#[derive(Debug)]
pub struct SetSeeding {
    /// The torrent.
    pub torrent: InfoHash,
    /// The changes.
    pub patch: SeedingPatch,
    /// Answered when the limits are durable and in force, or with the reason for the refusal.
    pub reply: Reply<Result<(), SetSeedingError>>,
}

impl AboutTorrent for SetSeeding {
    fn torrent(&self) -> InfoHash {
        self.torrent
    }
}

/// Reasons why the seeding limits of a torrent are not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetSeedingError {
    /// The torrent does not exist.
    #[error(transparent)]
    NotFound(#[from] TorrentNotFound),
    /// A limit is outside its range.
    #[error(transparent)]
    Limit(#[from] SettingError),
    /// The torrent's session cannot be written. The limits are unchanged.
    #[error("{name} is unchanged: {0}", name = .0.name)]
    Unsaved(Unsaved),
}

/// Changes a torrent's place in the queue.
#[derive(Debug)]
pub struct SetQueue {
    /// The torrent.
    pub torrent: InfoHash,
    /// The change.
    pub change: QueueChange,
    /// Answered when the change is durable and in force, or with the reason for the refusal.
    pub reply: Reply<Result<(), SetQueueError>>,
}

impl AboutTorrent for SetQueue {
    fn torrent(&self) -> InfoHash {
        self.torrent
    }
}

/// Reasons why a torrent keeps its place in the queue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetQueueError {
    /// The torrent does not exist.
    #[error(transparent)]
    NotFound(#[from] TorrentNotFound),
    /// The session of a torrent that changes its place cannot be written. The places are unchanged.
    #[error("the queue is unchanged: {name}: {0}", name = .0.name)]
    Unsaved(Unsaved),
}

/// Changes the labels and the category of a torrent.
#[derive(Debug)]
pub struct SetLabels {
    /// The torrent.
    pub torrent: InfoHash,
    /// The change.
    pub patch: LabelsPatch,
    /// Answered when the labels are durable, or with the reason for the refusal.
    pub reply: Reply<Result<(), SetLabelsError>>,
}

impl AboutTorrent for SetLabels {
    fn torrent(&self) -> InfoHash {
        self.torrent
    }
}

/// Reasons why the labels of a torrent are not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetLabelsError {
    /// The torrent does not exist.
    #[error(transparent)]
    NotFound(#[from] TorrentNotFound),
    /// A label cannot be used, or there would be too many.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// The torrent's session cannot be written. The labels are unchanged.
    #[error("{name} is unchanged: {0}", name = .0.name)]
    Unsaved(Unsaved),
}

/// Gets a torrent's files.
#[derive(Debug)]
pub struct GetFiles {
    /// The torrent.
    pub torrent: InfoHash,
    /// Answered with the files, without pad files.
    pub reply: Reply<Result<Vec<FileStats>, TorrentNotFound>>,
}

/// Scrapes a torrent's trackers for the size of its swarm (BEP 48), without announcing.
#[derive(Debug)]
pub struct ScrapeTorrent {
    /// The torrent.
    pub torrent: InfoHash,
    /// Answered by the first successful tracker, or with the reason why none succeeded.
    pub reply: Reply<Result<ScrapeCounts, ScrapeError>>,
}

/// Reasons why a scrape failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScrapeError {
    /// The torrent does not exist.
    #[error(transparent)]
    NotFound(#[from] TorrentNotFound),
    /// No tracker answered the scrape.
    #[error("no tracker of this torrent could be scraped: {0}")]
    NoTracker(String),
}

/// Edits a torrent's trackers. Added trackers form tiers after the others.
#[derive(Debug)]
pub struct EditTrackers {
    /// The torrent.
    pub torrent: InfoHash,
    /// Announce URLs to remove, in full or in the form in which they are listed, without possible passkeys.
    pub remove: Vec<String>,
    /// Announce URLs to add, by tier. URLs that the torrent already has stay where they are.
    pub add: Vec<Vec<String>>,
    /// Answered when the trackers are durable and in force, or with the reason for the refusal.
    pub reply: Reply<Result<(), EditTrackersError>>,
}

impl AboutTorrent for EditTrackers {
    fn torrent(&self) -> InfoHash {
        self.torrent
    }
}

/// Reasons why the trackers of a torrent are not edited.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditTrackersError {
    /// The torrent does not exist.
    #[error(transparent)]
    NotFound(#[from] TorrentNotFound),
    /// A private torrent has the trackers of its torrent file and no others (BEP 27).
    #[error("{0} is private: it has the trackers of its torrent file and no others")]
    Private(Arc<str>),
    /// A URL cannot be used.
    #[error("{url}: {error}")]
    BadUrl {
        /// The URL, without what could be a passkey.
        url: String,
        /// The problem.
        error: UrlError,
    },
    /// The torrent has no tracker with the URL that is to be removed.
    #[error("{torrent} has no tracker {url}")]
    NoSuchTracker {
        /// The torrent.
        torrent: Arc<str>,
        /// The URL, without what could be a passkey.
        url: String,
    },
    /// Several trackers have the URL that is to be removed, as it is listed.
    #[error("{torrent} has {count} trackers {url}; give the whole URL of one of them")]
    Ambiguous {
        /// The torrent.
        torrent: Arc<str>,
        /// The URL, without what could be a passkey.
        url: String,
        /// The number of trackers.
        count: usize,
    },
    /// The torrent would have too many trackers.
    #[error("{torrent} may have {max} trackers at most")]
    TooMany {
        /// The torrent.
        torrent: Arc<str>,
        /// The largest number.
        max: usize,
    },
    /// The torrent's session cannot be written. The trackers are unchanged.
    #[error("{name} is unchanged: {0}", name = .0.name)]
    Unsaved(Unsaved),
}

/// Announces a torrent to its trackers before their intervals are over, as early as they allow (BEP 3).
#[derive(Debug)]
pub struct AnnounceTorrent {
    /// The torrent.
    pub torrent: InfoHash,
    /// Answered with the time until the first announce, or with the reason why there is none.
    pub reply: Reply<Result<Duration, AnnounceError>>,
}

/// Reasons why a torrent is not announced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnounceError {
    /// The torrent does not exist.
    #[error(transparent)]
    NotFound(#[from] TorrentNotFound),
    /// The torrent does not run.
    #[error("{0} does not run, so it is not announced")]
    NotRunning(Arc<str>),
    /// The torrent has no tracker that takes announces.
    #[error("{0} has no tracker that takes announces")]
    NoTracker(Arc<str>),
}

/// Adds peer addresses to a torrent.
#[derive(Debug)]
pub struct AddPeers {
    /// The torrent.
    pub torrent: InfoHash,
    /// The addresses.
    pub peers: Vec<SocketAddr>,
    /// Answered when the torrent has the addresses.
    pub reply: Reply<Result<(), TorrentNotFound>>,
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_split_reply_is_answered_once_with_the_first_error() {
        let ask = |answers: &[Result<(), u8>]| {
            let (sender, receiver) = mpsc::channel();
            let reply = Reply::new(move |answer: Result<(), u8>| sender.send(answer).unwrap());
            let mut parts = reply.split(answers.len());
            for answer in answers {
                assert!(receiver.try_recv().is_err());
                parts.remove(0).send(*answer);
            }
            receiver.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(ask(&[]), [Ok(())]);
        assert_eq!(ask(&[Ok(()), Ok(())]), [Ok(())]);
        assert_eq!(ask(&[Ok(()), Err(1), Err(2), Ok(())]), [Err(1)]);
    }
}
