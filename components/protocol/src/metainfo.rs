//! Metainfo, the content of a `.torrent` file (BEP 3, with BEP 5, 12, 19, 27 and 47).

mod error;
mod hybrid;
mod info;

use bytes::Bytes;

pub use self::error::{MetainfoError, Problem};
use self::info::{Fields, Place};
pub use self::info::{Info, PieceHashes, says_private};
use crate::bencode::{Document, Limits, Value};
use crate::hash::InfoHashes;
use crate::host_port::HostPort;
use crate::urls::UrlSet;

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
    /// Maximum number of DHT nodes; the rest is dropped. Default 32: a torrent names the 8 closest nodes, or some hosts
    /// by which to enter the network (BEP 5).
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
    pub nodes: Vec<HostPort>,
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

/// Returns the content of a `.torrent` file with an info dictionary that came from elsewhere (BEP 9), with announce
/// URLs in tiers, and with URLs of web seeds.
#[must_use]
pub fn torrent_file(info: &[u8], trackers: &[Vec<String>], web_seeds: &[String]) -> Vec<u8> {
    let mut file = b"d".to_vec();
    if !trackers.is_empty() {
        file.extend(b"13:announce-listl");
        for tier in trackers {
            push_list(&mut file, tier);
        }
        file.push(b'e');
    }
    file.extend(b"4:info");
    file.extend(info);
    if !web_seeds.is_empty() {
        file.extend(b"8:url-list");
        push_list(&mut file, web_seeds);
    }
    file.push(b'e');
    file
}

/// Appends a bencoded list of strings.
fn push_list(file: &mut Vec<u8>, texts: &[String]) {
    file.push(b'l');
    for text in texts {
        file.extend(text.len().to_string().bytes());
        file.push(b':');
        file.extend(text.bytes());
    }
    file.push(b'e');
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
fn nodes(root: &Fields<'_>, max: usize) -> Vec<HostPort> {
    let mut nodes: Vec<HostPort> = Vec::new();
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

fn node_host(pair: Value<'_>) -> Option<HostPort> {
    let mut pair = pair.as_list()?;
    let host = pair.next()?.as_str()?;
    HostPort::new(host, pair.next()?.as_int()?.try_into().ok()?)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests;
