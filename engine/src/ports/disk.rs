//! The Disk port: torrents' files, addressed by storage and span.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_components::session::{FileId, FileStamp};
use ecs_torrent_protocol::files::FileTable;
use ecs_torrent_protocol::geometry::Span;

use crate::port::{JobTag, Port, PortEvent, Purpose};

/// The Disk port.
pub type DiskPort = Port<DiskRequest, DiskEvent>;

/// What a world asks of the disk.
#[derive(Debug)]
pub enum DiskRequest {
    /// Makes a torrent's files known, and tells which are there. Nothing is created.
    Open {
        /// Comes back with the answer.
        tag: JobTag,
        /// Their name from now on.
        storage: StorageId,
        /// The download folder.
        root: PathBuf,
        /// Where the folder's volume was mounted when it was last used; another one in its place is an error.
        volume: Option<PathBuf>,
        /// The files.
        files: FileTable,
        /// What the torrent's session says of them.
        claims: FileClaims,
    },
    /// Creates the files that have no bytes, and reserves space where asked to. Files that this torrent did not create
    /// stay as they are.
    Prepare {
        /// Comes back with the answer.
        tag: JobTag,
        /// Whose.
        storage: StorageId,
        /// Reserve each file's space.
        is_preallocated: bool,
    },
    /// Reads a run of bytes, from as many files as it spans; padding reads as zeros.
    Read {
        /// Comes back with the bytes.
        tag: JobTag,
        /// Whose.
        storage: StorageId,
        /// Which.
        span: Span,
    },
    /// Writes a run of bytes, into as many files as it spans; files and folders are created, padding is left out. Bytes
    /// of a file that this torrent did not create are compared instead, unless it may overwrite: where they differ, the
    /// write fails ([`DiskError::is_foreign`]) and the file stays as it is.
    Write {
        /// Comes back when it is done.
        tag: JobTag,
        /// Whose.
        storage: StorageId,
        /// Which.
        span: Span,
        /// The bytes, in pieces as they came, `span.len` in all.
        blocks: Vec<Bytes>,
    },
    /// Brings everything written so far to the platter, and tells how the files that were written look then.
    Sync {
        /// Comes back when it is done.
        tag: JobTag,
        /// Whose.
        storage: StorageId,
        /// Also the files that were not written since `Open`, of which nothing is told: what was found in them may be
        /// in the system's hands only.
        is_for_all: bool,
    },
    /// Deletes the files that this torrent created, then the folders that are empty by that, and closes the rest.
    /// Nothing is written from then on: what a late write would have brought back stays gone.
    Delete {
        /// Comes back when it is done.
        tag: JobTag,
        /// Whose.
        storage: StorageId,
        /// Files that another torrent has too, and keeps.
        keep: Vec<usize>,
    },
    /// Closes a torrent's files. Requests already made are carried out, as far as they create no file.
    Close {
        /// Whose.
        storage: StorageId,
    },
}

/// What a torrent's session says of its files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileClaims {
    /// The files, by index, that this torrent created, or was about to create because they were not there; each with its
    /// identity, where that is known.
    pub created: BTreeMap<usize, Option<FileId>>,
    /// The files as they were when the session was saved, or nothing at all. A claimed file that is as it was then is the
    /// same one, even on a volume where identities change.
    pub stamps: Vec<Option<FileStamp>>,
    /// Whether the user allowed that files which were already there are changed.
    pub may_overwrite: bool,
}

/// Whose a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provenance {
    /// The torrent's: it created the file.
    Created,
    /// The user's: it was already there, or somebody else has written, linked or replaced it.
    Found,
}

/// What the disk tells a world.
#[derive(Debug)]
pub struct DiskEvent {
    /// From the request.
    pub tag: JobTag,
    /// How it went.
    pub outcome: Result<DiskDone, DiskError>,
    /// The bytes of a write that failed, given back.
    pub blocks: Vec<Bytes>,
}

/// How a torrent's files were found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundFiles {
    /// The download folder, with no link in its path.
    pub root: PathBuf,
    /// Where the folder's volume is mounted.
    pub volume: PathBuf,
    /// Each file that is there, in the order of the file table.
    pub files: Vec<Option<FoundFile>>,
}

/// A file that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundFile {
    /// Length and time of change.
    pub stamp: FileStamp,
    /// Which file it is.
    pub id: FileId,
    /// Whose it is.
    pub provenance: Provenance,
}

/// A file that was written, or compared with what was to be written, and synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncedFile {
    /// Index in the file table.
    pub index: usize,
    /// Length and time of change, as this storage left the file; nothing where somebody else has deleted, cut or changed
    /// it meanwhile, so that its bytes are in doubt.
    pub stamp: Option<FileStamp>,
    /// Which file it is; nothing where it is gone.
    pub id: Option<FileId>,
    /// Whose it is.
    pub provenance: Provenance,
}

/// What a deletion did to the files that were there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeletedFiles {
    /// Files that are gone, by index.
    pub deleted: Vec<usize>,
    /// Files that were left, by index, and why.
    pub kept: Vec<(usize, KeptReason)>,
}

/// Why a file was not deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeptReason {
    /// The torrent did not create it.
    #[error("it was there before the torrent")]
    Found,
    /// Another torrent has it too.
    #[error("another torrent has it too")]
    SharedWithAnother,
    /// Somebody put another file in its place.
    #[error("it is another file than the torrent created")]
    Replaced,
    /// It has further names.
    #[error("it has another name too (a hard link)")]
    HardLinked,
    /// It lies in a folder of the engine's own.
    #[error("it lies in a folder of the engine's own")]
    EnginesOwn,
}

/// What was done.
#[derive(Debug)]
pub enum DiskDone {
    /// Files are known.
    Opened(FoundFiles),
    /// Files are ready to be written.
    Prepared,
    /// Bytes, as many as asked for.
    Read(Bytes),
    /// Written; a write is in the system's hands, and on the platter after the next `Synced`.
    Written,
    /// On stable storage: the files that were written.
    Synced(Vec<SyncedFile>),
    /// Deleted, but for what is to stay.
    Deleted(DeletedFiles),
}

impl PortEvent for DiskEvent {
    fn purpose(&self) -> Purpose {
        self.tag.purpose
    }
}

/// What the disk was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DiskAction {
    /// Opening or creating.
    #[error("open")]
    Open,
    /// Reading.
    #[error("read")]
    Read,
    /// Writing.
    #[error("write")]
    Write,
    /// Reserving space.
    #[error("reserve space for")]
    Allocate,
    /// Flushing to the platter.
    #[error("sync")]
    Sync,
    /// Looking whether the right volume is mounted.
    #[error("find the volume of")]
    FindVolume,
    /// Deleting.
    #[error("delete")]
    Delete,
    /// A job that did not end as it should.
    #[error("use")]
    Use,
}

/// A failed request: doing what, to which file, and why.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot {action} {}: {error}", path.display())]
pub struct DiskError {
    /// Doing what.
    pub action: DiskAction,
    /// To which file or folder.
    pub path: PathBuf,
    /// Why.
    pub error: Arc<io::Error>,
}

impl DiskError {
    /// Whether the bytes are simply not there: no file, or a shorter one.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(
            self.error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
        ) && !self.is_volume_gone()
    }

    /// Whether a write met bytes of a file that is not this torrent's, and left them as they are.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        self.refusal() == Some(Refusal::Foreign)
    }

    /// Whether the path leads into one of the engine's own folders.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        self.refusal() == Some(Refusal::Forbidden)
    }

    fn refusal(&self) -> Option<Refusal> {
        self.error.get_ref()?.downcast_ref().copied()
    }

    /// Whether there is no room: nothing is broken, and it may pass.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(
            self.error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }

    /// Whether the system lets us open no more files: nothing is broken, and it may pass.
    #[must_use]
    pub fn is_out_of_files(&self) -> bool {
        is_out_of_files(&self.error)
    }

    /// Whether the volume is not there: nothing is broken, and it may come back.
    #[must_use]
    pub fn is_volume_gone(&self) -> bool {
        self.action == DiskAction::FindVolume || self.error.kind() == io::ErrorKind::StaleNetworkFileHandle
    }
}

/// Why the disk leaves something alone that the system would let it do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The file is not this torrent's.
    #[error("the file is not this torrent's and has other content")]
    Foreign,
    /// A torrent's path leads into the state folder.
    #[error("it lies in a folder of the engine's own")]
    Forbidden,
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        Self::new(io::ErrorKind::PermissionDenied, refusal)
    }
}

/// EMFILE and ENFILE, for which the standard library has no kind.
pub(crate) fn is_out_of_files(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let code = error.raw_os_error();
    [Errno::MFILE, Errno::NFILE]
        .iter()
        .any(|errno| code == Some(errno.raw_os_error()))
}
