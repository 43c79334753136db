//! Sources of torrents.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use ecs_torrent_engine::backends::whole_file::read_bounded;
use ecs_torrent_protocol::metainfo::{Metainfo, MetainfoLimits};

use crate::error::Error;

/// Something that can be added to an engine as a torrent.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Source {
    /// A `.torrent` file.
    File(PathBuf),
    /// The content of a `.torrent` file.
    Bytes(Bytes),
    /// A parsed `.torrent` file.
    Metainfo(Arc<Metainfo>),
}

impl Source {
    /// Reads and parses the source. Blocks while it reads a file.
    ///
    /// # Errors
    /// If the file cannot be read, is larger than any torrent may be, or is not a torrent.
    pub fn load(self) -> Result<Arc<Metainfo>, Error> {
        let limits = MetainfoLimits::default();
        let (bytes, name) = match self {
            Self::Metainfo(metainfo) => return Ok(metainfo),
            Self::Bytes(bytes) => (bytes, None),
            Self::File(path) => (read(&path, limits.bencode.max_bytes as u64)?, Some(path)),
        };
        let metainfo = Metainfo::parse(&bytes, &limits).map_err(|error| Error::Metainfo {
            name: name.map_or_else(|| "torrent".to_owned(), |path| path.display().to_string()),
            error,
        })?;
        Ok(Arc::new(metainfo))
    }
}

fn read(path: &Path, max: u64) -> Result<Bytes, Error> {
    use std::io::{Error as IoError, ErrorKind};
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |error| Error::Read {
        path: path.to_owned(),
        error,
    };
    // A pipe that nobody writes to would hold up the caller for ever.
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = std::fs::File::options().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|error| match unsupported(path) {
        Some(what) if error.kind() == ErrorKind::NotFound => Error::Unsupported {
            name: path.display().to_string(),
            what,
        },
        _ => failed(error),
    })?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(failed(IoError::from(ErrorKind::IsADirectory)));
    }
    if !metadata.is_file() {
        return Err(failed(IoError::other("not a regular file")));
    }
    read_bounded(file, max).map(Bytes::from).map_err(failed)
}

/// Returns the kind of a source that is not supported yet, for error messages.
fn unsupported(path: &Path) -> Option<&'static str> {
    let (scheme, _) = path.to_str()?.split_once(':')?;
    match scheme.to_ascii_lowercase().as_str() {
        "magnet" => Some("magnet links"),
        "http" | "https" | "ftp" | "udp" | "bc" | "file" => Some("URLs"),
        _ => None,
    }
}

impl From<&str> for Source {
    fn from(path: &str) -> Self {
        Self::File(path.into())
    }
}

impl From<String> for Source {
    fn from(path: String) -> Self {
        Self::File(path.into())
    }
}

impl From<&Path> for Source {
    fn from(path: &Path) -> Self {
        Self::File(path.to_owned())
    }
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl From<Bytes> for Source {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<Arc<Metainfo>> for Source {
    fn from(metainfo: Arc<Metainfo>) -> Self {
        Self::Metainfo(metainfo)
    }
}
