//! Creation of metainfo: the encoding side of [`metainfo`](crate::metainfo) (BEP 3, 5, 12, 19, 27).

use bendy::encoding::{AsString, Error, SingleItemEncoder, ToBencode};

use crate::hash::Sha1Digest;
use crate::host_port::HostPort;

/// Content of a new `.torrent` file. Encoded with [`NewTorrent::encode`].
///
/// ```
/// use ecs_torrent_protocol::create::{NewFile, NewTorrent};
/// use ecs_torrent_protocol::hash::sha1;
/// use ecs_torrent_protocol::metainfo::{Metainfo, MetainfoLimits};
///
/// let content = b"hello";
/// let torrent = NewTorrent {
///     name: "hello.txt".into(),
///     files: vec![NewFile { path: Vec::new(), len: content.len() as u64 }],
///     piece_length: 16_384,
///     pieces: vec![sha1([&content[..]])],
///     ..NewTorrent::default()
/// };
/// let file = torrent.encode().unwrap().into();
/// let metainfo = Metainfo::parse(&file, &MetainfoLimits::default()).unwrap();
/// assert_eq!(metainfo.info.name, "hello.txt");
/// ```
#[derive(Debug, Clone, Default)]
pub struct NewTorrent {
    /// Name of the file or of the folder.
    pub name: String,
    /// The files of a folder, or one file without path components for a single-file torrent.
    pub files: Vec<NewFile>,
    /// Length in bytes of each piece but the last.
    pub piece_length: u32,
    /// SHA-1 of each piece.
    pub pieces: Vec<Sha1Digest>,
    /// Announce URLs in tiers.
    pub trackers: Vec<Vec<String>>,
    /// Web seeds.
    pub web_seeds: Vec<String>,
    /// Nodes of the DHT by which a torrent without trackers is found (BEP 5).
    pub nodes: Vec<HostPort>,
    /// Whether peers may come from the trackers only.
    pub private: bool,
    /// Free text.
    pub comment: Option<String>,
    /// The program that created the file.
    pub created_by: Option<String>,
    /// Creation time in seconds since 1970.
    pub creation_date: Option<i64>,
}

/// One file of a [`NewTorrent`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewFile {
    /// Components of the path below the torrent's folder; none for a single-file torrent.
    pub path: Vec<String>,
    /// Length in bytes.
    pub len: u64,
}

/// Returns the piece length that gives a torrent of `total` bytes about 1 500 pieces, a power of two from 16 KiB to
/// 16 MiB.
#[must_use]
pub fn default_piece_length(total: u64) -> u32 {
    const MIN: u64 = 16 << 10;
    const MAX: u64 = 16 << 20;
    (total / 1_500).next_power_of_two().clamp(MIN, MAX) as u32
}

impl NewTorrent {
    /// Encodes the `.torrent` file as canonical bencode.
    ///
    /// # Errors
    /// Returns an error only if the encoder refuses its own input, which these types cannot cause.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        self.to_bencode().map_err(|error| EncodeError(error.to_string()))
    }
}

/// The encoder refused its input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot encode: {0}")]
pub struct EncodeError(String);

impl ToBencode for NewTorrent {
    const MAX_DEPTH: usize = 6;

    fn encode(&self, encoder: SingleItemEncoder<'_>) -> Result<(), Error> {
        encoder.emit_dict(|mut dict| {
            if let Some(url) = self.trackers.iter().flatten().next() {
                dict.emit_pair(b"announce", url)?;
            }
            if self.trackers.iter().flatten().nth(1).is_some() {
                dict.emit_pair(b"announce-list", &self.trackers)?;
            }
            if let Some(comment) = &self.comment {
                dict.emit_pair(b"comment", comment)?;
            }
            if let Some(program) = &self.created_by {
                dict.emit_pair(b"created by", program)?;
            }
            if let Some(date) = self.creation_date {
                dict.emit_pair(b"creation date", date)?;
            }
            dict.emit_pair_with(b"info", |encoder| self.encode_info(encoder))?;
            if !self.nodes.is_empty() {
                let pairs = self.nodes.iter().map(NodePair).collect::<Vec<_>>();
                dict.emit_pair(b"nodes", pairs)?;
            }
            if !self.web_seeds.is_empty() {
                dict.emit_pair(b"url-list", &self.web_seeds)?;
            }
            Ok(())
        })
    }
}

impl NewTorrent {
    fn encode_info(&self, encoder: SingleItemEncoder<'_>) -> Result<(), Error> {
        let single = match &self.files[..] {
            [file] if file.path.is_empty() => Some(file.len),
            _ => None,
        };
        encoder.emit_dict(|mut info| {
            if single.is_none() {
                info.emit_pair(b"files", &self.files)?;
            }
            if let Some(len) = single {
                info.emit_pair(b"length", len)?;
            }
            info.emit_pair(b"name", &self.name)?;
            info.emit_pair(b"piece length", self.piece_length)?;
            info.emit_pair(b"pieces", AsString(self.pieces.as_flattened()))?;
            if self.private {
                info.emit_pair(b"private", 1)?;
            }
            Ok(())
        })
    }
}

/// A node as a list of its host and its port.
struct NodePair<'n>(&'n HostPort);

impl ToBencode for NodePair<'_> {
    const MAX_DEPTH: usize = 1;

    fn encode(&self, encoder: SingleItemEncoder<'_>) -> Result<(), Error> {
        encoder.emit_list(|pair| {
            pair.emit_str(&self.0.host)?;
            pair.emit_int(self.0.port)
        })
    }
}

impl ToBencode for NewFile {
    const MAX_DEPTH: usize = 3;

    fn encode(&self, encoder: SingleItemEncoder<'_>) -> Result<(), Error> {
        encoder.emit_dict(|mut dict| {
            dict.emit_pair(b"length", self.len)?;
            dict.emit_pair(b"path", &self.path)
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::metainfo::{Metainfo, MetainfoLimits};

    fn parse(torrent: &NewTorrent) -> Metainfo {
        Metainfo::parse(&Bytes::from(torrent.encode().unwrap()), &MetainfoLimits::default()).unwrap()
    }

    #[test]
    fn a_folder_round_trips() {
        let torrent = NewTorrent {
            name: "folder".into(),
            files: vec![
                NewFile {
                    path: vec!["a".into(), "b.txt".into()],
                    len: 20_000,
                },
                NewFile {
                    path: vec!["empty".into()],
                    len: 0,
                },
            ],
            piece_length: 16384,
            pieces: vec![[1; 20], [2; 20]],
            trackers: vec![vec!["http://a/announce".into()], vec!["udp://b:1".into()]],
            web_seeds: vec!["http://seed/".into()],
            nodes: vec!["node:1".parse().unwrap(), "[::1]:2".parse().unwrap()],
            private: true,
            comment: Some("hello".into()),
            created_by: Some("me".into()),
            creation_date: Some(1_700_000_000),
        };
        let parsed = parse(&torrent);
        assert_eq!(parsed.info.name, "folder");
        assert_eq!(parsed.trackers, torrent.trackers);
        assert_eq!(parsed.web_seeds, torrent.web_seeds);
        assert_eq!(parsed.nodes, torrent.nodes);
        assert_eq!(parsed.info.pieces.get(1), Some(&[2; 20]));
        assert_eq!(parsed.comment.as_deref(), Some("hello"));
        assert_eq!(parsed.creation_date, Some(1_700_000_000));
        assert!(parsed.info.private);
        let files: Vec<_> = parsed.info.files.files().iter().map(|f| (&*f.path, f.len)).collect();
        assert_eq!(files, [("folder/a/b.txt", 20_000), ("folder/empty", 0)]);
    }

    #[test]
    fn a_single_file_round_trips() {
        let torrent = NewTorrent {
            name: "one.bin".into(),
            files: vec![NewFile { path: vec![], len: 1 }],
            piece_length: 16384,
            pieces: vec![[9; 20]],
            ..NewTorrent::default()
        };
        let parsed = parse(&torrent);
        assert_eq!(&*parsed.info.files.files()[0].path, "one.bin");
        assert!(parsed.trackers.is_empty() && !parsed.info.private);
    }

    #[test]
    fn a_folder_of_one_file_stays_a_folder() {
        let torrent = NewTorrent {
            name: "folder".into(),
            files: vec![NewFile {
                path: vec!["only.bin".into()],
                len: 1,
            }],
            piece_length: 16384,
            pieces: vec![[9; 20]],
            ..NewTorrent::default()
        };
        assert_eq!(&*parse(&torrent).info.files.files()[0].path, "folder/only.bin");
    }

    #[test]
    fn default_piece_lengths_are_powers_of_two_in_range() {
        assert_eq!(default_piece_length(0), 16 << 10);
        assert_eq!(default_piece_length(1 << 30), 1 << 20);
        assert_eq!(default_piece_length(1 << 50), 16 << 20);
        for exponent in 0..50 {
            assert!(default_piece_length(3 << exponent).is_power_of_two());
        }
    }
}
