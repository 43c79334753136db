//! Magnet links: a torrent named by its info-hash, with hints on how to find its peers (BEP 9, 46, 53).

mod mutable;

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::form_urlencoded;

pub use self::mutable::MutableLink;
use crate::hash::{InfoHash, InfoHashV2, InfoHashes};
use crate::host_port::HostPort;
use crate::metainfo::Metainfo;
use crate::text::printable;
use crate::urls::UrlSet;

/// Maximum length of a link in bytes.
pub const MAX_LINK: usize = 256 << 10;

/// Maximum number of trackers, of web seeds, of peers and of ranges of files; the rest is dropped.
pub const MAX_HINTS: usize = 256;

/// Maximum length of a name in characters; the rest is cut off.
const MAX_NAME: usize = 255;

/// Multihash prefix of a SHA-256 digest in hexadecimal digits: code 0x12, length 0x20 (BEP 52).
const SHA256_MULTIHASH: &str = "1220";

/// Characters that stay as they are in the values of a link.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A magnet link.
///
/// ```
/// use ecs_torrent_protocol::magnet::Magnet;
///
/// let link = "magnet:?xt=urn:btih:9A0B3C4D9A0B3C4D9A0B3C4D9A0B3C4D9A0B3C4D&dn=A+song&x.pe=10.0.0.1:6881&so=0,2-4";
/// let magnet: Magnet = link.parse().unwrap();
/// assert_eq!(magnet.name.as_deref(), Some("A song"));
/// assert_eq!(magnet.peers, ["10.0.0.1:6881".parse().unwrap()]);
/// assert_eq!(magnet.files, [0..=0, 2..=4]);
/// assert_eq!(
///     magnet.to_string(),
///     "magnet:?xt=urn:btih:9a0b3c4d9a0b3c4d9a0b3c4d9a0b3c4d9a0b3c4d&dn=A%20song&x.pe=10.0.0.1%3A6881&so=0,2-4"
/// );
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Magnet {
    /// `xt`: the info-hashes. At least one is there; a hybrid torrent's link has both.
    pub hashes: InfoHashes,
    /// `dn`: the name to show until the metadata is known.
    pub name: Option<String>,
    /// `tr`: announce URLs of the schemes `http`, `https` and `udp`, each one once.
    pub trackers: Vec<String>,
    /// `x.pe`: addresses of peers.
    pub peers: Vec<SocketAddr>,
    /// `x.pe`: peers that are named by a host name.
    pub peer_hosts: Vec<HostPort>,
    /// `ws`: URLs of web seeds (`http`, `https`), each one once.
    pub web_seeds: Vec<String>,
    /// `so`: indexes of the files to download, in ascending ranges that do not overlap; empty for all files (BEP 53).
    pub files: Vec<RangeInclusive<u32>>,
}

/// The reason a text is not a magnet link that names a torrent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MagnetError {
    /// The text does not start with `magnet:?`.
    #[error("not a magnet link: it does not start with \"magnet:?\"")]
    Scheme,
    /// The text is longer than [`MAX_LINK`].
    #[error("the magnet link is longer than {} KiB", MAX_LINK >> 10)]
    TooLong,
    /// No `xt` names a torrent.
    #[error("the magnet link names no torrent: it has no \"xt=urn:btih:\" with an info-hash")]
    NoHash,
    /// No `xs` has a public key (BEP 46).
    #[error("the magnet link has no public key: it has no \"xs=urn:btpk:\" with 64 hexadecimal digits")]
    NoKey,
    /// An info-hash of the wrong length or with other characters.
    #[error("the magnet link's info-hash {0:?} is neither 40 hexadecimal digits nor 32 characters of base32")]
    BadHash(String),
    /// A v2 info-hash that is not a SHA-256 multihash.
    #[error("the magnet link's info-hash {0:?} is not \"1220\" with 64 hexadecimal digits")]
    BadHashV2(String),
    /// Two different info-hashes of the same version.
    #[error("the magnet link names two torrents: {0} and {1}")]
    TwoTorrents(String, String),
    /// A torrent that is named by a public key and changes (BEP 46); see [`MutableLink`].
    #[error("the magnet link names a torrent by a public key; \"ecs-torrent dht resolve\" finds the current one")]
    PublicKey,
    /// A public key that is not 64 hexadecimal digits, or a salt that is not hexadecimal or has more than 64 bytes.
    #[error("the magnet link's public key or salt {0:?} is malformed")]
    BadKey(String),
}

impl From<InfoHash> for Magnet {
    /// Creates the link that names a v1 torrent and nothing else.
    fn from(info_hash: InfoHash) -> Self {
        Self {
            hashes: InfoHashes {
                v1: Some(info_hash),
                v2: None,
            },
            name: None,
            trackers: Vec::new(),
            peers: Vec::new(),
            peer_hosts: Vec::new(),
            web_seeds: Vec::new(),
            files: Vec::new(),
        }
    }
}

impl Magnet {
    /// Whether a text is meant to be a magnet link: it begins with the scheme.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        text.get(..7)
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("magnet:"))
    }

    /// Returns the link of a known torrent: its hashes, name, trackers and web seeds.
    #[must_use]
    pub fn of(metainfo: &Metainfo) -> Self {
        Self {
            hashes: metainfo.hashes,
            name: Some(metainfo.info.name.clone()),
            trackers: metainfo.trackers.concat(),
            peers: Vec::new(),
            peer_hosts: Vec::new(),
            web_seeds: metainfo.web_seeds.clone(),
            files: Vec::new(),
        }
    }

    fn add(&mut self, key: &str, value: &str, urls: &mut (UrlSet, UrlSet)) -> Result<(), MagnetError> {
        match key {
            "xt" => self.add_hash(value)?,
            "dn" if self.name.is_none() && !value.is_empty() => {
                self.name = Some(printable(value.as_bytes(), MAX_NAME).trim_end().to_owned());
            }
            "tr" => self.trackers.extend(urls.0.accept(value)),
            "ws" => self.web_seeds.extend(urls.1.accept(value)),
            "x.pe" => self.add_peer(value),
            "so" => self.files.extend(value.split(',').filter_map(range).take(MAX_HINTS)),
            _ => {}
        }
        Ok(())
    }

    fn add_peer(&mut self, peer: &str) {
        if self.peers.len() + self.peer_hosts.len() >= MAX_HINTS {
            return;
        }
        if let Ok(address) = peer.parse::<SocketAddr>() {
            if address.port() != 0 && !self.peers.contains(&address) {
                self.peers.push(address);
            }
        } else if let Ok(host) = peer.parse::<HostPort>()
            && host.is_name()
            && !self.peer_hosts.contains(&host)
        {
            self.peer_hosts.push(host);
        }
    }

    fn add_hash(&mut self, topic: &str) -> Result<(), MagnetError> {
        if let Some(digits) = strip_prefix(topic, "urn:btih:") {
            let hash = read_v1(digits).ok_or_else(|| MagnetError::BadHash(printable(digits.as_bytes(), 80)))?;
            name_once(&mut self.hashes.v1, hash)
        } else if let Some(digits) = strip_prefix(topic, "urn:btmh:") {
            let hash = read_v2(digits).ok_or_else(|| MagnetError::BadHashV2(printable(digits.as_bytes(), 80)))?;
            name_once(&mut self.hashes.v2, hash)
        } else {
            // Topics of other networks are ignored (eDonkey, Tiger tree).
            Ok(())
        }
    }
}

impl FromStr for Magnet {
    type Err = MagnetError;

    /// Reads a link. Keys may carry a number (`tr.1`), and the `&` may be written as in HTML. Unknown keys, and hints
    /// that cannot be read, are left out.
    fn from_str(text: &str) -> Result<Self, MagnetError> {
        let text = text.trim();
        if text.len() > MAX_LINK {
            return Err(MagnetError::TooLong);
        }
        let query = Some(text).filter(|text| Self::is_meant(text)).map(|text| &text[7..]);
        let query = query
            .and_then(|rest| rest.strip_prefix('?'))
            .ok_or(MagnetError::Scheme)?;
        let mut magnet = Self {
            hashes: InfoHashes { v1: None, v2: None },
            name: None,
            trackers: Vec::new(),
            peers: Vec::new(),
            peer_hosts: Vec::new(),
            web_seeds: Vec::new(),
            files: Vec::new(),
        };
        let mut urls = (UrlSet::of_trackers(MAX_HINTS), UrlSet::of_web_seeds(MAX_HINTS));
        let mut is_by_key = false;
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            let key = key.strip_prefix("amp;").unwrap_or(&key).to_ascii_lowercase();
            magnet.add(without_number(&key), value.trim(), &mut urls)?;
            is_by_key |= key == "xs" && strip_prefix(value.trim(), "urn:btpk:").is_some();
        }
        if magnet.hashes.wire_hashes().next().is_none() {
            return Err(if is_by_key {
                MagnetError::PublicKey
            } else {
                MagnetError::NoHash
            });
        }
        magnet.files = merged(magnet.files);
        Ok(magnet)
    }
}

impl fmt::Display for Magnet {
    /// Writes the link in its usual form, hashes in hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("magnet:?")?;
        let v1 = self.hashes.v1.map(|hash| format!("xt=urn:btih:{hash}"));
        let v2 = self
            .hashes
            .v2
            .map(|hash| format!("xt=urn:btmh:{SHA256_MULTIHASH}{hash}"));
        let topics: Vec<String> = v1.into_iter().chain(v2).collect();
        f.write_str(&topics.join("&"))?;
        let peers = self.peers.iter().map(ToString::to_string);
        let peers: Vec<String> = peers.chain(self.peer_hosts.iter().map(ToString::to_string)).collect();
        for (key, values) in [
            ("dn", self.name.as_slice()),
            ("tr", &self.trackers),
            ("ws", &self.web_seeds),
            ("x.pe", &peers),
        ] {
            for value in values {
                write!(f, "&{key}={}", utf8_percent_encode(value, ESCAPED))?;
            }
        }
        for (index, range) in self.files.iter().enumerate() {
            f.write_str(if index == 0 { "&so=" } else { "," })?;
            write!(f, "{}", range.start())?;
            if range.end() > range.start() {
                f.write_char('-')?;
                write!(f, "{}", range.end())?;
            }
        }
        Ok(())
    }
}

/// Returns the key without its number: `tr.1` is a `tr`.
fn without_number(key: &str) -> &str {
    match key.rsplit_once('.') {
        Some((name, number)) if !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => key,
    }
}

fn strip_prefix<'t>(text: &'t str, prefix: &str) -> Option<&'t str> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

fn name_once<H: fmt::Display + Copy + PartialEq>(named: &mut Option<H>, hash: H) -> Result<(), MagnetError> {
    match named.replace(hash) {
        Some(other) if other != hash => Err(MagnetError::TwoTorrents(other.to_string(), hash.to_string())),
        _ => Ok(()),
    }
}

fn read_v1(digits: &str) -> Option<InfoHash> {
    if digits.len() == 32 {
        let bytes = BASE32_NOPAD.decode(digits.to_ascii_uppercase().as_bytes());
        return bytes.ok()?.try_into().ok().map(InfoHash);
    }
    digits.parse().ok()
}

fn read_v2(digits: &str) -> Option<InfoHashV2> {
    let digits = digits
        .strip_prefix(SHA256_MULTIHASH)
        .filter(|digits| digits.len() == 64)?;
    const_hex::decode_to_array(digits).ok().map(InfoHashV2)
}

/// Reads `7` or `4-7`.
fn range(text: &str) -> Option<RangeInclusive<u32>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last).then_some(first..=last)
}

fn merged(mut ranges: Vec<RangeInclusive<u32>>) -> Vec<RangeInclusive<u32>> {
    ranges.truncate(MAX_HINTS);
    ranges.sort_by_key(|range| *range.start());
    ranges.dedup_by(|next, kept| {
        let touches = *next.start() <= kept.end().saturating_add(1);
        if touches {
            *kept = *kept.start()..=*kept.end().max(next.end());
        }
        touches
    });
    ranges
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "c12fe1c06bba254a9dc9f519b335aa7c1367a88a";
    const BASE32: &str = "YEX6DQDLXISUVHOJ6UM3GNNKPQJWPKEK";

    fn read(rest: &str) -> Magnet {
        format!("magnet:?xt=urn:btih:{HEX}{rest}").parse().unwrap()
    }

    fn refused(text: &str) -> MagnetError {
        text.parse::<Magnet>().unwrap_err()
    }

    #[test]
    fn hashes_in_every_form() {
        let hash: InfoHash = HEX.parse().unwrap();
        for topic in [
            format!("urn:btih:{HEX}"),
            format!("urn:btih:{}", HEX.to_uppercase()),
            format!("urn:btih:{BASE32}"),
            format!("URN:BTIH:{}", BASE32.to_lowercase()),
            format!("urn%3Abtih%3A{HEX}"),
        ] {
            for link in [
                format!("magnet:?xt={topic}"),
                format!("MAGNET:?dn=x&xt={topic}"),
                format!("magnet:?dn=x&amp;xt.1={topic}"),
                format!(" magnet:?xt=urn:ed2k:354B15E68FB8F36D7CD88FF94116CDC1&xt={topic}&xt={topic}\n"),
            ] {
                assert_eq!(link.parse::<Magnet>().unwrap().hashes.v1, Some(hash), "{link}");
            }
        }
        let digest = "a".repeat(64);
        let hybrid = read(&format!("&xt=urn:btmh:1220{digest}"));
        assert_eq!(hybrid.hashes.v2.unwrap().to_string(), digest);
        assert_eq!(hybrid.hashes.primary(), hash);
        let v2: Magnet = format!("magnet:?xt=urn:btmh:1220{digest}").parse().unwrap();
        assert_eq!(v2.hashes.v1, None);
    }

    #[test]
    fn links_that_name_no_torrent() {
        for text in [
            "",
            "magnet",
            "magnet:",
            "magnet:xt=urn:btih:",
            "http://a/",
            "magnét:?xt=",
            HEX,
        ] {
            assert_eq!(refused(text), MagnetError::Scheme, "{text}");
        }
        for text in [
            "magnet:?",
            "magnet:?dn=x",
            "magnet:?xt=",
            "magnet:?xt=urn:sha1:YNCKHTQCWBTRNJIV4WNAE52SJUQCZO5C",
        ] {
            assert_eq!(refused(text), MagnetError::NoHash, "{text}");
        }
        for digits in [
            "",
            "abcd",
            &HEX[1..],
            &"z".repeat(40),
            &"1".repeat(32),
            &"é".repeat(20),
            &"é".repeat(16),
        ] {
            let text = format!("magnet:?xt=urn:btih:{digits}");
            assert_eq!(refused(&text), MagnetError::BadHash(digits.to_owned()), "{text}");
        }
        for digits in [HEX.to_owned(), "a".repeat(68), format!("1220{}", "a".repeat(63))] {
            let text = format!("magnet:?xt=urn:btmh:{digits}");
            assert_eq!(refused(&text), MagnetError::BadHashV2(digits));
        }
        let other = "0".repeat(40);
        let text = format!("magnet:?xt=urn:btih:{HEX}&xt=urn:btih:{other}");
        assert_eq!(refused(&text), MagnetError::TwoTorrents(HEX.into(), other));
        let text = format!("magnet:?xs=urn:btpk:{}", "a".repeat(64));
        assert_eq!(refused(&text), MagnetError::PublicKey);
        let text = format!("magnet:?xt=urn:btih:{HEX}&dn={}", "a".repeat(MAX_LINK));
        assert_eq!(refused(&text), MagnetError::TooLong);
    }

    #[test]
    fn hints_are_read_and_bounded() {
        let magnet = read(
            "&dn=Big+Buck%20Bunny%21&dn=other&tr=udp%3A%2F%2Ft.example%3A80&tr.2=http://u.example/announce?a=b\
             &tr=udp://t.example:80&ws=https%3A%2F%2Fw.example%2F&x.pe=%5B2001%3Adb8%3A%3A1%5D:80&x.pe=host.example:1\
             &x.pe=1.2.3.4:0&x.pe=1.2.3.4&x.pe=1.2.3.4:5&unknown=1&x.pe=host.example%3A1&x.pe=host.example:0\
             &x.pe=host.example&x.pe=::1:80&x.pe=a/b:80&x.pe=host.example:2",
        );
        assert_eq!(magnet.name.as_deref(), Some("Big Buck Bunny!"));
        assert_eq!(magnet.trackers, ["udp://t.example:80", "http://u.example/announce?a=b"]);
        assert_eq!(magnet.web_seeds, ["https://w.example/"]);
        let peers: Vec<SocketAddr> = vec!["[2001:db8::1]:80".parse().unwrap(), "1.2.3.4:5".parse().unwrap()];
        assert_eq!(magnet.peers, peers);
        let hosts: Vec<String> = magnet.peer_hosts.iter().map(ToString::to_string).collect();
        assert_eq!(hosts, ["host.example:1", "host.example:2"]);
        let many: String = (1..=1000).fold(String::new(), |text, n| text + &format!("&x.pe=a:{n}&x.pe=1.2.3.4:{n}"));
        let magnet = read(&many);
        assert_eq!(magnet.peers.len() + magnet.peer_hosts.len(), MAX_HINTS);
        let many: String = (0..1000).fold(String::new(), |text, index| {
            text + &format!("&tr=udp://t:{index}&so={}", index * 2)
        });
        let magnet = read(&many);
        assert_eq!((magnet.trackers.len(), magnet.files.len()), (MAX_HINTS, MAX_HINTS));
        let magnet = read("&dn=%1b%5b31m%e2%80%ae");
        assert_eq!(
            magnet.name.as_deref(),
            Some("\u{fffd}[31m\u{fffd}"),
            "nothing that a terminal obeys"
        );
    }

    #[test]
    fn file_selections() {
        for (text, expected) in [
            ("0", vec![0..=0]),
            ("0,2,4,6-8", vec![0..=0, 2..=2, 4..=4, 6..=8]),
            ("3-5,4-9,10,1", vec![1..=1, 3..=10]),
            ("5-3,,x,-1,1-,2--3,99999999999", vec![]),
            ("4294967295,0-4294967295", vec![0..=u32::MAX]),
        ] {
            assert_eq!(read(&format!("&so={text}")).files, expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_link_is_read_as_it_was_written(
            v1: [u8; 20], v2: Option<[u8; 32]>, name in proptest::option::of("[^\\p{C}\\p{Z}]{1,40}"),
            trackers in proptest::collection::hash_set("udp://[a-z]{1,9}:[1-9]/[!-~é]{1,30}", 0..4), peers in proptest::collection::hash_set((any::<[u8; 16]>(), 1u16..), 0..4),
            hosts in proptest::collection::hash_set("[a-z]{1,9}(\\.[a-z]{1,9})?:[1-9][0-9]{0,3}", 0..4),
            starts in proptest::collection::btree_set(0u32..10_000, 0..5),
        ) {
            let magnet = Magnet {
                hashes: InfoHashes { v1: Some(InfoHash(v1)), v2: v2.map(InfoHashV2) },
                name: name.map(|name| printable(name.as_bytes(), MAX_NAME)),
                trackers: trackers.into_iter().collect(),
                peers: peers.into_iter().map(SocketAddr::from).collect(),
                peer_hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
                web_seeds: vec![],
                files: starts.into_iter().map(|start| start * 10..=start * 10 + start % 3).collect(),
            };
            prop_assert_eq!(magnet.to_string().parse(), Ok(magnet));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "magnet:\\?(xt=urn:btih:[a-z2-7]{32})?[ -~é]{0,200}") {
            if let Ok(magnet) = text.parse::<Magnet>() {
                prop_assert_eq!(magnet.to_string().parse::<Magnet>(), Ok(magnet));
            }
        }
    }
}
