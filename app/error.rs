//! Errors of operations on torrents.

use std::path::PathBuf;

use ecs_torrent_components::commands::{
    AddError, AnnounceError, EditTrackersError, ListStoppedError, MoveError, PauseError, RecheckError, RemoveError,
    ResumeError, ResumeTorrentError, ScrapeError, SetFilesError, SetLabelsError, SetLimitsError, SetQueueError,
    SetSeedingError, StartTorrentError, StopError, TorrentNotFound,
};
use ecs_torrent_components::dht::DhtError;
use ecs_torrent_components::links::FollowError;
use ecs_torrent_components::readers::ReadError;
use ecs_torrent_components::settings::ChangeError;
use ecs_torrent_engine::backends::StartError;
use ecs_torrent_engine::mailbox::{EngineGone, SendError, UnsupportedCommand};
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::magnet::MagnetError;
use ecs_torrent_protocol::metainfo::MetainfoError;

/// Error of an operation on torrents: what failed, on which object, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No torrent has this hash.
    #[error(transparent)]
    TorrentNotFound(#[from] TorrentNotFound),
    /// The data is not a torrent, or the torrent is unusable.
    #[error("{name}: {error}")]
    Metainfo {
        /// The file that holds the torrent.
        name: String,
        /// The problem, human-readable.
        error: MetainfoError,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: std::io::Error,
    },
    /// A text begins like a magnet link but is not a valid one.
    #[error(transparent)]
    Magnet(#[from] MagnetError),
    /// A magnet link where the metadata itself is needed.
    #[error("{0} is known by its magnet link only; give a .torrent file")]
    NoMetadata(InfoHash),
    /// A source of a kind that is not supported yet, such as a URL.
    #[error("{name}: {what} are not supported yet; give {instead}")]
    Unsupported {
        /// The source.
        name: String,
        /// The kind of source.
        what: &'static str,
        /// The sources to give instead.
        instead: &'static str,
    },
    /// A torrent is refused. None of its state is kept, and no file has been touched.
    #[error(transparent)]
    Add(#[from] AddError),
    /// The engine cannot start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Too many commands of a [host](crate::host) wait for their answers.
    #[error("too many commands wait for their answers")]
    Busy,
    /// The engine has stopped.
    #[error(transparent)]
    EngineGone(#[from] EngineGone),
    /// The engine lacks the plugin for this operation.
    #[error(transparent)]
    UnsupportedCommand(#[from] UnsupportedCommand),
    /// The DHT could not carry out a command.
    #[error(transparent)]
    Dht(#[from] DhtError),
    /// A link is not followed.
    #[error(transparent)]
    Follow(FollowError),
    /// No tracker returned scrape data.
    #[error(transparent)]
    Scrape(#[from] ScrapeError),
    /// A session could not be saved.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// A paused torrent's session could not be saved.
    #[error(transparent)]
    Pause(PauseError),
    /// A torrent stays paused.
    #[error(transparent)]
    StartTorrent(StartTorrentError),
    /// The data of a torrent is not checked again.
    #[error(transparent)]
    Recheck(RecheckError),
    /// The files of a torrent are not moved.
    #[error(transparent)]
    Move(MoveError),
    /// The priorities of files are not changed.
    #[error(transparent)]
    SetFiles(SetFilesError),
    /// A file of a torrent cannot be read.
    #[error(transparent)]
    ReadFile(ReadError),
    /// The trackers of a torrent are not edited.
    #[error(transparent)]
    EditTrackers(EditTrackersError),
    /// A torrent is not announced.
    #[error(transparent)]
    Announce(AnnounceError),
    /// The limits of a torrent are not changed.
    #[error(transparent)]
    SetLimits(SetLimitsError),
    /// The seeding limits of a torrent are not changed.
    #[error(transparent)]
    SetSeeding(SetSeedingError),
    /// A torrent keeps its place in the queue.
    #[error(transparent)]
    SetQueue(SetQueueError),
    /// The labels of a torrent are not changed.
    #[error(transparent)]
    SetLabels(SetLabelsError),
    /// The settings are not changed.
    #[error(transparent)]
    ChangeSettings(#[from] ChangeError),
    /// Some part of a removed torrent could not be deleted.
    #[error(transparent)]
    Remove(RemoveError),
    /// The stopped torrents cannot be listed.
    #[error(transparent)]
    ListStopped(#[from] ListStoppedError),
    /// A stopped torrent cannot be resumed.
    #[error(transparent)]
    ResumeTorrent(ResumeTorrentError),
    /// The saved sessions cannot be read.
    #[error(transparent)]
    Resume(#[from] ResumeError),
}

impl From<PauseError> for Error {
    fn from(error: PauseError) -> Self {
        match error {
            PauseError::NotFound(error) => error.into(),
            error @ PauseError::Unsaved { .. } => Self::Pause(error),
        }
    }
}

impl From<RecheckError> for Error {
    fn from(error: RecheckError) -> Self {
        match error {
            RecheckError::NotFound(error) => error.into(),
            error => Self::Recheck(error),
        }
    }
}

impl From<MoveError> for Error {
    fn from(error: MoveError) -> Self {
        match error {
            MoveError::NotFound(error) => error.into(),
            error => Self::Move(error),
        }
    }
}

impl From<FollowError> for Error {
    fn from(error: FollowError) -> Self {
        match error {
            FollowError::Dht(error) => error.into(),
            FollowError::Add(error) => error.into(),
            error => Self::Follow(error),
        }
    }
}

impl From<StartTorrentError> for Error {
    fn from(error: StartTorrentError) -> Self {
        match error {
            StartTorrentError::NotFound(error) => error.into(),
            error @ StartTorrentError::Unsaved { .. } => Self::StartTorrent(error),
        }
    }
}

impl From<EditTrackersError> for Error {
    fn from(error: EditTrackersError) -> Self {
        match error {
            EditTrackersError::NotFound(error) => error.into(),
            error => Self::EditTrackers(error),
        }
    }
}

impl From<AnnounceError> for Error {
    fn from(error: AnnounceError) -> Self {
        match error {
            AnnounceError::NotFound(error) => error.into(),
            error => Self::Announce(error),
        }
    }
}

impl From<SetFilesError> for Error {
    fn from(error: SetFilesError) -> Self {
        match error {
            SetFilesError::NotFound(error) => error.into(),
            error => Self::SetFiles(error),
        }
    }
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::NotFound(error) => error.into(),
            error => Self::ReadFile(error),
        }
    }
}

impl From<SetLimitsError> for Error {
    fn from(error: SetLimitsError) -> Self {
        match error {
            SetLimitsError::NotFound(error) => error.into(),
            error => Self::SetLimits(error),
        }
    }
}

impl From<SetSeedingError> for Error {
    fn from(error: SetSeedingError) -> Self {
        match error {
            SetSeedingError::NotFound(error) => error.into(),
            error => Self::SetSeeding(error),
        }
    }
}

impl From<SetQueueError> for Error {
    fn from(error: SetQueueError) -> Self {
        match error {
            SetQueueError::NotFound(error) => error.into(),
            error => Self::SetQueue(error),
        }
    }
}

impl From<SetLabelsError> for Error {
    fn from(error: SetLabelsError) -> Self {
        match error {
            SetLabelsError::NotFound(error) => error.into(),
            error => Self::SetLabels(error),
        }
    }
}

impl From<SendError> for Error {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Gone(gone) => Self::EngineGone(gone),
            SendError::Unsupported(command) => Self::UnsupportedCommand(command),
        }
    }
}
