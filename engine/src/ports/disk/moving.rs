//! Moves of a torrent's files to another place: another folder, or other names.
//!
//! A move has two steps, and the session is switched to the new place between them. The first step brings every file to
//! the new place and leaves the old one as it is: by a second name (a hard link) on the same file system, by a copy
//! otherwise. The second step deletes the files at the old place. So all of the data is at the old place until the
//! switch and at the new one after it, even if the process is killed at any moment, and each step can be repeated.

use std::path::PathBuf;

use ecs_torrent_protocol::files::FileTable;

use super::{FileClaims, FileNeeds, Volume};

/// A move of a torrent's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMove {
    /// Where the files are.
    pub from: MovePlace,
    /// Where the files go.
    pub to: MovePlace,
    /// The claims of the torrent's session about the files at the first place. At the second place, the torrent's mark
    /// decides.
    pub claims: FileClaims,
    /// The wanted files, if the torrent may have a part file.
    pub needs: Option<Box<FileNeeds>>,
}

/// A place of a torrent's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovePlace {
    /// The download folder.
    pub root: PathBuf,
    /// The folder's volume, as last known. Another volume in its place is an error.
    pub volume: Option<Volume>,
    /// The files, with their names at this place.
    pub files: FileTable,
}

/// A step of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoveStep {
    /// Changes nothing, and fails as `Copy` would if a file at the second place is not the torrent's.
    Check,
    /// Brings the files to the second place, durably. Creates names there, and overwrites nothing: a file there that is
    /// not the torrent's is an error ([`DiskError::is_taken`](super::DiskError::is_taken)), before anything is created.
    /// After an error, the files that the step brought there are deleted again. Files of the user, and those with a
    /// second hard link of theirs, are copied in any case, so that the torrent never shares one.
    Copy,
    /// Deletes the files that `Copy` brought to the second place, as far as the first place has them too, and folders
    /// that this leaves empty.
    Undo,
    /// Deletes at the first place the files that the torrent created, as far as the second place has them too, and
    /// folders that this leaves empty.
    DeleteOld,
}

/// The progress of copying the files of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MoveProgress {
    /// Number of bytes at the new place.
    pub moved: u64,
    /// Number of bytes to move.
    pub size: u64,
}
