//! Making a torrent of files.

use std::path::{Path, PathBuf};

use ecs_torrent_engine::ports::disk::DiskError;
use ecs_torrent_protocol::create::{EncodeError, NewFile, NewTorrent, default_piece_length};
use ecs_torrent_protocol::files::{FileAttributes, FileEntry, FileTable};
use ecs_torrent_protocol::geometry::Geometry;
use walkdir::WalkDir;

use crate::hashing::hash_pieces;

/// What a new torrent is to say beside its files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MakeOptions {
    /// Bytes of each piece, or a choice by size.
    pub piece_length: Option<u32>,
    /// Announce URLs, each a tier of its own: the first that answers is used.
    pub trackers: Vec<String>,
    /// Web seeds.
    pub web_seeds: Vec<String>,
    /// Peers may come from the trackers only.
    pub private: bool,
    /// Free text.
    pub comment: Option<String>,
    /// The program that makes it.
    pub created_by: Option<String>,
    /// Seconds since 1970.
    pub creation_date: Option<i64>,
}

/// Why a torrent cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MakeError {
    /// A file or folder cannot be looked at.
    #[error("cannot read {}: {error}", path.display())]
    Look {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A name that is not UTF-8 has no place in a torrent.
    #[error("{}: the name is not UTF-8", .0.display())]
    Name(PathBuf),
    /// There is nothing in it.
    #[error("{}: there is no content to make a torrent of", .0.display())]
    Empty(PathBuf),
    /// A piece length that no client takes.
    #[error("piece length {0}: must be a power of two from 16 KiB to 256 MiB")]
    PieceLength(u32),
    /// More pieces than can be numbered.
    #[error("piece length {0}: makes too many pieces")]
    TooManyPieces(u32),
    /// A tracker or web seed that is no URL.
    #[error("{0}: not a URL that can be used")]
    Url(String),
    /// A file cannot be read, or changed while it was.
    #[error(transparent)]
    Read(#[from] DiskError),
    /// It cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// What is going to be hashed.
#[derive(Debug)]
pub struct Plan {
    folder: PathBuf,
    name: String,
    is_single: bool,
    files: FileTable,
    geometry: Geometry,
    options: MakeOptions,
}

impl Plan {
    /// Looks at a file or folder. Files of a folder come in the order of their paths; links and special files are
    /// left out.
    ///
    /// # Errors
    /// What cannot be looked at, is empty, or cannot be named; options that make no sense.
    pub fn new(path: &Path, options: MakeOptions) -> Result<Self, MakeError> {
        check_urls(&options)?;
        let look = |error| MakeError::Look {
            path: path.to_owned(),
            error,
        };
        // The name of `.` and of `folder/` is the folder's own.
        let path = path.canonicalize().map_err(look)?;
        let not_text = || MakeError::Name(path.clone());
        let name = path
            .file_name()
            .ok_or_else(not_text)?
            .to_str()
            .ok_or_else(not_text)?
            .to_owned();
        let folder = path.parent().ok_or_else(not_text)?.to_owned();
        let is_single = path.is_file();
        let files = FileTable::new(if is_single {
            vec![entry(&path, &folder, 0)?]
        } else {
            walk(&path, &folder)?
        });
        if files.total_size() == 0 {
            return Err(MakeError::Empty(path));
        }
        let piece_length = options
            .piece_length
            .unwrap_or_else(|| default_piece_length(files.total_size()));
        if !piece_length.is_power_of_two() || !(16 << 10..=256 << 20).contains(&piece_length) {
            return Err(MakeError::PieceLength(piece_length));
        }
        let geometry = Geometry::new(files.total_size(), piece_length);
        Ok(Self {
            folder,
            name,
            is_single,
            geometry: geometry.ok_or(MakeError::TooManyPieces(piece_length))?,
            files,
            options,
        })
    }

    /// Bytes of all files.
    #[must_use]
    pub fn total_size(&self) -> u64 {
        self.files.total_size()
    }

    /// Hashes, on all processors, and returns the `.torrent` file's bytes. `on_bytes` hears how many bytes are done.
    ///
    /// # Errors
    /// Where a file cannot be read, or has become shorter.
    pub fn make(self, on_bytes: &(dyn Fn(u64) + Sync)) -> Result<Vec<u8>, MakeError> {
        let digests = hash_pieces(&self.folder, &self.files, &self.geometry, on_bytes);
        let pieces = digests.into_iter().collect::<Result<Vec<_>, _>>()?;
        let files = self.files.files().iter().map(|file| NewFile {
            // Below the torrent's own folder.
            path: file.path.split('/').skip(1).map(str::to_owned).collect(),
            len: file.len,
        });
        let files = files.collect();
        let options = self.options;
        debug_assert!(!self.is_single || self.files.files().len() == 1);
        let torrent = NewTorrent {
            name: self.name,
            files,
            piece_length: self.geometry.piece_length(),
            pieces,
            trackers: options.trackers.into_iter().map(|url| vec![url]).collect(),
            web_seeds: options.web_seeds,
            private: options.private,
            comment: options.comment,
            created_by: options.created_by,
            creation_date: options.creation_date,
        };
        Ok(torrent.encode()?)
    }
}

fn check_urls(options: &MakeOptions) -> Result<(), MakeError> {
    let usable = |url: &str, schemes: &[&str]| schemes.iter().any(|scheme| url.starts_with(&format!("{scheme}://")));
    let bad_tracker = options
        .trackers
        .iter()
        .find(|url| !usable(url, &["http", "https", "udp"]));
    let bad_seed = options.web_seeds.iter().find(|url| !usable(url, &["http", "https"]));
    match bad_tracker.or(bad_seed) {
        Some(url) => Err(MakeError::Url(url.clone())),
        None => Ok(()),
    }
}

fn walk(path: &Path, folder: &Path) -> Result<Vec<FileEntry>, MakeError> {
    let mut entries = Vec::new();
    let mut offset = 0;
    for found in WalkDir::new(path).sort_by_file_name() {
        let found = found.map_err(|error| MakeError::Look {
            path: error.path().unwrap_or(path).to_owned(),
            error: error.into(),
        })?;
        if found.file_type().is_file() {
            let entry = entry(found.path(), folder, offset)?;
            offset = entry.end();
            entries.push(entry);
        } else if !found.file_type().is_dir() {
            tracing::warn!("{} is left out: not a regular file", found.path().display());
        }
    }
    Ok(entries)
}

fn entry(path: &Path, folder: &Path, offset: u64) -> Result<FileEntry, MakeError> {
    let metadata = path.metadata().map_err(|error| MakeError::Look {
        path: path.to_owned(),
        error,
    })?;
    let below = path.strip_prefix(folder).unwrap_or(path);
    let text = below.to_str().ok_or_else(|| MakeError::Name(path.to_owned()))?;
    Ok(FileEntry {
        path: text.into(),
        len: metadata.len(),
        offset,
        attributes: FileAttributes::default(),
    })
}
