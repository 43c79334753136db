//! Links to a torrent that its publisher can replace: a public key in place of an info-hash (BEP 46).

use std::fmt;
use std::str::FromStr;

use url::form_urlencoded;

use super::{MAX_LINK, Magnet, MagnetError, strip_prefix};
use crate::bencode::{Document, Limits, Value};
use crate::dht::id::NodeId;
use crate::dht::items::mutable_target;
use crate::dht::krpc::MAX_SALT;
use crate::hash::InfoHash;
use crate::text::printable;

/// A link that names a mutable item of the DHT (BEP 44), whose value is the info-hash of the current torrent.
///
/// ```
/// use ecs_torrent_protocol::magnet::MutableLink;
///
/// let text = "magnet:?xs=urn:btpk:8543d3e6115f0f98c944077a4493dcd543e49c739fd998550a1f614ab36ed63e&s=6e";
/// let link: MutableLink = text.parse().unwrap();
/// assert_eq!(link.salt, b"n");
/// assert_eq!(link.to_string(), text);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MutableLink {
    /// `xs`: the publisher's public key.
    pub key: [u8; 32],
    /// `s`: the salt, by which a publisher has several torrents under one key; empty if there is none.
    pub salt: Vec<u8>,
}

impl MutableLink {
    /// Whether a text is meant to be such a link: a magnet link with a public key and without an info-hash.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        Magnet::is_meant(text) && matches!(text.parse::<Magnet>(), Err(MagnetError::PublicKey))
    }

    /// Returns the target under which nodes store the item.
    #[must_use]
    pub fn target(&self) -> NodeId {
        mutable_target(&self.key, &self.salt)
    }

    /// Returns the value that names a torrent.
    #[must_use]
    pub fn value_of(torrent: InfoHash) -> Vec<u8> {
        [&b"d2:ih20:"[..], &torrent.0, b"e"].concat()
    }

    /// Returns the torrent that a value names, if it names one.
    #[must_use]
    pub fn torrent_in(value: &[u8]) -> Option<InfoHash> {
        let document = Document::parse(value, &Limits::default()).ok()?;
        let hash = document.root().get(b"ih").and_then(Value::as_bytes)?;
        hash.try_into().ok().map(InfoHash)
    }
}

impl FromStr for MutableLink {
    type Err = MagnetError;

    fn from_str(text: &str) -> Result<Self, MagnetError> {
        let text = text.trim();
        if text.len() > MAX_LINK {
            return Err(MagnetError::TooLong);
        }
        let query = strip_prefix(text, "magnet:?").ok_or(MagnetError::Scheme)?;
        let (mut key, mut salt) = (None, Vec::new());
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let name = name.strip_prefix("amp;").unwrap_or(&name).to_ascii_lowercase();
            let bad = || MagnetError::BadKey(printable(value.as_bytes(), 80));
            match &*name {
                "xs" => {
                    if let Some(digits) = strip_prefix(value.trim(), "urn:btpk:") {
                        key = Some(const_hex::decode_to_array(digits).map_err(|_| bad())?);
                    }
                }
                "s" => salt = const_hex::decode(value.trim()).map_err(|_| bad())?,
                _ => {}
            }
        }
        if salt.len() > MAX_SALT {
            return Err(MagnetError::BadKey(const_hex::encode(salt)));
        }
        let key = key.ok_or(MagnetError::NoKey)?;
        Ok(Self { key, salt })
    }
}

impl fmt::Display for MutableLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "magnet:?xs=urn:btpk:{}", const_hex::encode(self.key))?;
        match self.salt.is_empty() {
            true => Ok(()),
            false => write!(f, "&s={}", const_hex::encode(&self.salt)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "8543d3e6115f0f98c944077a4493dcd543e49c739fd998550a1f614ab36ed63e";

    /// The vectors of BEP 46.
    #[test]
    fn links_name_their_items() {
        for (rest, target) in [
            ("", "cc3f9d90b572172053626f9980ce261a850d050b"),
            ("&s=6e", "59ee7c2cb9b4f7eb1986ee2d18fd2fdb8a56554f"),
        ] {
            let text = format!("magnet:?xs=urn:btpk:{KEY}{rest}");
            let link: MutableLink = text.parse().unwrap();
            assert_eq!(link.target().to_string(), target);
            assert_eq!(link.to_string(), text);
            assert!(MutableLink::is_meant(&text));
        }
    }

    #[test]
    fn other_links_are_refused() {
        let read = |text: &str| text.parse::<MutableLink>().unwrap_err();
        let (short, long) = (&KEY[2..], "00".repeat(65));
        assert_eq!(read("http://a"), MagnetError::Scheme);
        assert_eq!(read("magnet:?xs=urn:other:1"), MagnetError::NoKey);
        for text in [
            format!("magnet:?xs=urn:btpk:{short}"),
            format!("magnet:?xs=urn:btpk:{KEY}&s=x"),
            format!("magnet:?xs=urn:btpk:{KEY}&s={long}"),
        ] {
            assert!(matches!(read(&text), MagnetError::BadKey(_)), "{text}");
        }
        let hash = "a".repeat(40);
        assert!(!MutableLink::is_meant(&format!(
            "magnet:?xt=urn:btih:{hash}&xs=urn:btpk:{KEY}"
        )));
    }

    #[test]
    fn values_name_torrents() {
        let torrent = InfoHash([7; 20]);
        assert_eq!(MutableLink::torrent_in(&MutableLink::value_of(torrent)), Some(torrent));
        for value in [&b"d2:ih3:abce"[..], b"5:hello", b"de", b"d2:ih20:", b""] {
            assert_eq!(MutableLink::torrent_in(value), None);
        }
    }
}
