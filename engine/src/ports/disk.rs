//! The Disk port: torrents' files, addressed by storage and span.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_components::session::FileStamp;
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
    },
    /// Creates the files that have no bytes, and reserves space where asked to.
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
    /// Writes a run of bytes, into as many files as it spans; files and folders are created, padding is left out.
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
    /// Deletes files that this torrent created or wrote, then the folders that are empty by that, and closes the
    /// rest. Nothing is written from then on: what a late write would have brought back stays gone.
    Delete {
        /// Comes back when it is done.
        tag: JobTag,
        /// Whose.
        storage: StorageId,
        /// Files written in earlier sessions; those written since `Open` are known.
        written: Vec<usize>,
        /// Files that another torrent has too, and keeps.
        keep: Vec<usize>,
    },
    /// Closes a torrent's files. Requests already made are carried out.
    Close {
        /// Whose.
        storage: StorageId,
    },
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
    /// Each file that is there, in the order of the file table.
    pub stamps: Vec<Option<FileStamp>>,
    /// Where the folder's volume is mounted.
    pub volume: PathBuf,
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
    /// On the platter: the files that were written, by index; without a stamp, one that somebody has deleted or cut.
    Synced(Vec<(usize, Option<FileStamp>)>),
    /// Gone.
    Deleted,
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

/// EMFILE and ENFILE, for which the standard library has no kind.
pub(crate) fn is_out_of_files(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let code = error.raw_os_error();
    [Errno::MFILE, Errno::NFILE]
        .iter()
        .any(|errno| code == Some(errno.raw_os_error()))
}
