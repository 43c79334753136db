//! Tracker protocols: announce and scrape over HTTP (BEP 3, 7, 23, 24, 31, 48) and UDP (BEP 15), and the order in which
//! trackers are used (BEP 12).

pub mod http;
pub mod tiers;
pub mod udp;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::bencode::BencodeError;
use crate::compact::RaggedError;
use crate::hash::InfoHash;
use crate::peer_id::PeerId;
use crate::text::printable;

/// The reason for an announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AnnounceEvent {
    /// The interval has passed.
    #[default]
    None,
    /// The first announce of a session.
    Started,
    /// The download has completed.
    Completed,
    /// The interval has passed, and the torrent is a partial seed: it has everything that its user wants, and not all
    /// (BEP 21). Over UDP, which has no such event (BEP 15), the same as `None`.
    Paused,
    /// The session ends.
    Stopped,
}

/// The contents of an announce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnounceRequest {
    /// The torrent.
    pub info_hash: InfoHash,
    /// Our peer id.
    pub peer_id: PeerId,
    /// The port we accept connections on.
    pub port: u16,
    /// Payload bytes sent since `started`.
    pub uploaded: u64,
    /// Payload bytes received since `started`.
    pub downloaded: u64,
    /// Bytes left to download.
    pub left: u64,
    /// The reason for the announce.
    pub event: AnnounceEvent,
    /// Identifies us across address changes (BEP 7).
    pub key: u32,
    /// Number of peers requested.
    pub num_want: u32,
    /// The tracker id from the tracker's last reply, sent back as `trackerid` (HTTP only).
    pub tracker_id: Option<Vec<u8>>,
}

/// A tracker's reply to an announce.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AnnounceResponse {
    /// The interval until the next announce, as the tracker sent it: not clamped.
    pub interval: Duration,
    /// The minimum time between announces, if the tracker sent one.
    pub min_interval: Option<Duration>,
    /// Peers with the complete torrent.
    pub seeders: Option<u32>,
    /// Peers without the complete torrent.
    pub leechers: Option<u32>,
    /// Peer addresses; none has port 0.
    pub peers: Vec<SocketAddr>,
    /// A warning for the user; printable.
    pub warning: Option<String>,
    /// An opaque id to send back with the next announce.
    pub tracker_id: Option<Vec<u8>>,
    /// Our address as the tracker sees it (BEP 24).
    pub external_ip: Option<IpAddr>,
}

/// A tracker's counts of a torrent's swarm (BEP 48).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScrapeCounts {
    /// Peers with the complete torrent.
    pub seeders: u32,
    /// Peers without the complete torrent.
    pub leechers: u32,
    /// Total number of completed downloads.
    pub completed: u32,
}

/// The time when a tracker that refused accepts the next announce (BEP 31).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The tracker named no time.
    Unspecified,
    /// After this time.
    After(Duration),
    /// The tracker accepts no further announces.
    Never,
}

/// The reason a reply is unusable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrackerError {
    /// The tracker refused.
    #[error("the tracker refused: {reason}")]
    Refused {
        /// The tracker's reason; printable.
        reason: String,
        /// When to announce again.
        retry: Retry,
    },
    /// The reply is not bencode.
    #[error("malformed reply: {0}")]
    Bencode(#[from] BencodeError),
    /// The reply is bencode without the required contents.
    #[error("malformed reply: {0}")]
    Malformed(&'static str),
    /// A list of peers is truncated inside an address.
    #[error("malformed reply: peers: {0}")]
    Ragged(#[from] RaggedError),
}

/// A tracker's URL in a form for logs and users: scheme and host, since paths and queries contain passkeys, and the
/// path if it is one that every tracker may have.
#[must_use]
pub fn redacted(url: &str) -> String {
    let Ok(parsed) = url::Url::parse(url) else {
        return "(invalid URL)".to_owned();
    };
    let path = Some(parsed.path()).filter(|path| USUAL_PATHS.contains(path));
    origin(&parsed) + path.unwrap_or_default()
}

/// Returns a URL that a user typed, in a form for errors: the text itself, if it is no URL.
#[must_use]
pub fn typed(text: &str) -> String {
    match url::Url::parse(text) {
        Ok(_) => redacted(text),
        Err(_) => printable(text.as_bytes(), MAX_TEXT),
    }
}

/// Paths that contain no passkey.
const USUAL_PATHS: [&str; 2] = ["/announce", "/scrape"];

/// Returns whether a user means a tracker by a text: its URL in full, as it is listed, or without its path.
#[must_use]
pub fn is_named_by(url: &str, text: &str) -> bool {
    let without_path = |url: url::Url| origin(&url) == text;
    url == text || redacted(url) == text || url::Url::parse(url).is_ok_and(without_path)
}

fn origin(url: &url::Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default())
}

/// Removes from a tracker's text all parts of its URL that could be a passkey. Fault 95: some trackers repeat them.
#[must_use]
pub fn without_secrets(text: &str, url: &str) -> String {
    let Ok(url) = url::Url::parse(url) else {
        return text.to_owned();
    };
    let segments = url.path_segments().into_iter().flatten().map(str::to_owned);
    let values = url.query_pairs().map(|(_, value)| value.into_owned());
    let user = [Some(url.username()), url.password()]
        .into_iter()
        .flatten()
        .map(str::to_owned);
    let secrets = segments
        .chain(values)
        .chain(user)
        .filter(|part| part.len() >= MIN_SECRET);
    secrets.fold(text.to_owned(), |text, secret| text.replace(&secret, "…"))
}

/// Minimum length of a passkey; shorter parts of a URL are words.
const MIN_SECRET: usize = 9;

/// Maximum length of text kept from a tracker, in characters.
const MAX_TEXT: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    /// Fault 95.
    #[test]
    fn passkeys_are_not_shown() {
        assert_eq!(
            redacted("https://u:p@t.org:444/secret/announce?key=1"),
            "https://t.org:444"
        );
        assert_eq!(redacted("udp://[::1]:6969/x"), "udp://[::1]:6969");
        assert_eq!(redacted("secret"), "(invalid URL)");
        assert_eq!(redacted("http://t.org/announce?key=1"), "http://t.org/announce");
        assert_eq!(redacted("http://t.org/scrape"), "http://t.org/scrape");
        assert_eq!(redacted("http://t.org/announce/1"), "http://t.org");
    }

    #[test]
    fn a_tracker_is_named_in_full_as_listed_or_by_its_host() {
        let url = "http://t.org:80/announce?key=1";
        for text in [url, "http://t.org/announce", "http://t.org"] {
            assert!(is_named_by(url, text), "{text}");
        }
        assert!(!is_named_by(url, "http://t.org/announce?key=2"));
        assert!(!is_named_by(url, "http://t.org/"));
    }

    /// Fault 95.
    #[test]
    fn a_tracker_repeats_no_passkey() {
        let url = "https://someuser1:p@t.org/0123456789abcdef/announce?key=fedcba987";
        let said = without_secrets("0123456789abcdef, fedcba987 and someuser1 may not announce", url);
        assert_eq!(said, "…, … and … may not announce");
        assert_eq!(without_secrets("plain", "no url"), "plain");
    }

    pub(super) fn request() -> AnnounceRequest {
        AnnounceRequest {
            info_hash: InfoHash([0xab; 20]),
            peer_id: PeerId(*b"-EC0100-abcdefghijkl"),
            port: 6881,
            uploaded: 1,
            downloaded: 2,
            left: 3,
            event: AnnounceEvent::Started,
            key: 0xdead_beef,
            num_want: 50,
            tracker_id: None,
        }
    }
}
