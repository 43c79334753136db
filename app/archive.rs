//! All state of an engine in one archive: exports, and imports into another state folder.
//!
//! An archive is a plain tar file. Its entries are the files of the state folder's subfolder, in ascending order, and
//! then `manifest.json`, which proves that the archive is whole. It contains sessions, torrent files, the settings that
//! were changed at run time, the DHT's tables and the followed links, and neither the API's token nor the configuration
//! file. It is as confidential as the state folder: sessions contain passkeys of trackers.

mod reading;
mod writing;

use std::fmt;
use std::io;

use ecs_torrent_components::session::SessionError;
use ecs_torrent_engine::backends::staging::StateFile;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::metainfo::MetainfoError;
use serde::{Deserialize, Serialize};

pub use self::reading::{Admission, Rules, Staged, stage};
pub use self::writing::{ArchiveWriter, export};

/// The folder of the files in an archive.
const FOLDER: &str = "state/";

/// The name of the last entry.
const MANIFEST: &str = "manifest.json";

/// The version of the format.
const FORMAT: u32 = 1;

/// Maximum size of the manifest in bytes.
const MAX_MANIFEST_BYTES: u64 = 64 << 10;

/// Maximum number of files in an archive: a million torrents have twice as many files.
const MAX_FILES: u64 = 2_000_100;

/// The last entry of an archive.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    /// The version of the format.
    format: u32,
    /// The program that wrote the archive.
    program: String,
    /// Number of files before the manifest.
    files: u64,
    /// SHA-256 over name, length and content of these files.
    sha256: String,
}

/// Something that was not exported or imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// The info-hash of a torrent, or the name of a feature's state or of another client's file.
    pub id: String,
    /// The name of the torrent, if it is known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The reason.
    pub reason: String,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.as_str() {
            "" => write!(f, "{}: {}", self.id, self.reason),
            name => write!(f, "{} {name}: {}", self.id, self.reason),
        }
    }
}

/// The result of an export.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// Number of torrents.
    pub torrents: usize,
    /// Torrents and other state that are not in the archive.
    pub left_out: Vec<LeftOut>,
    /// Notes about torrents that are in the archive, and differ from those of another client.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<LeftOut>,
}

/// A torrent that was imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImportedTorrent {
    /// The torrent's info-hash.
    pub info_hash: String,
    /// The torrent's name.
    pub name: String,
    /// Whether the torrent stays stopped until a user resumes it.
    pub stopped: bool,
}

/// The result of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// The torrents that were added.
    pub torrents: Vec<ImportedTorrent>,
    /// The state of features that was added, by its name.
    pub features: Vec<String>,
    /// Torrents and other state that were not added.
    pub left_out: Vec<LeftOut>,
}

/// The reason why an archive was not written or not imported.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The state folder cannot be read or written, or the archive cannot be written.
    #[error("{0}: {1}")]
    Io(String, io::Error),
    /// The archive cannot be read.
    #[error("cannot read the archive: {0}")]
    Unreadable(io::Error),
    /// The archive ends before its manifest.
    #[error("the archive is not whole: it ends without {MANIFEST}")]
    Cut,
    /// The archive contains something other than its files.
    #[error("{name:?}: {reason}: not an archive of `ecs-torrent state export`")]
    Foreign {
        /// The name of the entry.
        name: String,
        /// The reason.
        reason: &'static str,
    },
    /// A file of the archive is too long.
    #[error("{name:?}: {size} bytes, of which {max} are allowed")]
    TooLong {
        /// The name of the entry.
        name: String,
        /// Its size.
        size: u64,
        /// The maximum.
        max: u64,
    },
    /// The archive has more files than any state folder.
    #[error("the archive has more than {MAX_FILES} files")]
    TooMany,
    /// The files are not the ones of the manifest.
    #[error("the archive is damaged: its files differ from {MANIFEST}")]
    Damaged,
    /// The archive has another format.
    #[error("the archive has format {0}; this program reads format {FORMAT}")]
    Newer(u32),
    /// A session is unusable.
    #[error("session of {0}: {1}")]
    Session(InfoHash, SessionError),
    /// A torrent file is unusable.
    #[error("torrent file of {0}: {1}")]
    Metainfo(InfoHash, MetainfoError),
    /// A torrent file belongs to another torrent.
    #[error("torrent file of {0}: it is another torrent's")]
    OtherTorrent(InfoHash),
}

impl ArchiveError {
    /// Adds the subject to an I/O error.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io(what, error)
    }
}

/// Returns the path of a file in an archive.
fn path_of(file: &StateFile) -> String {
    format!("{FOLDER}{}", file.name())
}

#[cfg(test)]
mod tests;
