//! Sources of torrents.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use ecs_torrent_components::commands::{TorrentSource, UnfetchedTorrent};
use ecs_torrent_components::hints::LinkHints;
use ecs_torrent_components::selection::FileSelection;
use ecs_torrent_engine::backends::whole_file::read_bounded;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::magnet::{Magnet, MagnetError, MutableLink};
use ecs_torrent_protocol::metainfo::{Metainfo, MetainfoLimits};

use crate::error::Error;

/// A torrent file or link that can be added to an engine.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Source {
    /// A `.torrent` file. A path that begins with `magnet:` and does not exist is a magnet link.
    File(PathBuf),
    /// The content of a `.torrent` file.
    Bytes(Bytes),
    /// A parsed `.torrent` file.
    Metainfo(Arc<Metainfo>),
    /// A magnet link: the metadata comes from peers (BEP 9).
    Magnet(Box<Magnet>),
    /// A link to a torrent that its publisher replaces (BEP 46): the DHT knows the current one.
    Link(Box<MutableLink>),
}

impl Source {
    /// Reads a magnet link, of either kind. Unlike [`Source::from`], it never takes the text for the path of a file.
    ///
    /// # Errors
    /// If the link is malformed.
    pub fn from_link(text: &str) -> Result<Self, Error> {
        match MutableLink::is_meant(text) {
            true => Ok(text.parse::<MutableLink>()?.into()),
            false => Ok(text.parse::<Magnet>()?.into()),
        }
    }

    /// Returns the link if the source names a torrent by a public key (BEP 46).
    ///
    /// ```
    /// use ecs_torrent::Source;
    ///
    /// let key = "8543d3e6115f0f98c944077a4493dcd543e49c739fd998550a1f614ab36ed63e";
    /// let link = Source::from(format!("magnet:?xs=urn:btpk:{key}")).link().unwrap();
    /// assert_eq!(link.unwrap().target().to_string(), "cc3f9d90b572172053626f9980ce261a850d050b");
    /// assert!(Source::from("album.torrent").link().unwrap().is_none());
    /// ```
    ///
    /// # Errors
    /// If the link is malformed.
    pub fn link(&self) -> Result<Option<MutableLink>, Error> {
        match self {
            Self::Link(link) => Ok(Some((**link).clone())),
            Self::File(path) => match path.to_str() {
                Some(text) if MutableLink::is_meant(text) && !path.exists() => Ok(Some(text.parse()?)),
                _ => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// Reads and parses the source. Blocks while it reads a file.
    ///
    /// ```
    /// use ecs_torrent::Source;
    ///
    /// let link = "magnet:?xt=urn:btih:9a0b3c4d9a0b3c4d9a0b3c4d9a0b3c4d9a0b3c4d&dn=song";
    /// let read = Source::from(link).read().unwrap();
    /// assert_eq!(read.name(), "song");
    /// assert_eq!(read.info_hash().to_string(), "9a0b3c4d".repeat(5));
    /// assert!(Source::from("magnet:?dn=song").read().is_err());
    /// ```
    ///
    /// # Errors
    /// If the file cannot be read, is larger than any torrent may be, or is not a torrent; if a magnet link is
    /// malformed or names a v2 torrent only; if the torrent of a link has to be searched for in the DHT.
    pub fn read(self) -> Result<ReadSource, Error> {
        let read = self.parse()?;
        match &read {
            ReadSource::Magnet(magnet) if magnet.hashes.v1.is_none() => Err(Error::Unsupported {
                name: format!("magnet link of {}", magnet.hashes.primary()),
                what: "v2 torrents",
                instead: "the link of a v1 or hybrid torrent",
            }),
            _ => Ok(read),
        }
    }

    /// Returns the known data of the torrent, and the files that a magnet link selects. Blocks while it reads a file.
    pub(crate) fn resolve(self) -> Result<(TorrentSource, FileSelection), Error> {
        let magnet = match self.read()? {
            ReadSource::Metainfo(metainfo) => return Ok((metainfo.into(), FileSelection::default())),
            ReadSource::Magnet(magnet) => *magnet,
        };
        let unfetched = UnfetchedTorrent {
            info_hash: magnet.hashes.primary(),
            name: magnet.name,
            // A link does not group its trackers, so each is a tier of its own (BEP 12).
            trackers: magnet.trackers.into_iter().map(|url| vec![url]).collect(),
            peers: magnet.peers,
            hints: LinkHints {
                web_seeds: magnet.web_seeds,
                peer_hosts: magnet.peer_hosts,
            },
        };
        // A link has no more ranges than a selection may have, and none is reversed.
        let selected = FileSelection::new(magnet.files, []).unwrap_or_default();
        Ok((TorrentSource::InfoHash(unfetched), selected))
    }

    /// Reads and parses a source that contains the metadata. Blocks while it reads a file.
    ///
    /// # Errors
    /// As [`Source::read`], and [`Error::NoMetadata`] for a magnet link.
    pub fn load(self) -> Result<Arc<Metainfo>, Error> {
        match self.parse()? {
            ReadSource::Metainfo(metainfo) => Ok(metainfo),
            ReadSource::Magnet(magnet) => Err(Error::NoMetadata(magnet.hashes.primary())),
        }
    }

    fn parse(self) -> Result<ReadSource, Error> {
        let limits = MetainfoLimits::default();
        let (bytes, name) = match self {
            Self::Metainfo(metainfo) => return Ok(ReadSource::Metainfo(metainfo)),
            Self::Magnet(magnet) => return Ok(ReadSource::Magnet(magnet)),
            Self::Link(_) => return Err(MagnetError::PublicKey.into()),
            Self::Bytes(bytes) => (bytes, None),
            Self::File(path) => match path.to_str() {
                Some(text) if Magnet::is_meant(text) && !path.exists() => {
                    return Ok(ReadSource::Magnet(Box::new(text.parse()?)));
                }
                _ => (read(&path, limits.bencode.max_bytes as u64)?, Some(path)),
            },
        };
        let metainfo = Metainfo::parse(&bytes, &limits).map_err(|error| Error::Metainfo {
            name: name.map_or_else(|| "torrent".to_owned(), |path| path.display().to_string()),
            error,
        })?;
        Ok(ReadSource::Metainfo(Arc::new(metainfo)))
    }
}

/// A [`Source`] that has been read.
#[derive(Debug, Clone)]
pub enum ReadSource {
    /// The torrent's metadata.
    Metainfo(Arc<Metainfo>),
    /// A magnet link: the metadata comes from peers (BEP 9).
    Magnet(Box<Magnet>),
}

impl ReadSource {
    /// Returns the name of the torrent's file or folder; before its metadata is known, the name that the link gives, or
    /// the info-hash.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Metainfo(metainfo) => metainfo.info.name.clone(),
            Self::Magnet(magnet) => match &magnet.name {
                Some(name) => name.clone(),
                None => self.info_hash().to_string(),
            },
        }
    }

    /// Returns the info-hash that identifies the torrent to users.
    #[must_use]
    pub fn info_hash(&self) -> InfoHash {
        match self {
            Self::Metainfo(metainfo) => metainfo.hashes.primary(),
            Self::Magnet(magnet) => magnet.hashes.primary(),
        }
    }
}

impl From<ReadSource> for Source {
    fn from(read: ReadSource) -> Self {
        match read {
            ReadSource::Metainfo(metainfo) => Self::Metainfo(metainfo),
            ReadSource::Magnet(magnet) => Self::Magnet(magnet),
        }
    }
}

/// Reads a regular file of at most `max` bytes.
pub(crate) fn read(path: &Path, max: u64) -> Result<Bytes, Error> {
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
            instead: "a .torrent file or a magnet link",
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

impl From<Magnet> for Source {
    fn from(magnet: Magnet) -> Self {
        Self::Magnet(Box::new(magnet))
    }
}

impl From<MutableLink> for Source {
    fn from(link: MutableLink) -> Self {
        Self::Link(Box::new(link))
    }
}

impl From<Arc<Metainfo>> for Source {
    fn from(metainfo: Arc<Metainfo>) -> Self {
        Self::Metainfo(metainfo)
    }
}
