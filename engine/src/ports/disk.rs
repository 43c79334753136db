//! The Disk port: torrents' files, addressed by storage and span.

mod moving;
mod parts;
mod suffix;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_components::session::{FileId, FileStamp, NearestFolder, OwnerKey, VolumeId};
use ecs_torrent_protocol::files::FileTable;
use ecs_torrent_protocol::geometry::Span;

use crate::port::{JobTag, Port, PortEvent, Purpose};

pub use self::moving::{FileMove, MovePlace, MoveProgress, MoveStep};
pub(crate) use self::parts::{Cut, Parts};
pub use self::parts::{FileNeeds, border_pieces};
pub(crate) use self::suffix::PartNames;
pub use self::suffix::{HeldPieces, PART_SUFFIX};

/// The Disk port.
pub type DiskPort = Port<DiskRequest, DiskEvent>;

/// A request from a world to the disk.
#[derive(Debug)]
pub enum DiskRequest {
    /// Opens a torrent's storage and reports which files exist. Creates nothing.
    Open {
        /// Returned with the answer.
        tag: JobTag,
        /// The name of the storage from now on.
        storage: StorageId,
        /// The download folder.
        root: PathBuf,
        /// The folder's volume, as last known. Another volume in its place is an error.
        volume: Option<Volume>,
        /// The files.
        files: FileTable,
        /// The claims of the torrent's session about the files.
        claims: FileClaims,
        /// The wanted files, unless all are wanted and there is no part file.
        needs: Option<Box<FileNeeds>>,
    },
    /// Creates missing files and reserves space on request. Files that this torrent did not create are left unchanged.
    /// Takes over which files are wanted, from its submission on: a skipped file is not created, its bytes in pieces of
    /// other files go to the part file, and those of a file that is wanted now are copied from there. A part file that
    /// is not needed any longer is deleted.
    Prepare {
        /// Returned with the answer.
        tag: JobTag,
        /// The torrent's storage.
        storage: StorageId,
        /// Whether to reserve each file's space.
        is_preallocated: bool,
        /// The wanted files, unless all are wanted and there is no part file.
        needs: Option<Box<FileNeeds>>,
    },
    /// Reads a run of bytes, across as many files as it spans. Padding and gaps read as zeros.
    Read {
        /// Returned with the bytes.
        tag: JobTag,
        /// The torrent's storage.
        storage: StorageId,
        /// The run of bytes.
        span: Span,
        /// The use of the bytes.
        purpose: ReadPurpose,
    },
    /// Writes a run of bytes, across as many files as it spans. Creates files and folders. In a file that this torrent
    /// did not create, the disk compares the bytes instead, unless the torrent may overwrite: if they differ, the write
    /// fails ([`DiskError::is_foreign`]) and the file is left unchanged. Padding and gaps between files are not stored:
    /// bytes other than zero cannot be read back there, so the write fails ([`DiskError::is_bad_padding`]).
    Write {
        /// Returned when the write is done.
        tag: JobTag,
        /// The torrent's storage.
        storage: StorageId,
        /// The run of bytes.
        span: Span,
        /// The bytes, in the slices in which they arrived, `span.len` in total.
        blocks: Vec<Bytes>,
    },
    /// Syncs everything written so far to stable storage, and takes the suffix of incomplete files from the complete
    /// ones among them; then reports the state of the files that were written or renamed.
    Sync {
        /// Returned when the sync is done.
        tag: JobTag,
        /// The torrent's storage.
        storage: StorageId,
        /// Also sync the files that were not written since `Open`, without reporting them: their bytes may only be in
        /// the system's page cache.
        is_for_all: bool,
        /// The held pieces, if files may have the suffix of incomplete files.
        held: Option<Box<HeldPieces>>,
    },
    /// Checks that the volume of the download folder is there, and is the expected one.
    FindVolume {
        /// Returned with the answer.
        tag: JobTag,
        /// The torrent's storage.
        storage: StorageId,
    },
    /// Deletes the files that this torrent created, then the folders that this leaves empty, and closes the other
    /// files. Later writes to this storage are refused, so that they cannot bring deleted files back.
    Delete {
        /// Returned when the deletion is done.
        tag: JobTag,
        /// The torrent's storage.
        storage: StorageId,
        /// Files that another torrent also uses, which are kept.
        keep: Vec<usize>,
    },
    /// Deletes a torrent's part file, if there is one, and nothing else.
    DropParts {
        /// Returned when the deletion is done.
        tag: JobTag,
        /// The torrent's storage.
        storage: StorageId,
    },
    /// Carries out a step of a move of a torrent's files. While files are copied, `Moving` events with the same tag
    /// report the progress. A `Close` of the storage ends the step where it is.
    Move {
        /// Returned with the answer.
        tag: JobTag,
        /// The torrent's storage. Nothing else uses it during the move.
        storage: StorageId,
        /// The two places.
        moving: Box<FileMove>,
        /// The step.
        step: MoveStep,
    },
    /// Closes a torrent's files. Requests already submitted are still carried out, unless they would create a file.
    Close {
        /// If present, returned when the last job on these files is done and every handle to them is closed, so that
        /// their volume can be unmounted.
        tag: Option<JobTag>,
        /// The torrent's storage.
        storage: StorageId,
    },
}

/// The use of bytes that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadPurpose {
    /// The bytes are verified afterward.
    Check,
    /// The bytes are served as verified. The read fails if somebody else has changed the file since it was opened or
    /// written ([`DiskError::is_changed`]). Each file is compared at most once per second.
    Serve,
}

/// A session's claims about a torrent's files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileClaims {
    /// The files, by index, that this torrent created, or was about to create because they were missing. Each comes
    /// with its identity, if known. A file without a known identity is the torrent's only if it carries its mark.
    pub created: BTreeMap<usize, Option<FileId>>,
    /// The key of the marks on the files and folders that this torrent creates.
    pub key: Option<OwnerKey>,
    /// The state of each file when the session was saved, or empty. Where the file system records no time of creation,
    /// a file with a claimed identity also has to be in this state, or marked.
    pub stamps: Vec<Option<FileStamp>>,
    /// The user's files that the torrent may change.
    pub overwrite: Overwrite,
    /// Whether files have the suffix of incomplete files ([`PART_SUFFIX`]) until they are complete.
    pub part_suffix: bool,
}

/// The user's files that a torrent may change, because the user said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Overwrite {
    /// The files, by index, that have these identities.
    Only(BTreeMap<usize, FileId>),
    /// All files that exist when they are first looked at, and were not created or changed after the time of the
    /// permission, in nanoseconds since 1970, if that is known.
    AllFound(Option<i64>),
}

impl Overwrite {
    /// Whether the permission covers a file that is looked at for the first time. Moving another file to the place of
    /// the one that was there changes that file too.
    #[must_use]
    pub fn covers_found(&self, id: FileId, stamp: FileStamp) -> bool {
        match self {
            Self::Only(_) => false,
            Self::AllFound(None) => true,
            Self::AllFound(Some(time_ns)) => {
                stamp.last_change_ns() <= *time_ns && id.born_ns.is_none_or(|born_ns| born_ns <= *time_ns)
            }
        }
    }
}

impl Default for Overwrite {
    fn default() -> Self {
        Self::Only(BTreeMap::new())
    }
}

impl FileClaims {
    /// Whether an existing file is the one that this torrent created. `is_marked` says whether it carries the torrent's
    /// mark.
    pub(crate) fn is_own(&self, index: usize, file: (FileId, FileStamp), is_marked: impl FnOnce() -> bool) -> bool {
        match self.created.get(&index) {
            None => false,
            Some(None) => is_marked(),
            Some(Some(known)) => self.is_same(index, *known, file, is_marked),
        }
    }

    /// Whether the user allowed this torrent to change a file that exists when it is first looked at.
    pub(crate) fn may_change(&self, index: usize, file: (FileId, FileStamp)) -> bool {
        match &self.overwrite {
            Overwrite::AllFound(_) => self.overwrite.covers_found(file.0, file.1),
            Overwrite::Only(files) => files
                .get(&index)
                .is_some_and(|known| self.is_same(index, *known, file, || false)),
        }
    }

    /// Whether a file has a known identity. Device numbers may change with each mount. Inode numbers are reused, so
    /// that they prove something only together with the time of creation, or with a stamp or mark.
    fn is_same(
        &self,
        index: usize,
        known: FileId,
        (id, stamp): (FileId, FileStamp),
        is_marked: impl FnOnce() -> bool,
    ) -> bool {
        if known.born_ns.is_some() && id.born_ns.is_some() {
            return (known.inode, known.born_ns) == (id.inode, id.born_ns);
        }
        let saved = self.stamps.get(index).copied().flatten();
        (known.device, known.inode) == (id.device, id.inode)
            && (saved.is_some_and(|saved| saved.matches(&stamp)) || is_marked())
    }
}

/// The owner of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provenance {
    /// The torrent owns the file: it created it.
    Created,
    /// The user owns the file: it already existed, or somebody else has written, linked or replaced it.
    Found,
}

/// An event from the disk to a world.
#[derive(Debug)]
pub struct DiskEvent {
    /// The tag of the request.
    pub tag: JobTag,
    /// The result.
    pub outcome: Result<DiskDone, DiskError>,
    /// The bytes of a failed write, given back.
    pub blocks: Vec<Bytes>,
}

/// A torrent's files as found by `Open`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundFiles {
    /// The download folder's path, without symbolic links.
    pub root: Arc<Path>,
    /// The folder's volume.
    pub volume: Arc<Volume>,
    /// The folders that exist.
    pub folders: FolderIds,
    /// The files that exist, in the order of the file table; then the part file, if the torrent may have one.
    pub files: Vec<Option<FoundFile>>,
}

/// The volume of a download folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Where the volume is mounted.
    pub mount_point: PathBuf,
    /// The identity of the volume's file system, if the system reports one and it matters.
    pub id: Option<VolumeId>,
}

/// The existing folders on the paths of a torrent's files, by identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FolderIds {
    /// The download folder, if it exists, and every folder above it, nearest first, each with the path from it to the
    /// download folder.
    pub above: Arc<[NearestFolder]>,
    /// Folders below the download folder, by path.
    pub below: BTreeMap<String, FileId>,
}

/// An existing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundFile {
    /// Length and modification time.
    pub stamp: FileStamp,
    /// The file's identity.
    pub id: FileId,
    /// The file's owner.
    pub provenance: Provenance,
}

/// A file that was written, or compared with the bytes to write, and then synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncedFile {
    /// Index in the file table.
    pub index: usize,
    /// Length and modification time as this storage left the file. `None` if somebody else has deleted, truncated or
    /// changed it since, so that its bytes are in doubt.
    pub stamp: Option<FileStamp>,
    /// The file's identity. `None` if the file is gone.
    pub id: Option<FileId>,
    /// The file's owner.
    pub provenance: Provenance,
}

/// The result of a deletion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeletedFiles {
    /// Deleted files, by index.
    pub deleted: Vec<usize>,
    /// Kept files, by index, and the reason for each.
    pub kept: Vec<(usize, KeptReason)>,
}

/// The reason why a file was not deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeptReason {
    /// The torrent did not create the file.
    #[error("it was there before the torrent")]
    Found,
    /// Another torrent also uses the file.
    #[error("another torrent uses it too")]
    SharedWithAnother,
    /// Somebody put another file in its place.
    #[error("it is not the file that the torrent created")]
    Replaced,
    /// The file has other names.
    #[error("it has a second name (a hard link)")]
    HardLinked,
    /// The file lies in one of the engine's own folders.
    #[error("it is in one of the engine's own folders")]
    EnginesOwn,
}

/// The result of a successful request.
#[derive(Debug)]
pub enum DiskDone {
    /// The files that exist.
    Opened(FoundFiles),
    /// The files are ready to be written. The bytes of these files, durable now, are no longer in the part file alone.
    Prepared(Vec<u32>),
    /// The bytes, as many as requested.
    Read(Bytes),
    /// Written. The bytes are in the system's page cache, and durable after the next `Synced`.
    Written,
    /// The files that were written, now on stable storage.
    Synced(Vec<SyncedFile>),
    /// The volume is there.
    VolumeFound,
    /// The deleted and kept files.
    Deleted(DeletedFiles),
    /// A part of a torrent's bytes is at its new place. More events follow.
    Moving(MoveProgress),
    /// Every file is at its new place, durably, and still at its old one; or could be brought there. The files as they
    /// are at the new place.
    Moved(Box<FoundFiles>),
    /// No handle to the files is open.
    Closed,
}

impl PortEvent for DiskEvent {
    fn purpose(&self) -> Purpose {
        self.tag.purpose
    }
}

/// The operation in which the disk failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DiskAction {
    /// Opening or creating a file.
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
    /// Syncing to stable storage.
    #[error("sync")]
    Sync,
    /// Checking that the right volume is mounted.
    #[error("find the volume of")]
    FindVolume,
    /// Deleting.
    #[error("delete")]
    Delete,
    /// Bringing a file of a torrent to another place.
    #[error("create")]
    Create,
    /// A job that did not complete normally.
    #[error("use")]
    Use,
}

/// A failed disk request: the operation, the path and the cause.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot {action} {}: {error}", path.display())]
pub struct DiskError {
    /// The operation.
    pub action: DiskAction,
    /// The file or folder.
    pub path: PathBuf,
    /// The cause.
    pub error: Arc<io::Error>,
}

impl DiskError {
    /// An operation on a file or folder that failed.
    #[must_use]
    pub fn new(action: DiskAction, path: PathBuf, error: io::Error) -> Self {
        let error = Arc::new(error);
        Self { action, path, error }
    }

    /// Whether the bytes do not exist: the file is missing or too short.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(
            self.error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
        ) && !self.is_volume_gone()
    }

    /// Whether a write was refused because the file is not, or not only, this torrent's. The file is unchanged.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        matches!(self.refusal(), Some(Refusal::Foreign | Refusal::Linked))
    }

    /// Whether a read was refused because another program has changed the file.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.refusal() == Some(Refusal::Changed)
    }

    /// Whether the path leads into one of the engine's own folders.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        self.refusal() == Some(Refusal::Forbidden)
    }

    /// Whether a write had bytes other than zero for padding, which is not stored.
    #[must_use]
    pub fn is_bad_padding(&self) -> bool {
        self.refusal() == Some(Refusal::Padding)
    }

    /// Whether a write was refused because the user does not want the file any more.
    #[must_use]
    pub fn is_unwanted(&self) -> bool {
        self.refusal() == Some(Refusal::Skipped)
    }

    /// Whether a move was refused because a file that is not the torrent's has the name of one that it would create.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.refusal() == Some(Refusal::Taken)
    }

    fn refusal(&self) -> Option<Refusal> {
        self.error.get_ref()?.downcast_ref().copied()
    }

    /// Whether the volume or quota is full. Nothing is broken, and the condition may pass.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(
            self.error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }

    /// Whether the system's limit on open files was reached. Nothing is broken, and the condition may pass.
    #[must_use]
    pub fn is_out_of_files(&self) -> bool {
        is_out_of_files(&self.error)
    }

    /// Whether the volume is not mounted. Nothing is broken, and the volume may come back.
    #[must_use]
    pub fn is_volume_gone(&self) -> bool {
        self.action == DiskAction::FindVolume || self.error.kind() == io::ErrorKind::StaleNetworkFileHandle
    }
}

/// The reason why the disk refuses an operation that the system would permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The file is not this torrent's.
    #[error("the file is not this torrent's and has other content")]
    Foreign,
    /// The file has a second hard link, through which another program may use it.
    #[error("the file has a second name (a hard link), so it counts as the user's")]
    Linked,
    /// Somebody else has written, replaced or deleted the file.
    #[error("somebody else has changed the file; it is checked again")]
    Changed,
    /// A torrent's path leads into the state folder.
    #[error("it is in one of the engine's own folders")]
    Forbidden,
    /// The bytes lie within a file that the user does not want.
    #[error("the file is not wanted")]
    Skipped,
    /// A move would have to overwrite a file that the torrent did not create.
    #[error("a file that is not this torrent's is there already")]
    Taken,
    /// A torrent's padding, which is not stored, has bytes other than zero.
    #[error("the torrent's padding is not zero, as BEP 47 requires, and is not stored")]
    Padding,
}

/// Checks that the bytes of a write for padding are zero. For backends.
pub(crate) fn check_padding<'b>(root: &Path, mut parts: impl Iterator<Item = &'b [u8]>) -> Result<(), DiskError> {
    if parts.all(|part| part.iter().all(|byte| *byte == 0)) {
        return Ok(());
    }
    Err(DiskError::new(
        DiskAction::Write,
        root.to_path_buf(),
        Refusal::Padding.into(),
    ))
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        Self::new(io::ErrorKind::PermissionDenied, refusal)
    }
}

/// Whether an error is EMFILE or ENFILE. The standard library has no kind for them.
pub(crate) fn is_out_of_files(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let code = error.raw_os_error();
    [Errno::MFILE, Errno::NFILE]
        .iter()
        .any(|errno| code == Some(errno.raw_os_error()))
}
