//! Metainfo, the content of a `.torrent` file (BEP 3, with BEP 5, 12, 19, 27 and 47).

mod error;
mod hybrid;
mod info;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use bytes::Bytes;

pub use self::error::{MetainfoError, Problem};
use self::info::{Fields, Place};
pub use self::info::{Info, PieceHashes};
use crate::bencode::{Document, Limits, Value};
use crate::hash::InfoHashes;
use crate::urls::UrlSet;

/// Maximum length of a host name in bytes (RFC 1035).
const MAX_HOST: usize = 253;

/// Limits for metainfo files; a file beyond them is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetainfoLimits {
    /// Limits of the encoding itself.
    pub bencode: Limits,
    /// Maximum number of files. Default 500 000.
    pub max_files: usize,
    /// Maximum number of folders. Default 500 000; each folder contains a file.
    pub max_folders: usize,
    /// Maximum number of pieces. Default 4 million, 80 MB of hashes; the default of [`Limits::max_bytes`] stops
    /// earlier.
    pub max_pieces: u32,
    /// Maximum piece length in bytes. Default 256 MiB: a piece is held in memory until it is verified.
    pub max_piece_length: u32,
    /// Maximum number of trackers, and of web seeds; the rest is dropped. Default 256.
    pub max_urls: usize,
    /// Maximum number of DHT nodes; the rest is dropped. Default 32: a torrent names the 8 closest nodes, or some hosts by
    /// which to enter the network (BEP 5).
    pub max_nodes: usize,
}

impl Default for MetainfoLimits {
    fn default() -> Self {
        Self {
            bencode: Limits::default(),
            max_files: 500_000,
            max_folders: 500_000,
            max_pieces: 4_000_000,
            max_piece_length: 256 << 20,
            max_urls: 256,
            max_nodes: 32,
        }
    }
}

/// A node of the DHT as a torrent names it (BEP 5): a host name or an IP address, and a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeHost {
    /// The host name, or the address without brackets.
    pub host: String,
    /// The UDP port, not 0.
    pub port: u16,
}

impl NodeHost {
    /// Checks a host name, or an address with or without brackets, and a port.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Option<Self> {
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = inner.unwrap_or(host);
        let is_letter = |letter: u8| letter.is_ascii_alphanumeric() || b"-._".contains(&letter);
        let is_name = !host.is_empty() && host.len() <= MAX_HOST && host.bytes().all(is_letter);
        let is_usable = port != 0 && (is_name || host.parse::<IpAddr>().is_ok());
        is_usable.then(|| Self {
            host: host.to_owned(),
            port,
        })
    }
}

/// The text is not a host and a port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a host name or address with a port, such as dht.example:6881")]
pub struct NodeHostError(String);

impl FromStr for NodeHost {
    type Err = NodeHostError;

    fn from_str(text: &str) -> Result<Self, NodeHostError> {
        let node = text
            .rsplit_once(':')
            .and_then(|(host, port)| Self::new(host, port.parse().ok()?));
        node.ok_or_else(|| NodeHostError(text.to_owned()))
    }
}

impl fmt::Display for NodeHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A parsed `.torrent` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metainfo {
    /// The torrent's info-hashes.
    pub hashes: InfoHashes,
    /// The info dictionary.
    pub info: Info,
    /// The original bytes of the whole file.
    pub bytes: Bytes,
    /// The original bytes of the info dictionary, which are hashed; a slice of the same memory.
    pub info_bytes: Bytes,
    /// Announce URLs in tiers (BEP 12); a lone `announce` is one tier of one. Only schemes that support announces
    /// (`http`, `https`, `udp`), each URL once.
    pub trackers: Vec<Vec<String>>,
    /// Web seeds, key `url-list` (BEP 19).
    pub web_seeds: Vec<String>,
    /// Nodes of the DHT by which a torrent without trackers is found, key `nodes` (BEP 5). Each one once.
    pub nodes: Vec<NodeHost>,
    /// Comment of the author.
    pub comment: Option<String>,
    /// The program that made the file.
    pub created_by: Option<String>,
    /// Creation time in seconds since 1970.
    pub creation_date: Option<i64>,
}

impl Metainfo {
    /// Parses a `.torrent` file.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use ecs_torrent_protocol::metainfo::{Metainfo, MetainfoLimits};
    ///
    /// let file = Bytes::from_static(
    ///     b"d8:announce22:http://tracker.example4:infod6:lengthi5e4:name5:a.txt12:piece lengthi16384e\
    ///       6:pieces20:aaaaaaaaaaaaaaaaaaaaee",
    /// );
    /// let metainfo = Metainfo::parse(&file, &MetainfoLimits::default()).unwrap();
    /// println!("{}: {}", metainfo.hashes.primary(), metainfo.info.name);
    /// assert_eq!(metainfo.trackers, [["http://tracker.example"]]);
    /// assert_eq!(&*metainfo.info.files.files()[0].path, "a.txt");
    ///
    /// // An error names the field.
    /// let file = Bytes::from_static(b"d4:infod4:name1:xee");
    /// let error = Metainfo::parse(&file, &MetainfoLimits::default()).unwrap_err();
    /// assert!(error.to_string().contains("piece length"), "{error}");
    /// ```
    ///
    /// # Errors
    /// Names the first field that is missing, malformed, inconsistent or beyond `limits`.
    pub fn parse(bytes: &Bytes, limits: &MetainfoLimits) -> Result<Self, MetainfoError> {
        let document = Document::parse(bytes, &limits.bencode)?;
        let root = Fields::new(document.root(), Place::Metainfo)?;
        let info = root.info()?;
        let info_bytes = bytes.slice_ref(info.raw());
        let (is_v1, is_v2) = info::versions(&info)?;
        let hashes = InfoHashes::of(&info_bytes, is_v1, is_v2);
        let parsed = Info::parse(&info, &info_bytes, &hashes, limits)?;
        if is_v2 {
            hybrid::check(&root, &info, parsed.files.files())?;
        }
        let text = |key: &str| root.get(key).and_then(Value::as_bytes).map(lossy);
        Ok(Self {
            info: parsed,
            hashes,
            bytes: bytes.clone(),
            info_bytes,
            trackers: trackers(&root, limits.max_urls),
            web_seeds: web_seeds(&root, limits.max_urls),
            nodes: nodes(&root, limits.max_nodes),
            comment: text("comment"),
            created_by: text("created by"),
            creation_date: root.get("creation date").and_then(Value::as_int),
        })
    }
}

/// Returns the content of a `.torrent` file with an info dictionary that came from elsewhere (BEP 9), and with announce
/// URLs in tiers.
#[must_use]
pub fn torrent_file(info: &[u8], trackers: &[Vec<String>]) -> Vec<u8> {
    let mut file = b"d".to_vec();
    if !trackers.is_empty() {
        file.extend(b"13:announce-listl");
        for tier in trackers {
            file.push(b'l');
            for url in tier {
                file.extend(url.len().to_string().bytes());
                file.push(b':');
                file.extend(url.bytes());
            }
            file.push(b'e');
        }
        file.push(b'e');
    }
    file.extend(b"4:info");
    file.extend(info);
    file.push(b'e');
    file
}

/// BEP 12: if there is an `announce-list`, `announce` is ignored.
fn trackers(root: &Fields<'_>, max: usize) -> Vec<Vec<String>> {
    let mut urls = UrlSet::of_trackers(max);
    let list = root.get("announce-list").and_then(Value::as_list);
    let mut tiers: Vec<Vec<String>> = list
        .into_iter()
        .flatten()
        .filter_map(Value::as_list)
        .map(|tier| tier.filter_map(|url| urls.accept(url.as_str()?)).collect())
        .collect();
    tiers.retain(|tier| !tier.is_empty());
    if tiers.is_empty() {
        tiers.extend(
            root.get("announce")
                .and_then(|url| urls.accept(url.as_str()?))
                .map(|url| vec![url]),
        );
    }
    tiers
}

/// BEP 19: `url-list` is a list of URLs, or one URL.
fn web_seeds(root: &Fields<'_>, max: usize) -> Vec<String> {
    let mut urls = UrlSet::of_web_seeds(max);
    match root.get("url-list") {
        Some(value) => match value.as_list() {
            Some(list) => list.filter_map(|url| urls.accept(url.as_str()?)).collect(),
            None => value.as_str().and_then(|url| urls.accept(url)).into_iter().collect(),
        },
        None => Vec::new(),
    }
}

/// BEP 5: `nodes` is a list of pairs of a host and a port. Pairs that cannot be used are left out.
fn nodes(root: &Fields<'_>, max: usize) -> Vec<NodeHost> {
    let mut nodes: Vec<NodeHost> = Vec::new();
    let list = root.get("nodes").and_then(Value::as_list);
    for node in list.into_iter().flatten().filter_map(node_host) {
        if nodes.len() == max {
            break;
        }
        if !nodes.contains(&node) {
            nodes.push(node);
        }
    }
    nodes
}

fn node_host(pair: Value<'_>) -> Option<NodeHost> {
    let mut pair = pair.as_list()?;
    let host = pair.next()?.as_str()?;
    NodeHost::new(host, pair.next()?.as_int()?.try_into().ok()?)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests;
