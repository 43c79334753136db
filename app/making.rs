//! Creating a torrent from files.

mod identity;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use ecs_torrent_engine::ports::disk::DiskError;
use ecs_torrent_protocol::create::{EncodeError, NewFile, NewTorrent, default_piece_length};
use ecs_torrent_protocol::files::{FileAttributes, FileEntry, FileTable};
use ecs_torrent_protocol::geometry::Geometry;
use ecs_torrent_protocol::host_port::HostPort;
use ecs_torrent_protocol::metainfo::{Metainfo, MetainfoError, MetainfoLimits};
use ecs_torrent_protocol::urls::{UrlError, check_tracker, check_web_seed};
use walkdir::WalkDir;

use self::identity::Identity;
use crate::hashing::hash_pieces;

/// Options of a new torrent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MakeOptions {
    /// Bytes per piece; chosen by total size if absent.
    pub piece_length: Option<u32>,
    /// Announce URLs, each in a tier of its own: the first tracker that answers is used.
    pub trackers: Vec<String>,
    /// Web seeds.
    pub web_seeds: Vec<String>,
    /// Nodes of the DHT by which a torrent without trackers is found (BEP 5); not used if it is private.
    pub nodes: Vec<HostPort>,
    /// Whether peers may come from the trackers only.
    pub private: bool,
    /// Free text.
    pub comment: Option<String>,
    /// The program that creates the torrent.
    pub created_by: Option<String>,
    /// Seconds since 1970.
    pub creation_date: Option<i64>,
}

/// Why a torrent cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MakeError {
    /// A file or folder cannot be examined.
    #[error("cannot read {}: {error}", path.display())]
    Look {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        error: std::io::Error,
    },
    /// A name is not UTF-8, so a torrent cannot represent it.
    #[error("{}: the name is not UTF-8", .0.display())]
    Name(PathBuf),
    /// The path, such as `/`, has no name for the torrent.
    #[error("{}: has no name to give to a torrent", .0.display())]
    NoName(PathBuf),
    /// The file or folder holds no data.
    #[error("{}: it contains no data for a torrent", .0.display())]
    Empty(PathBuf),
    /// No client accepts this piece length.
    #[error("piece length {0}: must be a power of two from 16 KiB to 256 MiB")]
    PieceLength(u32),
    /// The torrent would have more pieces than can be numbered.
    #[error("piece length {0}: makes too many pieces")]
    TooManyPieces(u32),
    /// A tracker or web seed has an unusable URL.
    #[error("{url}: {error}")]
    Url {
        /// The URL.
        url: String,
        /// The reason.
        error: UrlError,
    },
    /// The resulting torrent would be refused.
    #[error("{}: the torrent would be refused: {error}", path.display())]
    Refused {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        error: MetainfoError,
    },
    /// A file changed while it was hashed.
    #[error("{}: changed while it was hashed; try again when no program writes to it", .0.display())]
    Changed(PathBuf),
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] DiskError),
    /// The torrent cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// A file whose path changes when the torrent is read (see [`safe_path`](ecs_torrent_protocol::safe_path)), so that its
/// data is not found in its current place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renamed {
    /// Current path, relative to the folder that contains the torrent's file or folder.
    pub found: Box<str>,
    /// Path after reading.
    pub read: Box<str>,
}

/// A planned torrent, whose files are not hashed yet.
#[derive(Debug)]
pub struct Plan {
    folder: PathBuf,
    files: FileTable,
    /// Identity of each file before hashing.
    identities: Vec<Identity>,
    geometry: Geometry,
    /// The torrent, with placeholders for its hashes.
    torrent: NewTorrent,
    renamed: Vec<Renamed>,
}

impl Plan {
    /// Scans a file or folder. The files of a folder are ordered by path; symbolic links and special files are left
    /// out.
    ///
    /// # Errors
    /// If the content cannot be examined, is empty or has a name that is not UTF-8, or if an option is invalid.
    pub fn new(path: &Path, options: MakeOptions) -> Result<Self, MakeError> {
        check_urls(&options)?;
        let look = |error| MakeError::Look {
            path: path.to_owned(),
            error,
        };
        // Canonicalization gives `.` and `folder/` the folder's own name.
        let path = path.canonicalize().map_err(look)?;
        let not_text = || MakeError::Name(path.clone());
        let name = path
            .file_name()
            .ok_or_else(|| MakeError::NoName(path.clone()))?
            .to_str()
            .ok_or_else(not_text)?
            .to_owned();
        let folder = path.parent().ok_or_else(not_text)?.to_owned();
        let is_single = path.is_file();
        let mut found = Found::default();
        if is_single {
            found.add(&path, &folder)?;
        } else {
            found.walk(&path, &folder)?;
        }
        let files = FileTable::new(found.entries);
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
        let geometry = geometry.ok_or(MakeError::TooManyPieces(piece_length))?;
        let torrent = torrent(name, &files, &geometry, options);
        Ok(Self {
            renamed: renamed(&path, &files, &torrent)?,
            folder,
            files,
            identities: found.identities,
            geometry,
            torrent,
        })
    }

    /// Returns the total bytes of all files.
    #[must_use]
    pub fn total_size(&self) -> u64 {
        self.files.total_size()
    }

    /// Returns whether the file at `path`, or the target of a link there, is one of the content's files, also under
    /// another name.
    #[must_use]
    pub fn contains(&self, path: &Path) -> bool {
        let target = path.canonicalize().and_then(|path| Identity::of(&path));
        target.is_ok_and(|target| self.identities.iter().any(|file| file.is_same_file(&target)))
    }

    /// Returns the files whose paths change when the torrent is read.
    #[must_use]
    pub fn renamed(&self) -> &[Renamed] {
        &self.renamed
    }

    /// Hashes the files on all processors and returns the bytes of the `.torrent` file. `on_bytes` receives the number
    /// of bytes hashed so far.
    ///
    /// # Errors
    /// If a file cannot be read or has changed since the scan.
    pub fn make(mut self, on_bytes: &(dyn Fn(u64) + Sync)) -> Result<Vec<u8>, MakeError> {
        let digests = hash_pieces(&self.folder, &self.files, &self.geometry, on_bytes);
        self.check_unchanged()?;
        self.torrent.pieces = digests.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(self.torrent.encode()?)
    }

    fn check_unchanged(&self) -> Result<(), MakeError> {
        for (file, before) in self.files.files().iter().zip(&self.identities) {
            let path = self.folder.join(&*file.path);
            if Identity::of(&path).ok().as_ref() != Some(before) {
                return Err(MakeError::Changed(path));
            }
        }
        Ok(())
    }
}

/// Creates the torrent with placeholders for its hashes.
fn torrent(name: String, files: &FileTable, geometry: &Geometry, options: MakeOptions) -> NewTorrent {
    let files = files.files().iter().map(|file| NewFile {
        // The path is relative to the torrent's own folder.
        path: file.path.split('/').skip(1).map(str::to_owned).collect(),
        len: file.len,
    });
    NewTorrent {
        name,
        files: files.collect(),
        piece_length: geometry.piece_length(),
        pieces: vec![[0; 20]; geometry.piece_count() as usize],
        trackers: options.trackers.into_iter().map(|url| vec![url]).collect(),
        web_seeds: options.web_seeds,
        nodes: options.nodes,
        private: options.private,
        comment: options.comment,
        created_by: options.created_by,
        creation_date: options.creation_date,
    }
}

/// Parses the torrent before it is hashed and returns the files whose paths change.
fn renamed(path: &Path, files: &FileTable, torrent: &NewTorrent) -> Result<Vec<Renamed>, MakeError> {
    let bytes = Bytes::from(torrent.encode()?);
    let read = Metainfo::parse(&bytes, &MetainfoLimits::default()).map_err(|error| MakeError::Refused {
        path: path.to_owned(),
        error,
    })?;
    let pairs = files.files().iter().zip(read.info.files.files());
    let differing = pairs.filter(|(found, read)| found.path != read.path);
    let renamed = differing.map(|(found, read)| Renamed {
        found: found.path.clone(),
        read: read.path.clone(),
    });
    Ok(renamed.collect())
}

fn check_urls(options: &MakeOptions) -> Result<(), MakeError> {
    let trackers = options.trackers.iter().map(|url| (url, check_tracker(url)));
    let seeds = options.web_seeds.iter().map(|url| (url, check_web_seed(url)));
    for (url, checked) in trackers.chain(seeds) {
        checked.map_err(|error| MakeError::Url {
            url: url.clone(),
            error,
        })?;
    }
    Ok(())
}

/// Files found by the scan, in order.
#[derive(Default)]
struct Found {
    entries: Vec<FileEntry>,
    identities: Vec<Identity>,
}

impl Found {
    fn walk(&mut self, path: &Path, folder: &Path) -> Result<(), MakeError> {
        for found in WalkDir::new(path).sort_by_file_name() {
            let found = found.map_err(|error| MakeError::Look {
                path: error.path().unwrap_or(path).to_owned(),
                error: error.into(),
            })?;
            if found.file_type().is_file() {
                self.add(found.path(), folder)?;
            } else if !found.file_type().is_dir() {
                tracing::warn!("{} is not included: not a regular file", found.path().display());
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, folder: &Path) -> Result<(), MakeError> {
        let identity = Identity::of(path).map_err(|error| MakeError::Look {
            path: path.to_owned(),
            error,
        })?;
        let below = path.strip_prefix(folder).unwrap_or(path);
        let text = below.to_str().ok_or_else(|| MakeError::Name(path.to_owned()))?;
        self.entries.push(FileEntry {
            path: text.into(),
            len: identity.len(),
            offset: self.entries.last().map_or(0, FileEntry::end),
            attributes: FileAttributes::default(),
        });
        self.identities.push(identity);
        Ok(())
    }
}
